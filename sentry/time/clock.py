"""Clocks and timers as interfaces, and the two kinds there are.

* A `SampledClock` goes on by itself and is read when somebody asks: a `SampledTimer` waits in the timer heap.
* A `SyntheticClock` stands still until it is advanced: its `CpuTimer`s expire *in* the call that advances it.

What holds for every timer: `set` is atomic, that is the old setting is brought up to now and notified, then
the new one applies. A listener runs at the expiry, in the middle of the timer's change, and may not call
back into a timer. A paused timer does not expire; what it missed comes, once, when it goes on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Callable
from typing import TYPE_CHECKING

from trapline.sentry.kernel.state import TimerSetting
from trapline.sentry.time.timer_setting import at

if TYPE_CHECKING:
    from trapline.sentry.time.timekeeper import Timekeeper
    from trapline.sentry.time.timer_heap import TimerHeap

#: Called at an expiry with the number of expirations since the last call, at least 1.
Listener = Callable[[int], None]


class Clock(ABC):
    """Something that timers can hang on."""

    @abstractmethod
    def now(self) -> int:
        """The time, ns."""

    @abstractmethod
    def new_timer(self, key: str, listener: Listener) -> Timer:
        """A disarmed timer. `key` names it in the kernel's state and is used for no other."""


class Timer(ABC):
    """One timer. Subclasses say how an expiry comes about."""

    def __init__(self, clock: Clock, key: str, listener: Listener) -> None:
        self.clock = clock
        self.key = key
        self._listener = listener
        self._setting = TimerSetting()
        self._paused = False
        self._destroyed = False
        self._notifying = False

    def get(self) -> TimerSetting:
        """The setting as of now; what expired until now is notified first. RuntimeError when paused."""
        self._usable()
        self._advance(self.clock.now())
        self._schedule()
        return self._setting

    def set(self, setting: TimerSetting, between: Callable[[], None] | None = None) -> TimerSetting:
        """Replace the setting and return the old one, as of now.

        `between` runs after the old setting's expirations were notified and before the new one applies. A
        new setting that has expired already is notified once, with its count. RuntimeError when paused.
        """
        self._usable()
        now = self.clock.now()
        self._advance(now)
        old = self._setting
        if between is not None:
            between()
        self._setting = setting
        self._advance(now)
        self._schedule()
        return old

    def pause(self) -> None:
        """Do not expire until `resume`. Again: no effect."""
        if not self._paused:
            self._paused = True
            self._unschedule()

    def resume(self) -> None:
        """Go on; what was missed is notified now. Again: no effect."""
        if self._paused:
            self._paused = False
            self.tick()

    def destroy(self) -> None:
        """No expiry comes any more."""
        self._destroyed = True
        self._unschedule()

    def tick(self) -> None:
        """The clock may have passed the next expiry."""
        if not (self._paused or self._destroyed):
            self._advance(self.clock.now())
            self._schedule()

    def _usable(self) -> None:
        if self._notifying:
            raise RuntimeError("a timer's listener calls back into it")
        if self._paused or self._destroyed:
            raise RuntimeError("the timer is paused or destroyed")

    def _advance(self, now: int) -> None:
        self._setting, expirations = at(self._setting, now)
        if expirations:
            self._notifying = True
            try:
                self._listener(expirations)
            finally:
                self._notifying = False

    @abstractmethod
    def _schedule(self) -> None:
        """Expire when the setting says."""

    @abstractmethod
    def _unschedule(self) -> None:
        """Do not expire."""


