"""Sandboxes in other states, and started in other ways, than the tests of checkpoints have elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from boxes import Boxes, until


@pytest.fixture
def boxes(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxes]:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    found = Boxes(platform, tmp_path)
    yield found
    found.close()


#: It counts, and says what its clock shows; nobody of it waits in the sentry or in the host alone.
COUNT = """
import os, signal, sys, threading, time
def ticks():
    while True:
        signal.sigtimedwait([signal.SIGUSR1], 0.01)
threading.Thread(target=ticks, daemon=True).start()
if os.fork() == 0:
    while True: time.sleep(0.01)
number = 0
while True:
    number += 1
    with open("count.new", "w") as file: file.write(f"{number} {time.monotonic()}")
    os.rename("count.new", "count")
    time.sleep(0.005)
"""


def count() -> tuple[int, float]:
    number, clock = Path("count").read_text().split()
    return int(number), float(clock)


def goes_on(number: int) -> None:
    until(lambda: Path("count").exists() and count()[0] > number, "it counts")


@pytest.mark.parametrize("freeze", [False, True])
def test_a_paused_sandbox(boxes: Boxes, freeze: bool) -> None:
    """It is saved as it stands, and stands still afterwards; what is restored from it runs."""
    boxes.begin("run", "-d", "--id", "box", "--", "python3", "-c", COUNT)
    goes_on(0)
    boxes.good("pause", *(["--freeze-clocks"] if freeze else []), "box")
    before = count()
    for image in ("../one", "../two"):
        boxes.good("checkpoint", "--image-path", image, "--leave-running", "box")
        assert boxes.state_of("box")["status"] == "paused"
    assert count() == before
    boxes.good("resume", "box")
    goes_on(before[0] + 2)
    if freeze:
        assert count()[1] - before[1] < 0.3  # two saves and a restore would take longer
    boxes.good("pause", "box")
    before = count()
    boxes.good("checkpoint", "--image-path", "../three", "box")
    boxes.good("delete", "box")
    assert count() == before
    boxes.begin("restore", "-d", "--image-path", "../three", "--id", "again")
    assert boxes.state_of("again")["status"] == "running"
    goes_on(before[0])
    boxes.good("kill", "again", "KILL")


def test_signals_to_a_paused_sandbox(boxes: Boxes) -> None:
    """They come when it goes on, also in what is restored; SIGKILL ends one that was saved and paused."""
    script = "trap 'echo got; exit 3' TERM; echo up; while :; do sleep 0.01; done"
    boxes.begin("run", "-d", "--id", "box", "--", "sh", "-c", script)
    log = boxes.state / "box" / "output.log"
    until(lambda: b"up" in log.read_bytes(), "it runs")
    boxes.good("pause", "box")
    boxes.good("checkpoint", "--image-path", "../one", "--leave-running", "box")
    boxes.good("kill", "box", "TERM")
    boxes.good("checkpoint", "--image-path", "../two", "--leave-running", "box")
    assert log.read_bytes() == b"up\n"
    restored = boxes("restore", "--image-path", "../two")
    assert (restored.status, restored.stdout) == (3, b"got\n")
    boxes.good("resume", "box")
    until(lambda: log.read_bytes() == b"up\ngot\n", "its end")
    boxes.begin("restore", "-d", "--image-path", "../one", "--id", "again")
    boxes.good("pause", "again")
    boxes.good("checkpoint", "--image-path", "../three", "--leave-running", "again")
    boxes.good("kill", "again", "KILL")
    until(lambda: boxes.state_of("again")["status"] == "stopped", "its end")


#: Each of two processes opens it by its name, which it got by link(2): what is mapped was called otherwise.
SEMAPHORE = """
import os, time, _multiprocessing
first = _multiprocessing.SemLock(1, 0, 1, "/trapline-test", False)
if os.fork() == 0:
    second = _multiprocessing.SemLock._rebuild(0, 1, 1, "/trapline-test")
    print("waits", flush=True)
    second.acquire()
    print("has it", flush=True)
    os._exit(0)
while not os.path.exists("go"): time.sleep(0.01)
first.release(); os.wait(); os.unlink("/dev/shm/sem.trapline-test")
"""


def test_a_semaphore_with_a_name(boxes: Boxes) -> None:
    boxes.begin("run", "-d", "--id", "box", "--", "python3", "-c", SEMAPHORE)
    log = boxes.state / "box" / "output.log"
    until(lambda: log.read_bytes() == b"waits\n", "it waits")
    boxes.good("checkpoint", "--image-path", "../one", "box")
    boxes.good("delete", "box")
    boxes.begin("restore", "-d", "--image-path", "../one", "--id", "box")
    Path("go").touch()
    until(lambda: log.read_bytes() == b"has it\n", "both have the same one")


#: The id of the first one is 0, and so is the inode that the host shows for it.
SEGMENT = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmdt.argtypes = [ctypes.c_void_p]
number = libc.shmget(0, 4096, 0o1600)
at = libc.shmat(number, None, 0)
ctypes.memmove(at, b"parent", 6)
if os.fork() == 0:
    print(number, "attached", flush=True)
    while not os.path.exists("go"): time.sleep(0.01)
    print(ctypes.string_at(at, 6), flush=True)
    ctypes.memmove(at, b"child!", 6)
    os._exit(libc.shmdt(at))
print(os.wait()[1], ctypes.string_at(at, 6), libc.shmdt(at), flush=True)
"""


def test_the_first_segment_of_shared_memory(boxes: Boxes) -> None:
    boxes.begin("run", "-d", "--id", "box", "--", "python3", "-c", SEGMENT)
    log = boxes.state / "box" / "output.log"
    until(lambda: log.read_bytes() == b"0 attached\n", "it is attached")
    boxes.good("checkpoint", "--image-path", "../one", "box")
    boxes.good("delete", "box")
    boxes.begin("restore", "-d", "--image-path", "../one", "--id", "box")
    Path("go").touch()
    until(lambda: log.read_bytes() == b"b'parent'\n0 b'child!' 0\n", "it is attached still")
