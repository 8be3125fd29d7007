"""The tree of processes of a restored sandbox: the same ids, parents, sessions and process groups as at the save.

All of it grows from the seed, by clone3(2) with set_tid in processes that stand at stops. What one process can set of
another decides the order:

* A session is inherited; who leads one calls setsid(2) in itself, and children that are in the session it was in
  before must be there by then.
* An orphan was left to a reaper (pid 1, or a subreaper) by a parent that has ended. So it is made by a *stand-in* that
  ends after it: a child of somebody who is in the orphan's session.
* A session or process group outlives its leader. Then a stand-in with the leader's id leads it until its members have
  joined.

Zombies are made like all others and die at the very end (restored_session.py), when nobody needs them as a leader
any more. Nothing of this is done twice: whoever fails leaves it to its caller to kill the whole sandbox.

Sources: clone3(2), setsid(2), setpgid(2), prctl(2) PR_SET_CHILD_SUBREAPER, Linux find_new_reaper (kernel/exit.c).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable

from trapline.platform import ptrace_calls as pt
from trapline.platform.injection import Data, Injection, await_birth
from trapline.sentry.kernel.state import KernelState, ThreadGroup
from trapline.sentry.protocol import Gone
from trapline.sentry.state.unusable import UnusableImage

_CLONE3, _EXIT_GROUP, _WAIT4, _SETPGID, _SETSID, _PRCTL = 435, 231, 61, 109, 112, 157
_PR_SET_CHILD_SUBREAPER = 36
_WALL = 0x40000000
_SIGCHLD = 17
CLONE_ARGS = struct.Struct("<11Q")


def clone_call(tid: int, flags: int, exit_signal: int = 0) -> tuple[int, Data, int]:
    """clone3(2) with this id in the innermost pid namespace."""
    words = [flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 1, 0]
    return _CLONE3, Data(CLONE_ARGS.pack(*words), {64: Data(struct.pack("<i", tid))}), CLONE_ARGS.size


def make_child(creator: Injection, tid: int, flags: int = 0, exit_signal: int = _SIGCHLD) -> Injection:
    """A task that stands at its first stop. OSError."""
    creator.run([clone_call(tid, flags, exit_signal)])
    host = creator.born[-1]
    await_birth(host)
    return Injection(host, creator.workspace)


class Tree:
    """See the module. `at` holds every process by its id; the root's is given."""

    def __init__(self, state: KernelState, root: Injection, init: int, session: int = 0, group: int = 0) -> None:
        """`init`: the id of the sandbox's reaper, 1; the root itself where that is its pid 1. `session` and `group`:
        those that the root is in, 0 for the caller's."""
        self._groups = state.groups
        self._root = state.root_tgid
        self._init = init
        self.at: dict[int, Injection] = {self._root: root}
        #: The session that a process is in at the moment, 0 for the caller's.
        self._session: dict[int, int] = {self._root: session}
        self._pgid: dict[int, int] = {self._root: group}
        self._parent: dict[int, int] = {}
        ids = {tid for group in state.groups.values() for tid in (group.tgid, group.pgid, group.sid, *group.threads)}
        self._used = ids
        self._spare = max(ids) + 1
        #: Called once a process leads its session, and has no children in it.
        self.on_session: Callable[[int, Injection], None] = lambda tgid, leader: None
        self.flags: dict[int, int] = {}  # clone flags besides, by id: who shares memory or descriptors with its parent

    def build(self) -> None:
        """OSError; UnusableImage for relations that no history of processes could have led to; Gone."""
        if self._groups[self._root].sid == self._root:
            # Whoever is left of the session that the root was born into: once it leads its own, nobody is in that.
            for group in self._groups.values():
                if group.ppid not in self._groups and group.tgid not in self.at and self._wanted(group) == 0:
                    self._make_orphan(group)
        self._grow(self._root)
        left = [group for group in self._groups.values() if group.tgid not in self.at]
        while left:
            made = [group for group in left if group.tgid in self.at or self._make_orphan(group)]
            left = [group for group in left if group.tgid not in self.at]
            if not made and left:
                raise UnusableImage(f"process {left[0].tgid}: session {left[0].sid} cannot be given to it")
        self._join_groups()

    # -- natural children
    def _grow(self, tgid: int) -> None:
        """The children of a process, and theirs: those that are in its former session, itself, the others."""
        group, here = self._groups[tgid], self._session[tgid]
        children = [self._groups[child] for child in self._children(tgid)]
        leads = group.sid == tgid
        early = [c for c in children if leads and self._wanted(c) == here and here != group.sid]
        for child in early:
            self._make(tgid, child)
        if leads and here != tgid:
            self.at[tgid].run([(_SETSID,)])
            self._session[tgid] = self._pgid[tgid] = tgid
        if leads:
            self.on_session(tgid, self.at[tgid])
        for child in children:
            if child.tgid not in self.at and self._wanted(child) in (-1, self._session[tgid]):
                self._make(tgid, child)

    def _children(self, tgid: int) -> Iterable[int]:
        if tgid == self._root and self._init == tgid:
            outside = [group.tgid for group in self._groups.values() if group.ppid == 0 and group.tgid != tgid]
            return [*self._groups[tgid].children, *outside]
        return self._groups[tgid].children

    def _wanted(self, group: ThreadGroup) -> int:
        """The session that a process must be born into; -1: any."""
        if group.sid != group.tgid:
            return group.sid
        for child in group.children:
            inner = self._wanted(self._groups[child])
            if inner not in (-1, group.sid):
                return inner
        return -1

    def _make(self, creator: int, group: ThreadGroup) -> None:
        self._adopt(creator, group, make_child(
            self.at[creator], group.tgid, self.flags.get(group.tgid, 0), group.exit_signal
        ))

    def _adopt(self, creator: int, group: ThreadGroup, child: Injection) -> None:
        self.at[group.tgid] = child
        self._session[group.tgid], self._pgid[group.tgid] = self._session[creator], self._pgid[creator]
        self._parent[group.tgid] = creator
        self._grow(group.tgid)

    # -- orphans
    def _make_orphan(self, group: ThreadGroup) -> bool:
        """One whose parent did not make it, if that is possible yet."""
        reaper = group.ppid if group.ppid in self._groups else self._init
        if reaper != self._init and reaper not in self.at:
            return False
        wanted = self._wanted(group)
        maker = self._member(wanted, reaper)
        if maker == 0:
            if wanted in self._groups or wanted == 0:
                return False  # its leader is still to come
            maker = self._root if reaper == self._init else reaper
        stand_in_id = wanted if wanted > 0 and self._session[maker] != wanted else self._next_spare()
        if reaper != self._init:
            self.at[reaper].run([(_PRCTL, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)])
        stand_in = make_child(self.at[maker], stand_in_id)
        if stand_in_id == wanted:
            stand_in.run([(_SETSID,)])
        child = make_child(stand_in, group.tgid, self.flags.get(group.tgid, 0), _SIGCHLD)
        self._end(stand_in, stand_in_id, maker)
        if reaper != self._init:
            self.at[reaper].run([(_PRCTL, _PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)])
        self.at[group.tgid] = child
        self._session[group.tgid] = wanted if wanted >= 0 else self._session[maker]
        self._pgid[group.tgid] = wanted if stand_in_id == wanted else self._pgid[maker]
        self._parent[group.tgid] = reaper
        self._grow(group.tgid)
        return True

    def _member(self, session: int, reaper: int) -> int:
        """Somebody who is in this session (-1: any) and whose orphans come to `reaper`; 0 for nobody."""
        for tgid in self.at:
            if session in (-1, self._session[tgid]) and (reaper == self._init or self._descends(tgid, reaper)):
                return tgid
        return 0

    def _descends(self, tgid: int, ancestor: int) -> bool:
        while tgid and tgid != ancestor:
            tgid = self._parent.get(tgid, 0)
        return tgid == ancestor

    def _next_spare(self) -> int:
        self._spare += 1
        return self._spare

    def _end(self, stand_in: Injection, ident: int, maker: int) -> None:
        """A stand-in has done its part."""
        stand_in.start([(_EXIT_GROUP, 0)])
        try:
            while pt.wait_one(stand_in.host) & 0xFF == 0x7F:
                pt.cont(stand_in.host)
        except Gone:
            pass
        self.at[maker].run([(_WAIT4, ident, 0, _WALL, 0)])

    # -- process groups
    def _join_groups(self) -> None:
        """Those that lead one first, then there is one to join. A group that lost its leader lasts as long as it has
        members: whoever leaves one that others are still to join has a stand-in stay in it."""
        wanted = {group.pgid for group in self._groups.values()} - {0}
        for pgid in wanted & set(self._groups):
            if self._groups[pgid].sid != pgid:
                self._join(pgid, pgid)
        stand_ins = []
        for pgid in wanted - set(self._pgid.values()):
            member = next(group.tgid for group in self._groups.values() if group.pgid == pgid)
            stand_in = make_child(self.at[member], pgid)
            stand_in.run([(_SETPGID, 0, 0)])
            stand_ins.append((stand_in, pgid, member))
        left = [group for group in self._groups.values() if group.pgid not in (0, self._pgid[group.tgid])]
        while left:
            group = left.pop(0)
            now = self._pgid[group.tgid]
            if list(self._pgid.values()).count(now) == 1 and any(other.pgid == now for other in left):
                ident = self._next_spare()
                stand_ins.append((make_child(self.at[group.tgid], ident), ident, group.tgid))
            self._join(group.tgid, group.pgid)
        for stand_in, pgid, member in stand_ins:
            self._end(stand_in, pgid, member)

    def _join(self, tgid: int, pgid: int) -> None:
        self.at[tgid].run([(_SETPGID, 0, pgid)])
        self._pgid[tgid] = pgid


def kill_all(tree: dict[int, Injection]) -> None:
    """SIGKILL to every process of it; their deaths are not waited for."""
    for injection in tree.values():
        try:
            os.kill(injection.host, 9)
        except ProcessLookupError:
            pass
