"""What follows a moved wall clock: which calls, to when, and timerfds (of this process, as if they were a guest's)."""

import os
import select
import struct
import time

import pytest
from time_platform import TimePlatform

from trapline.platform import wall_timerfds
from trapline.platform.host_services import HostServices, _libc
from trapline.platform.wall_timerfds import ABSTIME, CANCEL_ON_SET, WallTimerfds, info_of
from trapline.sentry.kernel.state import ClockState
from trapline.sentry.syscalls import wall_deadlines as wall
from trapline.sentry.time.timekeeper import Timekeeper
from trapline.sentry.time.timer_setting import TIME_MAX

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
P = 0x1000  # a pointer
RT = 256  # FUTEX_CLOCK_REALTIME


@pytest.mark.parametrize(
    ("nr", "args", "at"),
    [
        (202, (1, 9 | RT, 0, P, 0, 0), 3),
        (202, (1, 9 | 128 | RT, 0, P, 0, 0), 3),  # private
        (202, (1, 9, 0, P, 0, 0), -1),  # MONOTONIC
        (202, (1, 9 | RT, 0, 0, 0, 0), -1),  # for ever
        (202, (1, 0 | RT, 0, P, 0, 0), -1),  # FUTEX_WAIT is relative
        (202, (1, 6, 0, P, 0, 0), 3),  # FUTEX_LOCK_PI
        (202, (1, 13, 0, P, 0, 0), -1),
        (202, (1, 13 | RT, 0, P, 0, 0), 3),
        (202, (1, 11 | RT, 0, P, 0, 0), 3),
        (202, (1, 3 | RT, 0, P, 0, 0), -1),  # FUTEX_REQUEUE: the fourth is a number
        (242, (1, P, 1, 0, P, 0), 4),
        (243, (1, P, 1, 0, 0, 0), -1),
        (449, (P, 1, 0, P, 0, 9), 3),
        (449, (P, 1, 0, P, 1, 0), -1),
        (455, (P, 0, 0, 0, P, 0), 4),
        (455, (P, 0, 0, 0, P, 1), -1),
        (7, (P, 1, 5, P, P, P), -1),
    ],
)
def test_calls_with_a_deadline(nr, args, at):
    assert wall.deadline_argument(nr, args) == at


def test_deadlines_on_the_host():
    platform = TimePlatform()
    keeper = Timekeeper(ClockState(monotonic_base=platform.monotonic), platform)
    keeper.move_realtime(HOUR)

    def on_host(seconds, nanoseconds):
        raw = wall.on_host(keeper, struct.pack("<qq", seconds, nanoseconds))
        return raw and struct.unpack("<qq", raw)

    assert on_host(1_700_003_600, 5) == (1_700_000_000, 5)
    assert on_host(0, 0) == (0, 1)  # gone; the host must not take it for something else
    assert on_host((1 << 63) - 1, 7) == ((1 << 63) - 1, 7)
    assert on_host(-1, 0) is on_host(0, -1) is on_host(0, SECOND) is None


class Own(HostServices):
    """This process is the guest."""

    def __init__(self):
        super().__init__()
        self.host = os.getpid()

    def find(self, tid):
        return self

    def descriptor(self, tid, fd):
        return os.dup(fd)


class Timers:
    def __init__(self):
        self.host = Own()
        self.wall = WallTimerfds(self.host)
        self.fds = []

    def make(self, flags, after, interval=0):
        fd = _libc.timerfd_create(0, os.O_NONBLOCK | os.O_CLOEXEC)
        value = after + (time.clock_gettime_ns(0) if flags & ABSTIME else 0)
        self.host.timerfd_settime(fd, flags, value, interval)
        self.fds.append(fd)
        return fd

    def left(self, fd):
        return round(self.host.timerfd_gettime(fd)[0] / SECOND)

    def moved(self, span, *tids):
        self.wall.moved(tids or (1,), span)


@pytest.fixture
def timers():
    made = Timers()
    before = len(os.listdir("/proc/self/fd"))
    yield made
    assert len(os.listdir("/proc/self/fd")) == before + len(made.fds)
    for fd in made.fds:
        os.close(fd)


