"""Reading and setting clocks: clock_gettime(2), clock_getres(2), gettimeofday(2), time(2), settimeofday(2).

The order of errors is that of Linux kernel/time/posix-timers.c and time.c. Guests mostly read clocks by the
vDSO; what comes here is what it leaves to a call, and raw calls.
"""

from __future__ import annotations

import errno
import struct

from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.state import Task
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls import clock_ids
from trapline.sentry.syscalls.registry import handler
from trapline.sentry.syscalls.structs import (
    NSEC,
    USEC,
    read_timespec,
    read_timeval,
    write_timespec,
    write_timeval,
)
from trapline.sentry.time.timekeeper import (
    CPU_SCHED,
    MONOTONIC_COARSE,
    REALTIME,
    REALTIME_COARSE,
)

CAP_SYS_TIME = 25
#: Later times cannot be set, so that the clock has 30 years to overflow (TIME_SETTOD_SEC_MAX).
SETTABLE_SECONDS = 8_277_292_036
_ZONE = struct.Struct("<ii")
_ZONE_LIMIT = 15 * 60  # minutes


def may_set(kernel: Kernel, task: Task) -> None:
    """Root of the sandbox may set its clock, as root does natively. OSError(EPERM).

    The host's clock is never touched, so the host's capability is not asked for: no guest has it. A root that
    has given up all its capabilities has given up this one with them.
    """
    (_, effective, _), capabilities = kernel.platform.credentials(task.tid)
    if not capabilities >> CAP_SYS_TIME & 1 and (effective != 0 or not capabilities):
        raise OSError(errno.EPERM, "not root of the sandbox")


def read_clock(kernel: Kernel, task: Task, clock_id: int) -> int:
    """A clock of an explicit id, ns. EINVAL for the CPU clock of another process that has died."""
    try:
        return kernel.keeper.now(clock_id)
    except Gone:
        if clock_id < 0 and kernel.keeper.cpu_clock(clock_id)[1] not in (task.tid, task.tgid):
            raise OSError(errno.EINVAL, "dead process") from None
        raise


@handler("clock_gettime")
def clock_gettime(kernel: Kernel, task: Task, clock_id: int, address: int) -> int:
    """clock_gettime(2). EINVAL, EFAULT."""
    now = read_clock(kernel, task, clock_ids.readable(kernel, task, clock_id))
    write_timespec(kernel.memory(task), address, now)
    return 0


@handler("clock_getres")
def clock_getres(kernel: Kernel, task: Task, clock_id: int, address: int) -> int:
    """clock_getres(2): the host's. The CPU clocks of ticks have a tick's, the others of CPU time 1 ns."""
    clock = clock_ids.readable(kernel, task, clock_id)
    if clock >= 0:
        resolution = kernel.platform.host_clock_resolution(clock)
    elif clock & 3 == CPU_SCHED:
        resolution = 1
    else:
        resolution = kernel.platform.host_clock_resolution(MONOTONIC_COARSE)
    if address:
        write_timespec(kernel.memory(task), address, resolution)
    return 0


def _set_realtime(kernel: Kernel, task: Task, time: int) -> None:
    if time >= SETTABLE_SECONDS * NSEC:
        raise OSError(errno.EINVAL, "too late")
    may_set(kernel, task)
    kernel.keeper.set_realtime(time)


@handler("clock_settime")
def clock_settime(kernel: Kernel, task: Task, clock_id: int, address: int) -> int:
    """clock_settime(2), of this sandbox's REALTIME. EINVAL, EFAULT, EPERM for others than root."""
    if clock_id == REALTIME:
        _set_realtime(kernel, task, read_timespec(kernel.memory(task), address))
        return 0
    if clock_id >= 0:
        raise OSError(errno.EINVAL, "not to be set")
    kernel.memory(task).read(address, 16)
    if clock_ids.is_descriptor(clock_id):
        raise OSError(errno.EINVAL, "no clock device")
    clock_ids.cpu(kernel, task, clock_id)
    raise OSError(errno.EPERM, "CPU clocks cannot be set")


@handler("gettimeofday")
def gettimeofday(kernel: Kernel, task: Task, time: int, zone: int) -> int:
    """gettimeofday(2). EFAULT."""
    memory = kernel.memory(task)
    if time:
        write_timeval(memory, time, kernel.keeper.now(REALTIME))
    if zone:
        memory.write(zone, _ZONE.pack(*kernel.state.clock.timezone))
    return 0


@handler("settimeofday")
def settimeofday(kernel: Kernel, task: Task, time: int, zone: int) -> int:
    """settimeofday(2), of this sandbox. The first time zone does not move the clock, as Linux would do where
    the machine's hardware clock has local time. EFAULT, EINVAL, EPERM."""
    memory = kernel.memory(task)
    wanted = 0
    if time:
        seconds, microseconds = read_timeval(memory, time)
        if not 0 <= microseconds < USEC:
            raise OSError(errno.EINVAL, "not a valid time")
        wanted = seconds * NSEC + microseconds * 1000
    minutes = dst = 0
    if zone:
        minutes, dst = _ZONE.unpack(memory.read(zone, _ZONE.size))
    if time and not 0 <= seconds < SETTABLE_SECONDS:
        raise OSError(errno.EINVAL, "not a valid time")
    may_set(kernel, task)
    if zone:
        if abs(minutes) > _ZONE_LIMIT:
            raise OSError(errno.EINVAL, "time zone")
        kernel.state.clock.timezone = (minutes, dst)
    if time:
        kernel.keeper.set_realtime(wanted)
    return 0


@handler("time")
def time_(kernel: Kernel, task: Task, address: int) -> int:
    """time(2): of the coarse clock, as in Linux. EFAULT."""
    seconds = kernel.keeper.now(REALTIME_COARSE) // NSEC
    if address:
        kernel.memory(task).write(address, struct.pack("<q", seconds))
    return seconds
