"""Disciplining a clock: adjtimex(2), clock_adjtime(2), of this sandbox (Linux kernel/time/ntp.c, timekeeping.c).

Until a guest changes something, the sandbox's wall clock is as well synchronised as the host's, so what is
read is the host's account. Steps, the TAI offset and what is only kept and told (status, errors, time
constant, unit) are the sandbox's own. Nothing slews: MONOTONIC, which would have to go along, is also the clock
of calls that the host serves. So what would change a clock's rate is EPERM, as it is in a container.

`ClockState.ntp` has what differs from the host: status, constant, esterror; maxerror with the MONOTONIC time
when it was set, since it grows; and unsync after a step (Linux ntp_clear).
"""

from __future__ import annotations

import errno
import struct

from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.state import Task
from trapline.sentry.syscalls import clock_ids
from trapline.sentry.syscalls.registry import handler
from trapline.sentry.syscalls.structs import NSEC, USEC
from trapline.sentry.syscalls.sys_time import SETTABLE_SECONDS, may_set
from trapline.sentry.time.timekeeper import MONOTONIC, REALTIME

# struct timex (include/uapi/linux/timex.h): modes, offset, freq, maxerror, esterror, status, constant, precision,
# tolerance, seconds, fraction, tick, ppsfreq, jitter, shift, stabil, jitcnt, calcnt, errcnt, stbcnt, tai
SIZE = 208
_TIMEX = struct.Struct("<I4x4qi4x3q2q3qi4x5qi")
(OFFSET, FREQUENCY, MAXERROR, ESTERROR, STATUS, TIMECONST, TAI, SETOFFSET, MICRO, NANO, TICK, ADJTIME) = (
    0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x80, 0x100, 0x1000, 0x2000, 0x4000, 0x8000,
)  # fmt: skip
STA_PLL, STA_INS, STA_DEL, STA_UNSYNC, STA_CLOCKERR, STA_NANO = 0x1, 0x10, 0x20, 0x40, 0x1000, 0x2000
STA_READ_ONLY = 0xFF00
TIME_OK, TIME_ERROR = 0, 5
_PHASE_LIMIT = 16_000_000  # µs (NTP_PHASE_LIMIT)
_ERROR_GROWTH = 500  # µs a second (MAXFREQ)
_TICK_US = 10_000
_TICK_RANGE = (9_000, 11_000)
_FREQUENCY_LIMIT = ((1 << 63) - 1) // (1000 << 16)  # LLONG_MAX / PPM_SCALE
_MAX_CONSTANT, _MAX_TAI = 10, 100_000


def _check(kernel: Kernel, task: Task, modes: int, freq: int, tick: int, fraction: int) -> None:
    """Linux timekeeping_validate_timex, in its order. EPERM, EINVAL."""
    if modes & ADJTIME:
        if not modes & OFFSET:
            raise OSError(errno.EINVAL, "singleshot goes with nothing else")
        if not modes & NANO:  # there ADJ_OFFSET_READONLY
            may_set(kernel, task)
    else:
        if modes:
            may_set(kernel, task)
        if modes & TICK and not _TICK_RANGE[0] <= tick <= _TICK_RANGE[1]:
            raise OSError(errno.EINVAL, "tick")
    if modes & SETOFFSET:
        may_set(kernel, task)
        if not 0 <= fraction < (NSEC if modes & NANO else USEC):
            raise OSError(errno.EINVAL, "fraction")
    if modes & FREQUENCY and abs(freq) > _FREQUENCY_LIMIT:
        raise OSError(errno.EINVAL, "frequency")


def _refuse_slewing(modes: int, status: int, offset: int, freq: int, tick: int, now: tuple[int, ...]) -> None:
    """EPERM for what would make the clock run faster or slower than the host's; asking for what is so already
    is no change."""
    if modes & ADJTIME:
        slews = offset != 0 and not modes & NANO
    else:
        slews = bool(
            (modes & FREQUENCY and freq != now[2])
            or (modes & TICK and tick != now[11])
            # Without STA_PLL an offset does nothing (ntp_update_offset).
            or (modes & OFFSET and offset and status & STA_PLL)
            or (modes & STATUS and status & (STA_INS | STA_DEL))
        )
    if slews:
        raise OSError(errno.EPERM, "clocks are not slewed")


def _clamp(value: int, high: int) -> int:
    return min(max(value, 0), high)


