"""What one run did and cost: `trapline do --stats` and `--stats-json`.

Some numbers are counted anyway. The rest is counted by a `Recorder`, which puts itself around the session's own
functions when it is asked for and only then: without it the loop runs the code that it always runs.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from time import monotonic_ns, perf_counter_ns
from typing import TYPE_CHECKING, Any

from trapline.platform import ptrace_calls as pt
from trapline.platform.seccomp import SeccompEngine
from trapline.platform.tracee import Tracee
from trapline.sentry.log import say
from trapline.sentry.syscalls.registry import Bound

if TYPE_CHECKING:
    from trapline.platform.session import Session

_EVENTS = {
    pt.EVENT_SECCOMP: "call",
    pt.EVENT_FORK: "fork",
    pt.EVENT_VFORK: "fork",
    pt.EVENT_CLONE: "clone",
    pt.EVENT_EXEC: "exec",
}
_SIGTRAP = 5


class _Handlers(dict[int, Bound]):
    """The handlers, each with a clock around it. Those that are registered later, or overridden, have one too."""

    def __init__(self, handlers: dict[int, Bound], spent: dict[int, int]) -> None:
        super().__init__()
        self._handlers = handlers
        self._spent = spent
        self._made: dict[int, tuple[Bound, Bound]] = {}

    def get(self, nr: int, default: Any = None) -> Any:
        bound = self._handlers.get(nr)
        if bound is None:
            return default
        made = self._made.get(nr)
        if made is None or made[0] is not bound:
            function, convert, is_async = bound
            timed = _timed_steps if is_async else _timed
            made = self._made[nr] = (bound, (timed(function, nr, self._spent), convert, is_async))
        return made[1]

    def __getitem__(self, nr: int) -> Bound:
        bound: Bound | None = self.get(nr)
        if bound is None:
            raise KeyError(nr)
        return bound


def _timed(function: Callable[..., Any], nr: int, spent: dict[int, int]) -> Callable[..., Any]:
    def handler(*args: Any) -> Any:
        start = perf_counter_ns()
        try:
            return function(*args)
        finally:
            spent[nr] = spent.get(nr, 0) + perf_counter_ns() - start

    return handler


def _timed_steps(function: Callable[..., Any], nr: int, spent: dict[int, int]) -> Callable[..., Any]:
    def handler(*args: Any) -> _Steps:
        return _Steps(function(*args), nr, spent)

    return handler


class _Steps:
    """A coroutine, of which the steps are counted and the waiting in between is not."""

    def __init__(self, inner: Any, nr: int, spent: dict[int, int]) -> None:
        self._inner = inner
        self._nr = nr
        self._spent = spent

    def send(self, value: Any) -> Any:
        start = perf_counter_ns()
        try:
            return self._inner.send(value)
        finally:
            self._spent[self._nr] = self._spent.get(self._nr, 0) + perf_counter_ns() - start

    def close(self) -> None:
        self._inner.close()


class Recorder:
    """Counts what nobody else does, from the moment it is made."""

    def __init__(self, session: Session) -> None:
        self.started = monotonic_ns()
        self.tasks = 0
        self.handler_ns: dict[int, int] = {}
        self.stops: dict[str, int] = {}
        self.signals: dict[int, int] = {}
        self.timers: dict[str, int] = {}
        engine = session.engine
        stopped, resume, add = engine._stopped, engine.resume, engine.add

        def counted_stop(t: Tracee, signo: int, event: int) -> None:
            kind = _kind_of_stop(signo, event)
            self.stops[kind] = self.stops.get(kind, 0) + 1
            stopped(t, signo, event)

        def counted_resume(t: Tracee, signo: int = 0) -> None:
            if signo:
                self.signals[signo] = self.signals.get(signo, 0) + 1
            resume(t, signo)

        def counted_add(t: Tracee) -> None:
            self.tasks += 1
            add(t)

        engine._stopped = counted_stop  # type: ignore[method-assign]
        engine.resume = counted_resume  # type: ignore[method-assign]
        engine.add = counted_add  # type: ignore[method-assign]
        session.kernel.on_timer.update({k: self._fired(k, action) for k, action in session.kernel.on_timer.items()})
        session.dispatcher.handlers = _Handlers(session.dispatcher.handlers, self.handler_ns)

    def _fired(self, kind: str, action: Callable[[str, int], None]) -> Callable[[str, int], None]:
        def counted(key: str, expirations: int) -> None:
            self.timers[kind] = self.timers.get(kind, 0) + 1
            action(key, expirations)

        return counted


def _kind_of_stop(signo: int, event: int) -> str:
    if event == 0:
        return "call's end" if signo == _SIGTRAP | 0x80 else "signal"
    if event == pt.EVENT_STOP:
        return "start or interrupt" if signo == _SIGTRAP else "job control"
    return _EVENTS.get(event, "other")


def collect(session: Session, recorder: Recorder) -> dict[str, Any]:
    """Counters of a session, for people and programs. After the guests were reaped: their CPU time is known then."""
    engine, counts = session.engine, session.kernel.state.counts
    own, guests = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seccomp = engine if isinstance(engine, SeccompEngine) else None
    names = {nr: session.dispatcher.name_of(nr) for nr in sorted(counts)}
    return {
        "platform": session.options.platform,
        "elapsed_ns": monotonic_ns() - recorder.started,
        "sentry_cpu_ns": round((own.ru_utime + own.ru_stime) * 1e9),
        "guest_cpu_ns": round((guests.ru_utime + guests.ru_stime) * 1e9),
        "sentry_rss_kb": own.ru_maxrss,
        "guest_rss_kb": guests.ru_maxrss,
        "wakeups": session.pump.wakeups,
        "notifications": seccomp.notifications if seccomp else 0,
        "cancelled": seccomp.cancelled if seccomp else 0,
        "stops": engine.stops,
        "tasks_created": recorder.tasks,
        "tasks_peak": engine.tasks_peak,
        "execs": session.kernel.state.exec_count,
        "calls": {name: counts[nr] for nr, name in names.items()},
        "handler_ns": {name: recorder.handler_ns.get(nr, 0) for nr, name in names.items()},
        "stop_kinds": dict(sorted(recorder.stops.items())),
        "signals": {str(signo): count for signo, count in sorted(recorder.signals.items())},
        "timers": dict(sorted(recorder.timers.items())),
    }


def report(session: Session, recorder: Recorder) -> None:
    """Print the table to standard error, or write the JSON, as asked."""
    found = collect(session, recorder)
    if session.options.stats_json:
        try:
            with open(session.options.stats_json, "w", encoding="utf-8") as f:
                json.dump(found, f)
        except OSError as error:
            say(f"trapline: --stats-json {session.options.stats_json}: {error.strerror}")
    if session.options.stats:
        say(as_text(found))


def as_text(found: dict[str, Any]) -> str:
    """The tables for people."""
    seconds = {name: found[name] / 1e9 for name in ("elapsed_ns", "sentry_cpu_ns", "guest_cpu_ns")}
    calls, spent = found["calls"], found["handler_ns"]
    lines = [
        f"trapline: {found['platform']}, {seconds['elapsed_ns']:.3f} s",
        f"  CPU        sentry {seconds['sentry_cpu_ns']:.3f} s, guests {seconds['guest_cpu_ns']:.3f} s",
        f"  memory     sentry {found['sentry_rss_kb']} KiB, largest guest {found['guest_rss_kb']} KiB",
        f"  tasks      {found['tasks_created']} made, {found['tasks_peak']} at once, {found['execs']} programs",
        f"  sentry     {found['wakeups']} wake-ups, {found['notifications']} notifications "
        f"({found['cancelled']} cancelled), {found['stops']} stops and ends",
        f"  stops      {_listed(found['stop_kinds'])}",
        f"  signals    {_listed({_signal_name(int(n)): count for n, count in found['signals'].items()})}",
        f"  timers     {_listed(found['timers'])}",
    ]
    if calls:
        lines.append(f"  {'owned call':<22}{'count':>10}{'in handlers':>14}{'each':>12}")
    for name, count in sorted(calls.items(), key=lambda item: (-spent[item[0]], -item[1], item[0])):
        total = spent[name]
        lines.append(f"  {name:<22}{count:>10}{total / 1e6:>11.3f} ms{total / count / 1e3:>9.1f} µs")
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered) or "none"


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number > signal.SIGRTMIN else f"SIG{number}"
