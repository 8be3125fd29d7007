"""What a sandbox knows of its checkpoints, and what is to be done when it has come back from one.

Apart from checkpointing.py, which needs trio: a sandbox that is restored must go on sooner than that is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel.checkpoints import Checkpoints, Restoring

if TYPE_CHECKING:
    from trapline.platform.session import Session


class Attempts:
    """See `Session.attempts`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._end = ""
        self.checkpoints = Checkpoints(session.kernel.state)
        self.restoring = Restoring()

    def over(self, failure: str) -> int:
        """The attempt in progress has succeeded ("") or failed; how many checkpoints there are now."""
        if failure:
            self.checkpoints.fail(failure)
        else:
            self.checkpoints.succeed()
        if self._end:
            self.checkpoints.end(self._end)
        return self.checkpoints.count

    def end(self, why: str) -> None:
        """The sandbox has ended. A save that ended it may still be on its way to its success."""
        self._end = why
        if not self.checkpoints.in_progress:
            self.checkpoints.end(why)
        self.restoring.finish(self.checkpoints.count, why)

    # -- called by who restores, in this order
    def restore_begins(self) -> None:
        """This sandbox is being made from an image. Before anything can be asked of it."""
        self.checkpoints.begin()
        self.restoring.begin()

    def restored(self) -> None:
        """Its tasks go on, also where memory is still to be loaded: a checkpoint has proved good. Who asked for it from
        inside is told, and the hook is run."""
        session = self._session
        number = self.over("")
        if session.checkpoint_file is not None:
            session.checkpoint_file.restored(number)
        if session.options.restore_hook:
            session.pump.spawn(lambda: session.control.checkpointing.after_restore())

    def loaded(self) -> None:
        """All of the image is there."""
        self.restoring.finish(self.checkpoints.count)

    def restore_failed(self, why: str) -> None:
        """It cannot be restored, or not all of it can be loaded."""
        why = f"the restore failed: {why}"
        if self.checkpoints.in_progress and self.restoring.in_progress:
            self.over(why)
        self.restoring.finish(self.checkpoints.count, why)
