"""Whose a terminal is, and who is in its foreground: the kernel's part, with terminals that are only said to be there."""

from __future__ import annotations

import errno
import struct
from types import SimpleNamespace

import pytest

from trapline.sentry.kernel import sessions, task_exit, tty
from trapline.sentry.kernel.block import Execute, Reply
from trapline.sentry.kernel.signal_deliver import Delivery, host_signal
from trapline.sentry.kernel.signals import SI_KERNEL, SI_USER, SIG_IGN, SIGHUP, SIGTTOU, bit
from trapline.sentry.kernel.state import SigAction, SigInfo
from trapline.sentry.kernel.tty import OUTSIDE, Terminal

SCTTY, GPGRP, SPGRP, STI, NOTTY, GSID = 0x540E, 0x540F, 0x5410, 0x5412, 0x5422, 0x5429
AT, BAD = 0x1000, 0x100
PTS0, PTS1 = 0x8800, 0x8801
SLAVE, MASTER, OTHER, ALIAS, WRITER, HOST = 10, 11, 12, 13, 14, 15
EVERYBODY = range(2, 20)


@pytest.fixture
def jobs(world):
    """root is 2 (outside of it all), shell 3 leads a session and has the terminal; 4 and 5 are jobs of its."""
    world.platform.capabilities = 0
    for tid in EVERYBODY:
        world.platform.terminals |= {
            (tid, SLAVE): Terminal(PTS0), (tid, OTHER): Terminal(PTS1), (tid, ALIAS): Terminal(PTS0, alias=True),
            (tid, WRITER): Terminal(PTS0, readable=False), (tid, HOST): Terminal(PTS0 | OUTSIDE),
            (tid, 20): OSError(errno.EIO, "hung up"), (tid, 21): OSError(errno.ENOTTY, "no terminal"),
        }  # fmt: skip
    shell = world.fork(world.root, 3)
    sessions.new_session(world.kernel, world.kernel.group(shell))
    assert run(world, shell, SLAVE, SCTTY, 0) == 0
    found = SimpleNamespace(world=world, kernel=world.kernel, platform=world.platform, shell=shell)
    for tid in (4, 5):
        world.fork(shell, tid)
        world.platform.host_ttys[tid] = PTS0
        sessions.set_process_group(world.kernel, world.kernel.group(shell), tid, tid)
    found.one, found.two = world.kernel.task(4), world.kernel.task(5)
    return found


def ask(world, task, fd, command, argument=AT):
    return world.call(task, "ioctl", fd, command, argument)


def run(world, task, fd, command, argument=AT, host=0):
    """A request, with what the host says of it if it is to execute it."""
    reply = ask(world, task, fd, command, argument)
    if isinstance(reply, Execute):
        assert reply.args is None
        reply = world.dispatcher.executed(task, host)
        if host == 0 and command == SCTTY:
            world.platform.host_ttys[task.tgid] = world.platform.terminals[task.tid, fd].number & 0xFFFFFFFF
        if host == 0 and command == NOTTY:
            world.platform.host_ttys.pop(task.tgid, None)
    return reply


def answer(world, task, fd, command):
    """What TIOCGPGRP or TIOCGSID writes, or -errno."""
    result = ask(world, task, fd, command)
    return result or struct.unpack("<i", world.platform.memory(task.tid).read(AT, 4))[0]


def move(world, task, pgid, fd=SLAVE, host=0):
    world.platform.memory(task.tid).write(AT, struct.pack("<i", pgid))
    return run(world, task, fd, SPGRP, AT, host)


def ignore_ttou(kernel, task):
    kernel.group(task).actions[SIGTTOU] = SigAction(handler=SIG_IGN)


def test_who_acquired_it_is_in_front(jobs):
    for task in (jobs.shell, jobs.one):
        assert answer(jobs.world, task, SLAVE, GPGRP) == answer(jobs.world, task, SLAVE, GSID) == 3
        assert answer(jobs.world, task, OTHER, GPGRP) == answer(jobs.world, task, OTHER, GSID) == -errno.ENOTTY
    assert answer(jobs.world, jobs.world.root, SLAVE, GPGRP) == -errno.ENOTTY


