"""Who is whose child, and who is in which process group: the indexes that save a walk over all processes.

They are plain data in the state, like what they are made from (`ppid`, `parent_tid`, `pgid`, and whether a child
has something to report), and change only here. A dict in place of a set keeps the order and survives msgspec.
Costs: O(1), or O(log n) in the number of children that have something to report.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from trapline.sentry.kernel.state import KernelState, Task, ThreadGroup


def add_child(state: KernelState, parent: ThreadGroup, child: ThreadGroup) -> None:
    """A child, by its birth or because its own parent ended: the last in the order of `parent`'s children.

    `child.parent_tid` says which thread it belongs to.
    """
    state.places += 1
    parent.children[child.tgid] = state.places
    maker = parent.threads.get(child.parent_tid)
    if maker is not None:
        maker.made[child.tgid] = 0
    if has_report(child):
        note_report(parent, child)


def remove_child(parent: ThreadGroup, child: ThreadGroup) -> None:
    """A child is gone, or another's."""
    place = parent.children.pop(child.tgid, 0)
    maker = parent.threads.get(child.parent_tid)
    if maker is not None:
        maker.made.pop(child.tgid, None)
    at = bisect_left(parent.reports, (place, child.tgid))
    if at < len(parent.reports) and parent.reports[at] == (place, child.tgid):
        del parent.reports[at]


def hand_over(state: KernelState, former: Task, heir: Task) -> None:
    """The children of an ending thread belong to another thread of its process (Linux find_new_reaper)."""
    for tgid in former.made:
        state.groups[tgid].parent_tid = heir.tid
        heir.made[tgid] = 0
    former.made = {}


def has_report(child: ThreadGroup) -> bool:
    """Whether a wait could find something of this child."""
    return child.exit_status >= 0 or bool(child.stop_report) or child.continue_report


def note_report(parent: ThreadGroup, child: ThreadGroup) -> None:
    """A child has ended, stopped or gone on. Noted once, however often; forgotten by `reporters`."""
    entry = parent.children[child.tgid], child.tgid
    at = bisect_left(parent.reports, entry)
    if at == len(parent.reports) or parent.reports[at] != entry:
        insort(parent.reports, entry)


def reporters(state: KernelState, parent: ThreadGroup) -> Iterator[ThreadGroup]:
    """The children that have something to report, in the order of their creation."""
    at = 0
    while at < len(parent.reports):
        child = state.groups[parent.reports[at][1]]
        if has_report(child):
            at += 1
            yield child
        else:
            del parent.reports[at]  # it was waited for


def join_process_group(state: KernelState, group: ThreadGroup, pgid: int) -> None:
    """Move a process to another process group, or put a new one into its first."""
    leave_process_group(state, group)
    group.pgid = pgid
    state.process_groups.setdefault(pgid, {})[group.tgid] = 0


def leave_process_group(state: KernelState, group: ThreadGroup) -> None:
    """A process is gone, or about to join another group. An empty group does not exist."""
    members = state.process_groups.get(group.pgid)
    if members is not None and members.pop(group.tgid, None) is not None and not members:
        del state.process_groups[group.pgid]


def members(state: KernelState, pgid: int) -> list[ThreadGroup]:
    """The processes of a process group, zombies too; none where there is no such group."""
    return [state.groups[tgid] for tgid in state.process_groups.get(pgid, ())]
