"""`--strace`: from the platform's stops to the tracer of sentry/strace.

Two ways. Calls of any kind are seen by trap_all: two ptrace stops a call. When only calls are wanted that the
sentry answers by itself, the dispatcher's own entries and results tell all, and nothing is stopped for it.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from typing import TYPE_CHECKING

from trapline.platform import ptrace_calls as pt
from trapline.platform.stop_calls import LEAKS_EINTR, PAUSE, RESTARTS
from trapline.platform.trace_sink import TraceSink
from trapline.platform.watch import Watch
from trapline.sentry.kernel.block import Execute, Reply
from trapline.sentry.kernel.signal_send import is_ignored
from trapline.sentry.kernel.state import Task
from trapline.sentry.options import StraceOptions
from trapline.sentry.protocol import Gone
from trapline.sentry.strace.names import words
from trapline.sentry.strace.text import quote
from trapline.sentry.strace.tracer import RT_SIGRETURN, Tracer
from trapline.sentry.syscalls.table import TABLE, Class

if TYPE_CHECKING:
    from trapline.platform.engine import Engine
    from trapline.platform.tracee import Tracee
    from trapline.sentry.syscalls.dispatch import Args, Dispatcher

EINTR = 4
AT_FDCWD = -100
#: Calls of class notify that may leave the answer to the host, of which the dispatcher does not hear.
_HOST_ANSWERS = words(
    "setpgid setsid prctl seccomp prlimit64 setrlimit getrlimit rt_sigaction rt_sigprocmask ptrace "
    "setuid setreuid setresuid rt_sigreturn"
)
#: Calls that the sentry alone answers, whatever their arguments.
BY_DISPATCHER = frozenset(
    row.nr for row in TABLE if row.default is Class.NOTIFY and not row.when and row.name not in _HOST_ANSWERS
)


class Tracing(Watch):
    """The trace of one sandbox."""

    def __init__(self, engine: Engine, dispatcher: Dispatcher, options: StraceOptions) -> None:
        """OSError when the output cannot be opened."""
        self.engine = engine
        self.dispatcher = dispatcher
        self.sink = TraceSink(options.output, self._cannot_write)
        self.tracer = Tracer(
            options, self.sink.write, time.time_ns, time.monotonic_ns, os.strerror, self._name_of
        )
        wanted = self.tracer.wanted
        #: Whether tasks are stopped at every call.
        self.by_stops = wanted is None or not wanted <= BY_DISPATCHER
        self._enter = dispatcher.enter
        self._delivered = dispatcher.delivered
        self._take_result = dispatcher.take_result
        self.on = False
        #: Ignored signals that came in the middle of a call: shown after it.
        self._later: dict[int, list[bytes]] = {}

    # -- on and off
    def attach(self, t: Tracee, quiet: bool = False) -> None:
        """Trace a task, and what it makes from now on. `quiet`: only from its next program on. Gone."""
        self._hook()
        if quiet:
            self.tracer.quiet.add(t.tid)
        if self.by_stops:
            self.engine.set_trap_all(t.tid, True)

    def detach(self, t: Tracee) -> None:
        """Leave a task alone. Gone."""
        self.tracer.detach(t.tid)
        if self.by_stops:
            self.engine.set_trap_all(t.tid, False)

    def finish(self) -> None:
        """The sandbox has ended."""
        self.tracer.finish()
        self.sink.close()

    def _hook(self) -> None:
        if self.on:
            return
        self.on = True
        self.engine.watch = self
        self.engine.on_trap = self._trap
        # The dispatcher's methods are replaced in this object only, so that who does not trace pays nothing.
        if self.by_stops:
            self.dispatcher.enter = self._enter_marked  # type: ignore[method-assign]
        else:
            self.dispatcher.enter = self._enter_traced  # type: ignore[method-assign]
            self.dispatcher.delivered = self._delivered_traced  # type: ignore[method-assign]
            self.dispatcher.take_result = self._take_result_traced  # type: ignore[method-assign]

    def _cannot_write(self, what: str) -> None:
        """Nobody reads the trace any more, or the disk is full: the guest goes on without one."""
        if what:
            print(f"trapline: the trace ends here: {what}", file=sys.stderr)
        if self.by_stops:
            for t in list(self.engine.tracees.values()):
                try:
                    self.engine.set_trap_all(t.tid, False)
                except Gone:
                    continue

    # -- calls, by stops
    def _trap(self, t: Tracee, entering: bool) -> None:
        if not entering and (t.execute is not None or t.parked):
            return  # its end is reported by `returned`; it waits in our pause
        if entering and t.reissue is not None:
            return  # the same call, which the sentry has issued again
        if not entering:
            self.returned(t, pt.last_result())
            return
        stack, nr, *raw = pt.last_entry()
        if t.parked and nr == PAUSE:
            return
        self.tracer.entry(t.tid, nr, tuple(raw), t.memory, stack if nr == RT_SIGRETURN else 0)

    def returned(self, t: Tracee, value: int) -> None:
        call = self.tracer.calls.get(t.tid)
        if call is None:
            return
        restarts = value in RESTARTS
        if restarts and t.task is not None and t.task.call is not None:
            return  # the notification was cancelled; the call itself goes on
        if restarts or (value == -EINTR and call.row.nr in LEAKS_EINTR):
            self.tracer.may_restart(t.tid, value)
        else:
            self._end(t.tid, value)

    def answered(self, t: Tracee, value: int) -> None:
        self._end(t.tid, value)

    def _enter_marked(self, task: Task, nr: int, args: Args, ip: int = 0) -> int | Reply | Execute:
        self.tracer.owned(task.tid, nr)
        return self._enter(task, nr, args, ip)

    # -- calls, by the dispatcher
    def _enter_traced(self, task: Task, nr: int, args: Args, ip: int = 0) -> int | Reply | Execute:
        tracer = self.tracer
        if not tracer.wants(nr):
            return self._enter(task, nr, args, ip)
        tid = task.tid
        record = task.call
        if record is None or record.nr != nr or record.args != args:
            tracer.entry(tid, nr, args, self.engine.memory(tid))
            tracer.owned(tid, nr)
        reply = self._enter(task, nr, args, ip)
        if isinstance(reply, int):
            self._end(tid, reply)
        return reply

    def _delivered_traced(self, task: Task) -> None:
        value = self.dispatcher.results.get(task.tid)
        if value is not None:
            self._end(task.tid, value)
        self._delivered(task)

    def _take_result_traced(self, task: Task) -> int | None:
        value = self._take_result(task)
        if value is not None:
            self._end(task.tid, value)
        return value

    # -- events
    def delivered(self, t: Tracee, raw: bytes) -> None:
        self.tracer.signal(t.tid, raw)

    def ignored(self, t: Tracee, raw: bytes) -> None:
        """The host queues a SIGCHLD that is ignored by default for who is traced: strace shows it."""
        assert t.task is not None
        (signo,) = struct.unpack_from("<i", raw)
        if not is_ignored(self.engine.kernel.group(t.task), signo):
            return
        if t.task.call is not None and t.tid in self.tracer.calls:
            self._later.setdefault(t.tid, []).append(raw)
        else:
            self.tracer.signal(t.tid, raw)

    def _end(self, tid: int, value: int) -> None:
        self.tracer.exit(tid, value)
        for raw in self._later.pop(tid, ()) if self._later else ():
            self.tracer.signal(tid, raw)

    def stopped(self, t: Tracee, signo: int) -> None:
        self.tracer.group_stopped(t.tid, signo)

    def executed(self, t: Tracee, former_tid: int) -> None:
        if former_tid != t.tid:
            self.tracer.moved(former_tid, t.tid)
        if not self.by_stops:
            self.tracer.quiet.discard(t.tid)

    def ended(self, t: Tracee, status: int) -> None:
        self._later.pop(t.tid, None)
        self.tracer.died(t.tid, status)

    # -- names of descriptors
    def _name_of(self, tid: int, fd: int) -> str:
        t = self.engine.by_tid.get(tid)
        if t is None:
            return ""
        try:
            path = os.readlink(f"/proc/{t.host}/{'cwd' if fd == AT_FDCWD else f'fd/{fd}'}")
        except OSError:
            return ""
        deleted = path.endswith(" (deleted)")
        shown = quote(path.removesuffix(" (deleted)").encode(errors="surrogateescape"), None)[1:-1]
        shown = shown.replace('\\"', '"').replace("<", "\\74").replace(">", "\\76")
        return f"<{shown}>{'(deleted)' if deleted else ''}"
