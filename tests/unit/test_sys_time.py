"""Calls about time, on the kernel with the fake platform: values, errors and their order, signals."""

import errno
import struct

import kernel_fixture
import pytest
from time_platform import TICK, TimePlatform

from trapline.sentry.kernel.block import Outcome, Reply
from trapline.sentry.kernel.signal_deliver import Delivery
from trapline.sentry.kernel.signals import SI_KERNEL, SI_TIMER, bit
from trapline.sentry.kernel.state import SigAction, SigInfo
from trapline.sentry.syscalls import posix_timers
from trapline.sentry.time.timekeeper import cpu_clock_id

A, B, C = 0x1000, 0x1100, 0x1200  # writable guest memory
READ_ONLY, BAD = 0xA100, 0x10
MS, SECOND = 1_000_000, 1_000_000_000
REALTIME, MONOTONIC, PROCESS_CPU, THREAD_CPU, BOOTTIME, TAI = 0, 1, 2, 3, 7, 11
SIGALRM, SIGVTALRM, SIGPROF, SIGRTMIN = 14, 26, 27, 34


def name_of(result):
    """The name of an error; anything else as it is. 95 has two names."""
    if isinstance(result, int) and result < 0:
        return "EOPNOTSUPP" if result == -errno.EOPNOTSUPP else errno.errorcode[-result]
    return result


class Guest:
    """The world, with helpers that put structures in memory. Task 2 has a second thread, 3."""

    def __init__(self, world):
        self.world = world
        self.kernel = world.kernel
        self.platform = world.platform
        self.task = world.root
        self.thread = world.fork(world.root, 3, 0x10000)
        self.group = self.kernel.group(self.task)
        for signo in (SIGALRM, SIGVTALRM, SIGPROF, SIGRTMIN):
            self.group.actions[signo] = SigAction(handler=0x4000)
        self.advance = world.advance

    def __call__(self, name, *args):
        result = self.world.call(self.task, name, *args)
        return name_of(result)

    def put(self, address, *numbers):
        self.platform.memory(2).write(address, struct.pack(f"<{len(numbers)}q", *numbers))
        return address

    def got(self, address, count=2):
        return struct.unpack(f"<{count}q", self.platform.memory(2).read(address, 8 * count))

    def clock(self, clock_id):
        assert self("clock_gettime", clock_id, C) == 0
        seconds, nanoseconds = self.got(C)
        return seconds * SECOND + nanoseconds

    def spec(self, value, interval=0):
        return self.put(B, *divmod(interval, SECOND), *divmod(value, SECOND))

    def val(self, value_us, interval_us=0):
        return self.put(B, *divmod(interval_us, 10**6), *divmod(value_us, 10**6))

    def create(self, clock=MONOTONIC, notify=0, signo=SIGRTMIN, tid=0, value=5):
        self.platform.memory(2).write(A, struct.pack("<Qiii", value, signo, notify, tid).ljust(64, b"\0"))
        assert self("timer_create", clock, A, C) == 0
        return struct.unpack("<i", self.platform.memory(2).read(C, 4))[0]

    def left(self, timer):
        assert self("timer_gettime", timer, C) == 0
        i_s, i_n, v_s, v_n = self.got(C, 4)
        return v_s * SECOND + v_n, i_s * SECOND + i_n

    def itimer(self, which):
        assert self("getitimer", which, C) == 0
        i_s, i_u, v_s, v_u = self.got(C, 4)
        return v_s * 10**6 + v_u, i_s * 10**6 + i_u

    def take(self, signo):
        """A thread takes a pending signal, as delivery does."""
        for info in self.group.pending:
            if info.signo == signo:
                self.group.pending.remove(info)
                posix_timers.posix_timer_delivered(self.kernel, self.group, info)
                return info
        return None

    def burn(self, span, ident=2, user=True):
        """CPU time passes and the host's CPU alarms ring."""
        self.platform.cpu[ident] = self.platform.cpu.get(ident, 0) + span
        if user:
            self.platform.cpu_user[ident] = self.platform.cpu_user.get(ident, 0) + span
        for key, after in list(self.platform.cpu_alarms.items()):
            if 0 <= after <= span:
                self.kernel.cpu_alarm(key)


@pytest.fixture
def guest(monkeypatch):
    monkeypatch.setattr(kernel_fixture, "FakePlatform", TimePlatform)
    world = kernel_fixture.World()
    yield Guest(world)
    world.check_plain()