def test_the_foreground_follows_the_host_only_when_that_succeeded(jobs):
    assert move(jobs.world, jobs.shell, 4, host=-errno.EIO) == -errno.EIO
    assert answer(jobs.world, jobs.shell, SLAVE, GPGRP) == 3
    assert move(jobs.world, jobs.shell, 4) == 0
    assert answer(jobs.world, jobs.shell, SLAVE, GPGRP) == 4
    assert jobs.kernel.state.ttys[PTS0].foreground == 4


def test_errors_of_moving_it(jobs):
    world, shell = jobs.world, jobs.shell
    lonely = world.fork(shell, 6)
    sessions.new_session(jobs.kernel, jobs.kernel.group(lonely))
    assert run(world, shell, SLAVE, SPGRP, BAD) == -errno.EFAULT
    for pgid, error in ((-1, errno.EINVAL), (0, errno.ESRCH), (999, errno.ESRCH), (6, errno.EPERM), (1, errno.EPERM)):
        assert move(world, shell, pgid) == -error, pgid
    assert move(world, shell, 3, OTHER) == move(world, lonely, 6) == -errno.ENOTTY
    assert run(world, shell, OTHER, SPGRP, BAD) == -errno.EFAULT  # found before whose it is
    assert run(world, shell, 20, SPGRP) == -errno.ENOTTY  # hung up
    assert run(world, shell, 20, GPGRP) == run(world, shell, 20, NOTTY) == -errno.EIO
    assert run(world, shell, 21, GPGRP) == -errno.ENOTTY and run(world, shell, 99, GPGRP) == -errno.EBADF
    assert run(world, shell, SLAVE, GPGRP, BAD) == run(world, shell, SLAVE, GSID, BAD) == -errno.EFAULT


def test_a_process_that_leads_no_group_and_a_thread_may_be_in_front(jobs):
    member = jobs.world.fork(jobs.shell, 6)
    thread = jobs.world.fork(member, 7, 0x10000)
    for tid in (member.tid, thread.tid):
        ignore_ttou(jobs.kernel, jobs.shell)
        assert move(jobs.world, jobs.shell, tid) == 0


def test_input_is_not_made_up(jobs):
    assert run(jobs.world, jobs.shell, SLAVE, STI) == run(jobs.world, jobs.shell, SLAVE, STI, BAD) == -errno.EIO
    assert run(jobs.world, jobs.shell, 21, STI) == -errno.ENOTTY


# -- the background


def pending(group):
    return [(info.signo, info.code) for info in group.pending]


def test_a_background_group_gets_sigttou_and_the_call_finds_out_anew(jobs):
    world, kernel = jobs.world, jobs.kernel
    fellow = world.fork(jobs.one, 6)
    jobs.platform.memory(4).write(AT, struct.pack("<i", 4))
    assert ask(world, jobs.one, SLAVE, SPGRP) is Reply.AGAIN
    for task in (jobs.one, fellow):
        assert pending(kernel.group(task)) == [(SIGTTOU, SI_KERNEL)]
    assert pending(kernel.group(jobs.two)) == []
    # It was taken and is in the background still: another one.
    kernel.group(jobs.one).pending.clear()
    assert world.dispatcher.go_on(jobs.one) is Reply.AGAIN
    assert pending(kernel.group(jobs.one)) == [(SIGTTOU, SI_KERNEL)]
    assert move(world, jobs.shell, 4) == 0
    reply = world.dispatcher.go_on(jobs.one)
    assert isinstance(reply, Execute) and world.dispatcher.executed(jobs.one, 0) == 0
    assert jobs.one.call is None and not world.dispatcher.after_signals


