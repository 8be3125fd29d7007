"""Sending, queueing, choosing and delivering, with no process."""

import errno
import struct

import pytest

from trapline.sentry.kernel import signal_lend, signal_send, signal_settle, task_exit, task_stop
from trapline.sentry.kernel.block import Outcome, Reply
from trapline.sentry.kernel.signal_deliver import host_signal, next_delivery
from trapline.sentry.kernel.signals import (
    SA_NODEFER,
    SA_RESETHAND,
    SIG_IGN,
    SIGCHLD,
    SIGCONT,
    SIGKILL,
    SIGSEGV,
    SIGSTOP,
    SIGTSTP,
    SIGUSR1,
    SIGUSR2,
    bit,
    pack_siginfo,
    unpack_siginfo,
)
from trapline.sentry.kernel.state import SigAction, SigInfo

CLONE_THREAD = 0x10000
HANDLER = SigAction(handler=0x400000)


def group(world, tid=2):
    return world.kernel.state.groups[tid]


def test_standard_signals_merge_and_real_time_ones_queue(world):
    world.root.mask = bit(SIGUSR1) | bit(40)
    group(world).actions[SIGUSR1] = group(world).actions[40] = HANDLER
    for value in range(3):
        world.kernel.send_signal(2, SigInfo(SIGUSR1, value=value))
        world.kernel.send_signal(2, SigInfo(40, value=value))
    assert [p.value for p in group(world).pending if p.signo == SIGUSR1] == [0]
    assert [p.value for p in group(world).pending if p.signo == 40] == [0, 1, 2]


def test_dead_target_is_esrch(world):
    world.fork(world.root, 3)
    task_exit.task_died(world.kernel, 3, 0)
    with pytest.raises(OSError) as caught:
        signal_send.send(world.kernel, group(world, 3), SigInfo(SIGUSR1))
    assert caught.value.errno == errno.ESRCH


def test_shared_signal_goes_to_a_thread_that_does_not_block_it(world):
    group(world).actions[SIGUSR1] = HANDLER
    world.root.mask = bit(SIGUSR1)
    world.fork(world.root, 7, CLONE_THREAD).mask = 0
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    assert world.platform.pokes == [(7, SIGUSR1)]


def test_shared_signal_moves_on_when_its_thread_blocks_it(world):
    group(world).actions[SIGUSR1] = HANDLER
    world.fork(world.root, 7, CLONE_THREAD)
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    assert world.platform.pokes == [(2, SIGUSR1)]
    world.platform.memory(2).write(0x1000, struct.pack("<Q", bit(SIGUSR1)))
    assert world.call(world.root, "rt_sigprocmask", 0, 0x1000, 0, 8) is Reply.HOST
    assert world.platform.pokes[-1] == (7, SIGUSR1)


def test_unblocking_pokes(world):
    group(world).actions[SIGUSR1] = HANDLER
    world.root.mask = bit(SIGUSR1)
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    assert world.platform.pokes == []
    world.platform.memory(2).write(0x1000, struct.pack("<Q", bit(SIGUSR1)))
    world.call(world.root, "rt_sigprocmask", 1, 0x1000, 0, 8)
    assert world.platform.pokes == [(2, SIGUSR1)]
    assert next_delivery(world.kernel, world.root).info.signo == SIGUSR1


def test_ignored_signals_are_dropped_and_blocked_ignored_ones_kept(world):
    group(world).actions[SIGUSR1] = SigAction(handler=SIG_IGN)
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    world.kernel.send_signal(2, SigInfo(SIGCHLD))
    assert group(world).pending == []
    world.root.mask = bit(SIGUSR1)
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    assert len(group(world).pending) == 1


def test_handler_mask_is_the_mirror_of_the_hosts(world):
    group(world).actions[SIGUSR1] = SigAction(handler=0x1000, mask=bit(SIGUSR2))
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    next_delivery(world.kernel, world.root)
    assert world.root.mask == bit(SIGUSR1) | bit(SIGUSR2)


def test_nodefer_and_resethand(world):
    group(world).actions[SIGUSR1] = SigAction(handler=0x1000, flags=SA_NODEFER | SA_RESETHAND)
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    assert next_delivery(world.kernel, world.root).handler
    assert world.root.mask == 0
    assert SIGUSR1 not in group(world).actions


def test_lowest_number_first_and_own_before_shared(world):
    for signo in (SIGUSR1, SIGUSR2, 40):
        group(world).actions[signo] = SigAction(handler=0x1000, flags=SA_NODEFER)
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    world.kernel.send_signal(2, SigInfo(40), 2)
    world.kernel.send_signal(2, SigInfo(SIGUSR2), 2)
    order = []
    while (d := next_delivery(world.kernel, world.root)) is not None:
        order.append(d.info.signo)
    assert order == [SIGUSR2, 40, SIGUSR1]


