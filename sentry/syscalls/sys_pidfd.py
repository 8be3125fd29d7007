"""Processes named by a descriptor: pidfd_send_signal(2), and whom a pidfd names."""

from __future__ import annotations

import errno
from copy import copy

from trapline.sentry.kernel import family, signal_send
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.signals import SI_TKILL, SI_USER
from trapline.sentry.kernel.state import SigInfo, Task, ThreadGroup
from trapline.sentry.syscalls.registry import handler
from trapline.sentry.syscalls.sys_signal import (
    check_number,
    claims_kernel,
    from_user,
    is_stub,
    may_signal,
    process_of,
    read_info,
    signal_init,
)

THREAD, THREAD_GROUP, PROCESS_GROUP = 1, 2, 4  # PIDFD_SIGNAL_*
SELF_THREAD, SELF_THREAD_GROUP = -10000, -10001  # PIDFD_SELF_*
_O_EXCL = 0o200  # of a descriptor: PIDFD_THREAD, one thread rather than its process


def _names(kernel: Kernel, task: Task, fd: int) -> tuple[int, bool]:
    """(id, whether it is that of one thread) of a pidfd, as the sandbox numbers it; -1 once it is reaped. EBADF."""
    one_thread = False
    for line in kernel.platform.descriptor_info(task.tid, fd).splitlines():
        if line.startswith("flags:"):
            one_thread = bool(int(line.split()[1], 8) & _O_EXCL)
        elif line.startswith("NSpid:"):
            ids = line.split()[1:]
            return (int(ids[-1]) if ids and int(ids[-1]) > 0 else -1), one_thread
    raise OSError(errno.EBADF, "not a pidfd")


def pid_of_pidfd(kernel: Kernel, task: Task, fd: int) -> int:
    """The process that a pidfd names, as the sandbox numbers it; -1, which is nobody's, once it is reaped. EBADF."""
    return _names(kernel, task, fd)[0]


def _whom(kernel: Kernel, task: Task, fd: int) -> tuple[int, int]:
    """(id, scope) of what pidfd_send_signal takes: also the caller itself, and an open directory /proc/PID."""
    if fd == SELF_THREAD:
        return task.tid, THREAD
    if fd == SELF_THREAD_GROUP:
        return task.tgid, THREAD_GROUP
    try:
        ident, one_thread = _names(kernel, task, fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return kernel.platform.process_of_directory(task.tid, fd), THREAD_GROUP
    return ident, THREAD if one_thread else THREAD_GROUP


@handler("pidfd_send_signal")
def pidfd_send_signal(kernel: Kernel, task: Task, fd: int, signo: int, address: int, flags: int) -> int:
    """pidfd_send_signal(2). EINVAL for unknown flags or two of them, for a number other than siginfo's, EBADF, EFAULT,
    EPERM, ESRCH; found in Linux's order (do_pidfd_send_signal)."""
    if flags & ~(THREAD | THREAD_GROUP | PROCESS_GROUP) or flags & (flags - 1):
        raise OSError(errno.EINVAL, "flags")
    ident, scope = _whom(kernel, task, fd)
    scope = flags or scope
    if address:
        info = read_info(kernel, task, address)
        if info.signo != signo:
            raise OSError(errno.EINVAL, "si_signo")
        if claims_kernel(info) and (ident != task.tid or scope == PROCESS_GROUP):
            raise OSError(errno.EPERM, "si_code")
    else:
        info = from_user(kernel, task, signo, SI_TKILL if scope == THREAD else SI_USER)
    if scope != PROCESS_GROUP and is_stub(kernel, ident):
        check_number(signo)
        return signal_init(kernel, task)
    targets = family.members(kernel.state, ident) if scope == PROCESS_GROUP else [process_of(kernel, ident)]
    return _send(kernel, task, targets, ident if scope == THREAD else 0, info)


def _send(kernel: Kernel, task: Task, targets: list[ThreadGroup], tid: int, info: SigInfo) -> int:
    if not targets:
        raise OSError(errno.ESRCH, "no such process")
    check_number(info.signo)
    allowed = [g for g in targets if may_signal(kernel, task, g, info.signo)]
    if not allowed:
        raise OSError(errno.EPERM, "not permitted")
    for group in allowed:
        if info.signo and group.exit_status < 0:  # a zombie exists, but nothing can happen to it
            signal_send.send(kernel, group, copy(info), tid)  # two queues never hold one object (state.py)
    return 0
