"""The structures of time in guest memory (x86-64; times there are 64 bit).

Reading raises OSError(EFAULT) by the memory, OSError(EINVAL) for values that Linux refuses. Times are
ns here.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from trapline.sentry.time.timer_setting import TIME_MAX

if TYPE_CHECKING:
    from trapline.sentry.protocol import Memory

NSEC, USEC = 1_000_000_000, 1_000_000
_PAIR = struct.Struct("<qq")
_QUAD = struct.Struct("<qqqq")
_SIGEVENT = struct.Struct("<Qiii")
SIGEVENT_SIZE = 64


def _valid(seconds: int, fraction: int, limit: int) -> None:
    if seconds < 0 or not 0 <= fraction < limit:
        raise OSError(errno.EINVAL, "not a valid time")


def read_timespec(memory: Memory, address: int) -> int:
    """struct timespec; at most TIME_MAX (Linux timespec64_to_ktime)."""
    seconds, nanoseconds = _PAIR.unpack(memory.read(address, 16))
    _valid(seconds, nanoseconds, NSEC)
    return min(int(seconds) * NSEC + int(nanoseconds), TIME_MAX)


def write_timespec(memory: Memory, address: int, time: int) -> None:
    """struct timespec."""
    memory.write(address, _PAIR.pack(*divmod(time, NSEC)))


def read_timeval(memory: Memory, address: int) -> tuple[int, int]:
    """struct timeval as it stands, not checked: (seconds, microseconds)."""
    seconds, microseconds = _PAIR.unpack(memory.read(address, 16))
    return seconds, microseconds


def write_timeval(memory: Memory, address: int, time: int) -> None:
    """struct timeval, rounded down."""
    seconds, nanoseconds = divmod(time, NSEC)
    memory.write(address, _PAIR.pack(seconds, nanoseconds // 1000))


def read_itimerspec(memory: Memory, address: int) -> tuple[int, int]:
    """struct itimerspec as (value, interval)."""
    i_s, i_n, v_s, v_n = _QUAD.unpack(memory.read(address, 32))
    _valid(i_s, i_n, NSEC)
    _valid(v_s, v_n, NSEC)
    return min(v_s * NSEC + v_n, TIME_MAX), min(i_s * NSEC + i_n, TIME_MAX)


def write_itimerspec(memory: Memory, address: int, value: int, interval: int) -> None:
    """struct itimerspec."""
    memory.write(address, _QUAD.pack(*divmod(interval, NSEC), *divmod(value, NSEC)))


def read_itimerval(memory: Memory, address: int) -> tuple[int, int]:
    """struct itimerval as (value, interval) in ns. EINVAL as in Linux get_itimerval."""
    i_s, i_u, v_s, v_u = _QUAD.unpack(memory.read(address, 32))
    _valid(v_s, v_u, USEC)
    _valid(i_s, i_u, USEC)
    return min(v_s * NSEC + v_u * 1000, TIME_MAX), min(i_s * NSEC + i_u * 1000, TIME_MAX)


def write_itimerval(memory: Memory, address: int, value: int, interval: int) -> None:
    """struct itimerval, rounded down to microseconds."""
    v_s, v_n = divmod(value, NSEC)
    i_s, i_n = divmod(interval, NSEC)
    memory.write(address, _QUAD.pack(i_s, i_n // 1000, v_s, v_n // 1000))


def read_sigevent(memory: Memory, address: int) -> tuple[int, int, int, int]:
    """struct sigevent as (value, signal, notify, thread id)."""
    value, signo, notify, tid = _SIGEVENT.unpack_from(memory.read(address, SIGEVENT_SIZE))
    return value, signo, notify, tid
