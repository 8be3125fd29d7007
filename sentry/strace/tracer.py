"""What every traced task is doing, from what a platform tells of it; and what of that is printed.

The rules:

* A call is printed once, with the value that the guest gets. The host may leave and enter a call of a guest
  several times for reasons that are the sentry's (a poke, an interrupt): until the guest sees a value, or a
  signal is delivered, an entry of the same call is the same call.
* So a result that may yet be hidden (a restart, an EINTR that the platform takes back) is kept *pending* until
  what follows decides: a signal makes it true, another entry of the same call takes it back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import errorcode

from trapline.sentry.options import StraceOptions
from trapline.sentry.protocol import Memory
from trapline.sentry.strace.call import Call
from trapline.sentry.strace.call_filter import status_set, trace_set
from trapline.sentry.strace.kinds_signal import siginfo
from trapline.sentry.strace.plan import plan_of
from trapline.sentry.strace.printer import Printer
from trapline.sentry.strace.summary import Summary
from trapline.sentry.strace.text import signal_name, signal_set
from trapline.sentry.syscalls.table import Class, by_number
from trapline.sentry.syscalls.table_types import Support, Syscall

RESTARTS = {
    -512: "ERESTARTSYS (To be restarted if SA_RESTART is set)",
    -513: "ERESTARTNOINTR (To be restarted)",
    -514: "ERESTARTNOHAND (To be restarted if no handler)",
    -516: "ERESTART_RESTARTBLOCK (Interrupted by signal)",
}
EXIT, EXIT_GROUP, RT_SIGRETURN, EXECVE, RESTART_SYSCALL, EXECVEAT = 60, 231, 15, 59, 219, 322
_UC_SIGMASK = 296  # of struct ucontext, at which rsp points when rt_sigreturn is called
Names = Callable[[int, int], str]


class Tracer:
    """One sandbox's trace. Times are ns: `wall` since the epoch, `monotonic` from anywhere."""

    def __init__(
        self,
        options: StraceOptions,
        write: Callable[[str], None],
        wall: Callable[[], int],
        monotonic: Callable[[], int],
        strerror: Callable[[int], str],
        naming: Names | None = None,
    ) -> None:
        self.options = options
        self.write = write
        self.wall = wall
        self.monotonic = monotonic
        self.strerror = strerror
        self.naming = naming if options.paths else None
        self.wanted = trace_set(options.trace)
        self.statuses = status_set(options.status)
        self.lines = options.summary != "only"
        self.summary = Summary() if options.summary else None
        self.printer = Printer(write, whole=self.statuses is not None or options.owned_only)
        self.calls: dict[int, Call] = {}
        #: Tasks of which nothing is printed yet: what runs before the guest's program is not the guest's.
        self.quiet: set[int] = set()
        self.stopped = False

    # -- what is wanted
    def wants(self, nr: int) -> bool:
        """Whether calls of this number are printed or counted."""
        return self.wanted is None or nr in self.wanted

    # -- calls
    def entry(self, tid: int, nr: int, raw: tuple[int, ...], memory: Memory, stack: int = 0) -> None:
        """A task enters a call. `raw`: its six registers, unsigned."""
        call = self.calls.get(tid)
        if call is not None:
            if nr == RESTART_SYSCALL or (nr == call.row.nr and raw == call.raw):
                call.pending = None
                return
            self._settle(call)
        if not self.wants(nr) and not (tid in self.quiet and nr in (EXECVE, EXECVEAT)):
            return
        row = by_number(nr)
        if row is None:
            signature = ", ".join([f"unsigned long a{at}" for at in range(6)])
            row = Syscall(nr, f"syscall_{nr:#x}", signature, Class.NONE, Support.NONE)
        plan = plan_of(row)
        call = Call(tid, row, raw, plan.convert(raw), memory, self.naming)
        call.refused = row.decide(raw) is Class.REFUSE
        call.stack = stack
        call.entered, call.started = self.wall(), self.monotonic()
        self.calls[tid] = call
        if not self.lines:
            return
        call.entry = plan.at_entry(call)
        call.complete = call.split == len(plan.steps)
        if nr == RT_SIGRETURN and stack:
            mask = call.number(stack + _UC_SIGMASK, "<Q")
            call.entry += f"{{mask={signal_set(mask)}}}" if mask is not None else ""
        if tid in self.quiet:
            return
        self.printer.began(call)
        if nr in (EXIT, EXIT_GROUP):
            # It never returns.
            del self.calls[tid]
            self._line(call, "", "?", None, "successful")

    def owned(self, tid: int, nr: int) -> None:
        """The sentry's dispatcher serves the call that a task is in."""
        call = self.calls.get(tid)
        if call is not None and call.row.nr == nr:
            call.owned = True

    def may_restart(self, tid: int, value: int) -> None:
        """A task left a call with a value that the guest may never see."""
        call = self.calls.get(tid)
        if call is not None:
            call.pending = value

    def exit(self, tid: int, value: int | None) -> None:
        """A task's call returns this value to the guest (-errno for an error); None when it is not known."""
        call = self.calls.pop(tid, None)
        if call is None:
            return
        call.result = value if value is not None else 0
        if tid in self.quiet:
            if call.row.nr not in (EXECVE, EXECVEAT) or value != 0:
                return
            self.quiet.discard(tid)
            if not self.wants(call.row.nr):
                return
            if self.lines:
                self.printer.began(call)
        if self.options.owned_only and not call.owned:
            return
        spent = self.monotonic() - call.started
        failed = call.failed and value is not None
        if self.summary is not None:
            self.summary.add(call.row.name, spent, failed, call.owned)
        if not self.lines:
            return
        if value is None:
            self._line(call, plan_of(call.row).at_exit(call), "?", spent, "unavailable")
            return
        rest = plan_of(call.row).at_exit(call)
        status = "failed" if failed else "successful"
        self._line(call, rest, self._result(call), spent, status)

    def _line(self, call: Call, rest: str, result: str, spent: int | None, status: str) -> None:
        if self.options.owned_only and not call.owned:
            return
        if self.statuses is None or status in self.statuses:
            self.printer.returned(call, rest, result, self.wall(), spent)

    def _result(self, call: Call) -> str:
        value = call.result
        if value in RESTARTS:
            return f"? {RESTARTS[value]}"
        if call.failed:
            name = errorcode.get(-value)
            return f"-1 {name} ({self.strerror(-value)})" if name else f"-1 (errno {-value})"
        show = plan_of(call.row).result
        return show(call) if show is not None else str(value)

    def _settle(self, call: Call) -> None:
        """What was pending is what the guest saw."""
        value = call.pending
        if value is not None:
            self.exit(call.tid, value)
        elif self.calls.get(call.tid) is call:
            self.exit(call.tid, None)

    # -- events
    def signal(self, tid: int, raw: bytes) -> None:
        """A signal is delivered to a task: its siginfo_t."""
        call = self.calls.get(tid)
        if call is not None and call.pending is not None:
            self._settle(call)
        if self.lines and tid not in self.quiet:
            (signo,) = struct.unpack_from("<i", raw)
            self.printer.event(tid, self.wall(), f"--- {signal_name(signo)} {siginfo(raw)} ---")

    def group_stopped(self, tid: int, signo: int) -> None:
        """A task is in a job-control stop."""
        if self.lines and tid not in self.quiet:
            self.printer.event(tid, self.wall(), f"--- stopped by {signal_name(signo)} ---")

    def moved(self, former: int, tid: int) -> None:
        """A thread executed a program and has its leader's id from now on."""
        replaced = self.calls.pop(tid, None)
        if replaced is not None:
            self._lost(replaced)
        if self.lines:
            self.printer.event(tid, self.wall(), f"+++ superseded by execve in pid {former} +++")
        call = self.calls.pop(former, None)
        if call is not None:
            self.printer.renamed(former, tid)
            call.tid = tid
            self.calls[tid] = call

    def died(self, tid: int, status: int) -> None:
        """A task has ended, with this wait status."""
        call = self.calls.pop(tid, None)
        if tid in self.quiet:
            self.quiet.discard(tid)
            return
        if call is not None:
            self._lost(call)
        if not self.lines:
            return
        if status & 0x7F:
            core = " (core dumped)" if status & 0x80 else ""
            text = f"+++ killed by {signal_name(status & 0x7F)}{core} +++"
        else:
            text = f"+++ exited with {status >> 8 & 0xFF} +++"
        self.printer.event(tid, self.wall(), text)

    def _lost(self, call: Call) -> None:
        shown = self.statuses is None or "unfinished" in self.statuses
        if self.lines and shown and (call.owned or not self.options.owned_only):
            self.printer.never_returned(call, self.wall())

    def detach(self, tid: int) -> None:
        """A task is not looked at any more."""
        call = self.calls.pop(tid, None)
        self.quiet.discard(tid)
        shown = self.statuses is None or "detached" in self.statuses
        if call is not None and self.lines and shown and (call.owned or not self.options.owned_only):
            self.printer.detached(call, self.wall())

    def finish(self) -> None:
        """The sandbox has ended: what is still to be said."""
        for tid in list(self.calls):
            self.detach(tid)
        if self.summary is not None:
            by = self.options.sort
            self.write(self.summary.json(by) if self.options.summary_format == "json" else self.summary.text(by))
