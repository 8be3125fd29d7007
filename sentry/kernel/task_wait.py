"""Who may reap whom: the choice that wait4 and waitid make (wait(2), Linux kernel/exit.c do_wait)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel import family
from trapline.sentry.kernel.signals import SIGCHLD
from trapline.sentry.kernel.state import ThreadGroup

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel

WNOHANG, WSTOPPED, WEXITED, WCONTINUED = 1, 2, 4, 8
WNOWAIT, WNOTHREAD, WALL, WCLONE = 0x01000000, 0x20000000, 0x40000000, 0x80000000
P_ALL, P_PID, P_PGID, P_PIDFD = range(4)


class Selection:
    """Which children a wait asks for."""

    __slots__ = ("ident", "kind", "options", "tid")

    def __init__(self, kind: int, ident: int, options: int, tid: int) -> None:
        self.kind = kind
        self.ident = ident
        self.options = options
        self.tid = tid  # of the waiting thread, for __WNOTHREAD

    def matches(self, child: ThreadGroup) -> bool:
        """Whether a child is of the asked kind (Linux eligible_child)."""
        if self.kind == P_PID and child.tgid != self.ident:
            return False
        if self.kind == P_PGID and child.pgid != self.ident:
            return False
        if self.options & WNOTHREAD and child.parent_tid != self.tid:
            return False
        # A "clone" child is one that does not send SIGCHLD.
        if self.options & WALL:
            return True
        return (child.exit_signal != SIGCHLD) == bool(self.options & WCLONE)


class Event:
    """What a wait found."""

    __slots__ = ("child", "kind")

    def __init__(self, child: ThreadGroup, kind: str) -> None:
        self.child = child
        self.kind = kind  # "exited", "stopped", "continued"


def find_event(kernel: Kernel, parent: ThreadGroup, selection: Selection) -> tuple[Event | None, bool]:
    """The first event, in the order of the children's creation; and whether any child matches at all.

    No matching child means ECHILD. Only children with something to report are looked at, and the asked one
    where one is asked for; that there is a matching child is mostly seen at the first.
    """
    groups = kernel.state.groups
    if selection.kind == P_PID:
        if selection.ident not in parent.children or not selection.matches(groups[selection.ident]):
            return None, False
        child = groups[selection.ident]
        event = _event_of(child, selection.options)
        return event, event is not None or child.exit_status < 0
    for child in family.reporters(kernel.state, parent):
        event = _event_of(child, selection.options) if selection.matches(child) else None
        if event is not None:
            return event, True
    # A zombie has no stop to come, so where its end is not asked for it is nobody (Linux wait_consider_task).
    return None, any(
        groups[tgid].exit_status < 0 and selection.matches(groups[tgid]) for tgid in parent.children
    )


def _event_of(child: ThreadGroup, options: int) -> Event | None:
    """What a wait with these options finds of a child."""
    if child.exit_status >= 0:
        return Event(child, "exited") if options & WEXITED else None
    if options & WSTOPPED and child.stop_report:
        return Event(child, "stopped")
    if options & WCONTINUED and child.continue_report:
        return Event(child, "continued")
    return None
