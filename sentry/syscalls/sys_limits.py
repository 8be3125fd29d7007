"""Resource limits: getrlimit(2), setrlimit(2), prlimit(2).

RLIMIT_CPU is the sentry's (cpu_limit.py); all others are the host's, of which RLIMIT_SIGPENDING passes here so
that what the sentry remembers of it is forgotten. The order of errors is that of Linux kernel/sys.c.
"""

from __future__ import annotations

import errno
import struct

from trapline.sentry.kernel.block import Reply
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.state import Task, ThreadGroup
from trapline.sentry.syscalls import cpu_limit
from trapline.sentry.syscalls.registry import handler

RLIMIT_CPU = 0
CAP_SYS_RESOURCE = 24
_RLIMIT = struct.Struct("<QQ")


def _may_exceed(kernel: Kernel, task: Task) -> bool:
    return bool(kernel.platform.credentials(task.tid)[1] >> CAP_SYS_RESOURCE & 1)


def _check_permission(kernel: Kernel, task: Task, other: Task) -> None:
    """Linux check_prlimit_permission: of another task, all ids must be the caller's real ones."""
    if other is task:
        return
    platform = kernel.platform
    users = platform.credentials(other.tid)[0]
    groups = platform.group_ids(other.tid)
    real = platform.credentials(task.tid)[0][0], platform.group_ids(task.tid)[0]
    alike = users == (real[0],) * 3 and groups == (real[1],) * 3
    if not alike and not _may_exceed(kernel, task):
        raise OSError(errno.EPERM, "another user's")


def _set(kernel: Kernel, task: Task, group: ThreadGroup, soft: int, hard: int) -> None:
    if soft > hard:
        raise OSError(errno.EINVAL, "soft above hard")
    if hard > group.cpu_limit[1] and not _may_exceed(kernel, task):
        raise OSError(errno.EPERM, "hard limit raised")
    group.cpu_limit = (soft, hard)
    cpu_limit.arm(kernel, group)


@handler("prlimit64")
def prlimit64(kernel: Kernel, task: Task, pid: int, resource: int, new: int, old: int) -> int | Reply:
    """prlimit(2). EFAULT, ESRCH, EPERM, EINVAL; EFAULT for the old limit when the new one is set already."""
    other = kernel.state.tasks.get(pid) if pid else task
    group = kernel.group(other) if other is not None else kernel.state.groups.get(pid)
    if resource != RLIMIT_CPU or group is None:
        if group is not None:
            group.limits.pop(resource, None)
        return Reply.HOST  # also for the sandbox's init, and for nobody at all
    memory = kernel.memory(task)
    wanted = _RLIMIT.unpack(memory.read(new, _RLIMIT.size)) if new else None
    if other is not None:
        _check_permission(kernel, task, other)
    before = group.cpu_limit
    if wanted is not None:
        _set(kernel, task, group, *wanted)
    if old:
        memory.write(old, _RLIMIT.pack(*before))
    return 0


@handler("setrlimit")
def setrlimit(kernel: Kernel, task: Task, resource: int, new: int) -> int | Reply:
    """setrlimit(2). EFAULT, EINVAL, EPERM."""
    group = kernel.group(task)
    if resource != RLIMIT_CPU:
        group.limits.pop(resource, None)
        return Reply.HOST
    _set(kernel, task, group, *_RLIMIT.unpack(kernel.memory(task).read(new, _RLIMIT.size)))
    return 0


@handler("getrlimit")
def getrlimit(kernel: Kernel, task: Task, resource: int, old: int) -> int | Reply:
    """getrlimit(2). EFAULT."""
    if resource != RLIMIT_CPU:
        return Reply.HOST
    kernel.memory(task).write(old, _RLIMIT.pack(*kernel.group(task).cpu_limit))
    return 0


def attach(kernel: Kernel) -> None:
    """Hook into the kernel."""
    kernel.on_timer["rlimit"] = lambda key, expirations: cpu_limit.expired(kernel, key)
    kernel.time_on_start = lambda group: cpu_limit.arm(kernel, group)
