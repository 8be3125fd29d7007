"""A sandbox that moves its wall clock. The host is no oracle here, its clock is not to be set: the guests say whether
each thing is as on Linux after clock_settime(2), and this is what Linux does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from guests import compiled, lines_of
from harness import do, is_root, native, workload

pytestmark = pytest.mark.skipif(not is_root(), reason="only root of a sandbox may set its clock")

READING = {
    "the vDSO follows at once": "yes",
    "the vDSO lies between two calls": "yes",
    "gettimeofday": "yes",
    "time": "yes",
    "coarse": "yes",
    "TAI": "yes",
    "MONOTONIC stays": "yes",
    "BOOTTIME stays": "yes",
    "before the start of MONOTONIC": "EINVAL",
    "too late": "EINVAL",
    "settimeofday of a zone": "ok",
    "the zone": "-60 1",
    "a wrong zone": "EINVAL",
    "another process": "yes",
}
USERS = {
    "root": "ok",
    "another user, clock_settime": "EPERM",
    "another user, stime by settimeofday": "EPERM",
    "another user, reading": "ok",
    "another user, changing": "EPERM",
    "another user, a wrong tick": "EPERM",
    "another user, a wrong time": "EINVAL",
    "root by its real id only": "EPERM",
    "root without capabilities": "EPERM",
}
ADJUSTING = {
    "an hour back": "yes, unsynchronised yes",
    "told": "status yes, in ns yes",
    "a negative fraction": "EINVAL",
    "a fraction of a second": "EINVAL",
    "before all time": "EINVAL",
    "synchronised": "state 0, status 8192, esterror 20, constant 3, maxerror yes",
    "TAI": "37, yes, by a call yes",
    "frequency": "EPERM",
    "a frequency of nothing": "EINVAL",
    "tick": "EINVAL",
    "adjtime": "EPERM",
    "what is left of it": "ok, 0",
    "singleshot of nothing": "EINVAL",
    "a bad pointer": "EFAULT",
    "of MONOTONIC": "EOPNOTSUPP, of 99: EINVAL",
}
TIMERS = """
half an hour is left: yes
of the relative one an hour: yes
rang 0
rang 1, of the relative one an hour: yes
"""
SLEEPS = ("clock_nanosleep", "relative clock_nanosleep")
WAITS = (
    *SLEEPS, "pthread_cond_timedwait", "sem_timedwait", "mq_timedreceive", "mq_timedsend", "futex, read-only deadline",
    "futex_waitv", "futex_lock_pi",
)  # fmt: skip
FOLLOWING = """
== following
half an hour is left: yes, of the copy yes
of the relative one an hour: yes, on MONOTONIC yes
of the periodic one: yes
of the one far away: yes
of the one for ever: yes
and back: yes
nothing to read: EAGAIN
due by a step, epoll: 1
due: yes
due: read 8 bytes, 1, then EAGAIN
periods that a step made: yes
and it goes on: yes
== unread
periods with those before: yes
expired once: read 8 bytes, 1, then EAGAIN
"""
CANCELLED = """
in a child: read ECANCELED, then EAGAIN
blocked in read: -1 ECANCELED
blocked in readv: -1 ECANCELED
in poll: 1, ECANCELED
in epoll: 1 ok
then: read ECANCELED, then EAGAIN
gettime before reading: yes
readable 1
then: read ECANCELED, then EAGAIN
and readable 0
and it is set as before: yes
disarmed: readable 1
disarmed: read ECANCELED, then EAGAIN
disarmed still: 0
set again: ECANCELED
set again: read EAGAIN, then EAGAIN
without the flag: readable 0
relative: readable 0
shared: EAGAIN
two steps, one answer: read ECANCELED, then EAGAIN
moved by both: yes
""".lstrip()


@pytest.fixture(autouse=True)
def the_hosts_clock_stays():
    """None of it touches the host's clock: the distance of its clocks is what it was."""
    before = time.time() - time.monotonic()
    yield
    assert abs(time.time() - time.monotonic() - before) < 30