def test_a_handler_ends_the_call_as_erestartsys(jobs):
    for restart, result in ((False, -errno.EINTR), (True, -512)):
        jobs.platform.memory(4).write(AT, struct.pack("<i", 4))
        assert ask(jobs.world, jobs.one, SLAVE, SPGRP) is Reply.AGAIN
        delivery = Delivery(SigInfo(signo=SIGTTOU), handler=True, restart=restart, stop=False)
        assert jobs.world.dispatcher.interrupt(jobs.one, delivery) == result
        assert jobs.one.call is None and not jobs.world.dispatcher.after_signals


def test_the_same_call_that_comes_again_is_the_same(jobs):
    jobs.platform.memory(4).write(AT, struct.pack("<i", 4))
    assert ask(jobs.world, jobs.one, SLAVE, SPGRP) is Reply.AGAIN
    assert move(jobs.world, jobs.shell, 4) == 0
    assert isinstance(ask(jobs.world, jobs.one, SLAVE, SPGRP), Execute)
    assert jobs.world.dispatcher.executed(jobs.one, 0) == 0


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_who_ignores_or_blocks_sigttou_goes_on(jobs, how):
    if how == "ignored":
        ignore_ttou(jobs.kernel, jobs.one)
    else:
        jobs.one.mask = bit(SIGTTOU)
    assert move(jobs.world, jobs.one, 4) == 0
    assert answer(jobs.world, jobs.one, SLAVE, GPGRP) == 4
    assert pending(jobs.kernel.group(jobs.one)) == []


def test_an_orphaned_group_is_no_terminals(jobs):
    """And it comes before what is wrong with the argument."""
    child = jobs.world.fork(jobs.one, 6)
    task_exit.task_died(jobs.kernel, 4, 0)
    assert jobs.kernel.state.groups[6].ppid == 1
    assert run(jobs.world, child, SLAVE, SPGRP, BAD) == -errno.ENOTTY
    assert not tty.is_orphaned(jobs.kernel, 5)


# -- two at once


def together(jobs):
    """Both jobs want to be in front; the host executes the first one's call."""
    for task in (jobs.one, jobs.two):
        ignore_ttou(jobs.kernel, task)
        jobs.platform.memory(task.tid).write(AT, struct.pack("<i", task.tid))
    assert isinstance(ask(jobs.world, jobs.one, SLAVE, SPGRP), Execute)
    assert ask(jobs.world, jobs.two, SLAVE, SPGRP) is Reply.BLOCKED


def test_changes_have_their_turn(jobs):
    """Of two that the host executes at once nobody would know which came last."""
    together(jobs)
    assert jobs.world.dispatcher.executed(jobs.one, 0) == 0
    assert [tid for tid, _ in jobs.platform.executed] == [5]
    assert answer(jobs.world, jobs.shell, SLAVE, GPGRP) == 4
    assert jobs.world.dispatcher.executed(jobs.two, 0) == 0
    assert answer(jobs.world, jobs.shell, SLAVE, GPGRP) == 5
    assert jobs.kernel.changing_ttys == {}


def test_who_waits_is_asked_anew(jobs):
    """The first one is the leader, who gives the terminal up."""
    assert isinstance(ask(jobs.world, jobs.shell, SLAVE, NOTTY), Execute)
    ignore_ttou(jobs.kernel, jobs.one)
    jobs.platform.memory(4).write(AT, struct.pack("<i", 4))
    assert ask(jobs.world, jobs.one, SLAVE, SPGRP) is Reply.BLOCKED
    jobs.platform.host_ttys.clear()
    assert jobs.world.dispatcher.executed(jobs.shell, 0) == 0
    assert jobs.platform.completed == [(4, -errno.ENOTTY)]


