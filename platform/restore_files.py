"""Open file descriptions made again, each once, and what puts them where a process had them.

`open_pool` runs as ordinary Python in the first process of the new sandbox, before that is a guest: in its root and
namespaces and with their capabilities. It opens every description at numbers from `base` up, which all processes
inherit. `place` tells the calls by which one of them takes its own from the pool. Some cannot be opened before
the processes exist (pidfds, files of /proc/PID): each process opens those itself.

In the pool everything exists first, is filled then (queues of sockets may hold any other description), and what
watches it (epoll, inotify) comes last.
"""

from __future__ import annotations

import fcntl
import os
import resource
import struct
from collections.abc import Callable
from typing import BinaryIO

from trapline.platform import descriptor_calls as calls
from trapline.platform.capture_files import Clocks, HostClocks
from trapline.platform.injection import Call, Data
from trapline.platform.restore_paths import seal
from trapline.sentry.state.files import (
    AnyFile,
    Descriptor,
    EventPoll,
    InheritedFile,
    PathFile,
    ProcessFile,
    first_free,
)
from trapline.sentry.state.records import Image

__all__ = ["first_free", "late", "open_pool", "place", "seal"]

_SYS_CLOSE, _SYS_FCNTL, _SYS_OPENAT, _SYS_EPOLL_CTL, _SYS_DUP3 = 3, 72, 257, 233, 292
_SYS_LSEEK, _SYS_PIDFD_OPEN, _SYS_CLOSE_RANGE = 8, 434, 436
_AT_FDCWD = -100 & 0xFFFFFFFFFFFFFFFF
_ALL = 0xFFFFFFFF
_ADD = 1  # EPOLL_CTL_ADD
#: What F_SETFL sets; the rest is how it was opened (fcntl(2)).
_SETTABLE = os.O_APPEND | os.O_ASYNC | os.O_DIRECT | os.O_NOATIME | os.O_NONBLOCK


class Pool:
    """A pool being filled. Makers of the kinds put in what they opened by `put`."""

    def __init__(
        self,
        image: Image,
        base: int,
        inherited: dict[int, int],
        shared: dict[str, int],
        ghosts: Callable[[str], BinaryIO] | None,
        clocks: Clocks,
        terminal: str,
    ) -> None:
        self.image = image
        self.inherited = inherited
        self.shared = shared
        self.ghosts = ghosts
        self.clocks = clocks
        self.terminal = terminal
        self.at: dict[int, int] = {}  # where each description is
        self.temporary: dict[int, int] = {}  # what O_TMPFILE opened
        self.ends: dict[int, int] = {}  # peers of sockets whose peer is gone, until these are filled
        self.notes: list[str] = []
        #: Done when everything is open: what fills, and then what watches.
        self.fill: list[Callable[[], None]] = []
        self.watch: list[Callable[[], None]] = []
        self.finish: list[Callable[[], None]] = []
        self._next = base

    def put(self, key: int, descriptor: int, keep: bool = False) -> int:
        """Move what was opened to its place in the pool, or copy it there; the place."""
        place = fcntl.fcntl(descriptor, fcntl.F_DUPFD, self._next)
        self._next = place + 1
        if not keep:
            os.close(descriptor)
        self.at[key] = place
        return place

    def set_flags(self, key: int, file: AnyFile) -> None:
        """Flags that opening did not give."""
        at = self.at[key]
        now = fcntl.fcntl(at, fcntl.F_GETFL)
        if (now ^ file.flags) & _SETTABLE:
            fcntl.fcntl(at, fcntl.F_SETFL, file.flags & _SETTABLE)
        if file.signal:
            fcntl.fcntl(at, calls.F_SETSIG, file.signal)

    def of_kind(self, kind: type) -> list[tuple[int, AnyFile]]:
        return [(key, file) for key, file in self.image.files.items() if isinstance(file, kind)]


def open_pool(
    image: Image,
    base: int,
    *,
    inherited: dict[int, int] | None = None,
    shared: dict[str, int] | None = None,
    ghosts: Callable[[str], BinaryIO] | None = None,
    clocks: Clocks | None = None,
    terminal: str = "",
    notes: list[str] | None = None,
) -> dict[int, int]:
    """Where each description of the image is, by its key; those that are opened late (see `late`) are not among them.

    `base` must be above all descriptors of the image (`first_free`) and our own. `inherited` are the caller's
    descriptors by their numbers; default: those of ours that have these numbers. `shared` are memfds by key that were
    made already, to which those that are made here are added; `ghosts` opens what ghosts hold. `clocks` are the new
    sandbox's, `terminal` the name of its own terminal. OSError, with what could not be opened; the caller then gives
    up.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pool = Pool(
        image, base, own(image) if inherited is None else inherited, {} if shared is None else shared, ghosts,
        clocks or HostClocks(), terminal,
    )  # fmt: skip
    mask = os.umask(0)
    try:
        _open_all(pool)
    finally:
        os.umask(mask)
    if notes is not None:
        notes += pool.notes
    return pool.at


def own(image: Image) -> dict[int, int]:
    """Those of the caller's that the image wants and that we have under the same numbers."""
    found = {}
    for file in image.files.values():
        if isinstance(file, InheritedFile):
            try:
                if file.number <= 2 or os.get_inheritable(file.number):
                    os.fstat(file.number)
                    found[file.number] = file.number
            except OSError:
                continue
    return found


