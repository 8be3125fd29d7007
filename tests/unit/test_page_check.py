"""Sums of pages, with real images of a few blocks."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from trapline.platform.page_check import PageCheck
from trapline.sentry.kernel.state import KernelState
from trapline.sentry.state.image_reader import ImageReader
from trapline.sentry.state.image_writer import ImageWriter
from trapline.sentry.state.manifest import Manifest
from trapline.sentry.state.records import Image, PageRun
from trapline.sentry.state.unusable import UnusableImage

BLOCK = 256 << 10


@pytest.fixture
def path(tmp_path: Path) -> str:
    """An image of five blocks and a page, of which the third block belongs to nobody."""
    made = str(tmp_path / "image")
    with ImageWriter(made, fsync=False) as writer:
        offset = writer.allocate(5 * BLOCK + 4096)
        writer.write(offset, random.Random(1).randbytes(5 * BLOCK + 4096))
        writer.add_run(PageRun("s1", 0x10000, 2 * BLOCK, offset))
        writer.add_run(PageRun("s2", 0x10000, 3 * BLOCK + 4096, offset + 2 * BLOCK))
        writer.commit(KernelState(), Image(), Manifest())
    return made


def check(path: str, without_third: bool = False) -> None:
    with ImageReader(path) as reader:
        runs = [run for run in reader.runs() if not (without_third and run.owner == "s2")]
        PageCheck(reader.chain, [reader.pages_fd], runs).finish()


def test_pages_as_they_were_saved(path: str) -> None:
    check(path)


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 4 * BLOCK + 77, 5 * BLOCK + 4095])
def test_a_bit_that_flipped(path: str, place: int) -> None:
    fd = os.open(f"{path}/pages.img", os.O_RDWR)
    byte = os.pread(fd, 1, place)[0]
    os.pwrite(fd, bytes([byte ^ 16]), place)
    os.close(fd)
    with pytest.raises(UnusableImage, match=f"block {place // BLOCK}, .* is damaged"):
        check(path)


def test_blocks_that_nobody_needs_are_not_looked_at(path: str) -> None:
    fd = os.open(f"{path}/pages.img", os.O_RDWR)
    os.pwrite(fd, b"something else", 3 * BLOCK)
    os.close(fd)
    check(path, without_third=True)


def test_a_file_that_becomes_shorter_while_it_is_read(path: str) -> None:
    with ImageReader(path) as reader:
        os.truncate(f"{path}/pages.img", BLOCK)
        with pytest.raises(UnusableImage, match="is damaged"):
            PageCheck(reader.chain, [reader.pages_fd], reader.runs()).finish()


def test_a_check_that_is_given_up(path: str) -> None:
    with ImageReader(path) as reader:
        found = PageCheck(reader.chain, [reader.pages_fd], reader.runs())
        found.stop()
        found.finish()
