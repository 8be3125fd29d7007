"""The flags of `do` that belong to `--strace`; strace_options.py makes sense of them, when they are given."""

from __future__ import annotations

import os

from trapline.sentry.cli.flags import Flag


def _output(text: str) -> str:
    path = os.path.abspath(text)
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
        raise ValueError("takes a file in a directory that exists")
    return path


STRACE_FLAGS = (
    Flag("--strace", help="Print system calls and signals, as strace -f -ttt -T does. See docs/strace.md."),
    Flag("-o", "FILE", "With --strace: write the trace here. Default: standard error.", parse=_output),
    Flag(
        "-e",
        "EXPRESSION",
        "With --strace: trace=SET (names, %file %process %network %signal %desc %memory %clock, /regex; "
        "a leading ! turns it around) or status=successful,failed,unfinished,unavailable,detached.",
        repeat=True,
    ),
    Flag("-c", help="With --strace: count calls, errors and time, and print only a table."),
    Flag("-C", help="With --strace: print the table after the lines."),
    Flag(
        "-S",
        "ORDER",
        "With -c: the order of the table: time, calls, errors, name, max-time, min-time, avg-time, nothing.",
    ),
    Flag("--format", help="With -c: the form of the table. Default: text.", choices=("text", "json")),
    Flag("-y", help="With --strace: print the paths of descriptors."),
    Flag("--owned-only", help="With --strace: print only calls that the sandbox's kernel answered."),
)
#: Their keys, --strace aside: each is false unless it was given.
STRACE_KEYS = ("o", "e", "c", "C", "S", "format", "y", "owned_only")
