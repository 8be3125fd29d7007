"""Pages of processes and of shared objects into an image, copied by the sentry.

By process_vm_readv(2), which needs one system call for up to 1024 ranges, and /proc/PID/mem for what the process
itself may not read (PROT_NONE).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from trapline.platform.page_scan import PAGE, PageScan, Range, merged, without
from trapline.sentry.protocol import Gone
from trapline.sentry.state.pages_meta import BLOCK
from trapline.sentry.state.records import AddressSpace, Mapping, PageRun
from trapline.sentry.state.unsavable import Unsavable

#: Bytes copied at a time: what fits into a core's cache is quickest.
PIECE = 512 << 10
_MOST_RANGES = 1024  # IOV_MAX
#: Bytes from which on two threads copy.
_WORTH_A_THREAD = 16 << 20
_VECTOR = struct.Struct("<QQ")
_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t


class Writer(Protocol):
    """What `ImageWriter` offers to whoever copies pages."""

    @property
    def pages_fds(self) -> Sequence[int]: ...

    def allocate(self, size: int) -> int: ...

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...

    def add_run(self, run: PageRun) -> None: ...


def private_pages(host: int, space: AddressSpace) -> list[Range]:
    """The ranges of an address space that hold something of its own: what has to be saved of it. OSError."""
    found: list[Range] = []
    with PageScan(host) as scan:
        for mapping in space.mappings:
            if has_pages(mapping):
                ranges = scan.own(mapping.start, mapping.end)
                found += without(ranges, mapping.guards) if mapping.guards else ranges
    return merged(found)


def has_pages(mapping: Mapping) -> bool:
    """Whether a mapping may hold pages of its own."""
    return not mapping.shared and mapping.kind in ("anonymous", "file", "shared") and "dp" not in mapping.flags


def copy_pages(host: int, owner: str, ranges: Sequence[Range], writer: Writer) -> int:
    """Copy these ranges of a process's memory; how many bytes. Gone; OSError for what cannot be written; Unsavable for
    memory that cannot be read."""
    total = sum(end - start for start, end in ranges)
    if not total:
        return 0
    offset = at = writer.allocate(total)
    runs = []
    for start, end in ranges:
        runs.append(PageRun(owner, start, end - start, at))
        at += end - start
    _Copy(host, ranges, offset, writer).run(2 if total >= _WORTH_A_THREAD else 1)
    for run in runs:
        writer.add_run(run)
    return total


class _Copy:
    """One copy by several threads, a block of the image at a time."""

    def __init__(self, host: int, ranges: Sequence[Range], offset: int, writer: Writer) -> None:
        self._host, self._writer = host, writer
        self._left = cut_at_blocks(ranges, offset)
        self._taking = threading.Lock()
        self._error: BaseException | None = None

    def run(self, threads: int) -> None:
        """As `copy_pages`."""
        others = [threading.Thread(target=self._work, name="page copy") for _ in range(threads - 1)]
        for thread in others:
            thread.start()
        self._work()
        for thread in others:
            thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            with _Source(self._host) as source:
                while self._error is None:
                    with self._taking:
                        pieces, size, offset = next(self._left, ([], 0, 0))
                    if not size:
                        return
                    source.read(pieces, size)
                    self._writer.write(offset, source.view[:size])
        except BaseException as error:
            self._error = error


def copy_object(key: str, size: int, path: str, writer: Writer) -> int:
    """Copy what a shared object holds, holes left out, by a path under /proc that opens it; how many bytes. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    total = 0
    try:
        for start, end in data_ranges(fd, size):
            offset = writer.allocate(end - start)
            for at in range(start, end, PIECE):
                data = os.pread(fd, min(PIECE, end - at), at)
                # A file's last page ends where the file does.
                writer.write(offset + at - start, data.ljust(min(PIECE, end - at), b"\0"))
            writer.add_run(PageRun(key, start, end - start, offset))
            total += end - start
    finally:
        os.close(fd)
    return total


