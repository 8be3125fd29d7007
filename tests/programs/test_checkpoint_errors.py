"""The host refuses something during a save or a restore, a full disk for one: one line, nothing is left, and a sandbox that
was to be saved goes on. Steps are those of killed_at.py, here calls of the system's that fail."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boxes import PATIENCE, Boxes, until
from harness import is_root, sums
from killed_at import traced
from test_checkpoint_kills import GUEST, RESTORE, SAVE

_DRIVER = str(Path(__file__).with_name("killed_at.py"))
#: A file of each kind, and what makes an image one, for `make test`.
SAVE_CALLS = (
    "partial:Partial.__init__/mkdir",
    "page_file:PageFile._write_piece/pwrite",
    "image_names:open_in/open",
    "image_writer:ImageWriter._write/write",
    "image_writer:ImageWriter._write/fsync",
    "page_file:PageFile.finish/ftruncate",
    "partial:Partial.finish/rename",
)
RESTORE_CALLS = (
    "state_dir:create/mkdir",
    "restore_own_files:_Filler._copy/pwrite",
    "restore_paths:_make_ghost/ftruncate",
    "page_places:read/preadv",
)


class Refuser:
    def __init__(self, boxes: Boxes) -> None:
        self.boxes = boxes
        self.old, self.new = boxes.path / "old", boxes.path / "new"
        self.shared, self.next = str(boxes.path / "steps"), boxes.path / "next"
        self.next.write_text('["", 0, 1]')
        spec = {"begin": SAVE, "file": self.shared, "errors": 1, "again": str(self.next), "trace": True}
        self._begin(spec, "run", "-d", "--id", "box", "--", sys.executable, "-c", GUEST)
        self.log = boxes.state / "box" / "output.log"
        until(lambda: self.log.exists() and self.log.stat().st_size, "it writes")

    def _command(self, spec: dict[str, object], *words: str) -> list[str]:
        first, _, _, *rest = self.boxes.command(*words)
        return [first, "-P", _DRIVER, json.dumps(spec), *rest]

    def _begin(self, spec: dict[str, object], *words: str) -> None:
        with open("output", "ab") as output:
            subprocess.run(self._command(spec, *words), stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True)

    def save(self, step: str, nth: int = 1, error: int = errno.ENOSPC) -> bool:
        """Whether the save was refused for that."""
        self.next.write_text(json.dumps([step, nth, error]))
        done = self.boxes("checkpoint", "--leave-running", "--image-path", str(self.new), "box")
        where = (step, nth, done)
        assert b"Traceback" not in done.stderr and b"internal" not in done.stderr, where
        left = [path.name for path in self.boxes.path.glob("new*")]
        if done.status:
            assert done.status == 128 and done.stderr.count(b"\n") == 1 and done.stdout == b"", where
            assert left == [], (where, left)
        else:
            self.next.write_text('["", 0, 1]')
            self.boxes.good("statefile", "--verify", str(self.new))
            assert left == ["new"], (where, left)
            shutil.rmtree(self.new)
        before = self.log.stat().st_size
        until(lambda: self.log.stat().st_size > before, f"{where}: it goes on")
        return done.status != 0

    def end(self) -> None:
        """Make the image that restores are of."""
        self.next.write_text('["", 0, 1]')
        self.boxes.good("checkpoint", "--no-fsync", "--image-path", str(self.old), "box")
        self.boxes.good("delete", "box")
        self.before = sums(self.old)

    def restore(self, step: str, nth: int = 1, error: int = errno.ENOSPC) -> bool:
        """Whether it was refused for that; if not, the programs go on."""
        spec = {"begin": RESTORE, "file": self.shared, "errors": error, "at": step, "nth": nth, "trace": not step}
        said = {}
        for forks in (False, True):
            errors = self.boxes.path / "errors"
            with open(errors, "wb") as file:
                process = subprocess.Popen(
                    self._command({**spec, "forks": forks}, "restore", "--image-path", str(self.old)),
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file,
                )  # fmt: skip
            assert process.stdout is not None
            up = process.stdout.read(3)
            if up:
                process.kill()
            status = process.wait(PATIENCE)
            process.stdout.close()
            said[forks] = errors.read_bytes()
            where = (step, nth, forks, status, said[forks])
            assert b"Traceback" not in said[forks], where
            assert up or (status == 128 and said[forks].count(b"\n") == 1 and said[forks].startswith(b"trapline restore: ")), where
            until(lambda: os.listdir(self.boxes.state) == [], f"{where}: its state is removed")
            assert sums(self.old) == self.before, where
            if not up:
                return True
        return False


@pytest.fixture
def refuser(boxes: Boxes) -> Iterator[Refuser]:
    yield Refuser(boxes)


def test_a_save_that_the_host_refuses(refuser: Refuser) -> None:
    for step in SAVE_CALLS:
        assert refuser.save(step), f"{step} was not refused"
    assert not refuser.save("")


def test_a_restore_that_the_host_refuses(refuser: Refuser) -> None:
    refuser.end()
    for step in RESTORE_CALLS:
        assert refuser.restore(step), f"{step} was not refused"


def chosen(steps: list[str], seed: int) -> list[tuple[str, int]]:
    """First calls of all, and some that come later."""
    chance = random.Random(seed)
    calls = [step for step in steps if "/" in step]
    found = [(name, 1) for name in dict.fromkeys(calls)]
    for index in chance.sample(range(len(calls)), min(20, len(calls))):
        found.append((calls[index], calls[: index + 1].count(calls[index])))
    return found


def try_all(steps: list[tuple[str, int]], one: Callable[[str, int, int], bool], errors: tuple[int, ...]) -> None:
    wrong = []
    for number, (step, nth) in enumerate(steps):
        try:
            one(step, nth, errors[number % len(errors)])
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong)


@pytest.mark.long
def test_any_call_of_a_save(refuser: Refuser) -> None:
    assert not refuser.save("")
    steps = chosen(traced(refuser.shared)[0], 1)
    try_all(steps, refuser.save, (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EDQUOT))


@pytest.mark.long
def test_any_call_of_a_restore(refuser: Refuser) -> None:
    refuser.end()
    assert not refuser.restore("")
    steps = [step for process in traced(refuser.shared) for step in process]
    try_all(chosen(steps, 2), refuser.restore, (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EPERM))


@pytest.mark.skipif(not is_root(), reason="not root")
def test_a_full_disk(boxes: Boxes) -> None:
    """A file system that has room for nothing, for nearly all of an image, and for a state directory without one."""
    boxes.begin("run", "-d", "--id", "box", "--", sys.executable, "-c", GUEST)
    log = boxes.state / "box" / "output.log"
    until(lambda: log.exists() and log.stat().st_size, "it writes")
    boxes.good("checkpoint", "--no-fsync", "--leave-running", "--image-path", "image", "box")
    size = int(subprocess.check_output(["du", "-sk", "image"]).split()[0])
    small = boxes.path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], check=True)
    try:
        for kilobytes in (64, size // 2, size - 120, size - 60, size - 30):
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(small)], check=True)
            said = boxes.bad("checkpoint", "--image-path", str(small / "image"), "box")
            assert said.endswith("No space left on device"), (kilobytes, said)
            assert os.listdir(small) == []
            before = log.stat().st_size
            until(lambda before=before: log.stat().st_size > before, "it goes on")
        subprocess.run(["mount", "-o", "remount,size=8k", str(small)], check=True)
        with open(small / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        full = Boxes(boxes.platform, small)
        said = full.bad("restore", "--image-path", "image")
        assert said.startswith("trapline restore: ") and "No space left on device" in said, said
        assert os.listdir(full.state) == [] if full.state.exists() else True
    finally:
        subprocess.run(["umount", str(small)], check=True)
