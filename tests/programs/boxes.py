"""Named sandboxes for the tests of the verbs: trapline with a state directory of its own, and what it left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import Result, native, trapline_command

PATIENCE = 30  # seconds until something that must happen counts as not happening


NOBODY = 65534
_AS_USER = Path(__file__).with_name("as_user.py")


class Boxes:
    """The verbs, on one platform and with one state directory; `user`: as this user of the host, where we are root."""

    def __init__(self, platform: str, path: Path, user: int | None = None) -> None:
        self.platform = platform
        self.path = path
        self.state = path / "state"
        self.user = user

    def command(self, verb: str, *words: str) -> list[str]:
        """The command line of a verb."""
        own = ["--root", str(self.state), "--platform", self.platform, verb, *words]
        if self.user is None:
            return trapline_command(*own)
        for path in (self.path, *self.path.rglob("*")):
            if path.lstat().st_uid != self.user and not path.is_relative_to(self.state):
                os.chown(path, self.user, self.user, follow_symlinks=False)
        return [sys.executable, str(_AS_USER), str(self.user), *own]

    @property
    def privileged(self) -> bool:
        """Whether trapline runs as root."""
        return self.user is None and os.geteuid() == 0

    def __call__(self, verb: str, *words: str, timeout: float = 60, **more: Any) -> Result:
        if "stdin" in more or "input" in more:
            done = subprocess.run(self.command(verb, *words), capture_output=True, timeout=timeout, **more)
            return Result(done.returncode, done.stdout, done.stderr)
        return native(self.command(verb, *words), timeout, **more)

    def good(self, verb: str, *words: str, **more: Any) -> str:
        """What it prints; it must succeed and complain about nothing."""
        result = self(verb, *words, **more)
        assert (result.status, result.stderr) == (0, b""), result
        return result.stdout.decode()

    def begin(self, verb: str, *words: str) -> None:
        """As `good`, for what leaves a process behind that has our standard descriptors: its output goes to `output`."""
        with open("output", "ab") as output:
            done = subprocess.run(
                self.command(verb, *words), stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=60
            )
        assert done.returncode == 0, Path("output").read_text()

    def bad(self, verb: str, *words: str, status: int = 128, **more: Any) -> str:
        """What it says in one line; it must fail."""
        result = self(verb, *words, **more)
        assert result.status == status and result.stdout == b"", result
        assert result.stderr.count(b"\n") == 1, result
        return result.stderr.decode().rstrip("\n")

    def state_of(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.good("state", name))
        return found

    def ps(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.good("ps", name, "--format=json"))
        return found

    def guests(self, name: str) -> list[int]:
        """Host ids of its processes."""
        return [process["host_pid"] for process in self.ps(name)]

    def close(self) -> None:
        """Delete all, and see that nothing is left."""
        if not self.state.exists():
            return
        names = self.good("list", "--quiet").split()
        if names:
            self.good("delete", "--force", *names)
        assert os.listdir(self.state) == []
        left = [p for p in psutil.process_iter(["cmdline"]) if str(self.state) in " ".join(p.info["cmdline"] or ())]
        assert not left, left


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that nobody can be woken by."""
    import time

    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what}"
        time.sleep(0.005)


APPLETS = ("sh", "ls", "cat", "echo", "sleep", "ps", "id", "true", "false", "env", "hostname", "mount", "touch", "pwd",
           "sort", "stty", "tty", "kill", "test", "head", "wc", "uname", "grep")  # fmt: skip


def root_of_busybox(path: Path) -> Path:
    """A root file system of the host's busybox, and the libraries that it needs where it is not a static one."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc", "root"):
        (path / name).mkdir(parents=True)
    shutil.copy(busybox, path / "bin" / "busybox")
    for word in subprocess.run(["ldd", busybox], capture_output=True, text=True).stdout.split():
        if word.startswith("/"):
            target = path / word[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, target)
    for applet in APPLETS:
        (path / "bin" / applet).symlink_to("busybox")
    (path / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
    (path / "etc" / "group").write_text("root:x:0:\nann:x:1000:\n")
    return path
