"""`pause --freeze-clocks`: MONOTONIC, BOOTTIME and all that hangs on them stand still while the guests do.

For the sentry's own clocks, timers and sleeps that is a matter of bases (Timekeeper.stood_still), and for guests'
clocks of the vDSO's page. But the sandbox's time namespace cannot be moved once somebody is in it, so what is the
host's goes on: timerfds are disarmed meanwhile and set anew with what was left, and from the first such pause on the
sandbox runs under trap_all, so that absolute MONOTONIC deadlines are converted as REALTIME's are once the wall clock
was moved (wall_clock.py). Relative timeouts of the host's own calls go on (docs/limits.md).
"""

from __future__ import annotations

import os
from time import CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, clock_gettime_ns
from typing import TYPE_CHECKING

from trapline.platform.wall_clock import WallClock
from trapline.platform.wall_timerfds import ABSTIME, MARK_SECONDS, NSEC, Info, WallTimerfds, info_of
from trapline.sentry.protocol import Gone
from trapline.sentry.time.timekeeper import BOOTTIME, BOOTTIME_ALARM, MONOTONIC
from trapline.sentry.time.timer_setting import TIME_MAX

if TYPE_CHECKING:
    from trapline.platform.engine import Engine

_CLOCKS = (CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW)
_STANDING = (MONOTONIC, BOOTTIME, BOOTTIME_ALARM)


def moment() -> list[int]:
    """Now, by each of the clocks that stand still, host ns."""
    return [clock_gettime_ns(clock) for clock in _CLOCKS]


class FrozenClocks:
    """From its making, when no guest runs any more, until `go_on`. `since`: from a moment before that, by the host's
    clocks, at which no guest ran any more either (`moment`)."""

    def __init__(self, engine: Engine, since: list[int] | None = None) -> None:
        self._engine = engine
        self._since = since or moment()
        self._before = moment()[0] - self._since[0]  # ns
        #: Duplicates of timerfds, what was left of them in ns, and how they were set.
        self._timerfds: list[tuple[int, int, Info]] = []
        self._walker = WallTimerfds(engine)
        for tid in {t.host_group: t.tid for t in list(engine.tracees.values())}.values():
            for fd in self._walker.timerfds_of(tid):
                self._disarm(tid, fd)

    def _disarm(self, tid: int, fd: int) -> None:
        try:
            duplicate = self._engine.descriptor(tid, fd)
        except (OSError, Gone):
            return
        info = info_of("self", duplicate)
        left = 0
        if info is not None and info.clock_id in _STANDING and info.mark < 0:
            left = self._host_left(duplicate)
            left += self._before if left else 0
        if not left or info is None:
            os.close(duplicate)  # another clock's, met before, disarmed, or expired for good
            return
        # Marked, so that it is known under its other descriptors; nobody can read it meanwhile.
        self._engine.timerfd_settime(duplicate, ABSTIME, TIME_MAX, MARK_SECONDS * NSEC + len(self._timerfds))
        self._timerfds.append((duplicate, left, info))

    def _host_left(self, duplicate: int) -> int:
        try:
            return self._engine.timerfd_gettime(duplicate)[0]
        except OSError:
            return 0

    def go_on(self) -> None:
        """The guests are about to: what stood still goes on from where it stood."""
        engine = self._engine
        spans = [now - since for now, since in zip(moment(), self._since, strict=True)]
        engine.kernel.keeper.stood_still(*spans)
        for duplicate, left, info in self._timerfds:
            # Periods that were not read: expired again at its first time, the host counts them from there.
            clock = CLOCK_MONOTONIC if info.clock_id == MONOTONIC else CLOCK_BOOTTIME
            when = clock_gettime_ns(clock) + left - info.ticks * info.interval
            try:
                engine.timerfd_settime(duplicate, info.flags | ABSTIME, max(when, 1), info.interval)
            except OSError:
                pass
            os.close(duplicate)
        self._timerfds = []
        if engine.wall is None:
            engine.wall = WallClock(engine)
        engine.wall.watch_all()