# -- clocks
def test_clocks(guest):
    guest.advance(7 * MS)
    guest.platform.cpu.update({2: 30, 3: 40})
    guest.platform.cpu_user[2] = 20
    assert guest.clock(MONOTONIC) == guest.clock(BOOTTIME) == 7 * MS
    assert guest.clock(REALTIME) == guest.platform.realtime
    assert guest.clock(5) <= guest.clock(REALTIME) < guest.clock(5) + TICK
    assert guest.clock(TAI) - guest.clock(REALTIME) == 37 * SECOND
    assert guest.clock(PROCESS_CPU) == guest.clock(THREAD_CPU) == guest.clock(-6) == guest.clock(-2) == 30
    assert guest.clock(-7) == 20  # CPUCLOCK_VIRT of process 0: its own
    assert guest.clock(cpu_clock_id(3, thread=True)) == 40


# Seen on Linux 6.18 without a clock device, by raw calls.
ERRORS = {
    "clock_gettime": {-5: "EINVAL", -1: "EINVAL", 8: "EINVAL", 9: "EINVAL", 10: "EINVAL", 16: "EINVAL",
                      cpu_clock_id(999999): "EINVAL"},
    "clock_getres": {-1: "EINVAL", 8: "EINVAL", 99: "EINVAL", 5: 0, -8: 0},
    "clock_nanosleep": {3: "EOPNOTSUPP", 4: "EOPNOTSUPP", 5: "EOPNOTSUPP", 6: "EOPNOTSUPP", 8: "EOPNOTSUPP",
                        10: "EINVAL", 99: "EINVAL", -5: "EOPNOTSUPP", -4: "EINVAL", -2: "EINVAL",
                        -1: "EINVAL"},
    "timer_create": {4: "EOPNOTSUPP", 6: "EOPNOTSUPP", 9: "EOPNOTSUPP", -5: "EOPNOTSUPP", -1: "EINVAL",
                     10: "EINVAL", 16: "EINVAL", 11: 0, 2: 0, -6: 0, cpu_clock_id(999999): "EINVAL"},
    "clock_settime": {1: "EINVAL", 2: "EINVAL", 11: "EINVAL", 99: "EINVAL", -6: "EPERM", -1: "EINVAL"},
    "clock_adjtime": {1: "EOPNOTSUPP", 2: "EOPNOTSUPP", -2: "EOPNOTSUPP", 99: "EINVAL", -5: "EINVAL", 0: 5},
}  # fmt: skip


@pytest.mark.parametrize(("name", "clock"), [(n, c) for n, clocks in ERRORS.items() for c in clocks])
def test_clock_errors(guest, name, clock):
    guest.put(A, 0, 1)
    arguments = {"clock_nanosleep": (0, A, 0), "timer_create": (0, B)}.get(name, (B,))
    assert guest(name, clock, *arguments) == ERRORS[name][clock]


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (("clock_gettime", 1, BAD), "EFAULT"),
        (("clock_gettime", 1, READ_ONLY), "EFAULT"),
        (("clock_getres", 1, 0), 0),
        (("clock_getres", 1, BAD), "EFAULT"),
        (("clock_settime", 0, BAD), "EFAULT"),
        (("clock_settime", -1, BAD), "EFAULT"),
        (("gettimeofday", BAD, 0), "EFAULT"),
        (("gettimeofday", 0, BAD), "EFAULT"),
        (("gettimeofday", 0, 0), 0),
        (("settimeofday", BAD, 0), "EFAULT"),
        (("settimeofday", 0, BAD), "EFAULT"),
        (("time", BAD), "EFAULT"),
        (("nanosleep", BAD, 0), "EFAULT"),
        (("clock_nanosleep", 4, 0, BAD, 0), "EOPNOTSUPP"),
        (("clock_nanosleep", 2, 0, BAD, 0), "EFAULT"),
        (("clock_adjtime", 99, BAD), "EFAULT"),
        (("getitimer", 7, BAD), "EINVAL"),
        (("getitimer", 0, READ_ONLY), "EFAULT"),
        (("setitimer", 7, BAD, 0), "EFAULT"),
        (("timer_create", 99, BAD, A), "EFAULT"),
        (("timer_create", 1, 0, BAD), "EFAULT"),
        (("timer_settime", 9999, 0, 0, 0), "EINVAL"),
        (("timer_settime", 9999, 0, BAD, 0), "EFAULT"),
        (("timer_gettime", 9999, BAD), "EINVAL"),
        (("timer_getoverrun", 9999), "EINVAL"),
        (("timer_delete", 9999), "EINVAL"),
        (("timerfd_settime", 999, 0, BAD, 0), "EFAULT"),
        (("timerfd_gettime", 999, A), "EBADF"),
    ],
)
def test_bad_pointers_and_the_order_of_errors(guest, call, wanted):
    assert guest(*call) == wanted


