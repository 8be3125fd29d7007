"""Guest memory by process_vm, with this very process as the guest."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

import pytest

from trapline.platform.guest_memory import PAGE, GuestMemory
from trapline.sentry.protocol import Gone

libc = ctypes.CDLL(None, use_errno=True)
NOTHING, READ, WRITE = 0, 1, 2


class Area:
    """Pages with a hole of a kind after them."""

    def __init__(self, pages: int) -> None:
        self.map = mmap.mmap(-1, (pages + 1) * PAGE)
        self.at = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.end = self.at + pages * PAGE
        self.protect(self.end, NOTHING)

    def protect(self, address: int, how: int) -> None:
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), how) == 0


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(os.getpid())


@pytest.fixture
def area() -> Area:
    return Area(3)


@pytest.mark.parametrize("size", [1, 8, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE])
def test_what_is_written_is_read(memory: GuestMemory, area: Area, size: int) -> None:
    """Of every size around the page that the buffer holds, and across pages."""
    data = bytes(i * 7 & 0xFF for i in range(size))
    for address in (area.at, area.at + PAGE - 3, area.end - size):
        memory.write(address, data)
        assert memory.read(address, size) == data
    assert ctypes.string_at(area.end - size, size) == data


def test_nothing_is_always_there(memory: GuestMemory) -> None:
    assert memory.read(0, 0) == b""
    memory.write(0, b"")


@pytest.mark.parametrize("address", [0, 1, 0x1000, 0x0000_8000_0000_1000, 0xFFFF_8880_0000_0000, (1 << 64) - 8])
def test_addresses_of_nothing(memory: GuestMemory, address: int) -> None:
    for attempt in (
        lambda: memory.read(address, 8), lambda: memory.write(address, b"x"), lambda: memory.read_string(address),
    ):  # fmt: skip
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EFAULT


def test_what_crosses_into_a_hole_is_efault(memory: GuestMemory, area: Area) -> None:
    """Part of it could be read: the call must not go on with half of an argument."""
    for size in (2, 8, PAGE):
        with pytest.raises(OSError) as caught:
            memory.read(area.end - 1, size)
        assert caught.value.errno == errno.EFAULT
        with pytest.raises(OSError) as caught:
            memory.write(area.end - 1, bytes(size))
        assert caught.value.errno == errno.EFAULT
    assert memory.read(area.end - 1, 1) == b"\0"


def test_a_read_only_page_stays_unwritten(memory: GuestMemory, area: Area) -> None:
    area.protect(area.at, READ)
    with pytest.raises(OSError) as caught:
        memory.write(area.at + 8, b"data")
    assert caught.value.errno == errno.EFAULT
    assert memory.read(area.at, PAGE) == bytes(PAGE)


def test_strings(memory: GuestMemory, area: Area) -> None:
    """Up to the end of memory, and no further than their NUL."""
    memory.write(area.end - 6, b"hello\0")
    assert memory.read_string(area.end - 6) == b"hello"
    assert memory.read_string(area.end - 1) == b""
    memory.write(area.at + PAGE - 2, b"across\0")
    assert memory.read_string(area.at + PAGE - 2) == b"across"
    memory.write(area.end - 3, b"abc")
    with pytest.raises(OSError) as caught:
        memory.read_string(area.end - 3)
    assert caught.value.errno == errno.EFAULT


def test_a_limit_of_strings(memory: GuestMemory, area: Area) -> None:
    memory.write(area.at, b"a" * 2 * PAGE)
    assert memory.read_string(area.at, 2 * PAGE + 1) == b"a" * 2 * PAGE
    for limit in (1, 16, PAGE, 2 * PAGE):
        with pytest.raises(OSError) as caught:
            memory.read_string(area.at, limit)
        assert caught.value.errno == errno.ENAMETOOLONG


def test_a_dead_task_is_gone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(Gone):
        GuestMemory(pid).read(0x1000, 8)
    with pytest.raises(Gone):
        GuestMemory(pid).write(0x1000, b"x")