def test_who_waits_may_be_in_the_background_by_then(jobs):
    jobs.platform.memory(4).write(AT, struct.pack("<i", 4))
    assert move(jobs.world, jobs.shell, 4) == 0
    ignore_ttou(jobs.kernel, jobs.two)
    jobs.platform.memory(5).write(AT, struct.pack("<i", 5))
    assert isinstance(ask(jobs.world, jobs.two, SLAVE, SPGRP), Execute)
    assert ask(jobs.world, jobs.one, SLAVE, SPGRP) is Reply.BLOCKED
    assert jobs.world.dispatcher.executed(jobs.two, 0) == 0
    assert jobs.platform.begun_anew == [4]
    assert pending(jobs.kernel.group(jobs.one)) == [(SIGTTOU, SI_KERNEL)]


def test_the_end_of_who_changes_it_is_the_next_ones_turn(jobs):
    together(jobs)
    task_exit.task_died(jobs.kernel, 4, 9)
    assert [tid for tid, _ in jobs.platform.executed] == [5]
    assert jobs.world.dispatcher.executed(jobs.two, 0) == 0
    assert answer(jobs.world, jobs.shell, SLAVE, GPGRP) == 5
    assert jobs.kernel.changing_ttys == {}


def test_the_end_or_a_handler_of_who_waits(jobs):
    together(jobs)
    delivery = Delivery(SigInfo(signo=10), handler=True, restart=False, stop=False)
    assert jobs.world.dispatcher.interrupt(jobs.two, delivery) == -513  # ERESTARTNOINTR: it has no EINTR natively
    assert ask(jobs.world, jobs.two, SLAVE, SPGRP) is Reply.BLOCKED
    task_exit.task_died(jobs.kernel, 5, 9)
    assert jobs.world.dispatcher.executed(jobs.one, 0) == 0
    assert jobs.platform.executed == [] and jobs.kernel.changing_ttys == {}


# -- acquiring and losing


def test_errors_of_acquiring(jobs):
    world, kernel = jobs.world, jobs.kernel
    assert run(world, jobs.one, OTHER, SCTTY, 0) == -errno.EPERM  # no leader
    assert run(world, jobs.shell, OTHER, SCTTY, 0) == -errno.EPERM  # has one
    leader = world.fork(jobs.shell, 6)
    sessions.new_session(kernel, kernel.group(leader))
    assert kernel.group(leader).tty == 0
    assert run(world, leader, SLAVE, SCTTY, 0) == run(world, leader, SLAVE, SCTTY, 1) == -errno.EPERM  # another's
    jobs.platform.terminals[6, OTHER] = Terminal(PTS1, readable=False)
    assert run(world, leader, OTHER, SCTTY, 0) == -errno.EPERM
    jobs.platform.terminals[6, OTHER] = Terminal(PTS1)
    assert run(world, leader, OTHER, SCTTY, 0, host=-errno.EPERM) == -errno.EPERM
    assert answer(world, leader, OTHER, GPGRP) == -errno.ENOTTY
    assert run(world, leader, OTHER, SCTTY, 0) == run(world, leader, OTHER, SCTTY, 0) == 0
    assert answer(world, leader, OTHER, GPGRP) == 6


def test_stealing_takes_the_argument_1_and_cap_sys_admin(jobs):
    leader = jobs.world.fork(jobs.shell, 6)
    sessions.new_session(jobs.kernel, jobs.kernel.group(leader))
    jobs.platform.capabilities = 1 << 21
    assert run(jobs.world, leader, SLAVE, SCTTY, 0) == -errno.EPERM
    assert run(jobs.world, leader, SLAVE, SCTTY, 1) == 0
    jobs.platform.host_ttys = {6: PTS0}
    assert answer(jobs.world, leader, SLAVE, GPGRP) == answer(jobs.world, leader, SLAVE, GSID) == 6
    for task in (jobs.shell, jobs.one):
        assert answer(jobs.world, task, SLAVE, GPGRP) == -errno.ENOTTY


def opened(jobs, tid, device):
    """A new session, whose leader has acquired a terminal without a trap."""
    leader = jobs.world.fork(jobs.shell, tid)
    sessions.new_session(jobs.kernel, jobs.kernel.group(leader))
    jobs.platform.host_ttys[tid] = device
    return leader


