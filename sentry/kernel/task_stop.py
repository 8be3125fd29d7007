"""Job-control stops: when a process counts as stopped, and what its parent is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel import task_exit
from trapline.sentry.kernel.state import Task, TaskStatus

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel


def thread_stopped(kernel: Kernel, task: Task, signo: int) -> None:
    """A thread is in the host's group stop. The process is stopped once all of its threads are."""
    group = kernel.group(task)
    task.status = TaskStatus.STOPPED
    if group.stop_signal:
        return
    # A thread that is held as a vfork's parent stops when it is let go, and the process counts as stopped only then.
    running = [tid for tid, t in group.threads.items() if t.status != TaskStatus.STOPPED]
    # A leader that has ended before its threads is not reported until they end: it cannot stop any more.
    if not running or (running == [group.tgid] and kernel.platform.has_ended(group.tgid)):
        group.stop_signal = group.stop_report = signo
        group.continue_report = False
        task_exit.notify_parent_of_change(kernel, group, continued=False)
        if group.tgid == kernel.state.root_tgid:
            kernel.on_root_stop(signo)


def thread_goes_on(task: Task) -> None:
    """A thread left the stop."""
    if task.status == TaskStatus.STOPPED:
        task.status = TaskStatus.RUNNING
