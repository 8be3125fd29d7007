"""`trapline do`: run one command in a new sandbox. Flags in runsc's manner."""

from __future__ import annotations

import os
import sys
from typing import Any

from trapline.sentry.cli.flags import Flag, UsageError, did_you_mean, help_text, parse
from trapline.sentry.cli.strace_flags import STRACE_FLAGS, STRACE_KEYS
from trapline.sentry.options import DoOptions, StraceOptions

USAGE = "trapline do [FLAGS] COMMAND [ARGUMENT...]"
SUMMARY = (
    "Run a command in a new sandbox. It sees the host's files; what it writes stays in memory and goes "
    "with it, except below the working directory and the volumes, which are the host's own. "
    "The exit status is the command's, 127 if it is not found, 126 if it cannot be executed, "
    "125 if the sandbox cannot be made, 2 for a mistake in the flags."
)
EXAMPLES = """
examples:
  trapline do python3 -c 'import time; print(time.monotonic())'
  trapline do --volume ~/data:/data:ro --env LANG=C make test
  trapline do --rootfs ./alpine /bin/sh
"""


def _volume(text: str) -> tuple[str, str, bool]:
    parts = text.split(":")
    read_only = len(parts) > 2 and parts[-1] == "ro"
    if len(parts) > 3 or (len(parts) == 3 and parts[2] not in ("ro", "rw")) or not parts[0]:
        raise ValueError("takes SRC[:DST[:ro]]")
    source = os.path.abspath(parts[0])
    if not os.path.exists(source):
        raise ValueError("needs a file or directory that exists")
    target = parts[1] if len(parts) > 1 and parts[1] else source
    if not target.startswith("/"):
        raise ValueError("takes an absolute path in the sandbox")
    target = os.path.normpath(target)
    if target == "/" or target.startswith("//"):
        raise ValueError("cannot take the place of the root (for that there is --rootfs)")
    return source, target, read_only


def _environment(text: str) -> str:
    name, equals, _ = text.partition("=")
    if not name or not equals:
        raise ValueError("takes NAME=VALUE")
    return text


def _cpus(text: str) -> int:
    most = len(os.sched_getaffinity(0))
    if not text.isdecimal() or not 1 <= int(text) <= most:
        right = "1, the only one" if most == 1 else f"from 1 to {most}, all"
        raise ValueError(f"takes a number of CPUs: {right} that trapline may use here")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if value != 0 and not 0.1 <= value <= 86400:
        raise ValueError("takes seconds from 0.1 to 86400, or 0")
    return value


def _directory(text: str) -> str:
    path = os.path.abspath(text)
    if not os.path.isdir(path):
        raise ValueError("takes a directory that exists")
    return path


def _marker(text: str) -> str:
    """DIR or DIR:kill."""
    directory, colon, _ = text.partition(":kill")
    return _directory(directory) + colon


def _file(text: str) -> str:
    path = os.path.abspath(text)
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
        raise ValueError("takes a file in a directory that exists")
    return path


def _socket(text: str) -> str:
    if not text:
        raise ValueError("takes the path of a unix socket that somebody listens on")
    return os.path.abspath(text)


def _words(text: str) -> list[str]:
    """A command with its arguments, quoted as for a shell."""
    from shlex import split

    try:
        words = split(text)
    except ValueError as error:
        raise ValueError(f"takes a command, quoted as for a shell ({error})".lower()) from None
    if not words or not words[0]:
        raise ValueError("takes a command, quoted as for a shell")
    return words


def _rate(text: str) -> tuple[int, int]:
    """`0.5` or `1/2` as a reduced fraction; between a thousandth and a thousand."""
    from math import gcd

    try:
        if "/" in text:
            left, _, right = text.partition("/")
            number, divisor = int(left), int(right)
        else:
            whole, _, digits = text.partition(".")
            number, divisor = int(whole + digits), 10 ** len(digits)
    except ValueError:
        raise ValueError("takes a positive number, such as 0.5 or 1/2") from None
    if number <= 0 or divisor <= 0 or not divisor <= number * 1000 <= divisor * 1_000_000:
        raise ValueError("takes a positive number, such as 0.5 or 1/2")
    common = gcd(number, divisor)
    return number // common, divisor // common


