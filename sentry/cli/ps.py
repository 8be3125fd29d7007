"""`trapline ps`: the processes of a running sandbox."""

from __future__ import annotations

import sys

from trapline.sentry.cli.flags import Flag, UsageError, VerbError, help_text, parse_mixed

USAGE = "trapline ps [FLAGS] [ID]"
SUMMARY = (
    "List the processes of a running sandbox by the ids that they have in it. Without an ID there must be only "
    "one sandbox. In STAT, t is stopped (or at a call that is just being answered), the other letters are "
    "those of ps(1). A group or session 0 is outside of the sandbox. "
    "The exit status is 128 if there is no such sandbox."
)
MORE = """
examples:
  trapline ps
  trapline ps --host 4711
"""
FLAGS = (
    Flag("--host", help="Show the host's process ids too."),
    Flag("--format", help="A table to read, or JSON.", choices=("table", "json"), default="table"),
    Flag("--state-dir", "DIR", "Where it was written down, if `do` was told another place."),
)
_HEAD = ("PID", "PPID", "PGID", "SID", "TTY", "STAT", "TIME", "RSS", "COMMAND")
_RIGHT = ("HOST", "PID", "PPID", "PGID", "SID", "TIME", "RSS")


def run(words: list[str]) -> int:
    """Run the verb; the exit status. UsageError."""
    values, rest = parse_mixed(FLAGS, words)
    if values["help"]:
        sys.stdout.write(help_text(USAGE, SUMMARY, FLAGS, MORE))
        return 0
    if len(rest) > 1:
        raise UsageError(f"'{rest[1]}' is too much: {USAGE}")
    from trapline.sentry.cli import sandboxes

    try:
        entry = sandboxes.choose(values["state_dir"], rest[0] if rest else None)
    except sandboxes.NoSuchSandbox as error:
        raise VerbError(str(error)) from None
    found = sandboxes.guests(entry[1])
    if values["format"] == "json":
        print(sandboxes.as_json(found))
        return 0
    from trapline.sentry.cli.columns import duration, printable, size, table, terminal_width

    rows: list[tuple[str, ...]] = [
        (
            str(g.pid), str(g.ppid), str(g.pgid), str(g.sid), g.tty or "?", g.state, duration(g.cpu), size(g.rss),
            printable(g.command),
        )
        for g in found
    ]  # fmt: skip
    head: tuple[str, ...] = _HEAD
    if values["host"]:
        head = ("HOST", *_HEAD)
        rows = [(str(g.host_pid), *row) for g, row in zip(found, rows, strict=True)]
    sys.stdout.write(table(head, rows, _RIGHT, terminal_width()))
    return 0
