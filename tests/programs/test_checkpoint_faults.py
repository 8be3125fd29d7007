"""Checkpoints and restores that something is in the way of: nothing is left behind, and what was there stays good."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from boxes import Boxes, until
from harness import sums

#: Counts, in a file of the sandbox's own and on its output.
COUNTER = 'i=0; while :; do i=$((i + 1)); echo $i > /var/tmp/counted; echo "line $i"; sleep 0.01; done'
#: Changes memory all the time, 16 MiB of it.
BUSY = "import os\nm = [bytearray(os.urandom(1 << 20)) for _ in range(16)]\nprint('up', flush=True)\ni = 0\n" + (
    "while True:\n    i += 1\n    m[i % 16][i * 7919 % (1 << 20)] ^= 1\n"
)
#: Tasks are born, execute something and die, all the time and at several places.
STORM = "for p in 1 2 3 4; do (while :; do (exec true) & /bin/true; wait $!; done) & done; echo up; wait"


def begin(boxes: Boxes, *words: str, name: str = "box") -> Path:
    """A detached sandbox that has begun to write; its log."""
    boxes.begin("run", "-d", "--id", name, "--", *words)
    log = boxes.state / name / "output.log"
    until(lambda: log.read_bytes(), "it writes")
    return log


def busy(boxes: Boxes) -> Path:
    return begin(boxes, sys.executable, "-c", BUSY)


def sentry_of(boxes: Boxes, name: str = "box") -> int:
    found: int = boxes.state_of(name)["pid"]
    return found


def goes_on(log: Path) -> None:
    before = log.stat().st_size
    until(lambda: log.stat().st_size > before, "it goes on")


def test_two_from_one_image(boxes: Boxes) -> None:
    """Side by side, with files of their own; the image stays as it was."""
    begin(boxes, "sh", "-c", COUNTER)
    image = boxes.path / "image"
    boxes.good("checkpoint", "--image-path", str(image), "box")
    before = sums(image)
    for name in ("one", "two"):
        boxes.begin("restore", "-d", "--id", name, "--image-path", str(image))
    for name in ("one", "two"):
        goes_on(boxes.state / name / "output.log")
    boxes.good("exec", "one", "sh", "-c", "echo one > /var/tmp/mine; rm -rf /var/lib")
    boxes.good("exec", "two", "test", "!", "-e", "/var/tmp/mine", "-a", "-d", "/var/lib")
    boxes.good("kill", "one", "KILL")
    goes_on(boxes.state / "two" / "output.log")
    assert sums(image) == before
    assert not os.path.exists("/var/tmp/mine")


def test_damage_in_any_file(boxes: Boxes) -> None:
    """A flipped bit, and a missing end: one line, and nothing is started."""
    begin(boxes, "sh", "-c", f"exec 3> /var/tmp/gone; rm /var/tmp/gone; echo x >&3; {COUNTER}")
    image = boxes.path / "image"
    boxes.good("checkpoint", "--image-path", str(image), "box")
    boxes.good("delete", "box")
    chance = random.Random(1)
    names = list(sums(image))
    assert {"manifest.json", "kernel.msgpack", "guests.msgpack", "pages_meta.img", "pages.img"} < set(names)
    for name in names:
        path = image / name
        whole = path.read_bytes()
        where = chance.randrange(len(whole)) if whole else 0
        flipped = bytearray(whole or b"x")  # of so few pages none is in the second file
        flipped[where] ^= 1 << chance.randrange(8)
        for damaged in (bytes(flipped), whole[:where], b"") if whole else (bytes(flipped),):
            path.write_bytes(damaged)
            said = boxes.bad("restore", "--id", "box", "--image-path", str(image))
            assert said.startswith("trapline restore: "), (name, where, said)
            assert os.listdir(boxes.state) == [], (name, where)
        path.write_bytes(whole)
    boxes.begin("restore", "-d", "--id", "box", "--image-path", str(image))
    goes_on(boxes.state / "box" / "output.log")


@pytest.mark.long
def test_a_fork_storm(boxes: Boxes) -> None:
    begin(boxes, "bash", "-c", STORM)
    for number in range(5):
        boxes.good("checkpoint", "--no-fsync", "--leave-running", "--image-path", f"image{number}", "box")
    for number in range(2):
        boxes.good("checkpoint", "--no-fsync", "--image-path", f"end{number}", "box")
        boxes.good("delete", "box")
        boxes.begin("restore", "-d", "--id", "box", "--image-path", f"end{number}")
    assert len(boxes.guests("box")) >= 5


def test_saves_in_a_row(boxes: Boxes) -> None:
    """Nothing of one stays open."""
    busy(boxes)
    sentry = sentry_of(boxes)

    def save(number: int) -> None:
        boxes.good("checkpoint", "--no-fsync", "--leave-running", "--image-path", f"image{number}", "box")

    for number in range(2):
        save(number)
    before = sorted(os.readlink(f"/proc/{sentry}/fd/{fd}") for fd in os.listdir(f"/proc/{sentry}/fd"))
    guests = boxes.guests("box")
    for number in range(2, 8):
        save(number)
        time.sleep(0.05)
    after = sorted(os.readlink(f"/proc/{sentry}/fd/{fd}") for fd in os.listdir(f"/proc/{sentry}/fd"))
    assert len(after) <= len(before), (before, after)
    assert boxes.guests("box") == guests
    for guest in guests:
        children = Path(f"/proc/{guest}/task/{guest}/children").read_text()
        assert not children, "a copy is left"


def test_too_short_a_time(boxes: Boxes) -> None:
    log = begin(boxes, "sh", "-c", f"head -c 60000000 /dev/urandom > /var/tmp/large; {COUNTER}")
    said = boxes.bad("checkpoint", "--timeout", "0.001", "--image-path", "image", "box")
    assert "0.001 s" in said, said
    assert os.listdir(".") == ["output"]
    goes_on(log)


def test_a_client_that_hangs_up(boxes: Boxes) -> None:
    log = begin(boxes, "sh", "-c", f"head -c 60000000 /dev/urandom > /var/tmp/large; {COUNTER}")
    for number in range(3):
        saving = subprocess.Popen(
            boxes.command("checkpoint", "--image-path", f"image{number}", "box"), stderr=subprocess.DEVNULL
        )
        until(lambda number=number: list(Path.cwd().glob(f"image{number}*")), "it has begun")
        saving.kill()
        saving.wait()
        until(lambda number=number: not list(Path.cwd().glob(f"image{number}.partial*")), "it is given up, or done")
        if Path(f"image{number}").exists():
            return  # it was quicker
        goes_on(log)
