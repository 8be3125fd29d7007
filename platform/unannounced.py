"""Children whose creator was killed in the middle of making them.

The host starts a child and then tells of it (PTRACE_EVENT_CLONE and its like). A creator that is killed in
between tells nothing: what its child is a copy of is not known any more, and the child stands at its first stop
for ever. It has not executed one instruction, and its id has reached nobody, so it is killed, as if its creator
had been killed a moment earlier. Where the host has given it to a guest (a subreaper), that guest sees an orphan
that was killed, and can reap it.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from trapline.platform import task_ids
from trapline.platform.tracee import Tracee
from trapline.sentry.kernel import task_clone
from trapline.sentry.kernel.task_clone import CLONE_PARENT
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls.sys_process import Clone

if TYPE_CHECKING:
    from trapline.platform.engine import Engine

#: States of a thread that has not been between a child's start and the event (proc(5)): there it runs.
_ELSEWHERE = frozenset(b"SDZXI")


def settle(e: Engine) -> None:
    """Look at each child that nobody has announced: whether its creator can still do so."""
    for host in list(e.early):
        try:
            host_group, tid, parent = task_ids.read_ids(host)
        except Gone:
            continue  # it is dead; its end is reported
        if host_group != host:
            continue  # a thread: it ends with its process, or is announced
        t = e.tracees.get(parent)
        if t is not None and t.task is not None:
            # Its creator; or the subreaper that has got it.
            if not e.kernel.group(t.task).subreaper or _may_announce(e, parent):
                continue
        elif _may_share_its_parent(e):
            continue
        _abandon(e, host, tid, t)


def _abandon(e: Engine, host: int, tid: int, heir: Tracee | None) -> None:
    del e.early[host]
    if heir is None or heir.task is None:
        e.stillborn.add(host)
    else:
        e.add(Tracee(host, host, tid, task_clone.new_task(e.kernel, heir.task, tid, 0)))
    os.kill(host, signal.SIGKILL)


def _may_announce(e: Engine, host: int) -> bool:
    """Whether a thread of a process may be just after a child's start."""
    try:
        threads = os.listdir(f"/proc/{host}/task")
    except OSError:
        return False
    for name in threads:
        t = e.tracees.get(int(name))
        if t is not None and (t.listening or t.holding is not None):
            continue
        try:
            with open(f"/proc/{host}/task/{name}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
        except OSError:
            continue
        if state[0] not in _ELSEWHERE:
            return True
    return False


def _may_share_its_parent(e: Engine) -> bool:
    """Whether anybody is making a sibling of himself: then the parent is outside though the creator lives."""
    return any(isinstance(t.execute, Clone) and t.execute.flags & CLONE_PARENT for t in e.tracees.values())
