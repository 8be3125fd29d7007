"""The rules of order that sentry/kernel/kernel.py states, each by its number there."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import msgspec
import pytest
from kernel_fixture import World

from trapline.sentry.kernel import signal_send, task_exec, task_exit, task_stop
from trapline.sentry.kernel.block import Outcome, Reply
from trapline.sentry.kernel.signal_deliver import next_delivery
from trapline.sentry.kernel.signals import (
    SIG_IGN,
    SIGCHLD,
    SIGCONT,
    SIGKILL,
    SIGSTOP,
    SIGTSTP,
    SIGUSR1,
    bit,
)
from trapline.sentry.kernel.state import KernelState, SigAction, SigInfo, Task, TaskStatus, ThreadGroup

CLONE_THREAD = 0x10000
HANDLER = SigAction(handler=0x400000)
RT = 40


def _raises(*_: object, **__: object) -> NoReturn:
    raise AssertionError("the set of all tasks was looked at")


class Untouchable(dict[int, Task]):
    """In place of the set of all tasks: fails whatever it is asked."""

    __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = __contains__ = __bool__ = _raises  # type: ignore
    get = pop = keys = values = items = setdefault = update = copy = clear = popitem = _raises  # type: ignore


@contextmanager
def no_task_set(state: KernelState) -> Iterator[None]:
    """Whoever looks at the set of all tasks meanwhile fails."""
    plain = state.tasks
    state.tasks = Untouchable()
    try:
        yield
    finally:
        state.tasks = plain


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch, world: World) -> list[int]:
    """Every send is made without the set of all tasks; the signals that were sent."""
    sent: list[int] = []
    plain = signal_send.send

    def send(kernel: Any, group: ThreadGroup, info: SigInfo, tid: int = 0, prefer: int = 0) -> None:
        sent.append(info.signo)
        with no_task_set(kernel.state):
            plain(kernel, group, info, tid, prefer)

    monkeypatch.setattr(signal_send, "send", send)
    return sent


def group_of(world: World, tid: int = 2) -> ThreadGroup:
    return world.kernel.state.groups[tid]


# -- 3: sending needs no task set
@pytest.mark.parametrize("signo", [SIGUSR1, RT, SIGSTOP, SIGTSTP, SIGCONT, SIGKILL, SIGCHLD])
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("code", [0, -1, -6, -2])
def test_any_signal_is_sent_by_its_group_alone(world: World, signo: int, directed: bool, code: int) -> None:
    for tid in range(3, 8):
        world.fork(world.root, tid, CLONE_THREAD)
    group = group_of(world)
    group.actions = {SIGUSR1: HANDLER, RT: HANDLER, SIGTSTP: HANDLER, SIGCHLD: HANDLER, SIGCONT: HANDLER}
    world.root.mask = bit(SIGUSR1)
    with no_task_set(world.kernel.state):
        world.kernel.send_signal(2, SigInfo(signo=signo, code=code), 5 if directed else 0)
    if signo == SIGKILL:
        assert world.platform.killed == [2]
        return
    queue = group.threads[5].pending if directed else group.pending
    assert [info.signo for info in queue] == [signo]
    assert world.platform.pokes[-1][0] == (5 if directed else 3 if signo == SIGUSR1 else 2)


def test_a_stopped_process_is_continued_by_its_group_alone(world: World) -> None:
    child = world.fork(world.root, 3)
    thread = world.fork(child, 4, CLONE_THREAD)
    for task in (child, thread):
        task_stop.thread_stopped(world.kernel, task, SIGSTOP)
    group_of(world).actions[SIGCHLD] = HANDLER
    with no_task_set(world.kernel.state):
        world.kernel.send_signal(3, SigInfo(signo=SIGCONT))
    assert child.status == thread.status == TaskStatus.RUNNING
    assert group_of(world, 3).continue_report and world.platform.continued == [3]
    assert SIGCHLD in [info.signo for info in group_of(world).pending]


def test_a_thread_of_another_process_or_none_is_esrch(world: World) -> None:
    world.fork(world.root, 3)
    with no_task_set(world.kernel.state):
        for tid in (3, 77):
            with pytest.raises(OSError) as caught:
                signal_send.send(world.kernel, group_of(world), SigInfo(signo=SIGUSR1), tid)
            assert caught.value.errno == errno.ESRCH


def test_a_dead_target_is_esrch_by_its_group_alone(world: World) -> None:
    world.fork(world.root, 3)
    group = group_of(world, 3)
    task_exit.task_died(world.kernel, 3, 0)
    with no_task_set(world.kernel.state):
        for signo in (SIGUSR1, SIGKILL, SIGCONT):
            with pytest.raises(OSError) as caught:
                signal_send.send(world.kernel, group, SigInfo(signo=signo))
            assert caught.value.errno == errno.ESRCH
    world.kernel.state.groups.pop(3)
    with pytest.raises(ProcessLookupError):
        world.kernel.send_signal(3, SigInfo(signo=SIGUSR1))


def test_the_kernels_own_signals_are_sent_by_their_group_alone(world: World, sends: list[int]) -> None:
    """SIGCHLD of an end, a stop and a continue, the signal of a parent's end, and a timer's."""
    kernel = world.kernel
    group_of(world).actions[SIGCHLD] = HANDLER
    world.fork(world.root, 3)
    child = world.fork(world.root, 4)
    task_exit.task_died(kernel, 3, 0)
    task_stop.thread_stopped(kernel, child, SIGSTOP)
    kernel.send_signal(4, SigInfo(signo=SIGCONT))
    assert sends == [SIGCHLD, SIGCHLD, SIGCONT, SIGCHLD]
    grandchild = world.fork(child, 5)
    kernel.group(grandchild).pdeathsig = SIGUSR1
    task_exit.task_died(kernel, 4, 0)
    assert sends[4:] == [SIGUSR1, SIGCHLD]
    world.platform.memory(2).write(0x1000, struct.pack("<4q", 0, 0, 0, 1000))
    assert world.call(world.root, "setitimer", 0, 0x1000, 0) == 0
    world.advance(2_000_000)
    assert sends[6:] == [14]


def test_a_waiter_is_woken_by_its_group_alone(world: World, sends: list[int]) -> None:
    world.platform.memory(2).write(0x1000, struct.pack("<Q", bit(SIGUSR1)))
    world.root.mask = bit(SIGUSR1)
    assert world.call(world.root, "rt_sigtimedwait", 0x1000, 0, 0, 8) is Reply.BLOCKED
    world.kernel.send_signal(2, SigInfo(signo=SIGUSR1))
    assert world.platform.completed == [(2, SIGUSR1)] and group_of(world).pending == []


def test_the_index_is_what_the_groups_hold(world: World) -> None:
    thread = world.fork(world.root, 3, CLONE_THREAD)
    world.fork(thread, 4)
    task_exec.exec_done(world.kernel, 2, 3)
    state = world.kernel.state
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=KernelState)
    assert read == state and read.tasks == state.tasks and sorted(read.tasks) == [2, 4]
    assert all(read.groups[task.tgid].threads[tid] is task for tid, task in read.tasks.items())


# -- 1 and 4: an exec, or another disposition, between sending and delivery
def test_an_exec_between_sending_and_delivery(world: World) -> None:
    thread = world.fork(world.root, 3, CLONE_THREAD)
    group = group_of(world)
    group.actions = {SIGUSR1: HANDLER, RT: SigAction(handler=SIG_IGN)}
    thread.mask = bit(SIGUSR1) | bit(RT)
    with no_task_set(world.kernel.state):
        for signo in (SIGUSR1, RT):
            world.kernel.send_signal(2, SigInfo(signo=signo), 3)
    task = task_exec.exec_done(world.kernel, 2, 3)
    assert [info.signo for info in task.pending] == [SIGUSR1, RT]  # a thread's own queue lives on with it
    with no_task_set(world.kernel.state):
        world.kernel.send_signal(2, SigInfo(signo=SIGUSR1, code=-1))
    task.mask = 0
    delivery = next_delivery(world.kernel, task)
    assert delivery is not None and delivery.info.signo == SIGUSR1 and not delivery.handler  # the default now
    assert [info.signo for info in group.pending] == [SIGUSR1]


def test_a_waiter_survives_that_its_dispositions_are_exchanged(world: World) -> None:
    world.platform.memory(2).write(0x1000, struct.pack("<Q", bit(RT)))
    world.root.mask = bit(RT)
    world.fork(world.root, 3, CLONE_THREAD)
    group = group_of(world)
    assert world.call(world.root, "rt_sigtimedwait", 0x1000, 0, 0, 8) is Reply.BLOCKED
    group.actions = {RT: SigAction(handler=SIG_IGN)}
    group.pending = list(group.pending)
    world.kernel.send_signal(2, SigInfo(signo=RT))
    assert world.platform.completed == [(2, RT)]


# -- 2: change first, wake last
def test_what_one_is_woken_for_is_there(world: World) -> None:
    """Whoever is woken looks at once: the signal is queued, the child's end can be found."""
    seen: list[object] = []
    group = group_of(world)
    child = world.fork(world.root, 3)

    def resume(task: Task, outcome: Outcome) -> None:
        seen.append(([info.signo for info in group.pending], [tgid for _, tgid in group.reports], outcome))

    world.kernel.resume = resume
    world.kernel.signal_waiters[2] = bit(SIGCHLD)
    world.kernel.waiters[2] = [2]
    world.root.mask = bit(SIGCHLD)
    task_stop.thread_stopped(world.kernel, child, SIGSTOP)
    assert seen == [([SIGCHLD], [3], Outcome.WOKEN)] * 2


