"""The ticker and the timers by key: CPU clocks that move only when they are advanced, and what the host is told."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from time_platform import TimePlatform

from trapline.sentry.kernel.state import ClockState, TimerSetting
from trapline.sentry.protocol import Gone
from trapline.sentry.time.clocks import Clocks
from trapline.sentry.time.ticker import explicit
from trapline.sentry.time.timekeeper import CPU_PROF, CPU_SCHED, CPU_VIRT, MONOTONIC, Timekeeper, cpu_clock_id
from trapline.sentry.time.timer_heap import TimerHeap

CPU = cpu_clock_id(5)


class Bench:
    """Clocks on a fake host; `heard` are the actions in their order."""

    def __init__(self, entries=None):
        self.platform = TimePlatform()
        self.keeper = Timekeeper(ClockState(monotonic_base=self.platform.monotonic), self.platform)
        self.entries = {} if entries is None else entries
        heap = TimerHeap(self.entries, self.keeper, self.platform)
        self.heard = []
        self.then = {}
        self.clocks = Clocks(self.entries, heap, self.keeper, self.platform, self.fire)
        self.heap = heap

    def fire(self, key, expirations):
        self.heard.append((key, expirations))
        self.then.get(key, lambda: None)()

    def run(self, span, ident=5):
        """The task uses CPU, and the host's alarms ring when they are due."""
        left = span
        while left >= 0:
            alarms = {k: a for k, a in self.platform.cpu_alarms.items() if a >= 0}
            step = min([left, *alarms.values()])
            self.platform.cpu[ident] = self.platform.cpu.get(ident, 0) + step
            for key, after in alarms.items():
                self.platform.cpu_alarms[key] = after - step
                if after <= step:
                    self.platform.cpu_alarms[key] = -1
                    self.clocks.cpu_alarm(int(key.partition(":")[2]), 0)
            left -= step
            if not step and not any(a == 0 for a in self.platform.cpu_alarms.values()):
                return

    def keys(self):
        return [key for key, _ in self.heard]


@pytest.fixture
def bench():
    return Bench()


def test_one_alarm_a_clock_for_the_earliest_deadline(bench):
    bench.platform.cpu[5] = 1000
    bench.clocks.set("a", CPU, 1500)
    bench.clocks.set("b", CPU, 1200)
    assert bench.platform.cpu_alarms == {f"cpu:{CPU}": 200} and bench.platform.told == []
    bench.platform.cpu[5] = 1100
    bench.clocks.cpu_alarm(CPU, 0)  # it may come early
    assert bench.heard == [] and bench.platform.cpu_alarms == {f"cpu:{CPU}": 100}
    bench.platform.cpu[5] = 1500
    bench.clocks.cpu_alarm(CPU, 0)
    assert bench.keys() == ["b", "a"]
    assert bench.entries == {} and bench.platform.cpu_alarms == {f"cpu:{CPU}": -1}


def test_setting_brings_the_clock_up_to_date(bench):
    bench.clocks.set("a", CPU, 100)
    bench.platform.cpu[5] = 150  # the alarm is on its way
    bench.clocks.set("b", CPU, 150)
    assert bench.keys() == ["a", "b"]


def test_a_setting_that_is_replaced_is_not_heard(bench):
    bench.clocks.set("a", CPU, 100)
    bench.platform.cpu[5] = 150
    bench.clocks.set("a", CPU, 200)
    bench.clocks.set("s", MONOTONIC, 50)
    bench.platform.monotonic += 60
    bench.clocks.set("s", MONOTONIC, 100)
    assert bench.heard == []


def test_without_advance_it_waits_for_the_alarm(bench):
    bench.platform.cpu[5] = 150
    bench.clocks.set("sleep:1", CPU, 100, advance=False)
    assert bench.heard == [] and bench.platform.cpu_alarms == {f"cpu:{CPU}": 1}
    bench.clocks.cpu_alarm(CPU, 0)
    assert bench.keys() == ["sleep:1"]


def test_cancelled_before_its_turn(bench):
    bench.clocks.set("a", CPU, 100)
    bench.clocks.set("b", CPU, 100)
    bench.then["a"] = lambda: bench.clocks.cancel("b")
    bench.run(100)
    assert bench.keys() == ["a"] and bench.entries == {}


def test_an_action_may_set_timers_and_they_come_in_order(bench):
    bench.then["a"] = lambda: bench.clocks.set("late", CPU, 50)
    bench.clocks.set("a", CPU, 100)
    bench.clocks.set("b", CPU, 100)
    bench.run(100)
    assert bench.keys() == ["a", "b", "late"]


def test_a_key_may_move_between_clocks(bench):
    bench.clocks.set("a", CPU, 100)
    bench.clocks.set("a", MONOTONIC, 100)
    assert bench.platform.cpu_alarms[f"cpu:{CPU}"] == -1
    bench.clocks.set("a", cpu_clock_id(6), 30)
    bench.run(100)
    assert bench.heard == [] and bench.entries["a"].clock_id == cpu_clock_id(6)
    bench.run(30, 6)
    assert bench.keys() == ["a"]


