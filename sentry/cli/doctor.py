"""`trapline doctor`: what this host offers, and which form is used in place of what it does not."""

from __future__ import annotations

import os
import sys
from typing import Any

from trapline.sentry.cli.flags import Flag, UsageError, help_text, parse

USAGE = "trapline doctor [FLAGS]"
SUMMARY = (
    "Try what sandboxes need of this host, as the user who asks. "
    "The exit status is 0 if sandboxes can run here, 1 if not."
)
FLAGS = (
    Flag("--format", help="A table to read, or JSON.", choices=("table", "json"), default="table"),
    Flag("--without", "FEATURE", "As if the host did not offer this.", repeat=True, hidden=True),
)


def run(words: list[str]) -> int:
    """Run the verb; the exit status. UsageError."""
    values, rest = parse(FLAGS, words)
    if values["help"]:
        sys.stdout.write(help_text(USAGE, SUMMARY, FLAGS))
        return 0
    if rest:
        raise UsageError(f"'{rest[0]}' is too much: {USAGE}")
    rows = examine(values["without"])
    able = all(row["available"] or not row["needed"] for row in rows)
    if values["format"] == "json":
        import json

        print(json.dumps({"able": able, "host": _host(), "features": rows}, indent=2))
    else:
        sys.stdout.write(table(rows, able))
    return 0 if able else 1


def _host() -> dict[str, Any]:
    uname = os.uname()
    return {
        "kernel": uname.release,
        "machine": uname.machine,
        "cpus": len(os.sched_getaffinity(0)),
        "user": os.geteuid(),
    }


def examine(without: list[str]) -> list[dict[str, Any]]:
    """One row per feature. Needed are those without a form in their place, and for an ordinary user
    namespaces."""
    from trapline.platform.capabilities import privileged
    from trapline.platform.features import FEATURES, Features

    features = Features(without)
    is_root = privileged()
    rows = []
    for feature in FEATURES.values():
        if feature.name == "user_namespace" and is_root:
            there, seen = True, "not needed: root"
        else:
            there, seen = features.answer(feature.name, thorough=True)
            seen = "" if there else seen
        rows.append(
            {
                "name": feature.name,
                "available": there,
                "needed": not feature.instead or (feature.name == "user_namespace" and not is_root),
                "seen": seen,
                "purpose": feature.purpose,
                "instead": feature.instead,
                "advice": "" if there else feature.advice,
            }
        )
    return rows


def table(rows: list[dict[str, Any]], able: bool) -> str:
    """The rows as text, and what to do about the absent ones."""
    host = _host()
    who = "root" if host["user"] == 0 else f"user {host['user']}"
    lines = [f"kernel {host['kernel']} on {host['machine']}, {host['cpus']} CPUs, as {who}", ""]
    width = max(len(row["name"]) for row in rows) + 2
    for row in rows:
        mark = "yes" if row["available"] else "NO" if row["needed"] else "no"
        text = row["purpose"]
        if not row["available"]:
            text += f"; instead: {row['instead']}" if row["instead"] else "; needed"
            if row["seen"]:
                text += f" ({row['seen']})"
        lines.append(f"  {mark.ljust(4)} {row['name'].ljust(width)}{text}")
    advice = [f"  {row['name']}: {row['advice']}" for row in rows if row["advice"]]
    if advice:
        lines += ["", "to get what is missing:", *advice]
    lines += ["", "sandboxes can run here" if able else "sandboxes cannot run here: see what is marked NO"]
    return "\n".join(lines) + "\n"