def test_fault_kills_when_blocked_or_ignored(world):
    group(world).actions[SIGSEGV] = HANDLER
    world.root.mask = bit(SIGSEGV)
    host_signal(world.kernel, world.root, SigInfo(SIGSEGV, code=1, fields=b"\0" * 112))
    delivery = next_delivery(world.kernel, world.root)
    assert delivery.info.signo == SIGSEGV and not delivery.handler


def test_hosts_sigchld_is_not_the_kernels(world):
    group(world).actions[SIGCHLD] = HANDLER
    host_signal(world.kernel, world.root, SigInfo(SIGCHLD, code=1))
    assert next_delivery(world.kernel, world.root) is None


def test_sigkill_needs_no_delivery(world):
    world.kernel.send_signal(2, SigInfo(SIGKILL))
    assert world.platform.killed == [2]


def test_cont_removes_stops_and_stops_remove_cont(world):
    world.root.mask = bit(SIGTSTP) | bit(SIGCONT)
    group(world).actions[SIGCONT] = HANDLER
    world.kernel.send_signal(2, SigInfo(SIGTSTP))
    world.kernel.send_signal(2, SigInfo(SIGCONT))
    assert [p.signo for p in group(world).pending] == [SIGCONT]
    world.kernel.send_signal(2, SigInfo(SIGTSTP))
    assert [p.signo for p in group(world).pending] == [SIGTSTP]


def test_a_process_is_stopped_when_all_its_threads_are(world):
    child = world.fork(world.root, 3)
    second = world.fork(child, 4, CLONE_THREAD)
    group(world).actions[SIGCHLD] = HANDLER
    task_stop.thread_stopped(world.kernel, child, SIGSTOP)
    assert group(world).pending == []
    task_stop.thread_stopped(world.kernel, second, SIGSTOP)
    info = group(world).pending[0]
    assert (info.signo, info.code, info.pid, info.status) == (SIGCHLD, 5, 3, SIGSTOP)


def test_kill_errors(world):
    world.fork(world.root, 3)
    assert world.call(world.root, "kill", 99, 0) == -errno.ESRCH
    assert world.call(world.root, "kill", 3, 65) == -errno.EINVAL
    assert world.call(world.root, "kill", 3, 0) == 0
    world.platform.capabilities = 0
    world.platform.uids = {2: (1, 1, 1), 3: (2, 2, 2)}
    assert world.call(world.root, "kill", 3, 10) == -errno.EPERM
    assert world.call(world.root, "kill", 3, SIGCONT) == 0  # same session
    assert world.call(world.root, "tgkill", 3, 2, 10) == -errno.ESRCH


def test_kill_of_the_sandboxs_init(world):
    """It takes nothing, and is root's (or whose the sandbox is): others are told that they may not."""
    world.kernel.state.init_uid = 7
    assert world.call(world.root, "kill", 1, 15) == 0
    world.platform.capabilities = 0
    world.platform.uids = {2: (1, 1, 1)}
    assert world.call(world.root, "kill", 1, 0) == world.call(world.root, "kill", 1, 15) == -errno.EPERM
    world.platform.uids = {2: (7, 1, 1)}
    assert world.call(world.root, "kill", 1, 15) == 0
    assert world.call(world.root, "kill", 1, 65) == -errno.EINVAL


def test_only_oneself_may_be_sent_kernel_codes(world):
    world.fork(world.root, 3)
    world.platform.memory(2).write(0x1000, pack_siginfo(SigInfo(SIGUSR1, code=0)))
    assert world.call(world.root, "rt_sigqueueinfo", 3, SIGUSR1, 0x1000) == -errno.EPERM
    world.platform.memory(2).write(0x1000, pack_siginfo(SigInfo(SIGUSR1, code=-1, value=77)))
    group(world, 3).actions[SIGUSR1] = HANDLER
    assert world.call(world.root, "rt_sigqueueinfo", 3, SIGUSR1, 0x1000) == 0
    assert struct.unpack_from("<Q", group(world, 3).pending[0].fields, 8) == (77,)


def test_siginfo_round_trip():
    raw = pack_siginfo(SigInfo(SIGUSR1, code=-1, pid=5, uid=6, value=0x123456789))
    assert pack_siginfo(unpack_siginfo(raw)) == raw
    assert len(raw) == 128


