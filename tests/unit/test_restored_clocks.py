"""Clocks over a restore: MONOTONIC never goes back, whatever the wall clocks of the two hosts say."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.platform import restored_clocks
from trapline.platform.restored_clocks import HostTime, SavedClocks, SeedClocks
from trapline.sentry.kernel.state import ClockState

TIMES = st.integers(0, 1 << 61)
MONOTONIC, BOOTTIME, RAW = 5_000, 6_000, 2_000


def host(realtime):
    return HostTime(MONOTONIC, BOOTTIME, realtime)


@given(TIMES, TIMES, TIMES, st.booleans())
def test_monotonic_is_the_saved_one_and_what_has_passed(monotonic, saved_at, restored_at, continued):
    saved = SavedClocks(monotonic, monotonic + 5, 0, saved_at)
    planned = restored_clocks.plan(saved, ClockState(), host(restored_at), continued)
    passed = planned.monotonic - monotonic
    assert passed == (0 if continued else max(0, restored_at - saved_at))
    assert planned.boottime - saved.boottime == passed == planned.elapsed


def begun(state, saved, restored_at, continued=False):
    planned = restored_clocks.plan(saved, state, host(restored_at), continued)
    restored_clocks.begin(state, planned, saved, RAW, True)
    return planned


def test_the_time_of_boot_stays_unless_clocks_are_continued():
    saved = SavedClocks(monotonic=100, boottime=100, realtime=1_000_100, host_realtime=1_000_100)
    for continued, boot in ((False, 1_000_000), (True, 1_000_400)):
        state = ClockState(boot_realtime=1_000_000, frozen=30)
        planned = begun(state, saved, 1_000_500, continued)
        assert state.boot_realtime == boot
        assert state.monotonic_start == planned.monotonic == (100 if continued else 500)
        assert (state.monotonic_base, state.boottime_base, state.raw_base) == (MONOTONIC, BOOTTIME, MONOTONIC + RAW)
        assert state.frozen == 0, "the new time namespace starts right"


def test_a_wall_clock_that_was_set_stays_set():
    saved = SavedClocks(monotonic=100, boottime=100, realtime=3_000_100, host_realtime=1_000_100)
    state = ClockState(realtime_delta=2_000_000)
    begun(state, saved, 1_000_500)
    assert state.realtime_delta == 2_000_000
    assert state.realtime_start == 3_000_500


def test_at_another_rate_the_time_between_is_scaled_too():
    saved = SavedClocks(monotonic=100, boottime=100, realtime=1_000_100, host_realtime=1_000_100)
    state = ClockState(rate_num=1, rate_den=2)
    planned = begun(state, saved, 1_000_500)
    assert planned.monotonic == 300 and state.realtime_start == 1_000_300


def test_a_wall_clock_that_went_back_stands_still():
    saved = SavedClocks(monotonic=100, boottime=100, realtime=1_000_100, host_realtime=1_000_100)
    state = ClockState()
    planned = begun(state, saved, 900_000)
    assert planned.monotonic == 100 and state.boot_realtime == 899_900


@given(
    st.sampled_from([(1, 1), (1, 2), (3, 1)]),
    st.integers(0, 1 << 60),
    st.integers(0, 10**9),
    st.booleans(),
    st.sampled_from([0, 1, 7, 8, 9]),
)
def test_timers_that_are_made_anew_see_the_clocks_that_the_kernel_has(rate, elapsed, later, own_time, clock):
    """The seed's clocks, read some time after it was settled what they are, and the keeper's of the restored sandbox:
    with a time namespace, in which the host's clocks are others, and without."""
    num, den = rate
    state = ClockState(rate_num=num, rate_den=den, realtime_delta=77 if num == den else 0)
    saved = SavedClocks(monotonic=100, boottime=200, realtime=1_000_100, host_realtime=1_000_100)
    planned = restored_clocks.plan(saved, state, host(1_000_100 + elapsed), False)
    seed = SeedClocks(state, planned, saved, own_time)
    restored_clocks.begin(state, planned, saved, RAW, own_time)
    zero = planned.zero if own_time else (0, 0)
    inside = {0: 1_000_100 + elapsed + later, 1: MONOTONIC + later - zero[0], 7: BOOTTIME + later - zero[1]}
    wanted = {
        0: state.realtime_start + later * num // den,
        1: state.monotonic_start + later * num // den,
        7: state.boottime_start + later * num // den,
    }
    clock_of = {8: 0, 9: 7}.get(clock, clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "clock_gettime_ns", lambda number: inside[number])
        assert seed.now(clock) == wanted[clock_of]
