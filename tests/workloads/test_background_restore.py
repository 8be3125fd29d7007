"""`restore --background`: whole sandboxes whose memory comes while they run. What each change of memory does to it while
it is loaded is test_page_loader.py's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from guests import until
from harness import is_root, trapline_command, workload

root = pytest.mark.skipif(not is_root(), reason="an ordinary user's memory is loaded first")
PAGE = 4096
BLOCK = 256 << 10
PAGES = 9 * 1500  # 53 MiB
LINES = [
    "calls", "mprotect", "MADV_DONTNEED", "munmap", "mmap over it", "mremap", "mremap over others",
    "mremap of a part", "MREMAP_DONTUNMAP", "mremap to more", "fork", "exec in a child", "threads at random",
    "threads at random", "a child's threads", "the rest",
]  # fmt: skip
RIGHT = [f"{line}: right" for line in LINES]




def command(directory: Path, *words: str) -> list[str]:
    """One of trapline's verbs, with a state directory of the test's own."""
    return trapline_command("--root", str(directory / "state"), *words)


def trapline(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """That, to its end."""
    return subprocess.run(command(directory, *words), cwd=directory, capture_output=True, text=True, timeout=90)


def done(directory: Path, *words: str) -> str:
    """Its output, when all went well."""
    result = trapline(directory, *words)
    assert result.returncode == 0, result
    return result.stdout


class Place:
    """A directory that sandboxes share, and in it the image of a lazy_memory that waits for `go`."""

    def __init__(self, directory: Path, platform: str, *flags: str, words: tuple[str, ...] = ()) -> None:
        self.directory, self.image = directory, directory / "image"
        program = [workload("lazy_memory"), str(PAGES), *words]
        run = command(directory, "run", f"--platform={platform}", "--id=saved", "--", *program)
        with subprocess.Popen(
            run, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as started:
            assert started.stdout is not None and started.stdout.readline() == "ready\n"
            done(directory, "checkpoint", "--image-path", str(self.image), *flags, "saved")
        done(directory, "delete", "saved")

    def restore(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """It goes on at once, to its end."""
        self.go()
        log = f"--log={self.directory / 'log'}"
        return trapline(self.directory, "restore", log, "--image-path", str(self.image), *flags)

    def detach(self, *flags: str) -> None:
        """It goes on under the name `again`, and waits for `go`."""
        done(
            self.directory, "restore", "--background", "--id=again", "-d", "--image-path", str(self.image), *flags
        )  # fmt: skip

    def go(self) -> None:
        (self.directory / "go").touch()

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def output(self, name: str) -> list[str]:
        """What a detached sandbox has printed when it has ended; nothing of it is left."""
        done(self.directory, "wait", name)
        lines = (self.directory / "state" / name / "output.log").read_text().splitlines()
        done(self.directory, "delete", name)
        return lines


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path / "image", ignore_errors=True)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_program_uses_and_changes_memory_that_is_on_its_way(place: Path, platform: str, compression: str) -> None:
    saved = Place(place, platform, "--compression", compression)
    for flags in (["--background"], ["--background"], []):
        result = saved.restore(*flags)
        assert result.stdout.splitlines() == RIGHT, result
        assert result.returncode == 0
        if is_root():
            assert result.stderr == ""
            assert ("memory is loaded" in saved.log()) == bool(flags)
            os.truncate(place / "log", 0)


def test_a_host_without_userfaultfd_has_its_memory_loaded_first(place: Path, platform: str) -> None:
    result = Place(place, platform).restore("--background", "--without=userfaultfd")
    assert result.stdout.splitlines() == RIGHT and result.returncode == 0
    assert result.stderr.splitlines() == [
        "trapline: --background: memory is loaded first, there is no userfaultfd for it (switched off)"
    ]


@root
def test_a_damaged_block_is_sigbus_for_its_pages_and_a_failed_restore(place: Path, platform: str) -> None:
    saved = Place(place, platform, words=("-d",))
    damage(saved.image / "pages.img")
    saved.detach(f"--log={place / 'log'}")
    waited = trapline(place, "wait", "--restore", "again")
    assert waited.returncode and "is damaged" in waited.stderr and len(waited.stderr.splitlines()) == 1
    assert saved.log().count("is damaged") == 1
    saved.go()
    count = BLOCK // PAGE
    assert saved.output("again") == [f"SIGBUS: {count} pages, EFAULT: {count}", "the others: right"]


def test_without_background_a_damaged_block_starts_nothing(place: Path, platform: str) -> None:
    saved = Place(place, platform)
    damage(saved.image / "pages.img")
    result = saved.restore()
    assert result.returncode and result.stdout == "" and "is damaged" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def damage(path: Path) -> None:
    """A bit in the middle, which is lazy_memory's."""
    with open(path, "r+b") as file:
        file.seek(os.fstat(file.fileno()).st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@root
def test_a_checkpoint_waits_until_all_is_loaded(place: Path, platform: str) -> None:
    saved = Place(place, platform)
    again = place / "second"
    flags = ["--background", "--id=again", f"--pid-file={place / 'pid'}", "--image-path", str(saved.image)]
    with subprocess.Popen(command(place, "restore", *flags), cwd=place, stdin=subprocess.DEVNULL):
        until((place / "pid").exists, "the sandbox goes on")
        done(place, "checkpoint", "--image-path", str(again), "again")
    done(place, "delete", "again")
    saved.image = again
    result = saved.restore()
    assert result.stdout.splitlines() == RIGHT and result.returncode == 0
    shutil.rmtree(again)


@root
def test_a_core_has_memory_that_was_on_its_way(place: Path, platform: str) -> None:
    saved = Place(place, platform, words=("-c",))
    (place / "cores").mkdir()
    result = saved.restore("--background", f"--core-dir={place / 'cores'}")
    assert result.returncode > 128, result  # SIGSEGV: nothing else ends pid 1
    (core,) = (place / "cores").iterdir()
    # Nothing of it was touched: all pages are there because the core waited for them.
    assert core.stat().st_blocks * 512 > PAGES * PAGE
    last = PAGES - 1
    program = [workload("lazy_memory"), str(last), "-w"]
    assert subprocess.run(program, capture_output=True, check=True).stdout in core.read_bytes()


def test_wait_restore_ends_when_all_is_loaded(place: Path, platform: str) -> None:
    saved = Place(place, platform)
    saved.detach()
    assert json.loads(done(place, "wait", "--restore", "again")) == {"id": "again", "checkpoints": 1}
    saved.go()
    assert saved.output("again") == RIGHT
