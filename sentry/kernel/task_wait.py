"""Who may reap whom: the choice that wait4 and waitid make (wait(2), Linux kernel/exit.c do_wait)."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    No matching child means ECHILD.
    """
    groups = kernel.state.groups
    any_child = False
    for tgid in parent.children:
        child = groups.get(tgid)
        if child is None or not selection.matches(child):
            continue
        any_child = True
        if child.exit_status >= 0:
            if selection.options & WEXITED:
                return Event(child, "exited"), True
            continue
        if selection.options & WSTOPPED and child.stop_report:
            return Event(child, "stopped"), True
        if selection.options & WCONTINUED and child.continue_report:
            return Event(child, "continued"), True
    return None, any_child
