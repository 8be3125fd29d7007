"""A sandbox that goes on from an image: its session, from the seed's first stop until all tasks are guests again."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from trapline.platform import (
    injection,
    own_filters,
    pokes,
    restore_ipc,
    restore_memory,
    restore_shared,
    restore_tasks,
    restored_clocks,
)
from trapline.platform import ptrace_calls as pt
from trapline.platform.caller_terminal import ORPHANED, SHARED
from trapline.platform.injection import Data, Injection, Workspace, await_trap
from trapline.platform.namespaces import SetupError
from trapline.platform.notifications import Listener
from trapline.platform.page_fill import PageFill
from trapline.platform.restore_sharing import Sharing
from trapline.platform.restore_tree import Tree, kill_all
from trapline.platform.restore_ttys import Ttys
from trapline.platform.seccomp import SeccompEngine
from trapline.platform.seed import Ready, clear
from trapline.platform.session import Session
from trapline.platform.task_limits import set_own
from trapline.platform.tracee import Tracee
from trapline.platform.vdso_image import VdsoImage
from trapline.platform.wall_clock import WallClock
from trapline.platform.wall_timerfds import Setting
from trapline.sentry.kernel import signal_lend, task_exit, task_stop
from trapline.sentry.kernel.block import Execute, Reply
from trapline.sentry.kernel.signal_send import deliverable
from trapline.sentry.kernel.state import KernelState, TaskStatus
from trapline.sentry.protocol import Gone
from trapline.sentry.state.records import PageRun, ProcessRecord, ThreadRecord
from trapline.sentry.state.unusable import UnusableImage
from trapline.sentry.time.timekeeper import MONOTONIC_RAW, REALTIME

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from trapline.platform.background_load import BackgroundLoad
    from trapline.platform.caller_terminal import CallerTerminal
    from trapline.platform.guest_start import Launch
    from trapline.platform.namespaces import Sandbox
    from trapline.platform.own_terminal import OwnTerminal
    from trapline.platform.restored_image import RestoredImage
    from trapline.sentry.options import DoOptions
    from trapline.sentry.state.files import TimerFile

_EXIT_GROUP, _CLOSE, _CLOSE_RANGE, _MUNMAP = 231, 3, 436, 11
_PRCTL, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NAME = 157, 4, 36, 15
_ALL_BUT_TRAP = pt.U64 & ~(1 << signal.SIGTRAP - 1)


class RestoredSession(Session):
    """See the module. `loaded` is the image, checked."""

    def __init__(
        self,
        options: DoOptions,
        sandbox: Sandbox,
        features: ModuleType,
        loaded: RestoredImage,
        launch: Launch,
        terminal: CallerTerminal | None,
        own_terminal: OwnTerminal | None,
        background: bool = False,
    ) -> None:
        self.loaded = loaded
        self._background: BackgroundLoad | None = None
        self._ready = Ready(0, 0, {}, {})  # what the seed tells
        self._host_vdso: dict[str, tuple[int, int]] = {}  # where its mappings lie behind the workspace
        self._flags: dict[int, int] = {}  # by which each process was cloned
        self._users: dict[int, int] = {}  # of each address space: processes that have still to be made
        self._listeners: list[Listener] = []
        super().__init__(options, sandbox, features, terminal, own_terminal, launch)
        for note in loaded.notes:
            self.log.tell(note)
        self.attempts.restore_begins()
        if background:
            from trapline.platform.background_load import BackgroundLoad

            self._background = BackgroundLoad(self, loaded)
            self.loading = self._background.loader
            if self.engine.cores is not None:
                self.engine.cores.load = self.loading.wait

    # -- what is otherwise than in a new sandbox
    def _first_state(self) -> KernelState:
        state, sandbox = self.loaded.kernel, self.sandbox
        state.init_uid = os.getuid()
        if not sandbox.is_init:
            state.init_sid = 1 if sandbox.own_group == ORPHANED else 0
        for key in [key for key in state.timers if key.startswith("sleep:")]:
            # Of calls that wait: they are entered again, and set theirs anew. What goes wrong otherwise: one whose
            # time has passed by now does not, and the old one ends a later call of the task's.
            del state.timers[key]
        state.allowed_cpus = sandbox.cpus
        raw = self.engine.host_clock(MONOTONIC_RAW) - self.engine.host_monotonic()
        restored_clocks.begin(state.clock, self.loaded.clocks, self.loaded.saved_clocks, raw, sandbox.own_time)
        return state

    def _listen(self, features: ModuleType) -> None:
        with open(self._started()[0], "rb") as file:
            file.seek(0)
            self._ready = msgspec.msgpack.decode(file.read(), type=Ready)
        if isinstance(self.engine, SeccompEngine):
            offered = features.Features(self.options.without)
            self.sync_wake_up = bool(offered.sync_wake_up)
            self.engine.killable = bool(offered.wait_killable_recv)

    def _image(self) -> VdsoImage:
        return self.loaded.vdso_image()

    def release(self) -> None:
        """Everybody goes on."""
        self.held = False

    def _begin_jobs(self) -> None:
        """That was done before anybody went on."""

    def _adopt(self, host: int) -> None:
        """In place of the first guest's start: SetupError, after which nothing of the sandbox may run."""
        try:
            pt.call(pt.PTRACE_SEIZE, host, 0, pt.OPTIONS)
            self.sandbox.channel.send(b"g")
            await_trap(host)
            pt.set_sigmask(host, _ALL_BUT_TRAP)
            self._host_vdso = clear(host, self._ready.base)
        except (Gone, OSError) as error:
            raise SetupError(f"the first process cannot be traced: {error}") from None
        root = Injection(host, Workspace(self._ready.base))
        first = self.kernel.state.root_tgid
        # As the seed it has begun a session where it is pid 1, or has a terminal of its own.
        session = first if self.sandbox.is_init or self.options.tty else 0
        group = first if session or self.sandbox.own_group != SHARED else 0
        tree = Tree(self.kernel.state, root, first if self.sandbox.is_init else 1, session, group)
        ttys = Ttys(self.kernel.state, self.loaded.image, self._ready.pool)
        tree.on_session = ttys.lead
        try:
            tree.flags = self._flags = self.loaded.clone_flags()
            tree.build()
            ttys.finish(tree.at)
            self._fill(tree.at)
        except UnusableImage as error:
            kill_all(tree.at)
            raise SetupError(str(error)) from None
        except RecursionError:
            kill_all(tree.at)
            raise SetupError("the processes of the image descend from one another too deeply") from None
        except (OSError, Gone) as error:
            kill_all(tree.at)
            raise SetupError(f"the processes cannot be made again: {error}") from None
        self.attempts.restored()
        if self._background is not None:
            self._background.go()
        else:
            self.attempts.loaded()

    # -- processes
    def _fill(self, at: dict[int, Injection]) -> None:
        loaded = self.loaded
        image = loaded.image
        living = [record for record in image.processes if record.zombie < 0]
        self._load(at, living)
        guests: list[tuple[Tracee, ThreadRecord]] = []
        self._sharing = Sharing(loaded, self._ready, self._flags, living)
        for record in reversed(living):
            guests += self._one(at[record.tgid], record)
        for record in image.processes:
            if record.zombie >= 0:
                self._die(at[record.tgid], record)
        for tracee, thread in guests:
            self._set_going(tracee, thread)
        stopped = {record.tgid: record.stop_signal for record in living if record.stopped}
        for tgid in stopped:
            self._stop([t for t, _ in guests if t.task is not None and t.task.tgid == tgid])
        self._after([t for t, _ in guests if t.holding is None and not t.listening])
        for t, _ in guests:
            # Some threads of a process may have been on their way into the stop: with them it is complete.
            if t.listening and t.task is not None and t.task.status != TaskStatus.STOPPED:
                task_stop.thread_stopped(self.kernel, t.task, stopped[t.task.tgid] or signal.SIGSTOP)

    def _load(self, at: dict[int, Injection], living: list[ProcessRecord]) -> None:
        """The memory of all, but for what comes later."""
        loaded, image = self.loaded, self.loaded.image
        fill = PageFill(loaded.reader.chain, loaded.pages)
        # What shared memory was filled with, in the seed, is compared now.
        fill.add(run for run in loaded.runs if run.owner in image.shared)
        spaces = self._map(at, living, fill)
        bar = loaded.bar
        if bar is None:
            fill.run()
        else:
            fill.tell = lambda done, total: bar.report(done, total, "memory")
            with bar:
                fill.run()
        for leader, restored in spaces:
            leader.run(restored.finish())
        if spaces:
            last = spaces[-1][0]
            last.run(restore_ipc.removals(image.ipc))
            last.run(restore_shared.late_seals(image, self._ready.shared))

    def _map(
        self, at: dict[int, Injection], living: list[ProcessRecord], fill: PageFill
    ) -> list[tuple[Injection, restore_memory.SpaceRestore]]:
        """Each address space, in one of the processes that have it."""
        ready, image = self._ready, self.loaded.image
        workspace = ready.base, injection.SIZE
        taken = [workspace, *self._host_vdso.values()]
        scratch = restore_memory.find_gap(image.spaces.values(), 16 << 20, taken)
        spaces = []
        for record in living:
            self._users[record.space] = self._users.get(record.space, 0) + 1
            if self._users[record.space] > 1:
                continue
            leader = at[record.tgid]
            space = image.spaces[record.space]
            later, now = self._later(leader, record.space)
            restored = restore_memory.SpaceRestore(
                space, now, ready.shared, self._host_vdso, workspace, scratch
            ).with_objects(image.shared)
            leader.run(restored.map())
            if later is not None:
                later()
            fill.add(now, leader.host)
            spaces.append((leader, restored))
        return spaces

    def _later(self, leader: Injection, number: int) -> tuple[Callable[[], None] | None, list[PageRun]]:
        """What is to be done once an address space is mapped, for pages that come later, and those that come now."""
        runs, space, background = self.loaded.of(f"s{number}"), self.loaded.image.spaces[number], self._background
        if background is None:
            return None, runs
        from trapline.platform.background_load import split

        now, later = split(space, runs)
        uffd = background.open(leader) if later else None
        if uffd is None:
            return None, runs
        return lambda: background.begin(uffd, space, later), now

    def reap_all(self) -> None:
        """Also: nothing is loaded any more."""
        super().reap_all()
        if self._background is not None:
            self._background.close()

    def _one(self, leader: Injection, record: ProcessRecord) -> list[tuple[Tracee, ThreadRecord]]:
        loaded, engine, state = self.loaded, self.engine, self.kernel.state
        image, group = loaded.image, state.groups[record.tgid]
        leader.run(restore_ipc.marks(image.ipc, record.tgid))
        self._sharing.own_directories_and_descriptors(leader, record)
        threads = restore_tasks.make_threads(leader, record)
        group_host = leader.host
        engine.earlier_of_group[record.tgid] = record.cpu, record.user
        engine.earlier_of_children[record.tgid] = group.reaped
        for thread in record.threads:
            engine.earlier[thread.tid] = thread.cpu, thread.user
        if record.leader_ended:
            restore_tasks.end_leader(leader)
            engine.add(Tracee(group_host, group_host, record.tgid, state.tasks[record.tgid]))
            leader = threads[0]
        set_own(leader, record.limits)
        if group.subreaper:
            leader.run([(_PRCTL, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)])
        restore_tasks.told_from_outside(group_host, record, image.spaces[record.space])
        allowed = os.sched_getaffinity(self.sandbox.init_pid)
        for made, thread in zip(threads, record.threads, strict=True):
            pt.set_sigmask(made.host, _ALL_BUT_TRAP)
            made.run(restore_tasks.thread_calls(thread) + restore_tasks.signal_calls(record, thread))
            restore_tasks.schedule(made.host, thread, allowed)
        leader.run([(_PRCTL, _PR_SET_DUMPABLE, 1, 0, 0, 0)])  # a change of user took it away
        leader.run(restore_tasks.disposition_calls(group.actions))
        listening = isinstance(engine, SeccompEngine)
        flags = restore_tasks.filter_flags(listening, self.launch.killable, len(threads))
        at = loaded.syscall_instruction(group)
        number = restore_tasks.become_guest(leader, at, group.actions, self.launch.program, flags)
        with ExitStack() as stack:
            if any(thread.filters for thread in record.threads):
                for made in threads:
                    stack.enter_context(own_filters.suspended(made.host))
                own_filters.install(leader, at, list(zip(threads, record.threads, strict=True)))
            return self._guests(leader, at, number, group_host, record, threads)

    def _guests(
        self, leader: Injection, at: int, number: int, group_host: int, record: ProcessRecord, threads: list[Injection]
    ) -> list[tuple[Tracee, ThreadRecord]]:
        """The threads of a process are guests from here on; the last calls that are injected. `number`: of the
        listener, in it."""
        engine, state, ready = self.engine, self.kernel.state, self._ready
        tracees = []
        for made, thread in zip(threads, record.threads, strict=True):
            tracee = Tracee(made.host, group_host, thread.tid, state.tasks[thread.tid])
            tracee.parked = thread.parked
            engine.add(tracee)
            tracees.append((tracee, thread))
        if number >= 0:
            listener = Listener(engine.descriptor(record.threads[0].tid, number), self.sync_wake_up)
            injection.single(leader.host, at, _CLOSE, number)
            self._listeners.append(listener)
            for tracee, _ in tracees:
                tracee.listener = listener
        self._users[record.space] -= 1
        if not self._users[record.space]:
            injection.single(leader.host, at, _MUNMAP, ready.base, injection.SIZE)
            if self.loaded.image.spaces[record.space].dumpable != 1:
                # 2 can only be had by execution.
                injection.single(leader.host, at, _PRCTL, _PR_SET_DUMPABLE, 0)
        return tracees

    def _die(self, leader: Injection, record: ProcessRecord) -> None:
        """A zombie that its parent has still to wait for."""
        status = record.zombie
        group = self.kernel.state.groups[record.tgid]
        group.used_before = task_exit.rusage_times(group.exit_rusage)
        leader.run([(_PRCTL, _PR_SET_NAME, Data(record.comm + b"\0"), 0, 0, 0)])
        if status & 0x7F:
            pt.set_sigmask(leader.host, 0)
            pt.cont(leader.host, status & 0x7F)
        else:
            leader.start([(_EXIT_GROUP, status >> 8 & 0xFF)])
        while pt.wait_one(leader.host) & 0xFF == 0x7F:
            pt.cont(leader.host, status & 0x7F)

    def _set_going(self, t: Tracee, thread: ThreadRecord) -> None:
        restore_tasks.go_on_from(t.host, thread)
        if thread.holds_for:
            child = self.engine.by_tid.get(thread.holds_for)
            if child is not None:
                t.holding, child.holder = child, t

    def _stop(self, threads: list[Tracee]) -> None:
        """Into the group stop that they were in: one takes the signal, and takes the others with it."""
        first = True
        for t in threads:
            if t.holding is not None:
                continue
            if first:
                pt.cont(t.host)
                _await(t.host, pt.EVENT_STOP << 8 | signal.SIGTRAP)  # of the interrupt
                restore_tasks.send_to_thread(t.host_group, t.host, signal.SIGSTOP)
                pt.cont(t.host)
                _await(t.host, signal.SIGSTOP)
                pt.cont(t.host, signal.SIGSTOP)
            else:
                pt.cont(t.host)
            _await(t.host, pt.EVENT_STOP << 8 | signal.SIGSTOP)
            pt.call(pt.PTRACE_LISTEN, t.host)
            t.listening, first = True, False

    def _enter_again(self, t: Tracee) -> None:
        """The call that a task waits in goes on from its record, before anything else happens to the task. What goes
        wrong otherwise: a signal that is pending runs its handler before the task has called pause(2) again, which
        then waits for ever."""
        task = t.task
        assert task is not None
        record = task.call
        bound = self.dispatcher.handlers.get(record.nr) if record is not None else None
        if record is None or bound is None or not bound[2]:
            raise UnusableImage(f"task {t.tid} waits in no call that it could wait in")
        t.nr, t.args = record.nr, record.args
        reply = self.dispatcher.enter(task, record.nr, record.args, record.ip)
        if isinstance(reply, int):
            self.dispatcher.undelivered(task, record.nr, record.args, reply)
        elif isinstance(reply, Execute):
            t.reissue = reply
        elif reply is Reply.HOST:
            t.reissue = Execute()

    def _cancel(self, mark: int, file: TimerFile) -> None:
        keeper, wall = self.kernel.keeper, self.engine.wall
        assert wall is not None
        deadline = 0
        if file.deadline:
            left = keeper.span_to_host(file.deadline - keeper.now(REALTIME))
            deadline = max(self.engine.host_realtime() + left, 1)
        wall.timerfds.cancelled_before(mark, Setting(deadline, keeper.span_to_host(file.interval), 0, file.settings))

    def _after(self, guests: list[Tracee]) -> None:
        """Tasks and state are there: time goes on, and what was pending is delivered."""
        for listener in self._listeners:
            self.pump.listen(listener)
        if self.jobs is not None:
            self.jobs.begin_again(self.loaded.image.caller_terminal)
        cancelled = self.loaded.cancelled_timerfds()
        if self.kernel.state.clock.realtime_delta or cancelled:
            self.engine.wall = WallClock(self.engine)
            self.engine.wall.watch_all()
        for mark, file in cancelled.items():
            self._cancel(mark, file)
        self.kernel.clocks.resume()
        # What expired before a sleep was over comes before the sleep returns, as it would have.
        self.kernel.timers_expired()
        for t in [t for t in self.engine.tracees.values() if t.parked]:
            self._enter_again(t)
        for t in guests:
            task = t.task
            assert task is not None
            pt.cont(t.host)
            signal_lend.lend_pending(self.kernel, task, pt.U64)
            if deliverable(self.kernel.group(task), task):
                pokes.poke_again(self.engine, t)


def _await(host: int, stop: int) -> None:
    """Wait for one stop, others are passed by. Gone."""
    while True:
        status = pt.wait_one(host)
        if status & 0xFF != 0x7F:
            raise Gone(host)
        if status >> 8 == stop:
            return
        pt.cont(host)
