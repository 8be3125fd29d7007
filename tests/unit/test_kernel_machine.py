"""Any order of what can happen to a kernel, by hypothesis: no exception, no lost signal, every index right.

The machine plays the guests and the host: it makes calls, executes what the kernel hands to the host, brings
threads to the delivery stops that the kernel asked for, and lets tasks die and time pass.
"""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kernel_fixture import World

from trapline.sentry.kernel import family, signal_settle, task_exec, task_exit, task_stop
from trapline.sentry.kernel.block import Execute, Reply
from trapline.sentry.kernel.signal_deliver import next_delivery
from trapline.sentry.kernel.signal_send import deliverable, mask_changed
from trapline.sentry.kernel.signals import DEFAULT_IGNORE, SIGCONT, SIGKILL, SIGSTOP, bit
from trapline.sentry.kernel.state import Task, TaskStatus, ThreadGroup
from trapline.sentry.kernel.task_clone import CLONE_THREAD

SIGNALS = st.sampled_from([10, 10, 10, 34, 34, 14, 17, SIGCONT, SIGSTOP, 23])
NUMBERS = st.integers(0, 1 << 16)
MASKS = st.sampled_from([0, 0, bit(10), bit(10) | bit(34), (1 << 64) - 1])
STRUCT, SECOND = 0x1000, 0x2000
HANDLER = 0x400000


class KernelMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.kernel = self.world.kernel
        self.platform = self.world.platform
        self.next_tid = 3
        self.poked: set[int] = set()
        #: Masks of threads whose handler the host did not run, as it has them until their next call or stop.
        self.unframed: dict[int, int] = {}
        self.platform.host_mask = self.host_mask  # type: ignore[method-assign]

    # -- choosing
    def tasks(self) -> list[Task]:
        """Those that run: they can make a call."""
        found = self.kernel.state.tasks.values()
        return [t for t in found if t.status == TaskStatus.RUNNING and t.call is None]

    def pick(self, number: int) -> Task:
        running = self.tasks()
        return running[number % len(running)]

    def any_group(self, number: int) -> ThreadGroup:
        groups = list(self.kernel.state.groups.values())
        return groups[number % len(groups)]

    # -- the host's part
    def call(self, task: Task, name: str, *args: int) -> Any:
        reply = self.world.call(task, name, *args)
        self.unframed.pop(task.tid, None)
        assert not task.unsure
        while isinstance(reply, Execute):
            request = reply.args or (0,)
            reply = self.world.dispatcher.executed(task, request[1] if name == "waitid" else request[0])
        self.settle()
        return reply

    def host_mask(self, tid: int) -> int:
        task = self.kernel.task(tid)
        return self.unframed.get(tid, task.mask) & task.unsure | task.mask & ~task.unsure

    def settle(self) -> None:
        """Do what the kernel asked of the host."""
        self.platform.executed, executed = [], self.platform.executed
        for tid, request in executed:
            task = self.kernel.state.tasks.get(tid)
            if task is not None and request.args:
                self.world.dispatcher.executed(task, request.args[0])
                task.call = None
        for tid, _ in self.platform.pokes:
            self.poked.add(tid)
        self.platform.pokes.clear()
        self.platform.continued, continued = [], self.platform.continued
        for tgid in continued:
            group = self.kernel.state.groups.get(tgid)
            for tid in group.threads if group else ():
                task_stop.thread_goes_on(self.kernel.task(tid))
                self.poked.add(tid)
        self.platform.killed, killed = [], self.platform.killed
        for tgid in killed:
            self.end(tgid, SIGKILL)

    def end(self, tgid: int, status: int) -> None:
        """A whole process dies; the leader's death is reported last."""
        group = self.kernel.state.groups.get(tgid)
        if group is None or group.exit_status >= 0 or tgid == self.kernel.state.root_tgid:
            return
        for tid in [t for t in group.threads if t != tgid] + [tgid]:
            task_exit.task_died(self.kernel, tid, status)
            self.poked.discard(tid)
        self.settle()

    def write(self, task: Task, address: int, data: bytes) -> None:
        self.platform.memory(task.tid).write(address, data)

    # -- life
    @precondition(lambda self: self.tasks() and len(self.kernel.state.tasks) < 12)
    @rule(number=NUMBERS, thread=st.booleans())
    def clone(self, number: int, thread: bool) -> None:
        self.world.fork(self.pick(number), self.next_tid, CLONE_THREAD if thread else 0)
        self.next_tid += 1

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS)
    def execute_program(self, number: int) -> None:
        task = self.pick(number)
        former = task.tid
        task_exec.exec_done(self.kernel, task.tgid, former)
        if former in self.poked:
            self.poked.add(task.tgid)
        self.poked &= set(self.kernel.state.tasks)
        group = self.kernel.group(task)
        if deliverable(group, task):
            self.poked.add(task.tid)  # the host's pending pokes of the process come to the one that is left

    @rule(number=NUMBERS, code=st.integers(0, 255))
    def exit_group(self, number: int, code: int) -> None:
        self.end(self.any_group(number).tgid, code << 8)

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS)
    def exit_thread(self, number: int) -> None:
        task = self.pick(number)
        if task.tid != task.tgid:
            group = self.kernel.group(task)
            task_exit.task_died(self.kernel, task.tid, 0)
            if task.tid in self.poked:
                self.poked.discard(task.tid)
                # The host brings a signal to the process that waits to another thread (retarget_shared_pending).
                self.poked |= {t for t in group.threads if deliverable(group, self.kernel.task(t))}
            self.settle()

    # -- signals
    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, whom=NUMBERS, signo=SIGNALS)
    def kill(self, number: int, whom: int, signo: int) -> None:
        self.call(self.pick(number), "kill", self.any_group(whom).tgid, signo)

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, whom=NUMBERS, signo=SIGNALS)
    def kill_group(self, number: int, whom: int, signo: int) -> None:
        if signo != SIGSTOP:
            self.call(self.pick(number), "kill", -self.any_group(whom).pgid, signo)

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, whom=NUMBERS, signo=SIGNALS)
    def tkill(self, number: int, whom: int, signo: int) -> None:
        tids = sorted(self.kernel.state.tasks)
        self.call(self.pick(number), "tkill", tids[whom % len(tids)], signo)

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, whom=NUMBERS)
    def kill_hard(self, number: int, whom: int) -> None:
        self.call(self.pick(number), "kill", self.any_group(whom).tgid, SIGKILL)

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, how=st.integers(0, 2), mask=MASKS)
    def sigprocmask(self, number: int, how: int, mask: int) -> None:
        task = self.pick(number)
        self.write(task, STRUCT, struct.pack("<Q", mask))
        assert self.call(task, "rt_sigprocmask", how, STRUCT, 0, 8) is Reply.HOST

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, signo=SIGNALS, entry=st.sampled_from([0, 1, HANDLER]), mask=MASKS)
    def sigaction(self, number: int, signo: int, entry: int, mask: int) -> None:
        task = self.pick(number)
        self.write(task, STRUCT, struct.pack("<QQQQ", entry, 0, 0, mask))
        self.call(task, "rt_sigaction", signo, STRUCT, 0, 8)

    @precondition(lambda self: self.poked)
    @rule(number=NUMBERS)
    def deliver(self, number: int) -> None:
        """One of the threads that were poked comes to its stop."""
        poked = sorted(self.poked)
        tid = poked[number % len(poked)]
        self.poked.discard(tid)
        task = self.kernel.state.tasks.get(tid)
        if task is None or task.status == TaskStatus.STOPPED:
            return
        group = self.kernel.group(task)
        if task.unsure:
            signal_settle.settle(self.kernel, task)
        self.unframed.pop(tid, None)
        before = task.mask
        delivery = next_delivery(self.kernel, task)
        if task.call is not None:
            self.world.dispatcher.interrupt(task, delivery)
        if delivery is not None and not delivery.handler:
            if delivery.stop:
                for thread in group.threads:
                    task_stop.thread_stopped(self.kernel, self.kernel.task(thread), delivery.info.signo)
            else:
                assert not DEFAULT_IGNORE & bit(delivery.info.signo)
                self.end(group.tgid, delivery.info.signo)
        if tid in self.kernel.state.tasks and deliverable(group, task):
            self.poked.add(tid)  # pokes.poke_again
        if delivery is not None and delivery.handler and task.unsure & bit(delivery.info.signo) and number % 3 == 0:
            self.unframed[tid] = before  # another thread had set it to be ignored by then, so no handler runs
        elif delivery is not None and delivery.handler and number % 4:
            during, task.mask = task.mask, before  # the handler returns, rt_sigreturn is seen
            mask_changed(self.kernel, task, during)
        self.settle()

    # -- waiting
    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, options=st.sampled_from([0, 1, 1 | 2, 1 | 8, 2 | 8]), kind=st.sampled_from([-1, 0, 5]))
    def wait4(self, number: int, options: int, kind: int) -> None:
        task = self.pick(number)
        children = list(self.kernel.group(task).children)
        pid = children[number % len(children)] if kind == 5 and children else min(kind, 0)
        self.call(task, "wait4", pid, 0, options, 0)

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, milliseconds=st.integers(0, 50))
    def sleep(self, number: int, milliseconds: int) -> None:
        task = self.pick(number)
        self.write(task, STRUCT, struct.pack("<qq", 0, milliseconds * 1_000_000))
        self.call(task, "nanosleep", STRUCT, 0)

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, mask=MASKS, milliseconds=st.integers(0, 50))
    def sigtimedwait(self, number: int, mask: int, milliseconds: int) -> None:
        task = self.pick(number)
        self.write(task, STRUCT, struct.pack("<Q", mask))
        self.write(task, SECOND, struct.pack("<qq", 0, milliseconds * 1_000_000))
        self.call(task, "rt_sigtimedwait", STRUCT, 0, SECOND, 8)

    # -- groups and time
    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, whom=NUMBERS, group=NUMBERS)
    def setpgid(self, number: int, whom: int, group: int) -> None:
        self.call(self.pick(number), "setpgid", self.any_group(whom).tgid, self.any_group(group).pgid)

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS)
    def setsid(self, number: int) -> None:
        self.call(self.pick(number), "setsid")

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, milliseconds=st.integers(0, 30), period=st.integers(0, 10))
    def setitimer(self, number: int, milliseconds: int, period: int) -> None:
        task = self.pick(number)
        self.write(task, STRUCT, struct.pack("<qqqq", 0, period * 1000, 0, milliseconds * 1000))
        assert self.call(task, "setitimer", 0, STRUCT, 0) == 0

    @precondition(lambda self: self.tasks())
    @rule(number=NUMBERS, milliseconds=st.integers(0, 30))
    def posix_timer(self, number: int, milliseconds: int) -> None:
        task = self.pick(number)
        if self.call(task, "timer_create", 1, 0, SECOND) == 0:
            (timer,) = struct.unpack("<i", self.platform.memory(task.tid).read(SECOND, 4))
            self.write(task, STRUCT, struct.pack("<qqqq", 0, 0, 0, milliseconds * 1_000_000))
            assert self.call(task, "timer_settime", timer, 0, STRUCT, 0) == 0
            if milliseconds % 3 == 0:
                assert self.call(task, "timer_delete", timer) == 0

    @rule(milliseconds=st.integers(0, 40))
    def advance(self, milliseconds: int) -> None:
        self.world.advance(milliseconds * 1_000_000)
        self.settle()

    # -- what must always hold
    @invariant()
    def tasks_and_groups_agree(self) -> None:
        state = self.kernel.state
        for tid, task in state.tasks.items():
            assert task.tid == tid and tid in state.groups[task.tgid].threads
        for tgid, group in state.groups.items():
            assert group.tgid == tgid and all(tid in state.tasks for tid in group.threads)
            assert (group.exit_status >= 0) == (not group.threads)
            parent = state.groups.get(group.ppid)
            if group.exit_status >= 0:
                assert parent is not None and parent.threads, "a zombie without anybody to reap it"
                assert not group.pending and not group.children and not group.itimers
            if parent is not None:
                assert tgid in parent.children
            assert all(state.groups[child].ppid == tgid for child in group.children)

    @invariant()
    def indexes_are_right(self) -> None:
        state = self.kernel.state
        found: dict[int, set[int]] = {}
        for tgid, group in state.groups.items():
            found.setdefault(group.pgid, set()).add(tgid)
        assert {pgid: set(members) for pgid, members in state.process_groups.items()} == found
        for group in state.groups.values():
            reporting = [g.tgid for g in family.reporters(state, group)]
            assert reporting == [c for c in group.children if family.has_report(state.groups[c])]

    @invariant()
    def no_signal_is_lost(self) -> None:
        """What a thread could take now, one of its process has been called for."""
        state = self.kernel.state
        for tid, task in state.tasks.items():
            group = state.groups[task.tgid]
            if task.status == TaskStatus.STOPPED or not deliverable(group, task):
                continue
            waits = self.kernel.signal_waiters.get(tid, 0)
            own = [p for p in task.pending if not task.mask & bit(p.signo)]
            if own and not waits:
                assert tid in self.poked, f"{own} of {tid}"
            assert self.poked & set(group.threads), f"{group.pending} of {group.tgid}"

    @invariant()
    def calls_are_alive(self) -> None:
        state, dispatcher = self.kernel.state, self.world.dispatcher
        assert not dispatcher.crashes
        assert set(dispatcher.running) | set(dispatcher.results) <= set(state.tasks)
        assert set(self.kernel.signal_waiters) <= set(dispatcher.running)
        for tids in self.kernel.waiters.values():
            assert set(tids) <= set(dispatcher.running)
        for key in state.timers:
            kind, _, name = key.partition(":")
            if kind == "sleep":
                assert int(name) in dispatcher.running

    @invariant()
    def state_is_plain(self) -> None:
        self.world.check_plain()


KernelMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestKernelMachine = KernelMachine.TestCase
