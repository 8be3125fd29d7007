"""What a pseudoterminal holds unread, taken out and put back.

A terminal has no way to look at what it holds, so it is drained and filled again, which nobody sees while the guests
stand still: input by the master, output by the slave, with settings under which nothing is changed, echoed or taken
for a key. Lines of a terminal that edits lines stay lines.

Sources: termios(3), pty(7), ioctl_tty(2), Linux drivers/tty/n_tty.c.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

TCGETS2, TCSETS2 = 0x802C542A, 0x402C542B
TIOCGPTPEER, TIOCPKT, TIOCGPKT = 0x5441, 0x5420, 0x80045438
SETTINGS_SIZE = 44  # struct termios2
_FLAGS = struct.Struct("4I")  # c_iflag, c_oflag, c_cflag, c_lflag
_CC = 17  # offset of c_cc
_CC_COUNT = 19
_PATIENCE = 5  # seconds
#: Bytes that a side has ready to be read at most (N_TTY_BUF_SIZE - 1). What was written beyond waits in buffers of the
#: host's, each of which holds twice its size: of 256 bytes, or 1792 for larger writes. There is a limit to their sum,
#: but not to small ones that were freed and are used again (drivers/tty/tty_buffer.c).
_READY = 4095
_SMALL, _LARGE = 256, 1792
_MUCH = 8192  # bytes that have room in any case
_TCXONC, _STOP, _START = 0x540A, 0, 1


def open_slave(master: int) -> int:
    """A description of our own of a master's other side. OSError."""
    return fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)


def settings_of(fd: int) -> bytes:
    """struct termios2 of the slave's side. OSError."""
    return fcntl.ioctl(fd, TCGETS2, bytes(SETTINGS_SIZE))


def _changed(settings: bytes, canonical: bool, end: int = 0) -> bytes:
    """Nothing is done with what passes; with `canonical`, but that lines are kept, which `end` ends too."""
    cflag = _FLAGS.unpack_from(settings)[2]
    characters = bytearray(_CC_COUNT)
    characters[termios.VEOF] = end
    if not canonical:
        characters[termios.VMIN] = characters[termios.VTIME] = 0
    head = _FLAGS.pack(0, 0, cflag, termios.ICANON if canonical else 0)
    return head + settings[16:_CC] + bytes(characters) + settings[_CC + _CC_COUNT :]


@contextmanager
def _as_set(fd: int, settings: bytes, wanted: bytes) -> Iterator[None]:
    fcntl.ioctl(fd, TCSETS2, wanted)
    try:
        yield
    finally:
        fcntl.ioctl(fd, TCSETS2, settings)


def is_canonical(settings: bytes) -> bool:
    """Whether it edits lines."""
    return bool(_FLAGS.unpack_from(settings)[3] & termios.ICANON)


