"""The indexes of children, reports and process groups: always what a walk over all processes would find."""

from __future__ import annotations

import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kernel_fixture import World

from trapline.sentry.kernel import family, sessions, task_exec, task_exit, task_stop
from trapline.sentry.kernel.signals import SIGCHLD, SIGCONT, SIGSTOP, SIGUSR1
from trapline.sentry.kernel.state import SigInfo, Task, ThreadGroup
from trapline.sentry.kernel.task_wait import (
    P_ALL,
    P_PGID,
    P_PID,
    WCONTINUED,
    WEXITED,
    WNOTHREAD,
    WSTOPPED,
    Selection,
    find_event,
)  # fmt: skip

CLONE_PARENT, CLONE_THREAD = 0x8000, 0x10000


def walked_event(world: World, parent: ThreadGroup, selection: Selection) -> tuple[tuple[int, str] | None, bool]:
    """What find_event should find, by looking at every process there is."""
    children = sorted((parent.children[g.tgid], g) for g in world.kernel.state.groups.values() if g.ppid == parent.tgid)
    found, matching = None, False
    for _, child in children:
        if not selection.matches(child):
            continue
        # A zombie whose end is not asked for is nobody (Linux wait_consider_task).
        matching = matching or child.exit_status < 0 or bool(selection.options & WEXITED)
        kinds = {
            "exited": selection.options & WEXITED and child.exit_status >= 0,
            "stopped": selection.options & WSTOPPED and child.exit_status < 0 and child.stop_report,
            "continued": selection.options & WCONTINUED and child.exit_status < 0 and child.continue_report,
        }
        kind = next((kind for kind, has in kinds.items() if has), None)
        if kind and found is None:
            found = child.tgid, kind
    return found, matching


