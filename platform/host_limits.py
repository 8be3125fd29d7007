"""The resource limits of a task on the host. prlimit(2) refuses what other users' are, without CAP_SYS_RESOURCE, which
root in a container lacks; the file of proc(5) tells them to everybody."""

from __future__ import annotations

from resource import RLIM_INFINITY

_NAME = 26  # width of the column with a limit's name (Linux proc_pid_limits)


def read(host: int) -> dict[int, tuple[int, int]]:
    """Soft and hard, by RLIMIT_*; RLIM_INFINITY is -1, as the resource module has it. OSError."""
    with open(f"/proc/{host}/limits") as file:
        lines = file.read().splitlines()[1:]  # in the order of their numbers
    words = (line[_NAME:].split() for line in lines)
    return {number: (_value(soft), _value(hard)) for number, (soft, hard, *_) in enumerate(words)}


def _value(text: str) -> int:
    return RLIM_INFINITY if text == "unlimited" else int(text)
