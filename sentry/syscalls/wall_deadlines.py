"""Which calls of the host's wait until an absolute time of REALTIME, and what that time is on the host's clock.

Asked only once a sandbox has moved its wall clock: until then its REALTIME is the host's. Relative timeouts
(poll, select, FUTEX_WAIT, semtimedop) are not concerned: setting the clock does not move them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from trapline.sentry.syscalls.structs import NSEC
from trapline.sentry.time.timekeeper import MONOTONIC, REALTIME
from trapline.sentry.time.timer_setting import TIME_MAX

if TYPE_CHECKING:
    from trapline.sentry.time.timekeeper import Timekeeper

FUTEX, MQ_TIMEDSEND, MQ_TIMEDRECEIVE, FUTEX_WAITV, FUTEX_WAIT_NEW = 202, 242, 243, 449, 455
_CLOCK_REALTIME_FLAG, _COMMAND = 256, 127
#: Commands of futex(2) that the flag makes wait on REALTIME; FUTEX_LOCK_PI does so without it.
_WAIT_BITSET, _WAIT_REQUEUE_PI, _LOCK_PI, _LOCK_PI2 = 9, 11, 6, 13
_PAIR = struct.Struct("<qq")
SIZE = _PAIR.size


def deadline_argument(nr: int, args: tuple[int, ...]) -> int:
    """Which argument points to an absolute REALTIME deadline of this call; -1 when none does."""
    if nr == FUTEX:
        return 3 if args[3] and futex_waits_until(args[1]) else -1
    if nr in (MQ_TIMEDSEND, MQ_TIMEDRECEIVE):
        return 4 if args[4] else -1
    if nr == FUTEX_WAITV:
        return 3 if args[3] and args[4] & 0xFFFFFFFF == REALTIME else -1
    if nr == FUTEX_WAIT_NEW:
        return 4 if args[4] and args[5] & 0xFFFFFFFF == REALTIME else -1
    return -1


def futex_waits_until(operation: int) -> bool:
    """Whether this futex operation has an absolute timeout on REALTIME (futex(2), Linux futex_parse_timeout)."""
    command = operation & _COMMAND
    if command == _LOCK_PI:
        return True
    return bool(operation & _CLOCK_REALTIME_FLAG) and command in (_WAIT_BITSET, _WAIT_REQUEUE_PI, _LOCK_PI2)


def monotonic_argument(nr: int, args: tuple[int, ...]) -> int:
    """Which argument points to an absolute MONOTONIC deadline of this call; -1 when none does. Asked only once the
    sandbox's MONOTONIC has stood still, since until then the host's is the same in its time namespace."""
    if nr == FUTEX:
        return 3 if args[3] and futex_waits_until_monotonic(args[1]) else -1
    if nr == FUTEX_WAITV:
        return 3 if args[3] and args[4] & 0xFFFFFFFF == MONOTONIC else -1
    if nr == FUTEX_WAIT_NEW:
        return 4 if args[4] and args[5] & 0xFFFFFFFF == MONOTONIC else -1
    return -1


def futex_waits_until_monotonic(operation: int) -> bool:
    """Likewise for MONOTONIC: where the flag does not say REALTIME."""
    return not operation & _CLOCK_REALTIME_FLAG and operation & _COMMAND in (_WAIT_BITSET, _WAIT_REQUEUE_PI, _LOCK_PI2)


def after_freeze(keeper: Timekeeper, raw: bytes) -> bytes | None:
    """The guest's struct timespec of MONOTONIC on the clock of its time namespace, which never stands still."""
    seconds, nanoseconds = _PAIR.unpack(raw)
    if seconds < 0 or not 0 <= nanoseconds < NSEC:
        return None
    return _PAIR.pack(*divmod(min(seconds * NSEC + nanoseconds + keeper.state.frozen, TIME_MAX), NSEC))


def on_host(keeper: Timekeeper, raw: bytes) -> bytes | None:
    """The guest's struct timespec as the host has to be given it; None for one that the host refuses."""
    seconds, nanoseconds = _PAIR.unpack(raw)
    if seconds < 0 or not 0 <= nanoseconds < NSEC:
        return None
    deadline = min(seconds * NSEC + nanoseconds, TIME_MAX)
    if deadline == TIME_MAX:
        return raw  # for ever, on any clock
    return _PAIR.pack(*divmod(keeper.to_host_clock(REALTIME, deadline), NSEC))
