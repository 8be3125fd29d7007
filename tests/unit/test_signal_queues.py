"""The index of threads with queued signals, and what a send may look at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_fixture import World

from trapline.sentry.kernel import signal_send, task_exec, task_exit
from trapline.sentry.kernel.signal_deliver import host_signal, next_delivery
from trapline.sentry.kernel.signals import SIGCONT, SIGSTOP, SIGUSR1
from trapline.sentry.kernel.state import SigInfo, Task

CLONE_THREAD = 0x10000
SIGSEGV, SIGPIPE, SIGRTMIN, SIGTSTP = 11, 13, 34, 20
STEPS = st.tuples(
    st.sampled_from(["send", "host", "take", "flush", "die", "exec", "thread"]),
    st.integers(0, 9),
    st.sampled_from([SIGUSR1, SIGRTMIN, SIGCONT, SIGTSTP, SIGSEGV, SIGPIPE]),
)


@given(st.lists(STEPS, max_size=40))
def test_every_queue_that_is_not_empty_is_in_the_index(steps: list[tuple[str, int, int]]) -> None:
    world = World()
    kernel, group = world.kernel, world.kernel.group(world.root)
    world.root.mask = -1 & (1 << 64) - 1
    next_tid = 3
    for what, which, signo in steps:
        task = list(group.threads.values())[which % len(group.threads)]
        if what == "send":
            kernel.send_signal(2, SigInfo(signo=signo, code=-6), task.tid)
        elif what == "host":
            host_signal(kernel, task, SigInfo(signo=signo, code=1 if signo == SIGSEGV else 0))
        elif what == "take":
            task.mask = 0
            next_delivery(kernel, task)
            task.mask = (1 << 64) - 1
        elif what == "flush":
            signal_send.flush(group, 1 << (signo - 1))
        elif what == "die" and task.tid != 2:
            task_exit.task_died(kernel, task.tid, 0)
        elif what == "exec":
            task_exec.exec_done(kernel, 2, task.tid)
        elif what == "thread":
            world.fork(task, next_tid, CLONE_THREAD)
            next_tid += 1
        walked = [tid for tid, t in group.threads.items() if t.pending]
        assert set(walked) <= set(group.queues)
        assert {t.tid for t in signal_send.queueing(group)} == set(walked)
    world.check_plain()


class Watched(dict[int, Task]):
    """The threads of a process, counting what is looked at."""

    looked = 0

    def __getitem__(self, tid: int) -> Task:
        self.looked += 1
        return super().__getitem__(tid)

    def get(self, tid: int, default: object = None) -> Task:  # type: ignore[override]
        self.looked += 1
        return super().get(tid, default)  # type: ignore[arg-type]

    def values(self) -> Iterator[Task]:  # type: ignore[override]
        for task in super().values():
            self.looked += 1
            yield task

    def __iter__(self) -> Iterator[int]:
        for tid in super().__iter__():
            self.looked += 1
            yield tid


@pytest.mark.parametrize("signo", [SIGUSR1, SIGCONT, SIGSTOP, SIGRTMIN])
@pytest.mark.parametrize("tid", [0, 2, 150])
def test_a_signal_to_a_process_of_many_threads_looks_at_few(world: World, signo: int, tid: int) -> None:
    for thread in range(3, 303):
        world.fork(world.root, thread, CLONE_THREAD)
    group = world.kernel.group(world.root)
    group.threads = watched = Watched(group.threads)
    signal_send.send(world.kernel, group, SigInfo(signo=signo, code=-1), tid)
    assert 0 < watched.looked < 8


def test_an_ignored_signal_is_kept_where_the_leader_blocks_it(world: World) -> None:
    """Linux sig_ignored: the leader's mask decides for the process."""
    world.fork(world.root, 3, CLONE_THREAD)
    group = world.kernel.group(world.root)
    world.root.mask = 1 << (SIGCONT - 1)
    world.kernel.send_signal(2, SigInfo(signo=SIGCONT))
    assert [info.signo for info in group.pending] == [SIGCONT]
    group.pending.clear()
    world.root.mask, world.kernel.state.tasks[3].mask = 0, 1 << (SIGCONT - 1)
    world.kernel.send_signal(2, SigInfo(signo=SIGCONT))
    assert group.pending == []
