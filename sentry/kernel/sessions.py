"""Process groups and sessions: who may move whom (setpgid(2), setsid(2)).

The host executes the change after it was found right here: the host's groups are the mirror that terminals
and `ps` read. So it also finds the groups that an exit orphans, and its SIGHUP and SIGCONT to their stopped
members arrive as any other signal of the host's.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from trapline.sentry.kernel import family
from trapline.sentry.kernel.state import ThreadGroup

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel


def set_process_group(kernel: Kernel, caller: ThreadGroup, pid: int, pgid: int) -> None:
    """setpgid(2). OSError EINVAL, ESRCH, EPERM, EACCES in the order in which Linux finds them."""
    pid = pid or caller.tgid
    pgid = pgid or pid
    if pgid < 0:
        raise OSError(errno.EINVAL, "negative group")
    group = kernel.state.groups.get(pid)
    if group is None:
        raise OSError(errno.ESRCH, "no such process")
    if group.tgid != caller.tgid:
        if group.ppid != caller.tgid:
            raise OSError(errno.ESRCH, "not a child")
        if group.sid != caller.sid:
            raise OSError(errno.EPERM, "child in another session")
        if group.did_exec:
            raise OSError(errno.EACCES, "child has executed a program")
    if group.sid == group.tgid:
        raise OSError(errno.EPERM, "session leader")
    if pgid != group.tgid and _session_of(kernel, pgid) != caller.sid:
        raise OSError(errno.EPERM, "no such group in this session")
    family.join_process_group(kernel.state, group, pgid)


def _session_of(kernel: Kernel, pgid: int) -> int:
    """The session of a process group, which is that of each of its members; -1 where there is no such group."""
    for tgid in kernel.state.process_groups.get(pgid, ()):
        return kernel.state.groups[tgid].sid
    return -1


def new_session(kernel: Kernel, group: ThreadGroup) -> int:
    """setsid(2). OSError EPERM for a group leader, or where the id is still a group's."""
    if group.tgid in kernel.state.process_groups:
        raise OSError(errno.EPERM, "process group exists")
    family.join_process_group(kernel.state, group, group.tgid)
    group.sid = group.tgid
    group.tty = 0  # a new session has none
    return group.tgid
