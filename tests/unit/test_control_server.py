"""The control server over real sockets, with a sandbox that is none."""

from __future__ import annotations

import array
import contextlib
import json
import os
import resource
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from trapline.sentry.control import rpc, server
from trapline.sentry.control.client import Client, ControlError, Gone
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
from trapline.sentry.kernel.checkpoints import Busy, Checkpoints, Waiter
from trapline.sentry.kernel.state import KernelState

TALK = 10_000  # so many lines are more than a socket holds


class FakeControl:
    """A sandbox of one process, 1, that ends when `over` is set."""

    def __init__(self) -> None:
        self.status = Status.RUNNING
        self.over = trio.Event()
        self.asked: list[Any] = []
        self.cancelled: list[str] = []
        self.waiting = trio.Event()
        self.checkpoints = Checkpoints(KernelState())
        self.saving = trio.Event()  # a checkpoint is being made
        self.saved = trio.Event()  # it may end

    async def start(self) -> None:
        if self.status is not Status.CREATED:
            raise Refused("it is running already")
        self.status = Status.RUNNING

    async def execute(self, spec: ExecSpec, stdio: list[int]) -> Started:
        self.asked.append(spec)
        if spec.args == ["slow"]:
            self.waiting.set()
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                self.cancelled.append("exec")
                raise
        if spec.args == ["bug"]:
            raise ZeroDivisionError("7/0")
        if spec.terminal:
            left, right = socket.socketpair()
            with right:
                right.sendall(b"prompt")
            return Started(7, 700, left.detach())
        os.write(stdio[1], b"out")
        return Started(7, 700)

    async def wait(self, pid: int | None) -> int:
        if pid not in (None, 1):
            raise NoSuchProcess(f"process {pid} does not exist")
        self.waiting.set()
        try:
            await self.over.wait()
        except trio.Cancelled:
            self.cancelled.append("wait")
            raise
        return 3

    def kill(self, signo: int, *, pid: int | None = None, pgid: int | None = None, every: bool = False) -> None:
        self.asked.append((signo, pid, pgid, every))

    async def pause(self, freeze_clocks: bool = False) -> None:
        self.status = Status.PAUSED

    async def resume(self) -> None:
        self.status = Status.RUNNING

    async def checkpoint(self, spec: CheckpointSpec, report: Report) -> CheckpointResult:
        self.asked.append(spec)
        try:
            self.checkpoints.begin()
        except Busy:
            raise Refused("a checkpoint is being made already") from None
        if spec.image_path == "/full":
            self.checkpoints.fail("no space left")
            raise Refused("no space left")
        for done in range(0, 1001):
            report(done, 1000, "memory")
        report(1000, 1000, "metadata")
        for turn in range(TALK if spec.image_path == "/talkative" else 0):
            report(turn, 0, f"{turn} {'x' * 60}")
        self.saving.set()
        try:
            await self.saved.wait()
        except trio.Cancelled:
            self.cancelled.append("checkpoint")
            self.checkpoints.fail("it was cancelled")
            raise
        return CheckpointResult(self.checkpoints.succeed(), spec.image_path, 4096, 0.5, 12.5, ["a socket"])

    async def wait_checkpoint(self, number: int | None) -> int:
        event = trio.Event()
        waiter: Waiter = self.checkpoints.wait(number, event.set)
        self.waiting.set()
        if waiter.outcome is None:
            await event.wait()
        assert waiter.outcome is not None
        if waiter.outcome.error:
            raise Refused(waiter.outcome.error)
        return waiter.outcome.count

    async def wait_restore(self) -> int:
        raise Refused("it was not made from a checkpoint")

    def processes(self) -> list[Process]:
        return [Process(1, 0, 1, 1, 0, "", "S", 1, 0.5, 4096, 1.5, ["sh"])]

    def stats(self) -> Stats:
        return Stats(1, 1, 10, 6, 4, 100, 200, {"wait4": 3})

    async def attach(self) -> tuple[int, bytes]:
        raise Refused("it has no terminal")

    def resize(self, rows: int, columns: int, pid: int | None = None) -> None:
        self.asked.append((rows, columns, pid))

    async def ended(self) -> int:
        return await self.wait(None)