@pytest.mark.parametrize("flags", [(), ("--without=vdso",), ("--clock-rate=2",)], ids=["", "no vdso", "rate 2"])
def test_all_that_tells_the_time_follows(platform: str, flags: tuple[str, ...]) -> None:
    result = do(platform, [compiled("wallclock"), "reading"], *flags)
    lines = lines_of(result)
    assert 0 < int(lines.pop("years from 1970")) < 1000
    assert lines == READING and result.stderr == b"", result


def test_who_may_set_it(platform: str) -> None:
    assert lines_of(do(platform, [compiled("wallclock"), "users"])) == USERS


def test_adjtimex(platform: str) -> None:
    assert lines_of(do(platform, [compiled("wallclock"), "adjusting"])) == ADJUSTING


def test_timers_follow(platform: str) -> None:
    result = do(platform, [compiled("wallclock"), "timers"])
    assert result.stdout.decode() == "== timers" + TIMERS, result


def test_absolute_waits_follow(platform: str) -> None:
    """Sleeps, and native waits on futexes and message queues: those that have begun, and those that begin."""
    result = do(platform, [compiled("wallclock"), "waiting"])
    expected = ["== waiting"]
    for wait in WAITS:
        expected.append(f"due by a step, {wait}: {'ok' if wait in SLEEPS else 'ETIMEDOUT'}, yes")
    for wait in WAITS:
        expected.append(f"after a step, {wait}: {'ok' if wait in SLEEPS else 'ETIMEDOUT'}, early no")
    expected += [f"put back, {wait}: ended {'yes' if wait.startswith('relative') else 'no'}" for wait in WAITS]
    expected.append("and forward: all have ended")
    assert result.stdout.decode().splitlines() == expected, result


def test_a_handler_still_interrupts_native_waits(platform: str) -> None:
    """The conversion leaves no trace in what the guest sees: EINTR, registers, the deadline in its memory."""
    lines = lines_of(do(platform, [compiled("wallclock"), "interrupted"]))
    assert set(lines.values()) == {"EINTR, registers as before yes"} and len(lines) == 6, lines


@pytest.mark.parametrize("rate", ["1", "2"])
def test_absolute_timerfds_follow(platform: str, rate: str) -> None:
    result = do(platform, [compiled("wallclock_timerfd"), "following", "unread"], f"--clock-rate={rate}")
    assert result.stdout.decode() == FOLLOWING.lstrip(), result


def test_timerfds_are_cancelled(platform: str) -> None:
    """Twice: the second step finds its tasks under trap_all."""
    result = do(platform, [compiled("wallclock_timerfd"), "cancelled"])
    assert result.stdout.decode() == "== cancelled\n" + CANCELLED * 2, result


@pytest.mark.parametrize("strace", [False, True])
def test_steps_while_everything_goes_on(platform: str, tmp_path: Path, strace: bool) -> None:
    """Sixty steps: no call returns EINTR for one, none is missed, none waits on."""
    flags = ("--strace", "-o", str(tmp_path / "trace")) if strace else ()
    lines = lines_of(do(platform, [compiled("wallclock_timerfd"), "under-way"], *flags))
    assert set(lines.values()) == {"0 faults"} and len(lines) == 5, lines


@pytest.mark.parametrize("name", ["jobs", "never_eintr", "waits", "signals", "processes", "exec", "clocks"])
def test_programs_do_not_notice(platform: str, name: str) -> None:
    """What workloads print natively is what they print where every call is stopped for the moved clock."""
    result = do(platform, [compiled("wallclock"), "moved", workload(name)])
    expected = native([workload(name)])
    assert (result.stdout, result.status) == (expected.stdout, expected.status), f"{expected}\n{result}"


def test_a_trace_shows_what_the_guest_sees(platform: str, tmp_path: Path) -> None:
    """Who watches and the moved clock share the stops of trap_all."""
    file = tmp_path / "trace"
    result = do(platform, [compiled("wallclock_timerfd"), "cancelled"], "--strace", "-o", str(file))
    assert result.stdout.decode() == "== cancelled\n" + CANCELLED * 2, result
    lines = file.read_text().splitlines()
    found = [line for line in lines if "read" in line and " = -1 ECANCELED (Operation canceled)" in line]
    assert len(found) >= 2 * 7, lines
