"""wait4(2) and waitid(2).

The sentry decides which child, and answers stops and continues itself. A zombie is reaped by the host, with
exactly that child and WNOHANG, so that status and rusage are the host's own.
"""

from __future__ import annotations

import errno
import struct

from trapline.sentry.kernel import task_exit
from trapline.sentry.kernel.block import Interrupted, Outcome, Reply, Restart
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.signals import CLD_CONTINUED, CLD_DUMPED, CLD_STOPPED, INIT, SIGCHLD, SIGCONT, pack_siginfo
from trapline.sentry.kernel.state import SigInfo, Task, ThreadGroup
from trapline.sentry.kernel.task_wait import (
    P_ALL,
    P_PGID,
    P_PID,
    P_PIDFD,
    WALL,
    WCLONE,
    WCONTINUED,
    WEXITED,
    WNOHANG,
    WNOTHREAD,
    WNOWAIT,
    WSTOPPED,
    Event,
    Selection,
    find_event,
)
from trapline.sentry.syscalls.registry import handler
from trapline.sentry.syscalls.sys_pidfd import pid_of_pidfd

INT_MIN = -(1 << 31)


async def _next_event(kernel: Kernel, task: Task, selection: Selection) -> Event | None:
    """Wait for an event; None with WNOHANG. OSError(ECHILD); Interrupted."""
    group = kernel.group(task)
    while True:
        event, any_child = find_event(kernel, group, selection)
        if event is not None:
            return event
        if not any_child:
            raise OSError(errno.ECHILD, "no child")
        if selection.options & WNOHANG:
            return None
        waiters = kernel.waiters.setdefault(group.tgid, [])
        waiters.append(task.tid)
        if task.call is not None:
            task.call.scratch["waited"] = 1
        try:
            outcome = await kernel.block(task, queue="wait")
        finally:
            waiters.remove(task.tid)
            if not waiters:
                kernel.waiters.pop(group.tgid, None)
        if outcome is Outcome.INTERRUPTED:
            raise Interrupted(Restart.SYS)


def _consume(event: Event, options: int) -> None:
    if not options & WNOWAIT:
        if event.kind == "stopped":
            event.child.stop_report = 0
        else:
            event.child.continue_report = False


def _host_would_choose(parent: ThreadGroup, selection: Selection, child: ThreadGroup) -> bool:
    """Whether the host, given the call as it stands, takes this zombie and says what the kernel would say.

    That saves the stop at the call's end, a tenth of fork, exit and wait together. (After the call has waited there is
    that stop in any case.) It does where the pid is given, or there is one child and nobody can become another. What
    goes wrong otherwise: the end of a second child is served before the call gets that far, or an orphan has come whose
    parent's end is not reported yet, and the host reaps another child than the kernel does. And where there is one
    thread no other can take the zombie meanwhile, nor SIGCHLD come to be ignored.
    """
    if len(parent.threads) > 1 or child.core_dumped or selection.options & (WSTOPPED | WCONTINUED):
        return False
    if selection.kind == P_PID:
        return True
    return len(parent.children) == 1 and not parent.subreaper and parent.tgid != INIT


def _add_used_before(kernel: Kernel, task: Task, rusage: int, child: ThreadGroup) -> None:
    """To what the host has written of a child: from before a restore."""
    from trapline.sentry.syscalls import sys_rusage

    sys_rusage.add_at(kernel, task, rusage, child.used_before)