# -- 5: stop and continue undo each other when they are sent
@pytest.mark.parametrize("ignored", [False, True])
def test_stop_and_continue_undo_each_other_also_where_they_are_ignored(world: World, ignored: bool) -> None:
    group = group_of(world)
    world.root.mask = bit(SIGTSTP)
    world.kernel.send_signal(2, SigInfo(signo=SIGTSTP))
    world.kernel.send_signal(2, SigInfo(signo=SIGTSTP), 2)
    assert group.pending and world.root.pending
    if ignored:
        group.actions[SIGCONT] = SigAction(handler=SIG_IGN)
    world.kernel.send_signal(2, SigInfo(signo=SIGCONT))
    assert not group.pending and not world.root.pending


# -- 6: here first, then on the host
def test_what_a_mask_lets_through_is_poked_before_the_host_changes_it(world: World) -> None:
    group_of(world).actions[SIGUSR1] = HANDLER
    world.root.mask = bit(SIGUSR1)
    world.kernel.send_signal(2, SigInfo(signo=SIGUSR1))
    assert world.platform.pokes == []
    world.platform.memory(2).write(0x1000, struct.pack("<Q", bit(SIGUSR1)))
    assert world.call(world.root, "rt_sigprocmask", 1, 0x1000, 0, 8) is Reply.HOST
    assert world.root.mask == 0 and world.platform.pokes == [(2, SIGUSR1)]


