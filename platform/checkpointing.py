"""One sandbox's checkpoints: who may make one, the hooks around it, and who is told what became of it.

What is saved and how is `checkpoint.py`'s business, what is restored `restore.py`'s; both come through here, so that
clients, programs inside (checkpoint_file.py) and waiters agree about what there was.
"""

from __future__ import annotations

import math
import os
import shlex
from typing import TYPE_CHECKING

import trio

from trapline.platform.exec_entry import ENDED
from trapline.sentry.control.interface import CheckpointResult, CheckpointSpec, ExecSpec, Refused, Report
from trapline.sentry.kernel.checkpoints import Busy, Checkpoints, Restoring, Waiter
from trapline.sentry.kernel.signals import SIGKILL

if TYPE_CHECKING:
    from collections.abc import Callable

    from trapline.platform.control_target import ControlTarget
    from trapline.platform.session import Session

BUSY = "a checkpoint is being made or restored already: trapline wait --checkpoint tells when it is over"
#: What hooks find in their environment: save, resume or restore.
VARIABLE = "TRAPLINE_CHECKPOINT"
_OUTPUT = 4096  # bytes of a hook's output that are looked at, the last ones


class Checkpointing:
    """See the module. Made when it is first needed; see `ControlTarget.checkpointing`."""

    def __init__(self, session: Session, control: ControlTarget) -> None:
        self._session = session
        self._control = control
        self._options = session.options
        self._ended = False
        self.attempts = Checkpoints(session.kernel.state)
        self.restoring = Restoring()

    # -- saving
    async def save(self, spec: CheckpointSpec, report: Report) -> CheckpointResult:
        """interface.Control.checkpoint."""
        self._begin()
        try:
            result = await self._hooked_save(spec, report)
        except BaseException as error:
            self._over(_reason(error))
            raise
        result.number = self._over("")
        return result

    def _begin(self) -> None:
        try:
            self.attempts.begin()
        except Busy:
            raise Refused(BUSY) from None

    def _over(self, failure: str) -> int:
        """The attempt has ended; how many checkpoints there are now."""
        if failure:
            self.attempts.fail(failure)
        else:
            self.attempts.succeed()
        if self._ended:
            self.attempts.end(ENDED)
        return self.attempts.count

    async def _hooked_save(self, spec: CheckpointSpec, report: Report) -> CheckpointResult:
        hook = self._options.save_hook
        if hook:
            report(0, 0, "save hook")
            await self._hook("save", hook)
        try:
            result = await self._save(spec, report)
        except BaseException:
            if hook:
                # It goes on as it was, so what the hook did is undone, also when nobody is there any more to be told.
                with trio.CancelScope(shield=True):
                    await self._hook_after("resume", hook)
            raise
        if hook and spec.leave_running:
            result.notes += await self._hook_after("resume", hook)
        return result

    async def _save(self, spec: CheckpointSpec, report: Report) -> CheckpointResult:
        from importlib import import_module  # what few need

        checkpointer = import_module("trapline.platform.checkpoint").Checkpointer(self._session)
        async with self._control.closed():
            result: CheckpointResult = await checkpointer.save(spec, report)
        return result

    # -- restoring: called by those who restore
    def restore_begins(self) -> None:
        """This sandbox is being made from an image. Before anything can be asked of it."""
        self.attempts.begin()
        self.restoring.begin()

    async def restored(self) -> None:
        """Its tasks go on (also when memory is still being loaded): a checkpoint has proved good. Who asked for it from
        inside is told, then the hook runs."""
        number = self._over("")
        if self._session.checkpoint_file is not None:
            self._session.checkpoint_file.restored(number)
        if self._options.restore_hook:
            await self._hook_after("restore", self._options.restore_hook)

    def loaded(self) -> None:
        """All of the image is there."""
        self.restoring.finish(self.attempts.count)

    def restore_failed(self, why: str) -> None:
        """It cannot be restored, or not all of it can be loaded."""
        if self.attempts.in_progress:
            self._over(why)
        self.restoring.finish(self.attempts.count, why)

    # -- waiting
    async def wait(self, number: int | None) -> int:
        """interface.Control.wait_checkpoint."""
        return await _told(lambda wake: self.attempts.wait(number, wake), self.attempts.forget)

    async def wait_restored(self) -> int:
        """interface.Control.wait_restore."""
        return await _told(self.restoring.wait, self.restoring.forget)

    def end(self) -> None:
        """The sandbox has ended. A save that ended it may still be on its way to its success."""
        self._ended = True
        if not self.attempts.in_progress:
            self.attempts.end(ENDED)
        self.restoring.finish(self.attempts.count, ENDED)

    # -- hooks
    async def _hook_after(self, mode: str, command: list[str]) -> list[str]:
        """One whose failure changes nothing any more: that is said and noted."""
        try:
            await self._hook(mode, command)
        except Refused as error:
            if self._ended:
                return []
            self._session.log.tell(str(error))
            return [str(error)]
        return []

    async def _hook(self, mode: str, command: list[str]) -> None:
        """Run a command in the sandbox to its end. Refused when it cannot be, fails, or takes too long.

        Its output goes to a memfd, since a pipe of ours that it left to somebody could not be saved.
        """
        name = f"the {mode} hook {shlex.join(command)}"
        output = os.memfd_create(f"{mode}-hook")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            spec = ExecSpec(args=command, add_env=[f"{VARIABLE}={mode}"])
            try:
                started = await self._control.execute(spec, [null, output, output])
            except Refused as error:
                raise Refused(f"{name}: {error}") from None
            status = await self._hook_status(started.pid)
            last = os.pread(output, _OUTPUT, max(0, os.fstat(output).st_size - _OUTPUT)).decode(errors="replace")
        finally:
            os.close(output)
            os.close(null)
        for line in last.splitlines():
            self._session.log.info(f"{name}: {line}")
        if status < 0:
            raise Refused(f"{name}: not done within {self._options.hook_timeout:g} s, and killed")
        if status:
            said = [line.strip() for line in last.splitlines() if line.strip()][-1:]
            raise Refused(": ".join([f"{name}: exit status {status}", *said]))

    async def _hook_status(self, pid: int) -> int:
        """As a shell gives it; -1 when it took too long. It has ended in any case."""
        try:
            with trio.move_on_after(self._options.hook_timeout or math.inf):
                return await self._control.wait(pid)
            return -1
        finally:
            # Nothing of it may be left in what is saved.
            with trio.CancelScope(shield=True):
                try:
                    self._control.kill(SIGKILL, pid=pid)
                    await self._control.wait(pid)
                except Refused:
                    pass  # it has ended, and was waited for


async def _told(register: Callable[[Callable[[], None]], Waiter], forget: Callable[[Waiter], None]) -> int:
    event = trio.Event()
    waiter = register(event.set)
    try:
        if waiter.outcome is None:
            await event.wait()
    finally:
        forget(waiter)
    assert waiter.outcome is not None
    if waiter.outcome.error:
        raise Refused(waiter.outcome.error)
    return waiter.outcome.count


def _reason(error: BaseException) -> str:
    if isinstance(error, trio.Cancelled):
        return "it was cancelled"
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"internal error: {type(error).__name__}: {error}"
