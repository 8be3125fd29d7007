"""Which CPUs a task may run on: sched_setaffinity(2) under `do --cpus`, which caps it as a cpuset would.

What is asked for is intersected with the sandbox's CPUs (cpuset(7)). Without --cpus the host executes the call
as it stands. sched_getaffinity(2) is the host's own: it shows what was set here.
"""

from __future__ import annotations

import errno

from trapline.sentry.kernel.block import Reply
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.signals import INIT
from trapline.sentry.kernel.state import Task, ThreadGroup
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls.registry import handler

CAP_SYS_NICE = 23


@handler("sched_setaffinity")
def sched_setaffinity(kernel: Kernel, task: Task, pid: int, size: int, address: int) -> int | Reply:
    """sched_setaffinity(2). EFAULT, ESRCH, EPERM, EINVAL when no CPU is left, in Linux's order.

    The sentry sets it on the host's thread rather than have the host execute a mask that was found good:
    another thread could change it in between. So the permission is checked here too.
    """
    cpus = kernel.state.allowed_cpus
    if not cpus:
        return Reply.HOST
    # get_user_cpu_mask() in kernel/sched/syscalls.c: bytes that are missing are 0, more are not looked at.
    size = min(size, kernel.platform.cpu_mask_size())
    wanted = int.from_bytes(kernel.memory(task).read(address, size), "little") if size else 0
    tid = pid or task.tid
    dead = kernel.state.groups.get(tid) if tid not in kernel.state.tasks else None
    if dead is None and tid != INIT and tid not in kernel.state.tasks:
        raise OSError(errno.ESRCH, "no such task")
    if tid != task.tid and not _may_schedule(kernel, task, tid, dead):
        raise OSError(errno.EPERM, "not permitted")
    left = [cpu for cpu in cpus if wanted >> cpu & 1]
    if not left:
        raise OSError(errno.EINVAL, "no CPU is left")
    if dead is None:  # a zombie's affinity can be set, and nobody ever sees it
        kernel.platform.set_affinity(tid, left)
    return 0


def _may_schedule(kernel: Kernel, task: Task, tid: int, dead: ThreadGroup | None) -> bool:
    """check_same_owner() and cap_safe_nice(): the effective uid is the target's effective or real one, and the
    target has no capability that the caller lacks; or CAP_SYS_NICE."""
    platform = kernel.platform
    (_, caller, _), capabilities = platform.credentials(task.tid)
    if capabilities >> CAP_SYS_NICE & 1:
        return True
    try:
        (real, effective, _), _ = platform.credentials(tid)
        more = platform.permitted(tid) & ~platform.permitted(task.tid)
    except Gone:
        if dead is None:
            raise
        (real, effective, _), more = dead.uids, 0
    return caller in (real, effective) and not more
