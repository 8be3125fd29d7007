"""A sandbox that goes on from an image: its session, from the seed's first stop until all tasks are guests again."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from trapline.platform import injection, pokes, restore_files, restore_memory, restore_tasks, restored_clocks
from trapline.platform import ptrace_calls as pt
from trapline.platform.injection import Injection, Workspace, await_trap
from trapline.platform.namespaces import SetupError
from trapline.platform.notifications import Listener
from trapline.platform.restore_tree import Tree, kill_all
from trapline.platform.seccomp import SeccompEngine
from trapline.platform.seed import Ready
from trapline.platform.session import Session
from trapline.platform.task_ids import read_ids
from trapline.platform.tracee import Tracee
from trapline.platform.vdso_image import VdsoImage
from trapline.sentry.kernel.signal_send import deliverable
from trapline.sentry.kernel.state import KernelState, TaskStatus
from trapline.sentry.protocol import Gone
from trapline.sentry.state.records import ProcessRecord, ThreadRecord
from trapline.sentry.time.timekeeper import MONOTONIC, MONOTONIC_RAW

if TYPE_CHECKING:
    from types import ModuleType

    from trapline.platform.guest_start import Launch
    from trapline.platform.namespaces import Sandbox
    from trapline.platform.restored_image import RestoredImage
    from trapline.sentry.options import DoOptions

_EXIT_GROUP = 231


class RestoredSession(Session):
    """See the module. `loaded` is the image, checked; `ready` what the seed told."""

    def __init__(
        self,
        options: DoOptions,
        sandbox: Sandbox,
        features: ModuleType,
        loaded: RestoredImage,
        ready: Ready,
        launch: Launch,
    ) -> None:
        self.loaded = loaded
        self._ready = ready
        self._features = features
        self._listeners: list[Listener] = []
        super().__init__(options, sandbox, features, launch=launch)

    # -- what is otherwise than in a new sandbox
    def _first_state(self) -> KernelState:
        state, sandbox = self.loaded.kernel, self.sandbox
        state.init_uid = os.getuid()
        state.allowed_cpus = sandbox.cpus
        raw = self.engine.host_clock(MONOTONIC_RAW) - self.engine.host_monotonic()
        planned = self.loaded.clocks
        monotonic = sandbox.monotonic_base + planned.monotonic if sandbox.own_time else self.engine.host_monotonic()
        boottime = sandbox.boottime_base + planned.boottime
        restored_clocks.begin(
            state,
            planned,
            self.loaded.saved_clocks,
            (monotonic, boottime, monotonic + raw),
            self.engine.host_realtime(),
            sandbox.own_time,
        )
        return state

    def _listen(self, features: ModuleType) -> None:
        if isinstance(self.engine, SeccompEngine):
            offered = features.Features(self.options.without)
            self.sync_wake_up = bool(offered.sync_wake_up)
            self.engine.killable = bool(offered.wait_killable_recv)

    def _image(self) -> VdsoImage:
        return self.loaded.vdso_image()

    def release(self) -> None:
        """Everybody goes on."""
        self.held = False

    def _adopt(self, host: int) -> None:
        """In place of the first guest's start: SetupError, after which nothing of the sandbox may run."""
        try:
            pt.call(pt.PTRACE_SEIZE, host, 0, pt.OPTIONS)
            self.sandbox.channel.send(b"g")
            await_trap(host)
            pt.set_sigmask(host, pt.U64 & ~(1 << signal.SIGTRAP - 1))
        except (Gone, OSError) as error:
            raise SetupError(f"the first process cannot be traced: {error}") from None
        root = Injection(host, Workspace(self._ready.base))
        tree = Tree(self.kernel.state, root, self.kernel.state.root_tgid if self.sandbox.is_init else 1)
        tree.flags = self.loaded.clone_flags()
        try:
            tree.build()
            self._fill(tree.at)
        except (OSError, Gone) as error:
            kill_all(tree.at)
            raise SetupError(f"the processes cannot be made again: {error}") from None

    # -- processes
    def _fill(self, at: dict[int, Injection]) -> None:
        image = self.loaded.image
        guests: list[tuple[Tracee, ThreadRecord]] = []
        dead: list[ProcessRecord] = []
        for record in image.processes:
            leader = at[record.tgid]
            if record.zombie >= 0:
                dead.append(record)
                continue
            self._memory(leader, record)
            guests += self._one(leader, record)
        restore_memory.loaded(self.loaded)
        for record in dead:
            self._die(at[record.tgid], record)
        for tracee, thread in guests:
            self._set_going(tracee, thread)
        self._after(guests)

    def _memory(self, leader: Injection, record: ProcessRecord) -> None:
        raise NotImplementedError

    def _one(self, leader: Injection, record: ProcessRecord) -> list[tuple[Tracee, ThreadRecord]]:
        image, engine, state = self.loaded.image, self.engine, self.kernel.state
        group = state.groups[record.tgid]
        pool = self._ready.pool
        leader.run(restore_tasks.directory_calls(image.directories[record.directory], self._ready.free))
        leader.run(restore_files.place_calls(image, record.table, pool))
        threads = restore_tasks.make_threads(leader, record)
        allowed = os.sched_getaffinity(self.sandbox.init_pid)
        for made, thread in zip(threads, record.threads, strict=True):
            pt.set_sigmask(made.host, pt.U64 & ~(1 << signal.SIGTRAP - 1))
            made.run(restore_tasks.thread_calls(thread))
            restore_tasks.schedule(made.host, thread, allowed)
        leader.run(restore_tasks.disposition_calls(group.actions))
        restore_tasks.set_limits(leader.host, record)
        listening = isinstance(engine, SeccompEngine)
        flags = restore_tasks.filter_flags(listening, self.launch.killable, len(threads))
        syscall_at = self.loaded.syscall_instruction(group)
        number = restore_tasks.become_guest(
            leader, syscall_at, group.actions, self.launch.program, flags, sum(length for _, length in self._ready.vdso)
        )
        tracees = []
        for made, thread in zip(threads, record.threads, strict=True):
            tracee = Tracee(made.host, leader.host, thread.tid, state.tasks[thread.tid])
            engine.add(tracee)
            tracees.append((tracee, thread))
        if number >= 0:
            listener = Listener(engine.descriptor(record.tgid, number), self.sync_wake_up)
            injection.single(leader.host, syscall_at, 3, number)
            self._listeners.append(listener)
            for tracee, _ in tracees:
                tracee.listener = listener
        return tracees

    def _die(self, leader: Injection, record: ProcessRecord) -> None:
        """A zombie that its parent has still to wait for."""
        status = record.zombie
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

    def _after(self, guests: list[tuple[Tracee, ThreadRecord]]) -> None:
        """Tasks and state are there: time goes on, and what was pending is delivered."""
        for listener in self._listeners:
            self.pump.listen(listener)
        self.kernel.clocks.resume()
        for t, thread in guests:
            if t.holding is not None:
                continue
            pt.cont(t.host)
            group = self.kernel.group(state_task(t))
            if deliverable(group, state_task(t)):
                pokes.poke_again(self.engine, t)


def state_task(t: Tracee):  # type: ignore[no-untyped-def]
    assert t.task is not None
    return t.task
