"""The sentry's side of a process that is made from outside (exec_guest.py): its messages, and how it is adopted."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import struct
from typing import TYPE_CHECKING

import trio

from trapline.platform import ptrace_calls as pt
from trapline.platform.exec_guest import Door, Entrant
from trapline.platform.first_processes import explain
from trapline.platform.notifications import Listener
from trapline.platform.task_ids import blocked, is_ending, read_ids
from trapline.platform.tracee import WALL_CLOCK, Tracee
from trapline.sentry.control.interface import ExecSpec, Refused
from trapline.sentry.kernel import task_clone
from trapline.sentry.options import User
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from trapline.platform.session import Session

ENDED = "the sandbox has ended"


class Executed:
    """A process that was made from outside, until its end was waited for."""

    __slots__ = ("ended", "executed", "host", "master", "pid", "settled", "slave", "status")

    def __init__(self, pid: int, host: int, terminal: list[int]) -> None:
        self.pid = pid
        self.host = host
        #: Of its terminal, -1 for none. The slave is kept as long as it lives: a session that closes its terminal for
        #: a moment would else look like the end.
        self.master, self.slave = terminal or (-1, -1)
        self.status = -1  # a wait status
        self.executed = False
        self.settled = trio.Event()  # it executed its program, or ended before
        self.ended = trio.Event()

    def end(self, status: int) -> None:
        """It is dead."""
        self.status = status
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1
        self.settled.set()
        self.ended.set()

    def _executed(self) -> None:
        self.executed = True
        self.settled.set()


class Entry:
    """One `execute`. `door` is the way into the sandbox's namespaces."""

    def __init__(self, session: Session, door: Door, spec: ExecSpec, stdio: list[int]) -> None:
        self._session = session
        self._door = door
        self._spec = spec
        self._stdio = stdio
        self._handles: list[int] = []  # that came with messages and are nobody's yet
        self._helper = self._host = 0

    async def run(self, started: dict[int, Executed]) -> Executed:
        """Until it has executed its program; it is in `started` from the moment when it is a task. Refused."""
        ours, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with ours:
            self._session.engine.others = True
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            try:
                with inside:
                    self._helper = self._entrant().fork(inside, self._stdio)
                self._session.strangers.add(self._helper)
                await self._hear(ours, b"G")
                await self._hear(ours, b"L")
                guest = self._adopt()
            except OSError as error:
                raise Refused(f"no process can be made: {explain(error)}") from None
            finally:
                for fd in self._handles:
                    os.close(fd)
            started[guest.pid] = guest
            try:
                with contextlib.suppress(BrokenPipeError):  # it was killed meanwhile, which is heard next
                    ours.send(b"g")
                await self._until_executed(ours, guest)
            except BaseException:
                started.pop(guest.pid, None)
                self._session.engine.on_exec.pop(guest.host, None)
                if guest.status < 0:
                    os.kill(guest.host, signal.SIGKILL)  # unreaped, so it is still that process
                    guest.end(signal.SIGKILL)
                if guest.master >= 0:
                    os.close(guest.master)
                raise
        return guest

    def _entrant(self) -> Entrant:
        session, spec = self._session, self._spec
        first = session.options.user
        user = first
        if spec.uid >= 0 or spec.gid >= 0 or spec.groups:
            like = first or User(os.getuid(), os.getgid())
            uid = spec.uid if spec.uid >= 0 else like.uid
            gid = spec.gid if spec.gid >= 0 else like.gid
            user = User(uid, gid, list(spec.groups), like.umask)
        if not spec.args or not spec.args[0]:
            raise Refused("there is no command")
        environment = None
        if spec.env is not None or spec.add_env:
            environment = dict(session.launch.environment) if spec.env is None else {}
            for setting in (*(spec.env or ()), *spec.add_env):
                name, equals, value = setting.encode(errors="surrogateescape").partition(b"=")
                if not name or not equals or b"\0" in setting.encode(errors="surrogateescape"):
                    raise Refused(f"environment: {setting!r} is not NAME=VALUE")
                environment[name] = value
        if spec.cwd and not spec.cwd.startswith("/"):
            raise Refused(f"working directory {spec.cwd}: takes an absolute path in the sandbox")
        if any("\0" in word for word in (spec.cwd, *spec.args)):
            raise Refused("the command or its directory has a zero byte in it")
        if not spec.terminal and len(self._stdio) not in (0, 3):
            raise Refused("three standard descriptors are needed, or none")
        main = session.launch.main(spec.args, environment)
        entrant = Entrant(spec, user, spec.cwd or session.sandbox.directory, self._door, main)
        entrant.cpus, entrant.ignored = session.sandbox.cpus, session.sandbox.ignored
        return entrant

    # -- messages
    async def _hear(self, channel: socket.socket, expected: bytes) -> None:
        """Its next message, with its host id and what descriptors there are. Refused for any other."""
        message = await self._receive(channel)
        if message[:1] == expected:
            return
        if message[:1] == b"E":
            text = message[1:].decode(errors="replace")
            raise Refused(ENDED if self._is_over() else text)
        raise Refused(ENDED if self._is_over() else "the process was killed before it could execute its program")

    async def _receive(self, channel: socket.socket) -> bytes:
        """b"" when it hung up."""
        while True:
            try:
                message, ancillary, _, _ = channel.recvmsg(8192, 256, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_readable(channel)
            except ConnectionResetError:
                return b""  # it was killed with our word unread (unix(7)): an end like any other
        for level, kind, data in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_RIGHTS:
                self._handles += array.array("i", data[: len(data) - len(data) % 4])
            elif kind == socket.SCM_CREDENTIALS and message:
                self._sent_by(struct.unpack("3i", data[:12])[0])
        return message

    def _sent_by(self, host: int) -> None:
        if host in (self._host, self._helper):
            return
        self._host = host
        if host in self._session.engine.died_early:
            self._session.engine.died_early.discard(host)  # its death was taken as that of an unknown child
        else:
            self._session.strangers.add(host)

    def _is_over(self) -> bool:
        """Also when the host kills all, since pid 1 is on its way out, and we have not heard of that yet."""
        session = self._session
        if session.pump.done or session.saved or not session.kernel.state.tasks:
            return True
        return is_ending(session.sandbox.init_pid)

    # -- adoption
    def _adopt(self) -> Executed:
        """It waits under its filter: trace it, and make it a task. Refused."""
        session, host = self._session, self._host
        engine, kernel = session.engine, session.kernel
        if self._is_over():
            raise Refused(ENDED)
        if host not in session.strangers:  # it was reaped, and the number may be another's by now
            raise Refused("the process was killed before it could execute its program")
        try:
            pt.call(pt.PTRACE_SEIZE, host, 0, pt.OPTIONS)
            host_group, tid, _ = read_ids(host)
            mask = blocked(host)
        except (Gone, OSError) as error:
            raise Refused(ENDED if self._is_over() else f"the process cannot be traced: {error}") from None
        try:
            task = task_clone.outside_task(kernel, tid, mask)
        except task_clone.Ended:
            raise Refused(ENDED) from None
        session.strangers.discard(host)
        t = Tracee(host, host_group, tid, task)
        terminal = self._take_handles(t)
        engine.add(t)
        guest = Executed(tid, host, terminal)
        engine.on_exec[host] = guest._executed
        group = kernel.group(task)
        group.cpu_limit = session.cpu_limit(self._spec.rlimits)
        if self._spec.uid >= 0 and self._spec.uid != engine.own_uid:
            kernel.state.users_changed = True
        kernel.time_on_start(group)
        if session.tracing is not None:
            session.tracing.attach(t, quiet=True)
        if engine.wall is not None:
            engine.set_trap_all(tid, True, WALL_CLOCK)
        return guest

    def _take_handles(self, t: Tracee) -> list[int]:
        """The listener is the last that came, a terminal's two sides the first."""
        handles, self._handles = self._handles, []
        if self._session.launch.notifications:
            t.listener = Listener(handles.pop(), self._session.sync_wake_up)
            self._session.pump.listen(t.listener)
        return handles

    async def _until_executed(self, channel: socket.socket, guest: Executed) -> None:
        """Refused when there is no such program, or the sandbox ended before."""
        message = await self._receive(channel)  # its end comes with the exec
        if message[:1] == b"X":
            raise Refused(message[1:].decode(errors="surrogateescape").partition(" ")[2])
        await guest.settled.wait()
        if not guest.executed:
            raise Refused(ENDED if self._is_over() else "the process was killed before it could execute its program")
