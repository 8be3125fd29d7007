"""Writing an image: all or nothing.

Everything goes to a directory beside the image's place (partial.py), which gets its name once it is complete and, with
`fsync`, on the disk. Until then, whatever happens leaves what was there before as it was.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Callable
from types import TracebackType
from typing import Any

from trapline.sentry.kernel.state import KernelState
from trapline.sentry.state import codec, image_names, manifest, pages_meta
from trapline.sentry.state.image_reader import ImageReader
from trapline.sentry.state.manifest import File, Manifest, Parent
from trapline.sentry.state.page_file import PageFile
from trapline.sentry.state.pages_meta import PagesMeta
from trapline.sentry.state.partial import Partial, Taken
from trapline.sentry.state.records import Image, PageRun

#: Parents, and parents of those, that an image may have.
DEEPEST = 64


class CannotWrite(Exception):
    """An image that cannot be written; nothing of it is left. Its text is one line that names the cause."""


class ImageWriter:
    """One image that is being written. `allocate`, `write`, `add_run` and `add_inherited` may be called by several
    threads at once; nobody may copy memory any more when `commit` or `abandon` is called. CannotWrite."""

    def __init__(
        self,
        path: str,
        *,
        compression: str = "none",
        direct: bool = False,
        fsync: bool = True,
        parent: str | ImageReader | None = None,
    ) -> None:
        """`parent`: the image that this is the difference to, by its path or as it was opened; UnusableImage."""
        self.path = os.path.abspath(path)
        self._compression = compression
        self._fsync = fsync
        self._runs: list[PageRun] = []
        self._files: dict[str, File] = {}
        self._open: set[str] = set()
        self._partial: Partial | None = None
        self._pages: PageFile | None = None
        self._own_parent = isinstance(parent, str)
        self._parent = ImageReader(parent) if isinstance(parent, str) else parent
        self._inherited: _Inherited | None = None
        try:
            if self._parent is not None:
                if len(self._parent.chain) > DEEPEST:
                    raise CannotWrite(f"{self._parent.path} has {DEEPEST} parents already: save without one")
                self._inherited = _Inherited(self._parent.runs())
            self._partial = Partial(self.path)
            self._pages = PageFile(self._partial.fd, compression, direct)
        except (OSError, Taken) as error:
            self.abandon()
            raise self._because(error) from None
        except BaseException:
            self.abandon()
            raise

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def _because(self, error: BaseException, name: str = "") -> CannotWrite:
        if isinstance(error, OSError):
            where = name or (str(error.filename) if error.filename else "")
            return CannotWrite(f"{self.path}: {where + ': ' if where else ''}{error.strerror or error}")
        return CannotWrite(str(error))

    # -- pages

    @property
    def _file(self) -> PageFile:
        if self._pages is None:
            raise CannotWrite(f"{self.path}: the save was given up")
        return self._pages

    @property
    def pages_fds(self) -> list[int]:
        """pages.img and pages.1.img, for reading and writing as page_places.py says which; with compression one file
        without a name in their place."""
        return self._file.fds

    @property
    def parent_checksum(self) -> str:
        """Of the parent's manifest; "" without one."""
        return self._parent.manifest.checksum if self._parent is not None else ""

    @property
    def note(self) -> str:
        """What was asked for and is not to be had here, if anything."""
        return self._pages.note if self._pages is not None else ""

    def progress(self) -> tuple[int, int]:
        """(bytes of pages that have been written, those that there is room for), about."""
        if self._pages is None:
            return 0, 0
        total = self._pages.size
        return min(self._pages.progress(), total), total

    def allocate(self, size: int) -> int:
        """The next free offset among the pages for so many bytes, page aligned; from 256 KiB on aligned to that."""
        return self._file.allocate(size)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write pages in the calling thread, with sums and compression as they pass through its cache: pieces of 256
        KiB or a multiple, at multiples of it, cost least. `add_run` has still to be called. CannotWrite."""
        try:
            self._file.write(offset, data)
        except OSError as error:
            raise self._because(error, manifest.PAGES[self._compression][0]) from None

    def add_run(self, run: PageRun) -> None:
        """These pages have been written, by `write` or into `pages_fds`, each once. CannotWrite."""
        try:
            self._file.written(run.offset, run.size)
        except OSError as error:
            raise self._because(error, manifest.PAGES[self._compression][0]) from None
        self._runs.append(run)

    def add_inherited(self, owner: str, start: int, size: int, of: str = "", at: int = -1) -> None:
        """These pages are as the parent has them: there, of the same owner and at the same place, or of another (`of`)
        at another (`at`). What it has not is zero, as ever. An image holds what was added and nothing else: a page that
        is neither written nor inherited is zero whatever the parent has."""
        if self._inherited is None:
            raise ValueError("there is no parent to inherit from")
        self._runs += self._inherited.of(of or owner, start if at < 0 else at, size, owner, start)

    # -- the rest

    def open(self, name: str) -> io.BufferedRandom:
        """A new file in the image, for reading and writing by any means until it is closed. CannotWrite."""
        if self._partial is None:
            raise CannotWrite(f"{self.path}: the save was given up")
        if not image_names.is_good(name) or name in self._files or name in self._open:
            raise ValueError(f"no good name for a new file of an image: {name}")
        try:
            fd = image_names.open_in(self._partial.fd, name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except OSError as error:
            raise self._because(error, name) from None
        self._open.add(name)

        def closed(size: int, checksum: int) -> None:
            self._open.discard(name)
            self._files[name] = File(size, manifest.checksum_text(checksum))

        return _NewFile(_RawFile(fd, lambda error: self._because(error, name)), closed)

    def commit(self, kernel: KernelState | bytes, image: Image | bytes, facts: Manifest) -> Manifest:
        """Complete it, and give it its name. Records may come as `codec.pack` made them, at a moment when the guests
        stood still. The manifest as it was written is returned. CannotWrite: then nothing is left."""
        try:
            return self._commit(kernel, image, facts)
        except (OSError, Taken, codec.Malformed) as error:
            self.abandon()
            raise self._because(error) from None
        except BaseException:
            self.abandon()
            raise

    def _commit(self, kernel: KernelState | bytes, image: Image | bytes, facts: Manifest) -> Manifest:
        pages = self._file
        assert self._partial is not None
        if self._open:
            raise ValueError(f"files of the image are still open: {sorted(self._open)}")
        self._put(manifest.KERNEL, kernel if isinstance(kernel, bytes) else codec.pack(kernel))
        self._put(manifest.GUESTS, image if isinstance(image, bytes) else codec.pack(image))
        if isinstance(image, Image):
            facts.processes = facts.processes or len(image.processes)
            threads = [thread for process in image.processes for thread in process.threads]
            facts.threads = facts.threads or len(threads)
            facts.xsave_size = facts.xsave_size or max([len(thread.extended) for thread in threads], default=0)
        pages.finish()
        if self._fsync:
            pages.sync()
        stored = pages.stored()
        meta = PagesMeta(pages.size, _joined(self._runs), pages.sums, pages.frames, self._compression, len(stored))
        self._put(manifest.META, pages_meta.encode(meta))
        self._files |= {name: File(size) for name, size in stored.items()}
        manifest.complete(facts)
        facts.compression = self._compression
        facts.parent = None
        if self._parent is not None:
            relative = os.path.relpath(os.path.realpath(self._parent.path), os.path.realpath(self.path))
            facts.parent = Parent(relative, self._parent.manifest.checksum)
        facts.files = dict(sorted(self._files.items()))
        self._write(manifest.NAME, manifest.text(facts))
        if self._fsync:
            self._sync_directories()
        self._partial.finish(self._fsync)
        self.abandon()  # what is open; the directory has its name now
        return facts

    def _put(self, name: str, data: bytes) -> None:
        """A file of a record."""
        import xxhash

        self._write(name, data)
        self._files[name] = File(len(data), manifest.checksum_text(xxhash.xxh3_64_intdigest(data)))

    def _write(self, name: str, data: bytes) -> None:
        assert self._partial is not None
        fd = image_names.open_in(self._partial.fd, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with memoryview(data) as view:
                done = 0
                while done < len(view):
                    done += os.write(fd, view[done:])
            if self._fsync:
                os.fsync(fd)
        except OSError as error:
            raise self._because(error, name) from None
        finally:
            os.close(fd)

    def _sync_directories(self) -> None:
        """The files that others wrote, and the directories that they are in."""
        assert self._partial is not None
        folders = set()
        for name in self._files:
            parts = name.split("/")[:-1]
            folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
        own = (manifest.KERNEL, manifest.GUESTS, manifest.META, *manifest.PAGES[self._compression])
        for name in [n for n in self._files if n not in own] + sorted(folders):
            fd = image_names.open_in(self._partial.fd, name, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def abandon(self) -> None:
        """Leave nothing of it; after `commit`, nothing but what was committed. Twice is once."""
        pages, self._pages = self._pages, None
        partial, self._partial = self._partial, None
        if pages is not None:
            pages.close()
        if partial is not None:
            partial.abandon()
        if self._parent is not None and self._own_parent:
            self._parent.close()
        self._parent = self._inherited = None


def _joined(runs: list[PageRun]) -> list[PageRun]:
    """Those that follow one another in memory and among the pages, as they came, as one."""
    found: list[PageRun] = []
    for run in runs:
        last = found[-1] if found else None
        if (
            last is not None
            and (run.owner, run.image) == (last.owner, last.image)
            and (run.start, run.offset) == (last.start + last.size, last.offset + last.size)
        ):
            found[-1] = PageRun(last.owner, last.start, last.size + run.size, last.offset, last.image)
        else:
            found.append(run)
    return found


class _RawFile(io.FileIO):
    """A full disk is CannotWrite."""

    def __init__(self, fd: int, because: Callable[[OSError], CannotWrite]) -> None:
        self._because = because
        super().__init__(fd, "r+")

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise self._because(error) from None


class _NewFile(io.BufferedRandom):
    """Tells its size and checksum when it is closed."""

    def __init__(self, raw: _RawFile, closed: Callable[[int, int], None]) -> None:
        self._tell_closed = closed
        super().__init__(raw, 1 << 18)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.flush()
            fd = self.fileno()
            size, checksum = image_names.size_of(fd), image_names.sum_of(fd)
        except BaseException:
            # What cannot be written is told by this exception; closing would try it once more.
            self.raw.close()
            raise
        super().close()
        self._tell_closed(size, checksum)


class _Inherited:
    """The parent's runs by place."""

    def __init__(self, runs: list[PageRun]) -> None:
        self._owners: dict[str, list[PageRun]] = {}
        for run in sorted(runs, key=lambda run: run.start):
            self._owners.setdefault(run.owner, []).append(run)
        self._starts: dict[str, list[int]] = {
            owner: [run.start for run in runs] for owner, runs in self._owners.items()
        }

    def of(self, owner: str, start: int, size: int, new: str, place: int) -> list[PageRun]:
        """What there is of this range, as runs of the child at another place."""
        runs = self._owners.get(owner, [])
        found: list[Any] = []
        index = max(0, bisect_right(self._starts.get(owner, []), start) - 1)
        for run in runs[index:]:
            if run.start >= start + size:
                break
            low, high = max(start, run.start), min(start + size, run.start + run.size)
            if low < high:
                offset = run.offset + low - run.start
                found.append(PageRun(new, place + low - start, high - low, offset, run.image + 1))
        return found
