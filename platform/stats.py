"""What one run cost and did: `trapline do --stats`."""

from __future__ import annotations

import json
import resource
import sys
from typing import TYPE_CHECKING, Any

from trapline.platform.seccomp import SeccompEngine

if TYPE_CHECKING:
    from trapline.platform.session import Session


def collect(session: Session) -> dict[str, Any]:
    """Counters of a session, for people and programs."""
    engine, usage = session.engine, resource.getrusage(resource.RUSAGE_SELF)
    counts = session.kernel.state.counts
    return {
        "platform": session.options.platform,
        "wakeups": session.pump.wakeups,
        "stops": engine.stops,
        "notifications": engine.notifications if isinstance(engine, SeccompEngine) else 0,
        "cancelled": engine.cancelled if isinstance(engine, SeccompEngine) else 0,
        "tasks_peak": engine.tasks_peak,
        "execs": session.kernel.state.exec_count,
        "sentry_cpu_ns": round((usage.ru_utime + usage.ru_stime) * 1e9),
        "sentry_rss_kb": usage.ru_maxrss,
        "calls": {session.dispatcher.name_of(nr): count for nr, count in sorted(counts.items())},
    }


def report(session: Session) -> None:
    """Print the table to standard error, or write the JSON, as asked."""
    found = collect(session)
    if session.options.stats_json:
        with open(session.options.stats_json, "w", encoding="utf-8") as f:
            json.dump(found, f)
    if session.options.stats:
        calls = found.pop("calls")
        for name, value in found.items():
            print(f"{name:<16} {value}", file=sys.stderr)
        for name, count in sorted(calls.items(), key=lambda item: -item[1]):
            print(f"  {name:<22} {count}", file=sys.stderr)
