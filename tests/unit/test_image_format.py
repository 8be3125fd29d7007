"""Images: what is written is read again, whole or as the difference to another."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_samples import MEMORY, SIZE, image, kernel, make, memory, put

from trapline.sentry.state import codec, cpu_features, image_check, manifest
from trapline.sentry.state.image_reader import ImageReader
from trapline.sentry.state.image_writer import CannotWrite, ImageWriter
from trapline.sentry.state.manifest import Manifest
from trapline.sentry.state.pages_meta import BLOCK
from trapline.sentry.state.records import Image, PageRun
from trapline.sentry.state.unusable import UnusableImage


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def pages(reader: ImageReader) -> dict[tuple[str, int], bytes]:
    """All memory by page."""
    found: dict[tuple[str, int], bytes] = {}
    for run in reader.runs():
        source = reader.chain[run.image]
        whole = b"".join(source.read_block(block) for block in range(source.blocks))
        for at in range(0, run.size, 4096):
            found[run.owner, run.start + at] = whole[run.offset + at : run.offset + at + 4096]
    return found


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
        last = writer.allocate(100)
        for place, piece in [*((offset, small) for offset in offsets), (big, data), (last, small)]:
            aligned = mmap.mmap(-1, len(piece))
            aligned[:] = piece
            if way == "write":
                writer.write(place, aligned)
            else:
                put(writer, place, aligned)
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
         *manifest.PAGES[compression]]
    )  # fmt: skip
    with ImageReader(target) as reader:
        assert reader.manifest == written and reader.manifest.command == ["sh", "\udcfe"]
        assert (reader.manifest.processes, reader.manifest.threads, reader.manifest.xsave_size) == (2, 2, 832)
        assert reader.kernel() == kernel() and reader.image() == image()
        reader.check_files()
        reader.check_pages()
        expected = {("s1", 0x10000 + at): data[at : at + 4096] for at in range(0, len(data), 4096)}
        expected |= {("s1", start): small for start in (0x100000, 0x102000, 0x104000)}
        assert pages(reader) == expected | {("k", 0): small}
        with reader.open("ghosts/1") as found:
            assert found.read() == b"A file"


def test_several_threads_write_at_once(tmp_path: Path) -> None:
    """Small runs share blocks, and each block is summed once all of it is there."""
    pieces = [memory(4096 * (1 + number % 70), number) for number in range(200)]
    with ImageWriter(str(tmp_path / "image"), fsync=False) as writer:

        def copy(which: int) -> None:
            for number in range(which, len(pieces), 4):
                offset = writer.allocate(len(pieces[number]))
                if number % 3:
                    writer.write(offset, pieces[number])
                else:
                    put(writer, offset, pieces[number])
                writer.add_run(PageRun("s1", number << 20, len(pieces[number]), offset))

        threads = [threading.Thread(target=copy, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.commit(kernel(), Image(), Manifest())
    with ImageReader(str(tmp_path / "image")) as reader:
        found = pages(reader)
    expected = {}
    for number, piece in enumerate(pieces):
        expected |= {("s1", (number << 20) + at): piece[at : at + 4096] for at in range(0, len(piece), 4096)}
    assert found == expected


def test_an_image_without_pages(tmp_path: Path) -> None:
    with ImageWriter(str(tmp_path / "image"), fsync=False) as writer:
        writer.commit(codec.pack(kernel()), codec.pack(Image()), Manifest())
    with ImageReader(str(tmp_path / "image")) as reader:
        assert reader.runs() == [] and reader.blocks == 0 and reader.pages_size == 0
        assert reader.kernel() == kernel()


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(os.listdir(tmp_path))
    for name in before:
        with pytest.raises(CannotWrite, match="exists already"):
            ImageWriter(str(tmp_path / name))
    with pytest.raises(CannotWrite, match="no such directory"):
        ImageWriter(str(tmp_path / "none" / "image"))
    assert sorted(os.listdir(tmp_path)) == before


def test_two_saves_to_one_place(tmp_path: Path) -> None:
    target = str(tmp_path / "image")
    with ImageWriter(target) as writer:
        with pytest.raises(CannotWrite, match="is being written"):
            ImageWriter(target)
        os.mkdir(target)
        with pytest.raises(CannotWrite, match="exists already"):
            writer.commit(kernel(), Image(), Manifest())
    assert os.listdir(tmp_path) == ["image"] and os.listdir(target) == []


def test_names_that_cannot_be_in_an_image(tmp_path: Path) -> None:
    with ImageWriter(str(tmp_path / "image")) as writer:
        for name in ("../x", "/x", "", "a//b", "a/./b", "a/..", "a\0b", "a/", "x" * 256):
            with pytest.raises(ValueError, match="no good name"):
                writer.open(name)
        writer.open("ghosts/1").close()
        with pytest.raises(ValueError, match="no good name"):
            writer.open("ghosts/1")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_differences(tmp_path: Path, compression: str) -> None:
    """A chain of three: each page comes from the image that wrote it last, and what nobody names is zero."""
    base, second, third = (tmp_path / name for name in ("base", "second", "third"))
    make(base, compression)
    with ImageWriter(str(second), compression=compression, fsync=False, parent=str(base)) as writer:
        offset = writer.allocate(4096)
        writer.write(offset, memory(4096, 5))
        writer.add_run(PageRun("s1", MEMORY + 8192, 4096, offset))
        writer.add_inherited("s1", MEMORY, 8192)
        writer.add_inherited("s1", MEMORY + 12288, SIZE)  # also what is not in the parent
        writer.add_inherited("s2", 0x5000, 4096, of="shm:1:2", at=4096)
        writer.commit(kernel(), image(), Manifest())
    with ImageWriter(str(third), compression=compression, fsync=False, parent=str(second)) as writer:
        writer.add_inherited("s1", MEMORY, SIZE - 4096)
        writer.add_inherited("s9", 0x5000, 4096, of="s2")
        writer.commit(kernel(), image(), Manifest())
    data = memory()
    expected = {("s1", MEMORY + at): data[at : at + 4096] for at in range(0, SIZE - 4096, 4096)}
    expected["s1", MEMORY + 8192] = memory(4096, 5)
    expected["s9", 0x5000] = memory(4096, 2)
    with ImageReader(str(third)) as reader:
        assert pages(reader) == expected
        assert [os.path.basename(link.path) for link in reader.chain] == ["third", "second", "base"]
        assert max(run.image for run in reader.runs()) == 2
    # All of it elsewhere.
    (tmp_path / "moved").mkdir()
    for each in (base, second, third):
        each.rename(tmp_path / "moved" / each.name)
    with ImageReader(str(tmp_path / "moved" / "third")) as reader:
        assert pages(reader) == expected


def test_a_parent_that_is_not_there_or_another(tmp_path: Path) -> None:
    make(tmp_path / "base")
    make(tmp_path / "child", parent=tmp_path / "base")
    (tmp_path / "base").rename(tmp_path / "kept")
    with pytest.raises(UnusableImage, match=r"child: its parent cannot be used: .*base: there is no such directory"):
        ImageReader(str(tmp_path / "child"))
    make(tmp_path / "base", "zstd")
    with pytest.raises(UnusableImage, match="is another image now"):
        ImageReader(str(tmp_path / "child"))
    with pytest.raises(UnusableImage, match="there is no such directory"):
        ImageWriter(str(tmp_path / "new"), parent=str(tmp_path / "none"))
    assert sorted(os.listdir(tmp_path)) == ["base", "child", "kept"]


def test_an_image_that_is_its_own_ancestor(tmp_path: Path) -> None:
    make(tmp_path / "base")
    make(tmp_path / "child", parent=tmp_path / "base")
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "base").symlink_to("child")
    with pytest.raises(UnusableImage, match="ancestor of itself"):
        ImageReader(str(tmp_path / "child"))


def test_an_image_of_an_older_schema() -> None:
    """tests/make_old_image.py made it, when schema 1 was new."""
    with ImageReader(str(Path(__file__).parents[1] / "data" / "image-schema-0")) as reader:
        found_kernel, found = image_check.check(reader)
        reader.check_pages()
        assert reader.manifest.schema == 0 and reader.manifest.created == 1_700_000_000 * 10**9
        assert found.directories[1].umask == 0o27 and found_kernel.schema == 1
        assert found_kernel.groups.keys() == {7} and [p.tgid for p in found.processes] == [7]


@given(text=st.one_of(st.text(), st.binary().map(os.fsdecode), st.text(st.sampled_from("a\udc80\udcff\U0010ffff\ue000é"))))
def test_names_that_are_not_utf_8(text: str) -> None:
    record = image()
    record.directories[1].cwd = text
    assert codec.unpack(codec.pack(record), Image) == record
    value = {"a": [text], text: 1}
    assert codec.unescaped(codec.from_json(codec.json_text(codec.plain(value, json=True)))) == value


def test_options_of_every_kind(tmp_path: Path) -> None:
    options = {"a": [1, 2.5, 1e300, None, True, {"10": 1, "9": 2}], "2": {3: "x", 20: "y"}, "b": (b"bytes", 1)}
    with ImageWriter(str(tmp_path / "image"), fsync=False) as writer:
        writer.commit(kernel(), Image(), Manifest(options=options))
    with ImageReader(str(tmp_path / "image")) as reader:
        assert reader.manifest.options == {**options, "2": {"3": "x", "20": "y"}, "b": ["Ynl0ZXM=", 1]}


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_several_threads_read_at_once(tmp_path: Path, compression: str) -> None:
    data = memory(16 * BLOCK)
    with ImageWriter(str(tmp_path / "image"), fsync=False, compression=compression) as writer:
        writer.write(writer.allocate(len(data)), data)
        writer.add_run(PageRun("s1", 0, len(data), 0))
        writer.commit(kernel(), Image(), Manifest())
    with ImageReader(str(tmp_path / "image")) as reader:
        found: dict[int, list[bytes]] = {}

        def read(which: int) -> None:
            found[which] = [reader.read_block(block) for block in range(reader.blocks)]

        threads = [threading.Thread(target=read, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(b"".join(found[which]) == data for which in range(4))


def test_what_is_imported() -> None:
    """A command that has nothing to do with images pays nothing for them; one that reads them no more than it needs."""
    code = """
import sys
import trapline.sentry.cli.do, trapline.sentry.options
assert not [name for name in sys.modules if "sentry.state" in name]
import trapline.sentry.state.image_writer, trapline.sentry.state.image_check
print(*sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not set(done.stdout.split()) & {"xxhash", "zstandard", "shutil", "mmap", "trio", "logging", "subprocess"}


def test_features_of_the_cpu() -> None:
    """What programs may use counts, and nothing else that Linux lists."""
    flags = ["sse2", "avx512f", "amx_tile", "constant_tsc", "arch_perfmon", "md_clear"]
    assert cpu_features.missing(flags, ["sse2"]) == ["amx_tile", "avx512f"]
    assert cpu_features.problem(flags, ["sse2", "avx512f", "amx_tile", "avx2"]) == ""
    assert "lacks the feature avx512f," in cpu_features.problem(flags, ["sse2", "amx_tile"])
    assert cpu_features.problem(manifest.cpu_flags()) == "" and "sse2" in cpu_features.needed(manifest.cpu_flags())
