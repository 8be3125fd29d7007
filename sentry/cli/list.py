"""`trapline list`: the sandboxes, those of `do` while they run, those with a name until they are deleted."""

from __future__ import annotations

import sys

from trapline.sentry.cli.flags import Flag, UsageError, VerbError, help_text, parse

USAGE = "trapline list [FLAGS]"
SUMMARY = (
    "List the sandboxes: yours, and for root everybody's; those with a name also when they have stopped. GUESTS counts "
    "processes. CPU is the guests' time and SENTRY the sentry's; MEMORY is the sum of what the guests have in memory."
)
MORE = """
examples:
  trapline list
  trapline list --format json
"""
FLAGS = (
    Flag("--format", help="A table to read, or JSON.", choices=("table", "json"), default="table"),
    Flag("--quiet", help="Print ids only.", short="-q"),
    Flag("--state-dir", "DIR", "Where they were written down, if `do` was told another place."),
)
_HEAD = ("ID", "STATUS", "PLATFORM", "PID", "USER", "UPTIME", "GUESTS", "CPU", "SENTRY", "MEMORY", "COMMAND")
_RIGHT = ("PID", "UPTIME", "GUESTS", "CPU", "SENTRY", "MEMORY")


def run(words: list[str]) -> int:
    """Run the verb; the exit status: 128 when the state directory cannot be read. UsageError."""
    values, rest = parse(FLAGS, words)
    if values["help"]:
        sys.stdout.write(help_text(USAGE, SUMMARY, FLAGS, MORE))
        return 0
    if rest:
        raise UsageError(f"'{rest[0]}' is too much: {USAGE}")
    from trapline.sentry.cli import sandboxes

    try:
        entries = sandboxes.entries(values["state_dir"])
    except sandboxes.NoSuchSandbox as error:
        raise VerbError(str(error)) from None
    found = [seen for entry in entries if (seen := sandboxes.look(entry)) is not None]
    found += sandboxes.stopped(values["state_dir"])
    if values["quiet"]:
        sys.stdout.write("".join([f"{sandbox.id}\n" for sandbox in found]))
        return 0
    if values["format"] == "json":
        print(sandboxes.as_json(found))
        return 0
    from trapline.sentry.cli.columns import duration, printable, size, table, terminal_width

    rows = [
        (
            s.id, s.status, s.platform or "-", str(s.pid or "-"), s.user, duration(s.uptime), str(s.guests),
            duration(s.guest_cpu), duration(s.sentry_cpu), size(s.guest_rss), printable(s.command),
        )
        for s in found
    ]  # fmt: skip
    sys.stdout.write(table(_HEAD, rows, _RIGHT, terminal_width()))
    return 0
