"""Clocks and timers as interfaces, and the two kinds there are.

* A `SampledClock` goes on by itself and is read when somebody asks: a `SampledTimer` waits in the timer heap.
* A `SyntheticClock` stands still until it is advanced: its `CpuTimer`s expire *in* the call that advances it.
  The CPU clocks of processes and threads are such clocks, advanced by the ticker (ticker.py).

What holds for every timer: `set` is atomic, that is the old setting is brought up to now and notified, then
the new one applies. A listener runs at the expiry, in the middle of the timer's change, and may not call
back into a timer. A paused timer does not expire; what it missed comes, once, when it goes on.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from trapline.sentry.kernel.state import TimerSetting
from trapline.sentry.time.timer_setting import at

if TYPE_CHECKING:
    from trapline.sentry.time.timekeeper import Timekeeper
    from trapline.sentry.time.timer_heap import TimerHeap

#: Called at an expiry with the number of expirations since the last call, at least 1.
Listener = Callable[[int], None]
#: Below this many cancelled items a synthetic clock's queue is never compacted.
STALE_MIN = 64


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

    @property
    def armed(self) -> bool:
        """Whether it will expire, as it was set last."""
        return self._setting.next >= 0

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

    def now(self) -> int:
        """See Timekeeper.now."""
        return self._keeper.now(self.clock_id)

    def wall_time_until(self, deadline: int) -> int:
        """Host ns until the clock reaches `deadline`, if it is not set meanwhile; 0 when it has."""
        host, when = self._keeper.host_deadline(self.clock_id, deadline)
        return max(when - self._keeper.host_now(host), 0)

    def new_timer(self, key: str, listener: Listener) -> SampledTimer:
        """A timer in the heap. Whoever expires the heap calls `SampledTimer.expired` for its key.

        When the heap holds the key already (a restore), the timer goes on with that setting.
        """
        return SampledTimer(self, key, listener)


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


#: A place in a synthetic clock's queue: deadline, when it was set, whose.
Queued = tuple[int, int, "CpuTimer"]


class SyntheticClock(Clock):
    """Stands still but for `store` and `add`, which expire its timers before they return.

    Whoever calls them drives the clock; to pause all of its timers, do not call them. Setting a timer and
    expiring it are O(log n): a cancelled item stays in the queue until it comes up, or until such items are
    the greater part of it.
    """

    def __init__(
        self, now: int = 0, entries: dict[str, TimerSetting] | None = None, clock_id: int = 0
    ) -> None:
        """`clock_id` is for who made it. `entries` takes the settings of armed timers by key, as plain data; a timer
        that is made for a key that is in there (a restore) goes on with that setting."""
        self.clock_id = clock_id
        self._now = now
        self.entries = {} if entries is None else entries
        self._queue: list[Queued] = []
        self._sequence = 0
        self._stale = 0

    def now(self) -> int:
        """What was stored last."""
        return self._now

    def next(self) -> int:
        """The earliest deadline of its timers; -1 when none is armed."""
        top = self._first()
        return -1 if top is None else top[0]

    def new_timer(self, key: str, listener: Listener) -> CpuTimer:
        """A timer that expires when the clock is advanced."""
        return CpuTimer(self, key, listener)

    def store(self, now: int) -> None:
        """The clock is `now`, and everything due expires, in order. It may be set back: nothing expires.

        This ends, since no timer is ever queued for a time that the clock has reached (`Timer.set`).
        """
        self._now = now
        while (top := self._first()) is not None and top[0] <= now:
            heapq.heappop(self._queue)
            top[2].queued = None
            top[2].tick()

    def add(self, span: int) -> None:
        """Advance by `span` ns."""
        self.store(self._now + span)

    def _first(self) -> Queued | None:
        """The earliest valid item; what was cancelled on top of it goes."""
        queue = self._queue
        while queue:
            top = queue[0]
            if top[2].queued is top:
                return top
            heapq.heappop(queue)
            self._stale -= 1
        return None

    def enqueue(self, timer: CpuTimer, deadline: int) -> Queued:
        """Expire a timer at `deadline`; timers of one deadline expire in the order of these calls."""
        self._sequence += 1
        item = (deadline, self._sequence, timer)
        heapq.heappush(self._queue, item)
        return item

    def dequeued(self) -> None:
        """A timer's `queued` item is its own no longer."""
        self._stale += 1
        if self._stale > STALE_MIN and self._stale * 2 > len(self._queue):
            self._queue[:] = [item for item in self._queue if item[2].queued is item]
            heapq.heapify(self._queue)
            self._stale = 0


class CpuTimer(Timer):
    """A timer on a synthetic clock."""

    def __init__(self, clock: SyntheticClock, key: str, listener: Listener) -> None:
        super().__init__(clock, key, listener)
        self.synthetic = clock
        self.queued: Queued | None = None  # its one valid item in the clock's queue
        self._setting = clock.entries.get(key) or self._setting
        self._schedule()

    def _schedule(self) -> None:
        setting = self._setting
        if setting.next < 0:
            self._unschedule()
            return
        self.synthetic.entries[self.key] = setting
        if self.queued is not None:
            if self.queued[0] == setting.next:
                return
            self.queued = None
            self.synthetic.dequeued()
        self.queued = self.synthetic.enqueue(self, setting.next)

    def _unschedule(self) -> None:
        self.synthetic.entries.pop(self.key, None)
        if self.queued is not None:
            self.queued = None
            self.synthetic.dequeued()
