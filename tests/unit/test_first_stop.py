"""A new thread's first stop may be the group stop at once: another thread was stopped before it first ran."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from kernel_fixture import World

from trapline.platform import host_services, stop_tasks
from trapline.platform import ptrace_calls as pt
from trapline.platform.engine import Engine
from trapline.platform.tracee import Tracee
from trapline.sentry.kernel import family
from trapline.sentry.kernel.signals import SIGCONT, SIGSTOP
from trapline.sentry.kernel.state import SigInfo, TaskStatus
from trapline.sentry.kernel.task_clone import CLONE_THREAD
from trapline.sentry.protocol import Gone

_TRAP = 5
_GROUP_STOP = pt.EVENT_STOP << 16 | SIGSTOP << 8 | 0x7F
_TRAP_STOP = pt.EVENT_STOP << 16 | _TRAP << 8 | 0x7F


class Calls:
    """What would have been asked of the host for each tracee."""

    def __init__(self) -> None:
        self.listened: list[int] = []
        self.resumed: list[int] = []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    seen = Calls()

    def call(request: int, host: int, address: int = 0, data: int = 0) -> None:
        assert request == pt.PTRACE_LISTEN
        seen.listened.append(host)

    monkeypatch.setattr(pt, "call", call)
    monkeypatch.setattr(pt, "cont", lambda host, signo=0: seen.resumed.append(host))
    monkeypatch.setattr(pt.RegisterFile, "load", lambda self, host: self.r)
    monkeypatch.setattr(pt.RegisterFile, "store", lambda self, host: None)
    monkeypatch.setattr(pt, "event_message", lambda host: 1003)
    monkeypatch.setattr(host_services, "read_ids", lambda host: (host, 3, 1))
    yield seen


def engine_of(world: World) -> tuple[Engine, Tracee]:
    engine = Engine()
    engine.kernel, engine.dispatcher = world.kernel, world.dispatcher
    leader = Tracee(1002, 1002, 2, world.root)
    engine.add(leader)
    return engine, leader


def clone(engine: Engine, leader: Tracee) -> None:
    leader.execute = stop_tasks.Clone((CLONE_THREAD, 0, 0, 0, 0), CLONE_THREAD, False)
    leader.saved = (435, 0, 0, 0, 0, 0)
    engine._stopped(leader, _TRAP, pt.EVENT_CLONE)


@pytest.mark.parametrize("before", [False, True], ids=["after the clone event", "before the clone event"])
def test_a_thread_born_into_a_stop(world: World, calls: Calls, before: bool) -> None:
    engine, leader = engine_of(world)
    if before:
        engine.serve_stop(1003, _GROUP_STOP)
    clone(engine, leader)
    if not before:
        engine.serve_stop(1003, _GROUP_STOP)
    assert calls.listened == [1003] and calls.resumed == [1002]
    assert world.kernel.task(3).status == TaskStatus.STOPPED
    group = world.kernel.group(world.root)
    assert not group.stop_signal
    engine.serve_stop(1002, _GROUP_STOP)
    assert group.stop_signal == group.stop_report == SIGSTOP


@pytest.mark.parametrize("before", [False, True])
def test_a_thread_born_running(world: World, calls: Calls, before: bool) -> None:
    engine, leader = engine_of(world)
    if before:
        engine.serve_stop(1003, _TRAP_STOP)
    clone(engine, leader)
    if not before:
        engine.serve_stop(1003, _TRAP_STOP)
    assert calls.listened == [] and sorted(calls.resumed) == [1002, 1003]
    assert world.kernel.task(3).status == TaskStatus.RUNNING


@pytest.mark.parametrize("stopped", [False, True], ids=["before its first stop", "at its first stop"])
def test_a_child_that_was_killed_before_it_was_announced(
    world: World, calls: Calls, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """Its death is taken first, and the clone event of its creator finds a zombie that nobody traces."""
    engine, leader = engine_of(world)
    if stopped:
        engine.serve_stop(1003, _TRAP_STOP)
    engine.serve_stop(1003, signal.SIGKILL)
    monkeypatch.setattr(stop_tasks, "is_traced", lambda host: False)
    leader.execute = stop_tasks.Clone((0, 0, 0, 0, 0), signal.SIGCHLD, False)
    leader.saved = (435, 0, 0, 0, 0, 0)
    engine._stopped(leader, _TRAP, pt.EVENT_CLONE)
    assert calls.resumed == [1002] and 1003 not in engine.tracees
    assert world.kernel.state.groups[3].exit_status == signal.SIGKILL
    assert [child.tgid for child in family.reporters(world.kernel.state, world.kernel.group(world.root))] == [3]


def test_a_child_that_is_killed_while_it_is_announced(
    world: World, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood at its first stop, and cannot be resumed any more: its creator is, and its death comes later."""

    def cont(host: int, signo: int = 0) -> None:
        if host == 1003:
            raise Gone(host)
        calls.resumed.append(host)

    monkeypatch.setattr(pt, "cont", cont)
    engine, leader = engine_of(world)
    engine.serve_stop(1003, _TRAP_STOP)
    clone(engine, leader)
    assert calls.resumed == [1002] and 1003 in engine.tracees


@pytest.mark.parametrize("status", [_TRAP_STOP, _GROUP_STOP])
def test_an_event_stop_in_the_middle_of_a_set_up_does_not_end_it(world: World, status: int) -> None:
    """SIGCONT stops a tracee whatever it blocks, and a group stop may have begun before the exec: the stop was taken for
    a death, and the task stood there for ever. A group stop's signal is delivered once the set-up is done."""
    engine, leader = engine_of(world)
    assert engine.put_off_stop(leader, status)
    group = world.kernel.group(world.root)
    assert [info.signo for info in group.pending] == ([SIGSTOP] if status == _GROUP_STOP else [])
    assert leader.repoke == (status == _GROUP_STOP)
    world.kernel.send_signal(2, SigInfo(signo=SIGCONT))
    assert SIGSTOP not in [info.signo for info in group.pending]


def test_another_stop_in_the_middle_of_a_set_up_does(world: World) -> None:
    engine, leader = engine_of(world)
    assert not engine.put_off_stop(leader, pt.EVENT_SECCOMP << 16 | _TRAP << 8 | 0x7F)
