"""The host's calls that wait on REALTIME, once a sandbox has moved its wall clock.

From then on its tasks run under trap_all, since no filter can be changed: at the entry of a call with an
absolute REALTIME deadline (sentry/syscalls/wall_deadlines.py) the deadline is replaced by the host's time for
it, and reads of cancelled timerfds are answered ECANCELED. Until the first step nothing of this exists.

The converted deadline lies below the caller's stack and its red zone, where a signal frame would come too: what
the guest gave may be read-only, or read by other threads. The host copies it before it waits, and the pointer
is put back at the call's exit, so a restart brings the guest's own and is converted anew.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from trapline.platform import ptrace_calls as pt
from trapline.platform.tracee import WALL_CLOCK, Tracee
from trapline.platform.wall_timerfds import WallTimerfds
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls import wall_deadlines

if TYPE_CHECKING:
    from trapline.platform.engine import Engine

READ, READV = 0, 19
_RED_ZONE = 128
_REGISTERS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_TICKS_SIZE = 8


class WallClock:
    """Of one sandbox whose REALTIME is not the host's."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.timerfds = WallTimerfds(engine)
        #: By host id, of calls in flight: a register to put back, its value, and the result to give (None: the host's).
        self._undo: dict[int, tuple[str, int, int | None]] = {}

    def moved(self, span: int) -> None:
        """The sandbox's REALTIME went `span` host ns forward."""
        e = self.engine
        processes: dict[int, int] = {}
        for t in list(e.tracees.values()):
            processes.setdefault(t.host_group, t.tid)
            # Whatever it waits for, it asks again, and is seen. First of all, so that a reader that is woken by
            # the cancellation stops on its way out.
            t.trap_all |= WALL_CLOCK
            try:
                e.interrupt(t)
            except Gone:
                continue
        self.timerfds.moved(processes.values(), span)

    def watch_all(self) -> None:
        """See every call from now on: while all tasks stand, for they are not brought to a stop here."""
        for t in self.engine.tracees.values():
            t.trap_all |= WALL_CLOCK

    def entering(self, t: Tracee) -> None:
        """A task stands at a call's entry, which pt.at_entry has seen."""
        stack, nr, *given = pt.last_entry()
        self._undo.pop(t.host, None)
        if nr in (READ, READV):
            if self.timerfds.cancelled and self.timerfds.take(t.tid, t.host, given[0] & 0xFFFFFFFF):
                # A read of no bytes takes nothing, of any descriptor.
                self._change(t, 2, given[2], 0, -errno.ECANCELED)
            return
        args = tuple(given)
        keeper, convert = self.engine.kernel.keeper, wall_deadlines.on_host
        at = wall_deadlines.deadline_argument(nr, args)
        if at < 0 and keeper.state.frozen:
            at, convert = wall_deadlines.monotonic_argument(nr, args), wall_deadlines.after_freeze
        if at < 0:
            return
        try:
            deadline = convert(keeper, t.memory.read(args[at], wall_deadlines.SIZE))
            if deadline is None:
                return
            scratch = (stack - _RED_ZONE - wall_deadlines.SIZE) & ~15
            t.memory.write(scratch, deadline)
        except OSError:
            return  # the guest's pointer is bad, as the host says next; or it has no stack
        self._change(t, at, args[at], scratch, None)

    def leaving(self, t: Tracee) -> bool:
        """A task stands at a call's exit; whether its registers were changed."""
        undo = self._undo.pop(t.host, None)
        if undo is None:
            return self.read_ended(t)
        name, value, result = undo
        regs = self.engine.regs.load(t.host)
        setattr(regs, name, value)
        if result is not None:
            regs.rax = result & pt.U64
        self.engine.regs.store(t.host)
        return True

    def read_ended(self, t: Tracee) -> bool:
        """A task's call may be a read that waited, and that a cancellation ended as if the timer had expired."""
        if not self.timerfds.cancelled:
            return False
        regs = self.engine.regs.load(t.host)
        if pt.signed(regs.orig_rax) not in (READ, READV) or regs.rax != _TICKS_SIZE:
            return False
        if not self.timerfds.take(t.tid, t.host, regs.rdi & 0xFFFFFFFF):
            return False
        regs.rax = -errno.ECANCELED & pt.U64
        self.engine.regs.store(t.host)
        return True

    def _change(self, t: Tracee, at: int, before: int, value: int, result: int | None) -> None:
        regs = self.engine.regs.load(t.host)
        setattr(regs, _REGISTERS[at], value)
        self.engine.regs.store(t.host)
        self._undo[t.host] = _REGISTERS[at], before, result
