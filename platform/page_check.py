"""Blocks of an image's pages against their sums, by threads of their own, while processes load them.

Read with pread(2), not through a mapping: a file that became shorter meanwhile, or a disk that cannot be read, is then
an error, and no SIGBUS. Both read the same pages of the page cache.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence

from trapline.sentry.state.image_reader import ImageReader
from trapline.sentry.state.pages_meta import BLOCK
from trapline.sentry.state.records import PageRun
from trapline.sentry.state.unusable import UnusableImage

_THREADS = 2


class PageCheck:
    """Begins at once. `finish` waits for its end; nothing that was loaded may run before."""

    def __init__(self, readers: Sequence[ImageReader], pages: Sequence[int], runs: Iterable[PageRun]) -> None:
        """`readers` and `pages` (descriptors of uncompressed pages) as `PageRun.image` counts them. Blocks that no run
        lies in are not looked at, nor are those of compressed images, which are checked as they are decompressed."""
        blocks: set[tuple[int, int]] = set()
        for run in runs:
            if readers[run.image].compression == "none":
                last = (run.offset + run.size - 1) // BLOCK
                blocks.update((run.image, block) for block in range(run.offset // BLOCK, last + 1))
        self._readers, self._pages = readers, pages
        self._left = iter(sorted(blocks))
        self._lock = threading.Lock()
        self._wrong: list[str] = []
        count = _THREADS if blocks else 0
        self._threads = [threading.Thread(target=self._work, name="page check") for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """UnusableImage for a block that is not what was saved."""
        for thread in self._threads:
            thread.join()
        if self._wrong:
            raise UnusableImage(min(self._wrong))

    def stop(self) -> None:
        """Look at no more of them."""
        with self._lock:
            self._left = iter(())
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        buffer = memoryview(bytearray(BLOCK))
        while not self._wrong:
            with self._lock:
                image, block = next(self._left, (-1, -1))
            if image < 0:
                return
            reader = self._readers[image]
            size = min(BLOCK, reader.pages_size - block * BLOCK)
            try:
                good = _fill(self._pages[image], block * BLOCK, buffer[:size]) and reader.verify(block, buffer[:size])
                reason = "is damaged"
            except OSError as error:
                good, reason = False, f"cannot be read: {error.strerror}"
            if not good:
                self._wrong.append(f"{reader.path}/pages.img: block {block}, from {block * BLOCK:#x} on, {reason}")


def _fill(fd: int, offset: int, view: memoryview) -> bool:
    while view:
        count = os.preadv(fd, [view], offset)
        if not count:
            return False
        offset, view = offset + count, view[count:]
    return True
