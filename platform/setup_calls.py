"""The few host calls that setting up a sandbox needs and Python 3.11 does not offer, as typed functions.

Every function raises OSError with the errno of the call and the path or flag that was meant. Sources:
mount(2), umount2(2), pivot_root(2), unshare(2), prctl(2), capget(2), close_range(2), rseq in
include/uapi/linux/rseq.h.
"""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWTIME = 0x80
CLONE_NEWNS = 0x20000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_NODIRATIME, MS_RELATIME = 1 << 10, 1 << 11, 1 << 21
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_CAPBSET_DROP, PR_CAP_AMBIENT = 1, 4, 15, 24, 47
PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT_CLEAR_ALL = 4

CLOSE_RANGE_CLOEXEC = 4

_SYS_CAPGET, _SYS_CAPSET, _SYS_PIVOT_ROOT, _SYS_RSEQ, _SYS_CLOSE_RANGE = 125, 126, 155, 334, 436
_RSEQ_SIGNATURE = 0x53053053  # what glibc registers with on x86
_CAPABILITY_VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
_mount = libc.mount
_mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_prctl = libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def syscall(what: str, number: int, *arguments: object) -> int:
    """A raw call; integers are passed as longs, everything else as ctypes takes it."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *converted)
    if result == -1:
        raise _failed(what)
    return result


def mount(
    source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """mount(2). `kind` is the file system type, None for binds and changes of flags."""
    if _mount(
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        flags,
        None if data is None else os.fsencode(data),
    ):
        raise _failed(f"mount {kind or source} on {target}")


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    if libc.umount2(os.fsencode(target), flags):
        raise _failed(f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2). With "." for both the old root comes to lie on the new one: see the manual's notes."""
    new, old = ctypes.c_char_p(os.fsencode(new_root)), ctypes.c_char_p(os.fsencode(put_old))
    syscall("pivot_root", _SYS_PIVOT_ROOT, new, old)


def unshare(flags: int) -> None:
    """unshare(2)."""
    if libc.unshare(ctypes.c_int(flags)):
        raise _failed("unshare")


def setns(handle: int, kind: int) -> None:
    """setns(2). `kind` is the CLONE_NEW flag that the descriptor must match."""
    if libc.setns(ctypes.c_int(handle), ctypes.c_int(kind)):
        raise _failed("setns")


def prctl(option: int, second: int = 0, third: int = 0) -> int:
    """prctl(2)."""
    result: int = _prctl(option, second, third, 0, 0)
    if result == -1:
        raise _failed(f"prctl {option}")
    return result


def set_name(name: bytes) -> None:
    """The name that ps shows for this thread, at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def capabilities() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) sets of the calling thread, as bit masks."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    syscall("capget", _SYS_CAPGET, header, data)
    return data[0] | data[3] << 32, data[1] | data[4] << 32, data[2] | data[5] << 32


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2). EPERM when more is asked than is permitted."""
    low = 0xFFFFFFFF
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (effective, permitted, inheritable)
    data = (ctypes.c_uint32 * 6)(*[s & low for s in sets], *[s >> 32 for s in sets])
    syscall("capset", _SYS_CAPSET, header, data)


def close_all_but(keep: list[int], low: int = 0) -> None:
    """Close every descriptor from `low` up that is not in `keep` (close_range(2), Linux 5.9).

    By the call itself and not os.closerange, which loops when Python was built on an older system.
    """
    start = low
    for fd in sorted(set(keep)):
        if fd < start:
            continue
        if fd > start:
            syscall("close_range", _SYS_CLOSE_RANGE, start, fd - 1, 0)
        start = fd + 1
    syscall("close_range", _SYS_CLOSE_RANGE, start, 0x7FFFFFFF, 0)


def unregister_rseq() -> bool:
    """Take back glibc's registration of restartable sequences; False when that could not be done.

    The kernel writes to the registered area whenever the thread was moved or interrupted, so it must go
    before the memory that holds it.
    """
    try:
        offset = ctypes.c_ssize_t.in_dll(libc, "__rseq_offset").value
        size = ctypes.c_uint.in_dll(libc, "__rseq_size").value
    except ValueError:
        return False  # a C library that does not say: it may have registered or not
    if size == 0:
        return True  # registration was switched off
    libc.pthread_self.restype = ctypes.c_void_p
    area = (libc.pthread_self() or 0) + offset
    for length in (32, (size + 31) & ~31, size):  # registered were at least 32 bytes, or whole units
        try:
            syscall("rseq", _SYS_RSEQ, area, length, 1, _RSEQ_SIGNATURE)
            return True
        except OSError:
            continue
    return False


def open_how(flags: int, resolve: int) -> bytes:
    """struct open_how of openat2(2)."""
    return struct.pack("=QQQ", flags, 0, resolve)
