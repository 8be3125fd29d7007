"""Signals that are handed to the host's queue, where a signalfd finds them.

A signalfd is the host's own, so that `read`, `poll` and `epoll` on it need no trap, and the host reads from its own
queues. So where a process has one, a signal of its mask that every thread which could take it blocks moves from the
kernel's queue to the host's, with its siginfo. From then on it is like a signal that the host made: `sigpending` and
`sigtimedwait` look there (Platform.host_pending), and unblocking it brings it to a delivery stop. Not SIGCHLD, of which
the host sends its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel.signals import SI_TIMER, SIGALRM, SIGCHLD, bit
from trapline.sentry.kernel.state import SigInfo, Task, TaskStatus, ThreadGroup

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel


def lend(kernel: Kernel, group: ThreadGroup, signo: int, target: Task | None = None) -> None:
    """A signal was found to be blocked by all who could take it: hand it over if a signalfd may look for it."""
    if not group.watched & bit(signo) or signo == SIGCHLD:
        return
    if target is not None:
        kernel.platform.lend(target.tid, signo, False)
        return
    for tid, task in group.threads.items():
        # A stopped thread would do it only when it goes on; a leader may have ended before its threads.
        if task.status != TaskStatus.STOPPED and not kernel.platform.has_ended(tid):
            kernel.platform.lend(tid, signo, True)
            return


def lend_pending(kernel: Kernel, task: Task, signals: int) -> None:
    """This thread blocks these signals now, or has a signalfd for them now: hand over what is pending of them."""
    group = kernel.group(task)
    wanted = signals & group.watched & task.mask
    for info in task.pending:
        if wanted & bit(info.signo):
            lend(kernel, group, info.signo, task)
    for info in group.pending:
        if wanted & bit(info.signo) and all(t.mask & bit(info.signo) for t in group.threads.values()):
            lend(kernel, group, info.signo)


def lent(kernel: Kernel, task: Task, signo: int) -> SigInfo | None:
    """The thread stands where the host can queue the signal: it leaves the kernel's queues. None when it has been
    taken, or flushed, meanwhile.

    A timer goes on as if its signal were taken, since nobody is told when a signalfd takes it.
    """
    group = kernel.group(task)
    for queue in (task.pending, group.pending):
        for at, info in enumerate(queue):
            if info.signo == signo:
                del queue[at]
                if info.code == SI_TIMER or signo == SIGALRM:
                    kernel.timer_signal_delivered(group, info)
                return info
    return None