def test_sigtimedwait_takes_before_a_handler_would(world):
    group(world).actions[SIGUSR1] = HANDLER
    world.root.mask = bit(SIGUSR1)
    world.platform.memory(2).write(0x1000, struct.pack("<Q", bit(SIGUSR1)))
    assert world.call(world.root, "rt_sigtimedwait", 0x1000, 0x2000, 0, 8) is Reply.BLOCKED
    world.kernel.send_signal(2, SigInfo(SIGUSR1, pid=9))
    assert world.platform.completed == [(2, SIGUSR1)]
    assert group(world).pending == []
    assert struct.unpack("<i", world.platform.memory(2).read(0x2000, 4)) == (SIGUSR1,)


def test_sigtimedwait_times_out(world):
    world.platform.memory(2).write(0x1000, struct.pack("<Q", bit(SIGUSR1)))
    world.platform.memory(2).write(0x1010, struct.pack("<qq", 1, 0))
    assert world.call(world.root, "rt_sigtimedwait", 0x1000, 0, 0x1010, 8) is Reply.BLOCKED
    world.advance(1_000_000_000)
    assert world.platform.completed == [(2, -errno.EAGAIN)]


def test_a_siginfo_that_looks_like_a_faults_is_none(world):
    """rt_tgsigqueueinfo to oneself may say anything; blocked it waits, and does not kill."""
    group(world).actions[SIGSEGV] = HANDLER
    world.root.mask = bit(SIGSEGV)
    world.kernel.send_signal(2, SigInfo(SIGSEGV, code=1), tid=2)
    assert next_delivery(world.kernel, world.root) is None
    world.root.mask = 0
    delivery = next_delivery(world.kernel, world.root)
    assert delivery is not None and delivery.handler


def test_signals_of_faults_are_taken_before_lower_numbers(world):
    """Linux next_signal, also when another process sent them."""
    for signo in (SIGUSR1, SIGSEGV, 1):
        group(world).actions[signo] = HANDLER
        world.kernel.send_signal(2, SigInfo(signo))
    assert [next_delivery(world.kernel, world.root).info.signo for _ in range(3)] == [SIGSEGV, 1, SIGUSR1]


def test_what_the_host_holds_back_is_pending_and_ends_a_wait(world):
    """SIGPIPE while it is blocked: the host has it, the kernel hears of it when the mask lets it stop the thread."""
    memory = world.platform.memory(2)
    memory.write(0x1000, struct.pack("<Q", bit(13)))
    memory.write(0x1010, struct.pack("<qq", 0, 0))
    world.root.mask = bit(13)
    assert world.call(world.root, "rt_sigtimedwait", 0x1000, 0, 0x1010, 8) == -errno.EAGAIN
    assert world.platform.opened == []
    world.platform.held[2] = bit(13)
    assert world.call(world.root, "rt_sigpending", 0x1020, 8) == 0
    assert struct.unpack("<Q", memory.read(0x1020, 8)) == (bit(13),)
    assert world.call(world.root, "rt_sigtimedwait", 0x1000, 0, 0x1010, 8) is Reply.BLOCKED
    assert world.platform.opened == [(2, bit(13))]
    world.platform.held[2] = 0
    host_signal(world.kernel, world.root, SigInfo(13))
    world.dispatcher.resume(world.root, Outcome.WOKEN)
    assert world.dispatcher.interrupt(world.root, None) is None  # it has reached the guest: `deliver`
    assert world.platform.completed == [(2, 13)]


def test_a_wait_without_time_ends_though_another_thread_took_the_signal(world):
    memory = world.platform.memory(2)
    memory.write(0x1000, struct.pack("<Q", bit(13)))
    memory.write(0x1010, struct.pack("<qq", 0, 0))
    world.root.mask, world.platform.held[2] = bit(13), bit(13)
    assert world.call(world.root, "rt_sigtimedwait", 0x1000, 0, 0x1010, 8) is Reply.BLOCKED
    world.platform.held[2] = 0
    world.advance(20_000_000)
    assert world.platform.completed == [(2, -errno.EAGAIN)]


def test_real_time_signals_of_the_host_queue(world):
    """F_SETSIG: one for each event."""
    group(world).actions[40] = HANDLER
    world.root.mask = bit(40)
    for _ in range(3):
        host_signal(world.kernel, world.root, SigInfo(40, code=1))
    assert len(group(world).pending) == 3


