"""Saves that fail: nothing of them is left, the cause is told, and what was there before stays as it was."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_samples import MEMORY, SIZE, image, kernel, make, memory, put

from trapline.sentry.state import image_check, page_places
from trapline.sentry.state.image_reader import ImageReader
from trapline.sentry.state.image_writer import CannotWrite, ImageWriter
from trapline.sentry.state.manifest import Manifest
from trapline.sentry.state.records import Image, PageRun


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture
def limited() -> Iterator[None]:
    """No file may grow beyond 1 MiB: EFBIG, where the disk would say ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_pages_that_do_not_fit(tmp_path: Path, limited: None, compression: str) -> None:
    size = 4 << 20
    with (
        pytest.raises(CannotWrite, match=r"/image: pages\.img(\.zst)?: File too large$"),
        ImageWriter(str(tmp_path / "image"), compression=compression) as writer,
    ):
        offset = writer.allocate(size)
        writer.write(offset, memory(size))
    assert os.listdir(tmp_path) == []


def test_pages_that_somebody_else_writes(tmp_path: Path, limited: None) -> None:
    """An error of a worker thread is told by the next call, or at the latest by commit."""
    with ImageWriter(str(tmp_path / "image"), compression="zstd") as writer:
        for number in range(8):
            offset = writer.allocate(1 << 19)
            # Into the scratch file, which is short enough; its frames together are not.
            if number < 2:
                put(writer, offset, memory(1 << 19))
        with pytest.raises(CannotWrite, match="File too large"):
            for number in range(8):
                writer.write(number << 19, memory(1 << 19, number))
            writer.commit(kernel(), Image(), Manifest())
    assert os.listdir(tmp_path) == []


def test_another_file_that_does_not_fit(tmp_path: Path, limited: None) -> None:
    with (
        pytest.raises(CannotWrite, match=r"/image: files/upper\.tar: File too large$"),
        ImageWriter(str(tmp_path / "image")) as writer,
        writer.open("files/upper.tar") as file,
    ):
        file.write(memory(2 << 20))
    assert os.listdir(tmp_path) == []


def test_a_record_that_does_not_fit(tmp_path: Path, limited: None) -> None:
    with ImageWriter(str(tmp_path / "image")) as writer:
        with pytest.raises(CannotWrite, match=r"/image: guests\.msgpack: File too large$"):
            writer.commit(kernel(), Image(vdso=memory(2 << 20)), Manifest())
        with pytest.raises(CannotWrite, match="given up"):
            writer.allocate(4096)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", range(60))
def test_a_disk_that_fills_up_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Each of the calls that write in turn has ENOSPC; the image that was there stays as it was."""
    make(tmp_path / "old")
    before = fingerprint(tmp_path)
    count = 0

    def counted(real: object) -> object:
        def call(*args: object, **more: object) -> object:
            nonlocal count
            count += 1
            if count > step:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **more)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patch:
        for name in ("pwrite", "write", "fsync", "ftruncate", "mkdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            with ImageWriter(str(tmp_path / "image")) as writer:
                offset = writer.allocate(SIZE)
                writer.write(offset, memory())
                writer.add_run(PageRun("s1", MEMORY, SIZE, offset))
                with writer.open("ghosts/1") as ghost:
                    ghost.write(b"ghost\n")
                writer.commit(kernel(), image(), Manifest())
        except CannotWrite as error:
            assert "No space left on device" in str(error)
            assert fingerprint(tmp_path) == before and os.listdir(tmp_path) == ["old"]
        else:
            assert step >= count
            assert sorted(os.listdir(tmp_path)) == ["image", "old"]


def test_a_full_tmpfs(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"test", str(tmp_path).encode(), b"tmpfs", 0, b"size=2m"):
        pytest.skip("mounting a tmpfs takes root")
    try:
        for compression in ("none", "zstd"):
            with (
                pytest.raises(CannotWrite, match="No space left on device"),
                ImageWriter(str(tmp_path / "image"), compression=compression, direct=True) as writer,
            ):
                offset = writer.allocate(8 << 20)
                writer.write(offset, memory(8 << 20))
            assert os.listdir(tmp_path) == []
        # Blocks that nobody wrote need no room, and are no reason to die when they are summed.
        with ImageWriter(str(tmp_path / "image")) as writer:
            offset = writer.allocate(8 << 20)
            writer.add_run(PageRun("s1", MEMORY, 8 << 20, offset))
            writer.commit(kernel(), image(), Manifest())
        with ImageReader(str(tmp_path / "image")) as reader:
            reader.check_pages()
    finally:
        assert libc.umount2(str(tmp_path).encode(), 2) == 0


#: What is killed, at the Nth system call of its save: SIGKILL by a hook on the calls that Python makes.
_SAVE = """
    import os, signal, sys
    sys.path[:0] = {path!r}
    import image_samples
    from trapline.sentry.state.image_writer import ImageWriter
    step, count = int(sys.argv[1]), 0

    def hook(event, args):
        global count
        if event.startswith("os.") or event == "open" or event == "fcntl.flock":
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    import fcntl, shutil, xxhash, queue, threading, trapline  # imports are no steps
    real = {{name: getattr(os, name) for name in ("pwrite", "write", "fsync", "ftruncate")}}
    for name in real:
        def call(*args, name=name):
            hook("os." + name, args)
            return real[name](*args)
        setattr(os, name, call)
    from pathlib import Path
    sys.addaudithook(hook)
    image_samples.make(Path(sys.argv[2]))
    count = -1000
    print("done")
