"""Saving a running sandbox: at rest, captured, written, and on with it or ended (docs/checkpoint.md).

Until the image has its name nothing is harmed: whatever fails, the sandbox goes on as it was. What is asked of guests
is asked without changing anything of theirs (capture_*.py).
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import trio

from trapline.platform import capture_files, own_state, page_copy
from trapline.platform.capture_memory import Collector
from trapline.platform.capture_tasks import TaskCapture
from trapline.platform.incremental import Incremental
from trapline.platform.memory_save import MemorySave
from trapline.platform.quiesce import Quiescence, TookTooLong
from trapline.platform.task_attributes import Probed
from trapline.platform.task_relations import KCMP_FS, KCMP_VM, sharing
from trapline.sentry.control.interface import CheckpointResult, CheckpointSpec, Refused, Report
from trapline.sentry.kernel import tty
from trapline.sentry.kernel.state import KernelState
from trapline.sentry.protocol import Gone
from trapline.sentry.state import codec
from trapline.sentry.state.image_writer import CannotWrite, ImageWriter
from trapline.sentry.state.manifest import Manifest
from trapline.sentry.state.names import printable
from trapline.sentry.state.records import Directories, Image
from trapline.sentry.state.unsavable import Unsavable
from trapline.sentry.state.unusable import UnusableImage
from trapline.sentry.time.timekeeper import BOOTTIME, MONOTONIC, REALTIME

if TYPE_CHECKING:
    from trapline.platform.pause import Pauser
    from trapline.platform.session import Session
    from trapline.sentry.kernel.state import ThreadGroup

#: How long tasks may take to come to rest where no other limit is given, s.
_PATIENCE = 30.0
#: How often tasks are looked at where some have changed meanwhile.
_TRIES = 3
#: How often whoever asked for a save is told how far it is, s.
_TELL_EVERY = 0.1


class Checkpointer:
    """One sandbox's."""

    def __init__(self, session: Session, pauser: Pauser) -> None:
        self._session = session
        self._engine = session.engine
        self._pauser = pauser

    async def save(self, spec: CheckpointSpec, report: Report) -> CheckpointResult:
        """Refused, with the cause in one line; then the sandbox is as it was."""
        began = time.monotonic()
        deadline = spec.timeout or float("inf")
        try:
            writer = ImageWriter(
                spec.image_path,
                compression=spec.compression,
                direct=spec.direct,
                fsync=spec.fsync,
                parent=spec.parent_path or None,
            )
        except (CannotWrite, UnusableImage) as error:
            raise Refused(str(error)) from None
        quiescence = Quiescence(self._session)
        paused = time.monotonic()
        options = self._session.options
        shares = options.network != "none" or options.overlay == "none" or bool(options.volumes)
        stays = self._pauser.paused  # as it is, when it was paused by somebody
        result = CheckpointResult(image_path=spec.image_path, shares=shares)
        done = 0.0
        with writer:
            try:
                with trio.fail_after(deadline):
                    await self._await_memory(report)
                    paused = time.monotonic()
                    report(0, 0, "stopping")
                    kept: list[tuple[int, int, bytes]] = []
                    if stays:
                        quiescence = self._pauser.hand_over() or quiescence
                        kept = self._pauser.kept()
                    await quiescence.begin(min(deadline, _PATIENCE), kept)
                    save = await self._capture(quiescence, writer, spec, deadline)
                    try:
                        self._session.pump.spawn(lambda: save.tell(report))
                        await trio.to_thread.run_sync(save.copy)
                        if spec.leave_running:
                            save.before_they_go_on()
                            if not stays:
                                quiescence.go_on()
                            done = time.monotonic()
                        await trio.to_thread.run_sync(save.finish)
                        await trio.to_thread.run_sync(save.commit)
                    finally:
                        save.told.cancel()
                        save.close(at_rest=quiescence.active)
                result.size = save.size
                result.dropped = [printable(text) for text in save.dropped]
                result.notes = [printable(text) for text in save.notes]
            except trio.TooSlowError:
                raise Refused(f"the save took longer than {spec.timeout:g} s: nothing was saved") from None
            except (CannotWrite, TookTooLong, Unsavable) as error:
                raise Refused(printable(str(error))) from None
            except Gone:
                if self._session.pump.done:
                    raise Refused("the sandbox has ended, before all of it was saved") from None
                raise Refused("a task ended, or went on after a stop, while it was looked at: try again") from None
            except OSError as error:
                raise Refused(f"the save failed: {error.strerror or error}") from None
            finally:
                done = done or time.monotonic()
                if quiescence.active:
                    if result.size and not spec.leave_running:
                        self._end()
                        stays = False
                    if stays:
                        self._pauser.keep(quiescence)
                    else:
                        quiescence.go_on()
        result.pause_ms = (done - paused) * 1000
        result.seconds = time.monotonic() - began
        return result

    async def _capture(
        self, quiescence: Quiescence, writer: ImageWriter, spec: CheckpointSpec, deadline: float
    ) -> Save:
        """What is saved. Where somebody outside ends or continues a task while it is looked at: once more, unless
        something of it was written. What `Save.capture` and `Quiescence.begin` raise, and Refused."""
        for left in reversed(range(_TRIES)):
            if not quiescence.active:
                raise Refused("the sandbox has ended")
            save = Save(self._session, writer, spec)
            try:
                save.capture()
                return save
            except BaseException as error:
                save.close(at_rest=quiescence.active)
                if not isinstance(error, Gone) or save.has_written or not left:
                    raise
            await quiescence.begin(min(deadline, _PATIENCE))
        raise AssertionError("the last one returns or raises")

    async def _await_memory(self, report: Report) -> None:
        """All that the sandbox was restored with is to be there."""
        loader = self._session.loading
        if loader is None:
            return
        while not await trio.to_thread.run_sync(loader.wait, _TELL_EVERY, abandon_on_cancel=True):
            report(loader.loaded, loader.total, "loading")

    def _end(self) -> None:
        """Kill all: none of them executes another instruction when it is let go."""
        self._session.saved = True
        for host in {t.host_group for t in self._engine.tracees.values()}:
            try:
                os.kill(host, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._session.sandbox.kill()


class Save:
    """One save, while all tasks are at rest."""

    def __init__(self, session: Session, writer: ImageWriter, spec: CheckpointSpec) -> None:
        self._session = session
        self._engine = session.engine
        self._kernel = session.kernel
        self._writer = writer
        self._spec = spec
        self.image = Image()
        self.told = trio.CancelScope()
        self.dropped: list[str] = []
        self.notes: list[str] = []
        self.size = 0
        self._state = b""
        self._facts = Manifest()
        self._host_of: dict[int, int] = {}  # by tgid: a living thread's
        self._probed: dict[int, Probed] = {}
        self._asked: TaskCapture | None = None
        self._captured: capture_files.Captured | None = None
        self._collector: Collector | None = None
        self._memory: MemorySave | None = None
        self._committed = False
        self._tracking = self._incremental()
        self._inherit = False

    def _incremental(self) -> Incremental | None:
        """What keeps account of writes, where the sandbox goes on."""
        session = self._session
        if not self._spec.leave_running:
            return session.incremental
        if session.incremental is None:
            session.incremental = Incremental()
        return session.incremental if not session.incremental.reason else None

    def close(self, at_rest: bool) -> None:
        """Give back what was opened. In the sentry's tracing thread; `at_rest`: the tasks still are."""
        if at_rest:
            self.before_they_go_on()
        if self._captured is not None:
            self._captured.close()
        if self._memory is not None:
            self._memory.close()
            self._memory.reap(at_rest)
        if self._tracking is not None and self.has_written and not self._committed:
            self._tracking.fail()

    @property
    def has_written(self) -> bool:
        """Whether pages may be in the image already, and writes of the guests' have been taken account of."""
        return self._memory is not None

    # -- in the sentry's thread, guests at rest
    def before_they_go_on(self) -> None:
        """Undo what was done to them to be read. Twice is once."""
        if self._asked is not None:
            self._asked.hide_again()

    def capture(self) -> None:
        """Everything but pages and files. Unsavable; Gone; OSError."""
        state = self._kernel.state
        self._facts = self._manifest()
        for text in self._session.surroundings.changes():
            self._refuse(text)
        self._tasks(state)
        if self._asked is not None and self._asked.names:
            options = self._facts.options
            options["hostname"], options["domainname"] = self._asked.names
        self._spaces()
        self._files()
        self.image.ipc = own_state.save_ipc(self._session, self._writer, self._refuse)
        self._huge_segments()
        self._state = codec.pack(state)

    def _manifest(self) -> Manifest:
        now, options = self._kernel.keeper.now, self._session.options
        kept = codec.plain(options)
        kept["cwd"] = self._session.sandbox.directory
        return Manifest(
            platform=options.platform,
            command=options.command,
            options=kept,
            checkpoint_count=self._kernel.state.checkpoint_count,
            realtime=now(REALTIME),
            monotonic=now(MONOTONIC),
            boottime=now(BOOTTIME),
            created=self._engine.host_realtime(),
        )

    def _tasks(self, state: KernelState) -> None:
        capture = self._asked = TaskCapture(self._session)
        image = self.image
        living: list[ThreadGroup] = []
        for group in state.groups.values():
            if group.sid == group.tgid and group.exit_status < 0:
                tty.of_group(self._kernel, group)  # one that it got without a trap is known from here on
            if group.exit_status >= 0:
                image.processes.append(capture.zombie(group))
                continue
            tty.of_group(self._kernel, group)  # so that the state has what was acquired without a trap
            record = capture.process(group)
            image.processes.append(record)
            living.append(group)
            self._host_of[group.tgid] = next(self._engine.by_tid[thread.tid].host for thread in record.threads)
        self._probed = capture.probed
        hosts = list(self._host_of.values())
        spaces, places = sharing(hosts, KCMP_VM), sharing(hosts, KCMP_FS)
        for record in image.processes:
            host = self._host_of.get(record.tgid)
            if host is None:
                continue
            record.space, record.directory = spaces[host], places[host]
            if record.directory not in image.directories:
                image.directories[record.directory] = self._directories(host, record.tgid)
        image.processes.sort(key=lambda record: record.tgid)

    def _directories(self, host: int, tgid: int) -> Directories:
        cwd, root = os.readlink(f"/proc/{host}/cwd"), os.readlink(f"/proc/{host}/root")
        for path, what in ((cwd, "working directory"), (root, "root directory")):
            if path.endswith(" (deleted)") or path.startswith("(unreachable)"):
                raise Unsavable(f"process {tgid}: its {what} was removed ({path})")
        with open(f"/proc/{host}/status", "rb") as file:
            umask = int(file.read().partition(b"\nUmask:")[2].split(None, 1)[0], 8)
        return Directories(cwd, root, umask)

    def _spaces(self) -> None:
        image = self.image
        vdso = self._engine.vdso
        identity = None
        if vdso is not None:
            facts = os.fstat(vdso.image.descriptor)
            identity = facts.st_dev, facts.st_ino
            image.vdso, image.vdso_host = vdso.image.saved()
        self._collector = Collector(f"/proc/{self._session.sandbox.init_pid}/root", identity, self._refuse)
        if self._spec.parent_path:
            parent = self._writer.parent_checksum
            why = self._tracking.why_not(parent) if self._tracking is not None else Incremental().reason
            self._inherit = not why
            if why:
                self.notes.append(f"a full save: {why}")
        init = 0 if self._session.sandbox.is_init else self._session.sandbox.init_pid
        self._memory = MemorySave(
            self._engine, init, self._collector, self._writer, self._spec.leave_running, self._tracking, self._inherit
        )
        for record in image.processes:
            if record.space >= 0 and record.space not in image.spaces:
                t = self._engine.tracees[self._host_of[record.tgid]]
                base = self._kernel.state.groups[record.tgid].vdso
                # Its own filters would judge what is injected, also in a copy of it: so it is read from outside.
                asked = vdso is not None and base and not t.listening and not any(th.filters for th in record.threads)
                at = vdso.image.trampoline(base) if vdso is not None and asked else 0
                probed = self._probed.get(record.tgid)
                image.spaces[record.space] = self._memory.add(record.space, t, at, record.tgid, probed)

    def _refuse(self, text: str) -> None:
        if not self._spec.drop:
            raise Unsavable(text)
        self.dropped.append(text)

    def _files(self) -> None:
        image = self.image
        processes = [(host, tgid) for tgid, host in self._host_of.items()]
        root = f"/proc/{self._session.sandbox.init_pid}/root"
        cancelled = self._engine.wall.timerfds.cancelled if self._engine.wall is not None else None
        network = f"/proc/{self._session.sandbox.init_pid}/ns/net"
        found = self._captured = capture_files.capture(
            processes,
            root,
            clocks=self._kernel.keeper,
            cancelled=cancelled,
            on_hosts_network=os.path.samestat(os.stat(network), os.stat("/proc/self/ns/net")),
        )
        for text in found.unsavable:
            self._refuse(text)
        self.notes += found.notes
        image.tables, image.files = found.tables, found.files
        image.pipes, image.sockets = found.pipes, found.sockets
        image.terminals, image.locks = found.terminals, found.locks
        if self._session.jobs is not None:
            image.caller_terminal = self._session.jobs.settings()
        assert self._collector is not None
        image.shared = {**found.shared, **self._collector.shared}
        image.ghosts = {**found.ghosts, **self._collector.ghosts}
        for record in image.processes:
            if record.zombie < 0:
                record.table = found.table_of[record.tgid]

    def _huge_segments(self) -> None:
        """Of shared memory that is attached, who has it mapped shows how large its pages are."""
        for segment in self.image.ipc.segments:
            if found := self.image.shared.get(f"sysv:{segment.id}"):
                segment.huge = found.huge

    # -- pages and files
    async def tell(self, report: Report) -> None:
        """Until `told` is cancelled: how far it is."""
        with self.told:
            while True:
                report(*self._writer.progress(), "writing")
                await trio.sleep(_TELL_EVERY)

    def copy(self) -> None:
        """What has to be copied while all stand still, in any thread. CannotWrite; Unsavable; Gone."""
        image, writer = self.image, self._writer
        self.notes += own_state.save_files(self._session, writer)
        assert self._collector is not None and self._captured is not None
        for key, found in image.shared.items():
            handle = self._captured.handles.get(key)
            source = f"/proc/self/fd/{handle}" if handle is not None else self._collector.sources.get(key, "")
            if source:
                self.size += page_copy.copy_object(key, found.size, source, writer)
            elif key in self._collector.mapped:
                self.size += page_copy.copy_mapped_object(key, found.size, self._collector.mapped[key], writer)
        for key in image.ghosts:
            handle = self._captured.handles.get(key)
            source = f"/proc/self/fd/{handle}" if handle is not None else self._collector.sources[key]
            with open(source, "rb") as old, writer.open(f"ghosts/{key}") as new:
                while data := old.read(1 << 20):
                    new.write(data)

    def finish(self) -> None:
        """Pages of large processes, from copies, in any thread while they go on. CannotWrite; Unsavable; Gone."""
        assert self._memory is not None
        self._memory.finish()
        self.size += self._memory.size

    def commit(self) -> None:
        """The image gets its name. CannotWrite."""
        self._facts.dropped = self.dropped
        written = self._writer.commit(self._state, self.image, self._facts)
        self._committed = True
        if self._tracking is not None:
            self._tracking.commit(written.checksum)
