"""Pages into processes, each block compared with its sum: with real images of a few blocks, and with this process."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import subprocess
from pathlib import Path

import pytest

from trapline.platform.page_fill import PageFill
from trapline.sentry.kernel.state import KernelState
from trapline.sentry.protocol import Gone
from trapline.sentry.state import page_places
from trapline.sentry.state.image_reader import ImageReader
from trapline.sentry.state.image_writer import ImageWriter
from trapline.sentry.state.manifest import PAGES, Manifest
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


def compare(reader: ImageReader, runs: list[PageRun]) -> None:
    fill = PageFill(reader.chain, [reader.pages_fds])
    fill.add(runs)
    fill.run()


def check(path: str, without_third: bool = False) -> None:
    with ImageReader(path) as reader:
        runs = [run for run in reader.runs() if not (without_third and run.owner == "s2")]
        compare(reader, runs)


def test_pages_as_they_were_saved(path: str) -> None:
    check(path)


def opened(path: str, place: int) -> tuple[int, int]:
    """The file that a byte of the pages is in, and the offset there."""
    file, at = page_places.place(place, 2)
    return os.open(f"{path}/{PAGES['none'][file]}", os.O_RDWR), at


@pytest.mark.parametrize("byte_at", [0, BLOCK - 1, BLOCK, 4 * BLOCK + 77, 5 * BLOCK + 4095])
def test_a_bit_that_flipped(path: str, byte_at: int) -> None:
    fd, place = opened(path, byte_at)
    byte = os.pread(fd, 1, place)[0]
    os.pwrite(fd, bytes([byte ^ 16]), place)
    os.close(fd)
    with pytest.raises(UnusableImage, match=f"block {byte_at // BLOCK}, .* is damaged"):
        check(path)


def test_blocks_that_nobody_needs_are_not_looked_at(path: str) -> None:
    fd, place = opened(path, 3 * BLOCK)
    os.pwrite(fd, b"something else", place)
    os.close(fd)
    check(path, without_third=True)


def test_a_file_that_becomes_shorter_while_it_is_read(path: str) -> None:
    with ImageReader(path) as reader:
        os.truncate(f"{path}/pages.img", BLOCK)
        with pytest.raises(UnusableImage, match="is damaged"):
            compare(reader, reader.runs())


def room(size: int) -> tuple[mmap.mmap, int]:
    area = mmap.mmap(-1, size)
    return area, ctypes.addressof(ctypes.c_char.from_buffer(area))


def test_pages_come_to_where_they_belong(path: str) -> None:
    """Two owners' runs, of which one is scattered, into memory of this process."""
    size = 5 * BLOCK + 4096
    area, at = room(size)
    with ImageReader(path) as reader:
        whole = b"".join(reader.read_block(block) for block in range(reader.blocks))[:size]
        fill = PageFill(reader.chain, [reader.pages_fds])
        pages = list(range(0, size, 4096))
        random.Random(2).shuffle(pages)
        scattered = [PageRun("s1", at + to, 4096, offset) for to, offset in zip(range(0, size, 4096), pages, strict=True)]
        fill.add(scattered, os.getpid())
        fill.run()
    assert area[:] == b"".join(whole[offset : offset + 4096] for offset in pages)


def test_memory_that_cannot_be_written(path: str) -> None:
    with ImageReader(path) as reader:
        fill = PageFill(reader.chain, [reader.pages_fds])
        fill.add([PageRun("s1", 4096, 4096, 0)], os.getpid())
        with pytest.raises(OSError, match="pages cannot be written"):
            fill.run()


def test_a_process_that_is_gone(path: str) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with ImageReader(path) as reader:
        fill = PageFill(reader.chain, [reader.pages_fds])
        fill.add([PageRun("s1", 1 << 20, 4096, 0)], child.pid)
        with pytest.raises(Gone):
            fill.run()


def test_how_far_it_is(path: str) -> None:
    told: list[tuple[int, int]] = []
    with ImageReader(path) as reader:
        fill = PageFill(reader.chain, [reader.pages_fds])
        fill.tell = lambda done, total: told.append((done, total))
        fill.add(reader.runs())
        fill.run()
    assert told == [(index * BLOCK, 6 * BLOCK) for index in range(6)]
