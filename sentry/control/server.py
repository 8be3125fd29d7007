"""The control server of one sandbox: clients on a unix socket ask, the sandbox (`Control`) answers.

It runs on trio beside the guests, in the sentry's one thread, so nothing here may wait but by trio, nor hold more for a
client than a line and a few answers. What a client can do wrong costs that client its call or its connection.

Each call that waits (`wait`, `exec`, `pause`, ...) ends when its client hangs up: the end of a client's stream is taken
for that, half-closed or not. Calls that are answered at once are answered before more is read.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from trapline.sentry.control import rpc
from trapline.sentry.control.interface import CheckpointSpec, Control, ExecSpec, NoSuchProcess, Refused, Report
from trapline.sentry.control.progress import Progress
from trapline.sentry.control.rpc import RpcError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CONNECTIONS = 128
MAX_CALLS = 16  # of one connection at a time
SEND_SECONDS = 30  # for a client to take an answer
_CHUNK = 1 << 16


class Hello(msgspec.Struct):
    """`version`: the one that the client speaks."""

    version: int


class Nothing(msgspec.Struct):
    """No parameters."""


class Exec(msgspec.Struct):
    """`fds`: 3 for its standard input, output and error, 0 where it gets a terminal or none."""

    spec: ExecSpec
    fds: int = 0


class Wait(msgspec.Struct):
    """`pid`: in the sandbox; null: the first process."""

    pid: int | None = None


class Kill(msgspec.Struct):
    """At most one of `pid`, `pgid` and `all`; without: the first process."""

    signal: int
    pid: int | None = None
    pgid: int | None = None
    all: bool = False


class Pause(msgspec.Struct):
    """`freeze_clocks`: MONOTONIC and BOOTTIME stand still meanwhile."""

    freeze_clocks: bool = False


class Checkpoint(msgspec.Struct):
    """What is to be saved, and how."""

    spec: CheckpointSpec


class WaitCheckpoint(msgspec.Struct):
    """`number`: the checkpoint that is waited for, 0 or more; null: the end of the next attempt."""

    number: int | None = None


class Resize(msgspec.Struct):
    """The terminal of the first process, or of one that `exec` started."""

    rows: int
    columns: int
    pid: int | None = None


class Answer(msgspec.Struct):
    """A result, and descriptors of ours that go with it and are closed then."""

    value: Any
    fds: list[int] = []


class _Methods:
    """The methods by name: what they take, and what answers."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.direct: dict[str, tuple[type[Any], Callable[[Any], Any]]] = {
            "state": (Nothing, self._state),
            "kill": (Kill, self._kill),
            "ps": (Nothing, lambda _: control.processes()),
            "stats": (Nothing, lambda _: control.stats()),
            "resize": (Resize, self._resize),
        }
        self.waiting: dict[str, tuple[type[Any], Callable[[Any, list[int]], Awaitable[Answer]]]] = {
            "exec": (Exec, self._exec),
            "start": (Nothing, self._start),
            "wait": (Wait, self._wait),
            "pause": (Pause, self._pause),
            "resume": (Nothing, self._resume),
            "attach": (Nothing, self._attach),
            "ended": (Nothing, self._ended),
            "wait_checkpoint": (WaitCheckpoint, self._wait_checkpoint),
            "wait_restore": (Nothing, self._wait_restore),
        }
        #: They take long, and tell their client meanwhile how far they are.
        self.reporting: dict[str, tuple[type[Any], Callable[[Any, Report], Awaitable[Answer]]]] = {
            "checkpoint": (Checkpoint, self._checkpoint),
        }

    def names(self) -> list[str]:
        return sorted([*self.direct, *self.waiting, *self.reporting])

    def _state(self, _: Nothing) -> dict[str, Any]:
        return {"status": self._control.status.value}

    def _kill(self, given: Kill) -> None:
        if (given.pid is not None) + (given.pgid is not None) + given.all > 1:
            raise RpcError(rpc.INVALID_PARAMS, "wrong parameters: pid, pgid and all exclude one another")
        self._control.kill(given.signal, pid=given.pid, pgid=given.pgid, every=given.all)

    def _resize(self, given: Resize) -> None:
        if not (0 <= given.rows < 1 << 16 and 0 <= given.columns < 1 << 16):
            raise RpcError(rpc.INVALID_PARAMS, "wrong parameters: rows and columns are numbers of 16 bits")
        self._control.resize(given.rows, given.columns, given.pid)

    async def _exec(self, given: Exec, fds: list[int]) -> Answer:
        if not given.spec.args:
            raise RpcError(rpc.INVALID_PARAMS, "wrong parameters: there is no command")
        if any("\0" in word for word in (*given.spec.args, *(given.spec.env or ()), given.spec.cwd)):
            raise RpcError(rpc.INVALID_PARAMS, "wrong parameters: a NUL character in a word")
        if len(fds) != (0 if given.spec.terminal else 3):
            raise RpcError(rpc.INVALID_PARAMS, "wrong parameters: exec takes 3 descriptors, none with a terminal")
        started = await self._control.execute(given.spec, fds)
        masters = [started.master] if started.master >= 0 else []
        return Answer({"pid": started.pid, "host_pid": started.host_pid, "fds": len(masters)}, masters)

    async def _wait(self, given: Wait, _: list[int]) -> Answer:
        return Answer({"status": await self._control.wait(given.pid)})

    async def _start(self, _: Nothing, __: list[int]) -> Answer:
        await self._control.start()
        return Answer(None)

    async def _pause(self, given: Pause, _: list[int]) -> Answer:
        await self._control.pause(given.freeze_clocks)
        return Answer(None)

    async def _resume(self, _: Nothing, __: list[int]) -> Answer:
        await self._control.resume()
        return Answer(None)

    async def _checkpoint(self, given: Checkpoint, report: Report) -> Answer:
        spec = given.spec
        paths = [spec.image_path, spec.parent_path] if spec.parent_path else [spec.image_path]
        if any("\0" in path or not path.startswith("/") for path in paths):
            raise RpcError(rpc.INVALID_PARAMS, "wrong parameters: paths of images are absolute")
        if not 0 <= spec.timeout < 1 << 32:
            raise RpcError(rpc.INVALID_PARAMS, "wrong parameters: timeout is a number of seconds, 0 for no limit")
        return Answer(await self._control.checkpoint(spec, report))

    async def _wait_checkpoint(self, given: WaitCheckpoint, _: list[int]) -> Answer:
        if given.number is not None and given.number < 0:
            raise RpcError(rpc.INVALID_PARAMS, "wrong parameters: the number of a checkpoint is 0 or more")
        return Answer({"count": await self._control.wait_checkpoint(given.number)})

    async def _wait_restore(self, _: Nothing, __: list[int]) -> Answer:
        return Answer({"count": await self._control.wait_restore()})

    async def _attach(self, _: Nothing, __: list[int]) -> Answer:
        master, shown = await self._control.attach()
        return Answer({"shown": shown, "fds": 1}, [master])

    async def _ended(self, _: Nothing, __: list[int]) -> Answer:
        return Answer({"status": await self._control.ended()})


