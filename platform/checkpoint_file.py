"""Checkpoints that programs ask for: two FIFOs under /run/trapline in the sandbox, with the sentry at their other ends.

    echo checkpoint > /run/trapline/checkpoint; read outcome < /run/trapline/outcome

A line asks: `checkpoint` or nothing (save, and go on) or `stop` (save, and end the sandbox). A line answers, once the
attempt is over: `resumed N`, `restored N` or `failed: reason`. In between a reader waits, in the host's read(2), and so
it does in a sandbox that was restored from the image, where the answer is another. They are ordinary FIFOs (fifo(7)),
so all of this is native, and a descriptor that is open while the checkpoint is taken is opened again by its path. We
hold both sides of each, so neither does an open wait nor a reader ever see the end.

One stream of answers serves all: several programs that ask must agree who does, by flock(1) of the directory for
instance. An answer that nobody read is taken away before the next attempt, or whoever asked next would get it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trapline.platform.first_processes import SetupError
from trapline.platform.mounts import CHECKPOINT_FILES, CHECKPOINT_PLACE

if TYPE_CHECKING:
    from trapline.platform.session import Session

#: A request is not longer, in bytes.
_LONGEST = 256
_GO_ON, _STOP = ("", "checkpoint"), "stop"
_IN_PROGRESS = "failed: a checkpoint is being made already\n"


class CheckpointFile:
    """The sentry's side. `directory`: of the host; checkpoints go there, by their numbers."""

    def __init__(self, session: Session, directory: str, place: str = "") -> None:
        """`place`: where the FIFOs are; "": in the sandbox, before any guest runs. SetupError."""
        self._session = session
        self._directory = directory
        self._held = b""  # of a line that is not complete
        self._handles: list[int] = []
        place = place or f"/proc/{session.sandbox.init_pid}/root{CHECKPOINT_PLACE}"
        try:
            for name in CHECKPOINT_FILES:
                flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
                self._handles.append(os.open(f"{place}/{name}", flags))
        except OSError as error:
            self._close_handles()
            raise SetupError(f"{CHECKPOINT_PLACE} in the sandbox: {error.strerror}") from None
        self._requests, self._answers = self._handles
        session.pump.add(self._requests, self._hear)

    def close(self) -> None:
        """The sandbox has ended."""
        if self._handles:
            self._session.pump.remove(self._requests)
        self._close_handles()

    def restored(self, number: int) -> None:
        """The sandbox came back from checkpoint `number`: tell who asked for it, if that was somebody inside."""
        if self._session.kernel.state.checkpoint_asked:
            self._over(f"restored {number}\n")

    def _over(self, answer: str) -> None:
        """Answer the request that was served, and those that came meanwhile: also in the image they are counted."""
        state = self._session.kernel.state
        asked, state.checkpoint_asked = state.checkpoint_asked, 0
        self._answer(answer)
        for _ in range(asked - 1):
            self._answer(_IN_PROGRESS)

    def _close_handles(self) -> None:
        for handle in self._handles:
            os.close(handle)
        self._handles = []

    # -- requests
    def _hear(self) -> None:
        try:
            data = os.read(self._requests, 4096)
        except BlockingIOError:
            return
        lines = (self._held + data).split(b"\n")
        self._held = lines.pop()[: _LONGEST + 1]
        for line in lines:
            self._asked(line)

    def _asked(self, line: bytes) -> None:
        state = self._session.kernel.state
        word = line.decode(errors="replace").strip()
        if state.checkpoint_asked:
            state.checkpoint_asked += 1
        elif word not in (*_GO_ON, _STOP):
            self._drain()
            self._answer(f"failed: takes checkpoint or stop, not {word[:32]!r}\n")
        else:
            state.checkpoint_asked = 1
            self._drain()
            self._session.pump.spawn(lambda: self._save(word != _STOP))

    async def _save(self, go_on: bool) -> None:
        from trapline.sentry.control.interface import CheckpointSpec, Refused

        control = self._session.control
        try:
            path = self._new_path(self._session.attempts.checkpoints.count + 1)
            spec = CheckpointSpec(path, leave_running=go_on)
            result = await control.checkpoint(spec, lambda done, total, phase: None)
            answer = f"resumed {result.number}\n"
        except Refused as error:
            answer = f"failed: {error}\n"
        except OSError as error:
            answer = f"failed: {error.strerror}\n"
        except Exception as error:
            # A mistake of ours: the sandbox goes on, and who asked hears of it.
            answer = f"failed: internal error: {type(error).__name__}: {error}\n"
        self._over(answer)

    def _new_path(self, number: int) -> str:
        """Of an image that is not there yet. A sandbox that was restored may come to a number for the second time."""
        path, turn = f"{self._directory}/{number}", 1
        while os.path.lexists(path):
            turn += 1
            path = f"{self._directory}/{number}-{turn}"
        return path

    # -- answers
    def _drain(self) -> None:
        try:
            while os.read(self._answers, 4096):
                pass
        except BlockingIOError:
            return

    def _answer(self, text: str) -> None:
        if not self._handles:
            return
        try:
            os.write(self._answers, text.encode(errors="replace"))
        except BlockingIOError:
            return  # 64 KiB that nobody reads
