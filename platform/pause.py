"""Pause: every task stands at a ptrace stop that is not served until the sandbox goes on.

Each running task is interrupted (PTRACE_INTERRUPT), and one stop of each is taken from the host and kept, whatever it
is: a task that stands at a stop does not run, a new one stands at its first. Deaths are kept too, in their order, so
that who waits for them goes on no sooner. To go on, what was kept is served as if it had come just now: the engine
hides its own interruptions from calls in any case (stop_calls.interrupted). Tasks that stand already are left alone: in
a job-control stop, or held as a vfork's parent.

A checkpoint takes over from there: what was kept is served while nobody is let go on (quiesce.py). Where the sandbox
is to stand still afterwards it stays in that state, in which tasks stand as well, until it goes on.

Meanwhile no notification is received, so a call that waits for one is issued again by the host, and no timer is served:
those that expired are at the end, as in a frozen cgroup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trapline.platform import ptrace_calls as pt
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from trapline.platform.frozen_clocks import FrozenClocks
    from trapline.platform.quiesce import Quiescence
    from trapline.platform.session import Session

#: How long, in s, until those that have not stopped are looked at: whether they are where nobody can be interrupted.
_LOOK_AFTER = 0.02
#: States of a task that executes nothing and will stop before it does (proc(5)): in an uninterruptible wait, or dead.
_AS_GOOD = frozenset(b"DZX")


class Pauser:
    """See the module."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._engine = session.engine
        self._pump = session.pump
        self.asked = False  # somebody is pausing, or has
        self.paused = False
        self._kept: list[tuple[int, int, bytes]] = []  # host id, wait status, rusage
        self._running: set[int] = set()  # those that have not stopped yet
        self._stopped = trio.Event()
        self._clocks: FrozenClocks | None = None  # stand still meanwhile
        self._stood: list[int] | None = None  # since when they are to stand still again, after a checkpoint
        #: What holds the tasks since a checkpoint that was made meanwhile.
        self._resting: Quiescence | None = None

    async def pause(self, freeze_clocks: bool) -> None:
        """Until no task runs. The sandbox may have ended meanwhile."""
        self.paused = True
        self._pump.suspend(self._collect)
        self._running = set()
        for host, t in list(self._engine.tracees.items()):
            if t.listening or t.holding is not None:
                continue
            try:
                pt.call(pt.PTRACE_INTERRUPT, host)
            except (Gone, OSError):
                continue  # it is dead
            self._running.add(host)
        while self._running and self.paused:
            self._stopped = trio.Event()
            with trio.move_on_after(_LOOK_AFTER):
                await self._stopped.wait()
            self._running -= {host for host in self._running if _state(host) in _AS_GOOD}
        if freeze_clocks and self.paused:
            from trapline.platform.frozen_clocks import FrozenClocks

            self._clocks = FrozenClocks(self._engine)

    def _collect(self, limit: int, named: tuple[int, ...]) -> int:
        """In place of serving stops."""
        taken = 0
        self._engine.sources.unsure = False
        while taken < limit:
            host, status = pt.wait_any()
            if host <= 0:
                break
            taken += 1
            dead = status & 0xFF != 0x7F
            self._kept.append((host, status, pt.last_rusage() if dead else b""))
            self._running.discard(host)
            if dead and host in self._session.ends_with():
                self.resume()  # there is nothing left to pause
                break
        if not self._running:
            self._stopped.set()
        return taken

    # -- a checkpoint meanwhile
    def hand_over(self) -> Quiescence | None:
        """A checkpoint begins, of what is paused: time goes on for that long. What holds the tasks already."""
        if self._clocks is not None:
            from trapline.platform.frozen_clocks import moment

            self._clocks.go_on()
            self._clocks, self._stood = None, moment()
        resting, self._resting = self._resting, None
        return resting

    def kept(self) -> list[tuple[int, int, bytes]]:
        """The stops that were not served, for whoever serves them."""
        kept, self._kept = self._kept, []
        return kept

    def keep(self, resting: Quiescence) -> None:
        """The checkpoint is over, and the pause goes on."""
        self._resting = resting
        if self._stood is not None:
            from trapline.platform.frozen_clocks import FrozenClocks

            self._clocks, self._stood = FrozenClocks(self._engine, self._stood), None

    def resume(self) -> None:
        """Serve what was kept."""
        self.paused = self.asked = False
        if self._clocks is not None:
            self._clocks.go_on()
            self._clocks = None
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.go_on()
            return
        self._pump.go_on()
        kept, self._kept = self._kept, []
        for host, status, rusage in kept:
            self._engine.serve_stop(host, status, rusage)
            if self._engine.self_poked:
                self._engine.serve_self_poked()
        self._stopped.set()
        while self._pump.walk():
            pass


def _state(host: int) -> int:
    try:
        with open(f"/proc/{host}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0][0]
    except OSError:
        return b"X"[0]
