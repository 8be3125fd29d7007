"""Delivery stops and group stops.

At a delivery stop the kernel chooses the signal; the host then writes the frame. A poke is recognised by its
cookie; anything else is a signal that the host made, and becomes the kernel's first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.platform import host_masks, stop_calls, stop_tasks
from trapline.platform import ptrace_calls as pt
from trapline.platform.pokes import is_poke, poke_again
from trapline.platform.tracee import Tracee
from trapline.sentry.kernel import signal_settle, task_stop
from trapline.sentry.kernel.block import Outcome
from trapline.sentry.kernel.signal_deliver import host_signal, next_delivery
from trapline.sentry.kernel.signals import SIGCONT, pack_siginfo, unpack_siginfo

if TYPE_CHECKING:
    from trapline.platform.engine import Engine


def delivery_stop(e: Engine, t: Tracee, signo: int) -> None:
    """The host is about to deliver a signal: decide what it really is."""
    raw = pt.get_siginfo(t.host)
    task = t.task
    assert task is not None
    kernel = e.kernel
    host_masks.came(e, t, signo)
    if task.unsure:
        signal_settle.settle(kernel, task)
    poked = is_poke(raw, t)
    if poked and e.lenders and host_masks.lend_here(e, t, signo):
        return
    if not poked:
        host_signal(kernel, task, unpack_siginfo(raw))
    if task.tid in kernel.signal_waiters:
        e.dispatcher.resume(task, Outcome.WOKEN)  # it looks whether this is what it waits for
    opened = host_masks.close(t)
    if t.reissue is not None:
        # Between the choice of a wait and the host's reaping: a handler that ran now, and perhaps never came
        # back, would lose the zombie. The signal stays in its queue until the call is done.
        if not poked:
            e.watch.ignored(t, raw)
        e.regs.load(t.host)
        t.repoke = True
        if t.parked:
            stop_calls.begin_reissue(e, t)
        e.resume(t)
        return
    delivery = next_delivery(kernel, task)
    e.regs.load(t.host)
    changed = False
    if task.call is not None:
        value = e.dispatcher.interrupt(task, delivery)
        if value is not None:
            stop_calls.finish_at_stop(e, t, value)
            changed = True
    elif delivery is not None and stop_calls.issue_after_handler(e):
        changed = True
    if changed:
        e.regs.store(t.host)
    if delivery is None:
        if not changed and not (t.after_stop and signo == SIGCONT):
            stop_calls.hide_interruption(e, t)
        if not poked:
            e.watch.ignored(t, raw)
        t.after_stop = False
        if opened and task.tid in kernel.signal_waiters:
            host_masks.open_for(t, opened)
        e.resume(t)
        return
    info = pack_siginfo(delivery.info)
    e.watch.delivered(t, info)
    pt.set_siginfo(t.host, info)
    if delivery.stop and task.tgid == kernel.state.root_tgid:
        e.root_stop_code = delivery.info.code
    if delivery.core and e.cores is not None and e.cores.dump(e, t, info):
        kernel.group(task).core_dumped = True
    if kernel.group(task).killed_by:
        e.kill_group(task.tgid)
        return
    poke_again(e, t)
    e.resume(t, delivery.info.signo)


def group_stop(e: Engine, t: Tracee, signo: int) -> None:
    """The host's group stop: it lasts until a SIGCONT."""
    assert t.task is not None
    t.listening = True
    stop_tasks.note_user(e, t)
    e.watch.stopped(t, signo)
    task_stop.thread_stopped(e.kernel, t.task, signo)
    pt.call(pt.PTRACE_LISTEN, t.host)


def event_stop(e: Engine, t: Tracee) -> None:
    """PTRACE_EVENT_STOP with SIGTRAP: an interrupt of ours, or the end of a group stop."""
    assert t.task is not None
    t.after_stop, t.listening = t.listening, False
    task_stop.thread_goes_on(t.task)
    stop_calls.interrupted(e, t)
