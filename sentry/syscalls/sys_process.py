"""Making processes and moving them between groups: clone(2), setpgid(2), setsid(2), prctl(2)."""

from __future__ import annotations

import errno
import struct

from trapline.sentry.kernel import sessions
from trapline.sentry.kernel.block import Execute, Reply
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.signals import SIGCHLD, SIGRTMAX
from trapline.sentry.kernel.state import Task, ThreadGroup
from trapline.sentry.kernel.task_clone import CLONE_PTRACE, CLONE_UNTRACED, CLONE_VFORK, CLONE_VM, NAMESPACES
from trapline.sentry.syscalls.registry import handler

CSIGNAL = 0xFF
CLONE_PARENT_SETTID, CLONE_PIDFD, CLONE_DETACHED = 0x100000, 0x1000, 0x400000
#: In clone3 only: above 32 bits, and CLONE_NEWTIME which is a signal number in clone.
CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP, CLONE_NEWTIME = 1 << 32, 1 << 33, 0x80
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 2, 36


class Clone(Execute):
    """Let the host make a task, with these flags in place of the guest's.

    `hold`: keep the parent at its stop until the child executes a program or ends. That is what CLONE_VFORK
    does, but a parent that waits in the host's vfork cannot be stopped, interrupted or saved.
    `structure`: clone3's arguments, where clone has no registers for them; `args` is None then.
    """

    __slots__ = ("flags", "hold", "structure")

    def __init__(self, args: tuple[int, ...] | None, flags: int, hold: bool, structure: bytes = b"") -> None:
        super().__init__(args)
        self.flags = flags
        self.hold = hold
        self.structure = structure


def _checked(flags: int, namespaces: int) -> None:
    if flags & namespaces:
        raise OSError(errno.EPERM, "namespaces")


@handler("clone")
def clone(kernel: Kernel, task: Task, flags: int, stack: int, ptid: int, ctid: int, tls: int) -> Clone:
    """clone(2). Namespaces are refused (EPERM); CLONE_UNTRACED and CLONE_PTRACE are masked."""
    _checked(flags, NAMESPACES & ~CLONE_NEWTIME)
    hold = bool(flags & CLONE_VFORK)
    kept = flags & ~(CLONE_VFORK | CLONE_UNTRACED | CLONE_PTRACE)
    return Clone((kept, stack, ptid, ctid, tls), flags, hold)


@handler("vfork")
def vfork(kernel: Kernel, task: Task) -> Clone:
    """vfork(2): as clone, without the host's wait."""
    return Clone((CLONE_VM | SIGCHLD, 0, 0, 0, 0), CLONE_VM | CLONE_VFORK | SIGCHLD, True)


@handler("clone3")
def clone3(kernel: Kernel, task: Task, address: int, size: int) -> Clone:
    """clone3(2), turned into clone in registers: its structure lies in guest memory, where another thread
    could change it after it was read. What clone cannot say is executed as clone3, with a structure of ours."""
    if size < 64:
        raise OSError(errno.EINVAL, "size")
    if size > 4096:
        raise OSError(errno.E2BIG, "size")
    raw = kernel.memory(task).read(address, size)
    if any(raw[88:]):
        raise OSError(errno.E2BIG, "unknown fields")
    words = struct.unpack("<11Q", raw[:88].ljust(88, b"\0"))
    flags, pidfd, ctid, ptid, exit_signal, stack, stack_size, tls, _, set_tid_size, cgroup = words
    _checked(flags, NAMESPACES)
    if flags & (CLONE_DETACHED | CSIGNAL) or exit_signal > SIGRTMAX or bool(stack) != bool(stack_size):
        raise OSError(errno.EINVAL, "clone_args")
    if set_tid_size:
        raise OSError(errno.EPERM, "set_tid")
    if flags & CLONE_INTO_CGROUP and size < 88:
        raise OSError(errno.EINVAL, "no room for a cgroup")
    hold = bool(flags & CLONE_VFORK)
    kept = flags & ~(CLONE_VFORK | CLONE_UNTRACED | CLONE_PTRACE)
    both = flags & CLONE_PIDFD and flags & CLONE_PARENT_SETTID
    if flags >> 32 or both:
        structure = struct.pack("<11Q", kept, pidfd, ctid, ptid, exit_signal, stack, stack_size, tls, 0, 0, cgroup)
        return Clone(None, flags | exit_signal, hold, structure)
    top = stack + stack_size if stack else 0
    first = pidfd if flags & CLONE_PIDFD else ptid
    return Clone((kept | exit_signal, top, first, ctid, tls), flags | exit_signal, hold)


