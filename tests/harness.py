"""Running a command natively and under trapline, for the tests that need real processes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / "workloads" / "bin"
PLATFORMS = ("seccomp", "ptrace")


class Result:
    """What a run left."""

    def __init__(self, status: int, stdout: bytes, stderr: bytes) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    def __repr__(self) -> str:
        out, err = self.stdout.decode(errors="replace"), self.stderr.decode(errors="replace")
        return f"status {self.status}\n--- stdout\n{out}--- stderr\n{err}"


def native(command: list[str], timeout: float = 60, **more: object) -> Result:
    """Run a command on the host; the status as a shell gives it."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, **more
    )  # type: ignore[call-overload]
    status = done.returncode if done.returncode >= 0 else 128 - done.returncode
    return Result(status, done.stdout, done.stderr)


def trapline_command(*arguments: str) -> list[str]:
    """The command line of trapline itself."""
    return [sys.executable, "-m", "trapline", *arguments]


#: What `do` is in the tests that save what runs under it (programs/test_saved_on_the_way.py).
in_place_of_do: list[Callable[..., Result]] = []


def do(platform: str, command: list[str], *flags: str, timeout: float = 90, **more: object) -> Result:
    """`trapline do` of a command."""
    for other in in_place_of_do:
        return other(platform, command, *flags, timeout=timeout, **more)
    return native(
        trapline_command("do", f"--platform={platform}", *flags, "--", *command), timeout, **more
    )


@functools.cache
def oracle(*command: str) -> Result:
    """What a workload does natively: run once, since it is the same for every platform."""
    return native(list(command))


def same(platform: str, command: list[str], *flags: str, **more: object) -> Result:
    """Both runs must agree in output and status; the emulated result."""
    expected = oracle(*command) if not more and command[0].startswith(f"{BIN}/") else native(command, **more)
    actual = do(platform, command, *flags, **more)
    assert actual.stdout == expected.stdout, f"native:\n{expected}\n\ntrapline:\n{actual}"
    assert actual.status == expected.status, f"native:\n{expected}\n\ntrapline:\n{actual}"
    return actual


def stats(platform: str, command: list[str], tmp_path: Path, *flags: str) -> dict[str, object]:
    """The counters of a run."""
    file = tmp_path / "stats.json"
    result = do(platform, command, f"--stats-json={file}", *flags)
    assert file.exists(), result
    found: dict[str, object] = json.loads(file.read_text())
    return found


def workload(name: str) -> str:
    """The path of a built workload; the test is skipped when it is not built."""
    path = BIN / name
    if not path.exists():
        pytest.skip(f"workloads/bin/{name} is not built (make workloads; musl and Go ones need their compiler)")
    return str(path)


def program(name: str) -> str:
    """The path of an installed program; the test is skipped when it is not."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def guests_of(pid: int) -> list[int]:
    """Host ids of everything below a process."""
    import psutil

    try:
        return [p.pid for p in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return f.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def is_root() -> bool:
    """Whether the tests run as root."""
    return os.geteuid() == 0


def sums(image: Path) -> dict[str, str]:
    """Of every file below a directory: name and checksum."""
    found = {}
    for path in sorted(image.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(image))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