def test_prof_and_sched_are_one_clock(bench):
    assert explicit(cpu_clock_id(5, CPU_PROF)) == cpu_clock_id(5, CPU_SCHED)
    assert explicit(cpu_clock_id(5, CPU_PROF, thread=True)) == cpu_clock_id(5, CPU_SCHED, thread=True)
    assert explicit(cpu_clock_id(5, CPU_VIRT)) == cpu_clock_id(5, CPU_VIRT)
    bench.clocks.set("a", cpu_clock_id(5, CPU_PROF), 100)
    bench.clocks.set("b", CPU, 50)
    assert list(bench.platform.cpu_alarms) == [f"cpu:{CPU}"]


def test_the_host_s_account_may_go_back(bench):
    bench.platform.cpu[5] = 100
    bench.clocks.set("a", CPU, 200)
    bench.platform.cpu[5] = 90
    assert bench.clocks.now(CPU) == 100
    bench.clocks.cpu_alarm(CPU, 0)
    assert bench.platform.cpu_alarms == {f"cpu:{CPU}": 110}


def test_a_dead_clock_stands_still(bench):
    bench.clocks.set("a", CPU, 10)
    bench.platform.dead.add(5)
    bench.clocks.cpu_alarm(CPU, 0)
    bench.clocks.set("b", CPU, 5)
    with pytest.raises(Gone):
        bench.clocks.now(CPU)
    bench.clocks.cancel("a")
    bench.clocks.cancel("b")
    assert bench.heard == [] and bench.entries == {}


def test_the_runner_is_known_in_the_action_only(bench):
    seen = []
    bench.then["a"] = lambda: seen.append(bench.clocks.runner)
    bench.clocks.set("a", CPU, 10)
    bench.platform.cpu[5] = 10
    bench.clocks.cpu_alarm(CPU, 77)
    assert seen == [77] and bench.clocks.runner == 0


def test_an_exec_tells_the_host_anew(bench):
    bench.clocks.set("a", CPU, 1000)
    bench.platform.cpu[5] = 400
    bench.platform.cpu_alarms.clear()
    bench.clocks.executed(5)
    assert bench.platform.cpu_alarms == {f"cpu:{CPU}": 600}


def test_goes_on_after_a_restore(bench):
    bench.clocks.set("a", CPU, 100, 100)
    bench.clocks.set("s", MONOTONIC, 500)
    raw = msgspec.msgpack.encode(bench.entries)
    other = Bench(msgspec.msgpack.decode(raw, type=dict[str, TimerSetting]))
    assert other.platform.cpu_alarms == {}
    other.clocks.resume()
    assert other.platform.cpu_alarms == {f"cpu:{CPU}": 100} and other.platform.alarms[1] > 0
    other.run(100)
    assert other.heard == [("a", 1)]
    other.platform.cpu[5] = 450
    other.clocks.cpu_alarm(CPU, 0)
    assert other.heard[1:] == [("a", 3)] and other.entries["a"].next == 500


def test_ten_thousand_timers_on_a_clock_that_stands_still(bench):
    for n in range(10_000):
        bench.clocks.set(f"posix:5:{n}", CPU, 1000 + n)
    bench.platform.monotonic += 10**10
    bench.clocks.expired("other", 1)
    assert bench.keys() == ["other"] and bench.platform.told == []
    bench.run(1000)
    assert bench.keys() == ["other", "posix:5:0"]


SMALL = st.integers(1, 20)
NAMES = st.sampled_from("abcd")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), NAMES, SMALL, st.integers(0, 7)),
        st.tuples(st.just("cancel"), NAMES),
        st.tuples(st.just("run"), SMALL),
        st.tuples(st.just("idle"), SMALL),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(STEPS)
def test_agrees_with_a_list_of_deadlines(steps):
    """Whatever is set, cancelled and run: expirations are those of a loop over nanoseconds, first set first."""
    bench, model, order, heard, now = Bench(), {}, 0, [], 0
    for name, *arguments in steps:
        if name == "set":
            key, after, period = arguments
            order += 1
            model[key] = (now + after, order, period)
            bench.clocks.set(key, CPU, now + after, period)
        elif name == "cancel":
            model.pop(arguments[0], None)
            bench.clocks.cancel(arguments[0])
        elif name == "idle":
            bench.platform.monotonic += arguments[0]
        else:
            for _ in range(arguments[0]):
                now += 1
                for key in sorted((k for k, v in model.items() if v[0] == now), key=lambda k: model[k][1]):
                    order += 1
                    heard.append(key)
                    period = model[key][2]
                    if period:
                        model[key] = (now + period, order, period)
                    else:
                        del model[key]
            bench.run(arguments[0])
        assert bench.keys() == heard
        assert {key: setting.next for key, setting in bench.entries.items()} == {k: v[0] for k, v in model.items()}
