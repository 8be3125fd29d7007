"""The tree of a restored sandbox's processes, built in a model of the host: the same relations come out as any history of
forks, sessions, groups and ends has led to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trapline.platform import restore_tree
from trapline.platform.restore_tree import Tree
from trapline.sentry.kernel.state import KernelState, ThreadGroup

SETSID, SETPGID, EXIT_GROUP, WAIT4, PRCTL = 112, 109, 231, 61, 157
INIT = 1


class Process:
    def __init__(self, pid, parent, sid, pgid):
        self.pid, self.parent, self.sid, self.pgid = pid, parent, sid, pgid
        self.subreaper = self.zombie = False


class Host:
    """setsid(2), setpgid(2), fork, exit and wait as Linux has them, with their errors."""

    def __init__(self, root, init_is_root):
        self.table = {}
        self.init = root if init_is_root else INIT
        outside = root if init_is_root else 0
        self.table[root] = Process(root, 0 if init_is_root else INIT, outside, outside)

    def ids_in_use(self):
        return {number for p in self.table.values() for number in (p.pid, p.sid, p.pgid)}

    def fork(self, creator, pid):
        assert pid not in self.ids_in_use(), f"{pid}: File exists"
        parent = self.table[creator]
        assert not parent.zombie
        self.table[pid] = Process(pid, creator, parent.sid, parent.pgid)

    def setsid(self, pid):
        assert all(p.pgid != pid for p in self.table.values()), "EPERM"
        process = self.table[pid]
        process.sid = process.pgid = pid

    def setpgid(self, pid, pgid):
        process = self.table[pid]
        pgid = pgid or pid
        assert process.sid != pid, "EPERM: a session leader"
        if pgid != pid:
            assert any(p.pgid == pgid and p.sid == process.sid for p in self.table.values()), "EPERM: no such group"
        process.pgid = pgid

    def exit(self, pid):
        self.table[pid].zombie = True
        heir = self.table[pid].parent
        while heir != self.init and not (heir in self.table and self.table[heir].subreaper):
            heir = self.table[heir].parent if heir in self.table else self.init
        for child in self.table.values():
            if child.parent == pid:
                child.parent = heir

    def wait(self, parent, pid):
        assert self.table[pid].zombie and self.table[pid].parent == parent
        del self.table[pid]


class FakeInjection:
    def __init__(self, host, pid):
        self.host, self.model = pid, host

    def run(self, calls):
        for nr, *args in calls:
            if nr == SETSID:
                self.model.setsid(self.host)
            elif nr == SETPGID:
                self.model.setpgid(self.host, args[1])
            elif nr == WAIT4:
                self.model.wait(self.host, args[0])
            elif nr == PRCTL:
                self.model.table[self.host].subreaper = bool(args[1])
            else:
                raise AssertionError(nr)

    def start(self, calls):
        assert [call[0] for call in calls] == [EXIT_GROUP]
        self.model.exit(self.host)


@pytest.fixture(autouse=True)
def model_of_the_host(monkeypatch):
    def make_child(creator, tid, flags=0, exit_signal=17):
        creator.model.fork(creator.host, tid)
        return FakeInjection(creator.model, tid)

    monkeypatch.setattr(restore_tree, "make_child", make_child)
    monkeypatch.setattr(restore_tree.pt, "wait_one", lambda host: 0)


def saved_state(host, root):
    """What the kernel knows of a host's processes."""
    state = KernelState()
    state.root_tgid = root
    for p in host.table.values():
        state.groups[p.pid] = ThreadGroup(
            tgid=p.pid, ppid=p.parent, sid=p.sid, pgid=p.pgid, exit_status=0 if p.zombie else -1
        )
    for p in host.table.values():
        if p.parent in state.groups:
            state.groups[p.parent].children[p.pid] = 1
    return state


def relations(host):
    return {p.pid: (p.parent, p.sid, p.pgid) for p in host.table.values()}


def rebuilt(host, root, init_is_root):
    state = saved_state(host, root)
    fresh = Host(root, init_is_root)
    begun = root if fresh.init == root else 0
    tree = Tree(state, FakeInjection(fresh, root), fresh.init, begun, begun)
    tree.build()
    assert set(tree.at) == set(fresh.table)
    return fresh


def history(host, root, steps):
    """Play steps: (who, what, which), each taken modulo what is possible."""
    following = 10
    for who, what, which in steps:
        living = [p for p in host.table.values() if not p.zombie]
        process = living[who % len(living)]
        if what < 4 and len(host.table) < 12:
            while following in host.ids_in_use():
                following += 1
            host.fork(process.pid, following)
            following += 1
        elif what == 4 and all(p.pgid != process.pid for p in host.table.values()):
            host.setsid(process.pid)
        elif what in (5, 6) and process.sid != process.pid and process.sid:
            groups = [0, *sorted({p.pgid for p in host.table.values() if p.sid == process.sid})]
            host.setpgid(process.pid, groups[which % len(groups)])
        elif what == 7 and process.pid != root:
            host.exit(process.pid)
        elif what == 8:
            zombies = [p for p in host.table.values() if p.zombie and p.parent == process.pid]
            if zombies:
                host.wait(process.pid, zombies[which % len(zombies)].pid)
        elif what == 9:
            for pid in [p.pid for p in host.table.values() if p.zombie and p.parent == INIT]:
                del host.table[pid]


STEPS = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 9), st.integers(0, 7)), max_size=60)


@pytest.mark.parametrize("init_is_root", [False, True])
@settings(max_examples=400, deadline=None)
@given(steps=STEPS)
def test_any_history(init_is_root, steps):
    root = 1 if init_is_root else 2
    host = Host(root, init_is_root)
    history(host, root, steps)
    for pid in [p.pid for p in host.table.values() if p.zombie and p.parent == INIT and not init_is_root]:
        del host.table[pid]  # the stub has reaped it
    fresh = rebuilt(host, root, init_is_root)
    assert relations(fresh) == relations(host)


def test_a_session_without_its_leader():
    host = Host(2, False)
    host.fork(2, 3)
    host.setsid(3)
    host.fork(3, 4)
    host.fork(3, 5)
    host.setpgid(5, 0)
    host.exit(3)
    host.wait(2, 3)
    assert relations(host)[4] == (1, 3, 3)
    assert relations(rebuilt(host, 2, False)) == relations(host)


def test_a_group_whose_leader_is_in_another():
    host = Host(2, False)
    host.setsid(2)
    for pid in (3, 4, 5):
        host.fork(2, pid)
    host.setpgid(3, 0)
    host.setpgid(4, 3)
    host.setpgid(5, 0)
    host.setpgid(3, 5)
    assert relations(rebuilt(host, 2, False)) == relations(host)


def test_an_orphan_of_a_subreaper():
    host = Host(2, False)
    host.fork(2, 3)
    host.table[3].subreaper = True
    host.fork(3, 4)
    host.fork(4, 5)
    host.setsid(5)
    host.fork(5, 6)
    host.fork(6, 7)
    host.exit(6)
    host.wait(5, 6)
    host.exit(5)
    host.wait(4, 5) if 5 in host.table and host.table[5].parent == 4 else None
    assert relations(host)[7] == (3, 5, 5)
    assert relations(rebuilt(host, 2, False)) == relations(host)
