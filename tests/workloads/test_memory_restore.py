"""Address spaces saved from outside and made again in another process, which then looks at all of its memory itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from guests import compiled
from memory_box import Pages, capture, end, make_segments, remove_segments, restore, start

from trapline.platform.restore_shared import close
from trapline.sentry.state.records import Image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="ghosts and shared memory are opened through map_files")


class Pipe:
    """What a program prints."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def text(self) -> list[str]:
        os.close(self.writing)
        with os.fdopen(self.reading) as file:
            return file.read().splitlines()


class Saved:
    """The process of mappings.c, saved; it has not gone on yet."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.output = directory, Pipe()
        self.host = start([compiled("mappings"), str(directory)], self.output.writing)
        self.smaps = _smaps(self.host)
        self.image: Image
        self.pages: Pages
        self.image, self.pages, self.registers = capture(self.host)
        shutil.copytree(directory, str(directory) + ".saved")
        self.contents: dict[str, bytes] = {}
        for key in self.image.ghosts:
            mapping = next(m for m in self.image.spaces[1].mappings if m.key == key)
            path = Path(f"/proc/{self.host}/map_files/{mapping.start:x}-{mapping.end:x}")
            self.contents[key] = path.read_bytes()

    def make_ghosts(self) -> dict[str, int]:
        """The deleted files, as they were."""
        made = {}
        for key, ghost in self.image.ghosts.items():
            made[key] = os.open(ghost.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            os.unlink(ghost.path)
            os.write(made[key], self.contents[key])
        return made


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Saved]:
    (tmp_path / "files").mkdir()
    found = Saved(tmp_path / "files")
    yield found
    os.close(found.pages.fd)


def _smaps(host: int) -> list[str]:
    """What is to be the same again: of each mapping its place, permissions, name, flags; guards have none of these."""
    lines = Path(f"/proc/{host}/smaps").read_text().splitlines()
    return [" ".join(line.split()) for line in lines if "-" in line.split()[0] or line.startswith(("VmFlags", "Locked"))]


def test_a_save_leaves_the_process_as_it_was(saved: Saved) -> None:
    assert end(saved.host) == 0
    lines = saved.output.text()
    assert lines[-1] == "done" and len(lines) > 30
    assert [line for line in lines if not line.endswith(": right")] == ["done"]


def test_all_kinds_of_memory_are_made_again(saved: Saved) -> None:
    """Twice from one image; the first process has gone on meanwhile, and has written to all of it."""
    assert end(saved.host) == 0
    native = saved.output.text()
    segments = make_segments(saved.image, saved.pages)
    try:
        for _ in range(2):
            shutil.copytree(str(saved.directory) + ".saved", saved.directory, dirs_exist_ok=True)
            output = Pipe()
            ghosts = saved.make_ghosts()
            host = restore(saved.image, saved.pages, saved.registers, [compiled("blank")], output.writing, ghosts)
            close(ghosts)
            again = _smaps(host)
            assert end(host) == 0
            assert output.text() == native
            assert _comparable(again) == _comparable(saved.smaps)
    finally:
        remove_segments(segments)


def _comparable(smaps: list[str]) -> list[str]:
    """Without the inodes of what has no name, which are others."""
    found = []
    for line in smaps:
        words = line.split(" ", 5)
        if len(words) == 6 and "-" in words[0] and words[4] != "0" and line.endswith("(deleted)"):
            line = " ".join((*words[:3], "?", "?", words[5]))
        found.append(line)
    return found