# -- 7: how a thread and a process come and go
def test_a_process_that_is_told_of_has_ended_wholly(world: World) -> None:
    """At the parent's SIGCHLD the child has no threads, timers or children any more, and its status is there."""
    kernel, state = world.kernel, world.kernel.state
    group_of(world).actions[SIGCHLD] = HANDLER
    child = world.fork(world.root, 3)
    world.fork(child, 4, CLONE_THREAD)
    world.fork(child, 5)
    world.platform.memory(3).write(0x1000, struct.pack("<4q", 0, 0, 9, 0))
    assert world.call(child, "setitimer", 0, 0x1000, 0) == 0 and group_of(world, 3).itimers
    found: list[object] = []

    def look(original: Callable[..., None]) -> Callable[..., None]:
        def send(kernel: Any, group: ThreadGroup, info: SigInfo, tid: int = 0, prefer: int = 0) -> None:
            ended = state.groups[3]
            found.append((ended.threads, ended.children, ended.itimers, ended.exit_status, state.groups[5].ppid))
            found.append(sorted(state.tasks))
            original(kernel, group, info, tid, prefer)

        return send

    plain = signal_send.send
    signal_send.send = look(plain)
    try:
        task_exit.task_died(kernel, 3, 7 << 8)
    finally:
        signal_send.send = plain
    assert found == [({}, {}, {}, 7 << 8, 1), [2, 5]]
