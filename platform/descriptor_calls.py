"""Calls on descriptors that Python does not offer: of other processes, and about what two descriptors share.

Sources: pidfd_getfd(2), kcmp(2), fcntl(2), proc_pid_fdinfo(5), asm-generic/fcntl.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

import msgspec

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

_SYS_KCMP, _SYS_PIDFD_OPEN, _SYS_PIDFD_GETFD = 312, 434, 438
KCMP_FILE, KCMP_FILES, KCMP_EPOLL_TFD = 0, 2, 7
F_SETOWN_EX, F_GETOWN_EX, F_SETSIG, F_GETSIG, F_SETPIPE_SZ, F_GETPIPE_SZ, F_GET_SEALS = 15, 16, 10, 11, 1031, 1032, 1034
O_TMPFILE_BIT = 0o20000000  # of O_TMPFILE, without O_DIRECTORY
O_LARGEFILE = 0o100000
_PIDFD_THREAD = os.O_EXCL


def failure(what: str) -> OSError:
    """The error of the last call."""
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def call(what: str, number: int, *arguments: int | ctypes.Array[ctypes.c_char] | bytes) -> int:
    """A raw call; integers are passed as longs. OSError."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *converted))
    if result == -1:
        raise failure(what)
    return result


def open_process(host: int) -> int:
    """A pidfd of a process, or of one thread where that is no leader (Linux 6.9). OSError."""
    try:
        return call("pidfd_open", _SYS_PIDFD_OPEN, host, 0)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    return call("pidfd_open", _SYS_PIDFD_OPEN, host, _PIDFD_THREAD)


def duplicate(pidfd: int, descriptor: int) -> int:
    """A duplicate of another process's descriptor, closed on exec. OSError: EBADF, EPERM, ESRCH."""
    return call("pidfd_getfd", _SYS_PIDFD_GETFD, pidfd, descriptor, 0)


def compare_files(first: int, second: int, one: int | None = None, other: int | None = None) -> int:
    """How two descriptors' descriptions are ordered: -1, 0 for the same one, 1. They are ours, or
    those of the processes `one` and `other`. The order is the same until all have been closed. OSError."""
    me = os.getpid()
    found = call("kcmp", _SYS_KCMP, one or me, other or me, KCMP_FILE, first, second)
    return 0 if found == 0 else -1 if found == 1 else 1


def same_table(one: int, other: int) -> bool:
    """Whether two processes share their table of descriptors. OSError."""
    return call("kcmp", _SYS_KCMP, one, other, KCMP_FILES, 0, 0) == 0


def is_target(descriptor: int, poll: int, number: int, index: int) -> bool:
    """Whether a descriptor of ours is what an epoll set of ours holds as `number`, the `index`th of those."""
    slot = struct.pack("III", poll, number, index)
    me = os.getpid()
    try:
        return call("kcmp", _SYS_KCMP, me, me, KCMP_EPOLL_TFD, descriptor, slot) == 0
    except OSError:
        return False


def owner_of(descriptor: int) -> tuple[int, int]:
    """F_GETOWN_EX: the kind and, as we see it, the id of who gets SIGIO; 0 for nobody."""
    kind, owner = struct.unpack("ii", fcntl.fcntl(descriptor, F_GETOWN_EX, bytes(8)))
    return kind, owner


class FdInfo(msgspec.Struct):
    """fdinfo of one descriptor."""

    flags: int
    position: int
    fields: dict[str, str]  # all but those that come more than once
    lines: list[str]

    @property
    def close_on_exec(self) -> bool:
        return bool(self.flags & os.O_CLOEXEC)


def info_of(process: int | str, descriptor: int) -> FdInfo:
    """OSError where it is not open."""
    with open(f"/proc/{process}/fdinfo/{descriptor}", "rb", 0) as file:
        lines = file.readall().decode(errors="surrogateescape").splitlines()
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name, value.strip())
    return FdInfo(int(fields["flags"], 8), int(fields["pos"]), fields, lines)


def file_system(descriptor: int) -> int:
    """f_type of fstatfs(2). OSError."""
    found = ctypes.create_string_buffer(256)
    if libc.fstatfs(descriptor, found) < 0:
        raise failure("fstatfs")
    return int(struct.unpack_from("<q", found)[0])


def timerfd_gettime(descriptor: int) -> tuple[int, int]:
    """(remaining, interval), ns. OSError."""
    found = ctypes.create_string_buffer(32)
    if libc.timerfd_gettime(descriptor, found) < 0:
        raise failure("timerfd_gettime")
    i_s, i_n, v_s, v_n = struct.unpack("<qqqq", found.raw)
    return v_s * 1_000_000_000 + v_n, i_s * 1_000_000_000 + i_n
