"""Pages of an image into the processes that are made from it, by threads of the sentry's: each block is read once,
compared with its sum while it is in a core's cache, and written from there to where it belongs.

By process_vm_writev(2), into mappings that are still writable: two threads write into one process side by side, which
one process reading for itself does not. Read with pread(2), not through a mapping: a file that became shorter meanwhile
is then an error, and no SIGBUS.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from trapline.sentry.protocol import Gone
from trapline.sentry.state import page_places
from trapline.sentry.state.image_reader import ImageReader
from trapline.sentry.state.pages_meta import BLOCK
from trapline.sentry.state.records import PageRun

_THREADS = 2
_MOST_RANGES = 1024  # IOV_MAX
_VECTOR = struct.Struct("<QQ")
_libc = ctypes.CDLL(None, use_errno=True)
_writev = _libc.process_vm_writev
_writev.restype = ctypes.c_ssize_t

#: Of a block: offset in it, size, address in the process.
Piece = tuple[int, int, int]
#: Its image and number; by process, what of it goes there.
Block = tuple[tuple[int, int], dict[int, list[Piece]]]


class PageFill:
    """`add` what is wanted, then `run`."""

    def __init__(self, readers: Sequence[ImageReader], pages: Sequence[Sequence[int]]) -> None:
        """`readers` and `pages` (descriptors of uncompressed pages: page_places.py) as `PageRun.image` counts them."""
        self._readers, self._pages = readers, pages
        #: By image and block: by process, what of it goes there.
        self._blocks: dict[tuple[int, int], dict[int, list[Piece]]] = {}
        self._lock = threading.Lock()
        self._left: Iterator[Block] = iter(())
        #: Called now and then, by any of the threads: bytes that are done, and those that there are.
        self.tell: Callable[[int, int], None] | None = None
        self._error: BaseException | None = None

    def add(self, runs: Iterable[PageRun], host: int = 0) -> None:
        """Pages of a process that stands, whose mappings for them are there and can be written; with `host` 0 they are
        only compared."""
        for run in runs:
            done = 0
            while done < run.size:
                at = run.offset + done
                size = min(run.size - done, BLOCK - at % BLOCK)
                block = self._blocks.setdefault((run.image, at // BLOCK), {})
                if host:
                    block.setdefault(host, []).append((at % BLOCK, size, run.start + done))
                done += size

    def _told(self, blocks: list[Block]) -> Iterator[Block]:
        for index, block in enumerate(blocks):
            if self.tell is not None:
                self.tell(index * BLOCK, len(blocks) * BLOCK)
            yield block

    def run(self) -> None:
        """Until all is there. UnusableImage for a block that is not what was saved; Gone; OSError."""
        self._left = self._told(sorted(self._blocks.items(), key=lambda item: item[0]))
        threads = [threading.Thread(target=self._work, name="page fill") for _ in range(_THREADS - 1)]
        for thread in threads:
            thread.start()
        self._work()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        buffer = ctypes.create_string_buffer(BLOCK)
        view = memoryview(buffer).cast("B")
        try:
            while self._error is None:
                with self._lock:
                    item = next(self._left, None)
                if item is None:
                    return
                (image, block), wanted = item
                self._read(image, block, view)
                for host, pieces in wanted.items():
                    for at in range(0, len(pieces), _MOST_RANGES):
                        _write(host, ctypes.addressof(buffer), pieces[at : at + _MOST_RANGES])
        except BaseException as error:
            self._error = self._error or error

    def _read(self, image: int, block: int, view: memoryview) -> None:
        """A block, which is what was saved."""
        reader = self._readers[image]
        size = min(BLOCK, reader.pages_size - block * BLOCK)
        try:
            done = page_places.read(self._pages[image], block * BLOCK, view[:size])
        except OSError as error:
            raise reader.bad_block(block, f"cannot be read: {error.strerror}") from None
        # What is compressed was compared when it was decompressed.
        if done < size or (reader.compression == "none" and not reader.verify(block, view[:size])):
            raise reader.bad_block(block, "is damaged")


def _write(host: int, buffer: int, pieces: list[Piece]) -> None:
    local = b"".join([_VECTOR.pack(buffer + offset, size) for offset, size, _ in pieces])
    remote = b"".join([_VECTOR.pack(address, size) for _, size, address in pieces])
    count = ctypes.c_ulong(len(pieces))
    done = _writev(host, local, count, remote, count, ctypes.c_ulong(0))
    if done == sum(size for _, size, _ in pieces):
        return
    number = ctypes.get_errno() if done < 0 else errno.EFAULT
    if number == errno.ESRCH:
        raise Gone(host)
    raise OSError(number, f"pages cannot be written: {os.strerror(number)}")
