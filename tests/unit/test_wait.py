"""Who may reap whom."""

import errno
import struct

import pytest

from trapline.sentry.kernel import task_exit, task_stop
from trapline.sentry.kernel.block import Execute, Outcome, Reply
from trapline.sentry.kernel.signals import SA_NOCLDWAIT, SIG_IGN, SIGCHLD, SIGSTOP
from trapline.sentry.kernel.state import SigAction
from trapline.sentry.kernel.task_clone import CLONE_THREAD
from trapline.sentry.kernel.task_wait import WCONTINUED, WEXITED, WNOHANG, WNOWAIT, WSTOPPED

STATUS = 0x1000


def wait4(world, pid=-1, options=0, task=None):
    return world.call(task or world.root, "wait4", pid, STATUS, options, 0)


def test_no_child_is_echild(world):
    assert wait4(world) == -errno.ECHILD


def test_nohang_without_event_is_zero(world):
    world.fork(world.root, 3)
    assert wait4(world, options=WNOHANG) == 0


def test_zombie_is_reaped_by_the_host_with_its_exact_pid(world):
    for tid in (3, 4):
        world.fork(world.root, tid)
        task_exit.task_died(world.kernel, tid, 7 << 8)
    reply = wait4(world)
    assert isinstance(reply, Execute) and reply.args == (3, STATUS, WNOHANG, 0)
    assert world.dispatcher.executed(world.root, 3) == 3
    assert 3 not in world.kernel.state.groups
    assert list(world.kernel.state.groups[2].children) == [4]


@pytest.mark.parametrize("pid", [-1, 0, 3])
def test_the_only_zombie_of_one_thread_is_left_to_the_call_as_it_stands(world, pid):
    world.fork(world.root, 3)
    world.fork(world.root, 4)
    task_exit.task_died(world.kernel, 3, 7 << 8)
    assert wait4(world, pid) is Reply.HOST
    assert world.root.call is None and not world.dispatcher.running
    assert list(world.kernel.state.groups) == [2, 4] and list(world.kernel.state.groups[2].children) == [4]


def test_who_could_find_another_is_given_the_pid(world):
    """A second thread might take the zombie first; a stop might be found; the core bit is only ours."""
    for change in ("thread", "stop", "core"):
        world.fork(world.root, 3)
        if change == "core":
            world.kernel.state.groups[3].core_dumped = True
        task_exit.task_died(world.kernel, 3, 6)
        if change == "thread":
            world.fork(world.root, 9, CLONE_THREAD)
        reply = wait4(world, options=WSTOPPED if change == "stop" else 0)
        assert isinstance(reply, Execute) and reply.args == (3, STATUS, WNOHANG, 0), change
        world.dispatcher.executed(world.root, 3)
        if change == "thread":
            task_exit.task_died(world.kernel, 9, 0)


def test_blocked_wait_is_woken_by_a_death(world):
    world.fork(world.root, 3)
    assert wait4(world) is Reply.BLOCKED
    task_exit.task_died(world.kernel, 3, 0)
    assert world.platform.executed[0][0] == 2
    assert world.platform.executed[0][1].args == (3, STATUS, WNOHANG, 0)


def test_a_subreaper_that_waits_for_one_child_gets_its_zombie_grandchild_too(world):
    """The news of the grandchild wakes it while the child's own end is only half told."""
    world.kernel.state.groups[2].subreaper = True
    child = world.fork(world.root, 3)
    world.fork(child, 4)
    assert wait4(world, 3) is Reply.BLOCKED
    task_exit.task_died(world.kernel, 4, 0)
    task_exit.task_died(world.kernel, 3, 0)
    assert world.platform.executed[0][1].args == (3, STATUS, WNOHANG, 0)
    assert world.dispatcher.executed(world.root, 3) == 3
    assert wait4(world) is Reply.HOST


def test_order_is_that_of_creation(world):
    for tid in (3, 4, 5):
        world.fork(world.root, tid)
    for tid in (5, 4):
        task_exit.task_died(world.kernel, tid, 0)
    assert wait4(world).args[0] == 4


def test_ignored_sigchld_reaps_at_once(world):
    world.fork(world.root, 3)
    world.kernel.state.groups[2].actions[SIGCHLD] = SigAction(handler=SIG_IGN)
    assert wait4(world) is Reply.BLOCKED
    task_exit.task_died(world.kernel, 3, 0)
    assert world.platform.completed == [(2, -errno.ECHILD)]


