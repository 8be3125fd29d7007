"""For a checkpoint: every task comes to rest, with no call of the sentry's in progress.

A pause (pause.py) only keeps stops unserved; here they are served until each task stands at an event stop, or in a
job-control stop, or held as a vfork's parent. Then everything that a task was about is either in its registers, as the
host left them for its restart, or in the kernel's state, which is plain data:

* a call that an owned handler answers is answered and its result is in the registers,
* one that waits there has its record (`CallRecord`), and the registers say that the host executes pause(2) for it,
* one that waits in the host was interrupted: -ERESTART* and the number,
* a signal that the host was about to deliver has its frame, or is in the kernel's queue.

Whoever is resumed on the way is interrupted first, so that it comes back at once, before another instruction of the
guest's; an interrupt is no signal, and no call returns EINTR for it (stop_calls.py). Serving may wake others that are
at rest already (a death, its SIGCHLD and a parent's wait4): they are looked at again until none has anything left.

Deadlines are not served meanwhile, nor are notifications: those that were not received yet are interrupted.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

from trapline.platform import ptrace_calls as pt
from trapline.platform import stop_calls
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from trapline.platform.session import Session
    from trapline.platform.tracee import Tracee

#: How long, in s, until those that have not stopped are looked at: whether they are dead.
_LOOK_AFTER = 0.02
_EVENT_STOP = pt.EVENT_STOP << 16 | signal.SIGTRAP << 8 | 0x7F


class TookTooLong(Exception):
    """Some task could not be brought to rest in time; its text says which."""


class Quiescence:
    """From `begin` until `go_on` the sandbox's tasks are at rest."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._engine = session.engine
        self._pump = session.pump
        self.active = False
        #: Tasks at an event stop, by host id.
        self.at_rest: dict[int, Tracee] = {}
        self._resume = self._engine.resume  # the engine's own
        self._known: set[int] = set()  # host ids that have been at a stop before
        self._serving = 0  # the host id whose stop is being served, and the status
        self._status = 0
        self._settled = trio.Event()

    async def begin(self, seconds: float, kept: Iterable[tuple[int, int, bytes]] = ()) -> None:
        """Until all are at rest, or the sandbox has ended (`active` is False then). TookTooLong. Whatever it raises,
        `go_on` is still to be called. `kept` are stops that were taken from the host and not served, and so it is
        done again where it is active already: for what has changed since."""
        if not self.active:
            self._hold_all(kept)
        with trio.move_on_after(seconds) as limit:
            while self.active and not self._done():
                self._settled = trio.Event()
                self._pump.engine.sources.unsure = True
                with trio.move_on_after(_LOOK_AFTER):
                    await self._settled.wait()
        if limit.cancelled_caught and not self._done():
            raise TookTooLong(f"task {self._laggard()} did not come to rest within {seconds:g} s")

    def _hold_all(self, kept: Iterable[tuple[int, int, bytes]]) -> None:
        self.active = True
        self.at_rest = {}
        self._resume = self._engine.resume
        self._known = set(self._engine.tracees)
        self._engine.resume = self._hold  # type: ignore[method-assign]
        self._pump.suspend(self._collect)
        for host, t in list(self._engine.tracees.items()):
            if t.holding is None and not t.listening:
                self._interrupt(host)
        for host, status, rusage in kept:
            if self.active:
                self._serve(host, status, rusage)
            else:
                self._engine.serve_stop(host, status, rusage)

    def _laggard(self) -> int:
        return next((t.tid for t in self._running()), 0)

    @staticmethod
    def _interrupt(host: int) -> None:
        try:
            pt.call(pt.PTRACE_INTERRUPT, host)
        except (Gone, OSError):
            pass  # it is dead

    # -- serving
    def _collect(self, limit: int, named: tuple[int, ...]) -> int:
        """In place of serving stops: serve them, and let nobody go on for good."""
        engine = self._engine
        served = 0
        engine.sources.unsure = False
        while served < limit and self.active:
            if engine.deferred:
                host, status, rusage = engine.deferred.pop(0)
            else:
                host, status = pt.wait_any()
                if host <= 0:
                    break
                rusage = pt.last_rusage() if status & 0xFF != 0x7F else b""
            served += 1
            self._serve(host, status, rusage)
        if engine.early:
            from trapline.platform import unannounced

            unannounced.settle(engine)
        if self.active and self._done():
            self._settled.set()
        return served

    def _serve(self, host: int, status: int, rusage: bytes) -> None:
        self._serving, self._status = host, status
        self.at_rest.pop(host, None)
        if status & 0xFF != 0x7F and host in self._session.ends_with():
            self.go_on()
            self._engine.serve_stop(host, status, rusage)
            self._settled.set()
            return
        try:
            self._engine.serve_stop(host, status, rusage)
        finally:
            self._serving = 0
        self._engine.self_poked = 0
        t = self._engine.tracees.get(host)
        if t is not None and t.execute is not None:
            self._interrupt(host)  # the host executes its call, which may wait

    def _hold(self, t: Tracee, signo: int = 0) -> None:
        """In place of `Engine.resume`."""
        if t.reissue is not None or t.execute is not None:
            # The host is to execute its call: let it come to that first. A pending interrupt would only bring it here.
            self._resume(t, signo)
            return
        if t.host == self._serving:
            standing = self._status == _EVENT_STOP
        else:
            # Otherwise it stands at its first stop; or it was held as a vfork's parent, at the event of its child.
            standing = t.host in self.at_rest or t.host not in self._known
        self._known.add(t.host)
        if standing and not signo:
            self.at_rest[t.host] = t
            return
        self._interrupt(t.host)
        self._resume(t, signo)

    # -- who has something left
    def _running(self) -> list[Tracee]:
        tracees = self._engine.tracees.values()
        left = [t for t in tracees if t.host not in self.at_rest and not t.listening and t.holding is None]
        # Of who dies that is still to be heard; but a leader that has ended waits for its threads.
        threads = {t.host_group for t in tracees if t not in left} if left else ()
        return [t for t in left if t.host != t.host_group or t.host not in threads or not pt.is_dead(t.host)]

    def _done(self) -> bool:
        self._wake_resting()
        if self._running() or self._engine.early or self._engine.deferred:
            return False
        return not self._miss_killed()

    def _miss_killed(self) -> bool:
        """Whether some that were at rest are dying by now, killed by what was served meanwhile or with the rest of
        their process: they are not at rest, until that is heard."""
        missed = False
        for host in list(self.at_rest):
            try:
                pt.get_sigmask(host)  # of those that stand only
            except (Gone, OSError):
                del self.at_rest[host]
                missed = True
        return missed or any(t.listening and pt.is_dead(t.host) for t in self._engine.tracees.values())

    def _wake_resting(self) -> None:
        """Those at rest whose call has got its result since, or is to be executed by the host."""
        engine = self._engine
        for host, t in list(self.at_rest.items()):
            if t.reissue is None and t.tid not in engine.dispatcher.results:
                continue
            del self.at_rest[host]
            self._serving, self._status = host, _EVENT_STOP
            try:
                stop_calls.interrupted(engine, t)
            except Gone:
                pass
            finally:
                self._serving = 0

    # -- the end
    def go_on(self) -> None:
        """Everybody goes on from where they stand."""
        if not self.active:
            return
        self.active = False
        engine = self._engine
        engine.resume = self._resume  # type: ignore[method-assign]
        self._pump.go_on()
        self._listen_again()
        resting, self.at_rest = self.at_rest, {}
        for t in resting.values():
            try:
                engine.resume(t)
            except Gone:
                pass
        engine.sources.walk()
        engine.sources.unsure = True
        self._settled.set()
        while self._pump.walk():
            pass

    def _listen_again(self) -> None:
        """Those in a job-control stop that were brought to a stop where they can be looked at (capture_tasks.py): left
        there, they would never see their SIGCONT."""
        unserved = {host for host, _, _ in self._engine.deferred}
        for host, t in self._engine.tracees.items():
            if t.listening and host not in unserved:
                try:
                    pt.call(pt.PTRACE_LISTEN, host)
                except (Gone, OSError):
                    pass  # it listens still, or is dead