def data_ranges(fd: int, size: int) -> Iterator[Range]:
    """What of a file is no hole, in whole pages. OSError."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= size:
            return  # it became longer meanwhile
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start & -PAGE, at + -at % PAGE


def copy_mapped_object(key: str, size: int, mapped: Sequence[tuple[int, Mapping]], writer: Writer) -> int:
    """The same of an object that nothing opens, through the memory of who maps it: all that anybody maps, pages of
    zeros left out. Gone; OSError; Unsavable."""
    total, done = 0, 0
    for host, mapping in sorted(mapped, key=lambda pair: pair[1].offset):
        start, end = max(done, mapping.offset), min(mapping.offset + mapping.end - mapping.start, size + -size % PAGE)
        if end <= start:
            continue
        with _Source(host) as source:
            shift = mapping.start - mapping.offset
            for at in range(start, end, PIECE):
                length = min(PIECE, end - at)
                source.read([(at + shift, at + shift + length)], length)
                for low, high in _not_zero(source.view[:length]):
                    offset = writer.allocate(high - low)
                    writer.write(offset, source.view[low:high])
                    writer.add_run(PageRun(key, at + low, high - low, offset))
                    total += high - low
        done = end
    return total


_ZERO = bytes(PAGE)


def _not_zero(view: memoryview) -> list[Range]:
    """Ranges of pages, from the view's start, that are not all zero."""
    return merged((at, at + PAGE) for at in range(0, len(view), PAGE) if view[at : at + PAGE] != _ZERO)


def cut_at_blocks(ranges: Iterable[Range], offset: int) -> Iterator[tuple[list[Range], int, int]]:
    """All of these, which lie one after the other from an offset among an image's pages on, block by block: what of
    them is in the block, bytes of that, and the offset where it begins."""
    taken: list[Range] = []
    size = 0
    for start, end in ranges:
        while start < end:
            room = BLOCK - offset % BLOCK - size
            stop = min(end, start + room)
            taken.append((start, stop))
            size += stop - start
            if stop - start == room:
                yield taken, size, offset
                offset, taken, size = offset + size, [], 0
            start = stop
    if taken:
        yield taken, size, offset


def after(pieces: Sequence[Range], done: int) -> Iterator[tuple[int, int, int]]:
    """What a call that was given these ranges has left once it has served `done` bytes: start, end, and how many bytes
    of all lie before that."""
    at = 0
    for start, end in pieces:
        skip = min(max(done - at, 0), end - start)
        if start + skip < end:
            yield start + skip, end, at + skip
        at += end - start


class _Source:
    """Reads one process's memory into `view`."""

    def __init__(self, host: int) -> None:
        self._host = host
        self._memory = -1
        self._map = mmap.mmap(-1, PIECE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._map)
        self._at = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._vectors = ctypes.create_string_buffer(_VECTOR.size * (_MOST_RANGES + 1))
        self._local = ctypes.c_void_p(ctypes.addressof(self._vectors))
        self._remote = ctypes.c_void_p(ctypes.addressof(self._vectors) + _VECTOR.size)

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._memory >= 0:
            os.close(self._memory)

    def read(self, pieces: list[Range], size: int) -> None:
        """All of these ranges, `size` bytes in sum. Gone; Unsavable."""
        _VECTOR.pack_into(self._vectors, 0, self._at, size)
        for index, (start, end) in enumerate(pieces, 1):
            _VECTOR.pack_into(self._vectors, index * _VECTOR.size, start, end - start)
        one, count = ctypes.c_ulong(1), ctypes.c_ulong(len(pieces))
        done = _readv(self._host, self._local, one, self._remote, count, ctypes.c_ulong(0))
        if done == size:
            return
        if done < 0 and ctypes.get_errno() == errno.ESRCH:
            raise Gone(self._host)
        self._read_by_force(pieces, max(done, 0))

    def _read_by_force(self, pieces: list[Range], done: int) -> None:
        """What is left after `done` bytes, whatever its protection."""
        if self._memory < 0:
            self._memory = os.open(f"/proc/{self._host}/mem", os.O_RDONLY | os.O_CLOEXEC)
        for start, end, at in after(pieces, done):
            while start < end:
                try:
                    count = os.preadv(self._memory, [self.view[at : at + end - start]], start)
                except OSError as error:
                    raise Unsavable(
                        f"host process {self._host}: memory at {start:#x} that cannot be read ({error.strerror})"
                    ) from None
                if not count:
                    raise Gone(self._host)
                start += count
                at += count
