"""fork, vfork, clone, clone3: the kernel's side of a new task.

The host has made it already (with the guest's own flags), and it has not run yet: it stands at its first
stop until the platform lets it go after this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel import family
from trapline.sentry.kernel.signals import SIGCHLD
from trapline.sentry.kernel.state import Task, ThreadGroup

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel

CLONE_VM, CLONE_SIGHAND, CLONE_VFORK, CLONE_PARENT = 0x100, 0x800, 0x4000, 0x8000
CLONE_THREAD, CLONE_UNTRACED, CLONE_PTRACE = 0x10000, 0x800000, 0x2000
CLONE_CLEAR_SIGHAND = 1 << 32
#: New namespaces are refused: ids, clocks and the root would not be the sandbox's any more.
NAMESPACES = 0x80 | 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000


def first_task(kernel: Kernel, tid: int, ppid: int, pgid: int, sid: int, mask: int) -> Task:
    """The sandbox's first guest process, before its exec."""
    task = Task(tid=tid, tgid=tid, mask=mask)
    kernel.state.tasks[tid] = task
    group = kernel.state.groups[tid] = ThreadGroup(tgid=tid, ppid=ppid, sid=sid, threads={tid: task})
    family.join_process_group(kernel.state, group, pgid)
    kernel.state.root_tgid = tid
    kernel.state.may_end = True
    return task


class Ended(Exception):
    """The sandbox has ended: no task is made in it any more."""


def outside_task(kernel: Kernel, tid: int, mask: int) -> Task:
    """A process that was made from outside (`trapline exec`), before its exec: it leads a session, its parent shows as
    0, and its children go to the sandbox's init.

    Ended once no task lives: whoever waits for the sandbox's end was told of it then, and takes it down. While one
    lives, nobody was, in this thread.
    """
    state = kernel.state
    if state.may_end and not state.tasks:
        raise Ended
    task = Task(tid=tid, tgid=tid, mask=mask)
    state.tasks[tid] = task
    group = state.groups[tid] = ThreadGroup(tgid=tid, ppid=0, sid=tid, threads={tid: task})
    family.join_process_group(state, group, tid)
    return task


def new_task(kernel: Kernel, creator: Task, tid: int, flags: int, exit_signal: int = SIGCHLD) -> Task:
    """Register a task that `creator` made with these clone flags (clone(2))."""
    state = kernel.state
    parent = kernel.group(creator)
    if flags & CLONE_THREAD:
        task = Task(tid=tid, tgid=parent.tgid, mask=creator.mask)
        parent.threads[tid] = state.tasks[tid] = task
        return task
    task = Task(tid=tid, tgid=tid, mask=creator.mask)
    if creator.saved_mask >= 0:
        task.mask = creator.saved_mask
    group = ThreadGroup(
        tgid=tid,
        ppid=parent.tgid,
        sid=parent.sid,
        tty=parent.tty,
        threads={tid: task},
        parent_tid=creator.tid,
        exit_signal=exit_signal,
        limits=dict(parent.limits) if parent.limits else {},
        watched=parent.watched,
        cpu_limit=parent.cpu_limit,
        vdso=parent.vdso,
    )
    if flags & CLONE_PARENT:
        group.ppid, group.parent_tid, group.exit_signal = parent.ppid, parent.parent_tid, parent.exit_signal
    if parent.actions:
        # SigAction objects are never changed in place, so a child shares them.
        kept = parent.actions.items()
        group.actions = {s: a for s, a in kept if not (flags & CLONE_CLEAR_SIGHAND and a.handler > 1)}
    state.tasks[tid] = task
    state.groups[tid] = group
    owner = state.groups.get(group.ppid)
    if owner is not None:
        family.add_child(state, owner, group)
    family.join_process_group(state, group, parent.pgid)
    return task
