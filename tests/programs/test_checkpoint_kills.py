"""trapline killed (SIGKILL) at each step of a save and of a restore: nothing of it is left, and the image that was there
before is as it was. What a step is: killed_at.py."""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from boxes import PATIENCE, Boxes, until
from harness import is_root, sums
from killed_at import stands_still, traced

#: Has of everything that a save and a restore treat by a step of its own: memory enough for a fork that writes it, shared
#: memory, a child, a file without a name, files of the sandbox's own, a pipe with something in it, a call that waits.
GUEST = """
import mmap, os, sys, time
own = [os.urandom(1 << 20) for _ in range(6)]
shared = mmap.mmap(-1, 1 << 20)
shared[:4096] = os.urandom(4096)
gone = os.open('/var/tmp/gone', os.O_RDWR | os.O_CREAT)
os.write(gone, b'gone')
os.unlink('/var/tmp/gone')
with open('/var/tmp/own', 'wb') as file:
    file.write(os.urandom(10000))
reader, writer = os.pipe()
os.write(writer, b'unread')
child = os.fork()
while True:
    if child:
        print('up', flush=True)
    time.sleep(0.01)
"""
_DRIVER = str(Path(__file__).with_name("killed_at.py"))
SAVE, RESTORE = "checkpointing:Checkpointing.save", "restore:restore_sandbox"
_PR_SET_CHILD_SUBREAPER = 36

#: One of each phase, for `make test`; "fork:" is one of the process that becomes the first of the sandbox.
SAVE_PHASES = (
    "quiesce:Quiescence._serve",  # tasks come to rest
    "snapshot:Snapshot.let_go",  # a copy of a guest is there
    "image_writer:ImageWriter._write/fsync",
    "partial:Partial.finish/rename",
    "partial:_sync_directory/fsync",  # it has its name
)
RESTORE_PHASES = (
    "image_reader:ImageReader._read_manifest",
    "state_dir:create/rename",
    "fork:mounts:_overlay",
    "fork:restore_files:open_pool",  # the seed
    "restore_tree:make_child",
    "page_places:read/preadv",
    "restore_tasks:become_guest",
    "restored_session:RestoredSession._set_going",
)
#: While its entry with a name is made: the name can be used again at once.
NAMED_PHASES = ("state_dir:create/open", "state_dir:create/rename")
#: Where memory comes while tasks run.
BACKGROUND_PHASES = ("page_loader:Loader._load", "page_loader:Loader._put")