def test_what_was_acquired_by_open_is_adopted(jobs):
    leader = opened(jobs, 6, PTS1)
    assert jobs.kernel.group(leader).tty == 0
    assert answer(jobs.world, leader, OTHER, GPGRP) == answer(jobs.world, leader, OTHER, GSID) == 6
    assert run(jobs.world, leader, SLAVE, SCTTY, 0) == -errno.EPERM


def test_the_first_to_ask_may_be_a_child(jobs):
    leader = opened(jobs, 6, PTS1)
    child = jobs.world.fork(leader, 7)
    jobs.platform.host_ttys[7] = PTS1
    sessions.set_process_group(jobs.kernel, jobs.kernel.group(child), 0, 0)
    assert answer(jobs.world, child, OTHER, GPGRP) == 6
    assert jobs.kernel.group(child).tty == PTS1
    ignore_ttou(jobs.kernel, child)
    assert move(jobs.world, child, 7, OTHER) == 0
    assert answer(jobs.world, leader, OTHER, GPGRP) == 7


def test_or_who_holds_the_master(jobs):
    leader = opened(jobs, 6, PTS1)
    jobs.platform.terminals[2, MASTER] = Terminal(PTS1, master=True, session=0)
    assert answer(jobs.world, jobs.world.root, MASTER, GPGRP) == 0
    assert answer(jobs.world, jobs.world.root, MASTER, GSID) == -errno.ENOTTY
    jobs.platform.terminals[2, MASTER] = Terminal(PTS1, master=True, session=6)
    assert answer(jobs.world, jobs.world.root, MASTER, GPGRP) == answer(jobs.world, jobs.world.root, MASTER, GSID) == 6
    assert jobs.kernel.group(leader).tty == PTS1
    jobs.platform.terminals[6, MASTER] = Terminal(PTS1, master=True, session=6)
    assert run(jobs.world, leader, MASTER, NOTTY) == -errno.ENOTTY


def test_a_number_that_is_used_again_is_another_terminal(jobs):
    """The master was closed, and nobody has heard of it."""
    assert move(jobs.world, jobs.shell, 4) == 0
    for tid in (3, 4, 5):
        jobs.platform.host_ttys.pop(tid)
    leader = opened(jobs, 6, PTS0)
    assert answer(jobs.world, leader, SLAVE, GPGRP) == 6
    for task in (jobs.shell, jobs.one):
        assert answer(jobs.world, task, SLAVE, GPGRP) == -errno.ENOTTY
    second = opened(jobs, 7, 0)
    jobs.platform.host_ttys.pop(6)
    assert run(jobs.world, second, SLAVE, SCTTY, 0) == 0  # that of 6 is not held any more


@pytest.mark.parametrize("code", [SI_KERNEL, SI_USER])
def test_a_hangup_is_heard_of(jobs, code):
    for tid in (3, 4, 5):
        jobs.platform.host_ttys.pop(tid)
    host_signal(jobs.kernel, jobs.shell, SigInfo(signo=SIGHUP, code=code))
    assert jobs.kernel.group(jobs.shell).tty == 0 and jobs.kernel.state.ttys == {}
    # It takes the same number again: the group that was in front is not.
    jobs.platform.host_ttys[3] = PTS0
    assert answer(jobs.world, jobs.shell, SLAVE, GPGRP) == 3
    assert answer(jobs.world, jobs.one, SLAVE, GPGRP) == -errno.ENOTTY


@pytest.mark.parametrize("taken_first", [True, False])
def test_members_lose_it_before_the_leaders_end_is_heard_of(jobs, taken_first):
    """The foreground group is told by the host, which takes the terminal from all a little before or after that."""
    if taken_first:
        jobs.platform.host_ttys.clear()
    host_signal(jobs.kernel, jobs.one, SigInfo(signo=SIGHUP, code=SI_KERNEL))
    jobs.platform.host_ttys.clear()
    for task in (jobs.one, jobs.two):
        assert answer(jobs.world, task, SLAVE, GPGRP) == -errno.ENOTTY
    task_exit.task_died(jobs.kernel, 3, 0)
    assert jobs.kernel.state.ttys == {}


