"""The ticker: advances the CPU clocks that timers hang on, by what the host measured.

There are three clocks of a process and of a thread (user; user and system, which Linux calls PROF and SCHED
and of which the host's account makes no difference to us). One exists here only while a timer hangs on it,
and moves only in `advance`: when the host's alarm for its earliest deadline rang, and whenever a timer on it
is set. So nothing is periodic, and what does not run costs nothing. Timers expire *in* the advance.

The host counts a process's ended threads in its clock, so they stay in ours. An advance never goes back,
though two of the host's readings may (a running task's account is brought up to date only now and then).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel.state import TimerSetting
from trapline.sentry.protocol import Gone
from trapline.sentry.time.clock import SyntheticClock
from trapline.sentry.time.timekeeper import CPU_PROF, CPU_SCHED, CPU_VIRT, cpu_clock_id

if TYPE_CHECKING:
    from trapline.sentry.protocol import Platform
    from trapline.sentry.time.timekeeper import Timekeeper


def explicit(clock_id: int) -> int:
    """The id under which a CPU clock is kept: SCHED for PROF."""
    return clock_id | CPU_SCHED if clock_id & 3 == CPU_PROF else clock_id


class Ticker:
    """See the module. Clocks are named by their explicit ids (timekeeper.py)."""

    def __init__(self, entries: dict[str, TimerSetting], keeper: Timekeeper, platform: Platform) -> None:
        """`entries` is the kernel's state; the clocks' timers keep their settings there."""
        self._entries = entries
        self._keeper = keeper
        self._platform = platform
        self._clocks: dict[int, SyntheticClock] = {}
        self._told: dict[int, int] = {}  # the deadline that the host's alarm of a clock is set for

    def clock(self, clock_id: int) -> SyntheticClock:
        """The clock of this id. A new one stands at 0 until it is advanced."""
        ident = explicit(clock_id)
        found = self._clocks.get(ident)
        if found is None:
            found = self._clocks[ident] = SyntheticClock(0, self._entries, ident)
        return found

    def advance(self, clock_id: int) -> bool:
        """Read the host's account and expire what is due. False when the task is dead: its clock stands still."""
        ident = explicit(clock_id)
        clock = self._clocks.get(ident)
        if clock is None:
            return False
        try:
            now = self._keeper.now(ident)
        except Gone:
            return False
        if now > clock.now():
            clock.store(now)
        return True

    def now(self, clock_id: int) -> int:
        """The host's account, but not less than what the clock was advanced to. Gone."""
        now, clock = self._keeper.now(clock_id), self._clocks.get(explicit(clock_id))
        return now if clock is None else max(now, clock.now())

    def rang(self, clock_id: int) -> None:
        """The host's alarm of this clock is set no longer."""
        self._told.pop(explicit(clock_id), None)

    def tell(self, clock_id: int, fresh: bool = False) -> None:
        """Set the host's alarm for the clock's earliest deadline, if it is not set for one as early. `fresh`: the
        clock was advanced just now, so the host need not be asked again how far it is.

        An alarm that comes too early, since what it was set for was cancelled, finds nothing due and is set
        anew. A clock that nothing hangs on any more is given up, and so is its alarm.
        """
        ident = explicit(clock_id)
        clock = self._clocks.get(ident)
        if clock is None:
            return
        deadline, told = clock.next(), self._told.get(ident, -1)
        if deadline < 0:
            del self._clocks[ident]
            self._told.pop(ident, None)
            self._alarm(ident, -1)
        elif not 0 <= told <= deadline:
            self._told[ident] = deadline
            self._alarm(ident, deadline, clock.now() if fresh else -1)

    def executed(self, tgid: int) -> None:
        """A process executed a program: of its threads only one is left, under the leader's id, and the host's
        alarms of its clocks are to be set for that one."""
        if not self._told:
            return
        for kind in (CPU_VIRT, CPU_SCHED):
            ident = cpu_clock_id(tgid, kind)
            if self._told.pop(ident, -1) >= 0:
                self.tell(ident)

    def _alarm(self, ident: int, deadline: int, now: int = -1) -> None:
        thread, task, _ = self._keeper.cpu_clock(ident)
        try:
            if deadline >= 0 and now < 0:
                now = self._keeper.now(ident)
            span = max(deadline - now, 1) if deadline >= 0 else -1
            self._platform.set_cpu_alarm(f"cpu:{ident}", task, not thread, span)
        except Gone:
            self._told.pop(ident, None)  # nothing on a dead clock ever expires