class Grave:
    """What must be the same once a trapline that was killed is buried. Whatever loses its parent becomes ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = self._host()
        self._children = {process.pid for process in psutil.Process().children(recursive=True)}

    def _host(self) -> tuple[list[str], list[str], list[str]]:
        """Mounts that could be trapline's, and what bears its name; others use the machine, too."""
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        mounts = [line for line in mounts if str(self.path) in line or " - overlay " in line or "trapline" in line]
        groups = [str(path) for path, _, _ in os.walk("/sys/fs/cgroup") if "trapline" in path]
        return mounts, groups, [name for name in os.listdir("/dev/shm") if "trapline" in name]

    def left(self) -> list[int]:
        """Processes that it has started and that are there, when those that have ended were reaped."""
        found = []
        for process in psutil.Process().children(recursive=True):
            if process.pid in self._children:
                continue
            try:
                if os.waitpid(process.pid, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                pass  # another's child
            found.append(process.pid)
        return found

    def check(self, where: str) -> None:
        until(lambda: not self.left(), f"{where}: all processes end")
        assert self._host() == self._before, where
        assert not os.listdir(self.path / "tmp"), where


@pytest.fixture
def grave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Grave]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield Grave(tmp_path)
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Killer:
    """Saves and restores of one image that end at a step."""

    def __init__(self, boxes: Boxes, grave: Grave) -> None:
        self.boxes, self.grave = boxes, grave
        self.old, self.new = boxes.path / "old", boxes.path / "new"
        self.shared = str(boxes.path / "steps")
        boxes.begin("run", "-d", "--id", "box", "--", sys.executable, "-c", GUEST)
        self.await_output("box")
        boxes.good("checkpoint", "--no-fsync", "--image-path", str(self.old), "box")
        boxes.good("delete", "box")
        self.before = sums(self.old)

    def await_output(self, name: str) -> None:
        log = self.boxes.state / name / "output.log"
        until(lambda: log.exists() and log.stat().st_size, "it writes")

    def command(self, begin: str, spec: dict[str, object], *words: str) -> list[str]:
        if os.path.exists(self.shared):
            os.unlink(self.shared)
        text = json.dumps({"begin": begin, "file": self.shared, **spec})
        first, _, _, *rest = self.boxes.command(*words)
        return [first, "-P", _DRIVER, text, *rest]

    # -- a save
    def save(self, spec: dict[str, object], where: str, *more: str) -> bool:
        """One whose sentry comes to its end there; whether it did. Otherwise the image is there."""
        boxes = self.boxes
        command = self.command(SAVE, spec, "restore", "-d", "--id", "box", "--image-path", str(self.old))
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)
        sentry = json.loads((boxes.state / "box" / "info.json").read_bytes())["pid"]
        done = boxes("checkpoint", "--image-path", str(self.new), *more, "box")
        assert done.stderr.count(b"\n") <= 2 and b"Traceback" not in done.stderr, (where, done)
        killed = done.status != 0
        if more and not killed:
            # It goes on; or it came to its end when the client had its answer.
            os.kill(sentry, signal.SIGKILL)
        self.grave.check(where)
        assert boxes("delete", "--force", "box").status == 0, where
        self._look(where)
        partial = [path.name for path in boxes.path.glob("new.partial-*")]
        assert len(partial) <= 1, (where, partial)  # its own; or that of the one before, which it was about to remove
        if self.new.exists():
            boxes.good("statefile", str(self.new))  # whole, or not there
            subprocess.run(["rm", "-r", str(self.new)], check=True)
        else:
            assert killed, where
        return killed

    def _look(self, where: str) -> None:
        assert sums(self.old) == self.before, where
        assert os.listdir(self.boxes.state) == [], where

    # -- a restore
    def restore(self, spec: dict[str, object], where: str, *more: str, victim: str = "sentry") -> bool:
        """One that ends there; whether it did. Of a step in a fork either that or the sentry is killed."""
        command = self.command(RESTORE, spec, "restore", "--image-path", str(self.old), *more)
        errors = self.boxes.path / "errors"  # no pipe: what outlives the sentry holds its end
        with open(errors, "wb") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file)
        assert process.stdout is not None
        reached = False
        end = time.monotonic() + PATIENCE
        while True:
            inside = stands_still(self.shared)
            if inside:
                reached = True
                os.kill(process.pid if victim == "sentry" else self._fork(process.pid, inside), signal.SIGKILL)
                break
            if process.poll() is not None:
                reached = process.returncode == -signal.SIGKILL
                break
            if select.select([process.stdout], [], [], 0.002)[0] and os.read(process.stdout.fileno(), 4096):
                process.kill()  # it has gone on before it came there
                break
            assert time.monotonic() < end, where
        process.stdout.close()
        process.wait(PATIENCE)
        said = errors.read_bytes()
        if reached and victim != "sentry":
            assert process.returncode == 128 and said.count(b"\n") == 1, (where, said, process.returncode)
        assert said.count(b"\n") <= 1 and b"Traceback" not in said, (where, said)
        self.grave.check(where)
        assert self.boxes.good("list", "--quiet") == "", where
        self._look(where)
        return reached

    @staticmethod
    def _fork(sentry: int, inside: int) -> int:
        """The host id of a process below the sentry that has this one in its own namespace."""
        for child in psutil.Process(sentry).children(recursive=True):
            words = Path(f"/proc/{child.pid}/status").read_text().partition("NSpid:")[2].split("\n")[0].split()
            if int(words[-1]) == inside and len(words) > 1:
                return child.pid
        raise AssertionError("nobody has this id")

    # -- all steps
    def traced_save(self, *more: str) -> list[str]:
        assert not self.save({"trace": True}, "traced", *more)
        return traced(self.shared)[0]

    def traced_restore(self, *more: str) -> tuple[list[str], list[str]]:
        """The sentry's steps until it is restored, and those of what becomes the first process."""
        assert not self.restore({"trace": True}, "traced", *more)
        found = traced(self.shared)
        last = "page_loader:Loader.close" if more else "checkpoint_attempts:Attempts.loaded"
        own = found[0]
        own = own[: own.index(last) + 20] if last in own else own
        return own, next(each for each in found if "seed:_room" in each)


@pytest.fixture
def killer(boxes: Boxes, grave: Grave) -> Killer:
    return Killer(boxes, grave)


def spec_of(step: str, nth: int = 1) -> dict[str, object]:
    return {"at": step.removeprefix("fork:"), "nth": nth, "forks": step.startswith("fork:")}


