"""Interval timers: getitimer(2), setitimer(2), alarm(2) (Linux kernel/time/itimer.c).

ITIMER_REAL is one-shot in the heap: the next period begins when the signal is *taken* (Linux
posixtimer_rearm_itimer), so a short period costs nothing while SIGALRM is blocked, and ends for good when it
is ignored. `ThreadGroup.itimers` holds its phase and period; it runs while its key is armed.

ITIMER_VIRTUAL and ITIMER_PROF hang on the process's CPU clocks (ticker.py), and their signals prefer the thread
that runs.
"""

from __future__ import annotations

import errno

from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.signals import SI_KERNEL, SIGALRM, SIGPROF, SIGVTALRM
from trapline.sentry.kernel.state import SigInfo, Task, ThreadGroup, TimerSetting
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls.registry import handler
from trapline.sentry.syscalls.structs import read_itimerval, write_itimerval
from trapline.sentry.time.timekeeper import (
    CPU_SCHED,
    CPU_VIRT,
    MONOTONIC,
    MONOTONIC_COARSE,
    NSEC,
    cpu_clock_id,
)
from trapline.sentry.time.timer_setting import TIME_MAX, after, at

ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF = 0, 1, 2
SIGNALS = {ITIMER_REAL: SIGALRM, ITIMER_VIRTUAL: SIGVTALRM, ITIMER_PROF: SIGPROF}
_UNSET = TimerSetting()


def _key(group: ThreadGroup, which: int) -> str:
    return f"itimer:{group.tgid}:{which}"


def _clock(group: ThreadGroup, which: int) -> int:
    if which == ITIMER_REAL:
        return MONOTONIC
    return cpu_clock_id(group.tgid, CPU_VIRT if which == ITIMER_VIRTUAL else CPU_SCHED)


def _read(kernel: Kernel, group: ThreadGroup, which: int, now: int) -> tuple[int, int]:
    """(ns left, period)."""
    setting = group.itimers.get(which, _UNSET)
    if not kernel.clocks.armed(_key(group, which)):
        return 0, setting.period
    left = setting.next - now
    if left <= 0:
        # It is about to expire: something must be left (Linux itimer_get_remtime, get_cpu_itimer).
        left = 1000 if which == ITIMER_REAL else kernel.platform.host_clock_resolution(MONOTONIC_COARSE)
    return left, setting.period


def _set(kernel: Kernel, group: ThreadGroup, which: int, value: int, period: int) -> tuple[int, int]:
    """Set and return the old (ns left, period)."""
    clock = _clock(group, which)
    now = kernel.keeper.now(clock)
    old = _read(kernel, group, which, now)
    if value and which != ITIMER_REAL:
        # CPU time is sampled at ticks: never early by one (Linux set_cpu_itimer).
        value += kernel.platform.host_clock_resolution(MONOTONIC_COARSE)
    setting = after(now, value, period, clock)
    if setting.next >= 0:
        group.itimers[which] = setting
        kernel.clocks.set(_key(group, which), clock, setting.next)
        return old
    kernel.clocks.cancel(_key(group, which))
    if period and which != ITIMER_REAL:
        group.itimers[which] = TimerSetting(-1, period, clock)  # Linux keeps it, for getitimer to tell
    else:
        group.itimers.pop(which, None)
    return old


def expired(kernel: Kernel, key: str) -> None:
    """An interval timer came up."""
    _, tgid, number = key.split(":")
    group = kernel.state.groups.get(int(tgid))
    which = int(number)
    if group is None or which not in group.itimers:
        return
    setting = group.itimers[which]
    if which != ITIMER_REAL:
        try:
            setting, _ = at(setting, kernel.clocks.now(setting.clock_id))
        except Gone:
            return
        if setting.next >= 0:
            group.itimers[which] = setting
            kernel.clocks.set(key, setting.clock_id, setting.next)
        else:
            del group.itimers[which]
    elif not setting.period:
        del group.itimers[which]
    try:
        prefer = kernel.cpu_runner(group) if which != ITIMER_REAL else 0
        kernel.send_signal(group.tgid, SigInfo(signo=SIGNALS[which], code=SI_KERNEL), prefer=prefer)
    except (OSError, Gone):
        return  # it is dead, and its death is reported separately


def alarm_taken(kernel: Kernel, group: ThreadGroup) -> None:
    """A SIGALRM was taken from the process's queue: ITIMER_REAL's next period runs."""
    setting = group.itimers.get(ITIMER_REAL, _UNSET)
    key = _key(group, ITIMER_REAL)
    if setting.next < 0 or not setting.period or kernel.clocks.armed(key):
        return
    setting, _ = at(setting, kernel.keeper.now(MONOTONIC))
    group.itimers[ITIMER_REAL] = setting
    kernel.clocks.set(key, MONOTONIC, setting.next)


def cancel_all(kernel: Kernel, group: ThreadGroup) -> None:
    """The process has ended."""
    for which in list(group.itimers):
        kernel.clocks.cancel(_key(group, which))
    group.itimers = {}


def _check(which: int) -> None:
    if which not in SIGNALS:
        raise OSError(errno.EINVAL, "which")


@handler("getitimer")
def getitimer(kernel: Kernel, task: Task, which: int, address: int) -> int:
    """getitimer(2). EINVAL, EFAULT."""
    _check(which)
    group = kernel.group(task)
    left, period = _read(kernel, group, which, kernel.keeper.now(_clock(group, which)))
    write_itimerval(kernel.memory(task), address, left, period)
    return 0


@handler("setitimer")
def setitimer(kernel: Kernel, task: Task, which: int, address: int, old_address: int) -> int:
    """setitimer(2); a null new value disarms. EFAULT (then for the old value the timer is set), EINVAL."""
    memory = kernel.memory(task)
    value, period = read_itimerval(memory, address) if address else (0, 0)
    _check(which)
    old = _set(kernel, kernel.group(task), which, value, period)
    if old_address:
        write_itimerval(memory, old_address, *old)
    return 0


@handler("alarm")
def alarm(kernel: Kernel, task: Task, seconds: int) -> int:
    """alarm(2): what is left of the old one, rounded to the nearest second, but never to 0."""
    left, _ = _set(kernel, kernel.group(task), ITIMER_REAL, min(seconds * NSEC, TIME_MAX), 0)
    whole, rest = divmod(left, NSEC)
    return whole + ((not whole and rest > 0) or rest >= NSEC // 2)


def attach(kernel: Kernel) -> None:
    """Hook into the kernel."""
    kernel.on_timer["itimer"] = lambda key, expirations: expired(kernel, key)