"""


def save_and_die(target: Path, step: int) -> int:
    """Its exit status."""
    path = [str(Path(__file__).parent), *sys.path]
    script = textwrap.dedent(_SAVE.format(path=path))
    return subprocess.run(
        [sys.executable, "-c", script, str(step), str(target)], stdout=subprocess.DEVNULL, timeout=60
    ).returncode


def test_killed_at_every_step(tmp_path: Path) -> None:
    target = tmp_path / "image"
    make(tmp_path / "old")
    before = fingerprint(tmp_path / "old")
    left = 0
    for step in range(1, 500):
        status = save_and_die(target, step)
        names = sorted(os.listdir(tmp_path))
        assert len(names) <= 2 and names[-1] == "old", names
        if target.exists():
            # All of it is there from the moment that its name is.
            with ImageReader(str(target)) as reader:
                image_check.check(reader)
                reader.check_pages()
            if status == 0:
                break
            shutil.rmtree(target)
        else:
            assert status == -signal.SIGKILL
            left += len(names) == 2
            assert names == ["old"] or names[0].startswith("image.partial-")
    else:
        raise AssertionError("it never came to its end")
    assert step > 15 and left > 10
    assert sorted(os.listdir(tmp_path)) == ["image", "old"]
    assert fingerprint(tmp_path / "old") == before


def test_leftovers_of_the_dead_alone_are_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (tmp_path / "image.partial-1").mkdir()
    (tmp_path / "image.partial-1" / "link").symlink_to(kept)
    (tmp_path / "image.partial-x").mkdir()
    (tmp_path / "image.partial-2").symlink_to(kept)
    (tmp_path / "image.partial-3").touch()
    (tmp_path / "other.partial-4").mkdir()
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from trapline.sentry.state.image_writer import ImageWriter
with ImageWriter({str(tmp_path / "image")!r}):
    print("ready", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        living = f"image.partial-{other.pid}"
        make(tmp_path / "image")
        names = ["image", "image.partial-2", "image.partial-3", living, "image.partial-x", "kept", "other.partial-4"]
        assert sorted(os.listdir(tmp_path)) == sorted(names)
        other.communicate()
    assert other.returncode == 0
    names.remove(living)
    assert sorted(os.listdir(tmp_path)) == sorted(names) and os.listdir(kept) == ["file"]


def test_an_exception_of_whoever_saves(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ImageWriter(str(tmp_path / "image")) as writer:
        offset = writer.allocate(SIZE)
        put(writer, offset, memory())
        writer.add_run(PageRun("s1", MEMORY, SIZE, offset))
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_disk_that_cannot_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(page_places.os, "preadv", broken)
    with ImageWriter(str(tmp_path / "image")) as writer:
        offset = writer.allocate(SIZE)
        put(writer, offset, memory())
        writer.add_run(PageRun("s1", MEMORY, SIZE, offset))
        with pytest.raises(CannotWrite, match="Input/output error"):
            writer.commit(kernel(), image(), Manifest())
    assert os.listdir(tmp_path) == []
