"""How far long work is, in one line of a terminal that is written over: phase, bar, bytes, bytes a second, time left.

    memory       45% [###############                   ]  460M of 1.0G  812M/s  0:01

Nothing is shown where standard error is no terminal, nor in the background of one, nor for work that is quickly done.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

AFTER = 0.3  # s from the beginning until something is shown
INTERVAL = 0.1  # s between two showings
_USUAL = 80  # columns of a terminal that does not say
_NAME = 12  # columns of the phase
_LEAST = 8  # columns of a bar that is worth its place


class Bar:
    """One piece of work, from now on. Usable as a context, which ends in an empty line."""

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        columns: Callable[[], int] | None = None,
    ) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._columns = columns or self._terminal
        self._began = self._phase_began = clock()
        self._phase: str | None = None
        self._first = 0  # bytes that were done already when the phase began
        self._next = self._began + AFTER
        self._shown = 0  # columns of what stands there

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def report(self, done: int, total: int, phase: str) -> None:
        """As many bytes are done, of `total` or (0) of nobody knows how many."""
        now = self._clock()
        if phase != self._phase:
            self._phase, self._phase_began, self._first = phase, now, done
        if now < self._next:
            return
        self._next = now + INTERVAL
        columns = self._columns()
        if columns:
            self._write(line(phase, done, total, done - self._first, now - self._phase_began, columns - 1))

    def clear(self) -> None:
        """Take it away: something else is to be said."""
        if self._shown:
            self._write("")
            self._put("\r")

    def _write(self, text: str) -> None:
        # Blanks over what was longer: a terminal that knows nothing of escapes can do that.
        self._put("\r" + text.ljust(self._shown))
        self._shown = len(text)

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            pass  # the terminal is gone

    def _terminal(self) -> int:
        """Columns of the terminal that we are to write to now, 0 for none."""
        try:
            fd = self._stream.fileno()
            if os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp():
                return os.get_terminal_size(fd).columns or _USUAL
        except (OSError, ValueError):
            pass  # no terminal, or not ours
        return 0


def line(phase: str, done: int, total: int, new: int, seconds: float, columns: int) -> str:
    """What is shown, in at most so many columns: `new` bytes were done in the phase's `seconds`."""
    name = phase[:_NAME].ljust(_NAME)
    rate = new / seconds if seconds > 0 else 0.0
    if not total:
        parts = [phase] + ([_size(done)] if done else []) + ([f"{_size(rate)}/s"] if rate >= 1 else [])
        return "  ".join(parts)[:columns]
    done = min(done, total)
    share = done / total
    figures = f"  {_size(done)} of {_size(total)}"
    if rate >= 1:
        figures += f"  {_size(rate)}/s  {_clock((total - done) / rate)}"
    head = f"{name} {int(share * 100):3}%"
    room = columns - len(head) - len(figures) - 3  # a blank and the brackets
    if room < _LEAST:
        return (head.replace(name, name.rstrip()) + figures)[:columns]
    full = int(room * share)
    return f"{head} [{'#' * full}{' ' * (room - full)}]{figures}"


def _size(number: float) -> str:
    """Bytes with a binary unit, three digits or so."""
    for unit in ("B", "K", "M", "G"):
        if number < 1000:
            return f"{number:.1f}{unit}" if number < 10 and unit not in ("B", "K") else f"{number:.0f}{unit}"
        number /= 1024
    return f"{number:.1f}T"


def _clock(seconds: float) -> str:
    """Time left: `0:07`, `1:02:03`."""
    minutes, rest = divmod(int(min(seconds, 359999) + 0.999), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