Body = Callable[[str, FakeControl], Awaitable[None]]


def serving(body: Body) -> None:
    """Run `body(directory of the socket, the sandbox)` beside a server."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(directory + "/control.sock")
            listener.listen(64)
            control = FakeControl()
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(server.serve, listener, control)
                    await body(directory, control)
                    nursery.cancel_scope.cancel()

    before = set(os.listdir("/proc/self/fd"))
    trio.run(main)
    assert set(os.listdir("/proc/self/fd")) == before


async def asked(directory: str, method: str, **params: Any) -> Any:
    def ask() -> Any:
        with Client(directory) as client:
            return client.call(method, **params)

    return await trio.to_thread.run_sync(ask)


class Raw:
    """A client that says what it likes."""

    def __init__(self, directory: str) -> None:
        self.socket = trio.socket.socket(socket.AF_UNIX)
        self.directory = directory
        self.held = b""

    async def __aenter__(self) -> Raw:
        await self.socket.connect(self.directory + "/control.sock")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()

    async def say(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self.socket.send(view) :]

    async def hello(self) -> None:
        await self.say(line("hello", version=1))
        assert (await self.hear())["result"]["version"] == 1

    async def hear(self) -> Any:
        while b"\n" not in self.held:
            data = await self.socket.recv(65536)
            if not data:
                return None
            self.held += data
        text, _, self.held = self.held.partition(b"\n")
        return json.loads(text)


def line(method: str, identifier: int = 1, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": identifier, "method": method, "params": params}).encode() + b"\n"


def test_calls_and_their_answers() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        assert await asked(directory, "state") == {"status": "running"}
        assert (await asked(directory, "ps"))[0]["command"] == ["sh"]
        assert (await asked(directory, "stats"))["calls"] == {"wait4": 3}
        assert await asked(directory, "pause") is None
        assert await asked(directory, "state") == {"status": "paused"}
        await asked(directory, "kill", signal=15, pgid=4)
        await asked(directory, "resize", rows=24, columns=80)
        assert control.asked == [(15, None, 4, False), (24, 80, None)]
        control.over.set()
        assert await asked(directory, "wait") == {"status": 3}
        assert await asked(directory, "ended") == {"status": 3}

    serving(body)


@pytest.mark.parametrize(
    ("method", "params", "code", "text"),
    [
        ("start", {}, rpc.REFUSED, "it is running already"),
        ("wait", {"pid": 9}, rpc.NO_SUCH_PROCESS, "process 9 does not exist"),
        ("attach", {}, rpc.REFUSED, "no terminal"),
        ("fly", {}, rpc.METHOD_NOT_FOUND, "'fly'"),
        ("kill", {}, rpc.INVALID_PARAMS, "signal"),
        ("kill", {"signal": 9, "pid": 1, "all": True}, rpc.INVALID_PARAMS, "exclude"),
        ("exec", {"spec": {"args": ["x"]}}, rpc.INVALID_PARAMS, "3 descriptors"),
        ("exec", {"spec": {"args": []}}, rpc.INVALID_PARAMS, "no command"),
        ("exec", {"spec": {"args": ["a\0b"], "terminal": True}}, rpc.INVALID_PARAMS, "NUL"),
        ("exec", {"spec": {"args": ["bug"], "terminal": True}}, rpc.INTERNAL_ERROR, "ZeroDivisionError"),
        ("resize", {"rows": -1, "columns": 3}, rpc.INVALID_PARAMS, "16 bits"),
        ("wait_restore", {}, rpc.REFUSED, "not made from a checkpoint"),
        ("wait_checkpoint", {"number": -1}, rpc.INVALID_PARAMS, "0 or more"),
        ("checkpoint", {}, rpc.INVALID_PARAMS, "spec"),
        ("checkpoint", {"spec": {"image_path": "here"}}, rpc.INVALID_PARAMS, "absolute"),
        ("checkpoint", {"spec": {"image_path": ""}}, rpc.INVALID_PARAMS, "absolute"),
        ("checkpoint", {"spec": {"image_path": "/a\0"}}, rpc.INVALID_PARAMS, "absolute"),
        ("checkpoint", {"spec": {"image_path": "/a", "parent_path": "b"}}, rpc.INVALID_PARAMS, "absolute"),
        ("checkpoint", {"spec": {"image_path": "/a", "timeout": -1}}, rpc.INVALID_PARAMS, "seconds"),
        ("checkpoint", {"spec": {"image_path": "/a", "compression": "lzma"}}, rpc.INVALID_PARAMS, "compression"),
        ("checkpoint", {"spec": {"image_path": "/full"}}, rpc.REFUSED, "no space left"),
    ],
)
def test_errors(method: str, params: dict[str, Any], code: int, text: str) -> None:
    async def body(directory: str, control: FakeControl) -> None:
        with pytest.raises(ControlError) as caught:
            await asked(directory, method, **params)
        assert caught.value.code == code
        assert text in str(caught.value)
        assert await asked(directory, "state") == {"status": "running"}

    serving(body)


def test_descriptors_go_with_a_call_and_come_with_an_answer() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        def run() -> None:
            read, write = os.pipe()
            with Client(directory) as client:
                spec = {"args": ["echo"]}
                assert client.call("exec", (0, write, write), spec=spec)["pid"] == 7
                os.close(write)
                assert os.read(read, 9) == b"out"
                assert os.read(read, 9) == b""  # the server kept none
                os.close(read)
                client.call("exec", spec={"args": ["sh"], "terminal": True})
                with socket.socket(fileno=client.take_descriptor()) as master:
                    assert master.recv(9) == b"prompt"
                    assert master.recv(9) == b""

        await trio.to_thread.run_sync(run)

    serving(body)


def test_descriptors_that_did_not_come() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as raw:
            await raw.hello()
            await raw.say(line("exec", spec={"args": ["echo"]}, fds=3))
            assert (await raw.hear())["error"]["message"] == "wrong parameters: 3 descriptors, of 0"

    serving(body)


def test_descriptors_that_nobody_asked_for_end_the_connection() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as raw:
            await raw.hello()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 5))]
            await raw.socket.sendmsg([line("state")], rights)
            assert "result" in await raw.hear()
            await raw.socket.sendmsg([line("state")], rights)
            assert "more than 8 descriptors" in (await raw.hear())["error"]["message"]
            assert await raw.hear() is None

    serving(body)


def test_hanging_up_ends_what_was_asked_for() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        for method, params in (("wait", {}), ("exec", {"spec": {"args": ["slow"], "terminal": True}})):
            control.waiting = trio.Event()
            async with Raw(directory) as raw:
                await raw.hello()
                await raw.say(line(method, **params))
                await control.waiting.wait()
            while method not in control.cancelled:
                await trio.lowlevel.checkpoint()
        assert await asked(directory, "state") == {"status": "running"}

    serving(body)


def test_other_calls_are_answered_while_one_waits() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as raw:
            await raw.hello()
            for number in range(server.MAX_CALLS):
                await raw.say(line("wait", number))
            await raw.say(line("wait", 99) + line("state", 100))
            assert (await raw.hear())["error"] == {"code": rpc.TOO_MUCH, "message": "more than 16 calls at a time"}
            assert (await raw.hear())["result"] == {"status": "running"}
            control.over.set()
            numbers = {(await raw.hear())["id"] for _ in range(server.MAX_CALLS)}
            assert numbers == set(range(server.MAX_CALLS))

    serving(body)


def test_the_version_comes_first() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as raw:
            await raw.say(line("state"))
            assert (await raw.hear())["error"]["code"] == rpc.WRONG_VERSION
            await raw.say(line("hello", version=2))
            assert (await raw.hear())["error"]["message"] == "version 2 is not spoken here, but 1"
            await raw.hello()
            await raw.say(line("state"))
            assert (await raw.hear())["result"] == {"status": "running"}

    serving(body)


def test_garbage_half_lines_and_notifications_harm_nobody() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as half, Raw(directory) as raw:
            await half.say(line("hello", version=1)[:-9])
            await raw.hello()
            await raw.say(b"\x00\xff garbage\n[1]\n\n" + b"{" * 5000 + b"\n")
            assert [(await raw.hear())["error"]["code"] for _ in range(3)] == [-32700, -32600, -32700]
            await raw.say(b'{"jsonrpc":"2.0","method":"kill","params":{"signal":1}}\n' + line("state"))
            assert (await raw.hear())["result"] == {"status": "running"}  # the notification has no answer
            assert control.asked == [(1, None, None, False)]

    serving(body)


def test_100_mb_without_a_newline_are_not_kept() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as raw:
            await raw.hello()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            piece = b"x" * (1 << 20)
            for _ in range(100):
                await raw.say(piece)
            assert (await raw.hear())["error"]["message"] == "no request: longer than 1048576 bytes"
            await raw.say(b"\n" + line("state"))
            assert (await raw.hear())["result"] == {"status": "running"}
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB

    serving(body)


def test_who_takes_no_answers_keeps_nobody_waiting() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as raw:
            await raw.hello()
            asking = line("ps") * 100
            with trio.move_on_after(0.2) as scope:
                while True:  # until the server reads no more, since its answers are not taken
                    await raw.say(asking)
            assert scope.cancelled_caught
            assert await asked(directory, "state") == {"status": "running"}

    serving(body)


def test_1000_connections() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with contextlib.AsyncExitStack() as stack:
            worker = await stack.enter_async_context(Raw(directory))
            await worker.hello()
            await worker.say(line("wait"))
            await control.waiting.wait()
            crowd = []
            for _ in range(1000):
                with contextlib.suppress(BlockingIOError):
                    crowd.append(await stack.enter_async_context(Raw(directory)))
            assert await asked(directory, "state") == {"status": "running"}
            # The first of them were hung up on, with a word; who waits for an answer was not.
            assert "too many connections" in (await crowd[0].hear())["error"]["message"]
            assert await crowd[0].hear() is None
            assert control.cancelled == []
            control.over.set()
            assert (await worker.hear())["result"] == {"status": 3}

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        serving(body)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_when_all_are_busy_one_more_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)

    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as first, Raw(directory) as second:
            for raw in (first, second):
                control.waiting = trio.Event()
                await raw.hello()
                await raw.say(line("wait"))
                await control.waiting.wait()
            with pytest.raises(ControlError, match="2 clients are being served: try again later"):
                await asked(directory, "state")

    serving(body)


def test_nobody_else_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(directory: str, control: FakeControl) -> None:
        with pytest.raises(ControlError, match="only the sandbox's owner and root may ask"):
            await asked(directory, "state")

    real = struct.unpack
    monkeypatch.setattr(server.struct, "unpack", lambda form, data: (real(form, data)[0], 12345, 12345))
    serving(body)


def test_a_server_that_is_gone() -> None:
    with tempfile.TemporaryDirectory() as directory:
        with pytest.raises(Gone):
            Client(directory)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(directory + "/control.sock")
        with pytest.raises(Gone):
            Client(directory)
        with socket.socket(socket.AF_UNIX) as listener:
            os.unlink(directory + "/control.sock")
            listener.bind(directory + "/control.sock")
            listener.listen()
            client = Client(directory)
            listener.accept()[0].close()
            with client, pytest.raises(Gone):
                client.call("state")


def test_a_checkpoint_tells_how_far_it_is() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        told: list[dict[str, Any]] = []

        def ask() -> Any:
            with Client(directory) as client:
                number = client.begin("checkpoint", spec={"image_path": "/i", "leave_running": True, "timeout": 2.5})

                def tell(name: str, params: dict[str, Any]) -> None:
                    assert name == "progress" and params.pop("id") == number
                    told.append(params)
                    if params["phase"] == "metadata":
                        trio.from_thread.run_sync(control.saved.set)

                return client.finish(number, tell)

        result = await trio.to_thread.run_sync(ask)
        assert control.asked == [CheckpointSpec("/i", leave_running=True, timeout=2.5)]
        assert result == {
            "number": 1, "image_path": "/i", "size": 4096, "seconds": 0.5, "pause_ms": 12.5, "dropped": ["a socket"], "shares": False,
            "notes": [],
        }  # fmt: skip
        # Of a thousand only the first, the last, and what there was time for; a new phase at once.
        assert (told[0], told[-1]["phase"]) == ({"done": 0, "total": 1000, "phase": "memory"}, "metadata")
        assert {"done": 1000, "total": 1000, "phase": "memory"} in told and len(told) < 100
        # Who does not ask for it is not bothered.
        assert (await asked(directory, "checkpoint", spec={"image_path": "/j"}))["number"] == 2

    serving(body)


def test_who_takes_no_progress_holds_up_no_save() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as raw:
            await raw.hello()
            await raw.say(line("checkpoint", 7, spec={"image_path": "/talkative"}))
            await control.saving.wait()
            control.saved.set()
            heard = [await raw.hear()]  # all of them whole lines
            while "method" in heard[-1]:
                heard.append(await raw.hear())
            assert heard[-1]["id"] == 7 and heard[-1]["result"]["number"] == 1
            assert 10 < len(heard) < TALK  # some had no room

    serving(body)


def test_other_clients_ask_while_one_saves() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as saver, Raw(directory) as waiter:
            await saver.hello()
            await waiter.hello()
            await waiter.say(line("wait_checkpoint", 5) + line("wait_checkpoint", 6, number=1))
            await saver.say(line("checkpoint", 4, spec={"image_path": "/i"}))
            await control.saving.wait()
            assert await asked(directory, "state") == {"status": "running"}
            assert (await asked(directory, "ps"))[0]["pid"] == 1
            with pytest.raises(ControlError, match="being made already"):
                await asked(directory, "checkpoint", spec={"image_path": "/j"})
            assert await asked(directory, "wait_checkpoint", number=0) == {"count": 0}
            control.saved.set()
            answers = [await waiter.hear() for _ in range(2)]
            assert {a["id"]: a["result"] for a in answers} == {5: {"count": 1}, 6: {"count": 1}}
            while "result" not in (heard := await saver.hear()):
                assert heard["method"] == "progress"
            assert heard["result"]["number"] == 1

    serving(body)


def test_hanging_up_cancels_a_save() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as saver, Raw(directory) as waiter:
            await saver.hello()
            await waiter.hello()
            await waiter.say(line("wait_checkpoint", 5))
            await control.waiting.wait()
            await saver.say(line("checkpoint", 4, spec={"image_path": "/i"}))
            await control.saving.wait()
            saver.socket.close()
            assert (await waiter.hear())["error"] == {"code": rpc.REFUSED, "message": "it was cancelled"}
            assert control.cancelled == ["checkpoint"]
        control.saved.set()
        assert (await asked(directory, "checkpoint", spec={"image_path": "/i"}))["number"] == 1

    serving(body)


def test_who_asks_to_wait_and_then_to_save_hears_of_that_save() -> None:
    async def body(directory: str, control: FakeControl) -> None:
        async with Raw(directory) as raw:
            await raw.hello()
            for turn in range(50):  # the save fails in its first step: the wait must have begun before
                both = line("wait_checkpoint", 2 * turn) + line("checkpoint", 2 * turn + 1, spec={"image_path": "/full"})
                await raw.say(both)
                heard = {(await raw.hear())["id"] for _ in range(2)}
                assert heard == {2 * turn, 2 * turn + 1}

    serving(body)
