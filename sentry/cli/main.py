"""`trapline`: finds the verb and hands over. Each verb's module is imported only when it is asked for."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from typing import Any

    from trapline.sentry.cli.flags import Flag

USAGE = 2  # exit status of a command line that makes no sense

#: verb: (its module in this package, what it does)
VERBS = {
    "do": ("do", "Run a command in a new sandbox over the host's files."),
    "run": ("run", "Run a command, or an OCI bundle, in a sandbox with a name."),
    "create": ("run", "Make a sandbox from an OCI bundle, up to its program's start."),
    "start": ("lifecycle", "Start the program of a created sandbox."),
    "exec": ("exec", "Run one more process in a running sandbox."),
    "attach": ("attach", "Bring the terminal of a detached sandbox to this one."),
    "kill": ("lifecycle", "Send a signal to processes of a sandbox."),
    "pause": ("lifecycle", "Stop every task of a sandbox."),
    "resume": ("lifecycle", "Let a paused sandbox go on."),
    "checkpoint": ("checkpoint", "Save a running sandbox to a directory."),
    "restore": ("restore", "Make a sandbox from a checkpoint, which goes on where it was."),
    "wait": ("lifecycle", "Wait for the end of a sandbox, for a checkpoint of it, or for its restore."),
    "delete": ("lifecycle", "Remove a stopped sandbox."),
    "state": ("state", "Print the state of a sandbox as JSON."),
    "list": ("list", "List the sandboxes."),
    "ps": ("ps", "List the processes of a running sandbox."),
    "events": ("events", "Print what a sandbox uses, as JSON."),
    "statefile": ("statefile", "Print what the image of a checkpoint holds."),
    "spec": ("bundle", "Write a config.json for an OCI bundle."),
    "features": ("bundle", "Print what of OCI bundles is supported, as JSON."),
    "compare": ("compare", "Run programs natively and in a sandbox, and compare what they do."),
    "syscalls": ("syscalls", "List the system calls: how each is served, and how completely."),
    "doctor": ("doctor", "Say what this host offers, and which forms are used in place of what it does not."),
    "completion": ("completion", "Print a script that completes command lines in a shell."),
}


def global_flags() -> tuple[Flag, ...]:
    """What may stand before the verb, as callers of other OCI runtimes write it."""
    from trapline.sentry.cli.flags import Flag
    from trapline.sentry.cli.verb import path

    return (
        Flag("--root", "DIR", "Where sandboxes are written down: the verbs' --state-dir.", parse=path),
        Flag("--log", "FILE", "Write here, too, what is wrong when a verb fails.", parse=path),
        Flag("--log-format", help="Of --log.", choices=("text", "json"), default="text"),
        Flag("--debug", help="Log more: the verbs' --debug."),
        Flag("--debug-log", "FILE", "The sandbox's log: the verbs' --log.", parse=path),
        Flag("--platform", help="The verbs' --platform.", choices=("seccomp", "ptrace")),
        Flag("--network", help="The verbs' --network.", choices=("none", "host")),
        # There are no control groups to be managed.
        Flag("--systemd-cgroup", hidden=True),
        Flag("--cgroup-manager", "NAME", hidden=True),
        Flag("--ignore-cgroups", hidden=True),
        Flag("--rootless", "MODE", hidden=True),
    )


#: Global flags, by their keys, as flags of the verbs that know them.
_PASSED = {
    "root": "--state-dir", "debug": "--debug", "debug_log": "--log", "platform": "--platform", "network": "--network",
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Run a command line (without the program's name); the exit status."""
    try:
        return _main(argv)
    except KeyboardInterrupt:
        # The loop of a shell script ends with ^C only when what it waits for dies of it.
        import os
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        return 130
    except BrokenPipeError:
        # Whoever read us went away: nothing to say, and nothing to be said at exit either.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _main(argv: list[str]) -> int:
    given: dict[str, Any] = {}
    verb = argv[0] if argv else "help"
    if verb.startswith("-") and verb not in ("--help", "-h", "--version", "-v"):
        from trapline.sentry.cli.flags import UsageError, parse

        try:
            given, argv = parse(global_flags(), argv)
        except UsageError as error:
            print(f"trapline: {error}", file=sys.stderr)
            return USAGE
        verb = argv[0] if argv and not given["help"] else "help"
    if verb in ("help", "--help", "-h"):
        return _help(argv[1:])
    if verb in ("--version", "-v", "version"):
        from trapline import __version__

        print(f"trapline {__version__}\nspec: 1.0.2")
        return 0
    if verb not in VERBS:
        return _unknown(verb)
    return _run(verb, argv[1:], given)


