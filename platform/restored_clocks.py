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


class ClockPlan(msgspec.Struct):
    """What the clocks say at one moment of the restore, ns; `host_*`: what the host's said then.

    All that is made anew is counted from that moment. What goes wrong otherwise: what the restore takes would pass on
    REALTIME and not on MONOTONIC, and a timer of the one would come late by the other.
    """

    monotonic: int
    boottime: int
    elapsed: int  # sandbox ns that have passed since the save
    host_monotonic: int
    host_boottime: int
    host_realtime: int

    @property
    def zero(self) -> tuple[int, int]:
        """The host's MONOTONIC and BOOTTIME when the sandbox's were 0, for its time namespace."""
        return self.host_monotonic - self.monotonic, self.host_boottime - self.boottime


class HostTime(msgspec.Struct):
    """The host's clocks at one moment, ns."""

    monotonic: int
    boottime: int
    realtime: int

    @classmethod
    def now(cls) -> HostTime:
        read = time.clock_gettime_ns
        return cls(read(time.CLOCK_MONOTONIC), read(time.CLOCK_BOOTTIME), read(time.CLOCK_REALTIME))


def plan(saved: SavedClocks, state: ClockState, host: HostTime, continued: bool) -> ClockPlan:
    """Saved + max(0, real time elapsed), or exactly as saved with `continued` (--clock-continue)."""
    passed = 0 if continued else max(0, host.realtime - saved.host_realtime)
    passed = passed * state.rate_num // state.rate_den
    return ClockPlan(
        saved.monotonic + passed, saved.boottime + passed, passed, host.monotonic, host.boottime, host.realtime
    )


class SeedClocks:
    """The sandbox's clocks for timerfds that are made anew, in its time namespace where it has one (`own_time`)."""

    def __init__(self, state: ClockState, planned: ClockPlan, saved: SavedClocks, own_time: bool) -> None:
        self._state = state
        host = planned.host_monotonic, planned.host_boottime
        monotonic, boottime = (planned.monotonic, planned.boottime) if own_time else host
        realtime = _realtime(state, planned, saved)
        #: By clock: what can be read here at one moment, and what the sandbox's says then.
        self._at = {
            time.CLOCK_MONOTONIC: (monotonic, planned.monotonic),
            time.CLOCK_BOOTTIME: (boottime, planned.boottime),
            time.CLOCK_REALTIME: (planned.host_realtime, realtime),
        }

    def now(self, clock_id: int) -> int:
        """ns. Those of the alarm clocks are those that they belong to (timerfd_create(2))."""
        clock = {8: 0, 9: 7}.get(clock_id, clock_id)
        here, inside = self._at[clock]
        return inside + self.span_from_host(time.clock_gettime_ns(clock) - here)

    def span_from_host(self, span: int) -> int:
        return span * self._state.rate_num // self._state.rate_den

    def span_to_host(self, span: int) -> int:
        return -(-span * self._state.rate_den // self._state.rate_num)


def steps_wall_clock(saved: SavedClocks, state: ClockState, planned: ClockPlan) -> bool:
    """Whether REALTIME goes on otherwise than MONOTONIC does, as after settimeofday(2): it is the host's, where the
    sandbox has no rate of its own."""
    return state.rate_num == state.rate_den and planned.host_realtime - saved.host_realtime != planned.elapsed


def cancel_timerfds(files: Iterable[AnyFile]) -> None:
    """Those with TFD_TIMER_CANCEL_ON_SET: the wall clock is stepped (timerfd_create(2))."""
    for file in files:
        if isinstance(file, TimerFile) and file.settings & CANCEL_ON_SET and file.clock in (REALTIME, REALTIME_ALARM):
            file.cancelled = True


def begin(state: ClockState, planned: ClockPlan, saved: SavedClocks, raw: int, own_time: bool) -> None:
    """Relate the clocks to this host's. `raw`: by how much its MONOTONIC_RAW is before its MONOTONIC.

    What the host's clocks stood still for (pause --freeze-clocks) is over: the new time namespace starts right.
    """
    state.monotonic_base, state.raw_base = planned.host_monotonic, planned.host_monotonic + raw
    state.monotonic_start, state.boottime_start = planned.monotonic, planned.boottime
    state.frozen = state.boottime_frozen = 0
    state.boottime_base = planned.host_boottime if own_time else -1
    state.realtime_start = _realtime(state, planned, saved)
    state.boot_realtime = state.realtime_start - planned.monotonic


def _realtime(state: ClockState, planned: ClockPlan, saved: SavedClocks) -> int:
    if state.rate_num == state.rate_den:
        return planned.host_realtime + state.realtime_delta
    return saved.realtime + planned.elapsed
