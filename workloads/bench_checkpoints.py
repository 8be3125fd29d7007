"""Checkpoints: a program that holds 1 GiB of what cannot be compressed, saved and restored, by trapline and by runsc.

Each round has a new sandbox of each kind. Images lie in memory (a tmpfs), if there is one with room: a disk writes back
what it was given before, and a save is then five times as long or not, by luck. Nothing is synchronised. Neither is
pinned to a CPU: both copy with more than one thread. Time is from the exec of the command: to its end for a save, to
the first line that the program prints for a restore.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_kinds import BIN, PLATFORMS, Kind, last_line
from bench_whole import Add, Failed

PROGRAM = BIN / "resident-static"
DIRTY = 16  # MiB written between a save and the incremental one that follows
#: Seconds for one command, and for one line of the program's.
LIMIT = 60.0
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Place:
    """Where images, bundles and states of sandboxes are while this runs."""

    directory: Path
    mib: int

    @property
    def where(self) -> str:
        """For the reader of the figures."""
        return "in memory" if self.directory.is_relative_to(_MEMORY) else "on the disk"


@contextmanager
def place(mib: int) -> Iterator[Place]:
    """A new directory with room for two images and one program, removed afterwards. OSError."""
    need = 3 * mib << 20
    memory = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > need
    with tempfile.TemporaryDirectory(prefix="trapline-bench-", dir=_MEMORY if memory else None) as name:
        yield Place(Path(name), mib)


class Resident:
    """A sandbox's first command, and the lines that the program in it prints, with the time at which each came."""

    def __init__(self, command: list[str]) -> None:
        self.started = time.monotonic()
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self._lines: queue.SimpleQueue[tuple[float, list[str]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put((time.monotonic(), line.split()))
        self._lines.put((0.0, []))

    def wait_for(self, word: str) -> tuple[float, list[str]]:
        """The next line that begins with a word: seconds since the command began, and its other words. Failed."""
        while True:
            try:
                at, words = self._lines.get(timeout=LIMIT)
            except queue.Empty:
                raise Failed(f"no {word} from the program in {LIMIT:g} s") from None
            if not words:
                self.errors.seek(0)
                raise Failed(last_line(self.errors.read()) or f"it ended before it printed {word}")
            if words[0] == word:
                return at - self.started, words[1:]

    def end(self) -> None:
        """Wait for the command, which has been told to end; kill it where it does not."""
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()


def timed(command: list[str]) -> tuple[float, str]:
    """Seconds that a command took, and what it printed. Failed."""
    began = time.monotonic()
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise Failed(f"no end after {LIMIT:g} s: {' '.join(command[:6])}") from None
    took = time.monotonic() - began
    if done.returncode:
        raise Failed(last_line(done.stderr) or f"status {done.returncode}")
    return took, done.stdout


class Trapline:
    """Sandboxes of ours on one platform."""

    def __init__(self, platform: str, where: Place) -> None:
        self._platform = platform
        self._where = where
        self._state = str(where.directory / "state")
        self._images = where.directory

    def verb(self, verb: str, *words: str) -> list[str]:
        """The command line of a verb."""
        return [sys.executable, "-P", "-m", "trapline", verb, f"--state-dir={self._state}", *words]

    @contextmanager
    def sandbox(self, name: str, *command: str) -> Iterator[Resident]:
        """One that runs; it is deleted in any case."""
        resident = Resident(list(command))
        try:
            yield resident
        finally:
            subprocess.run(self.verb("delete", "--force", name), capture_output=True, timeout=LIMIT)
            resident.end()

    def run(self) -> list[str]:
        """The command that starts the program."""
        program = [str(PROGRAM), str(self._where.mib), str(DIRTY)]
        return self.verb("run", f"--platform={self._platform}", "--id=one", "--", *program)

    def checkpoint(self, image: Path, *flags: str) -> tuple[float, dict[str, Any]]:
        """Seconds, and the result. Failed."""
        words = [f"--image-path={image}", "--no-fsync", "--format=json", *flags, "one"]
        took, text = timed(self.verb("checkpoint", *words))
        return took, json.loads(text)

    def gap(self, resident: Resident) -> float:
        """The longest time that the program did not run since it was last asked, ms. Failed."""
        timed(self.verb("kill", "one", "USR2"))
        return int(resident.wait_for("gap")[1][0]) / 1e6

    def running(self, add: Add) -> None:
        """Saves that leave it running: the pause, as it was felt and as it was told, and an incremental one."""
        one, two = self._images / "one", self._images / "two"
        with self.sandbox("one", *self.run()) as resident:
            resident.wait_for("ready")
            self.gap(resident)
            _, result = self.checkpoint(one, "--leave-running")
            add(self._platform, "pause", self.gap(resident))
            add(self._platform, "pause-told", float(result["pause_ms"]))
            timed(self.verb("kill", "one", "USR1"))
            resident.wait_for("dirtied")
            took, result = self.checkpoint(two, "--leave-running", f"--parent-path={one}")
            if result["size"] >= self._where.mib << 19:
                raise Failed(f"no incremental save here: {' '.join(result['notes'])}")
            add(self._platform, "save-incremental", took * 1e3)
        for image in (one, two):
            shutil.rmtree(image, ignore_errors=True)

    def whole(self, add: Add) -> None:
        """A save that ends it, and restores from it."""
        image = self._images / "image"
        with self.sandbox("one", *self.run()) as resident:
            resident.wait_for("ready")
            add(self._platform, "save", self.checkpoint(image)[0])
        for row, flags in (("restore", ()), ("restore-background", ("--background",))):
            command = self.verb("restore", f"--image-path={image}", *flags, "--id=two")
            with self.sandbox("two", *command) as resident:
                add(self._platform, row, resident.wait_for("mark")[0])
        shutil.rmtree(image, ignore_errors=True)


class Runsc:
    """Containers of one of runsc's platforms. It has no restore in the background here: that of trapline's is compared
    to its whole one."""

    def __init__(self, kind: Kind, where: Place) -> None:
        self._kind = kind
        self._bundle = where.directory / "bundle"
        self._image = where.directory / "runsc-image"
        platform = kind.name.removeprefix("runsc-")
        root = where.directory / "runsc-state"
        self._command = ["runsc", f"--root={root}", f"--platform={platform}", "--network=none", "--ignore-cgroups"]
        (self._bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        shutil.copy(PROGRAM, self._bundle / "rootfs" / "resident")
        spec = {
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/resident", str(where.mib), str(DIRTY)],
                "env": ["PATH=/"],
                "cwd": "/",
            },
            "root": {"path": "rootfs", "readonly": True},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": name} for name in ("pid", "network", "ipc", "uts", "mount")]},
        }
        (self._bundle / "config.json").write_text(json.dumps(spec))

    @contextmanager
    def container(self, name: str, verb: str, *words: str) -> Iterator[Resident]:
        """One that runs; it is deleted in any case."""
        resident = Resident([*self._command, verb, f"--bundle={self._bundle}", *words, name])
        try:
            yield resident
        finally:
            subprocess.run([*self._command, "delete", "--force", name], capture_output=True, timeout=LIMIT)
            resident.end()

    def whole(self, add: Add) -> None:
        """A save that ends it, and a restore from it."""
        flags = ["--compression=none"] if can_leave_compression() else []
        self._image.mkdir()
        try:
            with self.container("one", "run") as resident:
                resident.wait_for("ready")
                save = [*self._command, "checkpoint", f"--image-path={self._image}", *flags, "one"]
                add(self._kind.name, "save", timed(save)[0])
            with self.container("two", "restore", f"--image-path={self._image}") as resident:
                took = resident.wait_for("mark")[0]
            add(self._kind.name, "restore", took)
            add(self._kind.name, "restore-background", took)
        finally:
            shutil.rmtree(self._image, ignore_errors=True)


def can_leave_compression() -> bool:
    """Whether this runsc can save without compression: those of before 2023 always compress."""
    done = subprocess.run(["runsc", "checkpoint", "--help"], capture_output=True, text=True, check=False)
    return "-compression" in done.stdout + done.stderr


def bodies(kind: Kind, where: Place) -> list[tuple[str, Any]]:
    """What is to be measured of a kind of run: the row that stands for it, and what does it; nothing for others."""
    if kind.name in PLATFORMS:
        ours = Trapline(kind.name, where)
        return [("save", ours.whole), ("pause", ours.running)]
    if kind.name.startswith("runsc-"):
        return [("save", Runsc(kind, where).whole)]
    return []
