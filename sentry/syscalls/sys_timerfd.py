"""timerfd_settime(2), timerfd_gettime(2) (Linux fs/timerfd.c).

A guest's timerfd is a real one, so that read, poll and epoll on it need no trap. Only its setting is the
sentry's: times are converted to the host's clocks and set by a duplicate of the descriptor. When the sandbox
moves its wall clock, the platform moves those that are absolute on REALTIME (Platform.wall_clock_moved).
"""

from __future__ import annotations

import errno

from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.state import Task
from trapline.sentry.syscalls.registry import handler
from trapline.sentry.syscalls.structs import read_itimerspec, write_itimerspec

TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2


def _clock_of(kernel: Kernel, task: Task, fd: int) -> int:
    """The clock that a timerfd was made on. EBADF; EINVAL for another kind of descriptor."""
    for line in kernel.platform.descriptor_info(task.tid, fd).splitlines():
        name, _, value = line.partition(":")
        if name == "clockid":
            return int(value)
    raise OSError(errno.EINVAL, "not a timerfd")


def _old(kernel: Kernel, duplicate: int) -> tuple[int, int]:
    left, interval = kernel.platform.timerfd_gettime(duplicate)
    return kernel.keeper.span_from_host(left), kernel.keeper.span_from_host(interval)


@handler("timerfd_settime")
def timerfd_settime(kernel: Kernel, task: Task, fd: int, flags: int, new: int, old: int) -> int:
    """timerfd_settime(2). EFAULT (for the old value the timer is set all the same), EINVAL, EBADF; ECANCELED
    as the host gives it."""
    memory = kernel.memory(task)
    value, interval = read_itimerspec(memory, new)
    if flags & ~(TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET):
        raise OSError(errno.EINVAL, "flags")
    keeper = kernel.keeper
    duplicate = kernel.platform.descriptor(task.tid, fd)
    try:
        before = _old(kernel, duplicate) if old else (0, 0)
        if value and flags & TFD_TIMER_ABSTIME:
            value = keeper.to_host_clock(_clock_of(kernel, task, fd), value)
        else:
            value = keeper.span_to_host(value)
        cancelled = kernel.platform.timerfd_uncancel(duplicate)
        kernel.platform.timerfd_settime(duplicate, flags, value, keeper.span_to_host(interval))
        if cancelled and value and flags == TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET:
            # Nobody has been told of the step: it is told here, and the timer is set all the same.
            raise OSError(errno.ECANCELED, "the clock was set")
    finally:
        kernel.platform.close_descriptor(duplicate)
    if old:
        write_itimerspec(memory, old, *before)
    return 0


@handler("timerfd_gettime")
def timerfd_gettime(kernel: Kernel, task: Task, fd: int, setting: int) -> int:
    """timerfd_gettime(2). EBADF, EINVAL, EFAULT."""
    duplicate = kernel.platform.descriptor(task.tid, fd)
    try:
        now = _old(kernel, duplicate)
    finally:
        kernel.platform.close_descriptor(duplicate)
    write_itimerspec(kernel.memory(task), setting, *now)
    return 0
