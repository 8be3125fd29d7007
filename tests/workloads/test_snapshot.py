"""A copy of an address space by a fork of its process: of one moment, whole, and seen by nobody."""

from __future__ import annotations

import errno
import os
import resource
import struct
from collections.abc import Iterator

import pytest
from guests import compiled
from memory_box import Pages, interrupted, start, syscall_place

from trapline.platform import ptrace_calls as pt
from trapline.platform import snapshot
from trapline.platform.capture_memory import Collector, capture_space
from trapline.platform.snapshot import Snapshot, reap
from trapline.platform.space_snapshot import SpaceSnapshot, own_memory
from trapline.sentry.state.records import AddressSpace

SIZE = 8 << 20


class Guest:
    """copied.c at its first int3, at an event stop."""

    def __init__(self) -> None:
        self.status = 0x7F
        self._reading, writing = os.pipe()
        self.host = start([compiled("copied")], writing)
        os.close(writing)
        self.plain, self.left, self.wiped, self.hidden = (int(word, 16) for word in self.line().split())
        interrupted(self.host, pt.OPTIONS)
        self.at = syscall_place(self.host)

    def line(self) -> str:
        text = b""
        while not text.endswith(b"\n"):
            text += os.read(self._reading, 1)
        return text.decode().strip()

    def go_on(self) -> None:
        """To its next int3, or its end."""
        pt.cont(self.host)
        self.status = pt.wait_one(self.host)

    def space(self, complete: bool) -> AddressSpace:
        self.refused: list[str] = []
        self.collector = Collector(f"/proc/{self.host}/root", None, self.refused.append)
        return capture_space(self.host, self.collector, None, complete=complete)


    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._reading)
        if self.status & 0xFF == 0x7F:
            os.kill(self.host, 9)
            while pt.wait_one(self.host) & 0xFF == 0x7F:
                pass


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest() as found:
        yield found


def content(pages: Pages, address: int, size: int) -> bytes:
    """What a restore would put there."""
    found = bytearray(size)
    for run in pages.runs:
        for at in range(max(run.start, address), min(run.start + run.size, address + size), 4096):
            found[at - address : at - address + 4096] = os.pread(pages.fd, 4096, run.offset + at - run.start)
    return bytes(found)


def refuse(*arguments: object) -> list[int]:
    raise OSError(1, "not permitted")


EXPECTED = b"".join(struct.pack("<Q", at | 1) for at in range(0, SIZE // 2, 8)).ljust(SIZE, b"\0")


@pytest.mark.parametrize("how", ["itself", "by the sentry"])
def test_a_copy_is_of_one_moment(guest: Guest, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest changes all of its memory before a page of the copy is written."""
    expected = guest.space(True)
    assert any(mapping.flags == ["dc"] for mapping in expected.mappings)
    pages = Pages()
    if how == "by the sentry":
        # As where memory may not be both written and executed (PR_SET_MDWE), or a descriptor cannot be given.
        monkeypatch.setattr(Snapshot, "_give", refuse)
    with_own = own_memory(guest.host)
    assert 4 * SIZE // 2 <= with_own < 4 * SIZE
    found = SpaceSnapshot.take(guest.host, guest.at, 0, guest.collector, "s1", "the guest", pages)
    try:
        # Of these two the fork has nothing.
        assert sum(run.size for run in pages.runs) == SIZE
        assert found.copy.writes_itself == (how == "itself")
        guest.go_on()
        assert guest.line() == "pipe 0" and guest.line() == "changed"
        assert found.write(pages) + SIZE == sum(run.size for run in pages.runs)
        assert guest.refused == []
        assert found.space == expected
    finally:
        found.close()
    interrupted(guest.host, pt.OPTIONS)
    reap(guest.host, guest.at, found.copy.pid)
    for address in (guest.plain, guest.left, guest.wiped, guest.hidden):
        assert content(pages, address, SIZE) == EXPECTED, hex(address)
    guest.go_on()
    assert guest.line() == "children none"
    os.close(pages.fd)


def test_a_copy_counts_against_no_limit_of_processes(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the guest may make no process, its limit is raised for that moment. (Root is not held to it: so the host's
    refusal is played.)"""
    soft, hard = 0, resource.prlimit(guest.host, resource.RLIMIT_NPROC)[1]
    resource.prlimit(guest.host, resource.RLIMIT_NPROC, (soft, hard))
    clone, limits = snapshot._clone, []

    def held_to_it(*arguments: int) -> int:
        limits.append(resource.prlimit(guest.host, resource.RLIMIT_NPROC)[0])
        if not limits[-1]:
            raise OSError(errno.EAGAIN, "too many processes")
        return clone(*arguments)

    monkeypatch.setattr(snapshot, "_clone", held_to_it)
    copy = Snapshot.take(guest.host, guest.at, 0)
    copy.close()
    reap(guest.host, guest.at, copy.pid)
    assert limits[0] == 0 and limits[1] in (hard, resource.RLIM_INFINITY) and len(limits) == 2
    assert resource.prlimit(guest.host, resource.RLIMIT_NPROC) == (soft, hard)


def test_a_copy_that_is_given_up_leaves_the_guest_as_it_was(guest: Guest) -> None:
    before = pt.RegisterFile()
    before.load(guest.host)
    copy = Snapshot.take(guest.host, guest.at, 0)
    copy.close()
    copy.close()
    reap(guest.host, guest.at, copy.pid)
    after = pt.RegisterFile()
    after.load(guest.host)
    assert before.copy() == after.copy()
    guest.go_on()
    assert guest.line() == "pipe 0"
