"""The sentry's loop: it serves notifications, stops and timers in bounded batches.

One trio wait costs more than a whole emulated call, so after something was served the loop looks for the
next event itself, for LINGER s, before it gives the thread back; BATCH_NS bounds how long others wait.

While there is nothing else to do in the thread, the loop waits by itself: `import trio` would be more than half
of what a short program costs. The first async function that is spawned moves it into trio, for good.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from trapline.platform.engine import Engine
from trapline.platform.host_cpu_timers import SIGNAL as CPU_TIMER
from trapline.platform.notifications import Listener
from trapline.platform.seccomp import SeccompEngine
from trapline.platform.signal_descriptor import SI_KERNEL, SignalDescriptor
from trapline.platform.task_clock_events import SIGNAL as CPU_EVENT

if TYPE_CHECKING:
    import trio

LINGER = 0.001
REST = 0.05  # s
#: So many seconds async work may go on after the guests have ended.
GRACE = 1.0
_READABLE, _BROKEN = select.EPOLLIN, select.EPOLLHUP | select.EPOLLERR
BATCH_NS = 5_000_000
#: How many stops are served before notifications and timers have their turn.
STOPS = 256


class Pump:
    """Waits for everything that concerns one sandbox."""

    def __init__(self, engine: Engine, signals: SignalDescriptor) -> None:
        self.engine = engine
        self._guests: set[int] = set()  # descriptors by which guests and their timers are served
        self._collect: Callable[[int, tuple[int, ...]], int] | None = None
        self.signals = signals
        self.wakeups = 0
        self.batches = 0
        self.done = False
        #: More stops may be waiting than were served at once: no SIGCHLD tells of them again.
        self.more_stops = False
        #: A signal of those that somebody sends to trapline, and whether it was the host itself.
        self.on_signal: Callable[[int, bool], None] = lambda number, by_host: None
        #: Called in trio once the guests have ended.
        self.at_end: Callable[[], None] = lambda: None
        #: Called after each round of stops, when nothing is in progress.
        self.after_stops: Callable[[], None] = lambda: None
        #: When the batch began, host ns, and the watchdog's clock, which runs from then until the loop waits.
        self.began = 0
        self._end = 0  # of the batch, host ns
        self.arm: Callable[[], object] = lambda: None
        self.disarm: Callable[[], object] = lambda: None
        #: Async work beside the guests that has not begun yet, and where it runs once we are in trio.
        self._spawned: list[Callable[[], Awaitable[None]]] = []
        self._nursery: trio.Nursery | None = None
        #: What is done, a step at a time, whenever nobody has wanted anything for REST; last step first.
        self._leisure: list[Callable[[], object]] = []
        self._poller = select.epoll()
        self._serve: dict[int, Callable[[], None]] = {}
        self._broken: dict[int, Callable[[], None]] = {}
        self.add(signals.fd, self._signals)
        for fd in engine.open_alarms().values():
            self.add(fd, self._make_alarm(fd))
            self._guests.add(fd)

    def listen(self, listener: Listener) -> None:
        """Serve the calls that come by a listener, until the last task under its filter is gone."""
        assert isinstance(self.engine, SeccompEngine)
        self.add(listener.fd, partial(self.engine.serve_notification, listener), listener.close)
        self._guests.add(listener.fd)

    def add(self, fd: int, serve: Callable[[], None], broken: Callable[[], None] = lambda: None) -> None:
        """Call `serve` whenever a descriptor can be read; `broken` once it is at its end, and removed."""
        self._serve[fd] = serve
        self._broken[fd] = broken
        self._poller.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Stop watching a descriptor."""
        self._broken.pop(fd, None)
        self._guests.discard(fd)
        if self._serve.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def _make_alarm(self, fd: int) -> Callable[[], None]:
        def alarm() -> None:
            try:
                os.read(fd, 8)
            except BlockingIOError:
                return
            except OSError:
                # ECANCELED: the host's wall clock was stepped. Deadlines are looked at anew all the same.
                self.engine.kernel.keeper.host_clock_stepped()
            self.engine.kernel.timers_expired()

        return alarm

    def _signals(self) -> None:
        named: tuple[int, ...] = ()
        for number, code, value in self.signals.read():
            if number == signal.SIGCHLD:
                named += (value,)
            elif number in (CPU_TIMER, CPU_EVENT, signal.SIGIO):
                self.engine.cpu_alarm_rang(number, value)
            else:
                self.on_signal(number, code == SI_KERNEL)
        if named:
            self._stops(named)

    def _stops(self, named: tuple[int, ...] = ()) -> int:
        served = (self._collect or self.engine.serve_stops)(STOPS, named)
        self.more_stops = served >= STOPS
        self.after_stops()
        return served

    def watches(self, fd: int) -> bool:
        """Whether a descriptor is served."""
        return fd in self._serve

    def await_room(self, fd: int, on: bool) -> None:
        """Serve a descriptor also when it can be written to."""
        self._poller.modify(fd, select.EPOLLIN | (select.EPOLLOUT if on else 0))

    def suspend(self, collect: Callable[[int, tuple[int, ...]], int]) -> None:
        """Serve no guest until `go_on`: stops go to `collect`, calls and timers wait."""
        self._collect = collect
        for fd in self._guests:
            self._poller.modify(fd, 0)

    def go_on(self) -> None:
        """Serve guests again."""
        self._collect = None
        for fd in self._guests:
            self._poller.modify(fd, select.EPOLLIN)

    def walk(self) -> int:
        """Look for stops that no SIGCHLD told of; how many there were."""
        self.engine.sources.walk()
        return self._stops()

    @property
    def _must_look(self) -> bool:
        """There may be stops of which no event will tell."""
        return self.more_stops or self.engine.sources.unsure

    def spawn(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run an async function beside the guests; it is cancelled a second after they have ended.

        Call it in the sentry's thread: from something that the loop serves, or before `run`.
        """
        if self._nursery is not None:
            self._nursery.start_soon(function)
        else:
            self._spawned.append(function)

    def at_leisure(self, steps: list[Callable[[], object]]) -> None:
        """Do these one after the other, each when nobody has wanted anything for a while; not once we are in trio,
        where whoever wants them has come."""
        self._leisure = steps[::-1]

    def run(self) -> None:
        """Until `done`."""
        # What start-up made lives as long as we do: the collector need not look at it, nor at every 700th
        # tuple. The kernel's state has no cycles.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        self.began = time.monotonic_ns()
        self.arm()
        self._signals()
        self._stops()
        self.disarm()
        while not self.done:
            if self._spawned:
                import trio

                trio.run(self._run_in_trio)
                return
            self.wakeups += 1
            self.batch(0 if self._must_look else REST if self._leisure else None)
            self.disarm()

    async def _run_in_trio(self) -> None:
        import trio

        self._leisure = []
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for function in self._spawned:
                nursery.start_soon(function)
            while not self.done:
                if self._must_look:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self._poller.fileno())
                self.wakeups += 1
                self.batch(0)
                self.disarm()
            self.at_end()
            # Whoever waits for the end, and was told of it just now, has so long to pass that on.
            nursery.cancel_scope.deadline = trio.current_time() + GRACE

    def batch(self, timeout: float | None) -> None:
        """Serve what is there, and what comes within LINGER of it, for BATCH_NS at most.

        The first is waited for up to `timeout` seconds; None: for ever, and that does not count. While nobody
        else wants the thread there is nobody to give it back to, so the rest is waited for without a limit: a
        timer that the host arms and cancels at every wait costs 0.8 us of a call's 12.
        """
        poll, serve, engine = self._poller.poll, self._serve, self.engine
        sources = engine.sources
        self._end = 0
        self.batches += 1
        while not self.done:
            events = poll(0 if self.more_stops else timeout, 8)
            if not self._end:
                self.began = time.monotonic_ns()
                self._end = self.began + BATCH_NS
                self.arm()
            if self.more_stops:
                self.walk()
            elif not events and not (sources.unsure and self.walk()):
                if timeout == REST and self._leisure:
                    self._leisure.pop()()
                return
            for fd, flags in events:
                action = serve.get(fd)
                if action is None:
                    continue
                if flags & _BROKEN and not flags & _READABLE:
                    broken = self._broken.get(fd)
                    self.remove(fd)
                    if broken is not None:
                        broken()
                    continue
                action()
            if engine.held_back:
                engine.serve_held_back()
            timeout = LINGER if sources.unsure or self._spawned else REST if self._leisure else None
            if time.monotonic_ns() > self._end:
                return

    def rest(self) -> None:
        """Nothing is in progress: the batch begins anew with the next event, and its watchdog too."""
        self.disarm()
        self._end = 0

    def close(self) -> None:
        """Close the poller."""
        self._poller.close()