def _apply(kernel: Kernel, modes: int, fields: tuple[int, ...], status: int) -> int:
    """Linux process_adjtimex_modes; the new status."""
    ntp = kernel.state.clock.ntp
    if modes & STATUS:
        status = status & STA_READ_ONLY | fields[5] & ~STA_READ_ONLY
        ntp.pop("unsync", None)
    if modes & NANO:
        status |= STA_NANO
    if modes & MICRO:
        status &= ~STA_NANO
    if modes & (STATUS | NANO | MICRO):
        ntp["status"] = status
    if modes & MAXERROR:
        ntp["maxerror"] = _clamp(fields[3], _PHASE_LIMIT)
        ntp["maxerror_since"] = kernel.keeper.now(MONOTONIC)
    if modes & ESTERROR:
        ntp["esterror"] = _clamp(fields[4], _PHASE_LIMIT)
    if modes & TIMECONST:
        ntp["constant"] = _clamp(_clamp(fields[6], _MAX_CONSTANT) + (0 if status & STA_NANO else 4), _MAX_CONSTANT)
    if modes & TAI and 0 <= fields[6] <= _MAX_TAI:
        kernel.keeper.set_tai_offset(fields[6])
    return status


def _errors(kernel: Kernel, host: tuple[int, ...], status: int) -> tuple[int, int, int]:
    """(maxerror, esterror, status) now. What is not known any more makes the clock unsynchronised, as
    second_overflow does."""
    ntp = kernel.state.clock.ntp
    if ntp.get("unsync"):
        status |= STA_UNSYNC
    maxerror = host[3]
    if "maxerror" in ntp:
        passed = kernel.keeper.now(MONOTONIC) - ntp["maxerror_since"]
        maxerror = ntp["maxerror"] + passed // NSEC * _ERROR_GROWTH
        if maxerror > _PHASE_LIMIT:
            maxerror = _PHASE_LIMIT
            status |= STA_UNSYNC
    elif ntp.get("unsync"):
        maxerror = _PHASE_LIMIT
    return maxerror, ntp.get("esterror", _PHASE_LIMIT if ntp.get("unsync") else host[4]), status


def adjust(kernel: Kernel, task: Task, raw: bytes) -> tuple[int, bytes]:
    """Linux do_adjtimex: (result, struct timex). OSError(EPERM), OSError(EINVAL)."""
    fields = _TIMEX.unpack_from(raw)
    modes, offset, freq, tick = fields[0], fields[1], fields[2], fields[11]
    _check(kernel, task, modes, freq, tick, fields[10])
    state, host_raw = kernel.platform.host_adjtimex()
    host = _TIMEX.unpack_from(host_raw)
    ntp, keeper = kernel.state.clock.ntp, kernel.keeper
    status = ntp.get("status", host[5])
    _refuse_slewing(modes, fields[5] if modes & STATUS else status, offset, freq, tick, host)
    if modes & SETOFFSET:
        moved = fields[9] * NSEC + fields[10] * (1 if modes & NANO else 1000)
        if not 0 <= keeper.now(REALTIME) + moved < SETTABLE_SECONDS * NSEC:
            raise OSError(errno.EINVAL, "out of range")
        keeper.move_realtime(moved)
    told = 0 if modes & ADJTIME else host[1]
    if modes and not modes & ADJTIME:
        status = _apply(kernel, modes, fields, status)
    maxerror, esterror, status = _errors(kernel, host, status)
    seconds, fraction = divmod(keeper.now(REALTIME), NSEC)
    if not status & STA_NANO:
        fraction //= 1000
    answer = list(host)
    answer[0], answer[1], answer[3:7] = modes, told, (maxerror, esterror, status, ntp.get("constant", host[6]))
    answer[9:11] = seconds, fraction
    answer[20] = keeper.tai_offset() // NSEC
    if status & (STA_UNSYNC | STA_CLOCKERR):
        state = TIME_ERROR
    elif state == TIME_ERROR and "status" in ntp:
        state = TIME_OK
    return state, _TIMEX.pack(*answer).ljust(SIZE, b"\0")


@handler("clock_adjtime")
def clock_adjtime(kernel: Kernel, task: Task, clock_id: int, address: int) -> int:
    """clock_adjtime(2), of REALTIME only. EFAULT, EINVAL, EOPNOTSUPP, EPERM; else the state of the clock."""
    memory = kernel.memory(task)
    raw = memory.read(address, SIZE)
    if clock_id != REALTIME:
        if not clock_ids.is_known(clock_id) or clock_ids.is_descriptor(clock_id):
            raise OSError(errno.EINVAL, "clock")
        raise OSError(errno.EOPNOTSUPP, "clock")
    state, answer = adjust(kernel, task, raw)
    memory.write(address, answer)
    return state


@handler("adjtimex")
def adjtimex(kernel: Kernel, task: Task, address: int) -> int:
    """adjtimex(2): clock_adjtime of REALTIME."""
    return clock_adjtime(kernel, task, REALTIME, address)
