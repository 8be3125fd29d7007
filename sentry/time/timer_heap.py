"""The timer heap: what expires on clocks that go on by themselves, and the host alarms that drive it.

An entry has a key, a clock and a deadline on that clock in sandbox ns. Keys are strings ("sleep:7",
"posix:5:0"), so that the entries are plain data and the heap can be built again from them; what to do at an
expiry is found by the key's first word (Kernel.on_timer).

The clocks of clock_gettime(2) are driven by one absolute host alarm each for MONOTONIC and REALTIME. CPU clocks,
which have negative ids, are not here but with the ticker (ticker.py), though their entries are in the same
dictionary. The host is told only when an earliest deadline changes. Cancelled items stay in the heap until they
come up, or until they are the greater part of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trapline.sentry.kernel.state import TimerSetting
from trapline.sentry.time.timer_setting import at

if TYPE_CHECKING:
    from trapline.sentry.protocol import Platform
    from trapline.sentry.time.timekeeper import Timekeeper

#: Below this many cancelled items a heap is never compacted.
STALE_MIN = 64


class TimerHeap:
    """See the module. Set, cancel and expire are O(log n)."""

    def __init__(self, entries: dict[str, TimerSetting], keeper: Timekeeper, platform: Platform) -> None:
        """`entries` is the kernel's state and stays the authority; its order breaks ties.

        Nothing is asked of the platform yet: after a restore, call `resume`.
        """
        self._entries = entries
        self._keeper = keeper
        self._platform = platform
        self._heaps: dict[int, list[tuple[int, int, str]]] = {}  # by clock: (deadline, sequence, key)
        self._live: dict[str, int] = {}  # the sequence of each key's one valid item
        self._stale: dict[int, int] = {}
        self._sequence = 0
        self._told: dict[int, int] = {}  # by host clock: the deadline it is armed for
        self._held = 0
        for key, setting in entries.items():
            if setting.clock_id >= 0:
                self._push(key, setting)
        keeper.listeners.append(self.rearm)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> TimerSetting | None:
        """The entry of a key, not to be changed; None when there is none."""
        return self._entries.get(key)

    def set(self, key: str, clock_id: int, deadline: int, period: int = 0) -> None:
        """Expire `key` at an absolute time of a sandbox clock, and every `period` ns from then on.

        Replaces the key's entry. A deadline that has gone expires at the next alarm, never in here.
        """
        self._forget(key)
        setting = TimerSetting(deadline, period, clock_id)
        self._entries[key] = setting
        self._push(key, setting)
        self._tell()

    def cancel(self, key: str) -> None:
        """Forget a key; nothing happens when there is none."""
        if self._forget(key) is not None:
            self._tell()

    def expire(self) -> Iterator[tuple[str, int]]:
        """An alarm went off: (key, expirations) of everything due, in the order of deadlines.

        Entries of one time come in the order in which they were set. The caller may set and cancel between
        two of them: what is cancelled does not come any more, what is set comes at a later alarm.
        """
        now = {clock: self._keeper.now(clock) for clock in self._heaps}
        return self._due(now)

    def pause(self) -> None:
        """Tell the host nothing more, and disarm what it was told. Entries stay. Nests."""
        self._held += 1
        for clock in list(self._told):
            self._platform.set_alarm(clock, -1)
        self._told.clear()

    def resume(self) -> None:
        """Undo `pause`; with no pause before (after a restore), only arm."""
        self._held = max(self._held - 1, 0)
        self.rearm()

    def rearm(self) -> None:
        """The clocks were set: look at all deadlines anew."""
        self._tell()

    # -- items
    def _push(self, key: str, setting: TimerSetting) -> None:
        self._sequence += 1
        self._live[key] = self._sequence
        heap = self._heaps.setdefault(setting.clock_id, [])
        heapq.heappush(heap, (setting.next, self._sequence, key))

    def _forget(self, key: str) -> TimerSetting | None:
        setting = self._entries.pop(key, None)
        if setting is None:
            return None
        del self._live[key]
        clock = setting.clock_id
        stale = self._stale.get(clock, 0) + 1
        heap = self._heaps[clock]
        if stale > STALE_MIN and stale * 2 > len(heap):
            live = self._live
            heap[:] = [item for item in heap if live.get(item[2]) == item[1]]
            heapq.heapify(heap)
            stale = 0
        self._stale[clock] = stale
        return setting

    def _first(self, clock: int) -> tuple[int, int, str] | None:
        """The earliest valid item of a clock; what was cancelled on top of it goes."""
        heap = self._heaps.get(clock)
        while heap:
            top = heap[0]
            if self._live.get(top[2]) == top[1]:
                return top
            heapq.heappop(heap)
            self._stale[clock] -= 1
        return None

    def _due(self, now: dict[int, int]) -> Iterator[tuple[str, int]]:
        limit = self._sequence
        late: list[tuple[int, int, int, str]] = []
        self._held += 1
        try:
            while True:
                best: tuple[int, int, str, int] | None = None
                for clock, time in now.items():
                    top = self._first(clock)
                    while top is not None and top[1] > limit and top[0] <= time:
                        # Set since we began: aside, or who sets what is due would keep us here for ever.
                        heapq.heappop(self._heaps[clock])
                        late.append((clock, *top))
                        top = self._first(clock)
                    if top is None or top[0] > time:
                        continue
                    # Times of different clocks are compared by how long ago they were.
                    item = (top[0] - time, top[1], top[2], clock)
                    if best is None or item < best:
                        best = item
                if best is None:
                    return
                _, _, key, clock = best
                heapq.heappop(self._heaps[clock])
                setting, expirations = at(self._entries.pop(key), now[clock])
                del self._live[key]
                if setting.next >= 0:
                    self._entries[key] = setting
                    self._push(key, setting)
                yield key, expirations
        finally:
            for clock, when, sequence, key in late:
                if self._live.get(key) == sequence:
                    heapq.heappush(self._heaps[clock], (when, sequence, key))
                else:
                    self._stale[clock] -= 1  # cancelled meanwhile, while it was not in the heap
            self._held -= 1
            self._rang()
            self.rearm()

    # -- alarms
    def _rang(self) -> None:
        """Alarms that have gone off are armed no longer."""
        for clock, when in list(self._told.items()):
            if when <= self._keeper.host_now(clock):
                del self._told[clock]

    def _tell(self) -> None:
        if self._held:
            return
        wanted: dict[int, int] = {}
        for each in self._heaps:
            top = self._first(each)
            if top is not None:
                host, when = self._keeper.host_deadline(each, top[0])
                wanted[host] = min(when, wanted.get(host, when))
        for host in (1, 0):
            self._tell_one(host, wanted.get(host, -1))

    def _tell_one(self, clock: int, when: int) -> None:
        if self._told.get(clock, -1) == when:
            return
        if when < 0:
            del self._told[clock]
        else:
            self._told[clock] = when
        self._platform.set_alarm(clock, when)
