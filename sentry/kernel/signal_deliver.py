"""Delivery: what a thread takes when it stands at a delivery stop.

The stop itself is only an opportunity: a poke, or a signal that the host made (a fault, a terminal's key).
The sentry chooses the signal, and the host writes the frame, so that extended state, the alternate stack,
rseq and shadow stacks are right by construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel import signal_settle
from trapline.sentry.kernel.signal_send import action_of, deliverable, is_ignored
from trapline.sentry.kernel.signals import (
    DEFAULT_CORE,
    DEFAULT_STOP,
    INIT,
    SA_NODEFER,
    SA_RESETHAND,
    SA_RESTART,
    SI_TIMER,
    SIG_DFL,
    SIG_IGN,
    SIGALRM,
    SIGCHLD,
    SIGCONT,
    SIGHUP,
    SIGRTMIN,
    SYNCHRONOUS,
    UNMASKABLE,
    bit,
    first_of,
)
from trapline.sentry.kernel.state import SigInfo, Task, ThreadGroup

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel


class Delivery:
    """What to do at a delivery stop: the signal to continue with, and whether its handler will run."""

    __slots__ = ("core", "handler", "info", "restart", "stop")

    def __init__(self, info: SigInfo, handler: bool, restart: bool, stop: bool, core: bool = False) -> None:
        self.info = info
        self.handler = handler  # a handler runs
        self.restart = restart  # and it has SA_RESTART
        self.stop = stop  # the process stops
        self.core = core  # it dies, and a core file is its default (signal(7))


def host_signal(kernel: Kernel, task: Task, info: SigInfo) -> None:
    """A signal that the host made becomes the kernel's.

    The host's SIGCHLD says nothing that the kernel does not know (task_exit.py sends its own), and SIGCONT
    is only how a stop ended.
    """
    group = kernel.group(task)
    if info.signo == SIGCHLD:
        return
    if info.code > 0 and SYNCHRONOUS & bit(info.signo):
        info.forced = True
        task.pending.insert(0, info)
        group.queues[task.tid] = 0
        return
    if info.signo == SIGCONT and info.code >= 0 and kernel.state.groups:
        kernel.continued_by_host(group)
    if info.signo == SIGHUP and group.tty:
        from trapline.sentry.kernel import tty  # not for programs without a terminal

        tty.hung_up(kernel, group)
    waiting = kernel.signal_waiters.get(task.tid, 0) & bit(info.signo)
    if is_ignored(group, info.signo) and not waiting:
        return
    # SIGPIPE and SIGXFSZ are the thread's own; the rest came to the process.
    queue = task.pending if info.signo in (13, 25) else group.pending
    if info.signo >= SIGRTMIN or not any(p.signo == info.signo for p in queue):
        queue.append(info)
        if queue is task.pending:
            group.queues[task.tid] = 0


def next_delivery(kernel: Kernel, task: Task, allow_stop: bool = True) -> Delivery | None:
    """Take the next deliverable signal of a thread, or None when there is none.

    Synchronous faults first, then the thread's own, then the process's, the lowest number first
    (Linux next_signal). The mirror of the mask is moved on here, as the host will do it with the frame.
    """
    group = kernel.group(task)
    while True:
        ready = deliverable(group, task)
        if task.pending and task.pending[0].forced:
            info = task.pending.pop(0)
        elif ready:
            info = _dequeue(group, task, ready)
        else:
            return None
        signo = info.signo
        action = action_of(group, signo)
        forced = info.forced
        if info.code == SI_TIMER or signo == SIGALRM:
            kernel.timer_signal_delivered(group, info)
        if action.handler == SIG_IGN and not forced:
            continue
        # A fault that is blocked or ignored kills (Linux force_sig_info_to_task).
        kills = forced and (action.handler == SIG_IGN or bool(task.mask & bit(signo)))
        if action.handler == SIG_DFL or kills:
            if not forced and is_ignored(group, signo):
                continue
            if kills:
                group.actions.pop(signo, None)  # as the host has done it by now
                task.mask &= ~bit(signo)
            if forced and group.tgid == INIT:
                # For the platform to kill it. The host lets nothing but SIGKILL end a traced pid 1
                # (force_sig_info_to_task), which would execute the instruction again for ever; natively it dies.
                group.killed_by = signo
            stop = bool(DEFAULT_STOP & bit(signo))
            return Delivery(info, handler=False, restart=False, stop=stop, core=bool(DEFAULT_CORE & bit(signo)))
        before, had_saved = task.mask, task.saved_mask >= 0
        task.mask |= action.mask & ~UNMASKABLE
        if not action.flags & SA_NODEFER:
            task.mask |= bit(signo)
        if group.contested & bit(signo):
            signal_settle.handler_begins(task, before, had_saved)
        task.saved_mask = -1  # the frame carries it; rt_sigreturn tells it again
        restart = bool(action.flags & SA_RESTART)
        if action.flags & SA_RESETHAND:
            group.actions.pop(signo, None)
        return Delivery(info, handler=True, restart=restart, stop=False)


def no_handler_ran(task: Task) -> None:
    """The interruption of ppoll or its like ended without a handler: the host has put the mask back.

    It does so when it issues the call again, not before: a signal that ends a stop is still judged by the
    call's mask (sigsuspend that lets SIGCONT in, stopped and continued).
    """
    if task.saved_mask >= 0:
        task.mask, task.saved_mask = task.saved_mask, -1


def _dequeue(group: ThreadGroup, task: Task, ready: int) -> SigInfo:
    info = take(task.pending, ready) or take(group.pending, ready)
    if info is None:
        raise AssertionError("deliverable() found a signal that is in no queue")
    return info


def take(queue: list[SigInfo], ready: int) -> SigInfo | None:
    """Take the next signal of a set out of a queue; of equals the oldest."""
    found = 0
    for info in queue:
        found |= bit(info.signo)
    if not found & ready:
        return None
    signo = first_of(found & ready)
    for i, info in enumerate(queue):
        if info.signo == signo:
            return queue.pop(i)
    return None
