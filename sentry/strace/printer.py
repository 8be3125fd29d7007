"""Lines in the form of `strace -f -ttt -T`.

A call whose line no other line interrupts is one line. Else its beginning ends with `<unfinished ...>`, and its
end begins with `<... name resumed>`. Every line is written whole, in one piece.
"""

from __future__ import annotations

from collections.abc import Callable

from trapline.sentry.strace.call import Call

COLUMN = 40  # where the results begin (strace's -a)
#: What marks a call that did not reach the host: strace writes comments in arguments too, which its readers
#: take as they are (docs/strace.md).
OWNED, REFUSED = " /* OWNED */", " /* REFUSED */"


class Printer:
    """Writes calls and events to a sink. `whole`: never split a line, so that ends decide what is printed."""

    def __init__(self, write: Callable[[str], None], whole: bool = False) -> None:
        self.write = write
        self.whole = whole
        #: The call whose beginning is the last thing to be printed, and is not yet.
        self.open: Call | None = None

    def began(self, call: Call) -> None:
        """A call was entered."""
        if self.whole:
            return
        self._cut()
        self.open = call

    def returned(self, call: Call, rest: str, result: str, now: int, spent: int | None) -> None:
        """A call has ended. `rest` are its last arguments, `result` what follows `= `, `spent` ns."""
        mark = OWNED if call.owned else REFUSED if call.refused else ""
        if not mark and not rest:
            middle = ""
        elif mark and not rest and call.entry.endswith("("):
            middle = mark[1:]
        else:
            middle = rest + mark
        time = f" <{spent // 1_000_000_000}.{spent % 1_000_000_000 // 1000:06d}>" if spent is not None else ""
        if call is self.open or self.whole:
            self.open = None if call is self.open else self.open
            line = f"{_stamp(call.tid, call.entered)}{call.entry}{middle}) "
        else:
            self._cut()
            line = f"{_stamp(call.tid, now)}<... {call.row.name} resumed>{middle}) "
        self.write(f"{line.ljust(COLUMN)}= {result}{time}\n")

    def never_returned(self, call: Call, now: int) -> None:
        """Its task died in it."""
        left = "" if call.complete else " <unfinished ...>"
        if call is self.open or self.whole:
            self.open = None if call is self.open else self.open
            line = f"{_stamp(call.tid, call.entered)}{call.entry}{left}) "
        else:
            self._cut()
            line = f"{_stamp(call.tid, now)}<... {call.row.name} resumed>{left}) "
        self.write(f"{line.ljust(COLUMN)}= ?\n")

    def detached(self, call: Call, now: int) -> None:
        """Nobody looks at the task any more."""
        if call is self.open or self.whole:
            self.open = None if call is self.open else self.open
            self.write(f"{_stamp(call.tid, call.entered)}{call.entry} <detached ...>\n")
        else:
            self._cut()
            self.write(f"{_stamp(call.tid, now)}<... {call.row.name} resumed> <detached ...>\n")

    def event(self, tid: int, now: int, text: str) -> None:
        """`--- ... ---` or `+++ ... +++`."""
        self._cut()
        self.write(f"{_stamp(tid, now)}{text}\n")

    def renamed(self, former: int, tid: int) -> None:
        """The open line's task has another id now: its beginning keeps the one that it had."""
        if self.open is not None and self.open.tid == former:
            self._cut()

    def _cut(self) -> None:
        call, self.open = self.open, None
        if call is not None:
            call.shown = True
            self.write(f"{_stamp(call.tid, call.entered)}{call.entry} <unfinished ...>\n")


def _stamp(tid: int, now: int) -> str:
    return f"{tid:<5} {now // 1_000_000_000}.{now % 1_000_000_000 // 1000:06d} "
