"""pages.img and pages.1.img while they are written: room in them, the checksum of each block, compression.

Whoever copies memory does it in one of two ways:

- `write`: whole blocks are summed (and compressed) in the calling thread while they are in the CPU's cache, which is
  almost free (65 GB/s, against 8 when they are read back). Several threads may call it at once.
- by its own means into `fds`, as page_places.py says which. Worker threads then read back each block once all of it is
  told by `written`: by pread(2) and not through a mapping, where an error of the disk would be SIGBUS and the end of
  the sandbox.

With compression there is one of `fds`, without a name, for what does not come as whole blocks.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable

from trapline.sentry.state import page_places
from trapline.sentry.state.manifest import PAGES
from trapline.sentry.state.pages_meta import BLOCK, PAGE, blocks_of

#: Blocks that a worker takes at once.
_JOB = 16
#: From 1 on, as zstd(1) has it: the fastest that is worth its time on memory.
_LEVEL = 1


class PageFile:
    """pages.img and pages.1.img, or pages.img.zst, in a directory. OSError from everything that writes."""

    def __init__(self, directory: int, compression: str, direct: bool, workers: int = 2) -> None:
        import threading

        self.fds: list[int] = []
        self.size = 0  # of what was allocated
        self.sums = array("Q")
        self.frames = array("Q")
        self.note = ""  # what was asked for and is not to be had
        self._directory = directory
        self._compression = compression
        self._workers = workers
        self._readers: list[int] = []
        self._packed = -1
        self._packed_end = 0
        self._local = threading.local()
        self._lock = threading.Lock()
        #: For each of `fds`, whoever writes into it: two that wait for the host's lock spin.
        self._writing: list[threading.Lock] = []
        self._have = array("I")  # bytes of each block that `written` told of
        self._done = bytearray()  # 1: summed
        self._threads: list[threading.Thread] = []
        self._jobs: Callable[[], tuple[int, int] | None] | None = None
        self._put: Callable[[tuple[int, int] | None], None] | None = None
        self._error: BaseException | None = None
        try:
            self._open(direct)
        except BaseException:
            self.close()
            raise

    def _open(self, direct: bool) -> None:
        from threading import Lock

        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        if self._compression == "none":
            for name in PAGES["none"]:
                self.fds.append(os.open(name, flags, 0o600, dir_fd=self._directory))
                if direct:
                    self._begin_direct(self.fds[-1])
                    self._readers.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory))
        else:
            if direct:
                self.note = "compressed pages are not written directly: their frames do not end at pages"
            self._packed = os.open(PAGES[self._compression][0], flags, 0o600, dir_fd=self._directory)
            self.fds.append(os.open("pages.scratch", flags, 0o600, dir_fd=self._directory))
            os.unlink("pages.scratch", dir_fd=self._directory)
        self._writing = [Lock() for _ in self.fds]

    def _begin_direct(self, fd: int) -> None:
        from fcntl import F_GETFL, F_SETFL, fcntl

        try:
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | os.O_DIRECT)
        except OSError as error:
            self.note = f"pages are written through the page cache: this file system has no O_DIRECT ({error.strerror})"

    def allocate(self, size: int) -> int:
        """The offset of so much room, page aligned; from 256 KiB on at a block's beginning, so that it is summed as it
        is written."""
        size += -size % PAGE
        with self._lock:
            offset = self.size if size < BLOCK else blocks_of(self.size) * BLOCK
            self.size = offset + size
            more = blocks_of(self.size) - len(self._done)
            if more > 0:
                self._done += bytes(more)
                self.sums.frombytes(bytes(8 * more))
                self._have.frombytes(bytes(self._have.itemsize * more))
                if self._compression != "none":
                    self.frames.frombytes(bytes(16 * more))
            return offset

    # -- writing

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """All of it, at a page. With direct writing it has to be aligned in memory, or the page cache is used."""
        self._raise_error()
        with memoryview(data) as view, view.cast("B") as flat:
            first, last = blocks_of(offset), (offset + len(flat)) // BLOCK
            for block in range(first, last):
                start = block * BLOCK - offset
                with flat[start : start + BLOCK] as piece:
                    self._finish_block(block, piece)
            if self._compression == "none" or first >= last:
                self._write_at(offset, flat)
            else:
                self._write_at(offset, flat[: first * BLOCK - offset])
                self._write_at(last * BLOCK, flat[last * BLOCK - offset :])

    def _write_at(self, offset: int, data: memoryview) -> None:
        done = 0
        for file, at, size in page_places.pieces(offset, len(data), len(self.fds)):
            with self._writing[file]:
                self._write_piece(self.fds[file], at, data[done : done + size])
            done += size

    def _write_piece(self, fd: int, at: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(fd, data[done:], at + done)
            except OSError as error:
                from errno import EINVAL

                if error.errno != EINVAL or not self._end_direct(fd):
                    raise

    def _end_direct(self, fd: int) -> bool:
        """Write through the page cache from now on; False where that was done already."""
        from fcntl import F_GETFL, F_SETFL, fcntl

        flags = fcntl(fd, F_GETFL)
        if not flags & os.O_DIRECT:
            return False
        fcntl(fd, F_SETFL, flags & ~os.O_DIRECT)
        self.note = "some pages were written through the page cache: direct writing needs other alignment here"
        return True

    def written(self, offset: int, size: int) -> None:
        """All of this stands in the files now, by `write` or otherwise. Once for each byte."""
        self._raise_error()
        end = offset + size
        if offset % PAGE or size % PAGE or size <= 0 or end > self.size:
            raise ValueError(f"no such room among the pages: {size} bytes at {offset}")
        first, last = blocks_of(offset), end // BLOCK
        if first > last:  # within one block
            self._count(last, size)
            return
        if offset % BLOCK:
            self._count(first - 1, first * BLOCK - offset)
        if end % BLOCK:
            self._count(last, end % BLOCK)
        self._queue(first, last)

    def _count(self, block: int, size: int) -> None:
        with self._lock:
            self._have[block] += size
            full = self._have[block] == BLOCK
        if full:
            self._queue(block, block + 1)

    # -- sums

    def _finish_block(self, block: int, data: memoryview | bytearray) -> None:
        import xxhash

        self.sums[block] = xxhash.xxh3_64_intdigest(data)
        if self._packed >= 0:
            self._compress(block, data)
        self._done[block] = 1

    def _compress(self, block: int, data: memoryview | bytearray) -> None:
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            import zstandard

            compressor = self._local.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        frame = compressor.compress(data)
        with self._lock:
            offset = self._packed_end
            self._packed_end += len(frame)
        self.frames[2 * block], self.frames[2 * block + 1] = offset, len(frame)
        done = 0
        while done < len(frame):
            done += os.pwrite(self._packed, frame[done:] if done else frame, offset + done)

    def _queue(self, first: int, last: int) -> None:
        """Have these blocks summed from the file, but those that are summed already."""
        if first >= last or self._done.find(0, first, last) < 0:
            return
        with self._lock:
            if self._put is None:
                self._start_workers()
            assert self._put is not None
        for block in range(first, last, _JOB):
            self._put((block, min(block + _JOB, last)))

    def _start_workers(self) -> None:
        from queue import SimpleQueue
        from threading import Thread

        jobs: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._jobs, self._put = jobs.get, jobs.put
        for number in range(self._workers):
            thread = Thread(target=self._work, name=f"page sums {number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        assert self._jobs is not None
        buffer = bytearray(BLOCK)
        while (job := self._jobs()) is not None:
            if self._error is not None:
                continue
            try:
                for block in range(*job):
                    if not self._done[block]:
                        self._finish_block(block, self._read(block, buffer))
            except BaseException as error:
                self._error = error

    def _read(self, block: int, buffer: bytearray) -> memoryview:
        """A block as it stands in the file; what nobody wrote is zero."""
        view = memoryview(buffer)[: min(BLOCK, self.size - block * BLOCK)]
        done = page_places.read(self._readers or self.fds, block * BLOCK, view)
        view[done:] = bytes(len(view) - done)
        return view

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # -- the end

    def finish(self) -> None:
        """Sum what is not yet, and give each file its size. Nothing is written any more."""
        self._queue(0, len(self._done))
        self._stop()
        self._raise_error()
        if self._packed < 0:
            for file, fd in enumerate(self.fds):
                os.ftruncate(fd, page_places.size_of(self.size, len(self.fds), file))

    def stored(self) -> dict[str, int]:
        """The files by their names, and the bytes of each."""
        names, count = PAGES[self._compression], len(self.fds)
        if self._packed >= 0:
            return {names[0]: self._packed_end}
        return {name: page_places.size_of(self.size, count, file) for file, name in enumerate(names)}

    def progress(self) -> int:
        """Bytes that have been written, about."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in self.fds)

    def sync(self) -> None:
        for fd in [self._packed] if self._packed >= 0 else self.fds:
            os.fsync(fd)

    def _stop(self) -> None:
        for _ in self._threads:
            assert self._put is not None
            self._put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._jobs = self._put = None

    def close(self) -> None:
        """Nobody may be writing. Twice is once."""
        if self._threads and self._error is None:
            self._error = OSError("the save was given up")
        self._stop()
        for fd in (*self.fds, *self._readers):
            os.close(fd)
        if self._packed >= 0:
            os.close(self._packed)
        self.fds, self._readers, self._packed = [], [], -1