def test_nocldwait_reaps_but_signals(world):
    world.fork(world.root, 3)
    world.kernel.state.groups[2].actions[SIGCHLD] = SigAction(handler=0x1000, flags=SA_NOCLDWAIT)
    task_exit.task_died(world.kernel, 3, 0)
    assert wait4(world) == -errno.ECHILD
    assert world.kernel.state.groups[2].pending[0].signo == SIGCHLD


def test_stops_and_continues_are_the_sentrys(world):
    child = world.fork(world.root, 3)
    task_stop.thread_stopped(world.kernel, child, SIGSTOP)
    assert wait4(world, options=WNOHANG) == 0
    assert wait4(world, options=WSTOPPED) == 3
    assert struct.unpack("<i", world.platform.memory(2).read(STATUS, 4)) == (SIGSTOP << 8 | 0x7F,)
    assert wait4(world, options=WSTOPPED | WNOHANG) == 0
    assert world.call(world.root, "kill", 3, 18) == 0
    assert wait4(world, options=WCONTINUED | WNOHANG) == 3
    assert struct.unpack("<i", world.platform.memory(2).read(STATUS, 4)) == (0xFFFF,)


def test_nowait_leaves_the_event(world):
    child = world.fork(world.root, 3)
    task_stop.thread_stopped(world.kernel, child, SIGSTOP)
    for _ in range(2):
        assert world.call(world.root, "waitid", 0, 0, 0x2000, WSTOPPED | WNOWAIT | WNOHANG, 0) == 0
        assert struct.unpack_from("<i", world.platform.memory(2).read(0x2000, 4)) == (SIGCHLD,)


def test_group_and_pid_selection(world):
    world.fork(world.root, 3)
    world.fork(world.root, 4)
    assert world.call(world.root, "setpgid", 4, 4) is not None
    assert world.kernel.state.groups[4].pgid == 4
    task_exit.task_died(world.kernel, 3, 0)
    assert wait4(world, pid=4, options=WNOHANG) == 0
    assert wait4(world, pid=-4, options=WNOHANG) == 0
    assert wait4(world, pid=0, options=WNOHANG) is Reply.HOST
    assert list(world.kernel.state.groups) == [2, 4]


def test_orphans_go_to_the_subreaper_or_to_init(world):
    child = world.fork(world.root, 3)
    world.fork(child, 4)
    world.fork(child, 5)
    world.kernel.state.groups[2].subreaper = True
    task_exit.task_died(world.kernel, 5, 0)
    task_exit.task_died(world.kernel, 3, 0)
    groups = world.kernel.state.groups
    assert groups[4].ppid == 2 and groups[5].ppid == 2
    assert list(groups[2].children) == [3, 4, 5]
    groups[2].subreaper = False
    task_exit.task_died(world.kernel, 2, 0)
    assert groups[4].ppid == 1
    assert 5 not in groups and 3 not in groups  # nobody waits for them


def test_thread_of_a_dead_leader_lives_on(world):
    world.fork(world.root, 3)
    thread = world.fork(world.kernel.state.tasks[3], 4, 0x10000)
    assert wait4(world, options=WNOHANG) == 0
    task_exit.task_died(world.kernel, 4, 0)
    assert thread.tid not in world.kernel.state.tasks
    assert wait4(world, options=WNOHANG) == 0
    task_exit.task_died(world.kernel, 3, 9)
    assert wait4(world, options=WNOHANG) is Reply.HOST
    assert list(world.kernel.state.groups) == [2]


def test_bad_options(world):
    assert wait4(world, options=0x40) == -errno.EINVAL
    assert world.call(world.root, "waitid", 0, 0, 0, WNOHANG, 0) == -errno.EINVAL
    assert world.call(world.root, "waitid", 9, 0, 0, WEXITED, 0) == -errno.EINVAL
    assert wait4(world, pid=-(1 << 31)) == -errno.ESRCH


def test_interrupted_wait_restarts_with_sa_restart(world):
    from trapline.sentry.kernel.signal_deliver import Delivery
    from trapline.sentry.kernel.state import SigInfo

    world.fork(world.root, 3)
    wait4(world)
    handled = Delivery(SigInfo(10), handler=True, restart=True, stop=False)
    assert world.dispatcher.interrupt(world.root, handled) == -512
    wait4(world)
    handled.restart = False
    assert world.dispatcher.interrupt(world.root, handled) == -errno.EINTR
    assert world.kernel.waiters == {}
    assert Outcome.WOKEN == 0
