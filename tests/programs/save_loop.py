"""The save loop: a command that is saved while it runs, over and over, and either goes on or is killed and restored.

What it prints must be what it prints natively. Saves come at random times that a seed decides, and at the marker calls
that workloads make (workloads/common.h). A failure says the seed; TRAPLINE_SAVE_SEED repeats it.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Result, trapline_command

from trapline.sentry.control.client import Client, ControlError

NOBODY = 65534
_AS_USER = Path(__file__).with_name("as_user.py")
#: What a save may say of what is over in a moment, and cannot be saved meanwhile (docs/limits.md); the sandbox goes on.
_TRY_AGAIN = re.compile("try again$|a connection that was not accepted yet$|inotify descriptor with events that were not read$")
#: The same of a pipe whose other end is on its way over such a connection: so many times in a row at most.
_ON_ITS_WAY, _IN_A_ROW = re.compile("a pipe whose other end is outside of the sandbox$"), 3
#: What it may say where the sandbox is just ending.
_ENDING = re.compile("has ended|hung up|not running|not served|No such file or directory$")
_KILLED = 137
_LOOK = 0.005  # s


def seed_of_tests() -> int:
    """A new one each time, unless one is to be repeated."""
    return int(os.environ.get("TRAPLINE_SAVE_SEED") or secrets.randbelow(1_000_000))


class SaveLoop:
    """One command. `kill`: each save ends the sandbox, and it is restored; `user`: as this user of the host's; `flags`:
    of `do`; `more`: cwd and env, as for subprocess.run."""

    def __init__(
        self,
        platform: str,
        command: list[str],
        seed: int | str,
        *,
        kill: bool,
        user: int | None = None,
        flags: tuple[str, ...] = (),
        **more: Any,
    ) -> None:
        self.seed = seed
        self.saves = 0
        self._refused = 0
        self._platform = platform
        self._command = command
        self.kill = kill
        self._user = user
        self._flags = flags
        self._more = more
        self._random = random.Random(seed)
        self._place = Path(tempfile.mkdtemp(prefix="tl-loop-", dir="/var/tmp"))
        self._state = self._place / "state"
        self._process: subprocess.Popen[bytes] | None = None

    # -- the two ways
    def at_random(self, most: int, span: float, limit: float = 120, first: float = 1000) -> Result:
        """At most `most` saves, each up to `span` seconds after the sandbox is served, and the first one up to `first`;
        `limit` seconds for all of it."""
        try:
            self._start("do", *self._flags, "--", *self._command)
            end = time.monotonic() + limit
            while True:
                status = self._until_served(end)
                if status is None:
                    wait = self._random.random() * (min(span, first) if not self.saves else span)
                    status = self._ended(min(wait if self.saves < most else limit, end - time.monotonic()))
                if status is not None:
                    return self._result(status)
                assert time.monotonic() < end, f"not done within {limit} s: {self._result(-1)}"
                self._save()
        finally:
            self._clean()

    def at_markers(self, limit: float = 120) -> Result:
        """At each marker that the command makes."""
        images = self._place / "images"
        try:
            images.mkdir()
            more = ["--checkpoint-at-marker", f"{images}{':kill' if self.kill else ''}"]
            self._start("do", *more, "--", *self._command)
            end = time.monotonic() + limit
            while True:
                status = self._ended(end - time.monotonic())
                assert status is not None, f"not done within {limit} s: {self._result(-1)}"
                made = sorted(images.iterdir(), key=lambda path: int(path.name))
                self.saves = int(made[-1].name) if made else 0
                if not self.kill or status != _KILLED or not made:
                    return self._result(status)
                last = made[-1]
                for old in made[:-1]:
                    shutil.rmtree(old)
                gone = self._place / "restored"
                shutil.rmtree(gone, ignore_errors=True)
                self._start("restore", "--image-path", str(last))
                # Its name stays taken, so that what is there after the next save is a later one.
        finally:
            self._clean()

    # -- parts
    def _line(self, verb: str, *words: str) -> list[str]:
        own = ["--root", str(self._state), "--platform", self._platform, verb, *words]
        if self._user is None:
            return trapline_command(*own)
        for path in (self._place, *self._place.iterdir()):
            os.chown(path, self._user, self._user)
        return [sys.executable, str(_AS_USER), str(self._user), *own]

    def _start(self, verb: str, *words: str) -> None:
        line = self._line(verb, *words)
        # Appended to, so that a restored one goes on where the one before stopped.
        with open(self._place / "out", "ab") as out, open(self._place / "err", "ab") as err:
            more = {"cwd": self._place, **self._more}
            self._process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **more)

    def _ended(self, seconds: float) -> int | None:
        assert self._process is not None
        try:
            status = self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        return status if status >= 0 else 128 - status

    def _until_served(self, end: float) -> int | None:
        """Wait until the sandbox has its control socket, or has ended: then its status."""
        while not self._sockets():
            status = self._ended(_LOOK)
            if status is not None:
                return status
            assert time.monotonic() < end, f"not served in time: {self._result(-1)}"
        return None

    def _sockets(self) -> list[Path]:
        return list(self._state.glob("*/control.sock"))

    def _save(self) -> None:
        """Unless it has ended meanwhile."""
        served = self._sockets()
        if not served:
            return
        image = self._place / f"image-{self.saves}"
        spec = {"image_path": str(image), "fsync": False, "leave_running": not self.kill}
        try:
            with Client(str(served[0].parent), 30) as client:
                client.call("checkpoint", spec=spec)
        except ControlError as error:
            if _TRY_AGAIN.search(str(error)):
                return
            if _ON_ITS_WAY.search(str(error)) and self._refused < _IN_A_ROW:
                self._refused += 1
                return
            ended = self._ended(10) if _ENDING.search(str(error)) else None
            assert ended is not None, f"save {self.saves}: {error}: {self._result(-1)}"
            return
        self.saves += 1
        self._refused = 0
        if self.kill:
            assert self._ended(60) == _KILLED, self._result(-1)
            self._start("restore", "--image-path", str(image))
        shutil.rmtree(self._place / f"image-{self.saves - 2}", ignore_errors=True)

    def _result(self, status: int) -> Result:
        return Result(status, (self._place / "out").read_bytes(), (self._place / "err").read_bytes())

    def _clean(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        if os.environ.get("TRAPLINE_SAVE_KEEP"):
            sys.stderr.write(f"kept: {self._place}\n")
        else:
            shutil.rmtree(self._place, ignore_errors=True)
