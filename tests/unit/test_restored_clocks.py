"""Clocks over a restore: MONOTONIC never goes back, whatever the wall clocks of the two hosts say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trapline.platform import restored_clocks
from trapline.platform.restored_clocks import SavedClocks
from trapline.sentry.kernel.state import ClockState

TIMES = st.integers(0, 1 << 61)
BASES = (5_000, 6_000, 7_000)


@given(TIMES, TIMES, TIMES, st.booleans())
def test_monotonic_is_the_saved_one_and_what_has_passed(monotonic, saved_at, restored_at, continued):
    saved = SavedClocks(monotonic, monotonic + 5, 0, saved_at)
    planned = restored_clocks.plan(saved, ClockState(), restored_at, continued)
    passed = planned.monotonic - monotonic
    assert passed == (0 if continued else max(0, restored_at - saved_at))
    assert planned.boottime - saved.boottime == passed == planned.elapsed


def begun(state, saved, restored_at, continued=False):
    planned = restored_clocks.plan(saved, state, restored_at, continued)
    restored_clocks.begin(state, planned, saved, BASES, restored_at, True)
    return planned


def test_the_time_of_boot_stays_unless_clocks_are_continued():
    saved = SavedClocks(monotonic=100, boottime=100, realtime=1_000_100, host_realtime=1_000_100)
    for continued, boot in ((False, 1_000_000), (True, 1_000_400)):
        state = ClockState(boot_realtime=1_000_000, frozen=30)
        planned = begun(state, saved, 1_000_500, continued)
        assert state.boot_realtime == boot
        assert state.monotonic_start == planned.monotonic == (100 if continued else 500)
        assert (state.monotonic_base, state.boottime_base, state.raw_base) == BASES
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
