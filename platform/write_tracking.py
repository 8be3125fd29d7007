"""Which pages a guest has written since its last save: userfaultfd's asynchronous write protection (Linux 6.7).

The host keeps a bit for each page, which a write clears without anybody being asked. The descriptor is made in the
guest, since it belongs to an address space, from /dev/userfaultfd, which the sentry gives it for that moment: a guest
may not call userfaultfd(2). The sentry takes it over, and the guest keeps nothing but `uw` in its VmFlags.

Only private anonymous memory is tracked. What is not (another file's pages, a mapping that is new, moved or a forked
child's) is told of as written. Pages that were dropped (MADV_DONTNEED) are neither written nor kept: they are zero.

Sources: ioctl_userfaultfd(2), Linux Documentation/admin-guide/mm/pagemap.rst and userfaultfd.rst.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import socket
import struct

from trapline.platform import ptrace_calls as pt
from trapline.platform.guest_memory import GuestMemory
from trapline.platform.injection import single
from trapline.platform.page_copy import has_pages
from trapline.platform.page_scan import (
    CHECK_WPASYNC,
    FILE,
    GUARD,
    PRESENT,
    SWAPPED,
    WP_MATCHING,
    WRITTEN,
    ZERO,
    PageScan,
    Range,
    merged,
    without,
)
from trapline.platform.snapshot import borrowed
from trapline.sentry.protocol import Gone
from trapline.sentry.state.records import AddressSpace, Mapping

DEVICE = "/dev/userfaultfd"
_NONE: list[Range] = []
_SOCKETPAIR, _RECVMSG, _IOCTL, _CLOSE = 53, 47, 16, 3
_USERFAULTFD_IOC_NEW = 0xAA00
_UFFDIO_API, _UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
_UFFD_API, _MODE_WP = 0xAA, 2
#: UFFD_FEATURE_PAGEFAULT_FLAG_WP, WP_UNPOPULATED, WP_ASYNC.
_FEATURES = 1 | 1 << 13 | 1 << 15
_O_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_MSG_CMSG_CLOEXEC = 0x40000000
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438
_RED_ZONE, _SCRATCH = 128, 256
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class WriteTracking:
    """Of one address space. `close` ends it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        arguments = ctypes.create_string_buffer(struct.pack("<QQQ", _UFFD_API, _FEATURES, 0), 24)
        _ioctl(descriptor, _UFFDIO_API, arguments)

    @classmethod
    def begin(cls, guest: int, at: int) -> WriteTracking:
        """Of a task at an event stop; `at` is a `syscall` instruction in it. OSError where this host, or the guest's
        limit of descriptors, does not allow it; Gone."""
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            with borrowed(guest):
                descriptor = _make(guest, at, device)
        finally:
            os.close(device)
        try:
            return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def close(self) -> None:
        """Track no more: the host drops its bits. Twice is once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def collect(self, guest: int, space: AddressSpace) -> tuple[list[Range], list[Range]]:
        """(pages that were written since the last time, or are not tracked; pages that are as they were then), and
        track from now on. All tasks of the space have to stand still. OSError, after which nothing is known of what was
        written; Gone."""
        written: list[Range] = []
        kept: list[Range] = []
        with PageScan(guest) as scan:
            for mapping in space.mappings:
                if not has_pages(mapping):
                    continue
                if mapping.kind != "anonymous" or not scan.scans:
                    new, old = scan.own(mapping.start, mapping.end), _NONE
                else:
                    new, old = self._of(scan, mapping)
                written += without(new, mapping.guards) if mapping.guards else new
                kept += without(old, mapping.guards) if mapping.guards else old
        return merged(written), merged(kept)

    def _of(self, scan: PageScan, mapping: Mapping) -> tuple[list[Range], list[Range]]:
        try:
            return _scan(scan, mapping)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
        # Some of it is not tracked, and what is by now knows nothing of earlier: part of a scan may have been done.
        arguments = struct.pack("<QQQQ", mapping.start, mapping.end - mapping.start, _MODE_WP, 0)
        try:
            _ioctl(self._descriptor, _UFFDIO_REGISTER, ctypes.create_string_buffer(arguments, 32))
            new, old = _scan(scan, mapping)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EINVAL, errno.EPERM):
                raise
            return scan.own(mapping.start, mapping.end), []  # another's, or of a kind that cannot be tracked
        return merged(sorted(new + old)), []


def _scan(scan: PageScan, mapping: Mapping) -> tuple[list[Range], list[Range]]:
    """(written, as they were); what was written is protected again."""
    new: list[Range] = []
    old: list[Range] = []
    guard = GUARD if scan.knows_guards else 0
    for start, end, kind in scan.scan(
        mapping.start,
        mapping.end,
        FILE | ZERO,
        FILE | ZERO,
        PRESENT | SWAPPED,
        WRITTEN | guard,
        WP_MATCHING | CHECK_WPASYNC,
    ):
        if not kind & GUARD:
            (new if kind & WRITTEN else old).append((start, end))
    return new, old


def _make(guest: int, at: int, device: int) -> int:
    """A userfaultfd of the guest's, in the sentry. OSError; Gone."""
    registers = pt.RegisterFile()
    memory = GuestMemory(guest)
    scratch = (registers.load(guest).rsp - _RED_ZONE - _SCRATCH) & ~15
    kept = memory.read(scratch, _SCRATCH)
    try:
        single(guest, at, _SOCKETPAIR, socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0, scratch)
        ours, theirs = struct.unpack("<ii", memory.read(scratch, 8))
        opened = [ours, theirs]
        try:
            with socket.socket(fileno=_borrow(guest, ours)) as end:
                end.sendmsg([b"u"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [device]))])
            # struct msghdr, struct iovec, a byte, a control message of 24 bytes
            vector, byte, control = scratch + 64, scratch + 96, scratch + 128
            header = struct.pack("<QIIQQQQI4x", 0, 0, 0, vector, 1, control, 24, 0)
            memory.write(scratch, header.ljust(64, b"\0") + struct.pack("<QQ", byte, 1).ljust(64, b"\0") + bytes(24))
            single(guest, at, _RECVMSG, theirs, scratch, _MSG_CMSG_CLOEXEC)
            (given,) = struct.unpack("<i", memory.read(control + 16, 4))
            opened.append(given)
            made = single(guest, at, _IOCTL, given, _USERFAULTFD_IOC_NEW, _O_NONBLOCK_CLOEXEC)
            opened.append(made)
            return _borrow(guest, made)
        finally:
            for fd in opened:
                single(guest, at, _CLOSE, fd)
    finally:
        memory.write(scratch, kept)


def _borrow(guest: int, fd: int) -> int:
    """A descriptor of a process, in the sentry. OSError; Gone."""
    with open(f"/proc/{guest}/status", "rb") as file:
        group = int(file.read().partition(b"\nTgid:")[2].split(None, 1)[0])
    pidfd = int(_libc.syscall(_PIDFD_OPEN, group, 0))
    if pidfd < 0:
        raise Gone(guest)
    try:
        found = int(_libc.syscall(_PIDFD_GETFD, pidfd, fd, 0))
        if found < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return found
    finally:
        os.close(pidfd)


def _ioctl(fd: int, request: int, argument: ctypes.Array[ctypes.c_char]) -> None:
    if _libc.ioctl(fd, ctypes.c_ulong(request), argument) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"userfaultfd: {os.strerror(number)}")
