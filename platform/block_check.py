"""Blocks of pages that guests load by themselves, compared with their checksums meanwhile, in threads."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from trapline.sentry.state.pages_meta import BLOCK
from trapline.sentry.state.records import PageRun
from trapline.sentry.state.unusable import UnusableImage

if TYPE_CHECKING:
    from trapline.platform.restored_image import RestoredImage

_MOST = 8


def blocks_of(runs: Iterable[PageRun]) -> list[tuple[int, int]]:
    """The image and number of every block that some of these runs come from, in order."""
    found: set[tuple[int, int]] = set()
    for run in runs:
        image, first, last = run.image, run.offset // BLOCK, (run.offset + run.size - 1) // BLOCK
        if first == last:
            found.add((image, first))
        else:
            found.update((image, block) for block in range(first, last + 1))
    return sorted(found)


class ImageSource:
    """Blocks of an image and of its parents, read and checked; any thread may ask (page_loader.Source)."""

    def __init__(self, loaded: RestoredImage) -> None:
        self._chain = loaded.reader.chain

    def read(self, image: int, block: int, into: memoryview) -> int:
        """A block of uncompressed pages; its size. OSError; UnusableImage for one that is damaged."""
        reader = self._chain[image]
        if reader.compression != "none":
            data = reader.read_block(block)
            into[: len(data)] = data
            return len(data)
        size = min(BLOCK, reader.pages_size - block * BLOCK)
        done = 0
        while done < size:
            count = os.preadv(reader.pages_fd, [into[done:size]], block * BLOCK + done)
            if not count:
                break
            done += count
        if not reader.verify(block, into[:done]):
            raise UnusableImage(f"{reader.path}/pages.img: block {block}, from {block * BLOCK:#x} on, is damaged")
        return size

    def is_checked(self, image: int) -> bool:
        """Its pages were compared when they were decompressed."""
        return self._chain[image].compression != "none"


class BlockCheck:
    """All blocks of these runs. `result` waits, and raises what is wrong with the first that is."""

    def __init__(self, source: ImageSource, runs: Iterable[PageRun]) -> None:
        self._source = source
        self._blocks = [block for block in blocks_of(runs) if not source.is_checked(block[0])]
        self._next = iter(self._blocks)
        self._error: BaseException | None = None
        count = min(os.cpu_count() or 1, _MOST, len(self._blocks) // 16)
        self._threads = [threading.Thread(target=self._work, name=f"check-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        view = memoryview(mmap.mmap(-1, BLOCK))
        try:
            # The interpreter's lock makes taking the next one a single step.
            for image, block in self._next:
                self._source.read(image, block, view)
                if self._error is not None:
                    return
        except BaseException as error:
            self._error = error

    def result(self) -> None:
        """OSError; UnusableImage."""
        if not self._threads:
            self._work()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
