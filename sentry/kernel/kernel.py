"""The kernel: its state, and what its parts share.

The parts are modules of functions that take the kernel first: task_clone, task_exec, task_exit, task_wait,
signal_send, signal_deliver, sessions. They change `KernelState` and ask the `Platform` for what only the
host can do.

Order, relied on everywhere and checked in tests/unit/test_kernel_order.py. One thread runs the kernel, so there are
no locks; in their place:

1. *Between two awaits nothing comes in between; over an await anything may.* An exec then has other dispositions
   and one thread, a flush another list in place of `pending`. So a call looks up again what it needs, and never keeps
   `actions`, `pending` or `threads` of a process over `block` or `execute`.
2. *A wake-up runs the woken call at once*, up to its own next await, inside the waker's step. So a waker changes
   first and wakes last: a signal is in its queue, an end in `reports`, before anybody is woken for it.
3. *Who sends needs the target's thread group and nothing else.* It holds its threads with their masks and queues,
   and whether it has ended (`exit_status`, set once `threads` is empty). The index of all threads, `KernelState.tasks`,
   is not looked at: a send costs the same among any number of processes, and can come from anywhere (a timer, an
   end, a stop), also while threads come and go. (Linux: the signal lock of a process is taken without the task list's,
   lock_task_sighand.) An ended target is ESRCH.
4. *A signal is judged twice*: when it is sent, by the dispositions and masks of then (ignored, taken by a waiter);
   and when it is delivered, by those of then. An exec or rt_sigaction(2) in between needs to know nothing of it.
5. *A stop signal or SIGCONT undoes the other when it is sent*, before anything else about it is decided, also where
   it is blocked or ignored (Linux prepare_signal).
6. *A mask or disposition changes here first, then on the host.* What a change lets through is poked before the host
   executes it, so it is delivered before the call returns. Of a disposition another thread may see that it is not the
   host's yet: signal_settle.py.
7. *A thread enters its group, then the index, before it runs; it leaves its group, then the index, once it is dead.*
   A process ends in this order: its threads leave, its timers stop, its children find another parent, its status is
   set, its parent is told (report, SIGCHLD, waiters).
"""

from __future__ import annotations

from collections.abc import Callable

from trapline.sentry.kernel import signal_send, task_exit
from trapline.sentry.kernel.block import AfterSignals, Block, Execute, Outcome
from trapline.sentry.kernel.signals import bit
from trapline.sentry.kernel.state import KernelState, SigInfo, Task, ThreadGroup
from trapline.sentry.protocol import Memory, Platform
from trapline.sentry.time.clocks import Clocks
from trapline.sentry.time.timekeeper import Timekeeper
from trapline.sentry.time.timer_heap import TimerHeap

#: Clock of the deadlines in `block` when a call has none of its own.
CLOCK_MONOTONIC = 1


