"""Sending signals and setting what happens to them: kill(2) and its family, sigaction(2), sigprocmask(2)."""

from __future__ import annotations

import errno
import struct
from copy import copy

from trapline.sentry.kernel import family, signal_send, signal_settle
from trapline.sentry.kernel.block import Reply
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.signals import (
    DEFAULT_IGNORE,
    INIT,
    SI_TKILL,
    SI_USER,
    SIG_DFL,
    SIG_IGN,
    SIGCONT,
    SIGKILL,
    SIGRTMAX,
    SIGSTOP,
    UNMASKABLE,
    bit,
    known_siginfo_layout,
    unpack_siginfo,
)
from trapline.sentry.kernel.state import SigAction, SigInfo, Task, ThreadGroup
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls import posix_timers
from trapline.sentry.syscalls.registry import handler

CAP_KILL = 5
SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK = 0, 1, 2


def may_signal(kernel: Kernel, task: Task, target: ThreadGroup, signo: int) -> bool:
    """kill(2): CAP_KILL, or one of the real or effective uid of the sender equals the real or saved of the
    target; SIGCONT also within a session."""
    if target.tgid == task.tgid:
        return True
    (real, effective, _), capabilities = kernel.platform.credentials(task.tid)
    if capabilities >> CAP_KILL & 1:
        return True
    try:
        (target_real, _, target_saved), _ = kernel.platform.credentials(target.tgid)
    except Gone:
        target_real, _, target_saved = target.uids  # a zombie: as it was at its end
    if effective in (target_real, target_saved) or real in (target_real, target_saved):
        return True
    return signo == SIGCONT and kernel.group(task).sid == target.sid


def check_number(signo: int) -> None:
    """EINVAL for a number that is no signal's; 0 only asks."""
    if not 0 <= signo <= SIGRTMAX:
        raise OSError(errno.EINVAL, "signal number")


def from_user(kernel: Kernel, task: Task, signo: int, code: int) -> SigInfo:
    """What kill(2) and tgkill(2) say of themselves."""
    if task.uid < 0:
        # Asking the host costs more than the rest of a kill(2), so it is asked once: a thread's real user
        # changes by its own setuid(2) and its like only, which pass the sentry.
        task.uid = kernel.platform.credentials(task.tid)[0][0]
    return SigInfo(signo=signo, code=code, pid=task.tgid, uid=task.uid)


def is_stub(kernel: Kernel, pid: int) -> bool:
    """Whether this is pid 1, and none of the programs: the stub that takes no signals."""
    return pid == INIT and INIT not in kernel.state.groups


def signal_init(kernel: Kernel, task: Task) -> int:
    """The sandbox's init takes no signal for which it has no handler (pid_namespaces(7)), but not everybody
    may send one."""
    (real, effective, _), capabilities = kernel.platform.credentials(task.tid)
    if not capabilities >> CAP_KILL & 1 and kernel.state.init_uid not in (real, effective):
        raise OSError(errno.EPERM, "not permitted")
    return 0


def process_of(kernel: Kernel, pid: int) -> ThreadGroup:
    """A process by its id or that of one of its threads, which Linux takes for it. ESRCH."""
    thread = kernel.state.tasks.get(pid)
    found = kernel.state.groups.get(pid if thread is None else thread.tgid)
    if found is None:
        raise OSError(errno.ESRCH, "no such process")
    return found


@handler("kill")
def kill(kernel: Kernel, task: Task, pid: int, signo: int) -> int:
    """kill(2). ESRCH, EINVAL, EPERM (only when no target at all could be signalled)."""
    groups = kernel.state.groups
    if pid > 0:
        if is_stub(kernel, pid):
            check_number(signo)
            return signal_init(kernel, task)
        targets = [process_of(kernel, pid)]
    elif pid == -1:
        targets = [g for g in groups.values() if g.tgid not in (task.tgid, INIT)]
    else:
        pgid = -pid if pid else kernel.group(task).pgid
        targets = family.members(kernel.state, pgid)
    if not targets:
        raise OSError(errno.ESRCH, "no such process")
    check_number(signo)
    allowed = [g for g in targets if may_signal(kernel, task, g, signo)]
    if not allowed and pid == -1:
        return 0  # there were processes, and that is enough (Linux kill_something_info)
    if not allowed:
        raise OSError(errno.EPERM, "not permitted")
    if signo == 0:
        return 0
    info = from_user(kernel, task, signo, SI_USER)
    for target in allowed:
        # A zombie exists for kill(2), but nothing can happen to it.
        if target.exit_status < 0:
            signal_send.send(kernel, target, copy(info))  # two queues never hold one object (state.py)
    return 0


