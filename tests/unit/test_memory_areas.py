"""What /proc says of memory, read from made-up and from this process's own text."""

from __future__ import annotations

import ctypes
import mmap
import os

from hypothesis import given
from hypothesis import strategies as st

from trapline.platform import page_scan
from trapline.platform.memory_areas import Area, parse_line, parse_smaps, read_areas, read_maps
from trapline.platform.page_copy import cut_at_blocks, data_ranges
from trapline.platform.page_scan import PageScan, merged, without
from trapline.platform.restore_memory import TASK_SIZE, find_gap
from trapline.sentry.state.pages_meta import BLOCK
from trapline.sentry.state.records import AddressSpace, Mapping

PAGE = 4096
addresses = st.integers(0, 1 << 35).map(lambda page: page * PAGE)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029 "), min_size=1)


@st.composite
def areas(draw: st.DrawFn) -> Area:
    start = draw(addresses)
    file = draw(st.booleans())
    return Area(
        start,
        start + draw(st.integers(1, 1 << 20)) * PAGE,
        draw(st.integers(0, 7)),
        draw(st.booleans()),
        draw(addresses) if file else 0,
        os.makedev(draw(st.integers(0, 255)), draw(st.integers(0, 255))) if file else 0,
        draw(st.integers(1, 1 << 63)) if file else 0,
        "/" + draw(names).replace("\\", "/") if file else draw(st.sampled_from(["", "[heap]", "[stack]", "[anon:a b]"])),
        file and draw(st.booleans()),
        frozenset(draw(st.lists(st.sampled_from(["rd", "wr", "gd", "dd", "hg", "lo"])))),
        draw(st.integers(0, 1 << 20)) * 1024,
    )


def text_of(area: Area) -> str:
    perms = "".join(letter if area.prot >> bit & 1 else "-" for bit, letter in enumerate("rwx"))
    device = f"{os.major(area.device):02x}:{os.minor(area.device):02x}"
    head = f"{area.start:08x}-{area.end:08x} {perms}{'s' if area.shared else 'p'} {area.offset:08x} {device} {area.inode} "
    path = area.path + " (deleted)" * area.deleted
    return (
        f"{head.ljust(73)}{path}\nSize:  {area.size >> 10} kB\nRss:  {area.present >> 10} kB\nSwap:  0 kB\n"
        f"THPeligible:   0\nVmFlags: {' '.join(sorted(area.flags))} \n"
    )


@given(st.lists(areas()))
def test_smaps_is_read_as_it_was_written(expected: list[Area]) -> None:
    assert parse_smaps("".join(text_of(area) for area in expected).encode()) == expected


def test_a_path_with_a_line_feed_and_one_that_looks_deleted() -> None:
    found = parse_line(rb"7f0000000000-7f0000001000 rw-p 00001000 fe:00 77      /tmp/a\012b (deleted) (deleted)")
    assert (found.path, found.deleted, found.offset, found.inode) == ("/tmp/a\nb (deleted)", True, PAGE, 77)


def test_this_process() -> None:
    """maps and smaps agree, and cover what is mapped here."""
    area = mmap.mmap(-1, 3 * PAGE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(area))
    long, short = read_areas(os.getpid()), read_maps(os.getpid())
    found = next(a for a in long if a.start <= at < a.end)
    assert found.shared and found.deleted and "sh" in found.flags
    assert next(a for a in short if a.start == found.start).path == found.path == "/dev/zero"


ranges = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=12).map(
    lambda pairs: merged(_apart([(start * PAGE, (start + size) * PAGE) for start, size in pairs]))
)


def _apart(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(pairs):
        if not found or start >= found[-1][1]:
            found.append((start, end))
    return found


def pages_of(pairs: list[tuple[int, int]]) -> set[int]:
    return {page for start, end in pairs for page in range(start, end, PAGE)}


@given(ranges, ranges)
def test_ranges_less_others(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    found = without(one, other)
    assert pages_of(found) == pages_of(one) - pages_of(other)
    assert found == sorted(found) and all(start < end for start, end in found)


@given(ranges, st.integers(0, 3 * BLOCK // PAGE))
def test_pieces_are_all_of_it_in_order_and_each_in_one_block(pairs: list[tuple[int, int]], first: int) -> None:
    wide = [(start * 23, end * 23) for start, end in pairs]  # several blocks long
    at = first * PAGE
    found = list(cut_at_blocks(wide, at))
    assert merged([part for parts, _, _ in found for part in parts]) == wide
    for parts, size, offset in found:
        assert offset == at and offset // BLOCK == (offset + size - 1) // BLOCK
        assert size == sum(end - start for start, end in parts)
        at += size
    assert all((offset + size) % BLOCK == 0 for _, size, offset in found[:-1])


@given(st.lists(st.tuples(st.integers(0, (TASK_SIZE - 1) // PAGE), st.integers(1, 1 << 32)), max_size=8))
def test_a_gap_is_nobodys(pairs: list[tuple[int, int]]) -> None:
    maps = [Mapping(a * PAGE, min((a + n) * PAGE, TASK_SIZE), 3, "anonymous") for a, n in pairs]
    space = AddressSpace(maps, [0] * 11, b"")
    at = find_gap([space], 1 << 20, [(0x1000, 0x1000)])
    assert at % PAGE == 0 and 0 < at < TASK_SIZE
    assert not any(m.start < at + (1 << 20) and at < m.end for m in maps)


class Own:
    """Memory of this process with pages of several kinds."""

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, 64 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(self.at), ctypes.c_size_t(64 * PAGE), 15)
        for page in (3, 4, 5, 9, 63):
            self.map[page * PAGE] = 1
        assert self.map[20 * PAGE] == 0  # the page of zeros
        self.expected = [(self.at + a * PAGE, self.at + b * PAGE) for a, b in ((3, 6), (9, 10), (63, 64))]

    @property
    def at(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.map))


def test_pages_of_its_own() -> None:
    """By PAGEMAP_SCAN, and by pagemap where the host has no such thing: the frame of the page of zeros is root's to see."""
    own = Own()
    with PageScan(os.getpid()) as scan:
        ways = [True, False] if scan.scans else [False]
        for scan.scans in ways:
            expected = own.expected
            if not scan.scans and not page_scan._zero_page():
                zero = own.at + 20 * PAGE
                expected = sorted([*expected, (zero, zero + PAGE)])
            assert scan.own(own.at, own.at + 64 * PAGE) == expected
            assert scan.first(own.at, own.at + 64 * PAGE) == own.at + 3 * PAGE
            assert scan.first(own.at + 10 * PAGE, own.at + 20 * PAGE) == -1
            assert scan.guarded(own.at, own.at + 64 * PAGE) == []


def test_what_of_a_file_is_no_hole() -> None:
    fd = os.memfd_create("sparse")
    os.pwrite(fd, b"x", 5 * PAGE)
    os.pwrite(fd, b"x", 9 * PAGE + 17)
    try:
        assert list(data_ranges(fd, 9 * PAGE + 18)) == [(5 * PAGE, 6 * PAGE), (9 * PAGE, 10 * PAGE)]
        assert list(data_ranges(fd, 3 * PAGE)) == []
    finally:
        os.close(fd)
