"""The line that shows how far long work is."""

from __future__ import annotations

import io
import os
import pty

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.platform.progress_bar import AFTER, INTERVAL, Bar, line

MIB = 1 << 20


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("memory", 512 * MIB, 1024 * MIB, 512 * MIB, 0.5, 79),
         "memory        50% [" + "#" * 15 + " " * 16 + "]  512M of 1.0G  1.0G/s  0:01"),
        (("memory", 256, 1024, 0, 0.0, 60), "memory        25% [" + "#" * 7 + " " * 21 + "]  256B of 1K"),
        (("memory", 2048, 1024, 2048, 1.0, 30), "memory 100%  1K of 1K  2K/s  0"),
        (("stopping", 0, 0, 0, 1.0, 79), "stopping"),
        (("files", 5 * MIB, 0, 4 * MIB, 2.0, 79), "files  5.0M  2.0M/s"),
        (("a phase of many words", 1, 2, 0, 3.0, 79), "a phase of m  50% [" + "#" * 24 + " " * 25 + "]  1B of 2B"),
        (("memory", 1, 1 << 40, 1 << 20, 1.0, 79),
         "memory         0% [" + " " * 29 + "]  1B of 1.0T  1.0M/s  99:59:59"),
    ],
)  # fmt: skip
def test_line(arguments: tuple[str, int, int, int, float, int], shown: str) -> None:
    assert line(*arguments) == shown


@given(
    st.text(min_size=1, max_size=20), st.integers(0, 1 << 60), st.integers(0, 1 << 60), st.integers(0, 1 << 60),
    st.floats(0, 1e6), st.integers(0, 200),
)  # fmt: skip
def test_no_line_is_too_long(phase: str, done: int, total: int, new: int, seconds: float, columns: int) -> None:
    assert len(line(phase, done, total, new, seconds, columns)) <= columns


class Screen:
    """What a terminal shows, and a clock that is set by hand."""

    def __init__(self, columns: int = 80) -> None:
        self.stream = io.StringIO()
        self.now = 100.0
        self.bar = Bar(self.stream, lambda: self.now, lambda: columns)

    def after(self, seconds: float, done: int, total: int = 100, phase: str = "memory") -> str:
        """What is written for a report that comes so much later."""
        self.now += seconds
        before = len(self.stream.getvalue())
        self.bar.report(done, total, phase)
        return self.stream.getvalue()[before:]


def test_quick_work_shows_nothing() -> None:
    screen = Screen()
    with screen.bar:
        for done in range(100):
            assert screen.after(AFTER / 101, done) == ""
    assert screen.stream.getvalue() == ""


def test_so_many_times_a_second_and_all_taken_away() -> None:
    screen = Screen()
    with screen.bar:
        assert "  50% [" in screen.after(AFTER, 50)
        assert screen.after(INTERVAL / 2, 51) == ""
        assert "  52% [" in screen.after(INTERVAL, 52)
        short = screen.after(INTERVAL, 0, 0, "x")
        assert short.startswith("\rx ") and short.rstrip() == "\rx"  # blanks over what was longer
    written = screen.stream.getvalue()
    assert written.endswith("\r") and written.split("\r")[-2].strip() == ""
    assert "\n" not in written and "\x1b" not in written


def test_a_phase_has_a_rate_of_its_own() -> None:
    screen = Screen()
    screen.after(0, 0)
    screen.after(10, 100)
    screen.after(0, 40, 1000, "files")  # as much was done before
    assert "  30B/s" in screen.after(2, 100, 1000, "files")


def test_only_a_terminal_is_written_to() -> None:
    read, write = os.pipe()
    with open(read, "rb") as reader, open(write, "w") as writer:
        now = iter((0.0, 10.0))
        Bar(writer, lambda: next(now)).report(1, 2, "memory")
        writer.close()
        assert reader.read() == b""


def test_a_terminal_that_says_no_width() -> None:
    pid, master = pty.fork()
    if pid == 0:
        try:
            now = iter((0.0, 10.0))
            Bar(open(1, "w", closefd=False), lambda: next(now)).report(1, 2, "memory")
        finally:
            os._exit(0)
    shown = b""
    try:
        while data := os.read(master, 4096):
            shown += data
    except OSError:
        pass  # its end: pty(7)
    os.waitpid(pid, 0)
    os.close(master)
    assert shown.startswith(b"\rmemory        50% [####") and len(shown) == 80