def _thread(kernel: Kernel, tgid: int, tid: int) -> tuple[Task, ThreadGroup]:
    target = kernel.state.tasks.get(tid)
    if target is None or (tgid > 0 and target.tgid != tgid):
        raise OSError(errno.ESRCH, "no such thread")
    return target, kernel.group(target)


def _send_to_thread(kernel: Kernel, task: Task, tgid: int, tid: int, signo: int, info: SigInfo | None) -> int:
    if tgid in (0, INIT) and is_stub(kernel, tid):
        check_number(signo)
        return signal_init(kernel, task)
    zombie = kernel.state.groups.get(tid)
    if zombie is not None and zombie.exit_status >= 0 and tgid in (0, tid):
        # It exists until it is reaped, but nothing can happen to it.
        check_number(signo)
        if not may_signal(kernel, task, zombie, signo):
            raise OSError(errno.EPERM, "not permitted")
        return 0
    target, group = _thread(kernel, tgid, tid)
    check_number(signo)
    if not may_signal(kernel, task, group, signo):
        raise OSError(errno.EPERM, "not permitted")
    if signo:
        info = info or from_user(kernel, task, signo, SI_TKILL)
        signal_send.send(kernel, group, info, target.tid)
    return 0


@handler("tgkill")
def tgkill(kernel: Kernel, task: Task, tgid: int, tid: int, signo: int) -> int:
    """tgkill(2)."""
    if tgid <= 0 or tid <= 0:
        raise OSError(errno.EINVAL, "id")
    return _send_to_thread(kernel, task, tgid, tid, signo, None)


@handler("tkill")
def tkill(kernel: Kernel, task: Task, tid: int, signo: int) -> int:
    """tkill(2)."""
    if tid <= 0:
        raise OSError(errno.EINVAL, "id")
    return _send_to_thread(kernel, task, 0, tid, signo, None)


_SIGINFO_KNOWN = 48  # bytes of siginfo_t that any layout has (Linux kernel_siginfo)


def read_info(kernel: Kernel, task: Task, address: int) -> SigInfo:
    """The guest's siginfo_t. EFAULT, E2BIG (Linux copy_siginfo_from_user)."""
    memory = kernel.memory(task)
    raw = memory.read(address, _SIGINFO_KNOWN)
    info = unpack_siginfo(raw + bytes(128 - _SIGINFO_KNOWN))
    if not known_siginfo_layout(info.signo, info.code) and any(
        memory.read(address + _SIGINFO_KNOWN, 128 - _SIGINFO_KNOWN)
    ):
        raise OSError(errno.E2BIG, "siginfo of a layout that is not known")
    return info


def claims_kernel(info: SigInfo) -> bool:
    """Whether a siginfo pretends to come from the kernel, from kill or tgkill, which may only be said to oneself
    (rt_sigqueueinfo(2): EPERM)."""
    return info.code >= 0 or info.code == SI_TKILL


def may_claim(task: Task, target: int, info: SigInfo) -> None:
    """EPERM where the claim is made to another."""
    if claims_kernel(info) and target != task.tid:
        raise OSError(errno.EPERM, "si_code")


@handler("rt_sigqueueinfo")
def rt_sigqueueinfo(kernel: Kernel, task: Task, tgid: int, signo: int, address: int) -> int:
    """rt_sigqueueinfo(2)."""
    info = read_info(kernel, task, address)
    info.signo = signo
    may_claim(task, tgid, info)
    if is_stub(kernel, tgid):
        check_number(signo)
        return signal_init(kernel, task)
    target = process_of(kernel, tgid)
    check_number(signo)
    if not may_signal(kernel, task, target, signo):
        raise OSError(errno.EPERM, "not permitted")
    if signo and target.exit_status < 0:
        signal_send.send(kernel, target, info)
    return 0


