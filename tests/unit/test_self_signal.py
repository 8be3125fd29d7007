"""A thread's signal to itself, on the seccomp platform: its own call, executed by the host, is the poke."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from kernel_fixture import World

from trapline.platform import pokes, stop_calls, stop_signals
from trapline.platform import ptrace_calls as pt
from trapline.platform.engine import Engine
from trapline.platform.seccomp import SeccompEngine
from trapline.platform.tracee import Tracee
from trapline.sentry.kernel.signals import SI_TKILL, SI_USER, SIGCONT, SIGPIPE, SIGUSR1, bit
from trapline.sentry.kernel.state import SigAction
from trapline.sentry.kernel.task_clone import CLONE_THREAD

KILL, TGKILL = 62, 234
_HANDLER = 0x1000


class Host:
    """What the platform did with the caller."""

    def __init__(self) -> None:
        self.note: tuple[int, int, int, tuple[int, ...], int] | None = None
        self.done: list[object] = []

    def receive(self) -> object:
        return self.note

    def go_on(self, ident: int) -> bool:
        self.done.append("executed")
        return True

    def answer(self, ident: int, result: int) -> bool:
        self.done.append(result)
        return True


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    seen = Host()
    monkeypatch.setattr(pokes, "poke_thread", lambda group, host, signo: seen.done.append(f"poke {signo}"))
    monkeypatch.setattr(pt, "cont", lambda host, signo=0: seen.done.append(f"delivered {signo}"))
    monkeypatch.setattr(pt, "set_siginfo", lambda host, raw: None)
    monkeypatch.setattr(pt.RegisterFile, "load", lambda self, host: self.r)
    yield seen


def sends(world: World, host: Host, nr: int, *args: int, killable: bool = True) -> tuple[SeccompEngine, Tracee]:
    """The root makes a call, by notification."""
    engine = SeccompEngine()
    engine.kernel, engine.dispatcher = world.kernel, world.dispatcher
    engine.killable = killable
    world.kernel.platform.poke = engine.poke  # type: ignore[method-assign]
    t = Tracee(1002, 1002, 2, world.root)
    engine.add(t)
    group = world.kernel.group(world.root)
    for signo in (SIGUSR1, SIGPIPE, SIGCONT):
        group.actions[signo] = SigAction(handler=_HANDLER)
    host.note = (7, 1002, nr, (*args, 0, 0, 0, 0)[:6], 0)
    engine.serve_notification(host)  # type: ignore[arg-type]
    return engine, t


def stops(engine: SeccompEngine, t: Tracee, monkeypatch: pytest.MonkeyPatch, signo: int, code: int, pid: int) -> None:
    """The host is about to deliver a signal with this siginfo."""
    raw = struct.pack("<iiiIiI", signo, 0, code, 0, pid, 0).ljust(128, b"\0")
    monkeypatch.setattr(pt, "get_siginfo", lambda host: raw)
    stop_signals.delivery_stop(engine, t, signo)


@pytest.mark.parametrize(("nr", "args", "code"), [(KILL, (2, SIGUSR1), SI_USER), (TGKILL, (2, 2, SIGUSR1), SI_TKILL)])
def test_its_own_call_is_the_poke(
    world: World, host: Host, monkeypatch: pytest.MonkeyPatch, nr: int, args: tuple[int, ...], code: int
) -> None:
    engine, t = sends(world, host, nr, *args)
    assert host.done == ["executed"]
    stops(engine, t, monkeypatch, SIGUSR1, code, 2)
    assert host.done[1:] == [f"delivered {SIGUSR1}"]  # once, and nothing is left
    group = world.kernel.group(world.root)
    assert not group.pending and not world.root.pending
    # The same siginfo without such a call before it is a signal that the host made.
    world.root.mask = 0
    stops(engine, t, monkeypatch, SIGUSR1, code, 2)
    assert host.done[2:] == [f"delivered {SIGUSR1}"]


def test_a_signal_of_somebody_else_that_comes_first(
    world: World, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, t = sends(world, host, KILL, 2, SIGUSR1)
    stops(engine, t, monkeypatch, SIGPIPE, SI_USER, 2)
    # The thread's own comes before the process's; for the rest it is brought to another stop.
    assert host.done[1:] == [f"poke {SIGUSR1}", f"delivered {SIGPIPE}"]
    stops(engine, t, monkeypatch, SIGUSR1, SI_USER, 2)
    assert host.done[3:] == [f"delivered {SIGUSR1}"]


@pytest.mark.parametrize("signo", [SIGPIPE, SIGCONT])
def test_signals_that_are_poked(world: World, host: Host, signo: int) -> None:
    sends(world, host, KILL, 2, signo)
    assert str(host.done[0]).startswith("poke") and host.done[1:] == [0]


def test_a_process_of_two_threads_is_poked(world: World, host: Host) -> None:
    """The host could choose the other one."""
    world.fork(world.root, 3, CLONE_THREAD)
    sends(world, host, TGKILL, 2, 2, SIGUSR1)
    assert host.done == ["executed"]
    host.done.clear()
    world.root.pending.clear()
    world.kernel.platform.poke_process = world.kernel.platform.poke  # type: ignore[method-assign]
    sends(world, host, KILL, 2, SIGUSR1)
    assert "executed" not in host.done


def test_a_blocked_signal_only_waits(world: World, host: Host) -> None:
    world.root.mask = bit(SIGUSR1)
    sends(world, host, KILL, 2, SIGUSR1)
    assert host.done == [0]


def test_where_answers_do_not_stay_it_is_poked(world: World, host: Host) -> None:
    """Before Linux 6.17 the call could be made again, and the signal sent twice."""
    sends(world, host, KILL, 2, SIGUSR1, killable=False)
    assert host.done == [f"poke {SIGUSR1}"]


def test_a_thread_takes_its_own_signal_before_others_calls_are_served(
    world: World, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the ptrace platform: else another thread's sigaction(2) could always come in between (SIG_IGN drops it)."""
    engine = Engine()
    engine.kernel, engine.dispatcher = world.kernel, world.dispatcher
    world.kernel.platform.poke = engine.poke  # type: ignore[method-assign]
    world.kernel.group(world.root).actions[SIGUSR1] = SigAction(handler=_HANDLER)
    other = world.fork(world.root, 3, CLONE_THREAD)
    for tid, task in ((2, world.root), (3, other)):
        engine.add(Tracee(1000 + tid, 1002, tid, task))
    waiting = [(1002, 0x7057F), (1003, 0x7057F)]  # both at the entry of a call
    asked: list[int] = []

    def stopped_now(host: int) -> int | None:
        asked.append(host)
        return None if len(asked) < 3 else SIGUSR1 << 8 | 0x7F  # on its way from its call to its delivery stop

    monkeypatch.setattr(pt, "wait_any", lambda: waiting.pop(0) if waiting else (0, 0))
    monkeypatch.setattr(pt, "stopped_now", stopped_now)
    monkeypatch.setattr(pt, "get_siginfo", lambda host: bytes(pokes._token(SIGUSR1)))
    monkeypatch.setattr(pt.RegisterFile, "store", lambda self, host: None)
    entered: list[object] = []

    def entry(t: Tracee) -> None:
        entered.append(t.tid)
        engine.entering = t.tid
        assert world.call(t.task, "tgkill" if t.tid == 2 else "rt_sigpending", 2, 2, SIGUSR1) is not None
        engine.entering = 0
        engine.resume(t)

    monkeypatch.setattr(stop_calls, "entry", lambda e, t: entry(t))
    monkeypatch.setattr(stop_signals, "delivery_stop", lambda e, t, signo: entered.append(f"{t.tid} takes {signo}"))
    engine.serve_stops(10)
    assert entered == [2, f"2 takes {SIGUSR1}", 3] and asked == [1002] * 3