def unread(fd: int) -> int:
    """FIONREAD."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


# -- input: by the slave
def take_input(slave: int) -> list[bytes]:
    """Drain it. Lines, each as read(2) gives it: without a newline it was ended by VEOF; then, as the last one, what
    is no line yet, b"" where there is nothing. `slave` must not block."""
    settings = settings_of(slave)
    lines: list[bytes] = []
    if is_canonical(settings):
        while True:
            try:
                lines.append(os.read(slave, 4096))
            except BlockingIOError:
                break
    with _as_set(slave, settings, _changed(settings, False)):
        rest = _drained(slave)
    return [*lines, rest] if lines or rest else []


def _drained(fd: int) -> bytes:
    found = b""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while True:
        poller.poll(0)  # waits for what is on its way
        count = unread(fd)
        if not count:
            return found
        found += os.read(fd, count)


def put_input(master: int, slave: int, lines: list[bytes]) -> None:
    """Fill it, as `take_input` found it. OSError."""
    if not lines:
        return
    settings = settings_of(slave)
    canonical = is_canonical(settings)
    used = set(b"".join(lines))
    end = next((byte for byte in range(1, 256) if byte not in used and byte != 10), 0)
    whole = [line if line.endswith(b"\n") else line + bytes([end]) for line in lines[:-1]]
    data = b"".join(whole) + lines[-1]
    # The host tells how much there is in whole lines, and takes what one write gave at once: so the last of it that
    # is counted goes with all that is not.
    counted = _counted(lines, whole) if canonical else len(data)
    last = max(len(b"".join(whole).rstrip(bytes([end]))) - 1, 0) if canonical and counted else len(data)
    flags = fcntl.fcntl(master, fcntl.F_GETFL)
    with _as_set(slave, settings, _changed(settings, canonical, end)):
        fcntl.fcntl(master, fcntl.F_SETFL, flags | os.O_NONBLOCK)  # it may be a guest's
        try:
            if not canonical:
                _make_room(master, slave, len(data))
            write_all(master, data, len(data) - last)
        finally:
            fcntl.fcntl(master, fcntl.F_SETFL, flags)
        _await(slave, counted)


def _counted(lines: list[bytes], whole: list[bytes]) -> int:
    """Of what is ready, FIONREAD: lines without their VEOF, as many as have room."""
    count = room = 0
    for line, written in zip(lines, whole, strict=False):
        room += len(written)
        if room > _READY:
            break
        count += len(line)
    return count


# -- output: by the master
def take_output(master: int) -> bytes:
    """Drain it. The master must not be in packet mode."""
    return _drained(master)


@contextmanager
def without_packets(master: int) -> Iterator[None]:
    """Changes of the settings would be told to who reads packets (TIOCPKT)."""
    packet = struct.unpack("i", fcntl.ioctl(master, TIOCGPKT, bytes(4)))[0]
    if packet:
        fcntl.ioctl(master, TIOCPKT, struct.pack("i", 0))
    try:
        yield
    finally:
        if packet:
            fcntl.ioctl(master, TIOCPKT, struct.pack("i", 1))


def put_output(master: int, slave: int, data: bytes) -> None:
    """Fill it. `slave` must not block."""
    if not data:
        return
    settings = settings_of(slave)
    with _as_set(slave, settings, _changed(settings, is_canonical(settings))):
        _make_room(slave, master, len(data))
        write_all(slave, data)
        _await(master, len(data))


def _make_room(write: int, read: int, count: int) -> None:
    """For so many bytes: use small buffers, as many as there may be, and have them freed."""
    if count <= _MUCH:
        return
    try:
        while True:
            os.write(write, bytes(_SMALL))
    except BlockingIOError:
        _drained(read)


def _await(fd: int, count: int) -> None:
    """Until a side has so much to read, or is full. What was written is moved there by a worker of the host's, which
    poll(2) waits for where there is nothing yet; that more has come is told by nothing but the count. OSError."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.poll(0)
    until = time.monotonic() + _PATIENCE
    while unread(fd) < min(count, _READY):
        if time.monotonic() > until:
            raise OSError(errno.EIO, "a terminal does not take what it held")
        os.sched_yield()


def write_all(fd: int, data: bytes, last: int = 0) -> None:
    """To a side that may be stopped by ^S, and is then again; the last `last` bytes as one piece. `fd` must not block.
    OSError."""
    size, started = _LARGE, False
    until = time.monotonic() + _PATIENCE
    at = 0
    try:
        while at < len(data):
            end = len(data) if at >= len(data) - last else min(at + size, len(data) - last)
            try:
                at += os.write(fd, data[at:end])
            except BlockingIOError:
                if not at and not started:  # it is empty, so it is stopped
                    started = True
                    fcntl.ioctl(fd, _TCXONC, _START)
                    continue
                size = _SMALL
                if time.monotonic() > until:
                    raise
                os.sched_yield()  # the worker may make room
    finally:
        if started:
            fcntl.ioctl(fd, _TCXONC, _STOP)