#: What `restore` takes, too.
CHECKPOINT_FLAGS = (
    Flag(
        "--checkpoint-dir",
        "DIR",
        "Let programs inside ask for checkpoints, which go to this directory; see docs/control.md.",
        parse=_directory,
    ),
    Flag(
        "--save-hook",
        "CMD",
        "Run this in the sandbox before each checkpoint, which it can prevent, and once the sandbox goes on.",
        parse=_words,
    ),
    Flag("--restore-hook", "CMD", "Run this in the sandbox after a restore.", parse=_words),
    Flag(
        "--hook-timeout", "SECONDS", "Kill a hook that has not ended by then; 0: never. Default: 600.", parse=_seconds
    ),
)
FLAGS = (
    Flag("--rootfs", "DIR", "A directory to use as the root in place of the host's.", parse=_directory),
    Flag("--cwd", "DIR", "Start in this directory in place of the current one (with --rootfs: of /)."),
    Flag(
        "--env", "NAME=VALUE", "Set a variable in addition to the caller's.", parse=_environment, repeat=True
    ),
    Flag(
        "--volume",
        "SRC[:DST[:ro]]",
        "Share a file or directory of the host, at the same place or at DST; with :ro it cannot be written.",
        parse=_volume,
        repeat=True,
    ),
    Flag(
        "--network",
        help="none: a network of its own with a loopback only. host: the host's.",
        choices=("none", "host"),
        default="none",
    ),
    Flag(
        "--platform",
        help="How calls are caught: by seccomp notifications, or by ptrace alone (slower).",
        choices=("seccomp", "ptrace"),
        default="seccomp",
    ),
    Flag("--cpus", "N", "How many CPUs the command may use, and sees. Default: all.", parse=_cpus),
    Flag(
        "--overlay",
        help="Where writes outside of shared directories go: to memory, or (none) to the host.",
        choices=("memory", "none"),
        default="memory",
    ),
    Flag("--log", "FILE", "Write the log here. Default: nowhere, or with --debug to standard error.", parse=_file),
    Flag("--log-format", help="Lines of text or of JSON.", choices=("text", "json"), default="text"),
    Flag("--debug", help="Log more."),
    Flag("--core-dir", "DIR", "Write core files of programs that crash into this directory.", parse=_directory),
    Flag(
        "--tty",
        help="Give the command a terminal of its own, whatever standard input is; see docs/terminals.md.",
        short="-t",
    ),
    Flag(
        "--console-socket",
        "SOCKET",
        "Give it a terminal, and send the other side to this unix socket, as OCI runtimes do.",
        parse=_socket,
    ),
    Flag("--record", "FILE", "Give it a terminal, and write the session as an asciicast (v2).", parse=_file),
    Flag("--record-input", help="Record what is typed, too: passwords included."),
    *CHECKPOINT_FLAGS,
    Flag("--state-dir", "DIR", "Where running sandboxes are written down."),
    Flag("--stats", help="Print counters of the system calls at the end."),
    Flag("--stats-json", "FILE", "Write the counters as JSON.", parse=_file),
    Flag(
        "--watchdog",
        "SECONDS",
        "Report a handler of the sentry that has not ended after this long; 0: none. Default: 3.",
        parse=_seconds,
        default=3.0,
    ),
    *STRACE_FLAGS,
    Flag("--clock-rate", "RATE", "Sandbox seconds per host second.", parse=_rate, hidden=True),
    Flag("--checkpoint-at-marker", "DIR[:kill]", "Save at each marker call.", parse=_marker, hidden=True),
    Flag("--without", "FEATURE", "Do without something that the host offers.", repeat=True, hidden=True),
)


def options(words: list[str]) -> DoOptions | None:
    """What a command line asks for; None when it asks for help. UsageError."""
    values, command = parse(FLAGS, words)
    if values["help"]:
        return None
    if not command:
        raise UsageError(f"there is no command: {USAGE}")
    return of_values(values, command)


def of_values(values: dict[str, Any], command: list[str]) -> DoOptions:
    """From the values of FLAGS and a command. UsageError."""
    if not command[0]:
        raise UsageError("the command is empty")
    if values["record"] and values["console_socket"]:
        raise UsageError("--record and --console-socket both want the terminal's other side: choose one")
    if values["record_input"] and not values["record"]:
        raise UsageError("--record-input needs --record FILE")
    return DoOptions(
        command=command,
        rootfs=values["rootfs"],
        cwd=_absolute(values["cwd"], values["rootfs"]),
        env=values["env"],
        volumes=values["volume"],
        network=values["network"],
        platform=values["platform"],
        cpus=values["cpus"],
        overlay=values["overlay"],
        log=values["log"],
        log_format=values["log_format"],
        debug=bool(values["debug"]),
        state_dir=_absolute(values["state_dir"], None),
        stats=bool(values["stats"]),
        stats_json=values["stats_json"],
        strace=strace(values),
        core_dir=values["core_dir"],
        watchdog=values["watchdog"],
        tty=bool(values["tty"] or values["record"] or values["console_socket"]),
        console_socket=values["console_socket"],
        record=values["record"],
        record_input=bool(values["record_input"]),
        clock_rate=values["clock_rate"] or (1, 1),
        checkpoint_at_marker=values["checkpoint_at_marker"],
        without=without(values["without"]),
        **hooks(values),
    )


def hooks(values: dict[str, Any]) -> dict[str, Any]:
    """Options of CHECKPOINT_FLAGS, those that were given."""
    names = ("checkpoint_dir", "save_hook", "restore_hook", "hook_timeout")
    return {name: values[name] for name in names if values[name] is not None}


def strace(values: dict[str, Any]) -> StraceOptions | None:
    """What STRACE_FLAGS ask for. UsageError."""
    if not values["strace"] and not any([values[name] for name in STRACE_KEYS]):
        return None
    from trapline.sentry.cli import strace_options

    return strace_options.options(values)


def _absolute(path: str | None, rootfs: str | None) -> str | None:
    if path is None:
        return None
    return os.path.normpath("/" + path) if rootfs else os.path.abspath(path)


def without(names: list[str]) -> set[str]:
    """Features of the host not to be used. UsageError."""
    if names:
        from trapline.platform.features import FEATURES

        for name in names:
            if name not in FEATURES:
                hint = did_you_mean(name, list(FEATURES)) or f": one of {', '.join(FEATURES)}"
                raise UsageError(f"--without: there is no feature {name}{hint}")
    return set(names)


def run(words: list[str]) -> int:
    """Run the verb; the exit status. UsageError."""
    wanted = options(words)
    if wanted is None:
        sys.stdout.write(help_text(USAGE, SUMMARY, FLAGS, EXAMPLES))
        sys.stdout.flush()
        return 0
    from trapline.platform.run import run_sandbox

    return run_sandbox(wanted)
