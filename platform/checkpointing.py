"""One sandbox's checkpoints: who may make one, the hooks around it, and who is told what became of it.

What is saved and how is checkpoint.py's business. Clients and programs inside (checkpoint_file.py) come through here,
so that they and those who wait agree about what there was; what is known of that is in checkpoint_attempts.py.
"""

from __future__ import annotations

import math
import os
import shlex
from typing import TYPE_CHECKING

import trio

from trapline.sentry.control.interface import CheckpointResult, CheckpointSpec, ExecSpec, Refused, Report
from trapline.sentry.kernel.checkpoints import Busy, Waiter
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
        self._attempts = session.attempts

    # -- saving
    async def save(self, spec: CheckpointSpec, report: Report) -> CheckpointResult:
        """interface.Control.checkpoint."""
        try:
            self._attempts.checkpoints.begin()
        except Busy:
            raise Refused(BUSY) from None
        try:
            result = await self._hooked_save(spec, report)
        except BaseException as error:
            self._attempts.over(f"the checkpoint failed: {_reason(error)}")
            raise
        result.number = self._attempts.over("")
        return result

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
        from trapline.platform.checkpoint import Checkpointer  # what few need

        async with self._control.closed():
            if self._options.save_hook:
                self._control.must_run()  # a pause may have come before, and there is a hook to follow
            self._control.must_live()
            return await Checkpointer(self._session, self._control.pauser).save(spec, report)

    async def after_restore(self) -> None:
        """Run the hook for that."""
        await self._hook_after("restore", self._options.restore_hook)

    # -- waiting
    async def wait(self, number: int | None) -> int:
        """interface.Control.wait_checkpoint."""
        checkpoints = self._attempts.checkpoints
        return await _told(lambda wake: checkpoints.wait(number, wake), checkpoints.forget)

    async def wait_restored(self) -> int:
        """interface.Control.wait_restore."""
        return await _told(self._attempts.restoring.wait, self._attempts.restoring.forget)

    # -- hooks
    async def _hook_after(self, mode: str, command: list[str]) -> list[str]:
        """One whose failure changes nothing any more: that is said and noted."""
        try:
            await self._hook(mode, command)
        except Refused as error:
            if self._session.pump.done:
                return []  # it ended with the sandbox
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
        """As a shell gives it; -1 when it took too long. It has ended in any case: nothing of it may be in what is
        saved."""
        status = -1
        try:
            with trio.move_on_after(self._options.hook_timeout or math.inf):
                status = await self._control.wait(pid)
        finally:
            if status < 0:
                with trio.CancelScope(shield=True):
                    try:
                        self._control.kill(SIGKILL, pid=pid)
                        await self._control.wait(pid)
                    except Refused:
                        pass  # the sandbox has ended
        return status


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
