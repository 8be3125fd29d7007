"""Sending: from a SigInfo to a pending signal, and to a thread that is brought to take it.

`send` takes a thread group and never looks at the set of all tasks, so that it can be used from anywhere
(Linux: lock_task_sighand). A signal waits in the kernel's queue, never in the host's: what the host gets is
a *poke* that makes a thread stop, and what is delivered there is decided then (signal_deliver.py).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from trapline.sentry.kernel import signal_lend, signal_settle
from trapline.sentry.kernel.signals import (
    DEFAULT_IGNORE,
    DEFAULT_STOP,
    INIT,
    SI_KERNEL,
    SI_TIMER,
    SI_TKILL,
    SIG_DFL,
    SIG_IGN,
    SIGCHLD,
    SIGCONT,
    SIGKILL,
    SIGRTMAX,
    SIGRTMIN,
    SIGURG,
    SIGWINCH,
    UNMASKABLE,
    bit,
)
from trapline.sentry.kernel.state import SigAction, SigInfo, Task, TaskStatus, ThreadGroup

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel

RLIMIT_SIGPENDING = 11
DEFAULT_ACTION = SigAction()


def action_of(group: ThreadGroup, signo: int) -> SigAction:
    """The disposition of a signal."""
    return group.actions.get(signo, DEFAULT_ACTION)


def is_ignored(group: ThreadGroup, signo: int) -> bool:
    """Whether a signal would have no effect if it were delivered now.

    A program that is pid 1 takes those only that it has a handler for (pid_namespaces(7), SIGNAL_UNKILLABLE of Linux).
    """
    handler = action_of(group, signo).handler
    if handler == SIG_DFL:
        return bool(DEFAULT_IGNORE & bit(signo)) or (group.tgid == INIT and not UNMASKABLE & bit(signo))
    return handler == SIG_IGN


def send(kernel: Kernel, group: ThreadGroup, info: SigInfo, tid: int = 0, prefer: int = 0) -> None:
    """Send a signal to a process, or to one of its threads. OSError(ESRCH) when it is dead.

    Standard signals merge while pending, real-time ones queue (signal(7)). `prefer`: see `notify`.
    """
    if group.exit_status >= 0 or not group.threads:
        raise OSError(errno.ESRCH, "dead")
    signo = info.signo
    if group.tgid == INIT and UNMASKABLE & bit(signo) and not (info.outside or info.code == SI_KERNEL):
        return
    if signo == SIGKILL:
        kernel.platform.kill_group(group.tgid)
        return
    _stop_and_continue_cancel(kernel, group, signo)
    target = group.threads.get(tid) if tid else None
    if tid and target is None:
        raise OSError(errno.ESRCH, "dead")
    if is_ignored(group, signo) and not _waits_for(group, target, signo):
        return
    if info.code < 0 and info.code != SI_TKILL and info.code != SI_TIMER and queue_is_full(kernel, group):
        raise OSError(errno.EAGAIN, "RLIMIT_SIGPENDING")
    queue = group.pending if target is None else target.pending
    if signo < SIGRTMIN and info.code != SI_TIMER and any(p.signo == signo for p in queue):
        return
    queue.append(info)
    if target is not None:
        group.queues[target.tid] = 0
    if kernel.signal_taken_by_waiter(group, target, signo):
        return
    if not notify(kernel, group, signo, target, prefer) and group.watched:
        signal_lend.lend(kernel, group, signo, target)


def queue_is_full(kernel: Kernel, group: ThreadGroup) -> bool:
    """RLIMIT_SIGPENDING (getrlimit(2)): queued signals and POSIX timers together.

    Linux counts them per user, the sentry per process: see docs/limits.md.
    """
    count = len(group.pending) + len(group.posix_timers) + sum(len(t.pending) for t in queueing(group))
    if not count:
        return False
    limit = group.limits.get(RLIMIT_SIGPENDING)
    if limit is None:
        # Asking the host is slow; prlimit(2) on this limit passes the sentry, which forgets it then.
        limit = group.limits[RLIMIT_SIGPENDING] = kernel.platform.pending_limit(group.tgid)
    return count >= limit


def queueing(group: ThreadGroup) -> list[Task]:
    """The threads of a process that have signals in their own queues, without a walk over all of them.

    Whoever adds to a thread's queue notes it in `group.queues`; those that are empty by now are dropped here.
    """
    if not group.queues:
        return []
    threads = [group.threads.get(tid) for tid in group.queues]
    found = [task for task in threads if task is not None and task.pending]
    if len(found) != len(threads):
        group.queues = {task.tid: 0 for task in found}
    return found


def _waits_for(group: ThreadGroup, target: Task | None, signo: int) -> bool:
    """Linux keeps an ignored signal when it is blocked (sig_ignored): sigtimedwait may be about to take it.

    Of a process, the leader's mask says so, as there.
    """
    thread = target or group.threads.get(group.tgid)
    return thread is not None and bool(thread.mask & bit(signo))


def _stop_and_continue_cancel(kernel: Kernel, group: ThreadGroup, signo: int) -> None:
    """SIGCONT removes pending stop signals and ends a stop; a stop signal removes a pending SIGCONT
    (Linux prepare_signal)."""
    if signo == SIGCONT:
        flush(group, DEFAULT_STOP)
        if group.stop_signal:
            group.stop_signal = 0
            group.stop_report = 0
            group.continue_report = True
            for task in group.threads.values():
                if task.status == TaskStatus.STOPPED:
                    task.status = TaskStatus.RUNNING if task.call is None else TaskStatus.BLOCKED
            kernel.notify_parent_continued(group)
        kernel.platform.continue_group(group.tgid)
    elif DEFAULT_STOP & bit(signo):
        flush(group, bit(SIGCONT))


def flush(group: ThreadGroup, signals: int) -> None:
    """Drop pending signals of a set from the process and all of its threads."""
    group.pending = [p for p in group.pending if not signals & bit(p.signo)]
    for task in queueing(group):
        task.pending = [p for p in task.pending if not signals & bit(p.signo)]


def notify(
    kernel: Kernel, group: ThreadGroup, signo: int, target: Task | None = None, prefer: int = 0
) -> bool:
    """Bring a thread that can take this signal to a delivery stop.

    For a process-directed signal the thread `prefer` is preferred, if there is one, then the main thread, then
    the first that does not block it (Linux complete_signal). When all block it, it waits until one unblocks it: False.
    """
    wanted = bit(signo)
    preferred = group.threads.get(prefer) if prefer and target is None else None
    if preferred is not None and not signal_settle.blocks(kernel, preferred, wanted):
        kernel.platform.poke(prefer, poke_number(preferred, wanted))
        return True
    for task in group.threads.values() if target is None else (target,):
        if not signal_settle.blocks(kernel, task, wanted) or wanted & UNMASKABLE:
            if target is None and task.tid == group.tgid and len(group.threads) > 1:
                # A leader may have ended before its threads, of which nobody is told until they end too: the
                # host, which knows, brings the first living thread instead.
                kernel.platform.poke_process(group.tgid, poke_number(task, wanted))
            else:
                kernel.platform.poke(task.tid, poke_number(task, wanted))
            return True
    return False


def poke_number(task: Task, ready: int) -> int:
    """The host signal by which a thread is brought to take one of a set: one that its mask lets through.

    Not SIGCONT where there is another: on the host it takes effect when it is sent, and would undo a stop that
    is being delivered, though that was sent after the SIGCONT that has been waiting here.
    """
    if ready == bit(SIGCONT):
        others: tuple[int, ...] = (SIGURG, SIGWINCH, SIGCHLD, *range(1, SIGRTMAX + 1))
        for signo in others:
            if not task.mask & bit(signo) and signo != SIGCONT and not bit(signo) & (DEFAULT_STOP | UNMASKABLE):
                return signo
        return SIGCONT
    ready &= ~bit(SIGCONT)
    return (ready & -ready).bit_length()


def deliverable(group: ThreadGroup, task: Task) -> int:
    """The set of pending signals that this thread may take now."""
    found = 0
    for info in task.pending:
        found |= bit(info.signo)
    for info in group.pending:
        found |= bit(info.signo)
    return found & (~task.mask | UNMASKABLE)


def mask_changed(kernel: Kernel, task: Task, old: int) -> None:
    """After `task.mask` changed: poke for what is no longer blocked, and hand process-directed signals that
    this thread now blocks to a thread that does not (Linux retarget_shared_pending)."""
    group = kernel.group(task)
    if not task.pending and not group.pending:
        return
    ready = deliverable(group, task)
    if ready:
        kernel.platform.poke(task.tid, poke_number(task, ready))
    newly = task.mask & ~old
    for info in group.pending:
        if newly & bit(info.signo):
            notify(kernel, group, info.signo)
    if newly & group.watched:
        signal_lend.lend_pending(kernel, task, newly)


__all__ = [
    "DEFAULT_ACTION", "action_of", "deliverable", "flush", "is_ignored", "mask_changed", "notify",
    "queue_is_full", "queueing", "send",
]  # fmt: skip