@pytest.mark.parametrize("time", [(0, SECOND), (0, -1), (-1, 0)])
def test_times_that_are_not_valid(guest, time):
    guest.put(A, *time)
    guest.put(B, 0, 0, *time)
    guest.put(C, *time, 0, 1)
    assert guest("nanosleep", A, 0) == "EINVAL"
    assert guest("clock_nanosleep", 1, 1, A, 0) == "EINVAL"
    assert guest("clock_settime", 0, A) == "EINVAL"
    for spec in (B, C):
        assert guest("timer_settime", 9999, 0, spec, 0) == "EINVAL"
        assert guest("timerfd_settime", 999, 0, spec, 0) == "EINVAL"
        assert guest("setitimer", 0, spec, 0) == "EINVAL"


def test_resolutions(guest):
    for clock, wanted in ((0, 1), (1, 1), (2, 1), (5, TICK), (6, TICK), (-6, 1), (-7, TICK), (-8, TICK)):
        assert guest("clock_getres", clock, A) == 0
        assert guest.got(A) == (0, wanted)


def test_clock_of_a_dead_process(guest):
    guest.world.fork(guest.task, 9)
    guest.platform.dead.add(9)
    assert guest("clock_gettime", cpu_clock_id(9), A) == "EINVAL"


def test_time_of_day(guest):
    guest.platform.realtime = 1_700_000_000 * SECOND + 123_456_789
    assert guest("gettimeofday", A, B) == 0
    assert guest.got(A) == (1_700_000_000, 123_456)
    assert guest.got(B, 1) == (0,)
    assert guest("time", A) == guest.got(A, 1)[0] == 1_700_000_000


# -- setting
def test_setting_the_clock(guest):
    host = guest.platform.realtime
    guest.put(A, 1000, 5)
    assert guest("clock_settime", REALTIME, A) == 0
    assert guest.clock(REALTIME) == 1000 * SECOND + 5
    guest.put(A, 2000, 7)
    assert guest("settimeofday", A, 0) == 0
    assert guest.clock(REALTIME) == 2000 * SECOND + 7000
    assert guest.platform.realtime == host
    guest.put(A, 8_277_292_036, 0)
    assert guest("clock_settime", REALTIME, A) == guest("settimeofday", A, 0) == "EINVAL"


def test_setting_is_for_root_of_the_sandbox(guest):
    """Who it is decides, not the host's capability, which no guest has; but who gave up all gave up this."""
    guest.put(A, 1000, 0)
    before = guest.clock(REALTIME)
    for uids, capabilities in (((0, 7, 0), 0xFF), ((7, 7, 7), 0xFF), ((0, 0, 0), 0)):
        guest.platform.uids[2], guest.platform.capabilities = uids, capabilities
        assert guest("clock_settime", REALTIME, A) == guest("settimeofday", A, 0) == "EPERM"
        assert guest("settimeofday", 0, 0) == "EPERM"
        assert guest("adjtimex", A) == "EPERM"  # modes is 1000
    assert guest.clock(REALTIME) == before
    guest.put(A, 0, SECOND)
    assert guest("clock_settime", REALTIME, A) == "EINVAL"  # before it is asked who that is
    guest.put(A, 1000, 0)
    for uids, capabilities in (((7, 0, 7), 0xFF), ((7, 7, 7), 1 << 25)):
        guest.platform.uids[2], guest.platform.capabilities = uids, capabilities
        assert guest("clock_settime", REALTIME, A) == 0
    assert guest.clock(REALTIME) == 1000 * SECOND


def test_the_platform_hears_of_every_step_after_the_page(guest):
    """What is the host's follows when the sentry's own has: by host ns, at any rate."""
    seen = []
    guest.kernel.keeper.listeners.append(lambda: seen.append(len(guest.platform.wall_moves)))
    guest.kernel.keeper.move_realtime(50)
    guest.kernel.state.clock.rate_den = 2
    guest.kernel.keeper.move_realtime(-30)
    assert guest.platform.wall_moves == [50, -60] and seen == [0, 1]
    with pytest.raises(OSError):
        guest.kernel.keeper.move_realtime(-(1 << 62))
    assert guest.platform.wall_moves == [50, -60]


def test_time_zone(guest):
    guest.platform.memory(2).write(A, struct.pack("<ii", -60, 1))
    assert guest("settimeofday", 0, A) == 0
    assert guest("gettimeofday", 0, B) == 0
    assert guest.platform.memory(2).read(B, 8) == struct.pack("<ii", -60, 1)
    guest.platform.memory(2).write(A, struct.pack("<ii", 901, 0))
    assert guest("settimeofday", 0, A) == "EINVAL"


# -- sleeping
def interrupt(guest):
    result = guest.world.dispatcher.interrupt(
        guest.task, Delivery(SigInfo(SIGALRM), handler=True, restart=True, stop=False)
    )
    return name_of(result)