@handler("wait4")
async def wait4(kernel: Kernel, task: Task, pid: int, status: int, options: int, rusage: int) -> int | Reply:
    """wait4(2). EINVAL for an unknown option, ESRCH for INT_MIN, ECHILD, EFAULT."""
    options &= 0xFFFFFFFF
    if options & ~(WNOHANG | WSTOPPED | WCONTINUED | WNOTHREAD | WCLONE | WALL):
        raise OSError(errno.EINVAL, "options")
    if pid == INT_MIN:
        raise OSError(errno.ESRCH, "pid")
    if pid > 0:
        kind, ident = P_PID, pid
    elif pid == -1:
        kind, ident = P_ALL, 0
    else:
        kind, ident = P_PGID, -pid or kernel.group(task).pgid
    selection = Selection(kind, ident, options | WEXITED, task.tid)
    while True:
        event = await _next_event(kernel, task, selection)
        if event is None:
            return 0
        child = event.child
        if event.kind == "exited":
            parent = kernel.group(task)
            waited = task.call is not None and task.call.scratch.get("waited")
            as_it_stands = not waited and _host_would_choose(parent, selection, child)
            as_it_stands = as_it_stands and not any(child.used_before)
            task_exit.waited_for(kernel, parent, child)
            task_exit.release(kernel, child)
            if as_it_stands:
                return Reply.HOST
            keep = options & (WNOTHREAD | WCLONE | WALL)
            result = await kernel.execute((child.tgid, status, keep | WNOHANG, rusage))
            if result in (0, -errno.ECHILD):
                continue  # the host has none: it was reaped on its way (SIGCHLD set to ignored just now)
            if child.core_dumped and status and result == child.tgid:
                kernel.memory(task).write(status, struct.pack("<i", child.exit_status))
            if rusage and any(child.used_before) and result == child.tgid:
                _add_used_before(kernel, task, rusage, child)
            return result
        _consume(event, options)
        memory = kernel.memory(task)
        if status:
            value = child.stop_signal << 8 | 0x7F if event.kind == "stopped" else 0xFFFF
            memory.write(status, struct.pack("<i", value))
        if rusage:
            memory.write(rusage, bytes(144))
        return child.tgid


@handler("waitid")
async def waitid(
    kernel: Kernel, task: Task, idtype: int, ident: int, info: int, options: int, rusage: int
) -> int:
    """waitid(2). EINVAL, ECHILD, EBADF (P_PIDFD), EFAULT.

    Linux writes `info`, as zeros, on an error too, so that a bad pointer is EFAULT before anything else.
    """
    try:
        event = await _choose(kernel, task, idtype, ident, options & 0xFFFFFFFF)
    except OSError:
        if info:
            _write_info(kernel, task, info, b"")
        raise
    while event is not None and event.kind == "exited":
        child = event.child
        if not options & WNOWAIT:
            task_exit.waited_for(kernel, kernel.group(task), child)
            task_exit.release(kernel, child)
        keep = options & (WNOTHREAD | WCLONE | WALL | WNOWAIT)
        result = await kernel.execute((P_PID, child.tgid, info, keep | WEXITED | WNOHANG, rusage))
        if result != -errno.ECHILD:
            if child.core_dumped and info and result == 0:
                kernel.memory(task).write(info + 8, struct.pack("<i", CLD_DUMPED))
            if rusage and any(child.used_before) and result == 0:
                _add_used_before(kernel, task, rusage, child)
            return result
        event = await _choose(kernel, task, idtype, ident, options & 0xFFFFFFFF)
    packed = b""
    if event is not None:
        child, stopped = event.child, event.kind == "stopped"
        _consume(event, options)
        packed = pack_siginfo(
            SigInfo(
                signo=SIGCHLD,
                code=CLD_STOPPED if stopped else CLD_CONTINUED,
                pid=child.tgid,
                uid=child.uids[0],
                status=child.stop_signal if stopped else SIGCONT,
            )
        )
    if info:
        _write_info(kernel, task, info, packed)
    return 0


def _write_info(kernel: Kernel, task: Task, address: int, packed: bytes) -> None:
    """The fields that waitid fills; the padding between them stays as it is."""
    packed = packed.ljust(28, b"\0")
    memory = kernel.memory(task)
    memory.write(address, packed[:12])
    memory.write(address + 16, packed[16:28])


async def _choose(kernel: Kernel, task: Task, idtype: int, ident: int, options: int) -> Event | None:
    known = WNOHANG | WNOWAIT | WEXITED | WSTOPPED | WCONTINUED | WNOTHREAD | WCLONE | WALL
    if options & ~known or not options & (WEXITED | WSTOPPED | WCONTINUED):
        raise OSError(errno.EINVAL, "options")
    if idtype == P_PIDFD:
        if ident < 0:
            raise OSError(errno.EINVAL, "pidfd")
        idtype, ident = P_PID, pid_of_pidfd(kernel, task, ident)
    elif idtype == P_PGID:
        if ident < 0:
            raise OSError(errno.EINVAL, "id")
        ident = ident or kernel.group(task).pgid
    elif idtype == P_PID:
        if ident <= 0:
            raise OSError(errno.EINVAL, "id")
    elif idtype != P_ALL:
        raise OSError(errno.EINVAL, "idtype")
    return await _next_event(kernel, task, Selection(idtype, ident, options, task.tid))
