"""Large processes saved while they go on, by copies of them and by what they wrote since, in whole sandboxes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from guests import Running, compiled, until

from trapline.platform.incremental import Incremental
from trapline.sentry.control.client import Client, ControlError
from trapline.sentry.state.manifest import PAGES

MIB = 1 << 20
SIZE = 80
_why_not = Incremental().reason


def save(running: Running, state: Path, image: Path, parent: Path | None = None, **more: Any) -> dict[str, Any]:
    spec = {"image_path": str(image), "fsync": False, "parent_path": str(parent) if parent else "", **more}
    with Client(str(state / str(running.pid)), 60) as client:
        return dict(client.call("checkpoint", spec=spec))


def turn(running: Running, number: int) -> None:
    assert running.process.stdin is not None
    os.write(running.process.stdin.fileno(), b"\n")
    running.wait_for(f"turn {number}: 0 wrong, no child\n".encode())


def pages(image: Path) -> int:
    """Bytes of memory in an image."""
    return sum(os.stat(image / name).st_size for name in PAGES["none"])


def restored(image: Path, state: Path, turns: int) -> list[str]:
    """What it prints, given so many lines."""
    command = [sys.executable, "-P", "-m", "trapline", "restore", "--image-path", str(image), "--state-dir", str(state)]
    done = subprocess.run(command, input=b"\n" * turns, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("parent", ["init", "another guest"])
def test_a_guest_goes_on_while_its_copy_is_written(platform: str, parent: str, tmp_path: Path) -> None:
    """Nobody sees the copy, no zombie is left, and both images are of their moment."""
    program = [compiled("changing"), str(SIZE)]
    if parent != "init":
        program = ["sh", "-c", f'"$0" {SIZE}; true', program[0]]
    with Running(platform, program, f"--state-dir={tmp_path}") as running:
        running.wait_for(b"ready\n")
        for number in range(2):
            result = save(running, tmp_path, tmp_path / f"image{number}", leave_running=True)
            assert pages(tmp_path / f"image{number}") >= SIZE * MIB
            assert not result["notes"], result
            turn(running, number)
        until(lambda: len(running.guests()) == (1 if parent == "init" else 2), "the end of the copies")
        assert running.finish().status == 0
    assert restored(tmp_path / "image0", tmp_path, 1) == ["turn 0: 0 wrong, no child"]
    assert restored(tmp_path / "image1", tmp_path, 2) == ["turn 1: 0 wrong, no child", "turn 2: 0 wrong, no child"]


@pytest.mark.skipif(bool(_why_not), reason=f"writes cannot be tracked here: {_why_not}")
def test_an_incremental_save_holds_what_was_written(platform: str, tmp_path: Path) -> None:
    """Three after another, each the parent of the next; from the last and from the first it goes on."""
    with Running(platform, [compiled("changing"), str(SIZE), "few"], f"--state-dir={tmp_path}") as running:
        running.wait_for(b"ready\n")
        parent: Path | None = None
        for number in range(4):
            image = tmp_path / f"image{number}"
            result = save(running, tmp_path, image, parent, leave_running=True)
            assert not result["notes"], result
            size = pages(image)
            assert size >= SIZE * MIB if not number else 64 * 4096 <= size < 2 * MIB, size
            turn(running, number)
            parent = image
        # The first is not the last image.
        result = save(running, tmp_path, tmp_path / "other", tmp_path / "image0", leave_running=True)
        assert result["notes"] == ["a full save: the parent is not the last image of this sandbox"]
        assert pages(tmp_path / "other") >= SIZE * MIB
        assert running.finish().status == 0
    for number in (3, 0):
        expected = [f"turn {number + k}: 0 wrong, no child" for k in range(2)]
        assert restored(tmp_path / f"image{number}", tmp_path, 2) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_leaves_it_as_it_was(platform: str, tmp_path: Path) -> None:
    """Also when the guest goes on already; the next save is a full one, and whole."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", small], check=True)
    try:
        with Running(platform, [compiled("changing"), str(SIZE)], f"--state-dir={tmp_path}") as running:
            running.wait_for(b"ready\n")
            for number, leave_running in enumerate((True, False, True)):
                with pytest.raises(ControlError, match="No space left on device"):
                    save(running, tmp_path, small / "image", leave_running=leave_running)
                assert not os.listdir(small)
                turn(running, number)
            until(lambda: len(running.guests()) == 1, "the end of the copies")
            save(running, tmp_path, tmp_path / "image")
    finally:
        subprocess.run(["umount", small], check=True)
    assert restored(tmp_path / "image", tmp_path, 1) == ["turn 3: 0 wrong, no child"]
    assert json.loads((tmp_path / "image/manifest.json").read_text())["compression"] == "none"


def test_a_damaged_page_is_found_before_anything_runs(platform: str, tmp_path: Path) -> None:
    """One bit, in memory that the guest would only look at after its first line of input."""
    image = tmp_path / "image"
    with Running(platform, [compiled("changing"), str(SIZE)], f"--state-dir={tmp_path}") as running:
        running.wait_for(b"ready\n")
        save(running, tmp_path, image)
    with open(image / "pages.img", "r+b") as file:
        file.seek(40 * MIB + 5)
        byte = file.read(1)[0]
        file.seek(40 * MIB + 5)
        file.write(bytes([byte ^ 1]))
    command = [sys.executable, "-P", "-m", "trapline", "restore", "--image-path", str(image), "--state-dir", str(tmp_path)]
    done = subprocess.run(command, input=b"\n", capture_output=True, timeout=60)
    assert done.returncode and not done.stdout
    assert b"pages.img: block 320, from 0x2800000 on, is damaged" in done.stderr and done.stderr.count(b"\n") == 1
