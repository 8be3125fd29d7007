"""The timer heap: order, alarms, cancelling, building again."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from time_platform import TimePlatform

from trapline.sentry.kernel.state import ClockState, TimerSetting
from trapline.sentry.time import timer_heap
from trapline.sentry.time.timekeeper import Timekeeper, cpu_clock_id
from trapline.sentry.time.timer_heap import TimerHeap

MONOTONIC, REALTIME, BOOTTIME, TAI = 1, 0, 7, 11


class Bench:
    def __init__(self, **clock):
        self.platform = TimePlatform()
        self.clock = ClockState(monotonic_base=self.platform.monotonic, **clock)
        self.keeper = Timekeeper(self.clock, self.platform)
        self.entries: dict[str, TimerSetting] = {}
        self.heap = TimerHeap(self.entries, self.keeper, self.platform)

    def advance(self, span):
        self.platform.monotonic += span
        self.platform.realtime += span

    def due(self):
        return [key for key, _ in self.heap.expire()]


@pytest.fixture
def bench():
    return Bench()


def test_order_of_deadlines_then_of_setting(bench):
    for key, when in (("c", 30), ("a", 10), ("b2", 20), ("b1", 20), ("b0", 20)):
        bench.heap.set(key, MONOTONIC, when)
    bench.heap.set("b2", MONOTONIC, 20)  # set again: now the last of its time
    bench.advance(25)
    assert bench.due() == ["a", "b1", "b0", "b2"]
    bench.advance(5)
    assert bench.due() == ["c"]
    assert bench.entries == {}


def test_host_is_told_only_when_the_earliest_changes(bench):
    base = bench.platform.monotonic
    bench.heap.set("late", MONOTONIC, 1000)
    bench.heap.set("later", MONOTONIC, 2000)
    bench.heap.set("early", MONOTONIC, 500)
    bench.heap.set("early2", MONOTONIC, 500)
    bench.heap.cancel("early2")
    bench.heap.cancel("later")
    assert bench.platform.told == [(1, base + 1000), (1, base + 500)]
    bench.heap.cancel("early")
    bench.heap.cancel("late")
    bench.heap.cancel("late")
    assert bench.platform.told[2:] == [(1, base + 1000), (1, -1)]


def test_after_an_alarm_the_next_is_told_once(bench):
    base = bench.platform.monotonic
    for when in (10, 20, 30):
        bench.heap.set(str(when), MONOTONIC, when)
    bench.platform.told.clear()
    bench.advance(20)
    assert bench.due() == ["10", "20"]
    assert bench.platform.told == [(1, base + 30)]
    bench.advance(5)
    assert bench.due() == []  # too early: the alarm stands
    assert bench.platform.told == [(1, base + 30)]


def test_the_same_deadline_again_is_told_again_once_it_rang(bench):
    bench.heap.set("a", MONOTONIC, 10)
    bench.advance(10)
    assert bench.due() == ["a"]
    bench.heap.set("a", MONOTONIC, 10)
    assert bench.platform.alarms[1] == bench.platform.monotonic
    assert len(bench.platform.told) == 2


def test_handlers_may_set_and_cancel_while_others_expire(bench):
    for key in "abc":
        bench.heap.set(key, MONOTONIC, 10)
    bench.advance(10)
    seen = []
    for key, _ in bench.heap.expire():
        seen.append(key)
        if key == "a":
            bench.heap.cancel("b")
            bench.heap.set("d", MONOTONIC, 5)  # due already: at the next alarm
            bench.heap.set("e", MONOTONIC, 50)
    assert seen == ["a", "c"]
    assert bench.platform.alarms[1] <= bench.platform.monotonic
    assert bench.due() == ["d"]


def test_periods(bench):
    bench.heap.set("p", MONOTONIC, 10, 7)
    bench.advance(30)
    assert list(bench.heap.expire()) == [("p", 3)]
    assert bench.heap.get("p") == TimerSetting(31, 7, MONOTONIC)


def test_realtime_follows_its_clock(bench):
    now = bench.keeper.now(REALTIME)
    bench.heap.set("r", REALTIME, now + 1000)
    assert bench.platform.alarms[0] == bench.platform.realtime + 1000
    bench.keeper.set_realtime(now + 600)
    assert bench.platform.alarms[0] == bench.platform.realtime + 400
    bench.keeper.set_realtime(now + 5000)
    assert bench.platform.alarms[0] <= bench.platform.realtime
    assert bench.due() == ["r"]


def test_several_clocks_share_two_alarms(bench):
    base, real = bench.platform.monotonic, bench.platform.realtime
    bench.heap.set("boot", BOOTTIME, 70)
    bench.heap.set("mono", MONOTONIC, 90)
    bench.heap.set("tai", TAI, bench.keeper.now(TAI) + 40)
    bench.heap.set("real", REALTIME, bench.keeper.now(REALTIME) + 50)
    assert bench.platform.alarms == {1: base + 70, 0: real + 40}
    bench.advance(100)
    assert bench.due() == ["tai", "real", "boot", "mono"]


def test_boottime_after_a_suspend():
    bench = Bench()
    bench.clock.boottime_base = bench.platform.host_clock(BOOTTIME)
    bench.heap.set("boot", BOOTTIME, 100)
    bench.platform.boot += 60
    bench.advance(40)
    assert bench.due() == ["boot"]


@pytest.mark.parametrize(("num", "den"), [(1, 2), (2, 1), (3, 7), (1000, 999)])
def test_rate_is_never_early(num, den):
    for when in (1, 2, 3, 10, 1001, 10**9 + 7):
        bench = Bench(rate_num=num, rate_den=den)
        bench.heap.set("x", MONOTONIC, when)
        rings = bench.platform.alarms[1]
        bench.platform.monotonic = rings - 1
        assert bench.keeper.now(MONOTONIC) < when
        assert bench.due() == []
        bench.platform.monotonic = rings
        assert bench.due() == ["x"]


def test_rate_puts_realtime_on_the_monotonic_alarm():
    bench = Bench(rate_num=1, rate_den=2)
    bench.heap.set("r", REALTIME, bench.keeper.now(REALTIME) + 100)
    assert bench.platform.alarms == {1: bench.platform.monotonic + 200}


def test_entries_on_cpu_clocks_are_not_the_heap_s(bench):
    bench.entries["cpu"] = TimerSetting(10, 0, cpu_clock_id(5))
    heap = TimerHeap(bench.entries, bench.keeper, bench.platform)
    bench.platform.monotonic += 100
    assert list(heap.expire()) == [] and "cpu" in bench.entries


def test_pause_and_resume(bench):
    bench.heap.set("a", MONOTONIC, 10)
    bench.heap.pause()
    assert bench.platform.alarms[1] == -1
    bench.heap.set("b", MONOTONIC, 5)
    assert bench.platform.alarms[1] == -1
    bench.heap.resume()
    assert bench.platform.alarms[1] == bench.platform.monotonic + 5


def test_built_again_from_plain_state(bench):
    for i, when in enumerate((30, 10, 10, 20)):
        bench.heap.set(f"k{i}", MONOTONIC, when)
    bench.heap.set("k1", MONOTONIC, 10)
    raw = msgspec.msgpack.encode(bench.entries)
    again = Bench()
    again.entries.update(msgspec.msgpack.decode(raw, type=dict[str, TimerSetting]))
    again.heap = TimerHeap(again.entries, again.keeper, again.platform)
    assert again.platform.told == []
    again.heap.resume()
    assert again.platform.alarms[1] == again.platform.monotonic + 10
    again.advance(30)
    assert again.due() == ["k2", "k1", "k3", "k0"]


def test_cancelled_items_do_not_pile_up(bench):
    bench.heap.set("first", MONOTONIC, 1)
    for i in range(10_000):
        bench.heap.set("sleep", MONOTONIC, 1000 + i)
    assert len(bench.heap._heaps[MONOTONIC]) <= 2 * timer_heap.STALE_MIN + 4


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from((0, 1)), st.integers(-1, 60))),
    st.lists(st.integers(0, 30), max_size=5),
)
def test_agrees_with_a_sorted_list(changes, steps):
    bench = Bench()
    real = bench.keeper.now(REALTIME)
    model: dict[str, int] = {}
    for key, clock, when in changes:
        model.pop(key, None)
        if when < 0:
            bench.heap.cancel(key)
        else:
            model[key] = when
            bench.heap.set(key, clock, when + (0 if clock else real))
    time = 0
    for step in steps:
        time += step
        bench.advance(step)
        expected = sorted((k for k in model if model[k] <= time), key=lambda k: model[k])
        model = {k: v for k, v in model.items() if v > time}
        assert bench.due() == expected
        alarms = [when - now for when, now in (
            (bench.platform.alarms.get(1, -1), bench.platform.monotonic),
            (bench.platform.alarms.get(0, -1), bench.platform.realtime)) if when > now]  # fmt: skip
        assert (min(alarms) + time if alarms else None) == (min(model.values()) if model else None)


def test_compaction_keeps_order(monkeypatch):
    monkeypatch.setattr(timer_heap, "STALE_MIN", 2)
    rng = random.Random(1)
    bench = Bench()
    model = {}
    for _ in range(500):
        key, when = rng.choice("abcdefghij"), rng.randrange(1000)
        model.pop(key, None)
        model[key] = when
        bench.heap.set(key, MONOTONIC, when)
    bench.advance(1000)
    assert bench.due() == sorted(model, key=lambda k: model[k])
