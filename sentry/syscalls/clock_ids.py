"""Which clock a clockid_t names, for whom (Linux kernel/time/posix-timers.c, posix-cpu-timers.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from trapline.sentry.time.timekeeper import (
    BOOTTIME,
    BOOTTIME_ALARM,
    CPU_PROF,
    CPU_SCHED,
    CPU_THREAD,
    CPU_VIRT,
    MONOTONIC,
    MONOTONIC_COARSE,
    MONOTONIC_RAW,
    PROCESS_CPU,
    REALTIME,
    REALTIME_ALARM,
    REALTIME_COARSE,
    TAI,
    THREAD_CPU,
    cpu_clock_id,
)

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel
    from trapline.sentry.kernel.state import Task

SAMPLED = frozenset((REALTIME, MONOTONIC, BOOTTIME, TAI))
READABLE = SAMPLED | {MONOTONIC_RAW, REALTIME_COARSE, MONOTONIC_COARSE}
#: They need a clock device that wakes the machine, which a sandbox has not: as Linux without one.
ALARM = frozenset((REALTIME_ALARM, BOOTTIME_ALARM))
CPU_KINDS = (CPU_PROF, CPU_VIRT, CPU_SCHED)
CLOCK_FD = 3  # the low three bits of a clock that is a descriptor: a PTP device; there is none


def is_known(clock_id: int) -> bool:
    """Linux has something of this id, whatever it can do: else calls give EINVAL before anything else."""
    return clock_id < 0 or clock_id in READABLE or clock_id in (PROCESS_CPU, THREAD_CPU) or clock_id in ALARM


def is_descriptor(clock_id: int) -> bool:
    """The id of a clock by a descriptor (clock_getres(2), "Dynamic clocks")."""
    return clock_id < 0 and clock_id & 7 == CLOCK_FD


def cpu(kernel: Kernel, task: Task, clock_id: int, reading: bool = False) -> int:
    """A CPU clock's id as `task` means it, made explicit (see timekeeper.py).

    OSError(EINVAL) when there is no such process, or the thread is not the caller's (Linux pid_for_clock).
    `reading`: the caller's own thread id names its process, too.
    """
    if clock_id == PROCESS_CPU:
        return cpu_clock_id(task.tgid)
    if clock_id == THREAD_CPU:
        return cpu_clock_id(task.tid, CPU_SCHED, thread=True)
    ident, kind, thread = ~(clock_id >> 3), clock_id & 3, bool(clock_id & CPU_THREAD)
    if kind not in CPU_KINDS:
        raise OSError(errno.EINVAL, "kind of CPU clock")
    if ident == 0:
        return cpu_clock_id(task.tid if thread else task.tgid, kind, thread)
    if thread:
        other = kernel.state.tasks.get(ident)
        if other is None or other.tgid != task.tgid:
            raise OSError(errno.EINVAL, "no thread of the caller's")
        return cpu_clock_id(ident, kind, thread)
    if reading and ident == task.tid:
        ident = task.tgid
    if ident not in kernel.state.groups:
        raise OSError(errno.EINVAL, "no such process")
    return cpu_clock_id(ident, kind)


def readable(kernel: Kernel, task: Task, clock_id: int) -> int:
    """The id to read this clock by (`Timekeeper.now`). OSError(EINVAL)."""
    if clock_id in READABLE:
        return clock_id
    if clock_id in ALARM or not is_known(clock_id) or is_descriptor(clock_id):
        raise OSError(errno.EINVAL, "clock")
    return cpu(kernel, task, clock_id, reading=True)


def check_timed(clock_id: int) -> None:
    """Whether timers and sleeps can hang on this clock, before anything else is looked at.

    OSError(EINVAL) for none; OSError(EOPNOTSUPP) for one that cannot do that. `timed` comes later.
    """
    if clock_id in SAMPLED:
        return
    if not is_known(clock_id):
        raise OSError(errno.EINVAL, "clock")
    if clock_id in READABLE or clock_id in ALARM or is_descriptor(clock_id):
        raise OSError(errno.EOPNOTSUPP, "clock without timers")


def timed(kernel: Kernel, task: Task, clock_id: int) -> int:
    """The explicit id of a clock that passed `check_timed`. OSError(EINVAL) for a CPU clock of nobody."""
    return clock_id if clock_id in SAMPLED else cpu(kernel, task, clock_id)
