"""What the verbs of named sandboxes have in common: how they are declared, and how they find their sandbox."""

from __future__ import annotations

import os
import sys

from trapline.sentry.cli.flags import Flag, UsageError, VerbError, help_text, parse, parse_mixed

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from trapline.sentry.control.records import Record


def path(text: str) -> str:
    """A path made absolute. ValueError for an empty one."""
    if not text:
        raise ValueError("takes a path")
    return os.path.abspath(text)


def number(text: str) -> int:
    """A process id. ValueError."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 22:
        raise ValueError("takes a process id of the sandbox")
    return int(text)


STATE_DIR = Flag("--state-dir", "DIR", "Where sandboxes are written down; also --root before the verb.", parse=path)
FORMAT = Flag("--format", help="A table to read, or JSON.", choices=("table", "json"), default="table")


class Verb:
    """One verb. `action` takes the flags' values and the other words.

    With `command` the first word that is no flag begins words that are not looked at; without, flags may stand
    anywhere. `words`: (least, most) of the others.
    """

    __slots__ = ("action", "command", "examples", "flags", "name", "summary", "usage", "words")

    def __init__(
        self,
        name: str,
        usage: str,
        summary: str,
        flags: Sequence[Flag],
        action: Callable[[dict[str, Any], list[str]], int],
        *,
        examples: str = "",
        command: bool = False,
        words: tuple[int, int] = (1, 1),
    ) -> None:
        self.name = name
        self.usage = f"trapline {name} {usage}"
        self.summary = summary
        self.flags = (*flags, STATE_DIR)
        self.action = action
        self.examples = examples
        self.command = command
        self.words = words

    def run(self, words: list[str]) -> int:
        """The exit status. UsageError, VerbError."""
        values, rest = (parse if self.command else parse_mixed)(self.flags, words)
        if values["help"]:
            more = f"\nexamples:\n{self.examples}" if self.examples else ""
            sys.stdout.write(help_text(self.usage, self.summary, self.flags, more))
            return 0
        least, most = self.words
        if len(rest) < least:
            what = "ID" if not rest else "argument"
            raise UsageError(f"there is no {what}: {self.usage}")
        if not self.command and len(rest) > most:
            raise UsageError(f"'{rest[most]}' is too much: {self.usage}")
        return self.action(values, rest)


def find(values: dict[str, Any], name: str) -> Record:
    """The sandbox of an id. VerbError."""
    from trapline.sentry.control import records

    try:
        return records.find(values["state_dir"], name)
    except records.RecordError as error:
        raise VerbError(str(error)) from None


def ask(record: Record, method: str, **params: Any) -> Any:
    """The answer to one call. VerbError."""
    from trapline.sentry.control.client import ControlError, Gone
    from trapline.sentry.control.records import RecordError

    try:
        with record.client() as client:
            return client.call(method, **params)
    except Gone:
        raise VerbError(f"sandbox {record.id} is not running") from None
    except (ControlError, RecordError) as error:
        raise VerbError(as_runtimes_say(str(error))) from None


def as_runtimes_say(text: str) -> str:
    """Why a program was not executed, in the words that callers of OCI runtimes look for to tell 127 from 126."""
    for ours, theirs in (
        (": command not found", ": executable file not found in $PATH"),
        (": its interpreter does not exist", ": no such file or directory: its interpreter does not exist"),
    ):
        if text.endswith(ours):
            return text.removesuffix(ours) + theirs
    return text


def print_json(value: Any) -> None:
    """For programs, indented."""
    import json

    text = json.dumps(value, indent=2, ensure_ascii=False)
    if not text.isascii():
        from trapline.sentry.state.names import printable, walk

        text = json.dumps(walk(value, printable), indent=2, ensure_ascii=False)
    sys.stdout.write(text + "\n")
