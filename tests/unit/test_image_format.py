"""Images: what is written is read again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trapline.sentry.kernel.state import KernelState, ThreadGroup
from trapline.sentry.state.image_reader import ImageReader
from trapline.sentry.state.image_writer import CannotWrite, ImageWriter
from trapline.sentry.state.manifest import Manifest
from trapline.sentry.state.pages_meta import BLOCK
from trapline.sentry.state.records import AddressSpace, Directories, Image, Mapping, PageRun


def kernel() -> KernelState:
    return KernelState(groups={7: ThreadGroup(tgid=7)}, checkpoint_count=3)


def image() -> Image:
    mapping = Mapping(0x10000, 0x10000 + 8 * BLOCK, 3, "anonymous", name="\udcff not UTF-8 \U0010ffff")
    return Image(spaces={1: AddressSpace([mapping], [0] * 11, b"")}, directories={1: Directories("/a\udc80", "/", 0o22)})


def memory(size: int, seed: int = 1) -> bytes:
    import random

    return random.Random(seed).randbytes(size)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> object:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("way", ["write", "descriptor"])
@pytest.mark.parametrize("direct", [False, True])
def test_round_trip(tmp_path: Path, compression: str, way: str, direct: bool) -> None:
    target = str(tmp_path / "image")
    data = memory(3 * BLOCK + 5 * 4096)
    small = memory(4096, 2)
    with ImageWriter(target, compression=compression, direct=direct) as writer:
        offsets = [writer.allocate(4096) for _ in range(3)]
        big = writer.allocate(len(data))
        assert big % BLOCK == 0
        last = writer.allocate(4096)
        for place, piece in [*((offset, small) for offset in offsets), (big, data), (last, small)]:
            if way == "write":
                writer.write(place, piece)
            else:
                if direct:
                    import mmap

                    aligned = mmap.mmap(-1, len(piece))
                    aligned[:] = piece
                    piece = aligned  # type: ignore[assignment]
                assert os.pwrite(writer.pages_fd, piece, place) == len(piece)
        for index, offset in enumerate(offsets):
            writer.add_run(PageRun("s1", 0x100000 + index * 0x2000, 4096, offset))
        writer.add_run(PageRun("s1", 0x10000, len(data), big))
        writer.add_run(PageRun("k", 0, 4096, last))
        with writer.open("ghosts/1") as ghost:
            ghost.write(b"a file")
            ghost.seek(0)
            ghost.write(b"A")
        with writer.open("files/upper.tar"):
            pass
        assert not os.path.exists(target)
        written = writer.commit(kernel(), image(), Manifest(command=["sh", "\udcfe"], options={"volumes": [["/x", 1]]}))
    assert os.listdir(tmp_path) == ["image"]
    assert sorted(os.listdir(target)) == sorted(
        ["files", "ghosts", "guests.msgpack", "kernel.msgpack", "manifest.json", "pages_meta.img",
         "pages.img" if compression == "none" else "pages.img.zst"]
    )  # fmt: skip
    with ImageReader(target) as reader:
        assert reader.manifest == written and reader.manifest.command == ["sh", "\udcfe"]
        assert reader.kernel() == kernel() and reader.image() == image()
        reader.check_files()
        reader.check_pages()
        blocks = b"".join(reader.read_block(block) for block in range(reader.blocks))
        assert len(blocks) == reader.pages_size
        content = {(run.owner, run.start): blocks[run.offset : run.offset + run.size] for run in reader.runs()}
        assert content == {
            ("s1", 0x100000): small, ("s1", 0x102000): small, ("s1", 0x104000): small, ("s1", 0x10000): data,
            ("k", 0): small,
        }  # fmt: skip
        with reader.open("ghosts/1") as ghost:
            assert ghost.read() == b"A file"


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    with pytest.raises(CannotWrite, match="exists already"):
        ImageWriter(str(tmp_path / "image"))
    with pytest.raises(CannotWrite, match="no such directory"):
        ImageWriter(str(tmp_path / "none" / "image"))
    assert os.listdir(tmp_path) == ["image"]
