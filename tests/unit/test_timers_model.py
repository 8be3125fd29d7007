"""Both kinds of timers against a model: any order of setting, advancing, pausing and going on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from time_platform import TimePlatform

from trapline.sentry.kernel.state import ClockState, TimerSetting
from trapline.sentry.time.clock import SampledClock, SyntheticClock
from trapline.sentry.time.timekeeper import Timekeeper
from trapline.sentry.time.timer_heap import TimerHeap


class Model:
    """A timer is a list of times at which it expires; nothing more."""

    def __init__(self):
        self.now, self.next, self.period, self.count, self.paused = 0, -1, 0, 0, False

    def look(self):
        while not self.paused and 0 <= self.next <= self.now:
            self.count += 1
            self.next = self.next + self.period if self.period else -1

    def set(self, after, period):
        self.look()
        self.next, self.period = self.now + after, period
        self.look()


class Sampled:
    """The sandbox's MONOTONIC with a heap; alarms ring as the host's would."""

    def __init__(self):
        self.platform = TimePlatform()
        keeper = Timekeeper(ClockState(monotonic_base=self.platform.monotonic), self.platform)
        self.heap = TimerHeap({}, keeper, self.platform)
        self.clock = SampledClock(1, keeper, self.heap)
        self.timers = {}

    def timer(self, key, listener):
        self.timers[key] = self.clock.new_timer(key, listener)
        return self.timers[key]

    def advance(self, span):
        end = self.platform.monotonic + span
        while -1 < self.platform.alarms.get(1, -1) <= end:
            self.platform.monotonic = max(self.platform.alarms[1], self.platform.monotonic)
            self.ring()
        self.platform.monotonic = end

    def ring(self):
        self.platform.alarms[1] = -1
        for key, expirations in self.heap.expire():
            self.timers[key].expired(expirations)


class Synthetic:
    def __init__(self):
        self.clock = SyntheticClock()

    def timer(self, key, listener):
        return self.clock.new_timer(key, listener)

    def advance(self, span):
        self.clock.add(span)


SMALL = st.integers(0, 12)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), SMALL, SMALL),
        st.tuples(st.just("off")),
        st.tuples(st.just("advance"), SMALL),
        st.tuples(st.just("get")),
        st.tuples(st.just("pause")),
        st.tuples(st.just("resume")),
    ),
    max_size=30,
)


@pytest.mark.parametrize("kind", [Sampled, Synthetic])
@settings(deadline=None)
@given(STEPS)
def test_agrees_with_the_model(kind, steps):
    bench, model, heard = kind(), Model(), []
    timer = bench.timer("t", heard.append)
    for name, *arguments in steps:
        if name == "set" and not model.paused:
            after, period = arguments
            old = timer.set(TimerSetting(bench.clock.now() + after, period))
            model.look()
            assert (old.next, old.next >= 0 and old.period) == (model.next, model.next >= 0 and model.period)
            model.set(after, period)
        elif name == "off" and not model.paused:
            timer.set(TimerSetting())
            model.look()
            model.next = -1
        elif name == "advance":
            bench.advance(*arguments)
            model.now += arguments[0]
            model.look()
        elif name == "get" and not model.paused:
            assert timer.get().next == model.next
        elif name == "pause":
            timer.pause()
            model.paused = True
        elif name == "resume":
            timer.resume()
            model.paused = False
            model.look()
        assert sum(heard) == model.count
        assert all(n > 0 for n in heard)


@pytest.mark.parametrize("kind", [Sampled, Synthetic])
def test_rules(kind):
    bench, heard = kind(), []
    timer = bench.timer("t", heard.append)
    timer.set(TimerSetting(0, 3))  # expired at once: notified once
    assert heard == [1]
    timer.pause()
    timer.pause()
    for call in (timer.get, lambda: timer.set(TimerSetting())):
        with pytest.raises(RuntimeError):
            call()
    bench.advance(7)
    assert heard == [1]
    timer.resume()
    timer.resume()
    assert heard == [1, 2]
    timer.destroy()
    bench.advance(100)
    assert heard == [1, 2]


@pytest.mark.parametrize("kind", [Sampled, Synthetic])
def test_between_old_and_new(kind):
    bench, order = kind(), []
    timer = bench.timer("t", lambda n: order.append("expired"))
    now = bench.clock.now()
    timer.set(TimerSetting(now + 5))
    if kind is Synthetic:
        bench.advance(5)
    else:
        bench.platform.monotonic += 5  # the alarm has not been served yet
    timer.set(TimerSetting(now + 5), lambda: order.append("between"))
    assert order == ["expired", "between", "expired"]


@pytest.mark.parametrize("kind", [Sampled, Synthetic])
def test_listener_may_not_call_back(kind):
    bench = kind()
    timer = bench.timer("t", lambda n: timer.get())
    with pytest.raises(RuntimeError):
        timer.set(TimerSetting(bench.clock.now()))


def test_synthetic_clock_expires_in_order_before_it_returns():
    clock, order = SyntheticClock(), []
    for name, when in (("b", 20), ("a", 10), ("b2", 20), ("c", 21)):
        clock.new_timer(name, lambda n, name=name: order.append(name)).set(TimerSetting(when))
    clock.store(20)
    assert order == ["a", "b", "b2"]
    clock.store(3)
    clock.add(1)
    assert (clock.now(), order) == (4, ["a", "b", "b2"])
    clock.store(21)
    assert order[3:] == ["c"]


def test_synthetic_timer_goes_on_after_a_restore():
    entries, heard = {}, []
    first = SyntheticClock(7, entries)
    first.new_timer("t", heard.append).set(TimerSetting(10, 10))
    first.new_timer("off", heard.append).set(TimerSetting())
    assert entries == {"t": TimerSetting(10, 10)}
    second = SyntheticClock(7, entries)
    second.new_timer("t", heard.append)
    second.store(25)
    assert heard == [2] and entries == {"t": TimerSetting(30, 10)}


def test_a_synthetic_clock_does_not_grow_with_what_was_cancelled():
    clock, heard = SyntheticClock(), []
    timers = [clock.new_timer(str(n), heard.append) for n in range(1000)]
    for round_ in range(5):
        for timer in timers:
            timer.set(TimerSetting(1000 + round_))
    assert len(clock._queue) <= 2 * len(timers) + 2
    for timer in timers[1:]:
        timer.destroy()
    assert len(clock._queue) < 200
    assert clock.next() == 1004
    clock.store(1004)
    assert heard == [1] and clock.next() == -1


def test_sampled_timer_goes_on_after_a_restore():
    bench, heard = Sampled(), []
    bench.heap.set("t", 1, 10, 10)
    timer = bench.timer("t", heard.append)
    assert timer.get() == TimerSetting(10, 10, 1)
    bench.advance(25)
    assert sum(heard) == 2
    assert bench.clock.wall_time_until(30) == 5
    assert bench.clock.wall_time_until(3) == 0
