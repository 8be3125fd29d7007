"""Reports a handler that does not come to its end: while one runs, every guest that asks something waits.

The kernel is one thread, so what notices must come from outside of it: the host's ITIMER_REAL, whose SIGALRM
Python serves between two bytecodes and when a blocking call is interrupted, on the stack of whatever is stuck.
It is armed when a batch begins and disarmed when it ends, or by the one tick that finds the loop waiting within it, so
nothing ticks while nothing runs; two setitimer(2) are 0.8 us a batch, and no call pays anything.

There is no clock in the path of a call either. A tick looks for the dispatcher's frame on the stack: the same
frame object at the next tick is the same call. Each tick counts for at most the time between two ticks, less
what the sentry spent on the run queue. Why not the elapsed time: a sentry that is stopped, frozen, or on a
machine that was suspended, hears of all the ticks that it missed as one, and has not been stuck meanwhile.
What it cannot see: a C function that neither returns nor lets go of the interpreter.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from types import CodeType, FrameType

from trapline.platform.engine import Engine
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.state import Task
from trapline.sentry.syscalls import table
from trapline.sentry.syscalls.dispatch import Dispatcher

#: Ticks in the limit: a report comes up to one tick late.
TICKS = 4
_NS = 1_000_000_000


class Watchdog:
    """See the module. `say(line, stack, first)` is told of a call once it has run for `limit` seconds, and again
    each time that has doubled. `began` is when it was armed, host ns."""

    def __init__(self, limit: float, say: Callable[[str, str, bool], None], began: Callable[[], int]) -> None:
        self._period = limit / TICKS
        self._limit_ns = round(limit * _NS)
        self._say = say
        self._began = began
        #: Told when a tick finds nothing in progress: the loop may be waiting, and must not be woken again.
        self.idle: Callable[[], None] = lambda: None
        self._before = signal.signal(signal.SIGALRM, self._tick)
        self.arm: Callable[[], object] = partial(
            signal.setitimer, signal.ITIMER_REAL, self._period, self._period
        )
        self.disarm: Callable[[], object] = partial(signal.setitimer, signal.ITIMER_REAL, 0)
        #: The frame that the last tick found, for how long it has run since, and when that is worth a report.
        self._frame: FrameType | None = None
        self._ran = 0
        self._worth = self._limit_ns
        self._last = (0, 0)

    def close(self) -> None:
        """No ticks any more."""
        self.disarm()
        signal.signal(signal.SIGALRM, self._before)
        self._frame = None

    def _tick(self, number: int, interrupted: FrameType | None) -> None:
        now, queued = monotonic_ns(), _run_queue_ns()
        if not signal.getitimer(signal.ITIMER_REAL)[1] or now - self._began() < self._period * _NS * 0.9:
            # Too early for ours: somebody sent it, and means what it does to who does not expect it.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGALRM)
            return
        frame = _in_progress(interrupted)
        if frame is None:
            self.idle()
        if frame is None or frame is not self._frame:
            self._frame, self._ran, self._worth = frame, 0, self._limit_ns
        else:
            passed = now - self._last[0] - (queued - self._last[1])
            self._ran += max(0, min(passed, round(self._period * _NS)))
            # The first tick came up to a period after the call: one that has run for TICKS more is over the limit.
            if self._ran >= self._worth * 99 // 100:
                self._report(frame, interrupted, self._worth == self._limit_ns)
                self._worth *= 2
        self._last = (now, queued)

    def _report(self, frame: FrameType, interrupted: FrameType | None, first: bool) -> None:
        stack = traceback.StackSummary.extract(_walk(interrupted, frame), lookup_lines=False)
        stack.reverse()
        line = f"{_MARKS[frame.f_code](frame)} has been running for {self._ran / _NS:.1f} s"
        try:
            self._say(line, "".join(stack.format()), first)
        except (OSError, RuntimeError):
            return  # it is in the log's own write that the sentry is stuck


def _walk(frame: FrameType | None, last: FrameType) -> list[tuple[FrameType, int]]:
    found = []
    while frame is not None:
        found.append((frame, frame.f_lineno))
        frame = None if frame is last else frame.f_back
    return found


def _in_progress(frame: FrameType | None) -> FrameType | None:
    """The innermost frame that says what is being done; None while nothing is."""
    while frame is not None and frame.f_code not in _MARKS:
        frame = frame.f_back
    return frame


def _run_queue_ns() -> int:
    """How long this thread has been able to run and was not let (/proc/PID/schedstat); 0 if the host does not
    count it."""
    try:
        with open("/proc/thread-self/schedstat", "rb", 0) as file:
            return int(file.read().split()[1])
    except OSError:
        return 0


def _call(nr: int, args: tuple[int, ...], task: Task) -> str:
    name = table.name_of(nr)
    row = table.by_name(name)
    known = args[: len(row.parameters())] if row else args
    return f"the handler of {name}({', '.join(map(hex, known))}) of task {task.tid}"


def _enter(frame: FrameType) -> str:
    found = frame.f_locals
    return _call(found["nr"], found["args"], found["task"])


def _step(frame: FrameType) -> str:
    task: Task = frame.f_locals["task"]
    return _call(task.call.nr, task.call.args, task) if task.call else f"a handler of task {task.tid}"


def _stop(frame: FrameType) -> str:
    found = frame.f_locals
    t = found["self"].tracees.get(found["host"])
    return f"serving a stop of {f'task {t.tid}' if t else 'a new task'} (wait status {found['status']:#x})"


def _timers(frame: FrameType) -> str:
    return "the expiry of timers"


#: How to say what is in progress, by the function that serves it.
_MARKS: dict[CodeType, Callable[[FrameType], str]] = {
    Dispatcher.enter.__code__: _enter,
    Dispatcher._step.__code__: _step,
    Engine.serve_stop.__code__: _stop,
    Kernel.timers_expired.__code__: _timers,
    Kernel.cpu_alarm.__code__: _timers,
}