def _open_all(pool: Pool) -> None:
    from trapline.platform import restore_anonymous, restore_paths, restore_pipes

    restore_paths.open_inherited(pool)
    restore_paths.open_ghosts(pool)
    restore_paths.open_memory(pool)
    restore_paths.open_queues(pool)
    restore_paths.open_paths(pool)
    restore_pipes.open_pipes(pool)
    if pool.image.terminals:
        from trapline.platform import restore_terminals

        restore_terminals.open_terminals(pool)
    if pool.image.sockets:
        from trapline.platform import restore_sockets

        restore_sockets.open_sockets(pool)
    restore_anonymous.open_anonymous(pool)
    for step in (pool.fill, pool.watch, pool.finish):
        for action in step:
            action()
    for key, file in pool.image.files.items():
        if key in pool.at and file.locks:
            _lock(pool.at[key], file)


def _lock(descriptor: int, file: AnyFile) -> None:
    for lock in file.locks:
        if lock.kind == "flock":
            fcntl.flock(descriptor, (fcntl.LOCK_EX if lock.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        else:
            fcntl.fcntl(descriptor, _F_OFD_SETLK, lock_record(lock.exclusive, lock.start, lock.length))


_F_OFD_SETLK = 37


def lock_record(exclusive: bool, start: int, length: int) -> bytes:
    """struct flock."""
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    return struct.pack("hhxxxxqqixxxx", kind, os.SEEK_SET, start, length, 0)


# -- in each process
def late(file: AnyFile) -> bool:
    """Whether each process opens it itself, once all exist."""
    return (isinstance(file, ProcessFile) and file.process > 0) or (isinstance(file, PathFile) and file.process > 0)


def place(image: Image, table: int, pool: dict[int, int]) -> list[Call]:
    """Calls for one of the processes that share this table, which has nothing open below the pool: in this order, and
    when all processes exist. Afterwards it has its descriptors, and nothing of the pool."""
    entries = image.tables[table]
    made: list[Call] = []
    for number, entry in entries.items():
        if entry.file in pool:
            made.append((_SYS_DUP3, pool[entry.file], number, _cloexec(entry)))
    if pool:
        made.append((_SYS_CLOSE_RANGE, min(pool.values()), _ALL, 0))
    made += _open_late(image, entries, pool)
    made += _owners(image, entries)
    made += [
        (_SYS_FCNTL, lock.descriptor, fcntl.F_SETLK, Data(lock_record(lock.exclusive, lock.start, lock.length)))
        for lock in image.locks.get(table, [])
    ]
    return made


def _cloexec(entry: Descriptor) -> int:
    return os.O_CLOEXEC if entry.close_on_exec else 0


def _open_late(image: Image, entries: dict[int, Descriptor], pool: dict[int, int]) -> list[Call]:
    """Open what could not be in the pool. A new descriptor gets the lowest free number, which is known here."""
    made: list[Call] = []
    wanted = {number: entry for number, entry in entries.items() if late(image.files[entry.file])}
    taken = set(entries) - set(wanted)
    first: dict[int, int] = {}  # where each description is
    for number, entry in wanted.items():
        file = image.files[entry.file]
        if entry.file in first:
            made.append((_SYS_DUP3, first[entry.file], number, _cloexec(entry)))
            taken.add(number)
            continue
        free = next(n for n in range(len(taken) + 1) if n not in taken)
        made += _opening(file)
        if free != number:
            made += [(_SYS_DUP3, free, number, _cloexec(entry)), (_SYS_CLOSE, free)]
        elif not entry.close_on_exec and isinstance(file, ProcessFile):
            made.append((_SYS_FCNTL, number, fcntl.F_SETFD, 0))  # a pidfd is closed on exec
        elif entry.close_on_exec:
            made.append((_SYS_FCNTL, number, fcntl.F_SETFD, fcntl.FD_CLOEXEC))
        if isinstance(file, PathFile) and file.position:
            made.append((_SYS_LSEEK, number, file.position, os.SEEK_SET))
        taken.add(number)
        first[entry.file] = number
    made += _late_interests(image, entries, first)
    return made


def _opening(file: AnyFile) -> list[Call]:
    if isinstance(file, ProcessFile):
        flags = (os.O_EXCL if file.thread else 0) | file.flags & os.O_NONBLOCK
        return [(_SYS_PIDFD_OPEN, file.process, flags)]
    assert isinstance(file, PathFile)
    return [(_SYS_OPENAT, _AT_FDCWD, Data(file.path + b"\0"), file.flags | os.O_NOCTTY, 0)]


def _late_interests(image: Image, entries: dict[int, Descriptor], first: dict[int, int]) -> list[Call]:
    """What epoll sets hold of those; the item's number is that of the descriptor by which it is added."""
    made: list[Call] = []
    done = set()
    for number, entry in entries.items():
        poll = image.files[entry.file]
        if not isinstance(poll, EventPoll) or entry.file in done:
            continue
        done.add(entry.file)
        for interest in poll.interests:
            if interest.file in first:
                by = interest.descriptor
                if by not in entries or entries[by].file != interest.file:
                    by = first[interest.file]
                event = Data(struct.pack("<IQ", interest.events, interest.data))
                made.append((_SYS_EPOLL_CTL, number, _ADD, by, event))
    return made


def _owners(image: Image, entries: dict[int, Descriptor]) -> list[Call]:
    """F_SETOWN_EX, and after it O_ASYNC, by every process that has the description."""
    made: list[Call] = []
    done = set()
    for number, entry in entries.items():
        file = image.files[entry.file]
        if not file.owner or entry.file in done:
            continue
        done.add(entry.file)
        made.append((_SYS_FCNTL, number, calls.F_SETOWN_EX, Data(struct.pack("ii", file.owner_kind, file.owner))))
    return made