@handler("rt_tgsigqueueinfo")
def rt_tgsigqueueinfo(kernel: Kernel, task: Task, tgid: int, tid: int, signo: int, address: int) -> int:
    """rt_tgsigqueueinfo(2)."""
    info = read_info(kernel, task, address)
    info.signo = signo
    if tgid <= 0 or tid <= 0:
        raise OSError(errno.EINVAL, "id")
    may_claim(task, tid, info)
    return _send_to_thread(kernel, task, tgid, tid, signo, info)


@handler("rt_sigaction")
def rt_sigaction(kernel: Kernel, task: Task, signo: int, new: int, old: int, size: int) -> int | Reply:
    """rt_sigaction(2): recorded here, then executed by the host, which keeps the mirror and writes `old`."""
    if size != 8:
        raise OSError(errno.EINVAL, "sigsetsize")
    raw = kernel.memory(task).read(new, 32) if new else b""
    if not 1 <= signo <= SIGRTMAX:
        raise OSError(errno.EINVAL, "signal")
    if new:
        entry, flags, restorer, mask = struct.unpack("<QQQQ", raw)
        if signo in (SIGKILL, SIGSTOP):
            raise OSError(errno.EINVAL, "cannot be caught")
        group = kernel.group(task)
        was_ignored = signal_send.is_ignored(group, signo)
        if len(group.threads) > 1:
            signal_settle.disposition_changes(group, task, signo, signal_send.action_of(group, signo), entry)
        if entry == SIG_DFL and not flags and not mask:
            group.actions.pop(signo, None)
        else:
            group.actions[signo] = SigAction(entry, flags, restorer, mask)
        ignored = entry == SIG_IGN or (entry == SIG_DFL and DEFAULT_IGNORE & bit(signo))
        if ignored:
            signal_send.flush(group, bit(signo))
        elif was_ignored:
            if group.posix_timers:
                # A timer that expired while its signal was ignored starts again (Linux 6.13).
                posix_timers.posix_timer_unignored(kernel, group, signo)
            if len(group.threads) > 1:
                signal_settle.poke_again(kernel, group, signo)
    return Reply.HOST


@handler("rt_sigprocmask")
def rt_sigprocmask(kernel: Kernel, task: Task, how: int, new: int, old: int, size: int) -> int | Reply:
    """rt_sigprocmask(2): recorded, then executed by the host.

    The poke for what is unblocked is queued *before* the host changes its mask, so the signal is delivered
    before the call returns, as POSIX asks.
    """
    if size != 8:
        raise OSError(errno.EINVAL, "sigsetsize")
    if new:
        (wanted,) = struct.unpack("<Q", kernel.memory(task).read(new, 8))
        before = task.mask
        if how == SIG_BLOCK:
            task.mask |= wanted & ~UNMASKABLE
        elif how == SIG_UNBLOCK:
            task.mask &= ~wanted
        elif how == SIG_SETMASK:
            task.mask = wanted & ~UNMASKABLE
        else:
            raise OSError(errno.EINVAL, "how")
        if task.mask != before:
            signal_send.mask_changed(kernel, task, before)
    return Reply.HOST


@handler("rt_sigpending")
def rt_sigpending(kernel: Kernel, task: Task, address: int, size: int) -> int:
    """rt_sigpending(2): pending and blocked, what the host holds back for itself included."""
    if size > 8:
        raise OSError(errno.EINVAL, "sigsetsize")
    found = kernel.platform.host_pending(task.tid)
    for info in task.pending + kernel.group(task).pending:
        found |= bit(info.signo)
    kernel.memory(task).write(address, struct.pack("<Q", found & task.mask)[:size])
    return 0


@handler("rt_sigreturn")
def rt_sigreturn(kernel: Kernel, task: Task) -> Reply:
    """rt_sigreturn(2): the host restores the frame; the sentry reads the mask that it holds.

    At the call rsp points at the frame's ucontext (the return address is popped already); uc_sigmask lies
    296 bytes into it (arch/x86/include/uapi/asm/ucontext.h).
    """
    context = kernel.platform.stack_pointer(task.tid)
    try:
        (mask,) = struct.unpack("<Q", kernel.memory(task).read(context + 296, 8))
    except OSError:
        return Reply.HOST  # a bad frame: the host sends SIGSEGV
    before = task.mask
    task.mask = mask & ~UNMASKABLE
    if task.mask != before:
        signal_send.mask_changed(kernel, task, before)
    return Reply.HOST