class Kernel:
    """One sandbox's kernel."""

    def __init__(self, platform: Platform, state: KernelState | None = None) -> None:
        self.platform = platform
        self.state = state or KernelState()
        self.keeper = Timekeeper(self.state.clock, platform)
        self.timers = TimerHeap(self.state.timers, self.keeper, platform)
        #: All timers by key, those of the heap and those on CPU clocks.
        self.clocks = Clocks(self.state.timers, self.timers, self.keeper, platform, self._fire)
        #: What to do when a timer expires, by the first word of its key.
        self.on_timer: dict[str, Callable[[str, int], None]] = {"sleep": self._sleep_expired}
        #: Resumes the blocked call of a task; set by the dispatcher.
        self.resume: Callable[[Task, Outcome], None] = lambda task, outcome: None
        #: Tasks that wait in wait4 or waitid, by their thread group.
        self.waiters: dict[int, list[int]] = {}
        #: Tasks in rt_sigtimedwait, with the set they wait for.
        self.signal_waiters: dict[int, int] = {}
        #: Terminals of which the host executes a change at the moment, with the tasks that wait for their turn.
        self.changing_ttys: dict[int, list[int]] = {}
        #: Set by sys_posix_timer: a timer's signal is being delivered, its overrun count is fixed now.
        self.timer_signal_hook: Callable[[ThreadGroup, SigInfo], None] = lambda group, info: None
        #: Drops the coroutine of a task's call; set by the dispatcher.
        self.drop_call: Callable[[int], None] = lambda tid: None
        #: Set by the time handlers: a process is known to the platform, executed a program, or ended.
        self.time_on_start: Callable[[ThreadGroup], None] = lambda group: None
        self.time_on_exec: Callable[[ThreadGroup], None] = lambda group: None
        self.time_on_group_exit: Callable[[ThreadGroup], None] = lambda group: None
        self.on_root_exit: Callable[[int], None] = lambda status: None
        #: A process whose parent is outside of the sandbox has ended: one that `outside_task` made, or a sibling of it.
        self.on_outside_exit: Callable[[ThreadGroup], None] = lambda group: None
        #: The first process was stopped by this signal: whoever started the sandbox is told.
        self.on_root_stop: Callable[[int], None] = lambda signo: None
        self.log: Callable[[str], None] = lambda text: None
        #: Shows the user a line, whatever is logged where; see `tell_once`.
        self.tell: Callable[[str], None] = lambda text: None
        self._told: set[str] = set()

    # -- looking things up
    def task(self, tid: int) -> Task:
        """A task by id. KeyError when there is none."""
        return self.state.tasks[tid]

    def group(self, task: Task) -> ThreadGroup:
        """The thread group of a task."""
        return self.state.groups[task.tgid]

    def memory(self, task: Task) -> Memory:
        """Guest memory of a task."""
        return self.platform.memory(task.tid)

    def tell_once(self, text: str) -> None:
        """Say why something that a program asks for is not possible: one line a sandbox."""
        if text not in self._told:
            self._told.add(text)
            self.tell(text)

    # -- waiting
    def block(self, task: Task, clock_id: int = CLOCK_MONOTONIC, deadline: int = -1, queue: str = "") -> Block:
        """Await this to wait; see block.py. The outcome is INTERRUPTED at once if a signal is deliverable."""
        return Block(clock_id, deadline, queue)

    def execute(self, args: tuple[int, ...] | None = None) -> Execute:
        """Await this to have the host execute the current call (class stop or wrap)."""
        return Execute(args)

    def after_signals(self) -> AfterSignals:
        """Await this to let signals be taken that were just sent, as by ERESTARTSYS; see block.py."""
        return AfterSignals()

    def timers_expired(self) -> None:
        """The host's alarm went off: expire what is due, in order."""
        for key, expirations in self.timers.expire():
            self.clocks.expired(key, expirations)

    def cpu_alarm(self, key: str, tid: int = 0) -> None:
        """A host CPU alarm went off ("cpu:ID"). `tid`: the thread that ran, if that is known."""
        self.clocks.cpu_alarm(int(key.partition(":")[2]), tid)

    def _fire(self, key: str, expirations: int) -> None:
        handler = self.on_timer.get(key.partition(":")[0])
        if handler is not None:
            handler(key, expirations)

    def cpu_runner(self, group: ThreadGroup) -> int:
        """Which thread of a process should take the signal of a CPU timer: the one that runs, as in Linux, where a
        tick expires timers in the thread that it interrupts (run_posix_cpu_timers). 0: no preference."""
        if len(group.threads) < 2:
            return 0
        runner = self.state.tasks.get(self.clocks.runner)
        if runner is None:
            return self.platform.running_thread(group.tgid)
        return runner.tid if runner.tgid == group.tgid else 0

    def _sleep_expired(self, key: str, expirations: int) -> None:
        task = self.state.tasks.get(int(key.partition(":")[2]))
        if task is not None:
            self.resume(task, Outcome.TIMED_OUT)

    # -- signals
    def send_signal(self, tgid: int, info: SigInfo, tid: int = 0, prefer: int = 0) -> None:
        """Send a signal to a process, or to one thread. OSError(ESRCH) when it does not exist.

        `prefer`: the thread that should take a process's signal, if it can (0: as for any other).
        """
        group = self.state.groups.get(tgid)
        if group is None:
            raise ProcessLookupError(3, "no such process")
        signal_send.send(self, group, info, tid, prefer)

    def signal_taken_by_waiter(self, group: ThreadGroup, target: Task | None, signo: int) -> bool:
        """Wake a thread that waits for this signal in rt_sigtimedwait; True when there was one."""
        if not self.signal_waiters:
            return False
        for task in (target,) if target else group.threads.values():
            if self.signal_waiters.get(task.tid, 0) & bit(signo):
                self.resume(task, Outcome.WOKEN)
                return True
        return False

    def timer_signal_delivered(self, group: ThreadGroup, info: SigInfo) -> None:
        """A POSIX timer's signal leaves the queue."""
        self.timer_signal_hook(group, info)

    # -- waits
    def wake_waiters(self, tgid: int) -> None:
        """Something about a child of this process changed: let its waiters look again."""
        waiting = self.waiters.get(tgid)
        if waiting:
            threads = self.state.groups[tgid].threads
            for task in [threads[tid] for tid in waiting if tid in threads]:
                self.resume(task, Outcome.WOKEN)

    def notify_parent_continued(self, group: ThreadGroup) -> None:
        """SIGCHLD with CLD_CONTINUED."""
        task_exit.notify_parent_of_change(self, group, continued=True)

    def continued_by_host(self, group: ThreadGroup) -> None:
        """A SIGCONT from outside the sandbox ended a stop."""
        if group.stop_signal:
            group.stop_signal, group.stop_report, group.continue_report = 0, 0, True
            self.notify_parent_continued(group)

    # -- ends
    def forget_task(self, tid: int) -> None:
        """Drop a dead thread and everything that names it."""
        self.state.tasks.pop(tid, None)
        self.signal_waiters.pop(tid, None)
        self.clocks.cancel(f"sleep:{tid}")
        self.drop_call(tid)
