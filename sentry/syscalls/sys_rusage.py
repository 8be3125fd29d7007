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


async def getrusage(kernel: Kernel, task: Task, who: int, address: int) -> int:
    """CPU times of before the restore are added, also those of children; the other fields count from it. EINVAL,
    EFAULT."""
    result = await kernel.execute()
    earlier = kernel.platform.earlier_usage(task.tid, who) if not result else (0, 0)
    if any(earlier):
        memory = kernel.memory(task)
        seconds, rest, system_seconds, system_rest = _TIMES.unpack(memory.read(address, _TIMES.size))
        user = seconds * _USEC + rest + earlier[0]
        system = system_seconds * _USEC + system_rest + earlier[1]
        memory.write(address, _TIMES.pack(*divmod(user, _USEC), *divmod(system, _USEC)))
    return result


def own() -> None:
    """Make it the sentry's, before a sandbox's filter is made."""
    registry.override("getrusage", getrusage)
