"""`trapline events`: what a sandbox uses, as JSON lines in the form that OCI runtimes print."""

from __future__ import annotations

import json
import select
import sys
from typing import Any

from trapline.sentry.cli.flags import Flag, VerbError
from trapline.sentry.cli.verb import Verb, find

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _interval(text: str) -> float:
    """Seconds of `5s`, `200ms`, `1.5`."""
    unit = next((u for u in ("ms", "s", "m", "h") if text.endswith(u)), "")
    try:
        seconds = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 86400:
        raise ValueError("takes a time such as 5s or 200ms")
    return seconds


def _events(values: dict[str, Any], words: list[str]) -> int:
    from trapline.sentry.control.client import ControlError, Gone
    from trapline.sentry.control.records import RecordError

    record = find(values, words[0])
    shown = False
    try:
        with record.client() as client:
            while True:
                found = client.call("stats")
                sys.stdout.write(json.dumps({"type": "stats", "id": record.id, "data": _data(found)}) + "\n")
                sys.stdout.flush()
                shown = True
                if values["stats"]:
                    return 0
                # Readable without a question: the sandbox has ended.
                if select.select([client.fileno()], [], [], values["interval"])[0]:
                    return 0
    except Gone:
        if shown:
            return 0
        raise VerbError(f"sandbox {record.id} is not running") from None
    except (ControlError, RecordError) as error:
        raise VerbError(str(error)) from None


def _data(found: dict[str, Any]) -> dict[str, Any]:
    """The names of runc's and runsc's; what they have no name for is below `trapline`."""
    return {
        "cpu": {"usage": {"total": found["cpu_total"], "user": found["cpu_guests"], "kernel": found["cpu_sentry"]}},
        "memory": {"usage": {"usage": found["memory_guests"] + found["memory_sentry"]}},
        "pids": {"current": found["pids"]},
        "trapline": found,
    }


VERBS = (
    Verb(
        "events",
        "[FLAGS] ID",
        "Print what a sandbox uses as lines of JSON, until it ends: CPU time in ns (user: the guests', kernel: the "
        "sentry's), memory in bytes, processes, and the calls that the sentry answered.",
        (
            Flag("--stats", help="Print one line only."),
            Flag("--interval", "TIME", "Time between two lines. Default: 5s.", parse=_interval, default=5.0),
        ),
        _events,
        examples="  trapline events --stats box\n  trapline events --interval 500ms box\n",
    ),
)
