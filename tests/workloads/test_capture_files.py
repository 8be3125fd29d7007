"""Descriptors of another process: taken from outside, and made again. No sandbox is needed for it.

Each kind is made by a process (descriptor_kinds.py) that is then stopped and looked at. It goes on and tells what it
finds, and so does another process that took the kind from the record: both must find the same.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from trapline.platform import capture_files
from trapline.sentry.state.records import Image

PROGRAM = Path(__file__).with_name("descriptor_kinds.py")
sys.path.insert(0, str(PROGRAM.parent))
import descriptor_kinds  # noqa: E402


class Maker:
    """A process that has made its descriptors and waits."""

    def __init__(self, kind: str, where: Path) -> None:
        self.kind, self.where = kind, where
        stdin, self.to = os.pipe()
        self.answers, stdout = os.pipe()
        error = os.open(where.parent / "stderr", os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        command = [sys.executable, "-P", str(PROGRAM), "make", kind]
        self.process = subprocess.Popen(command, cwd=where, stdin=stdin, stdout=stdout, stderr=error)
        self.inherited = {0: stdin, 1: stdout, 2: error}
        self.reader = os.fdopen(self.answers)
        self.fds: list[int] = json.loads(self._line())

    def _line(self) -> str:
        ended = os.pidfd_open(self.process.pid)
        try:
            ready, _, _ = select.select([self.reader, ended], [], [], 60)
        finally:
            os.close(ended)
        line = self.reader.readline() if self.reader in ready else ""
        assert line, (self.where.parent / "stderr").read_text()
        return line

    def capture(self) -> capture_files.Captured:
        """While it is stopped."""
        host = self.process.pid
        os.kill(host, signal.SIGSTOP)
        os.waitid(os.P_PID, host, os.WSTOPPED | os.WNOWAIT)
        try:
            return capture_files.capture([(host, host)], f"/proc/{host}/root", inherited=self.inherited)
        finally:
            os.kill(host, signal.SIGCONT)

    def report(self) -> object:
        os.write(self.to, b"\n")
        os.close(self.inherited[1])
        return json.loads(self._line())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.close()
        os.close(self.to)
        for number in (0, 2):
            os.close(self.inherited[number])


def image_of(found: capture_files.Captured) -> Image:
    return Image(
        files=found.files, tables=found.tables, pipes=found.pipes, sockets=found.sockets,
        terminals=found.terminals, locks=found.locks, ghosts=found.ghosts, shared=found.shared,
    )  # fmt: skip


def save(found: capture_files.Captured, path: Path) -> None:
    """As an image holds it, with what ghosts and memfds hold beside it."""
    path.write_bytes(msgspec.msgpack.encode(image_of(found)))
    for key, handle in found.handles.items():
        with open(f"{path}.{key}", "wb") as out, open(f"/proc/self/fd/{handle}", "rb") as source:
            shutil.copyfileobj(source, out)


def run_restored(kind: str, where: Path, image: Path, fds: list[int]) -> object:
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM), "restore", kind, str(image), json.dumps(fds)],
        cwd=where, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", descriptor_kinds.KINDS)
def test_a_kind_is_found_as_it_was(kind: str, tmp_path: Path) -> None:
    where = tmp_path / "work"
    where.mkdir()
    maker = Maker(kind, where)
    try:
        found = maker.capture()
        assert found.unsavable == []
        again = maker.capture()  # and once more: the first one has changed nothing
        assert len(again.files) == len(found.files)
        again.close()
        save(found, tmp_path / "image")
        found.close()
        # The restored one begins with the files as they were.
        shutil.copytree(where, tmp_path / "before", symlinks=True, copy_function=_copy)
        before = maker.report()
        shutil.rmtree(where)
        os.rename(tmp_path / "before", where)
        restored = run_restored(kind, where, tmp_path / "image", maker.fds)
    finally:
        maker.close()
    found_otherwise = differences(restored, before)
    assert not found_otherwise, "\n".join(found_otherwise)


def differences(one: object, other: object, where: str = "") -> list[str]:
    """Where two reports are not the same."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [text for index, (a, b) in pairs for text in differences(a, b, f"{where}/{index}")]
    return [] if one == other else [f"{where}: {one} is not {other}"]


def _copy(source: str, target: str) -> None:
    import stat

    mode = os.lstat(source).st_mode
    if stat.S_ISFIFO(mode):
        os.mkfifo(target)
    elif stat.S_ISSOCK(mode):
        os.mknod(target, mode)
    else:
        shutil.copy2(source, target, follow_symlinks=False)