def readable(fd):
    return bool(select.select([fd], [], [], 0)[0])


def test_one_object_moves_once(timers):
    fd = timers.make(ABSTIME, HOUR, 7 * SECOND)
    timers.fds.append(os.dup(fd))
    relative = timers.make(0, HOUR)
    timers.moved(600 * SECOND, 1, 2, 3)  # three processes have it, each twice
    assert timers.left(fd) == 3000 and timers.left(relative) == 3600
    assert timers.host.timerfd_gettime(fd)[1] == 7 * SECOND and info_of("self", fd).flags == ABSTIME
    timers.moved(-600 * SECOND)
    assert timers.left(fd) == 3600 and not timers.wall.cancelled


def test_moving_keeps_the_time(timers):
    """However often: never early, and not late by more than it takes to ask."""
    fd = timers.make(ABSTIME, HOUR)
    wanted = time.clock_gettime_ns(0) + timers.host.timerfd_gettime(fd)[0]
    for _ in range(50):
        timers.moved(HOUR // 4)
        timers.moved(-HOUR // 4)
    late = time.clock_gettime_ns(0) + timers.host.timerfd_gettime(fd)[0] - wanted
    assert -100_000 < late < 50_000_000


def test_periods_are_counted_over_a_step(timers):
    fd = timers.make(ABSTIME, 1, SECOND)
    while not readable(fd):
        time.sleep(0)
    timers.moved(10 * SECOND)
    assert readable(fd)
    (ticks,) = struct.unpack("<q", os.read(fd, 8))
    assert 11 <= ticks < 60
    assert timers.left(fd) <= 1


def test_cancelling(timers):
    fd = timers.make(ABSTIME | CANCEL_ON_SET, HOUR)
    other, off = timers.make(ABSTIME | CANCEL_ON_SET, HOUR), timers.make(ABSTIME | CANCEL_ON_SET, HOUR)
    timers.host.timerfd_settime(off, ABSTIME | CANCEL_ON_SET, 0, 0)
    timers.moved(600 * SECOND, 1, 2)
    assert readable(fd) and readable(other) and readable(off) and len(timers.wall.cancelled) == 3
    left, interval = timers.wall.setting(fd)
    assert round(left / SECOND) == 3000 and interval == 0 and timers.wall.setting(off) == (0, 0)
    assert timers.wall.take(1, os.getpid(), fd) and not timers.wall.take(1, os.getpid(), fd)
    assert not readable(fd) and timers.left(fd) == 3000
    assert timers.wall.take(1, os.getpid(), off) and not readable(off) and timers.left(off) == 0
    timers.moved(600 * SECOND)  # cancelled twice before it is told
    assert timers.wall.uncancel(other) and not timers.wall.uncancel(other)
    assert timers.wall.take(1, os.getpid(), fd) and timers.left(fd) == 2400
    assert not timers.wall.take(1, os.getpid(), 0)


def test_what_is_closed_is_forgotten(timers):
    timers.make(ABSTIME | CANCEL_ON_SET, HOUR)
    timers.moved(SECOND)
    assert len(timers.wall.cancelled) == 1
    os.close(timers.fds.pop())
    timers.moved(SECOND)
    assert timers.wall.cancelled == {}


def test_one_that_comes_due_while_it_is_cancelled_stands_still(timers):
    fd = timers.make(ABSTIME | CANCEL_ON_SET, 10 * SECOND, SECOND)
    timers.moved(HOUR)
    assert timers.wall.take(1, os.getpid(), fd)
    assert not readable(fd) and timers.host.timerfd_gettime(fd)[0] == 0


def test_far_deadlines(timers):
    fd = timers.make(ABSTIME, 0)
    timers.host.timerfd_settime(fd, ABSTIME, TIME_MAX, 0)
    timers.moved(HOUR)
    timers.moved(-HOUR)
    assert timers.host.timerfd_gettime(fd)[0] > TIME_MAX // 2


def test_fdinfo_of_others():
    assert wall_timerfds.parse("pos:\t0\nclockid: 0\n") is None
    assert wall_timerfds.parse("") is None