class Families(RuleBasedStateMachine):
    """Random lives of processes and threads."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.state = self.world.kernel.state
        self.next_tid = 3
        self.births: list[tuple[int, int]] = []  # (parent, child) in order, adoptions too

    def living(self, choice: int) -> Task:
        tasks = list(self.state.tasks.values())
        return tasks[choice % len(tasks)]

    def groups(self) -> list[ThreadGroup]:
        return list(self.state.groups.values())

    @rule(choice=st.integers(0, 99), flags=st.sampled_from([0, 0, 0, CLONE_THREAD, CLONE_PARENT]))
    @precondition(lambda self: len(self.state.tasks) < 25)
    def clone(self, choice: int, flags: int) -> None:
        creator = self.living(choice)
        if flags == CLONE_PARENT and creator.tgid == 2:
            return
        self.world.fork(creator, self.next_tid, flags)
        self.next_tid += 1

    @rule(choice=st.integers(0, 99), status=st.sampled_from([0, 256, 9]))
    def thread_dies(self, choice: int, status: int) -> None:
        task = self.living(choice)
        group = self.state.groups[task.tgid]
        if task.tgid == 2 and task.tid == 2:
            return  # the sandbox would end
        if task.tid == task.tgid and status != 9 and len(group.threads) > 1:
            return  # a leader is reported last
        task_exit.task_died(self.world.kernel, task.tid, status)

    @rule(choice=st.integers(0, 99))
    def execs(self, choice: int) -> None:
        task = self.living(choice)
        task_exec.exec_done(self.world.kernel, task.tgid, task.tid)

    @rule(choice=st.integers(0, 99), other=st.integers(0, 99), own=st.booleans(), session=st.booleans())
    def moves(self, choice: int, other: int, own: bool, session: bool) -> None:
        caller = self.state.groups[self.living(choice).tgid]
        groups = self.groups()
        target = groups[other % len(groups)]
        exists = {g.pgid for g in groups}
        try:
            if session:
                sessions.new_session(self.world.kernel, caller)
                assert caller.tgid not in exists
            else:
                pgid = 0 if own else groups[(other * 7 + 1) % len(groups)].pgid
                in_session = any(g.pgid == pgid and g.sid == caller.sid for g in groups)
                sessions.set_process_group(self.world.kernel, caller, target.tgid, pgid)
                assert own or pgid == target.tgid or in_session
        except OSError as error:
            assert error.errno in (errno.EPERM, errno.ESRCH, errno.EACCES)
            if session:
                assert caller.tgid in exists

    @rule(choice=st.integers(0, 99))
    def stops_and_goes_on(self, choice: int) -> None:
        group = self.state.groups[self.living(choice).tgid]
        if group.stop_signal:
            self.world.kernel.send_signal(group.tgid, SigInfo(signo=SIGCONT))
        else:
            for tid in group.threads:
                task_stop.thread_stopped(self.world.kernel, self.state.tasks[tid], SIGSTOP)

    @rule(choice=st.integers(0, 99), subreaper=st.booleans())
    def reaps_orphans(self, choice: int, subreaper: bool) -> None:
        self.state.groups[self.living(choice).tgid].subreaper = subreaper

    @rule(
        choice=st.integers(0, 99),
        kind=st.sampled_from([P_ALL, P_ALL, P_PID, P_PGID]),
        which=st.integers(0, 99),
        options=st.sampled_from([WEXITED, WEXITED | WSTOPPED, WSTOPPED, WCONTINUED | WEXITED, WNOTHREAD | WEXITED]),
        take=st.booleans(),
    )
    def waits(self, choice: int, kind: int, which: int, options: int, take: bool) -> None:
        task = self.living(choice)
        parent = self.state.groups[task.tgid]
        groups = self.groups()
        chosen = groups[which % len(groups)]
        selection = Selection(kind, chosen.pgid if kind == P_PGID else chosen.tgid, options, task.tid)
        expected = walked_event(self.world, parent, selection)
        event, matching = find_event(self.world.kernel, parent, selection)
        assert (event and (event.child.tgid, event.kind), matching) == expected
        if event is None or not take:
            return
        if event.kind == "exited":
            task_exit.release(self.world.kernel, event.child)
        elif event.kind == "stopped":
            event.child.stop_report = 0
        else:
            event.child.continue_report = False

    @invariant()
    def indexes_are_what_a_walk_finds(self) -> None:
        groups = self.state.groups
        walked: dict[int, set[int]] = {}
        for group in groups.values():
            walked.setdefault(group.pgid, set()).add(group.tgid)
        assert {pgid: set(members) for pgid, members in self.state.process_groups.items()} == walked
        for pgid, tgids in walked.items():
            assert {g.tgid for g in family.members(self.state, pgid)} == tgids
            assert len({groups[t].sid for t in tgids}) == 1  # what setpgid's check rests on
        for group in groups.values():
            children = {g.tgid for g in groups.values() if g.ppid == group.tgid}
            assert set(group.children) == children
            assert list(group.children.values()) == sorted(set(group.children.values()))
            assert group.reports == sorted(set(group.reports))
            reported = {tgid for _, tgid in group.reports}
            assert {t for t in children if family.has_report(groups[t])} <= reported <= children
            made = [t for tid in group.threads for t in self.state.tasks[tid].made]
            assert sorted(made) == sorted(children)
            for tid in group.threads:
                for tgid in self.state.tasks[tid].made:
                    assert groups[tgid].parent_tid == tid

    def teardown(self) -> None:
        self.world.check_plain()


Families.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFamilies = Families.TestCase


def test_children_of_an_ended_thread_are_the_next_threads(world: World) -> None:
    thread = world.fork(world.root, 3, CLONE_THREAD)
    world.fork(thread, 4)
    options = WEXITED | WNOTHREAD
    group = world.kernel.group(world.root)
    assert find_event(world.kernel, group, Selection(P_ALL, 0, options, 2)) == (None, False)
    task_exit.task_died(world.kernel, 3, 0)
    assert find_event(world.kernel, group, Selection(P_ALL, 0, options, 2)) == (None, True)


@pytest.mark.parametrize("how", ["thread", "exec", "process"])
def test_parent_death_signal_comes_once_when_the_thread_that_made_the_child_ends(world: World, how: str) -> None:
    middle = world.fork(world.root, 3)
    thread = world.fork(middle, 4, CLONE_THREAD)
    child = world.fork(thread, 5)
    sibling = world.fork(middle, 6)
    for task in (child, sibling):
        group = world.kernel.group(task)
        group.pdeathsig = SIGUSR1
        task.mask = 1 << (SIGUSR1 - 1)
    if how == "thread":
        task_exit.task_died(world.kernel, 4, 0)
    elif how == "exec":
        task_exec.exec_done(world.kernel, 3, 3)
    else:
        task_exit.task_died(world.kernel, 3, 9)
    got = {t: [i.signo for i in world.kernel.state.groups[t].pending] for t in (5, 6)}
    assert got == {5: [SIGUSR1], 6: [SIGUSR1] if how == "process" else []}


def test_children_of_a_thread_that_executes_a_program_stay_its_own(world: World) -> None:
    thread = world.fork(world.root, 3, CLONE_THREAD)
    world.fork(thread, 4)
    world.fork(world.root, 5)
    task_exec.exec_done(world.kernel, 2, 3)
    assert [world.kernel.state.groups[t].parent_tid for t in (4, 5)] == [2, 2]
    assert set(world.kernel.state.tasks[2].made) == {4, 5}


def test_a_wait_among_many_looks_at_few(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for tid in range(3, 503):
        world.fork(world.root, tid)
    task_exit.task_died(world.kernel, 502, 0)
    looked = []
    matches = Selection.matches
    monkeypatch.setattr(Selection, "matches", lambda self, child: (looked.append(child.tgid), matches(self, child))[1])
    group = world.kernel.group(world.root)
    for kind, ident in ((P_ALL, 0), (P_PID, 502)):
        event, _ = find_event(world.kernel, group, Selection(kind, ident, WEXITED, 2))
        assert event is not None and event.child.tgid == 502
    assert looked == [502, 502]
    assert SIGCHLD in [info.signo for info in group.pending] or not group.pending
