"""Alarms on guests' CPU time: exact where perf events are allowed, else by POSIX timers of the host's.

Far from its deadline an alarm is a POSIX timer on the process's clock, which costs two calls and a tick's
precision: most alarms are set anew or given up long before they come. What is left then is measured by
task-clock events (task_clock_events.py), one on each thread that counts. They are made when they are needed and
for few threads, since the first one on a machine waits some milliseconds for all its CPUs, and each has two
descriptors.

A process of several threads reaches its deadline by any mixture of them: each thread's event rings after its share,
and a POSIX timer catches the case that many threads used less than that each. An alarm may come early: whoever set
it looks at the clock and sets it anew for what is left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from trapline.platform.host_cpu_timers import SIGNAL as CPU_TIMER
from trapline.platform.host_cpu_timers import HostCpuTimers
from trapline.platform.task_clock_events import SIGNAL as CPU_EVENT
from trapline.platform.task_clock_events import TRUSTED, TaskClock
from trapline.sentry.protocol import Gone

_MONOTONIC_COARSE = 6
_TICK = round(time.clock_getres(_MONOTONIC_COARSE) * 1e9)
#: How much earlier than the deadline a POSIX timer is set: it comes up to a tick late, the account it goes by may be
#: another one behind, and on a loaded machine the sentry waits for a CPU meanwhile.
MARGIN = 5 * _TICK
#: ns of CPU from which on a deadline is far.
FAR = min(2 * MARGIN, TRUSTED // 2)
#: Threads of a process that get events; with more, the process has a POSIX timer alone.
THREADS = 16
#: Threads with events in all, and how many of them may be kept for the next time while nothing waits for them.
LIMIT, IDLE = 128, 8
_NONE: dict[int, TaskClock] = {}


class CpuAlarms:
    """By key. Ids are the host's."""

    def __init__(self, account: Callable[[int], int]) -> None:
        """`account(thread)`: what the host says of a thread's CPU time, ns. Gone."""
        #: Whether perf events may be used.
        self.events = True
        self._account = account
        self._timers = HostCpuTimers()
        self._clocks: dict[int, dict[int, TaskClock]] = {}  # by process and thread
        self._by_alarm: dict[int, TaskClock] = {}  # by descriptor
        self._counted: dict[str, list[TaskClock]] = {}  # by key: the threads whose events count for it
        self._whole: dict[str, int] = {}  # of these the keys of whole processes, and which
        self._idle: dict[int, TaskClock] = {}  # by thread: nothing waits for them; the last used one is last
        self._cpus = len(os.sched_getaffinity(0))

    def set(self, key: str, group: int, threads: list[int], whole: bool, after: int) -> None:
        """Ring once these threads of a process used `after` ns more CPU. `whole`: they are all that it has.

        OSError when the process is dead.
        """
        self._uncount(key)
        clocks = self._find(group, threads) if self.events and after <= FAR else []
        if not clocks:
            self._timers.set(key, group, max(after - MARGIN, 1) if self.events and after > FAR else after)
            return
        if len(clocks) > 1 or not clocks[0].in_kernel:
            self._timers.set(key, group, after)
        else:
            self._timers.cancel(key)
        self._counted[key] = clocks
        if whole:
            self._whole[key] = group
        share = after // min(len(clocks), self._cpus)
        for clock in clocks:
            self._idle.pop(clock.host, None)
            clock.want(key, share)
        self._trim()

    def cancel(self, key: str) -> None:
        """Forget an alarm; one that is on its way is not heard any more."""
        self._timers.cancel(key)
        self._uncount(key)
        self._trim()

    def rang(self, number: int, value: int) -> list[tuple[str, int]]:
        """A signal of an alarm came (see signal_descriptor.py): whose alarms they may be, and which thread ran, 0 if
        that is not known. They are set no longer."""
        if number == CPU_TIMER:
            key = self._timers.key(value)
            found = [(key, 0)] if key is not None else []
        elif number == CPU_EVENT:
            clock = self._by_alarm.get(value)
            if clock is None:
                return []
            clock.rang()
            found = [(key, clock.host) for key in clock.wanted]
        else:
            # The queue of signals was full: any of them may have come.
            for clock in self._by_alarm.values():
                clock.rang()
            found = [(key, 0) for key in self._counted]
        for key, _ in found:
            self._uncount(key)
        return found

    # -- threads
    def clocks(self, group: int) -> dict[int, TaskClock]:
        """The threads of a process that have events."""
        return self._clocks.get(group, _NONE)

    def of_process(self, group: int) -> list[str]:
        """The alarms that would not count a thread of this process that has just begun."""
        return [key for key, other in self._whole.items() if other == group] if self._whole else []

    def left(self, group: int, host: int) -> None:
        """A thread has ended."""
        clock = self.clocks(group).get(host)
        if clock is not None:
            self._close(clock)

    def executed(self, group: int) -> None:
        """A process executed a program: its threads' ids have changed."""
        for clock in list(self.clocks(group).values()):
            self._close(clock)

    # -- events
    def _find(self, group: int, threads: list[int]) -> list[TaskClock]:
        """The events of these threads; empty when one cannot have one."""
        if len(threads) > THREADS:
            return []
        found = []
        for host in threads:
            clock = self.clocks(group).get(host) or self._open(group, host)
            if clock is None:
                return []
            found.append(clock)
        return found

    def _open(self, group: int, host: int) -> TaskClock | None:
        if len(self._by_alarm) >= LIMIT:
            if not self._idle:
                return None
            self._close(next(iter(self._idle.values())))
        try:
            clock = TaskClock(host, group, self._account(host))
        except (OSError, Gone):
            return None
        self._clocks.setdefault(group, {})[host] = clock
        self._by_alarm[clock.alarm] = clock
        self._idle[host] = clock
        return clock

    def _uncount(self, key: str) -> None:
        self._whole.pop(key, None)
        for clock in self._counted.pop(key, ()):
            clock.forget(key)
            if not clock.wanted:
                self._idle[clock.host] = clock

    def _trim(self) -> None:
        while len(self._idle) > IDLE:
            self._close(next(iter(self._idle.values())))

    def _close(self, clock: TaskClock) -> None:
        for key in clock.wanted:
            counted = self._counted[key]
            counted.remove(clock)
            if not counted:
                del self._counted[key]
                self._whole.pop(key, None)
        self._idle.pop(clock.host, None)
        del self._by_alarm[clock.alarm]
        threads = self._clocks[clock.group]
        del threads[clock.host]
        if not threads:
            del self._clocks[clock.group]
        clock.close()
