"""From a call that a platform caught to its handler, and from the handler's outcome back.

The rules that this file owns (DESIGN: one call in flight per task):

* A call that blocks has a `CallRecord` until its result has *reached* the guest: the platform said that it
  was sent, or wrote it at a stop.
* While there is a record, the same call arriving again *is* the same call: the host may cancel a pending
  notification and issue the call anew at any time (a cgroup freeze, a swallowed signal) without a stop.
  Entering the handler again would sleep twice, create two timers, send a signal twice.
* A result that could not be handed over stays ("sticky") and is the answer when the call comes again.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from trapline.sentry.kernel import signal_settle
from trapline.sentry.kernel.block import AfterSignals, Block, Execute, Interrupted, Outcome, Reply, Restart
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.signal_deliver import Delivery
from trapline.sentry.kernel.state import CallRecord, Task, TaskStatus
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls.registry import Bound

Args = tuple[int, int, int, int, int, int]
_RT_SIGTIMEDWAIT = 128


class Dispatcher:
    """Drives handlers for one kernel."""

    def __init__(self, kernel: Kernel, handlers: dict[int, Bound]) -> None:
        self.kernel = kernel
        self.handlers = handlers
        #: Handlers that are on their way, by task.
        self.running: dict[int, Coroutine[Any, Any, int]] = {}
        #: Results that have not reached their guest.
        self.results: dict[int, int] = {}
        #: Tasks whose call the host executes at the moment.
        self.executing: set[int] = set()
        #: Tasks whose call goes on once the signals that are there have been taken.
        self.after_signals: set[int] = set()
        self.unknown: set[int] = set()
        self.crashes: list[str] = []
        self.name_of: Callable[[int], str] = str
        kernel.resume = self.resume
        kernel.drop_call = self.drop

    # -- a call comes in
    def enter(self, task: Task, nr: int, args: Args, ip: int = 0) -> int | Reply | Execute:
        """Serve a call. A number is the result (-errno for an error); else see Reply and Execute."""
        if task.unsure:
            signal_settle.settle(self.kernel, task)
        if task.call is not None:
            reply = self._same_call(task, nr, args)
            if reply is not None:
                return reply
        bound = self.handlers.get(nr)
        counts = self.kernel.state.counts
        counts[nr] = counts.get(nr, 0) + 1
        if bound is None:
            return self._unknown(task, nr)
        function, convert, is_async = bound
        try:
            if not is_async:
                return function(self.kernel, task, *convert(args))  # type: ignore[no-any-return]
        except OSError as error:
            return -(error.errno or errno.EIO)
        except Gone:
            # Of the caller, or of another task that it asks about: the caller must not be left without answer.
            if self.kernel.platform.has_ended(task.tid):
                raise
            return -errno.ESRCH
        except Exception:
            return self._crashed(task, nr, args)
        task.call = CallRecord(nr, args, ip, 1)
        coroutine = function(self.kernel, task, *convert(args))
        return self._start(task, coroutine)

    def _start(self, task: Task, coroutine: Coroutine[Any, Any, int]) -> int | Reply | Execute:
        self.running[task.tid] = coroutine
        reply = self._step(task, None)
        if isinstance(reply, int):
            task.call = None
        return reply

    def _same_call(self, task: Task, nr: int, args: Args) -> int | Reply | Execute | None:
        record = task.call
        assert record is not None
        if record.nr != nr or record.args != args:
            # The guest went elsewhere: a handler that ran longjmp, or a restart as another call.
            self.drop(task.tid)
            task.call = None
            return None
        if task.tid in self.results:
            task.call = None
            return self.results.pop(task.tid)
        if task.tid in self.running:
            if task.tid in self.executing:
                # It was interrupted while the host executed it, and starts again.
                self.drop(task.tid)
                task.call = None
                return None
            return self.go_on(task) if task.tid in self.after_signals else Reply.BLOCKED
        # The coroutine was unwound (a checkpoint): enter again from the record.
        record.entered += 1
        bound = self.handlers[nr]
        return self._start(task, bound[0](self.kernel, task, *bound[1](args)))

    def _unknown(self, task: Task, nr: int) -> int:
        if nr not in self.unknown:
            self.unknown.add(nr)
            self.kernel.log(f"call {self.name_of(nr)} ({nr}) is not implemented: ENOSYS")
        return -errno.ENOSYS

    def cannot_wait(self, task: Task, nr: int, args: Args) -> None:
        """A handler waits, or has the host execute its call, where the platform can only take its answer."""
        self.drop(task.tid)
        task.call = None
        self._crashed(task, nr, args, "an async handler must be there before the sandbox starts\n")

    def _crashed(self, task: Task, nr: int, args: Args, why: str = "") -> int:
        """A bug of ours ends the guest that met it, and no other: going on with a wrong result would hide it."""
        line = f"{self.name_of(nr)}({', '.join(hex(a) for a in args)}) of task {task.tid}"
        self.crashes.append(line)
        why = why or traceback.format_exc()
        self.kernel.log(f"exception in the handler of {line}; its process is killed\n{why}")
        self.kernel.platform.kill_group(task.tgid)
        return -errno.ENOSYS

    # -- driving
    def _step(self, task: Task, value: object) -> int | Reply | Execute:
        tid = task.tid
        coroutine = self.running[tid]
        while True:
            try:
                request = coroutine.send(value)
            except StopIteration as stop:
                if stop.value is Reply.HOST:
                    self._finished(task, 0)
                    task.call = None
                    return Reply.HOST
                return self._finished(task, int(stop.value))
            except Interrupted as interrupted:
                return self._finished(task, -int(interrupted.kind))
            except OSError as error:
                return self._finished(task, -(error.errno or errno.EIO))
            except Gone:
                self.drop(tid)
                raise
            except Exception:
                record = task.call
                result = self._crashed(task, record.nr, record.args) if record else -errno.ENOSYS
                return self._finished(task, result)
            if isinstance(request, Execute):
                self.executing.add(tid)
                return request
            if isinstance(request, AfterSignals):
                self.after_signals.add(tid)
                task.status = TaskStatus.BLOCKED
                return Reply.AGAIN
            assert isinstance(request, Block)
            if request.deadline >= 0:
                if self.kernel.keeper.now(request.clock_id) >= request.deadline:
                    value = Outcome.TIMED_OUT
                    continue
                if request.clock_id >= 0:
                    self.kernel.timers.set(f"sleep:{tid}", request.clock_id, request.deadline)
                else:
                    self.kernel.clocks.set(f"sleep:{tid}", request.clock_id, request.deadline, advance=False)
            task.status = TaskStatus.BLOCKED
            return Reply.BLOCKED

    def _finished(self, task: Task, value: int) -> int:
        self.running.pop(task.tid, None)
        self.after_signals.discard(task.tid)
        self.executing.discard(task.tid)
        if task.status == TaskStatus.BLOCKED:
            task.status = TaskStatus.RUNNING
        return value

    def resume(self, task: Task, outcome: Outcome) -> None:
        """Something that a blocked call waits for happened."""
        tid = task.tid
        if tid not in self.running or tid in self.executing or tid in self.after_signals:
            return
        if outcome is not Outcome.TIMED_OUT:
            self.kernel.clocks.cancel(f"sleep:{tid}")
        try:
            reply = self._step(task, outcome)
            if isinstance(reply, Execute):
                self.kernel.platform.execute(tid, reply)
            elif reply is Reply.HOST:
                self.kernel.platform.execute(tid, Execute())
            elif reply is Reply.AGAIN:
                self.kernel.platform.begin_anew(tid)
            elif isinstance(reply, int):
                self.results[tid] = reply
                if self.kernel.platform.complete(tid, reply):
                    self.delivered(task)
        except Gone:
            return

    def go_on(self, task: Task) -> int | Reply | Execute:
        """The signals that a call let pass (AfterSignals) have been taken. Like `enter`."""
        self.after_signals.discard(task.tid)
        reply = self._step(task, Outcome.WOKEN)
        if isinstance(reply, int):
            task.call = None
        return reply

    def executed(self, task: Task, result: int) -> int | Reply | Execute:
        """The host executed the call of a task; `result` is what it returned. Like `enter`."""
        if task.tid not in self.executing:
            return result
        self.executing.discard(task.tid)
        reply = self._step(task, result)
        if isinstance(reply, int):
            task.call = None
        return reply

    # -- results
    def delivered(self, task: Task) -> None:
        """The result of the call in flight has reached the guest."""
        self.results.pop(task.tid, None)
        task.call = None

    def undelivered(self, task: Task, nr: int, args: Args, value: int) -> None:
        """An immediate result could not be handed over: it waits for the call to come again, or a stop."""
        task.call = CallRecord(nr, args, 0, 1)
        self.results[task.tid] = value

    def take_result(self, task: Task) -> int | None:
        """The sticky result, to be written at a stop; it counts as delivered."""
        if task.tid not in self.results:
            return None
        value = self.results.pop(task.tid)
        task.call = None
        return value

    def interrupt(self, task: Task, delivery: Delivery | None) -> int | None:
        """At a delivery stop: what the call in flight returns, or None to leave it as it is.

        Without a handler the call simply goes on: the host issues it again and it is the same call.
        """
        sticky = self.take_result(task)
        if sticky is not None:
            return sticky
        if delivery is None or not delivery.handler or task.tid not in self.running:
            return None
        if task.tid in self.executing:
            return None
        self.kernel.clocks.cancel(f"sleep:{task.tid}")
        reply = self._step(task, Outcome.INTERRUPTED)
        task.call = None
        if not isinstance(reply, int):
            self.drop(task.tid)
            return -errno.EINTR
        if reply == -Restart.SYS and delivery.restart:
            return reply
        return -errno.EINTR if reply in (-Restart.SYS, -Restart.NOHAND, -Restart.RESTARTBLOCK) else reply

    def interrupt_by_stop(self, task: Task) -> int | None:
        """At the end of a job-control stop: what the call in flight returns, or None to leave it as it is.

        Of the calls that wait here only sigtimedwait returns EINTR for a stop that no handler saw (signal(7)).
        """
        if task.call is None or task.call.nr != _RT_SIGTIMEDWAIT or task.tid not in self.running:
            return None
        self.kernel.clocks.cancel(f"sleep:{task.tid}")
        reply = self._step(task, Outcome.INTERRUPTED)
        task.call = None
        assert isinstance(reply, int)
        return reply

    def unwind(self, task: Task) -> None:
        """Drop the coroutine but keep the record: the call is entered again from it (checkpoint)."""
        self.drop(task.tid)

    def drop(self, tid: int) -> None:
        """Forget the call of a task: it died, executed a program or went elsewhere."""
        coroutine = self.running.pop(tid, None)
        if coroutine is not None:
            coroutine.close()
            self.kernel.clocks.cancel(f"sleep:{tid}")
        self.results.pop(tid, None)
        self.executing.discard(tid)
        self.after_signals.discard(tid)
        self.kernel.signal_waiters.pop(tid, None)
