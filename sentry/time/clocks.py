"""Every armed timer of the kernel by its key, and the clock that it hangs on.

Keys are strings ("posix:5:0", "itimer:5:2", "rlimit:5"), so that the settings are plain data in the kernel's
state; what to do at an expiry is found by the key's first word (Kernel.on_timer). Clocks of
clock_gettime(2) are sampled and share the timer heap; CPU clocks, whose ids are negative, are the ticker's.

A timer's listener may not call back into a timer, but what an expiry leads to does so freely: a signal that
somebody waits for is taken at once, and its timer goes on. So the listener only notes the key, and its action
runs when the change of the timer, or the clock's whole advance, is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from trapline.sentry.kernel.state import TimerSetting
from trapline.sentry.time.clock import CpuTimer, SampledClock, SampledTimer, SyntheticClock
from trapline.sentry.time.ticker import Ticker

if TYPE_CHECKING:
    from trapline.sentry.protocol import Platform
    from trapline.sentry.time.timekeeper import Timekeeper
    from trapline.sentry.time.timer_heap import TimerHeap


class Clocks:
    """See the module. Setting and cancelling are O(log n)."""

    def __init__(
        self,
        entries: dict[str, TimerSetting],
        heap: TimerHeap,
        keeper: Timekeeper,
        platform: Platform,
        fire: Callable[[str, int], None],
    ) -> None:
        """`fire(key, expirations)` does what an expiry leads to.

        Nothing is asked of the platform yet: after a restore, call `resume`.
        """
        self._entries = entries
        self._heap = heap
        self._keeper = keeper
        self._fire = fire
        self._ticker = Ticker(entries, keeper, platform)
        self._sampled: dict[int, SampledClock] = {}
        self._timers: dict[str, SampledTimer | CpuTimer] = {}
        self._due: dict[str, int] = {}  # expired, in order, and not acted on yet
        self._firing = False
        #: The thread whose running made a CPU clock reach a deadline, while that is acted on; 0: not known.
        self.runner = 0
        for key in [key for key, setting in entries.items() if setting.clock_id < 0]:
            self._timer(key, entries[key].clock_id)

    def now(self, clock_id: int) -> int:
        """A clock of an explicit id, ns. In an action, what expired is not later than that, whatever the host's
        account of a running task says by then. Gone."""
        return self._ticker.now(clock_id) if clock_id < 0 else self._keeper.now(clock_id)

    def armed(self, key: str) -> bool:
        """Whether a key's timer will expire."""
        return key in self._entries

    def set(self, key: str, clock_id: int, deadline: int, period: int = 0, advance: bool = True) -> None:
        """Expire `key` at an absolute time of a clock, and every `period` ns from then on.

        Replaces what the key was set to. A CPU clock is brought up to date first, and a deadline that has
        gone is acted on before this returns; with `advance` False, which is for callers that cannot bear
        that, it is at the next alarm.
        """
        timer = self._timer(key, clock_id)
        fresh = clock_id < 0 and advance and self._ticker.advance(clock_id)
        # What the old setting came to just now is lost with it, as it would be had the alarm not come yet.
        timer.set(TimerSetting(deadline, period, clock_id), lambda: self._forget(key))
        self._settle(clock_id, fresh and not self._due)

    def cancel(self, key: str) -> None:
        """Forget a key; nothing happens when there is none."""
        self._due.pop(key, None)
        timer = self._timers.pop(key, None)
        if timer is None:
            self._heap.cancel(key)  # set there directly, as sleeps are
            return
        timer.destroy()
        if isinstance(timer, CpuTimer):
            self._ticker.tell(timer.synthetic.clock_id)

    def expired(self, key: str, expirations: int) -> None:
        """The heap's entry of a key came up."""
        timer = self._timers.get(key)
        if isinstance(timer, SampledTimer):
            timer.expired(expirations)
            self._settle()
        else:
            self._fire(key, expirations)

    def cpu_alarm(self, clock_id: int, runner: int) -> None:
        """The host's alarm of a CPU clock rang: read it and expire what is due on it. `runner`: which thread ran,
        if that is known."""
        self._ticker.rang(clock_id)
        self.runner = runner
        try:
            self._ticker.advance(clock_id)
            self._settle(clock_id)
        finally:
            self.runner = 0

    def executed(self, tgid: int) -> None:
        """See Ticker.executed."""
        self._ticker.executed(tgid)

    def resume(self) -> None:
        """After a restore: set the host's alarms."""
        self._heap.resume()
        for timer in self._timers.values():
            if isinstance(timer, CpuTimer):
                self._ticker.tell(timer.synthetic.clock_id)

    # -- timers
    def _timer(self, key: str, clock_id: int) -> SampledTimer | CpuTimer:
        clock = self._clock(clock_id)
        timer = self._timers.get(key)
        if timer is not None and timer.clock is not clock:
            self.cancel(key)
            timer = None
        if timer is None:
            timer = self._timers[key] = clock.new_timer(key, partial(self._note, key))
        return timer

    def _clock(self, clock_id: int) -> SampledClock | SyntheticClock:
        if clock_id < 0:
            return self._ticker.clock(clock_id)
        clock = self._sampled.get(clock_id)
        if clock is None:
            clock = self._sampled[clock_id] = SampledClock(clock_id, self._keeper, self._heap)
        return clock

    def _forget(self, key: str) -> None:
        self._due.pop(key, None)

    def _note(self, key: str, expirations: int) -> None:
        self._due[key] = self._due.get(key, 0) + expirations

    def _settle(self, clock_id: int = 0, fresh: bool = False) -> None:
        """Act on what expired, but not in the middle of another action: that one goes on with it."""
        if not self._firing:
            self._firing = True
            try:
                while self._due:
                    key = next(iter(self._due))
                    expirations = self._due.pop(key)
                    if not self._timers[key].armed:
                        del self._timers[key]  # one-shot; it may well be set again in the action
                    self._fire(key, expirations)
            finally:
                self._firing = False
        if clock_id < 0:
            self._ticker.tell(clock_id, fresh)
