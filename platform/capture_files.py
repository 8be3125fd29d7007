"""What descriptors a sandbox's processes have, taken from outside while they stand still, without a change to any.

Every table of descriptors is looked through once (kcmp(2) tells which processes share one), and every open file
description is held by one duplicate of ours (pidfd_getfd(2)), against which others are compared: first by what is
cheap to ask, then by kcmp, whose order lets descriptions that look alike (a thousand eventfds) be searched. The kinds
are in capture_paths.py, capture_pipes.py, capture_sockets.py, capture_terminals.py and capture_anonymous.py.
Descriptors in flight in sockets' queues come out of those as duplicates and are taken like others.

What cannot be saved is told in `Captured.unsavable`, and a `DroppedFile` is in its place.
"""

from __future__ import annotations

import fcntl
import os
import resource
import stat
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import msgspec

from trapline.platform import capture_anonymous, capture_locks, capture_paths, capture_pipes
from trapline.platform import descriptor_calls as calls
from trapline.platform.wall_timerfds import Setting
from trapline.sentry.state.files import (
    AnyFile,
    Descriptor,
    DroppedFile,
    FileLock,
    InheritedFile,
    Pipe,
    RecordLock,
    Socket,
    Terminal,
)
from trapline.sentry.state.records import Ghost, SharedObject

if TYPE_CHECKING:
    from trapline.platform.capture_unix import UnixSockets

#: Flags that F_GETFL tells of how a descriptor was opened, and that mean nothing to a description.
_NOT_KEPT = os.O_CLOEXEC | os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC


class Clocks(Protocol):
    """What is asked of the sandbox's Timekeeper."""

    def now(self, clock_id: int) -> int: ...
    def span_from_host(self, span: int) -> int: ...
    def span_to_host(self, span: int) -> int: ...


class HostClocks:
    """The host's own."""

    def now(self, clock_id: int) -> int:
        # The alarm clocks are those that they belong to (timerfd_create(2)).
        return time.clock_gettime_ns({8: 0, 9: 7}.get(clock_id, clock_id))

    def span_from_host(self, span: int) -> int:
        return span

    def span_to_host(self, span: int) -> int:
        return span


class Held(msgspec.Struct):
    """One open file description that was found."""

    key: int
    descriptor: int  # ours
    link: bytes  # of /proc/PID/fd
    where: str  # who has it, for messages
    flags: int
    info: calls.FdInfo
    status: os.stat_result


class Captured:
    """What was found. `close` it when the handles are not needed any more."""

    def __init__(self) -> None:
        self.files: dict[int, AnyFile] = {}
        self.tables: dict[int, dict[int, Descriptor]] = {}
        self.table_of: dict[int, int] = {}  # by a process's key
        self.pipes: dict[int, Pipe] = {}
        self.sockets: dict[int, Socket] = {}
        self.terminals: dict[int, Terminal] = {}
        self.locks: dict[int, list[RecordLock]] = {}
        self.ghosts: dict[str, Ghost] = {}
        self.shared: dict[str, SharedObject] = {}
        self.unsavable: list[str] = []
        self.notes: list[str] = []
        #: Open for reading on each ghost and memfd, for whoever copies what is in it.
        self.handles: dict[str, int] = {}

    def close(self) -> None:
        for handle in self.handles.values():
            os.close(handle)
        self.handles = {}