def test_sleep_ends_at_its_deadline(guest):
    guest.put(A, 1, 5)
    assert guest("nanosleep", A, 0) is Reply.BLOCKED
    guest.advance(SECOND + 4)
    assert guest.platform.completed == []
    guest.advance(1)
    assert guest.platform.completed == [(2, 0)]


def test_no_time_is_no_sleep(guest):
    guest.put(A, 0, 0)
    assert guest("nanosleep", A, 0) == 0
    assert guest("clock_nanosleep", MONOTONIC, 1, A, 0) == 0
    assert guest.platform.told == []


def test_longest_sleep(guest):
    guest.put(A, (1 << 63) - 1, 0)
    assert guest("nanosleep", A, 0) is Reply.BLOCKED
    assert guest.platform.alarms[1] == (1 << 63) - 1
    assert interrupt(guest) == "EINTR"


def test_interrupted_sleep_tells_what_is_left(guest):
    guest.put(A, 2, 0)
    guest("nanosleep", A, B)
    guest.advance(SECOND // 2)
    assert interrupt(guest) == "EINTR"
    assert guest.got(B) == (1, SECOND // 2)
    assert guest.platform.alarms[1] == -1


def test_what_is_left_cannot_be_written(guest):
    guest.put(A, 2, 0)
    guest("nanosleep", A, READ_ONLY)
    assert interrupt(guest) == "EFAULT"


def test_absolute_sleep_never_tells(guest):
    guest.put(A, 2, 0)
    guest.put(B, 7, 7)
    guest("clock_nanosleep", MONOTONIC, 1, A, B)
    assert interrupt(guest) == "EINTR"
    assert guest.got(B) == (7, 7)


def test_sleep_that_is_over_is_not_interrupted(guest):
    guest.put(A, 2, 0)
    guest("nanosleep", A, 0)
    guest.platform.monotonic += 2 * SECOND
    assert interrupt(guest) == 0


def test_unwound_sleep_keeps_its_deadline(guest):
    """A checkpoint: the coroutine goes, the record stays, and memory is not read again."""
    guest.put(A, 2, 0)
    guest("nanosleep", A, 0)
    guest.advance(SECOND)
    guest.world.dispatcher.unwind(guest.task)
    guest.put(A, 9, 0)
    assert guest("nanosleep", A, 0) is Reply.BLOCKED
    guest.advance(SECOND)
    assert guest.platform.completed == [(2, 0)]


@pytest.mark.parametrize("clock", [REALTIME, BOOTTIME, TAI])
def test_absolute_sleeps_on_other_clocks(guest, clock):
    guest.put(A, *divmod(guest.clock(clock) + 50, SECOND))
    assert guest("clock_nanosleep", clock, 1, A, 0) is Reply.BLOCKED
    guest.advance(49)
    assert guest.platform.completed == []
    guest.advance(1)
    assert guest.platform.completed == [(2, 0)]


def test_setting_the_clock_ends_absolute_sleeps_only(guest):
    other = guest.world.fork(guest.task, 9)
    guest.put(A, *divmod(guest.clock(REALTIME) + 50 * SECOND, SECOND))
    guest("clock_nanosleep", REALTIME, 1, A, 0)
    guest.platform.memory(9).write(A, struct.pack("<qq", 50, 0))
    guest.world.call(other, "clock_nanosleep", REALTIME, 0, A, 0)
    guest.kernel.keeper.set_realtime(guest.kernel.keeper.now(REALTIME) + 60 * SECOND)
    guest.advance(0)
    assert guest.platform.completed == [(2, 0)]
    guest.advance(50 * SECOND)
    assert guest.platform.completed == [(2, 0), (9, 0)]


def test_clock_set_back_while_an_alarm_rings(guest):
    guest.put(A, *divmod(guest.clock(REALTIME) + 50, SECOND))
    guest("clock_nanosleep", REALTIME, 1, A, 0)
    guest.kernel.keeper.set_realtime(guest.kernel.keeper.now(REALTIME) - 20)
    guest.advance(50)
    guest.kernel.resume(guest.task, Outcome.TIMED_OUT)
    assert guest.platform.completed == []
    guest.advance(20)
    assert guest.platform.completed == [(2, 0)]


def test_sleep_on_cpu_time(guest):
    guest.put(A, 0, 100)
    assert guest("clock_nanosleep", PROCESS_CPU, 0, A, 0) is Reply.BLOCKED
    assert guest.platform.told == []
    guest.burn(60)
    guest.burn(60)
    assert guest.platform.completed == []  # the second alarm was set for what was left
    assert guest.platform.cpu_alarms[f"cpu:{cpu_clock_id(2)}"] == 100
    guest.burn(100)
    assert guest.platform.completed == [(2, 0)]


def test_own_thread_cannot_be_waited_for(guest):
    guest.put(A, 0, 100)
    assert guest("clock_nanosleep", cpu_clock_id(2, thread=True), 0, A, 0) == "EINVAL"
    assert guest("clock_nanosleep", cpu_clock_id(3, thread=True), 0, A, 0) is Reply.BLOCKED


# -- interval timers
def pending(guest):
    return [info.signo for info in guest.group.pending]


def test_real_timer_goes_on_when_its_signal_is_taken(guest):
    assert guest("setitimer", 0, guest.val(10_000, 10_000), 0) == 0
    guest.advance(4 * MS)
    assert guest.itimer(0) == (6_000, 10_000)
    guest.advance(6 * MS)
    assert pending(guest) == [SIGALRM]
    assert guest.group.pending[0].code == SI_KERNEL
    assert guest.itimer(0) == (0, 10_000)  # as in Linux
    told = len(guest.platform.told)
    guest.advance(33 * MS)
    assert pending(guest) == [SIGALRM]
    assert len(guest.platform.told) == told  # nothing runs while it is pending
    guest.take(SIGALRM)
    assert guest.itimer(0) == (7_000, 10_000)  # the phase stays
    guest.advance(7 * MS)
    assert pending(guest) == [SIGALRM]


def test_real_timer_once(guest):
    guest("setitimer", 0, guest.val(15), 0)
    guest.advance(15_000)
    guest.take(SIGALRM)
    guest.advance(SECOND)
    assert pending(guest) == []
    assert guest.itimer(0) == (0, 0)
    assert guest.group.itimers == {}


def test_set_returns_the_old_and_null_disarms(guest):
    guest("setitimer", 0, guest.val(5_000_000, 7), 0)
    guest.advance(SECOND)
    assert guest("setitimer", 0, 0, C) == 0
    assert guest.got(C, 4) == (0, 7, 4, 0)
    assert guest.itimer(0) == (0, 0)
    assert guest.platform.alarms[1] == -1


def test_old_value_cannot_be_written(guest):
    assert guest("setitimer", 0, guest.val(5_000_000), READ_ONLY) == "EFAULT"
    assert guest.itimer(0)[0] == 5_000_000  # but it is set


def test_expiry_that_was_not_noticed_yet(guest):
    guest("setitimer", 0, guest.val(10), 0)
    guest.platform.monotonic += 20_000
    assert guest.itimer(0) == (1, 0)


@pytest.mark.parametrize(
    ("left", "told"), [(0, 0), (1, 1), (SECOND // 2 - 1, 1), (SECOND, 1), (3 * SECOND // 2 - 1, 1),
                       (3 * SECOND // 2, 2), (5 * SECOND, 5)],
)  # fmt: skip
def test_alarm_rounds_but_never_to_nothing(guest, left, told):
    assert guest("alarm", 10) == 0
    guest.advance(10 * SECOND - left)
    guest.take(SIGALRM)
    assert guest("alarm", 0) == told
    assert guest("alarm", 0) == 0


def test_alarm_is_the_real_timer(guest):
    guest("setitimer", 0, guest.val(3_000_000, 1), 0)
    assert guest("alarm", 0xFFFF_FFFF) == 3
    assert guest.itimer(0) == (0xFFFF_FFFF * 10**6, 0)


@pytest.mark.parametrize(("which", "signo"), [(1, SIGVTALRM), (2, SIGPROF)])
def test_cpu_itimers(guest, which, signo):
    guest("setitimer", which, guest.val(10_000, 10_000), 0)
    assert guest.itimer(which) == (14_000, 10_000)  # a tick more, as in Linux
    guest.advance(SECOND)
    assert pending(guest) == []
    guest.burn(14 * MS)
    assert pending(guest) == [signo]
    assert guest.itimer(which) == (10_000, 10_000)
    guest.take(signo)
    guest.burn(35 * MS)
    assert pending(guest) == [signo]
    assert guest.itimer(which) == (5_000, 10_000)
    guest("setitimer", which, guest.val(0, 3), 0)
    assert guest.itimer(which) == (0, 3)  # the interval is kept, as in Linux
    assert all(after < 0 for after in guest.platform.cpu_alarms.values())


def test_virtual_timer_counts_user_time_only(guest):
    guest("setitimer", 1, guest.val(10_000), 0)
    guest.burn(20 * MS, user=False)
    assert pending(guest) == []
    guest.burn(14 * MS)
    assert pending(guest) == [SIGVTALRM]


# -- POSIX timers
def test_ids(guest):
    assert [guest.create() for _ in range(3)] == [0, 1, 2]
    assert guest("timer_delete", 1) == 0
    assert guest.create() == 3  # not given again at once
    guest.group.next_timer_id = 2
    assert guest.create() == 4
    guest.group.next_timer_id = (1 << 31) - 1
    assert [guest.create(), guest.create()] == [(1 << 31) - 1, 1]


def test_default_event(guest):
    guest("timer_create", MONOTONIC, 0, C)
    guest("timer_delete", 0)
    guest("timer_create", MONOTONIC, 0, C)
    guest("timer_settime", 1, 0, guest.spec(5), 0)
    guest.advance(5)
    info = guest.group.pending[0]
    assert (info.signo, info.code, info.value, info.timer_id) == (SIGALRM, SI_TIMER, 1, 1)


@pytest.mark.parametrize(
    ("signo", "notify", "tid", "wanted"),
    [(0, 0, 0, "EINVAL"), (65, 0, 0, "EINVAL"), (64, 0, 0, 0), (10, 3, 0, "EINVAL"), (10, 5, 0, "EINVAL"),
     (10, 4, 99, "EINVAL"), (10, 4, 3, 0), (0, 1, 0, 0), (10, 2, 0, 0), (-1, 2, 0, "EINVAL")],
)  # fmt: skip
def test_events(guest, signo, notify, tid, wanted):
    guest.platform.memory(2).write(A, struct.pack("<Qiii", 5, signo, notify, tid).ljust(64, b"\0"))
    assert guest("timer_create", MONOTONIC, A, C) == wanted
    assert len(guest.group.posix_timers) == (wanted == 0)


def test_periodic_timer_counts_overruns_and_queues_one_signal(guest):
    timer = guest.create()
    guest("timer_settime", timer, 0, guest.spec(10 * MS, 10 * MS), 0)
    guest.advance(10 * MS)
    told = len(guest.platform.told)
    guest.advance(95 * MS)
    assert pending(guest) == [SIGRTMIN]
    assert len(guest.platform.told) == told
    assert guest("timer_getoverrun", timer) == 0
    assert guest.left(timer) == (5 * MS, 10 * MS)
    info = guest.take(SIGRTMIN)
    assert (info.overrun, info.value) == (9, 5)
    assert guest("timer_getoverrun", timer) == 9
    guest.advance(5 * MS)
    assert guest.take(SIGRTMIN).overrun == 0


def test_reading_while_pending_loses_no_overruns(guest):
    timer = guest.create()
    guest("timer_settime", timer, 0, guest.spec(10, 10), 0)
    guest.advance(35)
    guest.left(timer)
    guest.advance(20)
    guest.left(timer)
    assert guest.take(SIGRTMIN).overrun == 4


def test_overrun_is_limited(guest):
    timer = guest.create()
    guest("timer_settime", timer, 0, guest.spec(1, 1), 0)
    guest.advance(10 * SECOND)
    assert guest.take(SIGRTMIN).overrun == (1 << 31) - 1


def test_standard_signals_of_two_timers_do_not_merge(guest):
    for timer in (guest.create(signo=SIGALRM), guest.create(signo=SIGALRM)):
        guest("timer_settime", timer, 0, guest.spec(5), 0)
    guest.advance(5)
    assert pending(guest) == [SIGALRM, SIGALRM]


def test_setting_takes_the_signal_back(guest):
    timer = guest.create()
    guest("timer_settime", timer, 0, guest.spec(5, 5), 0)
    guest.advance(12)
    assert guest("timer_settime", timer, 0, guest.spec(0, 7), C) == 0
    assert guest.got(C, 4) == (0, 5, 0, 3)
    assert pending(guest) == []
    assert guest.left(timer) == (0, 0)
    guest("timer_settime", timer, 0, guest.spec(5), 0)
    guest.advance(5)
    assert guest.left(timer) == (0, 0)
    guest("timer_delete", timer)
    assert pending(guest) == []


def test_set_but_old_value_cannot_be_written(guest):
    timer = guest.create()
    assert guest("timer_settime", timer, 0, guest.spec(5 * SECOND), READ_ONLY) == "EFAULT"
    assert guest.left(timer) == (5 * SECOND, 0)


def test_absolute_time_that_has_gone_expires_at_once(guest):
    guest.advance(100)
    timer = guest.create()
    guest("timer_settime", timer, 1, guest.spec(95, 10), 0)
    assert pending(guest) == [SIGRTMIN]
    assert guest.take(SIGRTMIN).overrun == 0
    guest.advance(4)
    assert pending(guest) == []
    guest.advance(1)
    assert pending(guest) == [SIGRTMIN]


def test_realtime_timers_and_a_clock_that_is_set(guest):
    absolute, relative = guest.create(REALTIME, value=1), guest.create(REALTIME, value=2)
    now = guest.clock(REALTIME)
    guest("timer_settime", absolute, 1, guest.spec(now + 50), 0)
    guest("timer_settime", relative, 0, guest.spec(50), 0)
    guest.kernel.keeper.set_realtime(now + 100)
    guest.advance(0)
    assert [info.value for info in guest.group.pending] == [1]
    guest.advance(50)
    assert [info.value for info in guest.group.pending] == [1, 2]


def test_silent_timers_cost_nothing(guest):
    timers = [guest.create(clock, notify=1) for clock in (MONOTONIC, REALTIME, PROCESS_CPU, THREAD_CPU) * 3]
    for timer in timers:
        guest("timer_settime", timer, 0, guest.spec(10, 10), 0)
    assert guest.platform.told == [] and guest.platform.cpu_alarms == {} and len(guest.kernel.timers) == 0
    guest.advance(25)
    guest.burn(27)
    assert guest.left(timers[0]) == guest.left(timers[1]) == (5, 10)
    assert guest.left(timers[2]) == guest.left(timers[3]) == (3, 10)
    guest("timer_settime", timers[0], 0, guest.spec(10), 0)
    guest.advance(10)
    assert guest.left(timers[0]) == (0, 0)
    assert pending(guest) == []


@pytest.mark.parametrize("clock", [PROCESS_CPU, THREAD_CPU, -6, cpu_clock_id(2)])
def test_cpu_timers(guest, clock):
    timer = guest.create(clock)
    guest("timer_settime", timer, 0, guest.spec(10, 10), 0)
    guest.advance(SECOND)
    assert pending(guest) == []
    guest.burn(10)
    assert pending(guest) == [SIGRTMIN]
    guest.burn(25)
    assert guest.take(SIGRTMIN).overrun == 2
    assert guest.left(timer) == (5, 10)
    guest("timer_settime", timer, 1, guest.spec(1), 0)  # long gone
    assert pending(guest) == [SIGRTMIN]


def test_one_alarm_for_a_clock(guest):
    for span in (30, 10, 20):
        guest("timer_settime", guest.create(PROCESS_CPU), 0, guest.spec(span), 0)
    assert guest.platform.cpu_alarms == {f"cpu:{cpu_clock_id(2)}": 10}


def test_timer_on_another_process(guest):
    guest.world.fork(guest.task, 9)
    timer = guest.create(cpu_clock_id(9))
    guest("timer_settime", timer, 0, guest.spec(10), 0)
    guest.burn(10, 9)
    assert pending(guest) == [SIGRTMIN]
    guest.platform.dead.add(9)
    assert guest.left(timer) == (0, 0)
    assert guest("timer_settime", timer, 0, guest.spec(10), 0) == "ESRCH"


def test_signal_to_a_thread(guest):
    timer = guest.create(notify=4, tid=3)
    guest("timer_settime", timer, 0, guest.spec(5), 0)
    guest.advance(5)
    assert [info.signo for info in guest.thread.pending] == [SIGRTMIN]
    guest("timer_delete", timer)
    assert guest.thread.pending == []
    timer = guest.create(notify=4, tid=3)
    guest("timer_settime", timer, 0, guest.spec(5), 0)
    guest.kernel.forget_task(3)
    del guest.group.threads[3]
    guest.advance(5)  # nobody to hear it
    assert pending(guest) == []


def test_ignored_signal_comes_when_it_is_no_longer(guest):
    guest.group.actions[SIGRTMIN] = SigAction(handler=1)
    periodic, once = guest.create(), guest.create()
    guest("timer_settime", periodic, 0, guest.spec(10, 10), 0)
    guest("timer_settime", once, 0, guest.spec(10), 0)
    guest.advance(45)
    assert pending(guest) == [] and guest.left(periodic) == (5, 10)
    guest.group.actions[SIGRTMIN] = SigAction(handler=0x4000)
    posix_timers.posix_timer_unignored(guest.kernel, guest.group, SIGRTMIN)
    assert guest.take(SIGRTMIN).overrun == 3
    assert guest.take(SIGRTMIN) is None


@pytest.mark.parametrize("clock", [MONOTONIC, PROCESS_CPU])
def test_waiting_for_the_signal(guest, clock):
    """The waiter takes the signal in the middle of the expiry, and the timer goes on from there."""
    guest.task.mask = bit(SIGRTMIN)
    guest.thread.mask = bit(SIGRTMIN)
    timer = guest.create(clock)
    guest("timer_settime", timer, 0, guest.spec(10, 10), 0)
    guest.put(A, bit(SIGRTMIN))
    for turn in (1, 2, 3):
        assert guest("rt_sigtimedwait", A, 0, 0, 8) is Reply.BLOCKED
        guest.advance(10)
        if clock == PROCESS_CPU:
            guest.burn(10)
        assert guest.platform.completed == [(2, SIGRTMIN)] * turn
    assert guest.left(timer) == (10, 10)


# -- processes
def test_exec_ends_posix_timers_only(guest):
    guest("timer_settime", guest.create(), 0, guest.spec(5), 0)
    guest("timer_settime", guest.create(), 0, guest.spec(50), 0)
    guest("setitimer", 0, guest.val(1), 0)
    guest("setitimer", 2, guest.val(1), 0)
    guest.advance(5)
    guest.kernel.time_on_exec(guest.group)
    assert guest.group.posix_timers == {} and pending(guest) == []
    assert set(guest.group.itimers) == {0, 2}
    assert set(guest.kernel.state.timers) == {"itimer:2:0", "itimer:2:2"}


def test_a_child_inherits_nothing(guest):
    guest("setitimer", 0, guest.val(100), 0)
    timer = guest.create()
    child = guest.world.fork(guest.task, 9)
    assert guest.world.call(child, "timer_getoverrun", timer) == -errno.EINVAL
    assert guest.world.call(child, "getitimer", 0, C) == 0
    assert guest.platform.memory(9).read(C, 32) == bytes(32)


def test_nothing_of_a_dead_process_expires(guest):
    for clock in (MONOTONIC, PROCESS_CPU):
        guest("timer_settime", guest.create(clock), 0, guest.spec(5, 5), 0)
    for which in (0, 1, 2):
        guest("setitimer", which, guest.val(1, 1), 0)
    guest.kernel.time_on_group_exit(guest.group)
    assert guest.kernel.state.timers == {}
    assert guest.platform.alarms[1] == -1
    assert all(after < 0 for after in guest.platform.cpu_alarms.values())


def test_alarm_that_comes_after_the_death(guest):
    guest("timer_settime", guest.create(PROCESS_CPU), 0, guest.spec(5), 0)
    guest.platform.dead.add(2)
    guest.kernel.cpu_alarm(f"cpu:{cpu_clock_id(2)}")
    guest.kernel.cpu_alarm("cpu:-99999")
    assert pending(guest) == []


# -- timerfds
@pytest.fixture
def timerfd(guest):
    def info(clock):
        guest.platform.fdinfo[2, 4] = f"pos:\t0\nclockid: {clock}\nticks: 0\n"

    info(MONOTONIC)
    guest.platform.fdinfo[2, 5] = "pos:\t0\n"
    guest.set_clock = info
    return guest


def test_timerfd_values_are_the_hosts(timerfd):
    guest = timerfd
    assert guest("timerfd_settime", 4, 0, guest.spec(10, 20), 0) == 0
    assert guest.platform.timerfds[-4] == (0, 10, 20)
    assert guest("timerfd_settime", 4, 1, guest.spec(10, 20), C) == 0
    assert guest.platform.timerfds[-4] == (1, guest.platform.monotonic + 10, 20)
    assert guest.got(C, 4) == (0, 20, 0, 10)
    assert guest("timerfd_settime", 4, 1, guest.spec(0, 20), 0) == 0
    assert guest.platform.timerfds[-4][1] == 0  # disarmed
    guest.set_clock(REALTIME)
    guest.kernel.keeper.set_realtime(10**18)
    assert guest("timerfd_settime", 4, 3, guest.spec(10**18 + 5), 0) == 0
    assert guest.platform.timerfds[-4] == (3, guest.platform.realtime + 5, 0)


def test_timerfd_at_another_rate(timerfd):
    guest = timerfd
    guest.kernel.state.clock.rate_den = 2
    assert guest("timerfd_settime", 4, 0, guest.spec(10, 20), 0) == 0
    assert guest.platform.timerfds[-4] == (0, 20, 40)
    assert guest("timerfd_gettime", 4, C) == 0
    assert guest.got(C, 4) == (0, 20, 0, 10)


def test_timerfd_errors(timerfd):
    guest = timerfd
    assert guest("timerfd_settime", 9, 0, guest.spec(5), 0) == "EBADF"
    assert guest("timerfd_settime", 9, 4, guest.spec(5), 0) == "EINVAL"
    assert guest("timerfd_settime", 5, 1, guest.spec(5), 0) == "EINVAL"
    assert guest("timerfd_settime", 4, 0, guest.spec(5), READ_ONLY) == "EFAULT"
    assert guest.platform.timerfds[-4] == (0, 5, 0)


def test_timerfd_leaks_no_descriptor(timerfd):
    import os

    guest = timerfd
    guest("timerfd_settime", 4, 1, guest.spec(5), C)
    guest("timerfd_settime", 5, 1, guest.spec(5), C)
    guest("timerfd_gettime", 4, READ_ONLY)
    assert len(guest.platform.opened) == 3
    for fd in guest.platform.opened:
        with pytest.raises(OSError):
            os.fstat(fd)