def test_a_sighup_for_another_reason_changes_nothing(jobs):
    host_signal(jobs.kernel, jobs.shell, SigInfo(signo=SIGHUP, code=SI_KERNEL))
    assert jobs.kernel.group(jobs.shell).tty == PTS0 and PTS0 in jobs.kernel.state.ttys


def test_a_leader_that_blocks_sighup_is_not_heard_of_and_so_asked(jobs):
    jobs.shell.mask = bit(SIGHUP)
    jobs.platform.host_ttys[3] = PTS1
    assert answer(jobs.world, jobs.shell, OTHER, GPGRP) == 3
    assert answer(jobs.world, jobs.shell, SLAVE, GPGRP) == -errno.ENOTTY


def test_the_leaders_end(jobs):
    task_exit.task_died(jobs.kernel, 3, 0)
    jobs.platform.host_ttys.clear()
    assert jobs.kernel.state.ttys == {}
    assert answer(jobs.world, jobs.one, SLAVE, GPGRP) == -errno.ENOTTY


def test_another_members_end(jobs):
    task_exit.task_died(jobs.kernel, 4, 0)
    assert answer(jobs.world, jobs.shell, SLAVE, GPGRP) == 3


def test_giving_it_up(jobs):
    assert run(jobs.world, jobs.one, SLAVE, NOTTY) == 0
    assert run(jobs.world, jobs.one, SLAVE, NOTTY) == answer(jobs.world, jobs.one, SLAVE, GPGRP) == -errno.ENOTTY
    assert answer(jobs.world, jobs.shell, SLAVE, GPGRP) == 3
    assert run(jobs.world, jobs.shell, OTHER, NOTTY) == -errno.ENOTTY
    assert run(jobs.world, jobs.shell, SLAVE, NOTTY) == 0
    jobs.platform.host_ttys.clear()
    for task in (jobs.shell, jobs.two):
        assert answer(jobs.world, task, SLAVE, GPGRP) == -errno.ENOTTY
    assert jobs.kernel.state.ttys == {}


# -- terminals from outside


def test_a_terminal_from_outside_is_another_one(jobs):
    """Its devpts counts from 0 too: the first one there has the number of the first one here."""
    root = jobs.kernel.group(jobs.world.root)
    tty.attach_host_terminal(jobs.kernel, root, PTS0, 2)
    jobs.platform.host_ttys[2] = PTS0
    assert answer(jobs.world, jobs.world.root, HOST, GPGRP) == 2
    assert answer(jobs.world, jobs.world.root, SLAVE, GPGRP) == -errno.ENOTTY
    assert answer(jobs.world, jobs.shell, HOST, GPGRP) == -errno.ENOTTY
    assert answer(jobs.world, jobs.shell, SLAVE, GPGRP) == 3
    assert answer(jobs.world, jobs.world.root, ALIAS, GPGRP) == 2  # /dev/tty
    assert answer(jobs.world, jobs.shell, ALIAS, GPGRP) == 3
    assert tty.foreground(jobs.kernel, PTS0) == 2
    tty.foreground_moved(jobs.kernel, PTS0, 0)
    assert tty.foreground(jobs.kernel, PTS0) == answer(jobs.world, jobs.world.root, HOST, GPGRP) == 0
    assert tty.foreground(jobs.kernel, PTS1) == 0


def test_a_session_of_outside_has_a_terminal_of_outside(jobs):
    root = jobs.kernel.group(jobs.world.root)
    root.sid = root.pgid = 0
    jobs.platform.host_ttys[2] = PTS0
    assert answer(jobs.world, jobs.world.root, HOST, GPGRP) == answer(jobs.world, jobs.world.root, HOST, GSID) == 0
    assert answer(jobs.world, jobs.world.root, SLAVE, GPGRP) == -errno.ENOTTY
