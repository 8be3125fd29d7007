"""When the watchdog reports, by a clock that the test sets: it ticks where a handler runs."""

import signal
import sys

import pytest

from trapline.platform import watchdog
from trapline.sentry.syscalls import registry

SECOND = 1_000_000_000


class Clock:
    def __init__(self, monkeypatch):
        self.now, self.queued, self.armed, self.began = 1, 0, True, -SECOND
        monkeypatch.setattr(watchdog, "monotonic_ns", lambda: self.now)
        monkeypatch.setattr(watchdog, "_run_queue_ns", lambda: self.queued)
        monkeypatch.setattr(signal, "getitimer", lambda which: (0.1, 0.5) if self.armed else (0.0, 0.0))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def dog(clock):
    """A limit of 2 s: a tick every 0.5 s."""
    reports = []
    dog = watchdog.Watchdog(2.0, lambda line, stack, first: reports.append((line, stack, first)), lambda: clock.began)
    dog.reports = reports
    yield dog
    dog.close()


def ticks(clock, dog, number, after=SECOND // 2, queued=0):
    for _ in range(number):
        clock.now += after
        clock.queued += queued
        dog._tick(signal.SIGALRM, sys._getframe())


def during(world, name, *args, do):
    """Make a call whose handler does something."""
    with registry.override(name, lambda *given: do() or 0):
        return world.call(world.root, name, *args)


def test_one_call_over_the_limit(world, clock, dog):
    def do():
        ticks(clock, dog, 4)
        assert dog.reports == []
        ticks(clock, dog, 1)

    during(world, "getitimer", 1, 0x1234, do=do)
    ((line, stack, first),) = dog.reports
    assert line == "the handler of getitimer(0x1, 0x1234) of task 2 has been running for 2.0 s"
    assert "in do\n" in stack and "in enter\n" in stack and "in during" not in stack
    assert first and stack.index("in enter") < stack.index("in do")


def test_again_when_that_has_doubled(world, clock, dog):
    during(world, "getitimer", 0, 0, do=lambda: ticks(clock, dog, 18))
    assert [line.split()[-2] for line, _, _ in dog.reports] == ["2.0", "4.0", "8.0"]
    assert [first for _, _, first in dog.reports] == [True, False, False]


def test_many_calls_are_not_one(world, clock, dog):
    for _ in range(20):
        during(world, "getitimer", 0, 0, do=lambda: ticks(clock, dog, 3))
    assert dog.reports == []


def test_nothing_in_progress(clock, dog):
    ticks(clock, dog, 20)
    assert dog.reports == []


def test_time_in_which_the_sentry_was_stopped(world, clock, dog):
    """A stop of an hour is one tick that comes late, and counts for what a tick counts for."""

    def do():
        ticks(clock, dog, 2)
        ticks(clock, dog, 1, after=3600 * SECOND)
        ticks(clock, dog, 1)
        assert dog.reports == []
        ticks(clock, dog, 1)

    during(world, "getitimer", 0, 0, do=do)
    assert len(dog.reports) == 1


def test_time_on_the_run_queue(world, clock, dog):
    """Where others take 80% of the CPU, five times as much may pass."""

    def do():
        ticks(clock, dog, 20, queued=SECOND * 2 // 5)
        assert dog.reports == []
        ticks(clock, dog, 1, queued=SECOND * 2 // 5)

    during(world, "getitimer", 0, 0, do=do)
    assert len(dog.reports) == 1


def test_a_handler_that_waits_between(world, clock, dog):
    """Only what runs counts: a call that blocks is not stuck; its step that does not end is, by its call."""

    async def waits(kernel, task, request, remaining):
        await kernel.block(task, 1, kernel.keeper.now(1) + SECOND)
        ticks(clock, dog, 5)
        return 0

    with registry.override("nanosleep", waits):
        world.call(world.root, "nanosleep", 0x1000, 0)
        ticks(clock, dog, 20)
        assert dog.reports == []
        world.advance(SECOND)
    assert [line.partition(" of task")[0] for line, _, _ in dog.reports] == ["the handler of nanosleep(0x1000, 0x0)"]


def test_the_expiry_of_timers(world, clock, dog):
    world.kernel.on_timer["test"] = lambda key, times: ticks(clock, dog, 5)
    world.kernel.timers.set("test:1", 1, world.kernel.keeper.now(1) + SECOND)
    world.advance(SECOND)
    assert [line for line, _, _ in dog.reports] == ["the expiry of timers has been running for 2.0 s"]


def test_a_log_that_cannot_be_written_to(world, clock, dog):
    """What is stuck in the log's own write hears nothing of it."""

    def say(line, stack, first):
        raise RuntimeError("reentrant call")

    dog._say = say
    assert during(world, "getitimer", 0, 0, do=lambda: ticks(clock, dog, 5)) == 0


@pytest.mark.parametrize(("armed", "began"), [(False, -SECOND), (True, -SECOND // 4)])
def test_a_signal_of_somebody_else(armed, began, clock, dog, monkeypatch):
    """SIGALRM while nothing is armed, or not for long enough, does what it does to trapline without a watchdog."""
    sent = []
    monkeypatch.setattr(watchdog.os, "kill", lambda pid, number: sent.append(number))
    clock.armed, clock.began = armed, clock.now + began
    dog._tick(signal.SIGALRM, sys._getframe())
    assert sent == [signal.SIGALRM] and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
