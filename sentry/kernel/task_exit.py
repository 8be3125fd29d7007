"""The end of a thread and of a process: reparenting, the parent's signal, zombies.

The host's own zombie exists already when this runs (the platform reports a death only then), and the host
has reparented and ended sessions by the same rules: this is the kernel's account of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel import family, signal_send
from trapline.sentry.kernel.signals import (
    CLD_CONTINUED,
    CLD_DUMPED,
    CLD_EXITED,
    CLD_KILLED,
    CLD_STOPPED,
    INIT,
    SA_NOCLDSTOP,
    SA_NOCLDWAIT,
    SIG_IGN,
    SIGCHLD,
    SIGCONT,
)
from trapline.sentry.kernel.state import SigInfo, Task, ThreadGroup
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel

WCOREFLAG = 0x80
_TICK = 10_000  # µs: si_utime counts in clock ticks of 1/100 s whatever the host's timer does (USER_HZ)


def task_died(kernel: Kernel, tid: int, status: int, rusage: bytes = b"") -> None:
    """A thread is dead. `status` is its wait status; the leader's, which comes last, is the process's."""
    task = kernel.state.tasks.get(tid)
    if task is None:
        return
    group = kernel.group(task)
    group.threads.pop(tid, None)
    ended = [task]
    if tid == group.tgid:
        ended += group.threads.values()  # killed together; their own reports may still come
        group.threads = {}
    for thread in ended:
        thread_ends(kernel, group, thread)
        kernel.forget_task(thread.tid)
    if tid == group.tgid:
        _process_died(kernel, group, status, rusage)


def thread_ends(kernel: Kernel, group: ThreadGroup, task: Task) -> None:
    """A thread's children learn of its end, PR_SET_PDEATHSIG (prctl(2)), and are the next thread's.

    `group.threads` are those that are left.
    """
    if not task.made:
        return
    for tgid in list(task.made):
        child = kernel.state.groups[tgid]
        if child.pdeathsig and child.exit_status < 0:
            signal_send.send(kernel, child, SigInfo(signo=child.pdeathsig, code=0, pid=group.tgid))
    heir = next(iter(group.threads.values()), None)
    if heir is not None:
        family.hand_over(kernel.state, task, heir)


def _process_died(kernel: Kernel, group: ThreadGroup, status: int, rusage: bytes) -> None:
    state = kernel.state
    if group.core_dumped and status & 0x7F:
        status |= WCOREFLAG
    if group.killed_by and status & 0x7F:
        status = group.killed_by | status & WCOREFLAG
    group.exit_rusage = rusage
    group.pending = []
    kernel.time_on_group_exit(group)
    if group.tty:
        from trapline.sentry.kernel import tty  # not for programs without a terminal

        tty.lost(kernel, group)  # with its leader the session loses it; the host has told the foreground group
    # Its children first, as in Linux exit_notify. What goes wrong otherwise: a subreaper that is told of a zombie
    # among them wakes, finds this process to be a zombie too and reaps it, and then it would be told of it.
    _reparent_children(kernel, group)
    group.exit_status = status
    parent = state.groups.get(group.ppid)
    if group.tgid == state.root_tgid:
        kernel.on_root_exit(status)
    elif not group.ppid:
        kernel.on_outside_exit(group)
    if parent is None or parent.exit_status >= 0:
        release(kernel, group)
        return
    _tell_parent(kernel, parent, group)


def _reparent_children(kernel: Kernel, group: ThreadGroup) -> None:
    """Children go to the nearest living subreaper, else to the sandbox's init (prctl(2)), which is one of us where the
    program is pid 1; also those of a process whose own parent is outside (Linux find_new_reaper)."""
    if not group.children:
        return
    state = kernel.state
    reaper = state.groups.get(group.ppid)
    while reaper is not None and not ((reaper.subreaper or reaper.tgid == INIT) and reaper.threads):
        reaper = state.groups.get(reaper.ppid)
    if reaper is None:
        init = state.groups.get(INIT)
        reaper = init if init is not None and init.threads else None
    children = [state.groups[child] for child in group.children]
    group.children, group.reports = {}, []
    for child in children:
        child.ppid = reaper.tgid if reaper is not None else INIT
        child.parent_tid = next(iter(reaper.threads)) if reaper is not None else INIT
        child.exit_signal = SIGCHLD
        if reaper is not None:
            family.add_child(state, reaper, child)
        if child.exit_status >= 0:
            if reaper is None:
                release(kernel, child)
            else:
                _tell_parent(kernel, reaper, child)


def _tell_parent(kernel: Kernel, parent: ThreadGroup, child: ThreadGroup) -> None:
    """SIGCHLD, or at once away with it where the parent ignores its children (sigaction(2), SA_NOCLDWAIT)."""
    family.note_report(parent, child)
    action = signal_send.action_of(parent, SIGCHLD)
    autoreap = False
    if child.exit_signal == SIGCHLD:
        autoreap = action.handler == SIG_IGN or bool(action.flags & SA_NOCLDWAIT)
    if child.exit_signal and not (autoreap and action.handler == SIG_IGN):
        status = child.exit_status
        signo = status & 0x7F
        code = CLD_EXITED if not signo else CLD_DUMPED if status & 0x80 else CLD_KILLED
        value = signo or (status >> 8) & 0xFF
        utime, stime = own_time(child)
        info = SigInfo(
            signo=child.exit_signal,
            code=code,
            pid=child.tgid,
            uid=child.uids[0],
            status=value,
            utime=utime,
            stime=stime,
        )
        if parent.threads:
            signal_send.send(kernel, parent, info)
    if autoreap:
        release(kernel, child)
    kernel.wake_waiters(parent.tgid)


def rusage_times(rusage: bytes) -> tuple[int, int]:
    """User and system time of a struct rusage, µs."""
    if len(rusage) < 32:
        return 0, 0
    words = [int.from_bytes(rusage[i : i + 8], "little") for i in (0, 8, 16, 24)]
    return words[0] * 1_000_000 + words[1], words[2] * 1_000_000 + words[3]


def own_time(group: ThreadGroup) -> tuple[int, int]:
    """si_utime and si_stime of a process that has ended, in ticks of 10 ms: its own time, whereas its rusage has that
    of the children that it waited for too (Linux do_notify_parent)."""
    user, system = rusage_times(group.exit_rusage)
    return max(0, user - group.reaped[0]) // _TICK, max(0, system - group.reaped[1]) // _TICK


def waited_for(kernel: Kernel, parent: ThreadGroup, child: ThreadGroup) -> None:
    """A parent takes its child's zombie: the child's time is from now on in the parent's rusage (wait_task_zombie)."""
    if any(child.used_before):
        kernel.platform.waited_for(parent.tgid, child.used_before)
    user, system = rusage_times(child.exit_rusage)
    parent.reaped = parent.reaped[0] + user, parent.reaped[1] + system


