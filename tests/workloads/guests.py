"""What the tests of real guests share: their C programs, a run that the test acts upon, and what a run left."""

from __future__ import annotations

import ctypes
import functools
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from harness import BIN, ROOT, Result, trapline_command

HERE = Path(__file__).parent
PATIENCE = 20  # seconds until something that must happen counts as not happening
_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def compiled(name: str) -> str:
    """The path of a program built from a C file beside this one, which everybody may execute."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    source, target = HERE / f"{name}.c", BIN / f"test-{name}"
    headers = [source, ROOT / "workloads" / "common.h"]
    if not target.exists() or target.stat().st_mtime < max(f.stat().st_mtime for f in headers):
        BIN.mkdir(exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")
        flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", f"-I{ROOT / 'workloads'}"]
        subprocess.run(["gcc", *flags, "-o", fresh, source, "-pthread"], check=True)
        fresh.rename(target)
    return str(target)


def until(
    condition: Callable[[], object], what: str, seconds: float = PATIENCE, seen: Callable[[], object] = str
) -> None:
    """Wait for something of the host's that nobody can be woken by. `seen` says how things stand, where it does not
    come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what} {seen()}"
        time.sleep(0.002)


class Running:
    """A `trapline do` that goes on while the test does something."""

    def __init__(self, platform: str, command: list[str], *flags: str, **more: object) -> None:
        line = trapline_command("do", f"--platform={platform}", *flags, "--", *command)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, **more)  # type: ignore
        self._seen = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for(self, text: bytes, seconds: float = PATIENCE) -> None:
        """Until the guest has printed this."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while text not in self._seen:
            ready = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0]
            part = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not part:
                self.process.kill()
                pytest.fail(f"no {text!r}: {self._seen!r} {self.process.communicate()[1]!r}")
            self._seen += part

    def guests(self) -> list[psutil.Process]:
        """The guests' processes, the oldest first; not the sandbox's init and not the guardian."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                continue
            ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
            if len(ids) > 1 and ids[-1] != "1":
                found.append(process)
        return sorted(found, key=lambda p: (p.create_time(), p.pid))

    def finish(self, data: bytes = b"", seconds: float = 60) -> Result:
        """Give the guest its last input, and wait for the end."""
        try:
            out, err = self.process.communicate(data, timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        status = self.process.returncode
        return Result(status if status >= 0 else 128 - status, self._seen + out, err)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def lines_of(result: Result) -> dict[str, str]:
    """`name: value` lines of what a guest printed."""
    text = result.stdout.decode(errors="replace").splitlines()
    return dict(line.split(": ", 1) for line in text if ": " in line)


def python_file(tmp_path: Path, text: str) -> list[str]:
    """The command that runs a Python program which uses trapline as a library."""
    file = tmp_path / "driver.py"
    file.write_text(text)
    return [sys.executable, str(file)]


@contextmanager
def orphans_come_here() -> Iterator[Callable[[], list[psutil.Process]]]:
    """Whatever a killed process leaves becomes our child: yields what lists the living that were not there
    before, and reaps the dead."""
    _libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    before = {p.pid for p in psutil.Process().children(recursive=True)}

    def left() -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            if process.pid in before:
                continue
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(process.pid, os.WNOHANG)
                else:
                    found.append(process)
            except (psutil.NoSuchProcess, ChildProcessError):
                continue
        return found

    try:
        yield left
    finally:
        for process in left():
            process.kill()
        _libc.prctl(_SUBREAPER, 0, 0, 0, 0)


def mounts() -> list[str]:
    """This namespace's mount points."""
    with open("/proc/self/mountinfo") as file:
        return sorted(line.split()[4] for line in file)
