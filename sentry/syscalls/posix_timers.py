"""POSIX timers behind their calls: arming, expiry, one queued signal per timer, overruns, lifecycle.

As in Linux (kernel/time/posix-timers.c since 6.13) a periodic timer stands still from its expiry until its
signal is taken: then it goes on with its phase, and the periods that passed are its overruns. So however
short the period, nothing runs while the signal is blocked or ignored. A SIGEV_NONE timer never runs at all:
its state is computed when it is read.

`PosixTimer.setting.clock_id` is the explicit clock that the timer hangs on now: relative REALTIME timers are
on MONOTONIC, since setting the clock does not move them.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from trapline.sentry.kernel.signal_send import queueing
from trapline.sentry.kernel.signals import SI_TIMER, SIGALRM
from trapline.sentry.kernel.state import PosixTimer, SigInfo, ThreadGroup, TimerSetting
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls import cpu_limit, sys_itimer
from trapline.sentry.time.timekeeper import MONOTONIC, REALTIME
from trapline.sentry.time.timer_setting import TIME_MAX, after

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel

SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID = 0, 1, 2, 4
OVERRUN_MAX = (1 << 31) - 1  # DELAYTIMER_MAX


def _key(group: ThreadGroup, timer: PosixTimer) -> str:
    return f"posix:{group.tgid}:{timer.timer_id}"


def _now(kernel: Kernel, group: ThreadGroup, timer: PosixTimer) -> int:
    """The timer's clock. ESRCH when it was that of another process, which has died."""
    try:
        return kernel.clocks.now(timer.setting.clock_id)
    except Gone:
        if timer.cpu_tid in group.threads:
            raise
        raise OSError(errno.ESRCH, "the clock's process is dead") from None


def _forward(timer: PosixTimer, now: int) -> None:
    """Move the next expiry past `now` by whole periods, and count them."""
    setting = timer.setting
    if now >= setting.next:
        periods = 1 + (now - setting.next) // setting.period
        setting.next = min(setting.next + periods * setting.period, TIME_MAX)
        timer.overrun += periods


def read(kernel: Kernel, group: ThreadGroup, timer: PosixTimer) -> tuple[int, int]:
    """(ns left, period) as timer_gettime(2) tells them."""
    setting = timer.setting
    if setting.next < 0:
        return 0, 0
    try:
        now = _now(kernel, group, timer)
    except OSError:
        return 0, 0
    silent = timer.notify == SIGEV_NONE
    if setting.period and (silent or timer.queued):
        _forward(timer, now)
    left = setting.next - now
    if left > 0:
        return left, setting.period
    # Due, but nobody was told yet: "never 0 for an armed timer". A silent one is told by reading.
    return (0 if silent else 1), setting.period


def set_timer(
    kernel: Kernel, group: ThreadGroup, timer: PosixTimer, value: int, period: int, absolute: bool
) -> tuple[int, int]:
    """Set and return the old (ns left, period). A signal that is pending from before is taken back."""
    old = read(kernel, group, timer)
    _withdraw(kernel, group, timer)
    clock = timer.clock_id
    if clock == REALTIME and not absolute:
        clock = MONOTONIC
    timer.setting = TimerSetting(clock_id=clock)
    timer.overrun = timer.overrun_last = 0
    if value:
        now = _now(kernel, group, timer)
        timer.setting = TimerSetting(value, period, clock) if absolute else after(now, value, period, clock)
        _arm(kernel, group, timer)
    return old


def _arm(kernel: Kernel, group: ThreadGroup, timer: PosixTimer) -> None:
    """A time that has gone expires in here."""
    if timer.notify != SIGEV_NONE:
        kernel.clocks.set(_key(group, timer), timer.setting.clock_id, timer.setting.next)


def expired(kernel: Kernel, key: str) -> None:
    """A POSIX timer came up."""
    _, tgid, ident = key.split(":")
    group = kernel.state.groups.get(int(tgid))
    timer = group.posix_timers.get(int(ident)) if group is not None else None
    if group is not None and timer is not None and timer.setting.next >= 0:
        _expire(kernel, group, timer)