def test_what_a_signalfd_may_look_for_moves_to_the_host(world):
    """Only what is blocked, and only of its mask; a child inherits the descriptor."""
    world.root.mask = bit(SIGUSR1) | bit(SIGUSR2)
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    assert world.platform.lendings == []
    world.platform.memory(2).write(0x1000, struct.pack("<Q", bit(SIGUSR1) | bit(SIGCHLD)))
    assert world.call(world.root, "signalfd4", -1, 0x1000, 8, 0) is Reply.HOST
    assert world.platform.lendings == [(2, SIGUSR1, True)]
    assert signal_lend.lent(world.kernel, world.root, SIGUSR1).signo == SIGUSR1
    assert group(world).pending == [] and signal_lend.lent(world.kernel, world.root, SIGUSR1) is None
    world.platform.lendings.clear()
    for signo in (SIGUSR2, SIGCHLD):
        world.kernel.send_signal(2, SigInfo(signo))
    world.kernel.send_signal(2, SigInfo(SIGUSR1), tid=2)
    child = world.fork(world.root, 3)
    world.kernel.send_signal(child.tgid, SigInfo(SIGUSR1))
    assert world.platform.lendings == [(2, SIGUSR1, False), (3, SIGUSR1, True)]
    world.check_plain()


def test_a_signal_that_comes_to_be_blocked_by_all_moves_to_the_host(world):
    group(world).actions[SIGUSR1] = HANDLER
    group(world).watched = bit(SIGUSR1)
    other = world.fork(world.root, 7, CLONE_THREAD)
    other.mask = bit(SIGUSR1)
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    assert world.platform.pokes == [(2, SIGUSR1)] and world.platform.lendings == []
    before, world.root.mask = world.root.mask, bit(SIGUSR1)
    signal_send.mask_changed(world.kernel, world.root, before)
    assert world.platform.lendings == [(2, SIGUSR1, True)]


@pytest.fixture
def contested(world):
    """A second thread, which takes SIGUSR1, and a first one that blocks it and has set it to be ignored and caught."""
    group(world).actions[SIGUSR1] = HANDLER
    world.root.mask = bit(SIGUSR1)
    taker = world.fork(world.root, 7, CLONE_THREAD)
    taker.mask = 0
    for entry in (SIG_IGN, HANDLER.handler):
        set_handler(world, entry)
    return taker


def set_handler(world, entry):
    world.platform.memory(2).write(0x1000, struct.pack("<QQQQ", entry, 0, 0, 0))
    assert world.call(world.root, "rt_sigaction", SIGUSR1, 0x1000, 0, 8) is Reply.HOST


def take(world, taker):
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    assert world.platform.pokes.pop() == (7, SIGUSR1)
    delivery = next_delivery(world.kernel, taker)
    assert delivery is not None and delivery.handler
    assert taker.mask & bit(SIGUSR1)


@pytest.mark.parametrize("ran", [True, False])
def test_a_handler_that_the_host_did_not_run_does_not_block_its_signal(world, contested, ran):
    """It found the signal ignored when the thread went on."""
    take(world, contested)
    world.platform.masks[7] = bit(SIGUSR1) if ran else 0
    signal_settle.settle(world.kernel, contested)
    assert contested.mask == (bit(SIGUSR1) if ran else 0)
    assert not contested.unsure
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    assert world.platform.pokes == ([] if ran else [(7, SIGUSR1)])


def test_who_is_sent_the_signal_is_looked_at_before_its_next_call(world, contested):
    take(world, contested)
    world.platform.masks[7] = 0
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    assert (7, SIGUSR1) in world.platform.pokes
    # The look may have come before the frame: what a call says is what counts.
    assert contested.unsure
    world.platform.masks[7] = bit(SIGUSR1)
    signal_settle.settle(world.kernel, contested)
    assert contested.mask == bit(SIGUSR1)


def test_who_was_given_a_signal_that_is_ignored_now_is_unsure(world):
    group(world).actions[SIGUSR1] = HANDLER
    taker = world.fork(world.root, 7, CLONE_THREAD)
    world.kernel.send_signal(2, SigInfo(SIGUSR1))
    world.root.mask = bit(SIGUSR1)
    assert next_delivery(world.kernel, taker) is not None
    assert not taker.unsure, "no disposition has changed"
    set_handler(world, SIG_IGN)
    assert taker.unsure == bit(SIGUSR1)
    assert not world.root.unsure


def test_a_signal_that_a_mask_kept_while_it_was_ignored_is_poked_for_again(world, contested):
    set_handler(world, SIG_IGN)
    world.kernel.send_signal(2, SigInfo(SIGUSR1))  # the first thread's mask keeps it
    assert group(world).pending
    world.platform.pokes.clear()  # and the host drops the poke
    set_handler(world, HANDLER.handler)
    assert world.platform.pokes == [(7, SIGUSR1)]