def test_each_phase_of_a_save(killer: Killer) -> None:
    """Half of them with the sandbox left running. The next save to the same place finds no half of one in its way."""
    for step in SAVE_PHASES:
        more = ["--leave-running"] if step.startswith(("snapshot", "quiesce")) else []
        assert killer.save(spec_of(step), step, *more), f"{step} was not reached"
    assert not killer.save({}, "not killed")
    assert not list(killer.boxes.path.glob("new*"))


def test_each_phase_of_a_restore(killer: Killer) -> None:
    for step in RESTORE_PHASES:
        if is_root() or not step.startswith("fork:"):
            assert killer.restore(spec_of(step), step), f"{step} was not reached"
    assert killer.restore(spec_of("fork:restore_files:open_pool"), "seed", victim="fork")
    for step in NAMED_PHASES:
        assert killer.restore(spec_of(step), f"{step}, named", "--id", "box"), f"{step} was not reached"
    if is_root():
        for step in BACKGROUND_PHASES:
            assert killer.restore(spec_of(step), step, "--background"), f"{step} was not reached"


#: Of the client that asks for a save.
CLIENT_PHASES = ("client:Client._connect", "client:Client.begin", "client:Client._receive", "checkpoint:_ask.<locals>.tell")


def test_each_phase_of_a_client(killer: Killer) -> None:
    """The sandbox goes on, and there is no half of an image."""
    boxes = killer.boxes
    boxes.begin("restore", "-d", "--id", "box", "--image-path", str(killer.old))
    log = boxes.state / "box" / "output.log"
    for step in CLIENT_PHASES:
        command = killer.command(
            "checkpoint:_ask", spec_of(step), "checkpoint", "--leave-running", "--image-path", str(killer.new), "box"
        )
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
        assert done.returncode == -signal.SIGKILL and done.stderr == b"", (step, done)
        until(lambda: not list(boxes.path.glob("new.partial-*")), f"{step}: it is given up, or done")
        before = log.stat().st_size
        until(lambda before=before: log.stat().st_size > before, f"{step}: it goes on")
        boxes.good("checkpoint", "--no-fsync", "--leave-running", "--image-path", str(boxes.path / step), "box")
        if killer.new.exists():
            boxes.good("statefile", str(killer.new))
            subprocess.run(["rm", "-r", str(killer.new)], check=True)
    boxes.good("delete", "--force", "box")
    killer.grave.check("the client's")


def chosen(steps: list[str], number: int, seed: int, start: int = 0) -> list[tuple[str, int]]:
    """Of these steps as they came, from one on: some functions' first calls, and some calls wherever."""
    chance = random.Random(seed)
    names = list(dict.fromkeys(steps[start:]))
    places = [steps.index(name, start) for name in chance.sample(names, min(number, len(names)))]
    places += chance.sample(range(start, len(steps)), number // 3)
    return [(steps[place], steps[: place + 1].count(steps[place])) for place in sorted(places)]


def look_at_all(steps: list[tuple[str, int]], one: Callable[[str, int], bool]) -> None:
    """How often a step comes depends on when tasks stop; but most of them must be there."""
    reached = sum(one(name, nth) for name, nth in steps)
    assert reached > len(steps) * 0.7, f"{reached} of {len(steps)}"


#: How many functions' first calls are ends in one test.
NUMBER = int(os.environ.get("TRAPLINE_KILLS", "45"))


@pytest.mark.long
@pytest.mark.parametrize("more", [[], ["--leave-running"]], ids=["ended", "running"])
def test_steps_of_a_save(killer: Killer, more: list[str]) -> None:
    steps = chosen(killer.traced_save(*more), NUMBER, 1)
    look_at_all(steps, lambda name, nth: killer.save(spec_of(name, nth), f"{name} {nth}", *more))


@pytest.mark.long
@pytest.mark.parametrize("more", [[], ["--background"]], ids=["first", "background"])
def test_steps_of_a_restore(killer: Killer, more: list[str]) -> None:
    if more and not is_root():
        pytest.skip("an ordinary user has everything loaded first")
    own, seed = killer.traced_restore(*more)
    steps = chosen(own, NUMBER, 2)
    look_at_all(steps, lambda name, nth: killer.restore(spec_of(name, nth), f"{name} {nth}", *more))
    if not is_root():
        return  # an ordinary user's follows later
    # A fork that stands still before it follows the sentry would, left to itself, soon come to that.
    found = chosen(seed, NUMBER // 3, 3, seed.index("setup_calls:unshare"))
    steps = [(f"fork:{name}", nth) for name, nth in found]
    for victim in ("sentry", "fork"):
        look_at_all(
            steps,
            lambda name, nth, victim=victim: killer.restore(  # type: ignore[misc]
                spec_of(name, nth), f"{victim} {name} {nth}", *more, victim=victim
            ),
        )