def _expire(kernel: Kernel, group: ThreadGroup, timer: PosixTimer) -> None:
    timer.overrun = 0
    if not timer.setting.period:
        timer.setting.next = -1
    _send(kernel, group, timer)
    if timer.queued and not timer.setting.period and not _is_pending(kernel, group, timer):
        timer.queued = False  # ignored: of a one-shot timer it is lost


def _send(kernel: Kernel, group: ThreadGroup, timer: PosixTimer) -> None:
    """Queue the timer's signal. An ignored one is dropped: `queued` stays, and `unignored` sends it again."""
    timer.queued = True
    info = SigInfo(signo=timer.signo, code=SI_TIMER, timer_id=timer.timer_id, value=timer.value)
    try:
        on_cpu_time = timer.setting.clock_id < 0 and not timer.tid
        kernel.send_signal(group.tgid, info, timer.tid, kernel.cpu_runner(group) if on_cpu_time else 0)
    except (OSError, Gone):
        return  # the thread is dead: its timer is silent (timer_create(2), SIGEV_THREAD_ID)


def _is_pending(kernel: Kernel, group: ThreadGroup, timer: PosixTimer) -> bool:
    if any(_of(timer, info) for info in group.pending):
        return True
    return any(_of(timer, info) for task in queueing(group) for info in task.pending)


def _of(timer: PosixTimer, info: SigInfo) -> bool:
    return info.code == SI_TIMER and info.timer_id == timer.timer_id and not info.fields


def _withdraw(kernel: Kernel, group: ThreadGroup, timer: PosixTimer) -> None:
    """Stop the timer, and take its signal back if it is pending."""
    kernel.clocks.cancel(_key(group, timer))
    if not timer.queued:
        return
    timer.queued = False
    group.pending = [info for info in group.pending if not _of(timer, info)]
    for task in queueing(group):
        task.pending = [info for info in task.pending if not _of(timer, info)]


# -- what the kernel calls
def posix_timer_delivered(kernel: Kernel, group: ThreadGroup, info: SigInfo) -> None:
    """A signal is taken from a queue: if it is a timer's, fix its overrun count and let the timer go on.

    For every signal of code SI_TIMER, and for every SIGALRM (ITIMER_REAL).
    """
    if info.code != SI_TIMER:
        if info.signo == SIGALRM:
            sys_itimer.alarm_taken(kernel, group)
        return
    timer = group.posix_timers.get(info.timer_id)
    if timer is None or not timer.queued or info.fields:
        return
    timer.queued = False
    setting = timer.setting
    if setting.next < 0 or not setting.period:
        return
    try:
        now = _now(kernel, group, timer)
    except (OSError, Gone):
        return
    # The expiry that is told of has been, also where the host's account of a running task is behind.
    _forward(timer, now if timer.overrun else max(now, setting.next))
    timer.overrun_last = info.overrun = min(max(timer.overrun - 1, 0), OVERRUN_MAX)
    timer.overrun = 0
    _arm(kernel, group, timer)


def posix_timer_unignored(kernel: Kernel, group: ThreadGroup, signo: int) -> None:
    """A signal is ignored no longer (sigaction(2)): timers whose signal was dropped send it now."""
    for timer in list(group.posix_timers.values()):
        held = timer.signo == signo and timer.queued and timer.setting.period
        if held and not _is_pending(kernel, group, timer):
            _send(kernel, group, timer)


def delete(kernel: Kernel, group: ThreadGroup, timer: PosixTimer) -> None:
    """timer_delete(2)."""
    _withdraw(kernel, group, timer)
    del group.posix_timers[timer.timer_id]


def _delete_all(kernel: Kernel, group: ThreadGroup) -> None:
    for timer in list(group.posix_timers.values()):
        delete(kernel, group, timer)


def time_on_exec(kernel: Kernel, group: ThreadGroup) -> None:
    """POSIX timers end; interval timers and RLIMIT_CPU go on (execve(2))."""
    _delete_all(kernel, group)
    kernel.clocks.executed(group.tgid)


def time_on_group_exit(kernel: Kernel, group: ThreadGroup) -> None:
    """Nothing of a dead process expires."""
    _delete_all(kernel, group)
    sys_itimer.cancel_all(kernel, group)
    cpu_limit.cancel(kernel, group)
