"""timer_create(2), timer_settime(2), timer_gettime(2), timer_getoverrun(2), timer_delete(2)."""

from __future__ import annotations

import errno
import struct

from trapline.sentry.kernel import signal_send
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.signals import SIGALRM, SIGRTMAX
from trapline.sentry.kernel.state import PosixTimer, Task, ThreadGroup, TimerSetting
from trapline.sentry.syscalls import clock_ids, posix_timers
from trapline.sentry.syscalls.posix_timers import SIGEV_NONE, SIGEV_SIGNAL, SIGEV_THREAD, SIGEV_THREAD_ID
from trapline.sentry.syscalls.registry import handler
from trapline.sentry.syscalls.structs import read_itimerspec, read_sigevent, write_itimerspec

TIMER_ABSTIME = 1
_ID_LIMIT = 1 << 31


def _find(kernel: Kernel, task: Task, timer_id: int) -> tuple[ThreadGroup, PosixTimer]:
    group = kernel.group(task)
    timer = group.posix_timers.get(timer_id)
    if timer is None:
        raise OSError(errno.EINVAL, "no such timer")
    return group, timer


def _free_id(group: ThreadGroup) -> int:
    """Ids go round, so that one is not given again at once (Linux posix_timer_add)."""
    if len(group.posix_timers) >= _ID_LIMIT:
        raise OSError(errno.EAGAIN, "timer ids")
    while group.next_timer_id in group.posix_timers:
        group.next_timer_id = (group.next_timer_id + 1) % _ID_LIMIT
    found = group.next_timer_id
    group.next_timer_id = (found + 1) % _ID_LIMIT
    return found


def _check_event(kernel: Kernel, group: ThreadGroup, signo: int, notify: int, tid: int) -> None:
    """Linux good_sigevent: only threads of the caller's process may be named."""
    if notify not in (SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID):
        raise OSError(errno.EINVAL, "sigev_notify")
    if notify == SIGEV_THREAD_ID and tid not in group.threads:
        raise OSError(errno.EINVAL, "sigev_notify_thread_id")
    if notify != SIGEV_NONE and not 0 < signo <= SIGRTMAX:
        raise OSError(errno.EINVAL, "sigev_signo")


@handler("timer_create")
def timer_create(kernel: Kernel, task: Task, clock_id: int, event: int, created: int) -> int:
    """timer_create(2). EFAULT, EINVAL, EOPNOTSUPP. No event: SIGALRM, with the timer's id as value."""
    memory = kernel.memory(task)
    group = kernel.group(task)
    asked = read_sigevent(memory, event) if event else None
    if clock_id not in clock_ids.ALARM:
        clock_ids.check_timed(clock_id)
    if signal_send.queue_is_full(kernel, group):
        raise OSError(errno.EAGAIN, "RLIMIT_SIGPENDING")
    timer_id = _free_id(group)
    value, signo, notify, tid = asked or (timer_id, SIGALRM, SIGEV_SIGNAL, 0)
    _check_event(kernel, group, signo, notify, tid)
    memory.write(created, struct.pack("<i", timer_id))
    clock_ids.check_timed(clock_id)  # clocks without a device to wake the machine are found out last
    clock = clock_ids.timed(kernel, task, clock_id)
    group.posix_timers[timer_id] = PosixTimer(
        timer_id=timer_id,
        clock_id=clock,
        notify=notify,
        signo=signo if notify != SIGEV_NONE else 0,
        value=value,
        tid=tid if notify == SIGEV_THREAD_ID else 0,
        cpu_tid=kernel.keeper.cpu_clock(clock)[1] if clock < 0 else 0,
        setting=TimerSetting(clock_id=clock),
    )
    return 0


@handler("timer_settime")
def timer_settime(kernel: Kernel, task: Task, timer_id: int, flags: int, new: int, old: int) -> int:
    """timer_settime(2). EINVAL, EFAULT (for the old value the timer is set all the same), ESRCH when the
    process of its CPU clock is dead."""
    if not new:
        raise OSError(errno.EINVAL, "no new setting")
    memory = kernel.memory(task)
    value, period = read_itimerspec(memory, new)
    group, timer = _find(kernel, task, timer_id)
    before = posix_timers.set_timer(kernel, group, timer, value, period, bool(flags & TIMER_ABSTIME))
    if old:
        write_itimerspec(memory, old, *before)
    return 0


@handler("timer_gettime")
def timer_gettime(kernel: Kernel, task: Task, timer_id: int, setting: int) -> int:
    """timer_gettime(2). EINVAL, EFAULT."""
    group, timer = _find(kernel, task, timer_id)
    write_itimerspec(kernel.memory(task), setting, *posix_timers.read(kernel, group, timer))
    return 0


@handler("timer_getoverrun")
def timer_getoverrun(kernel: Kernel, task: Task, timer_id: int) -> int:
    """timer_getoverrun(2): of the signal that was taken last. EINVAL."""
    return _find(kernel, task, timer_id)[1].overrun_last


@handler("timer_delete")
def timer_delete(kernel: Kernel, task: Task, timer_id: int) -> int:
    """timer_delete(2). A signal that is pending is not delivered any more. EINVAL."""
    posix_timers.delete(kernel, *_find(kernel, task, timer_id))
    return 0


def attach(kernel: Kernel) -> None:
    """Hook into the kernel."""
    kernel.on_timer["posix"] = lambda key, expirations: posix_timers.expired(kernel, key)
    kernel.timer_signal_hook = lambda group, info: posix_timers.posix_timer_delivered(kernel, group, info)
    kernel.time_on_exec = lambda group: posix_timers.time_on_exec(kernel, group)
    kernel.time_on_group_exit = lambda group: posix_timers.time_on_group_exit(kernel, group)
