"""Blocks of an image's pages, read and compared with their sums, for whoever loads them while guests run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.state import page_places
from trapline.sentry.state.pages_meta import BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trapline.sentry.state.image_reader import ImageReader


class ImageSource:
    """Blocks of an image and of its parents, read and checked; any thread may ask (page_loader.Source)."""

    def __init__(self, chain: Sequence[ImageReader]) -> None:
        self._chain = chain

    def read(self, image: int, block: int, into: memoryview) -> int:
        """A block of uncompressed pages; its size. OSError; UnusableImage for one that is damaged."""
        reader = self._chain[image]
        if reader.compression != "none":
            data = reader.read_block(block)
            into[: len(data)] = data
            return len(data)
        size = min(BLOCK, reader.pages_size - block * BLOCK)
        done = page_places.read(reader.pages_fds, block * BLOCK, into[:size])
        if not reader.verify(block, into[:done]):
            raise reader.bad_block(block, "is damaged")
        return size