def _group(kernel: Kernel, task: Task, pid: int) -> ThreadGroup:
    group = kernel.state.groups.get(pid) if pid else kernel.group(task)
    if group is None:
        raise OSError(errno.ESRCH, "no such process")
    return group


@handler("setpgid")
def setpgid(kernel: Kernel, task: Task, pid: int, pgid: int) -> Reply:
    """setpgid(2): decided here, mirrored by the host."""
    sessions.set_process_group(kernel, kernel.group(task), pid, pgid)
    return Reply.HOST


@handler("getpgid")
def getpgid(kernel: Kernel, task: Task, pid: int) -> int:
    """getpgid(2)."""
    return _group(kernel, task, pid).pgid


@handler("getpgrp")
def getpgrp(kernel: Kernel, task: Task) -> int:
    """getpgrp(2)."""
    return kernel.group(task).pgid


@handler("setsid")
def setsid(kernel: Kernel, task: Task) -> Reply:
    """setsid(2): decided here, mirrored by the host."""
    sessions.new_session(kernel, kernel.group(task))
    return Reply.HOST


@handler("getsid")
def getsid(kernel: Kernel, task: Task, pid: int) -> int:
    """getsid(2)."""
    return _group(kernel, task, pid).sid


@handler("prctl")
def prctl(kernel: Kernel, task: Task, option: int, a: int, b: int, c: int, d: int) -> int | Reply:
    """prctl(2): the options that the sentry owns; the filter lets the others through."""
    group = kernel.group(task)
    if option == PR_SET_PDEATHSIG:
        if a > SIGRTMAX:
            raise OSError(errno.EINVAL, "signal")
        # Not mirrored: the sentry sends it, and the host would send a second one.
        group.pdeathsig = a
        return 0
    if option == PR_GET_PDEATHSIG:
        kernel.memory(task).write(a, struct.pack("<i", group.pdeathsig))
        return 0
    if option == PR_SET_CHILD_SUBREAPER:
        group.subreaper = bool(a)
    return Reply.HOST


@handler("seccomp")
def seccomp(kernel: Kernel, task: Task, operation: int, flags: int, args: int) -> int | Reply:
    """seccomp(2): filters stack, so the guest's own is installed by the host on top of the sandbox's.

    A second listener is not possible in one chain (EBUSY), and the log says why.
    """
    if operation == 1 and flags & 8:
        kernel.log(f"task {task.tid} asks for a seccomp listener: refused, the sandbox has the only one")
        raise OSError(errno.EBUSY, "listener")
    return Reply.HOST


@handler("ptrace")
def ptrace(kernel: Kernel, task: Task, request: int, pid: int, addr: int, data: int) -> int:
    """ptrace(2): EPERM. A task has one tracer, and that is the sentry.

    Debuggers say no more than "Operation not permitted", so the user is told once where the reason is.
    """
    kernel.tell_once("ptrace: a traced program inside a sandbox is not supported (docs/limits.md)")
    raise OSError(errno.EPERM, "ptrace")


# The host changes the user; the sentry forgets whom it has found the caller to be (`Task.uid`).
def _user_changes(kernel: Kernel, task: Task) -> None:
    task.uid = -1
    kernel.state.users_changed = True


@handler("setuid")
def setuid(kernel: Kernel, task: Task, uid: int) -> Reply:
    """setuid(2), by the host."""
    _user_changes(kernel, task)
    return Reply.HOST


@handler("setreuid")
def setreuid(kernel: Kernel, task: Task, real: int, effective: int) -> Reply:
    """setreuid(2), by the host."""
    _user_changes(kernel, task)
    return Reply.HOST


@handler("setresuid")
def setresuid(kernel: Kernel, task: Task, real: int, effective: int, saved: int) -> Reply:
    """setresuid(2), by the host."""
    _user_changes(kernel, task)
    return Reply.HOST
