"""What is told of as written since the last save, against the whole memory at both moments."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from guests import compiled
from memory_box import interrupted, start, syscall_place

from trapline.platform import ptrace_calls as pt
from trapline.platform.capture_memory import Collector, capture_space
from trapline.platform.incremental import Incremental
from trapline.platform.page_copy import private_pages
from trapline.platform.page_scan import Range
from trapline.sentry.state.records import AddressSpace

PAGE = 4096
ZERO = bytes(PAGE)

pytestmark = pytest.mark.skipif(
    bool(Incremental().reason), reason=f"writes cannot be tracked here: {Incremental().reason}"
)


class Writer:
    """writes.c, from one stop to the next."""

    def __init__(self, *arguments: str) -> None:
        self.host = start([compiled("writes"), *arguments], 1)
        interrupted(self.host, 1 | pt.PTRACE_O_EXITKILL)
        self.at = syscall_place(self.host)
        self.collector = Collector(f"/proc/{self.host}/root", None, print)
        self._memory = os.open(f"/proc/{self.host}/mem", os.O_RDONLY)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._memory)
        os.kill(self.host, 9)
        while pt.wait_one(self.host) & 0xFF == 0x7F:
            pass

    def go_on(self) -> None:
        pt.cont(self.host)
        status = pt.wait_one(self.host)
        while status >> 8 != 5:
            assert status & 0xFF == 0x7F, hex(status)
            pt.cont(self.host, 0)  # its child's SIGCHLD
            status = pt.wait_one(self.host)
        interrupted(self.host, 1 | pt.PTRACE_O_EXITKILL)

    def space(self) -> AddressSpace:
        return capture_space(self.host, self.collector, None)

    def pages(self, ranges: list[Range]) -> dict[int, bytes]:
        """Content by address, pages of zeros left out."""
        found = {}
        for start_, end in ranges:
            data = os.pread(self._memory, end - start_, start_)
            for at in range(0, len(data), PAGE):
                if data[at : at + PAGE] != ZERO:
                    found[start_ + at] = data[at : at + PAGE]
        return found


def overlapping(one: list[Range], other: list[Range]) -> bool:
    every = sorted(one + other)
    return any(a[1] > b[0] for a, b in pairwise(every))


@pytest.mark.parametrize("size", [[], ["huge"]])
@pytest.mark.parametrize("seed", range(6))
def test_an_image_and_what_was_written_since_are_the_memory(seed: int, size: list[str]) -> None:
    tracking = Incremental()
    saved: dict[int, bytes] = {}
    few = 0
    with Writer(str(seed), "12", *size) as writer:
        for turn in range(8):
            space = writer.space()
            whole = writer.pages(private_pages(writer.host, space))
            written, kept = tracking.collect(7, writer.host, writer.at, space)
            assert not overlapping(written, kept)
            assert bool(kept) == bool(turn)
            inherited = {at for start_, end in kept for at in range(start_, end, PAGE)}
            saved = {at: data for at, data in saved.items() if at in inherited} | writer.pages(written)
            assert saved.keys() == whole.keys()
            assert saved == whole
            few += sum(end - start_ for start_, end in written) < sum(end - start_ for start_, end in kept)
            tracking.saved_as(7, "s1")
            tracking.commit(f"image {turn}")
            writer.go_on()
    assert few >= 4  # less was written than not
    tracking.close()


def test_tracking_leaves_no_descriptor_in_the_guest() -> None:
    tracking = Incremental()
    with Writer("1", "3") as writer:
        before, registers = os.listdir(f"/proc/{writer.host}/fd"), pt.RegisterFile()
        registers.load(writer.host)
        kept = registers.copy()
        tracking.collect(7, writer.host, writer.at, writer.space())
        assert os.listdir(f"/proc/{writer.host}/fd") == before
        registers.load(writer.host)
        assert registers.copy() == kept
    tracking.close()


def test_what_an_incremental_save_goes_on_from() -> None:
    """Only the last image, and only if nothing failed since."""
    tracking = Incremental()
    with Writer("2", "3") as writer:
        assert "no complete one" in tracking.why_not("a")
        tracking.collect(7, writer.host, writer.at, writer.space())
        tracking.saved_as(7, "s3")
        tracking.commit("a")
        assert tracking.why_not("a") == "" and tracking.owner_of(7) == "s3"
        assert "not the last image" in tracking.why_not("b")
        tracking.collect(7, writer.host, writer.at, writer.space())
        tracking.fail()
        assert "no complete one" in tracking.why_not("a")
        # It was not in the last image: of what it wrote since the one before nothing is known.
        tracking.commit("c")
        assert not tracking.collect(7, writer.host, writer.at, writer.space())[1]
    tracking.close()


def test_where_it_cannot_be_tracked_all_counts_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trapline.platform.incremental.DEVICE", "/nowhere")
    assert "/nowhere" in Incremental().why_not("a")
    tracking = Incremental()
    monkeypatch.setattr("trapline.platform.write_tracking.DEVICE", "/nowhere")
    with Writer("3", "3") as writer:
        for _ in range(2):
            written, kept = tracking.collect(7, writer.host, writer.at, writer.space())
            assert not kept and written == private_pages(writer.host, writer.space())
    tracking.close()
