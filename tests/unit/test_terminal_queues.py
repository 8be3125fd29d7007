"""What a pseudoterminal holds unread is taken out and put back, however much it is (platform/terminal_queues.py)."""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import termios
import tty
from collections.abc import Iterator

import pytest

from trapline.platform import terminal_queues as queues

_TIOCSPTLCK = 0x40045431


def a_terminal() -> tuple[int, int]:
    """Master and slave, raw."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = queues.open_slave(master)
    tty.setraw(slave)
    return master, slave


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ends = a_terminal()
    yield ends
    for fd in ends:
        os.close(fd)


def fill(fd: int, sizes: tuple[int, ...], chance: random.Random) -> bytes:
    """Write until it is full."""
    os.set_blocking(fd, False)
    written = b""
    while select.select([], [fd], [], 0)[1]:
        piece = chance.randbytes(chance.choice(sizes))
        try:
            written += piece[: os.write(fd, piece)]
        except BlockingIOError:
            break
    os.set_blocking(fd, True)
    return written


def read_all(fd: int) -> bytes:
    found = b""
    while select.select([fd], [], [], 0)[0]:
        found += os.read(fd, 4096)
    return found


@pytest.mark.parametrize("sizes", [(1, 5), (256,), (60, 2000), (100, 1000, 4096), (4096,)], ids=str)
@pytest.mark.parametrize("way", ["input", "output"])
@pytest.mark.parametrize("new", [False, True], ids=["the same", "a new one"])
def test_a_full_terminal(terminal: tuple[int, int], way: str, sizes: tuple[int, ...], new: bool) -> None:
    """All of it is there again, in its order, in that terminal and in another. Its descriptors block."""
    master, slave = terminal
    chance = random.Random(f"{sizes} {way}")
    write, read = (master, slave) if way == "input" else (slave, master)
    for _ in range(5):
        wanted = fill(write, sizes, chance)
        begin = chance.randrange(1, 3000)
        got = os.read(read, begin)
        wanted += fill(write, sizes, chance)
        assert len(wanted) > 8192
        os.set_blocking(slave, False)
        lines, output = queues.take_input(slave), queues.take_output(master)
        assert read_all(read) == b""
        to = a_terminal() if new else terminal
        queues.put_input(*to, lines)
        queues.put_output(*to, output)
        assert os.get_blocking(to[0])
        assert got + read_all(to[1] if way == "input" else to[0]) == wanted
        if new:
            for fd in to:
                os.close(fd)


def test_lines_stay_lines(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    settings = termios.tcgetattr(slave)
    settings[3] |= termios.ICANON
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    os.write(master, b"one\ntwo\nended\x04half")
    while queues.unread(slave) < 13:
        pass
    lines = queues.take_input(slave)
    assert lines == [b"one\n", b"two\n", b"ended", b"half"]
    queues.put_input(master, slave, lines)
    assert [os.read(slave, 4096) for _ in range(3)] == [b"one\n", b"two\n", b"ended"]
    os.write(master, b" and half\n")
    select.select([slave], [], [])
    assert os.read(slave, 4096) == b"half and half\n"
