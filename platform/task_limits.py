"""Resource limits of guests: read from outside, and set in the process itself.

prlimit(2) of another user's process needs CAP_SYS_RESOURCE, which root in a container may lack; /proc/PID/limits can
always be read. A process sets its own before it becomes who it is.

Sources: proc_pid_limits(5), Linux fs/proc/base.c (lnames), getrlimit(2).
"""

from __future__ import annotations

import struct

from trapline.platform.injection import Call, Data, Injection

_PRLIMIT64 = 302
_ALL = (1 << 64) - 1
#: In the order of their numbers.
_NAMES = (
    "Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size", "Max resident set",
    "Max processes", "Max open files", "Max locked memory", "Max address space", "Max file locks",
    "Max pending signals", "Max msgqueue size", "Max nice priority", "Max realtime priority", "Max realtime timeout",
)  # fmt: skip


def read_limits(text: str) -> dict[int, tuple[int, int]]:
    """(soft, hard) by number, from a /proc/PID/limits; -1 is RLIM_INFINITY."""
    found: dict[int, tuple[int, int]] = {}
    for line in text.splitlines()[1:]:
        for number, name in enumerate(_NAMES):
            if line.startswith(name + " "):
                soft, hard = line[len(name) :].split()[:2]
                found[number] = _value(soft), _value(hard)
    return found


def _value(word: str) -> int:
    return -1 if word == "unlimited" else int(word)


def set_own(process: Injection, limits: dict[int, tuple[int, int]]) -> None:
    """By the process itself. OSError where a limit may not be had."""
    calls: list[Call] = [
        (_PRLIMIT64, 0, number, Data(struct.pack("<2Q", soft & _ALL, hard & _ALL)), 0)
        for number, (soft, hard) in limits.items()
    ]
    process.run(calls)
