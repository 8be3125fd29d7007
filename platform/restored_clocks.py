"""The clocks of a restored sandbox (DESIGN: monotonic never goes back)."""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from trapline.platform.wall_timerfds import CANCEL_ON_SET
from trapline.sentry.kernel.state import ClockState
from trapline.sentry.state.files import AnyFile, TimerFile
from trapline.sentry.time.timekeeper import REALTIME, REALTIME_ALARM


class SavedClocks(msgspec.Struct):
    """What the sandbox's clocks said at the save, and the host's REALTIME, ns."""

    monotonic: int = 0
    boottime: int = 0
    realtime: int = 0
    host_realtime: int = 0


class SeedClocks:
    """The sandbox's clocks as they are read in its time namespace, for timerfds that are made there."""

    def __init__(self, state: ClockState) -> None:
        self._state = state

    def now(self, clock_id: int) -> int:
        """ns. Those of the alarm clocks are those that they belong to (timerfd_create(2))."""
        clock = {8: 0, 9: 7}.get(clock_id, clock_id)
        return time.clock_gettime_ns(clock) + (self._state.realtime_delta if clock == 0 else 0)

    def span_from_host(self, span: int) -> int:
        return span * self._state.rate_num // self._state.rate_den

    def span_to_host(self, span: int) -> int:
        return -(-span * self._state.rate_den // self._state.rate_num)


class ClockPlan(msgspec.Struct):
    """What they say at the restore."""

    monotonic: int
    boottime: int
    elapsed: int  # sandbox ns that have passed meanwhile


def plan(saved: SavedClocks, state: ClockState, host_realtime: int, continued: bool) -> ClockPlan:
    """Saved + max(0, real time elapsed), or exactly as saved with `continued` (--clock-continue)."""
    passed = 0 if continued else max(0, host_realtime - saved.host_realtime)
    passed = passed * state.rate_num // state.rate_den
    return ClockPlan(saved.monotonic + passed, saved.boottime + passed, passed)


def steps_wall_clock(saved: SavedClocks, state: ClockState, planned: ClockPlan, host_realtime: int) -> bool:
    """Whether REALTIME goes on otherwise than MONOTONIC does, as after settimeofday(2): it is the host's, where the
    sandbox has no rate of its own."""
    return state.rate_num == state.rate_den and host_realtime - saved.host_realtime != planned.elapsed


def cancel_timerfds(files: Iterable[AnyFile]) -> None:
    """Those with TFD_TIMER_CANCEL_ON_SET: the wall clock is stepped (timerfd_create(2))."""
    for file in files:
        if isinstance(file, TimerFile) and file.settings & CANCEL_ON_SET and file.clock in (REALTIME, REALTIME_ALARM):
            file.cancelled = True


def begin(
    state: ClockState,
    planned: ClockPlan,
    saved: SavedClocks,
    bases: tuple[int, int, int],
    host_realtime: int,
    own_time: bool,
) -> None:
    """Relate the clocks to this host's. `bases`: the host's MONOTONIC, BOOTTIME and MONOTONIC_RAW when the sandbox's
    MONOTONIC (and BOOTTIME) were as planned.

    What the host's clocks stood still for (pause --freeze-clocks) is over: the new time namespace starts right.
    """
    state.monotonic_base, boottime_base, state.raw_base = bases
    state.monotonic_start, state.boottime_start = planned.monotonic, planned.boottime
    state.frozen = state.boottime_frozen = 0
    state.boottime_base = boottime_base if own_time else -1
    if state.rate_num == state.rate_den:
        realtime = host_realtime + state.realtime_delta
    else:
        realtime = saved.realtime + planned.elapsed
    state.realtime_start = realtime
    state.boot_realtime = realtime - planned.monotonic