class Capture:
    """One capture under way. Kinds use `hold`, `drop`, `found` and the dictionaries of `result`."""

    def __init__(
        self,
        root: str,
        inherited: dict[int, int],
        clocks: Clocks,
        processes: dict[int, int],
        cancelled: dict[int, Setting],
        on_hosts_network: bool = False,
    ) -> None:
        self.root = os.fsencode(root.rstrip("/"))
        self.inherited = {number: (handle, os.fstat(handle)) for number, handle in inherited.items()}
        self.clocks = clocks
        self.cancelled = cancelled
        #: Keys of processes by their host ids.
        self.processes = processes
        self.result = Captured()
        self.held: dict[int, Held] = {}
        self._alike: dict[tuple[int, int, int, int], list[Held]] = {}
        self._new: list[Held] = []
        #: Done when every description has a record.
        self.later: list[Callable[[], None]] = []
        self.inet_sockets: list[Held] = []
        #: An address of this machine may be another's, outside of the sandbox.
        self.on_hosts_network = on_hosts_network
        self.pipe_keys: dict[tuple[int, int], int] = {}
        self.unix_sockets: UnixSockets | None = None
        self.locks_seen: set[tuple[int, str, int, int]] = set()
        self.file_locks: dict[int, list[FileLock]] = {}

    def hold(self, descriptor: int, where: str, link: bytes = b"") -> int:
        """Take a duplicate of ours; the key of its description. It is closed where that was known before."""
        status = os.fstat(descriptor)
        info = calls.info_of("self", descriptor)
        flags = info.flags & ~_NOT_KEPT
        bucket = self._alike.setdefault((status.st_dev, status.st_ino, flags, info.position), [])
        low, high = 0, len(bucket)
        while low < high:
            middle = (low + high) // 2
            order = calls.compare_files(descriptor, bucket[middle].descriptor)
            if order == 0:
                os.close(descriptor)
                return bucket[middle].key
            low, high = (low, middle) if order < 0 else (middle + 1, high)
        link = link or os.readlink(b"/proc/self/fd/%d" % descriptor)
        found = Held(len(self.held) + 1, descriptor, link, where, flags, info, status)
        self.held[found.key] = found
        bucket.insert(low, found)
        self._new.append(found)
        return found.key

    def tables(self) -> None:
        """Look through the tables of all processes."""
        first: list[tuple[int, int]] = []  # (host id, table)
        last: dict[int, tuple[int, int]] = {}  # by number: who had it last, and what it was
        for host, key in self.processes.items():
            shared = [table for other, table in first if calls.same_table(other, host)]
            if shared:
                self.result.table_of[key] = shared[0]
                continue
            table = len(first) + 1
            first.append((host, table))
            self.result.table_of[key] = table
            self.result.tables[table] = self._table(host, key, table, last)

    def _table(self, host: int, key: int, table: int, last: dict[int, tuple[int, int]]) -> dict[int, Descriptor]:
        found: dict[int, Descriptor] = {}
        pidfd = calls.open_process(host)
        try:
            for number in sorted(map(int, os.listdir(f"/proc/{host}/fd"))):
                info = calls.info_of(host, number)
                before = last.get(number)
                if before and calls.compare_files(number, number, before[0], host) == 0:
                    file = before[1]
                else:
                    file = self.hold(
                        calls.duplicate(pidfd, number),
                        f"{key}'s descriptor {number}",
                        os.readlink(b"/proc/%d/fd/%d" % (host, number)),
                    )
                last[number] = host, file
                found[number] = Descriptor(file, info.close_on_exec)
                capture_locks.of_table(self, table, number, file, info)
        finally:
            os.close(pidfd)
        return found

    def describe(self) -> None:
        """Make a record of every description; queues of sockets bring further ones."""
        while self._new:
            held = self._new.pop()
            if not self._inherited(held):
                self._describe(held)
        for action in self.later:
            action()
        for key, held in self.held.items():
            self._common(self.result.files[key], held)

    def _inherited(self, held: Held) -> bool:
        """Whether it is the caller's, by its description; or by its object, which only a pipe or terminal can be."""
        like = (held.status.st_dev, held.status.st_ino)
        for number, (handle, status) in self.inherited.items():
            if like == (status.st_dev, status.st_ino) and calls.compare_files(held.descriptor, handle) == 0:
                self.found(held, InheritedFile(number=number))
                return True
        if held.flags & os.O_PATH:
            return False
        for number, (_, status) in self.inherited.items():
            outside = stat.S_ISFIFO(status.st_mode) and held.link.startswith(b"pipe:")
            outside = outside or (stat.S_ISCHR(status.st_mode) and os.isatty(held.descriptor))
            if outside and like == (status.st_dev, status.st_ino):
                self.found(held, InheritedFile(number=number, reopened=True))
                return True
        return False

    def _describe(self, held: Held) -> None:
        mode = held.status.st_mode
        if held.link.startswith((b"anon_inode:", b"pidfd:")):
            capture_anonymous.describe(self, held)
        elif held.flags & os.O_PATH:
            capture_paths.describe(self, held)
        elif stat.S_ISSOCK(mode):
            from trapline.platform import capture_sockets

            capture_sockets.describe(self, held)
        elif stat.S_ISFIFO(mode):
            capture_pipes.describe(self, held)
        elif stat.S_ISCHR(mode) and os.isatty(held.descriptor):
            from trapline.platform import capture_terminals

            capture_terminals.describe(self, held)
        else:
            capture_paths.describe(self, held)

    def _common(self, file: AnyFile, held: Held) -> None:
        file.flags = held.flags
        file.locks = self.file_locks.get(held.key, [])
        if held.flags & os.O_PATH or isinstance(file, DroppedFile | InheritedFile):
            return
        kind, owner = calls.owner_of(held.descriptor)
        if owner:
            key = self.inside(owner)
            if key:
                file.owner_kind, file.owner = kind, key
        file.signal = fcntl.fcntl(held.descriptor, calls.F_GETSIG)

    def inside(self, host: int) -> int:
        """The id in the sandbox of one of its processes or groups; 0 for others."""
        if host in self.processes:
            return self.processes[host]
        try:
            with open(f"/proc/{host}/status", "rb", 0) as file:
                ids = file.readall().partition(b"\nNSpid:")[2].partition(b"\n")[0].split()
        except OSError:
            return 0
        return int(ids[-1]) if ids else 0

    def found(self, held: Held, file: AnyFile) -> None:
        self.result.files[held.key] = file

    def drop(self, held: Held, what: str) -> None:
        """It cannot be saved, being `what`, which goes on "1234's descriptor 5: "."""
        text = f"{held.where}: {what}"
        self.result.unsavable.append(text)
        self.found(held, DroppedFile(what=text))

    def close(self) -> None:
        for held in self.held.values():
            os.close(held.descriptor)
        self.held = {}


def own_descriptors() -> dict[int, int]:
    """Those that came from our caller and that a guest may have."""
    from trapline.platform.namespaces import inheritable_descriptors

    found = {}
    for number in (0, 1, 2, *inheritable_descriptors()):
        try:
            os.fstat(number)
        except OSError:
            continue
        found[number] = number
    return found


def capture(
    processes: Iterable[tuple[int, int]],
    root: str,
    *,
    inherited: dict[int, int] | None = None,
    clocks: Clocks | None = None,
    cancelled: dict[int, Setting] | None = None,
    on_hosts_network: bool = False,
) -> Captured:
    """All of it. `processes`: a host id of a living thread, and the process's id in the sandbox, of each; they stand
    still. `root` is the sandbox's root as we reach it (/proc/PID/root). `inherited` are the caller's descriptors: ours
    by the numbers that guests were given them as. `cancelled` is `WallTimerfds.cancelled`. OSError
    where something is in the way that is nothing of the sandbox's (too few descriptors)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    own = own_descriptors() if inherited is None else inherited
    work = Capture(root, own, clocks or HostClocks(), dict(processes), cancelled or {}, on_hosts_network)
    try:
        work.tables()
        work.describe()
        return work.result
    except BaseException:
        work.result.close()
        raise
    finally:
        work.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