class SampledClock(Clock):
    """One of the sandbox's clocks that go on by themselves: MONOTONIC, REALTIME, BOOTTIME, TAI."""

    def __init__(self, clock_id: int, keeper: Timekeeper, heap: TimerHeap) -> None:
        self.clock_id = clock_id
        self.heap = heap
        self._keeper = keeper
        self._timers: dict[str, SampledTimer] = {}

    def now(self) -> int:
        """See Timekeeper.now."""
        return self._keeper.now(self.clock_id)

    def wall_time_until(self, deadline: int) -> int:
        """Host ns until the clock reaches `deadline`, if it is not set meanwhile; 0 when it has."""
        host, when = self._keeper.host_deadline(self.clock_id, deadline)
        return max(when - self._keeper.host_now(host), 0)

    def new_timer(self, key: str, listener: Listener) -> SampledTimer:
        """A timer in the heap. `expired` must be registered for the key's first word (Kernel.on_timer).

        When the heap holds the key already (a restore), the timer goes on with that setting.
        """
        timer = SampledTimer(self, key, listener)
        self._timers[key] = timer
        return timer

    def expired(self, key: str, expirations: int) -> None:
        """The heap's entry came up."""
        timer = self._timers.get(key)
        if timer is not None:
            timer.expired(expirations)

    def forget(self, key: str) -> None:
        """A timer was destroyed."""
        self._timers.pop(key, None)
        self.heap.cancel(key)


class SampledTimer(Timer):
    """A timer whose setting, while it runs, is the heap's entry of its key."""

    def __init__(self, clock: SampledClock, key: str, listener: Listener) -> None:
        super().__init__(clock, key, listener)
        self.sampled = clock
        self._setting = clock.heap.get(key) or TimerSetting(clock_id=clock.clock_id)

    def expired(self, expirations: int) -> None:
        """The heap has brought its entry up to date already."""
        self._setting = self.sampled.heap.get(self.key) or TimerSetting(clock_id=self.sampled.clock_id)
        self._notifying = True
        try:
            self._listener(expirations)
        finally:
            self._notifying = False

    def destroy(self) -> None:
        """No expiry comes any more."""
        super().destroy()
        self.sampled.forget(self.key)

    def _schedule(self) -> None:
        heap, setting = self.sampled.heap, self._setting
        if setting.next < 0:
            heap.cancel(self.key)
            return
        entry = heap.get(self.key)
        if entry is None or (entry.next, entry.period) != (setting.next, setting.period):
            heap.set(self.key, self.sampled.clock_id, setting.next, setting.period)

    def _unschedule(self) -> None:
        self.sampled.heap.cancel(self.key)


class SyntheticClock(Clock):
    """Stands still but for `store` and `add`, which expire its timers before they return.

    Whoever calls them drives the clock; to pause all of its timers, do not call them.
    """

    def __init__(self, now: int = 0) -> None:
        self._now = now
        self._queue: list[tuple[int, int, CpuTimer]] = []  # sorted by deadline, then by when it was set
        self._sequence = 0

    def now(self) -> int:
        """What was stored last."""
        return self._now

    def new_timer(self, key: str, listener: Listener) -> CpuTimer:
        """A timer that expires when the clock is advanced."""
        return CpuTimer(self, key, listener)

    def store(self, now: int) -> None:
        """The clock is `now`, and everything due expires, in order. It may be set back: nothing expires."""
        self._now = now
        limit = self._sequence
        while True:
            due = next((item for item in self._queue if item[1] <= limit), None)
            if due is None or due[0] > now:
                return
            self._queue.remove(due)
            due[2].queued = None
            due[2].tick()

    def add(self, span: int) -> None:
        """Advance by `span` ns."""
        self.store(self._now + span)

    def enqueue(self, timer: CpuTimer, deadline: int) -> tuple[int, int, CpuTimer]:
        """Expire a timer at `deadline`; timers of one deadline expire in the order of these calls."""
        self._sequence += 1
        item = (deadline, self._sequence, timer)
        insort(self._queue, item)
        return item

    def dequeue(self, item: tuple[int, int, CpuTimer]) -> None:
        """Undo `enqueue`."""
        self._queue.remove(item)


class CpuTimer(Timer):
    """A timer on a synthetic clock."""

    def __init__(self, clock: SyntheticClock, key: str, listener: Listener) -> None:
        super().__init__(clock, key, listener)
        self.synthetic = clock
        self.queued: tuple[int, int, CpuTimer] | None = None  # its place in the clock's queue

    def _schedule(self) -> None:
        if self.queued is not None and self.queued[0] == self._setting.next:
            return
        self._unschedule()
        if self._setting.next >= 0:
            self.queued = self.synthetic.enqueue(self, self._setting.next)

    def _unschedule(self) -> None:
        if self.queued is not None:
            self.synthetic.dequeue(self.queued)
            self.queued = None
