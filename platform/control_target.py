"""What the control server may ask of a running sandbox (sentry/control/interface.py), with real processes.

Made at the first connection: a sandbox that nobody asks pays for none of this. All of it runs in the sentry's thread,
between two batches of the pump.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING

import trio

from trapline.platform import sandbox_figures
from trapline.platform.exec_entry import ENDED, Entry, Executed
from trapline.platform.exec_guest import Door, set_size
from trapline.platform.pause import Pauser
from trapline.sentry.control.interface import (
    CheckpointResult,
    CheckpointSpec,
    ExecSpec,
    NoSuchProcess,
    Process,
    Refused,
    Report,
    Started,
    Stats,
    Status,
)
from trapline.sentry.kernel import family
from trapline.sentry.kernel.signals import SI_USER, SIGKILL, SIGRTMAX
from trapline.sentry.kernel.state import SigInfo, ThreadGroup
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from trapline.platform.checkpointing import Checkpointing
    from trapline.platform.session import Session

#: So many ends that nobody waited for are kept, the last ones.
_KEPT = 4096


class ControlTarget:
    """Implements `Control`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kernel = session.kernel
        self._started: dict[int, Executed] = {}
        self._end = trio.Event()
        self._door: Door | None = session.door
        self._entering = 0
        self._none_entering = trio.Event()
        self._shut = False  # nothing comes in, nor pauses, until it is open again
        self._opened = trio.Event()
        self._pauser = Pauser(session)
        self._checkpointing: Checkpointing | None = None
        self._kernel.on_outside_exit = self._outside_ended
        session.pump.at_end = self._ended

    @property
    def status(self) -> Status:
        if self._session.pump.done or self._session.saved:
            return Status.STOPPED
        if self._session.held:
            return Status.CREATED
        return Status.PAUSED if self._pauser.paused else Status.RUNNING

    async def start(self) -> None:
        if self.status is not Status.CREATED:
            raise Refused(f"the sandbox is {self.status.value}, not created")
        executed = trio.Event()
        self._session.on_executed = executed.set
        self._session.release()
        await executed.wait()
        if self._session.failure:
            raise Refused(self._session.failure)

    # -- processes from outside
    async def execute(self, spec: ExecSpec, stdio: list[int]) -> Started:
        await self._admitted()
        self.must_run()
        if self._door is None:
            try:
                self._door = Door(self._session.sandbox.init_pid)
            except OSError:
                raise Refused(ENDED) from None
        self._entering += 1
        try:
            guest = await Entry(self._session, self._door, spec, stdio).run(self._started)
        finally:
            self._entering -= 1
            if not self._entering:
                self._none_entering.set()
                self._none_entering = trio.Event()
        self._drop_old()
        master, guest.master = guest.master, -1
        return Started(guest.pid, guest.host, master)

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Nothing comes in by `execute` meanwhile, nor is half inside, and nobody pauses: who asks waits."""
        assert not self._shut
        self._shut = True
        try:
            while self._entering:
                await self._none_entering.wait()
            yield
        finally:
            self._shut = False
            self._opened.set()
            self._opened = trio.Event()

    async def _admitted(self) -> None:
        while self._shut:
            await self._opened.wait()

    def must_run(self) -> None:
        """Refused unless guests run."""
        status = self.status
        if status is Status.STOPPED:
            raise Refused(ENDED)
        if status is not Status.RUNNING or self._pauser.asked:
            raise Refused(f"the sandbox is {'created, not started' if status is Status.CREATED else 'paused'}")

    def _outside_ended(self, group: ThreadGroup) -> None:
        guest = self._started.get(group.tgid)
        if guest is not None:
            self._session.engine.on_exec.pop(guest.host, None)
            guest.end(group.exit_status)

    def _drop_old(self) -> None:
        dead = [pid for pid, guest in self._started.items() if guest.status >= 0]
        for pid in dead[:-_KEPT]:
            del self._started[pid]

    async def wait(self, pid: int | None) -> int:
        if pid is None or pid == self._kernel.state.root_tgid:
            return await self.ended()
        guest = self._started.get(pid)
        if guest is None:
            raise NoSuchProcess(f"process {pid} was not started by exec, or was waited for")
        await guest.ended.wait()
        if self._started.get(pid) is guest:
            del self._started[pid]
        return _as_shell(guest.status)

    # -- signals
    def kill(self, signo: int, *, pid: int | None = None, pgid: int | None = None, every: bool = False) -> None:
        if not 1 <= signo <= SIGRTMAX:
            raise Refused(f"{signo} is no signal: 1 to {SIGRTMAX}")
        status = self.status
        if status is Status.STOPPED:
            raise Refused(ENDED)
        if status is Status.CREATED and signo != SIGKILL:
            raise Refused("the sandbox is created, not started: only SIGKILL can be sent")
        info = SigInfo(signo=signo, code=SI_USER, outside=True)
        for group in self._targets(pid, pgid, every):
            try:
                self._kernel.send_signal(group.tgid, copy(info))
            except (OSError, Gone):
                continue  # it has just ended

    def _targets(self, pid: int | None, pgid: int | None, every: bool) -> list[ThreadGroup]:
        state = self._kernel.state
        if every:
            return [group for group in state.groups.values() if group.exit_status < 0]
        if pgid is not None:
            found = family.members(state, pgid) if pgid > 0 else []
            if not found:
                raise NoSuchProcess(f"there is no process group {pgid} in the sandbox")
            return found
        group = state.groups.get(state.root_tgid if pid is None else pid)
        if group is None or group.exit_status >= 0:
            raise NoSuchProcess(f"there is no process {pid} in the sandbox" if pid is not None else ENDED)
        return [group]

    # -- pause
    async def pause(self, freeze_clocks: bool = False) -> None:
        await self._admitted()
        self.must_run()
        if freeze_clocks and not self._session.sandbox.own_time:
            raise Refused("the clocks cannot stand still: the host has no time namespaces")
        self._pauser.asked = True
        try:
            while self._entering:
                await self._none_entering.wait()
            if self.status is Status.STOPPED:
                raise Refused(ENDED)
            await self._pauser.pause(freeze_clocks)
        except BaseException:
            if self._pauser.paused:
                self._pauser.resume()
            self._pauser.asked = False
            raise

    async def resume(self) -> None:
        if self.status is Status.STOPPED:
            raise Refused(ENDED)
        if not self._pauser.paused:
            raise Refused("the sandbox is not paused")
        self._pauser.resume()

    # -- checkpoints
    @property
    def checkpointing(self) -> Checkpointing:
        """What makes checkpoints, and knows of those that there were."""
        if self._checkpointing is None:
            from trapline.platform.checkpointing import Checkpointing

            self._checkpointing = Checkpointing(self._session, self)
        return self._checkpointing

    async def checkpoint(self, spec: CheckpointSpec, report: Report) -> CheckpointResult:
        self.must_run()
        return await self.checkpointing.save(spec, report)

    async def wait_checkpoint(self, number: int | None) -> int:
        return await self.checkpointing.wait(number)

    async def wait_restore(self) -> int:
        return await self.checkpointing.wait_restored()

    # -- what there is
    def processes(self) -> list[Process]:
        return sandbox_figures.processes(self._session.engine, self._pauser.paused)

    def stats(self) -> Stats:
        return sandbox_figures.stats(self._session.engine, self._session.sandbox.init_pid)

    # -- terminals
    async def attach(self) -> tuple[int, bytes]:
        console = self._session.console
        if console is None:
            raise Refused("the sandbox has no terminal that one can attach to: run it with -d -t")
        return console.attach()

    def resize(self, rows: int, columns: int, pid: int | None = None) -> None:
        if not (0 < rows < 1 << 16 and 0 < columns < 1 << 16):
            raise Refused(f"{rows}x{columns} is no size of a terminal")
        if pid is None or pid == self._kernel.state.root_tgid:
            handle = self._session.terminal_handle()
        else:
            guest = self._started.get(pid)
            if guest is None:
                raise NoSuchProcess(f"process {pid} was not started by exec")
            handle = guest.slave
        if handle < 0:
            raise Refused("the process has no terminal of the sandbox's own")
        try:
            set_size(handle, rows, columns)
        except OSError as error:
            raise Refused(f"the terminal: {os.strerror(error.errno or 0)}") from None

    # -- the end
    async def ended(self) -> int:
        await self._end.wait()
        return self._session.shell_status()

    def _ended(self) -> None:
        """The pump has stopped: no task is served any more, and none is made."""
        self._session.hear_first()
        for guest in list(self._started.values()):
            guest.settled.set()
            if guest.status < 0:
                guest.end(SIGKILL)  # with the sandbox
        self._session.attempts.end(ENDED)
        self._end.set()


def _as_shell(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
