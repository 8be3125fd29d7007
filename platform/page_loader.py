"""Memory of a restored sandbox, loaded while its tasks run already: `trapline restore --background`.

Each address space has a userfaultfd. One thread listens to all of them; the others read blocks of pages from the image,
check them, and put them where they belong. Pages that a task waits for go first, in the order in which they were asked
for, and each wait is for one block: so nobody's large one is in another's way. The rest follows by address, the first
space first.

None of these threads ever needs the sentry's: it may wait for a page itself, in process_vm_readv(2) or for a task. It
is told by a descriptor when something is to be said (`news`).

What changes an address space (fork, mremap, munmap, madvise) waits until its message is read, and pages can be put
there only once it has been: so messages are read, applied and pages put under the space's lock.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from trapline.platform import userfaultfd as uf
from trapline.platform.guest_memory import PAGE
from trapline.platform.missing_pages import MissingPages, Piece
from trapline.platform.userfaultfd import Ended, Userfaultfd
from trapline.sentry.state.unusable import UnusableImage

#: The unit of the image's checksums, and the most that is read at a time.
BLOCK = 256 << 10
#: Reads that are in flight at once, for each CPU: one that waits for a disk needs none.
_READERS, _MOST_READERS = 2, 16
#: How long to leave the host to a change that is in progress: it tells nobody when that is over.
_PAUSE = 0.00005
#: Zeros are put so many pages at a time where nothing is in the image.
_ZEROS = 16
_SIGBUS_TEXT = "a program that touches one of these pages gets SIGBUS"


class Source(Protocol):
    """Where blocks come from; any thread may ask."""

    def read(self, image: int, block: int, into: memoryview) -> int:
        """A block, checked; its size. OSError; UnusableImage, with one line, for one that is damaged."""


class Space:
    """An address space that is not complete yet. Whoever uses it holds `lock`."""

    __slots__ = ("claims", "closed", "cursor", "lock", "missing", "queued", "uffd")

    def __init__(self, uffd: Userfaultfd, missing: MissingPages) -> None:
        self.uffd = uffd
        self.missing = missing
        self.lock = threading.Lock()
        #: Blocks that a thread loads now: image and number, with the addresses that are waited for meanwhile.
        self.claims: dict[tuple[int, int], list[int]] = {}
        self.cursor = 0  # loading has come to this address
        self.queued = False  # in the loader's queue
        self.closed = False


class Loader:
    """See the module. `news` is readable once there is something that `errors` or `done` tell."""

    def __init__(self, source: Source, broken: Callable[[], None]) -> None:
        """`broken`: end the sandbox, since something of it can neither be loaded nor made to fail; any thread may
        call it."""
        self._source = source
        self._broken = broken
        self._condition = threading.Condition(threading.Lock())
        self._awaited: deque[tuple[Space, int]] = deque()
        self._queue: deque[Space] = deque()
        self._spaces: dict[int, Space] = {}  # by descriptor
        self._open = 0  # spaces whose userfaultfd is
        self._threads: list[threading.Thread] = []
        self._stop = False
        self._prefetch = False
        self._complete = threading.Event()
        self._poller = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.register(self._wake, select.EPOLLIN)
        self.news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: One line each; the sentry's thread takes them.
        self.errors: deque[str] = deque()
        self._failed: set[tuple[int, int]] = set()
        self.faults = 0
        self.loaded = 0  # bytes
        self.total = 0

    # -- the sentry's thread
    def add(self, uffd: Userfaultfd, pieces: list[Piece]) -> None:
        """An address space, whose ranges are registered. Faults are served from now on."""
        space = Space(uffd, MissingPages(pieces))
        self.total += space.missing.size
        if not self._threads:
            self._start()
        self._enter(space)

    def _start(self) -> None:
        count = min(_READERS * (os.cpu_count() or 1), _MOST_READERS)
        for name, target in (("faults", self._listen), *((f"pages-{n}", self._work) for n in range(count))):
            thread = threading.Thread(target=self._guarded, args=(target,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def prefetch(self) -> None:
        """Load also what nobody waits for: everything that is to go on does."""
        with self._condition:
            self._prefetch = True
            self._condition.notify_all()
            self._look_complete()

    @property
    def done(self) -> bool:
        """All of the image is there, but for what could not be loaded."""
        return self._complete.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Until that is so. Never in a thread that a loader's needs."""
        return self._complete.wait(timeout)

    def descriptors(self) -> list[int]:
        """Of all spaces that are not complete."""
        with self._condition:
            return list(self._spaces)

    def close(self) -> None:
        """End the threads: all is loaded, or nothing of the sandbox runs any more."""
        with self._condition:
            self._stop = True
            self._condition.notify_all()
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join()
        self._threads = []
        for space in list(self._spaces.values()):
            space.uffd.close()
        self._spaces.clear()
        self._complete.set()
        if self.news >= 0:
            self._poller.close()
            os.close(self._wake)
            os.close(self.news)
            self.news = -1

    # -- threads
    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            self._say(f"memory cannot be loaded: {type(error).__name__}: {error}; the sandbox ends")
            self._broken()
            self._complete.set()  # nobody is to wait for ever
            raise

    def _say(self, text: str) -> None:
        self.errors.append(text)
        os.eventfd_write(self.news, 1)

    def _enter(self, space: Space) -> None:
        with self._condition:
            self._open += 1
            self._spaces[space.uffd.fd] = space
            space.queued = True
            self._queue.append(space)
            self._poller.register(space.uffd.fd, select.EPOLLIN)
            self._condition.notify_all()

    def _listen(self) -> None:
        """Messages of all spaces, as they come."""
        while not self._stop:
            for fd, _ in self._poller.poll():
                space = self._spaces.get(fd)
                if space is None:
                    continue
                with space.lock:
                    if not space.closed:
                        self._hear(space)
                        self._look_empty(space)

    def _hear(self, space: Space) -> None:
        """Take the messages of a space. Its lock is held."""
        missing, uffd = space.missing, space.uffd
        for kind, first, second, size in uffd.messages():
            if kind == uf.PAGEFAULT:
                self.faults += 1
                with self._condition:
                    self._awaited.append((space, second & -PAGE))
                    self._condition.notify()
            elif kind == uf.FORK:
                child = Userfaultfd(first & 0xFFFFFFFF, uffd.poison)
                if missing:
                    with self._condition:
                        self.total += missing.size
                    self._enter(Space(child, missing.copy()))
                else:
                    child.close()
            elif kind == uf.REMAP:
                missing.move(first, second, size)
                # What was loaded for the old place looks again; the cursor may have passed the new one.
                space.cursor = min(space.cursor, second)
                uffd.wake(first, size)
                uffd.wake(second, size)
            else:
                missing.take(first, second)
                uffd.wake(first, second - first)

    def _look_empty(self, space: Space) -> None:
        """A space that nothing is missing from is complete. Its lock is held."""
        if space.missing or space.claims or space.closed:
            return
        space.closed = True
        with self._condition:
            del self._spaces[space.uffd.fd]
            self._poller.unregister(space.uffd.fd)
            if space.queued:
                self._queue.remove(space)
                space.queued = False
        space.uffd.close()
        with self._condition:
            self._open -= 1
            self._look_complete()

    def _look_complete(self) -> None:
        if self._prefetch and not self._open and not self._complete.is_set():
            self._complete.set()
            os.eventfd_write(self.news, 1)

    def _work(self) -> None:
        buffer = mmap.mmap(-1, BLOCK)
        view = memoryview(buffer)
        at = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        while True:
            with self._condition:
                while not (self._awaited or (self._prefetch and self._queue) or self._stop):
                    self._condition.wait()
                if self._stop:
                    return
                if self._awaited:
                    space, address = self._awaited.popleft()
                else:
                    space, address = self._queue[0], -1
            self._load(space, address, view, at)

    def _load(self, space: Space, address: int, view: memoryview, at: int) -> None:
        """The block that a page comes from; -1: the next one."""
        awaited = address >= 0
        with space.lock:
            if space.closed:
                return
            self._hear(space)
            if not awaited:
                address = self._next(space)
            found = space.missing.at(address) if address >= 0 else None
            if found is None:
                done = not awaited or self._put_zeros(space, address)
                self._look_empty(space)
                if not done:
                    self._again(space, address)
                return
            image, block = _block(found, address)
            waiting = space.claims.get((image, block))
            if waiting is not None:
                if awaited:
                    waiting.append(address)
                return
            space.claims[image, block] = []
            if not awaited:
                space.cursor = max(space.cursor, min(found[1], address + BLOCK - _within(found, address)))
        failure = ""
        try:
            self._source.read(image, block, view)
        except (OSError, UnusableImage) as error:
            failure = str(error)
        while not self._put(space, address, (image, block), at, failure):
            time.sleep(_PAUSE)

    def _again(self, space: Space, address: int) -> None:
        time.sleep(_PAUSE)
        with self._condition:
            self._awaited.append((space, address))
            self._condition.notify()

    def _next(self, space: Space) -> int:
        """The address that loading comes to next, -1 where the rest is in other threads' hands; the space then leaves
        the queue. Its lock is held."""
        for _ in range(2):
            address = space.cursor
            while (found := space.missing.after(address)) is not None:
                address = max(found[0], address)
                if _block(found, address) not in space.claims:
                    return address
                address = min(found[1], address + BLOCK - _within(found, address))
            space.cursor = 0  # something may be left that was moved, or is in pieces
        with self._condition:
            if space.queued:
                self._queue.remove(space)
                space.queued = False
        return -1

    def _put(self, space: Space, address: int, claim: tuple[int, int], at: int, failure: str) -> bool:
        """Put a block that was read where it belongs, and the page at an address first. False while the address space
        is being changed."""
        image, block = claim
        low = block * BLOCK
        with space.lock:
            try:
                self._hear(space)
                for start, end, _, offset in space.missing.around(address, image, low, low + BLOCK):
                    if failure:
                        if not self._fail(space, start, end, claim, failure):
                            return False
                    elif not self._fill(space, start, end, _copier(space, at + offset - low - start)):
                        return False
            except Ended:
                space.missing = MissingPages()
            waiting = space.claims.pop(claim)
            if space.missing and (waiting or not space.queued):
                with self._condition:
                    self._awaited.extend((space, other) for other in waiting)
                    if not space.queued:
                        space.queued = True
                        self._queue.append(space)
                    self._condition.notify_all()
            elif waiting:
                for other in waiting:
                    space.uffd.wake(other, PAGE)
            self._look_empty(space)
        return True

    def _fill(self, space: Space, start: int, end: int, put: Callable[[int, int], tuple[int, int]]) -> bool:
        """Put pages there by `put`, the first one by itself: it may be waited for. False while the address space is
        being changed. OSError; Ended."""
        to, size = start, PAGE
        while to < end:
            size = min(size, end - to)
            done, number = put(to, size)
            if number == errno.EAGAIN:
                return False
            if number == errno.ENOENT and size > PAGE:
                size = size // 2 & -PAGE  # it is more than one mapping
                continue
            if number not in (0, errno.EEXIST, errno.ENOENT):
                raise OSError(number, os.strerror(number), f"memory at {to:#x}")
            space.missing.take(to, to + (done or PAGE))
            if not done:
                space.uffd.wake(to, PAGE)
            to += done or PAGE
            size = BLOCK
        with self._condition:
            self.loaded += end - start
        return True

    def _fail(self, space: Space, start: int, end: int, claim: tuple[int, int], why: str) -> bool:
        """These pages cannot be loaded. As `_fill`."""
        uffd = space.uffd
        if claim not in self._failed:
            self._failed.add(claim)
            self._say(f"{why}; {_SIGBUS_TEXT}" if uffd.poison else f"{why}; the sandbox ends")
        if not uffd.poison:
            self._broken()
            raise Ended
        return self._fill(space, start, end, uffd.fail)

    def _put_zeros(self, space: Space, address: int) -> bool:
        """A page that is not in the image, and as many behind it; False for later."""
        following = space.missing.after(address)
        end = min(address + _ZEROS * PAGE, following[0] if following is not None else 1 << 64)
        size = end - address
        try:
            while size:
                done, number = space.uffd.zero(address, size)
                if not done and number == errno.EAGAIN:
                    return False
                if done or size == PAGE:
                    break
                size = PAGE
            space.uffd.wake(address, PAGE)
        except Ended:
            space.missing = MissingPages()
        return True


def _block(piece: Piece, address: int) -> tuple[int, int]:
    return piece[2], (piece[3] + address - piece[0]) // BLOCK


def _within(piece: Piece, address: int) -> int:
    """How far an address is into its block."""
    return (piece[3] + address - piece[0]) % BLOCK


def _copier(space: Space, shift: int) -> Callable[[int, int], tuple[int, int]]:
    """For `_fill`: from where an address's page is here."""
    copy = space.uffd.copy
    return lambda to, size: copy(to, to + shift, size)
