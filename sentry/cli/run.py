"""`trapline run` and `trapline create`: sandboxes with a name and a life of their own."""

from __future__ import annotations

import os
from typing import Any

from trapline.sentry.cli import do
from trapline.sentry.cli.flags import Flag, UsageError, VerbError
from trapline.sentry.cli.verb import Verb, as_runtimes_say, path
from trapline.sentry.options import ContainerOptions

_OWN = (
    Flag("--id", "ID", "The name. It may also follow the flags, where there is no command."),
    Flag("--bundle", "DIR", "Run what config.json in this directory says (OCI). Default: the current one.", short="-b",
         parse=path),
    Flag("--pid-file", "FILE", "Write the sentry's id on the host, which ends with the program's status.", parse=path),
)  # fmt: skip
_DETACH = Flag("--detach", help="Return as soon as it runs. Its output is kept in the state directory.", short="-d")
#: Flags of other runtimes that callers give and that change nothing here.
_IGNORED = (
    Flag("--no-pivot", hidden=True),
    Flag("--no-new-keyring", hidden=True),
    Flag("--preserve-fds", "N", hidden=True, default="0"),
    Flag("--keep", hidden=True),
    Flag("--user-log", "FILE", hidden=True),
)


def _inherited() -> tuple[Flag, ...]:
    """Those of `do`; the ones that a bundle decides too have no default."""
    found = []
    for flag in do.FLAGS:
        if flag.name == "--state-dir":
            continue
        if flag.name in ("--network", "--overlay"):
            flag = Flag(flag.name, flag.metavar, flag.help, choices=flag.choices)
        found.append(flag)
    return tuple(found)


def container_options(values: dict[str, Any], words: list[str], *, created: bool) -> ContainerOptions:
    """UsageError, VerbError."""
    from trapline.sentry.control import records

    name, command = values["id"], words
    bundle = values["bundle"]
    if name is None:
        if not words:
            raise UsageError("there is no ID: give --id ID, or the id of a sandbox to be made from a bundle")
        name, command = words[0], []
        if len(words) > 1:
            raise UsageError(f"give --id ID before a command: --id {name} {' '.join(words[1:])}")
        bundle = bundle or os.getcwd()
    elif not command and bundle is None:
        raise UsageError("there is no command, and no --bundle DIR that has one")
    try:
        records.check_id(name)
    except records.RecordError as error:
        raise VerbError(str(error)) from None
    detach = created or bool(values["detach"])
    result = ContainerOptions(
        id=name,
        sandbox=_sandbox(values, command or ["-"], bundle),
        bundle=bundle or "",
        detach=detach,
        created=created,
        pid_file=values["pid_file"],
    )
    if bundle is not None:
        _use_bundle(result, values, command)
    if result.sandbox.console_socket and not result.sandbox.tty:
        raise UsageError("--console-socket is for a program with a terminal")
    if detach and result.sandbox.record:
        raise UsageError("--record needs this terminal, and so no --detach")
    return result


def _sandbox(values: dict[str, Any], command: list[str], bundle: str | None) -> Any:
    given = dict(values)
    given["network"] = values["network"] or "none"
    # A bundle's root is its own: what is written there stays, as with other runtimes.
    given["overlay"] = values["overlay"] or ("memory" if bundle is None else "none")
    return do.of_values(given, command)


def _use_bundle(result: ContainerOptions, values: dict[str, Any], command: list[str]) -> None:
    from trapline.sentry.control import oci

    if values["rootfs"]:
        raise UsageError("--rootfs and --bundle both say which root: choose one")
    options = result.sandbox
    added, cwd, terminal = options.env, values["cwd"], bool(values["tty"])
    try:
        bundle = oci.load(result.bundle)
        oci.apply(bundle, options)
    except oci.OciError as error:
        raise VerbError(str(error)) from None
    result.annotations = bundle.config.annotations
    options.env = [*options.env, *added]
    if values["network"]:
        options.network, options.network_path = values["network"], ""
    options.tty = bool(terminal or options.record or (bundle.config.process and bundle.config.process.terminal))
    if cwd:
        options.cwd = os.path.normpath("/" + cwd)
    if command:
        options.command = command


def _start(values: dict[str, Any], words: list[str], created: bool) -> int:
    options = container_options(values, words, created=created)
    from trapline.platform import run, state_dir
    from trapline.platform.first_processes import SetupError

    try:
        status: int = run.run_container(options)
        return status
    except (state_dir.StateDirError, SetupError) as error:
        raise VerbError(as_runtimes_say(str(error))) from None


def _run(values: dict[str, Any], words: list[str]) -> int:
    return _start(values, words, created=False)


def _create(values: dict[str, Any], words: list[str]) -> int:
    return _start(values, words, created=True)


VERBS = (
    Verb(
        "run",
        "[FLAGS] --id ID [--bundle DIR] [--] COMMAND [ARGUMENT...]",
        "Run a command in a sandbox with a name, which other verbs can ask things of while it lives. With --bundle its "
        "root, program and all else are those of an OCI bundle, and the command may be left out: run --bundle DIR ID. "
        "The exit status is the command's, 128 if the sandbox cannot be made, 2 for a mistake in the flags.",
        (*_OWN, _DETACH, *_IGNORED, *_inherited()),
        _run,
        examples="  trapline run -d --id web -- python3 -m http.server\n  trapline run --bundle ./bundle box\n",
        command=True,
        words=(0, 0),
    ),
    Verb(
        "create",
        "[FLAGS] [--bundle DIR] ID",
        "Make a sandbox from an OCI bundle, all but its program's start, which `trapline start` is for.",
        (*_OWN, *_IGNORED, *_inherited()),
        _create,
        examples="  trapline create --bundle ./bundle box && trapline start box\n",
        command=True,
        words=(0, 0),
    ),
)
