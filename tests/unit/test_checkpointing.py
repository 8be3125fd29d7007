"""Who makes checkpoints and what is around them: hooks, the files that programs ask by, and who is told. With a sandbox
that is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from trapline.platform.checkpoint_attempts import Attempts
from trapline.platform.checkpoint_file import CheckpointFile
from trapline.platform.checkpointing import BUSY, Checkpointing
from trapline.platform.exec_entry import ENDED
from trapline.platform.first_processes import SetupError
from trapline.sentry.control.interface import (
    CheckpointResult,
    CheckpointSpec,
    ExecSpec,
    NoSuchProcess,
    Refused,
    Started,
)
from trapline.sentry.kernel.state import KernelState
from trapline.sentry.options import DoOptions


class World:
    """A session and its control target, as far as they are asked. Hooks do what `hook` says, and saves what `save`."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.events: list[str] = []
        self.hook: Callable[[str, int], Awaitable[int]] = self.good_hook
        self.save: Callable[[CheckpointSpec], Awaitable[CheckpointResult]] = self.good_save
        self.kernel = SimpleNamespace(state=KernelState())
        self.options = DoOptions(["true"], **options)
        self.log = SimpleNamespace(info=self.events.append, tell=lambda text: self.events.append(f"told {text}"))
        self.sandbox = SimpleNamespace(init_pid=os.getpid())
        self.pump = self
        self.control = self
        self.done = self.paused = False
        self.pauser = None
        self.attempts = Attempts(self)  # type: ignore[arg-type]
        self.checkpointing = Checkpointing(self, self)  # type: ignore[arg-type]
        self.checkpoint_file: CheckpointFile | None = None
        self.directory = directory
        self.started: dict[int, trio.Event] = {}
        self.statuses: dict[int, int] = {}
        self.hear: Callable[[], None] = lambda: None
        self.nursery: trio.Nursery | None = None

    # -- as the control target
    async def execute(self, spec: ExecSpec, stdio: list[int]) -> Started:
        if spec.args == ["missing"]:
            raise Refused("missing: command not found")
        (mode,) = [text.partition("=")[2] for text in spec.add_env]
        self.events.append(f"{' '.join(spec.args)} {mode}")
        pid = len(self.events) + 100
        self.started[pid] = trio.Event()
        assert self.nursery is not None
        self.nursery.start_soon(self._run_hook, mode, os.dup(stdio[1]), pid)
        return Started(pid, pid)

    async def _run_hook(self, mode: str, output: int, pid: int) -> None:
        status = await self.hook(mode, output)
        os.close(output)
        if pid in self.started:  # else it was killed meanwhile
            self.statuses.setdefault(pid, status)
            self.started[pid].set()

    async def wait(self, pid: int) -> int:
        if pid not in self.started:
            raise NoSuchProcess("it was waited for")
        await self.started[pid].wait()
        del self.started[pid]
        return self.statuses[pid]

    def kill(self, signo: int, *, pid: int) -> None:
        if pid not in self.started or self.started[pid].is_set():
            raise NoSuchProcess("it has ended")
        self.events.append(f"killed by {signo}")
        self.statuses[pid] = 128 + signo
        self.started[pid].set()

    def must_live(self) -> None:
        assert not self.pump.done

    def must_run(self) -> None:
        if self.paused:
            raise Refused("the sandbox is paused")

    @asynccontextmanager
    async def closed(self) -> Any:
        self.events.append("closed")
        yield
        self.events.append("open")

    async def checkpoint(self, spec: CheckpointSpec, report: Any) -> CheckpointResult:
        return await self.checkpointing.save(spec, report)

    # -- as the pump
    def add(self, fd: int, serve: Callable[[], None]) -> None:
        self.hear = serve

    def remove(self, fd: int) -> None:
        self.hear = lambda: None

    def spawn(self, function: Callable[[], Awaitable[None]]) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(function)

    # -- what tests vary
    async def good_hook(self, mode: str, output: int) -> int:
        os.write(output, b"said\n")
        return 0

    async def good_save(self, spec: CheckpointSpec) -> CheckpointResult:
        await trio.lowlevel.checkpoint()
        self.events.append(f"saved {spec.image_path}")
        return CheckpointResult(image_path=spec.image_path)

    async def bad_save(self, spec: CheckpointSpec) -> CheckpointResult:
        raise Refused("a socket of the host's")

    def run(self, body: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            with trio.fail_after(30):
                async with trio.open_nursery() as self.nursery:
                    await body()

        before = set(os.listdir("/proc/self/fd"))
        trio.run(main)
        if self.checkpoint_file is not None:
            self.checkpoint_file.close()
        else:
            assert set(os.listdir("/proc/self/fd")) == before

    async def asks(self, go_on: bool = True) -> CheckpointResult:
        return await self.checkpoint(CheckpointSpec("/image", leave_running=go_on), lambda *_: None)


@pytest.fixture(autouse=True)
def checkpointer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Checkpointer:
        def __init__(self, session: World, pauser: object) -> None:
            self.session = session

        async def save(self, spec: CheckpointSpec, report: Any) -> CheckpointResult:
            return await self.session.save(spec)

    module = ModuleType("trapline.platform.checkpoint")
    module.Checkpointer = Checkpointer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trapline.platform.checkpoint", module)


HOOK = ["prepare", "it"]


def test_a_save_with_hooks_around_it(tmp_path: Path) -> None:
    world = World(tmp_path, save_hook=HOOK)

    async def body() -> None:
        result = await world.asks()
        assert (result.number, result.notes) == (1, [])
        assert (await world.asks(go_on=False)).number == 2  # ended: nothing is run in it any more

    world.run(body)
    said = [event for event in world.events if not event.startswith("the ")]
    assert said == [
        "prepare it save", "closed", "saved /image", "open", "prepare it resume",
        "prepare it save", "closed", "saved /image", "open",
    ]  # fmt: skip
    assert "the save hook prepare it: said" in world.events


def test_a_save_hook_can_prevent_it(tmp_path: Path) -> None:
    world = World(tmp_path, save_hook=HOOK)

    async def fails(mode: str, output: int) -> int:
        os.write(output, b"one\nnot now\n\n")
        return 3

    async def body() -> None:
        world.hook = fails
        with pytest.raises(Refused, match=r"^the save hook prepare it: exit status 3: not now$"):
            await world.asks()
        with pytest.raises(Refused, match=r"^the checkpoint failed: the save hook prepare it"):
            await world.checkpointing.wait(1)
        world.options.save_hook = ["missing"]
        with pytest.raises(Refused, match=r"^the save hook missing: missing: command not found$"):
            await world.asks()
        world.options.save_hook = []
        assert (await world.asks()).number == 1

    world.run(body)


def test_what_a_hook_did_is_undone_when_the_save_fails(tmp_path: Path) -> None:
    world = World(tmp_path, save_hook=HOOK)

    async def slow(spec: CheckpointSpec) -> CheckpointResult:
        await trio.sleep_forever()
        raise AssertionError

    async def body() -> None:
        world.save = world.bad_save
        with pytest.raises(Refused, match=r"^a socket of the host's$"):
            await world.asks()
        assert world.events[-2:] == ["prepare it resume", "the resume hook prepare it: said"]
        world.events.clear()
        world.save = slow
        with trio.move_on_after(0.05) as scope:  # who asked hangs up
            await world.asks()
        assert scope.cancelled_caught
        assert world.events[-2:] == ["prepare it resume", "the resume hook prepare it: said"]
        with pytest.raises(Refused, match=r"it was cancelled"):
            await world.checkpointing.wait(1)

    world.run(body)


def test_a_hook_that_does_not_end(tmp_path: Path) -> None:
    world = World(tmp_path, save_hook=HOOK, hook_timeout=0.05)

    async def endless(mode: str, output: int) -> int:
        if mode == "save":
            await trio.sleep(0.3)
        return 0

    async def body() -> None:
        world.hook = endless
        with pytest.raises(Refused, match=r"prepare it: not done within 0.05 s, and killed"):
            await world.asks()
        assert world.events == ["prepare it save", "killed by 9"]
        assert not world.started  # and was waited for, before anything else can be asked

    world.run(body)


def test_a_pause_during_the_hook_comes_first(tmp_path: Path) -> None:
    world = World(tmp_path, save_hook=HOOK)

    async def hook(mode: str, output: int) -> int:
        world.paused = mode == "save"
        return 0

    async def body() -> None:
        world.hook = hook
        with pytest.raises(Refused, match=r"^the sandbox is paused$"):
            await world.asks()
        assert not any("saved" in event for event in world.events)

    world.run(body)


def test_a_failing_resume_hook_is_noted(tmp_path: Path) -> None:
    world = World(tmp_path, save_hook=HOOK)

    async def hook(mode: str, output: int) -> int:
        return int(mode == "resume")

    async def body() -> None:
        world.hook = hook
        result = await world.asks()
        assert (result.number, result.notes) == (1, ["the resume hook prepare it: exit status 1"])
        assert "told the resume hook prepare it: exit status 1" in world.events

    world.run(body)


def test_one_at_a_time_and_the_end(tmp_path: Path) -> None:
    world = World(tmp_path)
    go = trio.Event()

    async def slow(spec: CheckpointSpec) -> CheckpointResult:
        await go.wait()
        return await world.good_save(spec)

    async def body() -> None:
        world.save = slow
        outcomes: list[str] = []

        async def wait(number: int | None) -> None:
            try:
                outcomes.append(f"{number}: {await world.checkpointing.wait(number)}")
            except Refused as error:
                outcomes.append(f"{number}: {error}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.asks, False)
            for number in (None, 1, 2):
                nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Refused, match=BUSY):
                await world.asks()
            world.attempts.end(ENDED)  # the sandbox is killed by the save, whose success is told all the same
            go.set()
        assert sorted(outcomes) == sorted(["None: 1", "1: 1", f"2: {ENDED}"])

    world.run(body)


def test_a_mistake_of_ours_ends_the_attempt(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def bug(spec: CheckpointSpec) -> CheckpointResult:
        raise ZeroDivisionError("7/0")

    async def body() -> None:
        world.save = bug
        with pytest.raises(ZeroDivisionError):
            await world.asks()
        with pytest.raises(Refused, match=r"internal error: ZeroDivisionError: 7/0"):
            await world.checkpointing.wait(1)

    world.run(body)


def test_a_restore(tmp_path: Path) -> None:
    world = World(tmp_path, restore_hook=HOOK)
    world.kernel.state.checkpoint_count = 4

    async def body() -> None:
        checkpointing = world.checkpointing
        world.attempts.restore_begins()
        with pytest.raises(Refused, match=BUSY):
            await world.asks()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(checkpointing.wait_restored)
            nursery.start_soon(checkpointing.wait, 5)
            await trio.testing.wait_all_tasks_blocked()
            world.attempts.restored()
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1  # memory is still being loaded
            assert (await world.asks()).number == 6
            world.attempts.loaded()
        assert await checkpointing.wait_restored() == 6
        assert "prepare it restore" in world.events

    world.run(body)


def test_a_restore_that_fails(tmp_path: Path) -> None:
    for after in (False, True):
        world = World(tmp_path)

        async def body(world: World = world, after: bool = after) -> None:
            world.attempts.restore_begins()
            if after:
                world.attempts.restored()
            world.attempts.restore_failed("block 7 is bad")
            with pytest.raises(Refused, match=r"^the restore failed: block 7 is bad$"):
                await world.checkpointing.wait_restored()
            assert world.kernel.state.checkpoint_count == int(after)
            if not after:
                with pytest.raises(Refused, match=r"^the restore failed: block 7 is bad$"):
                    await world.checkpointing.wait(1)

        world.run(body)


# -- from inside
@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    found = Inside(tmp_path)
    yield found
    found.close()


class Inside:
    """A program in the sandbox, that has both files open."""

    def __init__(self, path: Path) -> None:
        self.images = path / "images"
        self.images.mkdir()
        for name in ("checkpoint", "outcome"):
            os.mkfifo(path / name)
        self.world = World(self.images)
        self.file = self.world.checkpoint_file = CheckpointFile(self.world, str(self.images), str(path))  # type: ignore[arg-type]
        self.requests = os.open(path / "checkpoint", os.O_WRONLY)
        self.answers = os.open(path / "outcome", os.O_RDONLY | os.O_NONBLOCK)

    def close(self) -> None:
        os.close(self.requests)
        os.close(self.answers)

    def ask(self, data: bytes) -> None:
        os.write(self.requests, data)
        self.world.hear()

    async def told(self) -> str:
        """The next line."""
        text = b""
        while not text.endswith(b"\n"):
            await trio.lowlevel.wait_readable(self.answers)
            text += os.read(self.answers, 1)
        return text.decode()

    def nothing(self) -> bool:
        try:
            os.read(self.answers, 1)
        except BlockingIOError:
            return True
        return False


def test_a_program_asks(inside: Inside) -> None:
    world = inside.world

    async def body() -> None:
        inside.ask(b"check")
        inside.ask(b"point\n")
        assert world.kernel.state.checkpoint_asked  # and so it says in the image
        assert await inside.told() == "resumed 1\n"
        assert not world.kernel.state.checkpoint_asked
        inside.ask(b"\n")
        assert await inside.told() == "resumed 2\n"
        assert [e for e in world.events if "saved" in e] == [f"saved {inside.images}/1", f"saved {inside.images}/2"]
        (inside.images / "3").mkdir()  # of another life, after an earlier restore
        (inside.images / "3-2").touch()
        inside.ask(b"checkpoint\n")
        assert await inside.told() == "resumed 3\n"
        assert f"saved {inside.images}/3-3" in world.events

    world.run(body)


def test_stop_ends_it(inside: Inside) -> None:
    seen: list[CheckpointSpec] = []

    async def save(spec: CheckpointSpec) -> CheckpointResult:
        seen.append(spec)
        return CheckpointResult()

    async def body() -> None:
        inside.world.save = save
        inside.ask(b"stop\n")
        await inside.told()
        inside.ask(b" checkpoint \n")
        await inside.told()
        assert [spec.leave_running for spec in seen] == [False, True]

    inside.world.run(body)


def test_failures_are_told(inside: Inside) -> None:
    world = inside.world

    async def full(spec: CheckpointSpec) -> CheckpointResult:
        raise OSError(28, "No space left on device")

    async def bug(spec: CheckpointSpec) -> CheckpointResult:
        raise ZeroDivisionError("7/0")

    async def body() -> None:
        for save, text in (
            (world.bad_save, "failed: a socket of the host's\n"),
            (full, "failed: No space left on device\n"),
            (bug, "failed: internal error: ZeroDivisionError: 7/0\n"),
        ):
            world.save = save
            inside.ask(b"\n")
            assert await inside.told() == text
        inside.ask(b"fly\n")
        assert await inside.told() == "failed: takes checkpoint or stop, not 'fly'\n"
        inside.ask(b"\xff\0" * 2000 + b"\n")
        assert (await inside.told()).startswith("failed: takes checkpoint or stop, not ")
        world.save = world.good_save
        inside.ask(b"\n")
        assert await inside.told() == "resumed 1\n"

    world.run(body)


def test_a_second_one_while_one_is_made(inside: Inside) -> None:
    world, go = inside.world, trio.Event()

    async def slow(spec: CheckpointSpec) -> CheckpointResult:
        await go.wait()
        return CheckpointResult()

    async def body() -> None:
        world.save = slow
        inside.ask(b"\n\n")
        await trio.testing.wait_all_tasks_blocked()
        inside.ask(b"\n")
        assert inside.nothing()
        go.set()
        busy = "failed: a checkpoint is being made already\n"
        assert [await inside.told() for _ in range(3)] == ["resumed 1\n", busy, busy]
        inside.ask(b"\n")
        assert await inside.told() == "resumed 2\n"
        # A client's is in the way as well.
        world.attempts.checkpoints.begin()
        inside.ask(b"\n")
        assert await inside.told() == f"failed: {BUSY}\n"

    world.run(body)


def test_an_answer_that_nobody_took_is_not_the_next_ones(inside: Inside) -> None:
    async def body() -> None:
        inside.ask(b"\n")
        await trio.testing.wait_all_tasks_blocked()
        inside.ask(b"\n")
        assert await inside.told() == "resumed 2\n"
        assert inside.nothing()

    inside.world.run(body)


def test_who_asked_is_told_of_the_restore(inside: Inside) -> None:
    world = inside.world

    async def body() -> None:
        world.kernel.state.checkpoint_count = 2
        world.kernel.state.checkpoint_asked = 2  # as the image has it
        world.attempts.restore_begins()
        world.attempts.restored()
        assert await inside.told() == "restored 3\n"
        assert await inside.told() == "failed: a checkpoint is being made already\n"  # who asked meanwhile
        assert not world.kernel.state.checkpoint_asked
        inside.ask(b"\n")
        assert await inside.told() == "resumed 4\n"
        # A client's checkpoint tells nobody inside.
        world.attempts.restore_begins()
        world.attempts.restored()
        assert inside.nothing()

    world.run(body)


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"/run/trapline in the sandbox: No such file or directory"):
        CheckpointFile(World(tmp_path), "/images", str(tmp_path))  # type: ignore[arg-type]