def notify_parent_of_change(kernel: Kernel, group: ThreadGroup, continued: bool) -> None:
    """A child stopped or went on: SIGCHLD unless SA_NOCLDSTOP, and the waiters look again."""
    parent = kernel.state.groups.get(group.ppid)
    if parent is None or not parent.threads:
        return
    family.note_report(parent, group)
    if not signal_send.action_of(parent, SIGCHLD).flags & SA_NOCLDSTOP:
        code, value = (CLD_CONTINUED, SIGCONT) if continued else (CLD_STOPPED, group.stop_signal)
        info = SigInfo(signo=SIGCHLD, code=code, pid=group.tgid, uid=group.uids[0], status=value)
        if not signal_send.is_ignored(parent, SIGCHLD):
            _note_times(kernel, group, info)
        signal_send.send(kernel, parent, info)
    kernel.wake_waiters(parent.tgid)


def _note_times(kernel: Kernel, group: ThreadGroup, info: SigInfo) -> None:
    """Of a process that lives, si_utime and si_stime are its leader's alone (Linux do_notify_parent_cldstop)."""
    try:
        user = kernel.platform.thread_user_ns(group.tgid)
        info.stime = max(0, kernel.platform.thread_cpu_ns(group.tgid) - user) // (_TICK * 1000)
        info.utime = user // (_TICK * 1000)
    except Gone:
        return  # killed meanwhile; the report of its end has the times


def release(kernel: Kernel, group: ThreadGroup) -> None:
    """The zombie is gone: nobody will ask for it any more."""
    family.leave_process_group(kernel.state, group)
    kernel.state.groups.pop(group.tgid, None)
    kernel.waiters.pop(group.tgid, None)
    parent = kernel.state.groups.get(group.ppid)
    if parent is not None:
        family.remove_child(parent, group)
