"""Events of a task's life: a clone, an exec, a death."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trapline.platform import ptrace_calls as pt
from trapline.platform import stop_calls, stop_signals
from trapline.platform.task_ids import is_traced
from trapline.platform.tracee import Tracee
from trapline.sentry.kernel import task_clone, task_exec, task_exit
from trapline.sentry.kernel.signals import SIGCHLD, SIGKILL
from trapline.sentry.kernel.state import TaskStatus
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls.sys_process import Clone

if TYPE_CHECKING:
    from trapline.platform.engine import Engine

CSIGNAL = 0xFF
_SIGTRAP = 5


def new_stop(e: Engine, host: int, signo: int) -> None:
    """The first stop of a task that nobody has announced yet: its creator's event is on its way."""
    e.early[host] = signo


def clone_event(e: Engine, t: Tracee, event: int) -> None:
    """PTRACE_EVENT_FORK, VFORK or CLONE: the new task exists and stands at its first stop, or will."""
    assert t.task is not None
    host = pt.event_message(t.host)
    regs = e.regs.load(t.host)
    request, saved = t.execute, t.saved
    t.execute = t.saved = None
    if e.structures:
        e.structures.pop(t.host, None)
    hold = False
    if isinstance(request, Clone):
        flags, hold = request.flags, request.hold
        assert saved is not None
        stop_calls.put_back(e, saved)
        regs.orig_rax = saved[0]
        e.regs.store(t.host)
    elif regs.orig_rax == stop_calls.CLONE:
        flags = regs.rdi
    else:
        flags = SIGCHLD
    try:
        tid = e.tid_inside(host)
    except Gone:
        e.early.pop(host, None)
        e.stillborn.add(host)
        e.resume(t)
        return
    host_group = t.host_group if flags & task_clone.CLONE_THREAD else host
    task = task_clone.new_task(e.kernel, t.task, tid, flags, flags & CSIGNAL)
    child = Tracee(host, host_group, tid, task)
    child.trap_all = t.trap_all
    child.listener = t.listener
    child.saved = saved if isinstance(request, Clone) else None
    e.add(child)
    if tid == task.tgid:
        e.kernel.time_on_start(e.kernel.group(task))
    else:
        e.joined(child)
    if hold:
        t.holding, child.holder = child, t
        t.task.status = TaskStatus.HELD
    if host not in e.early:
        e.sources.expect(host)
    else:
        try:
            first_stop(e, child, e.early.pop(host))
        except Gone:
            pass  # it was killed meanwhile, and its death is on its way; its creator must go on all the same
    if not hold:
        e.resume(t)
    if host in e.died_early and not is_traced(host):
        # Its death was taken before this event told of it, and is not reported again: a parent that waits for it
        # would wait for ever. It has not executed one instruction, so nothing but SIGKILL can have ended it.
        e.died_early.discard(host)
        died(e, host, SIGKILL, bytes(pt.RUSAGE_SIZE))


def first_stop(e: Engine, t: Tracee, signo: int) -> None:
    """The first stop of an announced task: with a stop signal when its process was stopped before it ran, whereupon
    it is the group stop already, and nobody will report that again (ptrace(2), PTRACE_EVENT_STOP)."""
    if t.saved is not None:
        saved, t.saved = t.saved, None
        e.regs.load(t.host)
        stop_calls.put_back(e, saved)
        e.regs.store(t.host)
    if signo == _SIGTRAP:
        e.resume(t)
    else:
        stop_signals.group_stop(e, t, signo)


def exec_event(e: Engine, t: Tracee) -> None:
    """PTRACE_EVENT_EXEC. It comes under the leader's id; the message is the id that the thread had before,
    which is never reported again."""
    former = pt.event_message(t.host)
    if former != t.host:
        mover = e.tracees.pop(former, None)
        if mover is not None:
            assert mover.task is not None
            e.by_tid.pop(mover.tid, None)
            former_tid = mover.tid
            mover.host, mover.tid = t.host, t.tid
            mover.memory.host = t.host
            if t.holder is not None:
                mover.holder = t.holder
            t = mover
            e.tracees[t.host] = t
            e.by_tid[t.tid] = t
            if former_tid in e.earlier:
                e.earlier[t.tid] = e.earlier.pop(former_tid)
        else:
            former_tid = t.tid
    else:
        former_tid = t.tid
    t.parked = False
    t.reissue = t.execute = None
    t.saved = None
    t.opened = 0
    e.cpu_alarms.executed(t.host_group)
    t.task = task_exec.exec_done(e.kernel, t.tid, former_tid)
    e.watch.executed(t, former_tid)
    if e.on_exec:
        told = e.on_exec.pop(t.host, None)
        if told is not None:
            told()
    release_holder(e, t)
    e.install_vdso(t)
    e.resume(t)


def note_user(e: Engine, t: Tracee) -> None:
    """A process stopped or ended: which user it is, for its parent (si_uid of SIGCHLD and waitid(2)).

    All are ours until one asks for another user (no program gives new privileges here). /proc/PID belongs to the
    effective user and costs a tenth of reading its status, which is needed only for a process of another user
    than ours. Ids are as in `HostServices.credentials`.
    """
    assert t.task is not None
    group = e.kernel.group(t.task)
    if not e.kernel.state.users_changed:
        group.uids = (e.own_uid,) * 3
        return
    try:
        user = os.stat(f"/proc/{t.host_group}").st_uid
        group.uids = (user,) * 3 if user == e.own_uid else e.credentials(t.tid)[0]
    except (OSError, Gone):
        return  # reaped already, since its parent ignores it


def release_holder(e: Engine, t: Tracee) -> None:
    """The vfork child executed a program or ended: its parent goes on."""
    parent, t.holder = t.holder, None
    if parent is None:
        return
    parent.holding = None
    if parent.task is not None:
        parent.task.status = TaskStatus.RUNNING
    try:
        e.resume(parent)
    except Gone:
        return


def died(e: Engine, host: int, status: int, rusage: bytes) -> None:
    """A thread is dead, and its host zombie is already its real parent's."""
    t = e.tracees.pop(host, None)
    e.early.pop(host, None)
    e.structures.pop(host, None)
    if t is None:
        if host in e.stillborn:
            e.stillborn.discard(host)
        else:
            e.died_early.add(host)
        return
    if t.host == t.host_group and t.task is not None:
        note_user(e, t)
        e.poked_groups.pop(t.host_group, None)
    if e.lenders.get(t.host_group) is t:
        del e.lenders[t.host_group]
    if e.by_tid.get(t.tid) is t:
        del e.by_tid[t.tid]
    if t.holding is not None:
        t.holding.holder = None
    release_holder(e, t)
    e.cpu_alarms.left(t.host_group, t.host)
    if e.earlier_of_group or e.earlier_of_children:
        e.earlier.pop(t.tid, None)
        if t.host == t.host_group and t.task is not None:
            e.kernel.group(t.task).used_before, rusage = e.account_of_ended(t.tid, rusage)
    e.ended(t, status)
    e.watch.ended(t, status)
    task_exit.task_died(e.kernel, t.tid, status, rusage)
