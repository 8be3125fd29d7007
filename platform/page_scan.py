"""Which pages of a process hold something that is nowhere else (Linux Documentation/admin-guide/mm/pagemap.rst).

That is what is in memory or swapped out, is no page of a file as the file has it, and is not the page of zeros that the
host maps where nothing was ever written. PAGEMAP_SCAN (Linux 6.7) gives it by ranges; before, /proc/PID/pagemap has a
word for each page.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from array import array
from collections.abc import Iterable, Iterator

PAGE = 4096
#: Categories of PAGEMAP_SCAN (linux/fs.h).
WRITTEN, FILE, PRESENT, SWAPPED, ZERO, HUGE, GUARD = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 8
#: Write-protect what matches; fail where write-protection is not tracked.
WP_MATCHING, CHECK_WPASYNC = 1, 2
_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_ARGUMENT = struct.Struct("<12Q")
_REGION = struct.Struct("<QQQ")
_VECTOR = 16384  # regions at a time, 24 bytes each
_libc = ctypes.CDLL(None, use_errno=True)

#: Bits of a word of pagemap.
_PM_PRESENT, _PM_SWAPPED, _PM_FILE, _PM_GUARD = 1 << 63, 1 << 62, 1 << 61, 1 << 58
_PM_FRAME = (1 << 55) - 1  # only as root
_WORDS = 1 << 16  # of pagemap at a time

Range = tuple[int, int]  # start, end


class PageScan:
    """Looks at one process's pages. Close it."""

    def __init__(self, host: int) -> None:
        """OSError."""
        self._file = os.open(f"/proc/{host}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._vector = ctypes.create_string_buffer(_REGION.size * _VECTOR)
        self._argument = ctypes.create_string_buffer(_ARGUMENT.size)
        self.scans = _available(self)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> PageScan:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def own(self, start: int, end: int) -> list[Range]:
        """Ranges of pages of a private mapping that hold something of its own. OSError."""
        if not self.scans:
            return list(self._own_by_pagemap(start, end))
        return merged(
            (a, b)
            for a, b, kind in self.scan(start, end, FILE | ZERO, FILE | ZERO, PRESENT | SWAPPED, self._guard)
            if not kind
        )

    def first(self, start: int, end: int) -> int:
        """Address of the first page that is in memory or swapped out and neither a file's nor zero; -1 for none.
        OSError."""
        if not self.scans:
            return next((a for a, _ in self._own_by_pagemap(start, end)), -1)
        found = self.scan(start, end, FILE | ZERO, FILE | ZERO, PRESENT | SWAPPED, self._guard, most=1)
        return next((a for a, _, kind in found if not kind), -1)

    def guarded(self, start: int, end: int) -> list[Range]:
        """Guard pages (madvise(2), MADV_GUARD_INSTALL, Linux 6.13). OSError."""
        if self.scans and self._guard:
            return merged((a, b) for a, b, _ in self.scan(start, end, 0, GUARD, 0, GUARD))
        if self.scans:
            return []
        return list(self._ranges(start, end, _PM_GUARD))

    @property
    def knows_guards(self) -> bool:
        """Whether this kernel tells guard pages from others."""
        return _knows_guards(self)

    @property
    def _guard(self) -> int:
        return GUARD if _knows_guards(self) else 0

    def scan(
        self,
        start: int,
        end: int,
        inverted: int,
        mask: int,
        any_of: int,
        returned: int,
        flags: int = 0,
        most: int = 0,
    ) -> Iterator[tuple[int, int, int]]:
        """PAGEMAP_SCAN: (start, end, categories) of what has all of `mask` (those in `inverted` negated) and any of
        `any_of`; `most` pages of it at a time, where that is not 0. OSError: EPERM with CHECK_WPASYNC where a mapping
        is not tracked."""
        vector, at = self._vector, ctypes.addressof(self._vector)
        while start < end:
            _ARGUMENT.pack_into(
                self._argument, 0, 96, flags, start, end, 0, at, _VECTOR, most, inverted, mask, any_of, returned
            )
            count = _libc.ioctl(self._file, ctypes.c_ulong(_PAGEMAP_SCAN), self._argument)
            if count < 0:
                number = ctypes.get_errno()
                if number == errno.EINTR:
                    continue
                raise OSError(number, f"PAGEMAP_SCAN: {os.strerror(number)}")
            regions = list(_REGION.iter_unpack(vector.raw[: count * _REGION.size]))
            yield from regions
            walked = _ARGUMENT.unpack(self._argument.raw)[4]
            if regions:
                # Linux 6.18 may say that it came to the beginning of the last region only.
                walked = max(walked, regions[-1][1])
            if walked <= start:
                return
            start = walked

    def _own_by_pagemap(self, start: int, end: int) -> Iterator[Range]:
        zero = _zero_page()
        begun = -1
        for at, words in self._words(start, end):
            for index, word in _steps(words):
                own = word & (_PM_PRESENT | _PM_SWAPPED) and not word & (_PM_FILE | _PM_GUARD)
                if own and zero and word & _PM_PRESENT and word & _PM_FRAME == zero:
                    own = False
                here = at + index * PAGE
                if own and begun < 0:
                    begun = here
                elif not own and begun >= 0:
                    yield begun, here
                    begun = -1
        if begun >= 0:
            yield begun, end

    def _ranges(self, start: int, end: int, bit: int) -> Iterator[Range]:
        begun = -1
        for at, words in self._words(start, end):
            for index, word in _steps(words):
                here = at + index * PAGE
                if word & bit and begun < 0:
                    begun = here
                elif not word & bit and begun >= 0:
                    yield begun, here
                    begun = -1
        if begun >= 0:
            yield begun, end

    def _words(self, start: int, end: int) -> Iterator[tuple[int, array[int]]]:
        for at in range(start, end, _WORDS * PAGE):
            count = min(_WORDS, (end - at) // PAGE)
            words = array("Q")
            words.frombytes(os.pread(self._file, count * 8, at // PAGE * 8))
            if len(words) != count:
                raise OSError(errno.EIO, "pagemap is shorter than the mapping")
            yield at, words


def _steps(words: array[int]) -> Iterable[tuple[int, int]]:
    """The words to look at: all, or the first where all are nothing."""
    if not any(words):
        return [(0, 0)]
    return enumerate(words)


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Ascending ranges, those that touch made one."""
    found: list[Range] = []
    for start, end in ranges:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def without(ranges: list[Range], holes: list[Range]) -> list[Range]:
    """Ascending ranges less holes, which ascend by their beginnings and may overlap."""
    if not holes:
        return ranges
    found: list[Range] = []
    first = 0
    for start, end in ranges:
        while first < len(holes) and holes[first][1] <= start:
            first += 1  # nothing that follows begins before
        for index in range(first, len(holes)):
            low, high = holes[index]
            if low >= end:
                break
            if high <= start:
                continue
            if low > start:
                found.append((start, low))
            start = max(start, min(high, end))
        if start < end:
            found.append((start, end))
    return found


def available() -> bool:
    """Whether this kernel has PAGEMAP_SCAN."""
    with PageScan(os.getpid()) as scan:
        return scan.scans


_probed: dict[str, bool] = {}


def _available(scan: PageScan) -> bool:
    if "scan" not in _probed:
        try:
            list(scan.scan(0, PAGE, 0, 0, PRESENT, PRESENT))
            _probed["scan"] = True
        except OSError:
            _probed["scan"] = False
    return _probed["scan"]


def _knows_guards(scan: PageScan) -> bool:
    if "guard" not in _probed:
        try:
            list(scan.scan(0, PAGE, 0, GUARD, 0, GUARD))
            _probed["guard"] = True
        except OSError:
            _probed["guard"] = False
    return _probed["guard"]


_zero: list[int] = []


def _zero_page() -> int:
    """The frame of the page of zeros; 0 where frames are not shown."""
    if not _zero:
        import mmap

        area = mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        at = ctypes.addressof(ctypes.c_char.from_buffer(area))
        ctypes.string_at(at, 1)
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(at // PAGE * 8)
            (word,) = struct.unpack("<Q", file.read(8))
        _zero.append(word & _PM_FRAME)
    return _zero[0]
