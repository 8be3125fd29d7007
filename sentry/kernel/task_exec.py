"""execve: what a new program keeps (execve(2), "Effect on process attributes")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel import task_exit
from trapline.sentry.kernel.signals import SIG_IGN
from trapline.sentry.kernel.state import Task

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel


def exec_done(kernel: Kernel, tgid: int, former_tid: int) -> Task:
    """A thread executed a new program: it is now the leader, and the only thread.

    The other threads' deaths may be reported before or after this; their tasks go now.
    """
    state = kernel.state
    group = state.groups[tgid]
    task = state.tasks[former_tid]
    others = [other for other in group.threads.values() if other is not task]
    group.threads = {former_tid: task}
    for other in others:
        task_exit.thread_ends(kernel, group, other)
        kernel.forget_task(other.tid)
    for child in task.made:
        state.groups[child].parent_tid = tgid
    state.tasks.pop(former_tid, None)
    task.tid = tgid
    task.call = None
    task.saved_mask = -1
    state.tasks[tgid] = task
    group.threads = {tgid: task}
    group.queues = {tgid: 0}
    group.actions = {s: a for s, a in group.actions.items() if a.handler == SIG_IGN}
    group.did_exec = True
    group.exit_signal = 17
    state.exec_count += 1
    kernel.time_on_exec(group)
    return task
