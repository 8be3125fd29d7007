"""Checkpoints at the marker calls of a test's guests (sentry/syscalls/sys_marker.py): `do --checkpoint-at-marker`.

Their directories are numbered, as the checkpoints of one sandbox are. Who calls while one is being made is in it, and
goes on with the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel.block import Outcome
from trapline.sentry.syscalls import sys_marker

if TYPE_CHECKING:
    from trapline.platform.session import Session

_KILL = ":kill"


class Marker:
    """Of the one sandbox that this process has. To be made before its filter is; `attach` before guests run."""

    def __init__(self, where: str) -> None:
        """`where`: a directory, and `:kill` after it where each checkpoint is to end the sandbox."""
        self._directory = where.removesuffix(_KILL)
        self._kill = where.endswith(_KILL)
        self._session: Session | None = None
        self._waiting: list[int] = []
        self._saving = False
        sys_marker.serve(self._ask)

    def attach(self, session: Session) -> None:
        """Whose guests call."""
        self._session = session

    def _ask(self, tid: int) -> None:
        self._waiting.append(tid)
        if not self._saving:
            assert self._session is not None
            self._saving = True
            self._session.pump.spawn(self._save)

    async def _save(self) -> None:
        from trapline.sentry.control.interface import CheckpointSpec, Refused

        session = self._session
        assert session is not None
        path = f"{self._directory}/{session.attempts.checkpoints.count + 1}"
        spec = CheckpointSpec(path, leave_running=not self._kill, fsync=False)
        try:
            await session.control.checkpoint(spec, lambda done, total, phase: None)
        except Refused as error:
            if not session.pump.done:
                session.log.tell(f"at a marker: {error}")
        finally:
            self._saving = False
            waiting, self._waiting = self._waiting, []
            for tid in waiting:
                task = session.kernel.state.tasks.get(tid)
                if task is not None and task.call is not None and task.call.nr == sys_marker.NUMBER:
                    session.kernel.resume(task, Outcome.WOKEN)
