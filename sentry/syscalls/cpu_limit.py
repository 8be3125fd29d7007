"""RLIMIT_CPU (getrlimit(2)): SIGXCPU at the soft limit and every second from then on, SIGKILL at the hard one.

As in Linux (kernel/time/posix-cpu-timers.c, check_process_timers): the limit hangs on the process's clock of user
and system time, each SIGXCPU moves the soft limit on by a second, and while that is still exceeded the next one
comes a tick later. The hard limit is looked at at those times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel.signals import SI_KERNEL, SIGKILL, SIGXCPU
from trapline.sentry.kernel.state import RLIM_INFINITY, SigInfo, ThreadGroup
from trapline.sentry.protocol import Gone
from trapline.sentry.time.timekeeper import MONOTONIC_COARSE, NSEC, cpu_clock_id
from trapline.sentry.time.timer_setting import TIME_MAX

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel


def _key(group: ThreadGroup) -> str:
    return f"rlimit:{group.tgid}"


def arm(kernel: Kernel, group: ThreadGroup, not_before: int = 0) -> None:
    """The limit was set, or the process has just begun with it. `not_before`: ns of the process's CPU time.

    A process is never over its limit before its first tick, also where that is 0.
    """
    soft = group.cpu_limit[0]
    if soft == RLIM_INFINITY:
        cancel(kernel, group)
        return
    deadline = max(soft * NSEC, not_before, kernel.platform.host_clock_resolution(MONOTONIC_COARSE))
    kernel.clocks.set(_key(group), cpu_clock_id(group.tgid), min(deadline, TIME_MAX))


def cancel(kernel: Kernel, group: ThreadGroup) -> None:
    """There is no limit, or the process has ended."""
    kernel.clocks.cancel(_key(group))


def expired(kernel: Kernel, key: str) -> None:
    """A process has used what it may."""
    group = kernel.state.groups.get(int(key.partition(":")[2]))
    if group is None:
        return
    soft, hard = group.cpu_limit
    try:
        now = kernel.clocks.now(cpu_clock_id(group.tgid))
        if hard != RLIM_INFINITY and now >= hard * NSEC:
            kernel.send_signal(group.tgid, SigInfo(signo=SIGKILL, code=SI_KERNEL))
            return
        if now >= soft * NSEC:
            group.cpu_limit = (soft + 1, hard)
            kernel.send_signal(
                group.tgid, SigInfo(signo=SIGXCPU, code=SI_KERNEL), prefer=kernel.cpu_runner(group)
            )
        arm(kernel, group, now + kernel.platform.host_clock_resolution(MONOTONIC_COARSE))
    except (OSError, Gone):
        return  # it is dead, and its death is reported separately
