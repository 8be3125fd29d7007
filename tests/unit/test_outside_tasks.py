"""Processes whose parent is outside, a program that is pid 1, and the end: the kernel's side."""

from __future__ import annotations

import pytest
from kernel_fixture import World

from trapline.sentry.kernel import signal_deliver, signal_send, task_clone, task_exit
from trapline.sentry.kernel.signals import (
    SI_KERNEL,
    SI_USER,
    SIGKILL,
    SIGSEGV,
    SIGSTOP,
    SIGTERM,
    SIGUSR1,
    bit,
)
from trapline.sentry.kernel.state import SigAction, SigInfo, Task


def init_world() -> tuple[World, Task]:
    """A kernel whose first program is pid 1."""
    world = World()
    state = world.kernel.state
    state.tasks.clear()
    state.groups.clear()
    state.process_groups.clear()
    return world, task_clone.first_task(world.kernel, 1, ppid=0, pgid=1, sid=1, mask=0)


def test_no_task_once_none_lives() -> None:
    world = World()
    kernel = world.kernel
    outside = task_clone.outside_task(kernel, 5, 0)
    task_exit.task_died(kernel, 2, 0)
    assert task_clone.outside_task(kernel, 6, 0).tid == 6, "one lives"
    for tid in (outside.tid, 6):
        task_exit.task_died(kernel, tid, 0)
    with pytest.raises(task_clone.Ended):
        task_clone.outside_task(kernel, 7, 0)
    assert not kernel.state.tasks and 7 not in kernel.state.groups
    world.check_plain()


def test_its_end_is_told_and_its_children_are_the_inits() -> None:
    for world, init in (init_world(), (World(), None)):
        kernel = world.kernel
        ended: list[tuple[int, int]] = []
        kernel.on_outside_exit = lambda group, ended=ended: ended.append((group.tgid, group.exit_status))  # type: ignore
        task_clone.outside_task(kernel, 5, 0)
        world.fork(kernel.task(5), 6)
        task_exit.task_died(kernel, 5, 7 << 8)
        assert ended == [(5, 7 << 8)] and 5 not in kernel.state.groups
        assert kernel.state.groups[6].ppid == 1
        assert init is None or 6 in kernel.group(init).children
        task_exit.task_died(kernel, 6, 0)
        assert (6 in kernel.state.groups) == (init is not None), "a stub reaps at once, a program when it waits"
        assert ended == [(5, 7 << 8)]


def test_pid_1_takes_what_it_has_a_handler_for() -> None:
    world, init = init_world()
    kernel, group = world.kernel, world.kernel.group(init)
    for signo in (SIGTERM, SIGKILL, SIGSTOP):
        signal_send.send(kernel, group, SigInfo(signo=signo, code=SI_USER, pid=2))
    assert not group.pending and not world.platform.killed
    signal_send.send(kernel, group, SigInfo(signo=SIGTERM, outside=True))
    assert not group.pending, "from outside no more than KILL and STOP"
    signal_send.send(kernel, group, SigInfo(signo=SIGSTOP, outside=True))
    assert [info.signo for info in group.pending] == [SIGSTOP]
    group.pending.clear()
    for info in (SigInfo(signo=SIGKILL, outside=True), SigInfo(signo=SIGKILL, code=SI_KERNEL)):
        signal_send.send(kernel, group, info)
    assert world.platform.killed == [1, 1]
    group.actions[SIGUSR1] = SigAction(handler=0x1234)
    signal_send.send(kernel, group, SigInfo(signo=SIGUSR1, pid=2))
    delivery = signal_deliver.next_delivery(kernel, init)
    assert delivery is not None and delivery.handler and delivery.info.signo == SIGUSR1
    # One that waits, blocked, is kept as for anybody, and dropped when it would be taken.
    init.mask = bit(SIGTERM)
    signal_send.send(kernel, group, SigInfo(signo=SIGTERM, pid=2))
    assert [info.signo for info in group.pending] == [SIGTERM]
    init.mask = 0
    assert signal_deliver.next_delivery(kernel, init) is None


def test_a_fault_of_pid_1_is_its_end() -> None:
    world, init = init_world()
    kernel = world.kernel
    signal_deliver.host_signal(kernel, init, SigInfo(signo=SIGSEGV, code=1))
    delivery = signal_deliver.next_delivery(kernel, init)
    assert delivery is not None and not delivery.handler and kernel.group(init).killed_by == SIGSEGV
    statuses: list[int] = []
    kernel.on_root_exit = statuses.append
    task_exit.task_died(kernel, 1, SIGKILL)
    assert statuses == [SIGSEGV]
