"""A copy of an address space at one moment: a fork of the guest, so that the guest goes on while the copy is written.

The fork is made by an injected clone(2) that shares nothing with the guest. Its descriptors are closed before the guest
goes on, so no pipe of the guest's is held open; its signals are all blocked; its exit signal is 0. The sentry traces it
until it has been given the file of pages, and lets it go as a process that makes calls for the sentry
(remote_calls.py): it writes its own memory, which is quicker than that the sentry reads it. It ends by SIGKILL.

What fork(2) does not copy has to be saved from the guest while that stands still: `lost_ranges`, and everything shared.

Whose child the fork is: of the guest's parent where that is the sandbox's init, which reaps everything; else of the
guest, which has to reap it by an injected wait4 (`reap`), since no handler of its own will.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import itertools
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator, Sequence

from trapline.platform import ptrace_calls as pt
from trapline.platform import remote_calls
from trapline.platform.guest_memory import PAGE
from trapline.platform.injection import CODE, Data, Injection, Workspace, single
from trapline.platform.injection import SIZE as WORKSPACE
from trapline.platform.memory_areas import HOST_VDSO, PROT_READ, read_maps
from trapline.platform.page_copy import Writer, after, copy_pages, cut_at_blocks
from trapline.platform.page_scan import PageScan, Range
from trapline.platform.remote_calls import RemoteCalls
from trapline.sentry.protocol import Gone
from trapline.sentry.state import page_places
from trapline.sentry.state.records import AddressSpace, PageRun

_CLONE, _CLOSE_RANGE, _WAIT4, _MMAP, _MPROTECT = 56, 436, 61, 9, 10
_SOCKETPAIR, _RECVMSG, _PWRITEV, _CLOSE = 53, 47, 296, 3
_CLONE_PARENT = 0x8000
_ALL = (1 << 32) - 1
_MAP_SHARED, _MAP_PRIVATE_ANONYMOUS = 1, 0x22
_PTRACE_DETACH = 17
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438
_VECTOR = struct.Struct("<QQ")
#: Blocks that are written by one batch of calls: they are summed by others meanwhile.
BATCH = 16
_TRAP = signal.SIGTRAP
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@contextlib.contextmanager
def borrowed(host: int) -> Iterator[None]:
    """A task at an event stop, for calls by `single`: afterwards its registers and mask are what they were, and it
    stands at an event stop again. Gone; OSError for another stop."""
    registers = pt.RegisterFile()
    registers.load(host)
    before, mask = registers.copy(), pt.get_sigmask(host)
    pt.set_sigmask(host, pt.U64)
    try:
        yield
    finally:
        registers.put(before)
        registers.store(host)
        pt.set_sigmask(host, mask)
        # The registers may say that the host is to begin a call again, which it does after such a stop only.
        pt.call(pt.PTRACE_INTERRUPT, host)
        pt.cont(host)
        status = pt.wait_stop(host)
        if status >> 16 != pt.EVENT_STOP:
            raise OSError(0, f"host task {host}: unexpected stop {status:#x}")


class Snapshot:
    """One copy. `close` ends it."""

    def __init__(self, guest: int, host: int, by_guest: bool) -> None:
        self.guest = guest  # the task that made it
        self.host = host
        self.by_guest = by_guest  # it is the guest's child, to be reaped by it
        self.pid = _id_inside(host)  # as the sandbox numbers it
        self.pidfd = int(_libc.syscall(_PIDFD_OPEN, host, 0))
        if self.pidfd < 0:
            raise Gone(host)
        self._calls: RemoteCalls | None = None
        self._pages: list[int] = []  # the files of pages, as the copy has them open
        self._syscall = 0

    # -- while the guest stands still
    @classmethod
    def take(cls, guest: int, at: int, init: int) -> Snapshot:
        """Of a task at an event stop; `at` is a `syscall` instruction in it, `init` the host id of a process that reaps
        whatever child it gets, 0 for none. Gone; OSError where it cannot be made."""
        by_guest = not init or _parent(guest) != init
        with borrowed(guest):
            host = _fork(guest, at, 0 if by_guest else _CLONE_PARENT)
        found = cls(guest, host, by_guest)
        found._syscall = at
        try:
            pt.set_sigmask(host, pt.U64)
            single(host, at, _CLOSE_RANGE, 0, _ALL, 0)
        except BaseException:
            found.close()
            raise
        return found

    # -- afterwards, in the sentry's tracing thread
    def let_go(self, pages: Sequence[int]) -> None:
        """Give it the files of pages, and let it go, to write its memory itself. Where that cannot be, it stays as it
        is and is read by the sentry. Gone."""
        try:
            self._let_go(pages)
        except OSError:
            self._calls = None

    def _let_go(self, pages: Sequence[int]) -> None:
        base = single(self.host, self._syscall, _MMAP, 0, WORKSPACE, 7, _MAP_PRIVATE_ANONYMOUS, -1, 0)
        _poke(self.host, base, CODE)
        calls = RemoteCalls()
        try:
            given = self._give(Injection(self.host, Workspace(base)), [calls.descriptor, *pages])
            injection = Injection(self.host, Workspace(base))
            (shared, _) = injection.run(
                [(_MMAP, 0, remote_calls.SIZE, 3, _MAP_SHARED, given[0], 0), (_CLOSE, given[0])]
            )
            _poke(self.host, base, remote_calls.CODE)
            registers = pt.RegisterFile()
            regs = registers.load(self.host)
            regs.rip, regs.r15, regs.orig_rax, regs.rax = base, shared, pt.U64, 0
            registers.store(self.host)
            pt.set_sigmask(self.host, pt.U64)
            pt.call(_PTRACE_DETACH, self.host)
        except BaseException:
            calls.close()
            raise
        calls.base, calls.pidfd = shared, self.pidfd
        self._calls, self._pages = calls, given[1:]

    def _give(self, injection: Injection, descriptors: list[int]) -> list[int]:
        """Put descriptors into the copy, over a socket pair one end of which the sentry borrows."""
        ends = Data(bytes(8), read_back=True)
        injection.run([(_SOCKETPAIR, socket.AF_UNIX, socket.SOCK_DGRAM, 0, ends)])
        ours, theirs = struct.unpack("<ii", ends.value)
        borrowed_end = int(_libc.syscall(_PIDFD_GETFD, self.pidfd, ours, 0))
        if borrowed_end < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        with socket.socket(fileno=borrowed_end) as end:
            rights = array.array("i", descriptors)
            end.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        control = Data(bytes(16 + 4 * len(descriptors) + 4 * (len(descriptors) % 2)), read_back=True)
        vector = Data(struct.pack("<QQ", 0, 1), links={0: Data(b"\0")})
        header = Data(struct.pack("<QQQQQQQ", 0, 0, 0, 1, 0, len(control.value), 0), links={16: vector, 32: control})
        injection.run([(_RECVMSG, theirs, header, 0), (_CLOSE, ours), (_CLOSE, theirs)])
        return list(struct.unpack_from(f"<{len(descriptors)}i", control.value, 16))

    @property
    def writes_itself(self) -> bool:
        """Whether it was let go; otherwise the sentry reads it."""
        return self._calls is not None

    # -- in any thread
    def write(self, space: AddressSpace, owner: str, ranges: Sequence[Range], writer: Writer) -> int:
        """Write these ranges into the image; how many bytes. OSError; Gone; Unsavable."""
        calls = self._calls
        if calls is None:
            return copy_pages(self.host, owner, ranges, writer)
        hidden = [m for m in space.mappings if not m.prot & PROT_READ]
        for start, end in [(m.start, m.end) for m in hidden if any(a < m.end and m.start < b for a, b in ranges)]:
            calls.run([(_MPROTECT, start, end - start, PROT_READ)])
        total = sum(end - start for start, end in ranges)
        offset = writer.allocate(total) if total else 0
        blocks = cut_at_blocks(ranges, offset)
        while batch := list(itertools.islice(blocks, BATCH)):
            made, room = [], 0
            for pieces, _, at in batch:
                vector = b"".join([_VECTOR.pack(start, end - start) for start, end in pieces])
                file, place = page_places.place(at, len(self._pages))
                made.append((_PWRITEV, self._pages[file], calls.put(room, vector), len(pieces), place, 0))
                room += len(vector)
            for (pieces, size, at), done in zip(batch, calls.run(made), strict=True):
                if done != size:
                    self._write_rest(pieces, done, at, calls)
                for start, end in pieces:
                    writer.add_run(PageRun(owner, start, end - start, at))
                    at += end - start
        return total

    def _write_rest(self, pieces: list[Range], done: int, offset: int, calls: RemoteCalls) -> None:
        """A file system wrote less of a block than it was given: the rest, range by range."""
        file, place = page_places.place(offset, len(self._pages))
        for start, end, at in after(pieces, done):
            while start < end:
                vector = calls.put(0, _VECTOR.pack(start, end - start))
                (count,) = calls.run([(_PWRITEV, self._pages[file], vector, 1, place + at, 0)])
                if count <= 0:
                    raise OSError(errno.EIO, "a copy of a guest cannot write its pages")
                start += count
                at += count

    def close(self) -> None:
        """End it, at once. Twice is once."""
        if self.pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):  # it ended with its sandbox
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        if self._calls is None:
            with contextlib.suppress(Gone):  # a tracee still
                while pt.wait_one(self.host) & 0xFF == 0x7F:
                    pass
        else:
            self._calls.close()
        os.close(self.pidfd)
        self.pidfd = -1


def reap(guest: int, at: int, pid: int) -> None:
    """Have a guest that stands at an event stop reap its copy, which has been closed; `pid` is the copy's id as the
    guest's namespace has it. Gone; OSError."""
    with borrowed(guest):
        single(guest, at, _WAIT4, pid, 0, 0x40000000, 0)


