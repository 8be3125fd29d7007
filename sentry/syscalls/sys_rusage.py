"""getrusage(2) in a restored sandbox: the host's account, which begins anew with its new processes, and what there was
before.

Only there is the call the sentry's (restore.py overrides it): everywhere else the host's answer is right as it is.
"""

from __future__ import annotations

import struct

from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.state import Task
from trapline.sentry.syscalls import registry

_TIMES = struct.Struct("<4q")  # ru_utime, ru_stime
_USEC = 1_000_000


def added(rusage: bytes, more: tuple[int, int]) -> bytes:
    """A struct rusage, or its beginning, with so much more user and system time, µs."""
    if len(rusage) < _TIMES.size or not any(more):
        return rusage
    user, user_rest, system, system_rest = _TIMES.unpack_from(rusage)
    times = (user * _USEC + user_rest + more[0], system * _USEC + system_rest + more[1])
    return _TIMES.pack(*divmod(times[0], _USEC), *divmod(times[1], _USEC)) + rusage[_TIMES.size :]


def add_at(kernel: Kernel, task: Task, address: int, more: tuple[int, int]) -> None:
    """The same in a guest's memory, where the host has written one. EFAULT."""
    memory = kernel.memory(task)
    memory.write(address, added(memory.read(address, _TIMES.size), more))


async def getrusage(kernel: Kernel, task: Task, who: int, address: int) -> int:
    """CPU times of before the restore are added, also those of children; the other fields count from it. EINVAL,
    EFAULT."""
    result = await kernel.execute()
    earlier = kernel.platform.earlier_usage(task.tid, who) if not result else (0, 0)
    if any(earlier):
        add_at(kernel, task, address, earlier)
    return result


def own() -> None:
    """Make it the sentry's, before a sandbox's filter is made."""
    registry.override("getrusage", getrusage)
