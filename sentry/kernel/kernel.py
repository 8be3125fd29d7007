"""The kernel: its state, and what its parts share.

The parts are modules of functions that take the kernel first: task_clone, task_exec, task_exit, task_wait,
signal_send, signal_deliver, sessions. They change `KernelState` and ask the `Platform` for what only the
host can do. One thread runs all of it, so there are no locks.
"""

from __future__ import annotations

from collections.abc import Callable

from trapline.sentry.kernel import signal_send, task_exit
from trapline.sentry.kernel.block import Block, Execute, Outcome
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
        self.resume: Callable[[int, Outcome], None] = lambda tid, outcome: None
        #: Tasks that wait in wait4 or waitid, by their thread group.
        self.waiters: dict[int, list[int]] = {}
        #: Tasks in rt_sigtimedwait, with the set they wait for.
        self.signal_waiters: dict[int, int] = {}
        #: Set by sys_posix_timer: a timer's signal is being delivered, its overrun count is fixed now.
        self.timer_signal_hook: Callable[[ThreadGroup, SigInfo], None] = lambda group, info: None
        #: Drops the coroutine of a task's call; set by the dispatcher.
        self.drop_call: Callable[[int], None] = lambda tid: None
        #: Set by the time handlers: a process is known to the platform, executed a program, or ended.
        self.time_on_start: Callable[[ThreadGroup], None] = lambda group: None
        self.time_on_exec: Callable[[ThreadGroup], None] = lambda group: None
        self.time_on_group_exit: Callable[[ThreadGroup], None] = lambda group: None
        self.on_root_exit: Callable[[int], None] = lambda status: None
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
        self.resume(int(key.partition(":")[2]), Outcome.TIMED_OUT)

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
        for tid in [target.tid] if target else group.threads:
            if self.signal_waiters.get(tid, 0) & bit(signo):
                self.resume(tid, Outcome.WOKEN)
                return True
        return False

    def timer_signal_delivered(self, group: ThreadGroup, info: SigInfo) -> None:
        """A POSIX timer's signal leaves the queue."""
        self.timer_signal_hook(group, info)

    # -- waits
    def wake_waiters(self, tgid: int) -> None:
        """Something about a child of this process changed: let its waiters look again."""
        for tid in list(self.waiters.get(tgid, ())):
            self.resume(tid, Outcome.WOKEN)

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