def lost_ranges(guest: int, copy: int) -> tuple[list[Range], list[Range]]:
    """Ranges of private memory that a fork did not take along (MADV_DONTFORK, MADV_WIPEONFORK), both standing still:
    where the guest has a page of its own, and the copy has none there; and the mappings that the copy lacks. OSError.
    """
    found: list[Range] = []
    missing: list[Range] = []
    there = {(area.start, area.end) for area in read_maps(copy)}
    with PageScan(guest) as one, PageScan(copy) as other:
        for area in read_maps(guest):
            if area.path == "[vsyscall]" or area.path in HOST_VDSO:
                continue
            if (area.start, area.end) not in there:
                missing.append((area.start, area.end))
            if area.shared:
                continue
            if (area.start, area.end) not in there:
                found += one.own(area.start, area.end)
                continue
            first = one.first(area.start, area.end)
            if first >= 0 and other.first(first, first + PAGE) < 0:
                found += one.own(area.start, area.end)
    return found, missing


def _fork(guest: int, at: int, flags: int) -> int:
    """The copy's host id; it stands at its first stop. OSError; Gone."""
    try:
        return _clone(guest, at, flags)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
    # The copy is to count against no limit. The hard one takes CAP_SYS_RESOURCE, and so does another user's process.
    before = resource.prlimit(guest, resource.RLIMIT_NPROC)
    try:
        resource.prlimit(guest, resource.RLIMIT_NPROC, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except PermissionError:
        resource.prlimit(guest, resource.RLIMIT_NPROC, (before[1], before[1]))
    try:
        return _clone(guest, at, flags)
    finally:
        resource.prlimit(guest, resource.RLIMIT_NPROC, before)


def _clone(guest: int, at: int, flags: int) -> int:
    registers = pt.RegisterFile()
    regs = registers.load(guest)
    regs.rip, regs.rax, regs.orig_rax = at, _CLONE, pt.U64
    regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8 = flags, 0, 0, 0, 0
    registers.store(guest)
    host, stops = 0, 0
    while stops < 2:  # its entry and its exit
        pt.cont_to_exit(guest)
        status = pt.wait_stop(guest)
        if status >> 16 in (pt.EVENT_CLONE, pt.EVENT_FORK):
            host = pt.event_message(guest)
        elif status >> 8 & 0xFF == _TRAP | 0x80:
            stops += 1
    result = pt.signed(registers.load(guest).rax)
    if result < 0:
        raise OSError(-result, f"clone in a guest: {os.strerror(-result)}")
    if pt.wait_one(host) & 0xFF != 0x7F:
        raise Gone(host)
    return host


def _parent(host: int) -> int:
    with open(f"/proc/{host}/status", "rb") as file:
        return int(file.read().partition(b"\nPPid:")[2].split(None, 1)[0])


def _id_inside(host: int) -> int:
    with open(f"/proc/{host}/status", "rb") as file:
        return int(file.read().partition(b"\nNSpid:")[2].split(b"\n", 1)[0].split()[-1])


def _poke(host: int, address: int, data: bytes) -> None:
    fd = os.open(f"/proc/{host}/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, address)
    finally:
        os.close(fd)
