"""A reader of logs in the form of `strace -f -ttt -T -o`, written from strace(1), that takes nothing else.

It splits a line as readers of that form do: id, time stamp, then an event or a call whose result stands behind
the last `) = ` and whose duration is the last word. A line of another form, or a beginning and an end that do not
belong together, is a ValueError.
"""

from __future__ import annotations

import re
from pathlib import Path

LINE = re.compile(r"(\d+) +(\d+\.\d{6}) (.*)", re.DOTALL)
EVENT = re.compile(
    r"--- (SIG\w+) \{.*\} ---|--- stopped by (SIG\w+) ---|\+\+\+ exited with \d+ \+\+\+"
    r"|\+\+\+ killed by SIG\w+( \(core dumped\))? \+\+\+|\+\+\+ superseded by execve in pid \d+ \+\+\+"
)
DURATION = re.compile(r" <(\d+\.\d{6})>$")
RESULT = re.compile(
    r"(\?|0x[0-9a-f]+|-?\d+(<[^>]*>)?)( E[A-Z0-9_]+)?( \((?:[^()]|\([^()]*\))*\))?$"  # a path with -y, an errno, a note
)
MARK = re.compile(r" ?/\* (OWNED|REFUSED) \*/$")
UNFINISHED = " <unfinished ...>"
RESUMED = re.compile(r"<\.\.\. (\w+) resumed>")
SUPERSEDED = re.compile(r"\+\+\+ superseded by execve in pid (\d+)")
NAME = re.compile(r"(\w+)\(")


class Entry:
    """One call or event. For events `name` is "" and `text` the line."""

    def __init__(self, pid: int, time: float, text: str) -> None:
        self.pid = pid
        self.time = time
        self.text = text
        self.name = ""
        self.args = ""
        self.result = ""
        self.mark = ""
        self.duration = -1.0


def _finish(entry: Entry, text: str) -> Entry:
    """`text` is all from the name on."""
    found = DURATION.search(text)
    if found:
        entry.duration = float(found[1])
        text = text[: found.start()]
    head, equals, entry.result = text.rpartition("= ")
    while equals and not re.search(r"\)\s+$", head):
        head, equals, more = head.rpartition("= ")
        entry.result = f"{more}= {entry.result}"
    name = NAME.match(head)
    if not equals or name is None or not RESULT.match(entry.result):
        raise ValueError(f"no call: {text!r}")
    entry.name = name[1]
    entry.args = head.rstrip()[name.end() : -1]
    mark = MARK.search(entry.args)
    if mark:
        entry.mark = mark[1]
        entry.args = entry.args[: mark.start()]
    return entry


def read(path: Path) -> list[Entry]:
    """The calls, in the order of their ends, and the events. ValueError."""
    return parse(path.read_text(errors="surrogateescape"))


def parse(text: str) -> list[Entry]:
    """The same of a text."""
    found: list[Entry] = []
    begun: dict[int, Entry] = {}
    lines = text.split("\n")
    if lines.pop():
        raise ValueError("the last line has no end")
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"no line of strace: {line!r}")
        entry = Entry(int(match[1]), float(match[2]), match[3])
        if entry.text.startswith(("---", "+++")):
            if not EVENT.fullmatch(entry.text):
                raise ValueError(f"no event: {line!r}")
            found.append(entry)
            if entry.text.startswith("+++") and entry.pid in begun:
                raise ValueError(f"{entry.pid} ended in the middle of {begun[entry.pid].text!r}")
            superseded = SUPERSEDED.match(entry.text)
            if superseded and int(superseded[1]) in begun:
                # The thread that executed a program has its leader's id from now on.
                begun[entry.pid] = begun.pop(int(superseded[1]))
            continue
        if entry.text.endswith(UNFINISHED):
            if entry.pid in begun:
                raise ValueError(f"a second beginning: {line!r}")
            begun[entry.pid] = entry
            continue
        resumed = RESUMED.match(entry.text)
        if resumed:
            begin = begun.pop(entry.pid, None)
            if begin is None:
                raise ValueError(f"an end without a beginning: {line!r}")
            if not begin.text.startswith(resumed[1] + "("):
                raise ValueError(f"the end of another call: {line!r} after {begin.text!r}")
            head = begin.text.removesuffix(UNFINISHED)
            found.append(_finish(begin, head + entry.text[resumed.end() :]))
            continue
        if entry.pid in begun:
            raise ValueError(f"{line!r} within {begun[entry.pid].text!r}")
        found.append(_finish(entry, entry.text))
    if begun:
        raise ValueError(f"without an end: {[entry.text for entry in begun.values()]}")
    return found


def calls(entries: list[Entry]) -> dict[int, list[Entry]]:
    """The calls by task."""
    found: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.name:
            found.setdefault(entry.pid, []).append(entry)
    return found
