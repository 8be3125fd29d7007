"""`trapline`: finds the verb and hands over. Each verb's module is imported only when it is asked for."""

from __future__ import annotations

import sys

USAGE = 2  # exit status of a command line that makes no sense

VERBS = {
    "do": "Run a command in a new sandbox over the host's files.",
    "compare": "Run programs natively and in a sandbox, and compare what they do.",
    "list": "List the running sandboxes.",
    "ps": "List the processes of a running sandbox.",
    "syscalls": "List the system calls: how each is served, and how completely.",
    "doctor": "Say what this host offers, and which forms are used in place of what it does not.",
}


def main(argv: list[str]) -> int:
    """Run a command line (without the program's name); the exit status."""
    verb = argv[0] if argv else "help"
    try:
        if verb in ("help", "--help", "-h"):
            return _help(argv[1:])
        if verb in ("--version", "version"):
            from trapline import __version__

            print(f"trapline {__version__}")
            return 0
        if verb not in VERBS:
            return _unknown(verb)
        return _run(verb, argv[1:])
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


def _run(verb: str, rest: list[str]) -> int:
    from trapline.sentry.cli.flags import UsageError

    try:
        if verb == "do":
            from trapline.sentry.cli import do

            return do.run(rest)
        from importlib import import_module

        module = import_module(f"trapline.sentry.cli.{verb}")
        status: int = module.run(rest)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"trapline {verb}: {error}", file=sys.stderr)
        return USAGE


def _help(rest: list[str]) -> int:
    if rest and rest[0] in VERBS:
        return _run(rest[0], ["--help"])
    if rest:
        return _unknown(rest[0])
    width = max(len(v) for v in VERBS) + 2
    verbs = "\n".join(f"  {verb.ljust(width)}{text}" for verb, text in VERBS.items())
    print(
        f"""usage: trapline VERB [FLAGS] ...

A Linux kernel in Python that real programs run under.

verbs:
{verbs}
  {"help".ljust(width)}Print this, or a verb's help: trapline help do.

flags:
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
        text = f"there is no verb {verb}{hint or ': to run it, trapline do ' + verb + '; see trapline help'}"
    print(f"trapline: {text}", file=sys.stderr)
    return USAGE
