"""times(2): CPU time in ticks, by the host's account, at a time that counts from the sandbox's start."""

from __future__ import annotations

import struct

from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.state import Task
from trapline.sentry.syscalls.registry import handler
from trapline.sentry.syscalls.structs import NSEC
from trapline.sentry.time.timekeeper import MONOTONIC

#: Ticks a second for user space, whatever the kernel's own are (USER_HZ; sysconf(_SC_CLK_TCK)).
USER_HZ = 100
_TMS = struct.Struct("<4q")


@handler("times")
def times(kernel: Kernel, task: Task, address: int) -> int:
    """times(2): ticks of MONOTONIC. With no address only that. EFAULT."""
    if address:
        kernel.memory(task).write(address, _TMS.pack(*kernel.platform.process_times(task.tgid)))
    return kernel.keeper.now(MONOTONIC) // (NSEC // USER_HZ)
