"""Reading and setting clocks: clock_gettime(2), clock_getres(2), gettimeofday(2), time(2), adjtimex(2).

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


def _may_set(kernel: Kernel, task: Task) -> None:
    """The guest's own capability decides: the host's clock is never touched."""
    if not kernel.platform.credentials(task.tid)[1] >> CAP_SYS_TIME & 1:
        raise OSError(errno.EPERM, "CAP_SYS_TIME")


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
    _may_set(kernel, task)
    kernel.keeper.set_realtime(time)


@handler("clock_settime")
def clock_settime(kernel: Kernel, task: Task, clock_id: int, address: int) -> int:
    """clock_settime(2), of this sandbox's REALTIME. EINVAL, EFAULT, EPERM without CAP_SYS_TIME."""
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
        if not 0 <= microseconds <= USEC:
            raise OSError(errno.EINVAL, "not a valid time")
        wanted = seconds * NSEC + microseconds * 1000
    minutes = dst = 0
    if zone:
        minutes, dst = _ZONE.unpack(memory.read(zone, _ZONE.size))
    if time and (microseconds == USEC or not 0 <= seconds < SETTABLE_SECONDS):
        raise OSError(errno.EINVAL, "not a valid time")
    _may_set(kernel, task)
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


# -- struct timex (include/uapi/linux/timex.h)
_TIMEX_SIZE = 208
_TIMEX = struct.Struct("<Iiqqqqiiqqqqqqqqqiiqqqqqi")
_ADJ_SETOFFSET, _ADJ_NANO, _ADJ_OFFSET_SS_READ = 0x0100, 0x2000, 0xA001
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5
_UNKNOWN_US = 16_000_000  # what Linux says of the error of a clock that nothing disciplines
_TOLERANCE = 500 << 16  # ppm, scaled
_TICK_US = 10_000


@handler("clock_adjtime")
def clock_adjtime(kernel: Kernel, task: Task, clock_id: int, address: int) -> int:
    """clock_adjtime(2): reading, and ADJ_SETOFFSET of this sandbox's REALTIME with CAP_SYS_TIME.

    Other changes are EPERM: the host's clock is not slewed for a guest. The answer is that of a clock which
    nothing disciplines (TIME_ERROR). EFAULT, EINVAL, EOPNOTSUPP.
    """
    memory = kernel.memory(task)
    raw = memory.read(address, _TIMEX_SIZE)
    if clock_id != REALTIME:
        if not clock_ids.is_known(clock_id) or clock_ids.is_descriptor(clock_id):
            raise OSError(errno.EINVAL, "clock")
        raise OSError(errno.EOPNOTSUPP, "clock")
    fields = _TIMEX.unpack_from(raw)
    modes = fields[0]
    status = _STA_UNSYNC
    if modes not in (0, _ADJ_OFFSET_SS_READ):
        _may_set(kernel, task)
        if modes & ~_ADJ_NANO != _ADJ_SETOFFSET:
            raise OSError(errno.EPERM, "the host's clock is not adjusted")
        fraction, limit = fields[12], NSEC if modes & _ADJ_NANO else USEC
        if not 0 <= fraction < limit:
            raise OSError(errno.EINVAL, "fraction")
        offset = fields[11] * NSEC + fraction * (NSEC // limit)
        kernel.keeper.set_realtime(kernel.keeper.now(REALTIME) + offset)
    seconds, nanoseconds = divmod(kernel.keeper.now(REALTIME), NSEC)
    fraction = nanoseconds // 1000
    answer = _TIMEX.pack(
        modes, 0, 0, 0, _UNKNOWN_US, _UNKNOWN_US, status, 0, 2, 1, _TOLERANCE, seconds, fraction,
        _TICK_US, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, kernel.keeper.tai_offset() // NSEC,
    )  # fmt: skip
    memory.write(address, answer.ljust(_TIMEX_SIZE, b"\0"))
    return _TIME_ERROR


@handler("adjtimex")
def adjtimex(kernel: Kernel, task: Task, address: int) -> int:
    """adjtimex(2): clock_adjtime of REALTIME."""
    return clock_adjtime(kernel, task, REALTIME, address)