def module_of(verb: str) -> Any:
    """The module, or the object of it, that has this verb's `run`, `USAGE`, `SUMMARY` and `FLAGS`."""
    from importlib import import_module

    return import_module(f"trapline.sentry.cli.{VERBS[verb][0]}")


def _run(verb: str, rest: list[str], given: dict[str, Any]) -> int:
    from trapline.sentry.cli.flags import UsageError, VerbError

    try:
        if verb == "do" and not given:
            from trapline.sentry.cli import do

            return do.run(rest)
        module = module_of(verb)
        for found in getattr(module, "VERBS", ()):
            if found.name == verb:
                module = found
        status: int = module.run(_passed(module, given) + rest)
        sys.stdout.flush()
        return status
    except UsageError as error:
        _say(f"trapline {verb}: {error}", str(error), given)
        return USAGE
    except VerbError as error:
        _say(f"trapline {verb}: {error}", str(error), given)
        return error.status


def _passed(module: Any, given: dict[str, Any]) -> list[str]:
    """Global flags as words for a verb, in front of its own."""
    flags: tuple[Flag, ...] = module.flags if hasattr(module, "flags") else getattr(module, "FLAGS", ())
    known = {flag.name: flag for flag in flags}
    words = []
    for key, name in _PASSED.items():
        if given.get(key) and name in known:
            words.append(f"{name}={given[key]}" if known[name].metavar else name)
    return words


def _say(line: str, text: str, given: dict[str, Any]) -> None:
    """On standard error, and as the last line of the log that was asked for."""
    if given.get("log"):
        from time import gmtime, strftime

        entry = f"error {text}"
        if given["log_format"] == "json":
            import json

            stamp = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime())
            entry = json.dumps({"level": "error", "msg": text, "time": stamp})
        try:
            with open(given["log"], "a", encoding="utf-8", errors="replace") as log:
                log.write(entry + "\n")
        except OSError as error:
            line += f" (and the log cannot be written: {given['log']}: {error.strerror})"
    print(line, file=sys.stderr)


def _help(rest: list[str]) -> int:
    if rest and rest[0] in VERBS:
        return _run(rest[0], ["--help"], {})
    if rest == ["--markdown"]:
        from trapline.sentry.cli import reference

        sys.stdout.write(reference.markdown())
        return 0
    if rest:
        return _unknown(rest[0])
    width = max(len(v) for v in VERBS) + 2
    verbs = "\n".join(f"  {verb.ljust(width)}{text}" for verb, (_, text) in VERBS.items())
    print(
        f"""usage: trapline [FLAGS] VERB [FLAGS] ...

A Linux kernel in Python that real programs run under.

verbs:
{verbs}
  {"help".ljust(width)}Print this, or a verb's help: trapline help do.

flags, those of other OCI runtimes before the verb:
  --root DIR, --log FILE, --log-format text|json, --debug, --debug-log FILE, --platform NAME, --network NAME
  --version  Print the version.

try:
  trapline do sh"""
    )
    sys.stdout.flush()
    return 0


def _unknown(verb: str) -> int:
    from trapline.sentry.cli.flags import did_you_mean

    hint = did_you_mean(verb, [*VERBS, "help"])
    if verb.startswith("-"):
        text = f"there is no flag {verb}{hint or ': flags come after the verb'}"
    else:
        from shutil import which

        if hint and which(verb):
            hint += f" Or, to run it, trapline do {verb}"
        text = f"there is no verb {verb}{hint or ': to run it, trapline do ' + verb + '; see trapline help'}"
    print(f"trapline: {text}", file=sys.stderr)
    return USAGE
