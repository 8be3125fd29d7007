"""Sleeping: nanosleep(2), clock_nanosleep(2).

The absolute deadline is kept in the call's record, so a call that is entered again from it does not sleep
longer. The order of errors is that of Linux kernel/time/hrtimer.c and posix-timers.c.
"""

from __future__ import annotations

import errno

from trapline.sentry.kernel.block import Interrupted, Outcome, Restart
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.state import Task
from trapline.sentry.syscalls import clock_ids
from trapline.sentry.syscalls.registry import handler
from trapline.sentry.syscalls.structs import read_timespec, write_timespec
from trapline.sentry.syscalls.sys_time import read_clock
from trapline.sentry.time.timekeeper import CPU_THREAD, MONOTONIC, PROCESS_CPU, REALTIME, THREAD_CPU
from trapline.sentry.time.timer_setting import TIME_MAX

TIMER_ABSTIME = 1


async def _sleep(kernel: Kernel, task: Task, clock: int, span: int, absolute: bool, rest: int) -> int:
    """Until the clock has reached the deadline. When interrupted, a relative sleep writes what is left to
    `rest`, if that is given; an absolute one never does."""
    record = task.call
    assert record is not None
    if record.deadline < 0:
        now = read_clock(kernel, task, clock)
        record.deadline = span if absolute else min(now + span, TIME_MAX)
    while True:
        outcome = await kernel.block(task, clock, record.deadline, "sleep")
        left = record.deadline - kernel.keeper.now(clock)
        if left <= 0:
            return 0
        if outcome is Outcome.INTERRUPTED:
            break
    if absolute:
        raise Interrupted(Restart.NOHAND)
    if rest:
        write_timespec(kernel.memory(task), rest, left)
    raise Interrupted(Restart.RESTARTBLOCK)


def _asked(kernel: Kernel, task: Task, address: int) -> int:
    """The guest's timespec; not read again when the call is entered again."""
    if task.call is not None and task.call.deadline >= 0:
        return 0
    return read_timespec(kernel.memory(task), address)


@handler("nanosleep")
async def nanosleep(kernel: Kernel, task: Task, address: int, rest: int) -> int:
    """nanosleep(2), on MONOTONIC. EFAULT, EINVAL, EINTR."""
    return await _sleep(kernel, task, MONOTONIC, _asked(kernel, task, address), False, rest)


@handler("clock_nanosleep")
async def clock_nanosleep(
    kernel: Kernel, task: Task, clock_id: int, flags: int, address: int, rest: int
) -> int:
    """clock_nanosleep(2). EINVAL, EOPNOTSUPP, EFAULT, EINTR; unknown flags are ignored, as in Linux."""
    if clock_id in clock_ids.ALARM:
        _asked(kernel, task, address)  # these are found to be missing last
    clock_ids.check_timed(clock_id)
    if clock_id == THREAD_CPU:
        raise OSError(errno.EOPNOTSUPP, "own CPU time")
    span = _asked(kernel, task, address)
    absolute = bool(flags & TIMER_ABSTIME)
    if clock_id == PROCESS_CPU or clock_id < 0:
        if clock_id & CPU_THREAD and ~(clock_id >> 3) in (0, task.tid):
            raise OSError(errno.EINVAL, "a thread cannot wait for its own CPU time")
        clock = clock_ids.cpu(kernel, task, clock_id)
    else:
        # A relative sleep is not moved by setting the clock (clock_nanosleep(2), NOTES).
        clock = MONOTONIC if clock_id == REALTIME and not absolute else clock_id
    return await _sleep(kernel, task, clock, span, absolute, rest)