class _Connection:
    """One client."""

    def __init__(self, server: Server, sock: trio.socket.SocketType) -> None:
        self._server = server
        self._socket = sock
        self._framer = rpc.Framer()
        self._fds: list[int] = []  # that came and no call has taken yet
        self._greeted = False
        self._sending = trio.Lock()
        self.calls = 0  # in progress
        self.used = trio.current_time()
        self.scope = trio.CancelScope()
        self.evicted = False

    async def run(self) -> None:
        """Until the client hangs up, or is hung up on."""
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    await self._read(nursery)
                    nursery.cancel_scope.cancel()
            if self.evicted:
                self.last_word(RpcError(rpc.TOO_MUCH, "hung up: too many connections"))
        finally:
            for fd in self._fds:
                os.close(fd)
            self._socket.close()

    def last_word(self, error: RpcError) -> None:
        """An error that belongs to no call, if there is room for it."""
        try:
            os.write(self._socket.fileno(), rpc.failure(None, error))
        except OSError:
            pass

    async def _read(self, nursery: trio.Nursery) -> None:
        room = socket.CMSG_SPACE(4 * rpc.MAX_FDS)
        while True:
            try:
                data, ancillary, flags, _ = await self._socket.recvmsg(_CHUNK, room, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return
            came = _descriptors(ancillary)
            self._fds += came
            if not data:
                return
            if flags & socket.MSG_CTRUNC or len(self._fds) > rpc.MAX_FDS:
                self.last_word(RpcError(rpc.TOO_MUCH, f"hung up: more than {rpc.MAX_FDS} descriptors"))
                return
            self.used = trio.current_time()
            for line in self._framer.feed(data):
                if not await self._serve(line, nursery):
                    return

    async def _serve(self, line: bytes | None, nursery: trio.Nursery) -> bool:
        """Answer one line, or begin to. Whether the connection goes on."""
        if line is None:
            text = f"no request: longer than {rpc.MAX_LINE} bytes"
            return await self._send(rpc.failure(None, RpcError(rpc.INVALID_REQUEST, text)))
        identifier: Any = None
        fds: list[int] = []
        try:
            request = rpc.decode(line)
            identifier = request.id if request.wants_answer else None
            if not self._greeted:
                return await self._greet(request)
            methods = self._server.methods
            if (direct := methods.direct.get(request.method)) is not None:
                answer = Answer(_guarded(direct[1], rpc.decode_params(request.params, direct[0])))
                return not request.wants_answer or await self._send(rpc.result(identifier, answer.value))
            found: tuple[type[Any], Callable[..., Awaitable[Answer]]] | None
            found = methods.waiting.get(request.method) or methods.reporting.get(request.method)
            if found is None:
                raise RpcError(rpc.METHOD_NOT_FOUND, f"there is no method {request.method[:64]!r}")
            # What a wrong call brought along is taken before its mistake is found, or the next call would get it.
            wanted = rpc.decode_params(request.params, _Fds).fds
            if not 0 <= wanted <= len(self._fds):
                raise RpcError(rpc.INVALID_PARAMS, f"wrong parameters: {wanted} descriptors, of {len(self._fds)}")
            fds, self._fds = self._fds[:wanted], self._fds[wanted:]
            params = rpc.decode_params(request.params, found[0])
            if self.calls >= MAX_CALLS:
                raise RpcError(rpc.TOO_MUCH, f"more than {MAX_CALLS} calls at a time")
        except RpcError as error:
            _close(fds)
            return await self._send(rpc.failure(identifier, error))
        self.calls += 1
        function: Callable[[Any, list[int]], Awaitable[Answer]] = found[1]
        if request.method in methods.reporting:
            function = partial(self._reported, request, function)
        nursery.start_soon(self._call, request, function, params, fds)
        # It has begun before the client's next call is looked at: who asks to be told of something, and then for it, is
        # told of it.
        await trio.lowlevel.checkpoint()
        return True

    async def _reported(
        self, request: rpc.Request, function: Callable[[Any, Any], Awaitable[Answer]], params: Any, _: list[int]
    ) -> Answer:
        report: Report = Progress(request.id, self._offer).report if request.wants_answer else lambda *_: None
        return await function(params, report)

    def _offer(self, line: bytes) -> bool:
        """Send a short line, if the client has room for it: a unix stream socket takes such a one whole or not at all.
        Whether it had."""
        if self._sending.locked():
            return False  # in the middle of another
        try:
            return os.write(self._socket.fileno(), line) == len(line)
        except OSError:
            return False

    async def _greet(self, request: rpc.Request) -> bool:
        if request.method != "hello":
            raise RpcError(rpc.WRONG_VERSION, f'say hello first: {{"version":{rpc.VERSION}}}')
        version = rpc.decode_params(request.params, Hello).version
        if version != rpc.VERSION:
            raise RpcError(rpc.WRONG_VERSION, f"version {version} is not spoken here, but {rpc.VERSION}")
        self._greeted = True
        value = {"version": rpc.VERSION, "server": rpc.SERVER, "methods": self._server.methods.names()}
        return not request.wants_answer or await self._send(rpc.result(request.id, value))

    async def _call(
        self,
        request: rpc.Request,
        function: Callable[[Any, list[int]], Awaitable[Answer]],
        params: Any,
        fds: list[int],
    ) -> None:
        answer = Answer(None)
        self._server.calls += 1
        try:
            with _as_rpc_errors():
                answer = await function(params, fds)
            line = rpc.result(request.id, answer.value)
        except RpcError as error:
            line = rpc.failure(request.id, error)
        except BaseException:
            self._server.answered()
            raise
        finally:
            self.calls -= 1
            self.used = trio.current_time()
            _close(fds)
        try:
            if request.wants_answer and not await self._send(line, answer.fds):
                self.scope.cancel()
        finally:
            _close(answer.fds)
            self._server.answered()

    async def _send(self, line: bytes, fds: list[int] | None = None) -> bool:
        """Whether the client took it."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        view = memoryview(line)
        with trio.move_on_after(SEND_SECONDS):
            async with self._sending:
                try:
                    while view:
                        sent = await self._socket.sendmsg([view], rights)
                        view, rights = view[sent:], []
                except OSError:
                    return False
                return True
        return False


class _Fds(msgspec.Struct):
    fds: int = 0


class Server:
    """See `serve`."""

    def __init__(self, control: Control) -> None:
        self.methods = _Methods(control)
        self.connections: set[_Connection] = set()
        self._owner = os.geteuid()
        self.calls = 0  # in progress, or their answers are
        self._answered = trio.Event()

    def answered(self) -> None:
        """A call's answer has been taken, or nobody takes it."""
        self.calls -= 1
        if not self.calls:
            self._answered.set()
            self._answered = trio.Event()

    async def finish(self) -> None:
        """Until no call is in progress, nor an answer on its way."""
        while self.calls:
            await self._answered.wait()

    async def serve(self, listener: socket.socket) -> None:
        """Until cancelled. The listener stays the caller's."""
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        continue  # the client's: it went away
                    self._evict()
                    await trio.sleep(0.05)  # the listener stays readable: not to turn round and round
                    continue
                self._welcome(sock, nursery)
                await trio.lowlevel.checkpoint()

    def _welcome(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        sock.setblocking(False)
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        connection = _Connection(self, trio.socket.from_stdlib_socket(sock))
        error = None
        if uid not in (0, self._owner):
            error = RpcError(rpc.NOT_ALLOWED, "only the sandbox's owner and root may ask")
        elif len(self.connections) >= MAX_CONNECTIONS and not self._evict():
            error = RpcError(rpc.TOO_MUCH, f"{MAX_CONNECTIONS} clients are being served: try again later")
        if error is not None:
            connection.last_word(error)
            sock.close()
            return
        self.connections.add(connection)
        nursery.start_soon(self._run, connection)

    async def _run(self, connection: _Connection) -> None:
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)

    def _evict(self) -> bool:
        """Hang up on whoever has asked nothing for longest, so that idle clients never keep others out. Whether there
        was one."""
        idle = [c for c in self.connections if not c.calls and not c.evicted]
        if not idle:
            return False
        victim = min(idle, key=lambda c: c.used)
        victim.evicted = True
        victim.scope.cancel()
        self.connections.discard(victim)
        return True


async def serve(listener: socket.socket, control: Control) -> None:
    """Serve a sandbox on a listening unix stream socket until cancelled."""
    await Server(control).serve(listener)


async def serve_to_the_end(listener: socket.socket, control: Control) -> None:
    """Serve a sandbox until it has ended and all who waited for something have been told."""
    server = Server(control)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, listener)
        await control.ended()
        await server.finish()
        nursery.cancel_scope.cancel()


@contextmanager
def _as_rpc_errors() -> Iterator[None]:
    try:
        yield
    except NoSuchProcess as error:
        raise RpcError(rpc.NO_SUCH_PROCESS, str(error)) from None
    except Refused as error:
        raise RpcError(rpc.REFUSED, str(error)) from None
    except OSError as error:
        raise RpcError(rpc.REFUSED, error.strerror or str(error)) from None
    except RpcError:
        raise
    except Exception as error:
        # A mistake of ours: the sandbox goes on, and the client hears of it.
        raise RpcError(rpc.INTERNAL_ERROR, f"internal error: {type(error).__name__}: {error}") from None


def _guarded(function: Callable[[Any], Any], params: Any) -> Any:
    with _as_rpc_errors():
        return function(params)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()
