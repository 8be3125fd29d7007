"""An image on its way to a sandbox: read, checked, and prepared for the processes that are to be made from it."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, BinaryIO

from trapline.platform import restore_rights, restored_clocks
from trapline.platform.own_state import SavedOwn
from trapline.platform.vdso_image import VdsoImage
from trapline.sentry.options import DoOptions
from trapline.sentry.state import codec, cpu_features, image_check
from trapline.sentry.state.files import TimerFile
from trapline.sentry.state.image_bounds import Bad
from trapline.sentry.state.image_reader import ImageReader
from trapline.sentry.state.records import PageRun
from trapline.sentry.state.unusable import UnusableImage

if TYPE_CHECKING:
    from trapline.platform.progress_bar import Bar
    from trapline.sentry.kernel.state import ThreadGroup

_CLONE_VM, CLONE_FS, CLONE_FILES = 0x100, 0x200, 0x400


class RestoredImage:
    """UnusableImage from everything. `close` it."""

    def __init__(self, path: str, clock_continue: bool = False) -> None:
        self.reader = ImageReader(path)
        #: Descriptors of pages, uncompressed: by `PageRun.image`, then as page_places.py says.
        self.pages: list[list[int]] = []
        self._own: list[int] = []
        self._ghosts: dict[str, BinaryIO] = {}
        self._vdso: VdsoImage | None = None
        self.own: SavedOwn | None = None  # files and IPC objects
        self.bar: Bar | None = None  # that shows how far loading is
        try:
            self.kernel, self.image = image_check.check(self.reader)
            manifest = self.reader.manifest
            lacking = cpu_features.problem(manifest.cpu_flags)
            if lacking:
                raise UnusableImage(f"{path}: {lacking}")
            try:
                self.options = codec.typed(manifest.options, DoOptions)
            except codec.Malformed as error:
                raise UnusableImage(f"{path}/manifest.json: options: {error}") from None
            try:
                image_check.check_beginnings(self.kernel, self.image)
            except Bad as error:
                raise UnusableImage(f"{path}/kernel.msgpack: {error}") from None
            try:
                restore_rights.check_options(self.options)
            except Bad as error:
                raise UnusableImage(f"{path}/manifest.json: {error}") from None
            #: For the log.
            self.notes = restore_rights.limit(self.image, self.options)
            self.runs = self.reader.runs()
            self.saved_clocks = restored_clocks.SavedClocks(
                manifest.monotonic, manifest.boottime, manifest.realtime, manifest.created
            )
            self._clock_continue = clock_continue
            self.plan_clocks()
            if restored_clocks.steps_wall_clock(self.saved_clocks, self.kernel.clock, self.clocks):
                restored_clocks.cancel_timerfds(self.image.files.values())
            self.is_init = self.kernel.root_tgid == 1
            #: Its first process leads a group that is not the caller's.
            self.has_own_group = self.kernel.groups[self.kernel.root_tgid].pgid != 0
            self.own = SavedOwn(self.reader, self.image.ipc)
        except OSError as error:
            self.close()
            raise UnusableImage(f"{path}: it cannot be read: {error.strerror or error}") from None
        except BaseException:
            self.close()
            raise

    def open_pages(self) -> None:
        """Make `pages`: decompress where that is needed."""
        for reader in self.reader.chain:
            if reader.compression == "none":
                self.pages.append(reader.pages_fds)
                continue
            fd = os.memfd_create("pages", os.MFD_CLOEXEC)
            self._own.append(fd)
            self.pages.append([fd])
            self._decompress(reader, fd, self.bar)

    @staticmethod
    def _decompress(reader: ImageReader, fd: int, bar: Bar | None) -> None:
        from concurrent.futures import ThreadPoolExecutor

        from trapline.sentry.state.pages_meta import BLOCK

        def one(block: int) -> None:
            os.pwrite(fd, reader.read_block(block), block * BLOCK)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, _ in enumerate(pool.map(one, range(reader.blocks))):
                if bar is not None:
                    bar.report(done * BLOCK, reader.blocks * BLOCK, "unpacking")

    def handles(self) -> list[int]:
        """Further descriptors that the seed needs: of ghosts' contents."""
        self._ghosts = {key: self.reader.open(f"ghosts/{key}") for key in self.image.ghosts}
        return [file.fileno() for file in self._ghosts.values()]

    def open_ghost(self, key: str) -> BinaryIO:
        """The content of a file without a name. In the seed."""
        return self._ghosts[key]

    def of(self, owner: str) -> list[PageRun]:
        """The pages of an address space or shared object."""
        return [run for run in self.runs if run.owner == owner]

    def cancelled_timerfds(self) -> dict[int, TimerFile]:
        """By the keys of their open file descriptions."""
        return {k: file for k, file in self.image.files.items() if isinstance(file, TimerFile) and file.cancelled}

    def plan_clocks(self) -> None:
        """What they say is settled as of now. (Again, once all is ready: with --clock-continue time stands still.)"""
        now = restored_clocks.HostTime.now()
        self.clocks = restored_clocks.plan(self.saved_clocks, self.kernel.clock, now, self._clock_continue)

    def seed_clocks(self, own_time: bool) -> restored_clocks.SeedClocks:
        """For the seed; `own_time`: it has a time namespace."""
        return restored_clocks.SeedClocks(self.kernel.clock, self.clocks, self.saved_clocks, own_time)

    def vdso_image(self) -> VdsoImage:
        """Guests' own, with this host's facts. OSError; ValueError."""
        if self._vdso is None:
            try:
                self._vdso = VdsoImage(saved=self.image.vdso)
            except (struct.error, LookupError) as error:
                raise ValueError(f"its vDSO is none: {error}") from None
        return self._vdso

    def clone_flags(self) -> dict[int, int]:
        """By process: what it shares with its parent (clone(2)). UnusableImage where it has the memory of another."""
        records = {record.tgid: record for record in self.image.processes}
        flags: dict[int, int] = {}
        first: dict[int, int] = {}
        for record in records.values():
            if record.zombie >= 0:
                continue
            parent = records.get(record.parent)
            found = 0
            if parent is not None and parent.zombie < 0:
                found = (
                    (_CLONE_VM if parent.space == record.space else 0)
                    | (CLONE_FILES if parent.table == record.table else 0)
                    | (CLONE_FS if parent.directory == record.directory else 0)
                )
            if not found & _CLONE_VM and first.setdefault(record.space, record.tgid) != record.tgid:
                raise UnusableImage(f"process {record.tgid} has the memory of one that is not its parent")
            flags[record.tgid] = found
        return flags

    def syscall_instruction(self, group: ThreadGroup) -> int:
        """The address of one in a process."""
        return self.vdso_image().trampoline(group.vdso)

    def close(self) -> None:
        """Give back what is open."""
        for fd in self._own:
            os.close(fd)
        self._own = []
        if self.own is not None:
            self.own.close()
        if self._vdso is not None:
            self._vdso.close()
            self._vdso = None
        self.reader.close()
