"""ptrace(2) and wait4(2) as typed calls: constants and registers from python-ptrace, the rest by ctypes.

python-ptrace lacks SEIZE, INTERRUPT, LISTEN and the masks; its errors are an exception class of its own.
Here every failure with ESRCH is `Gone` (the task was killed), any other an OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from typing import Any, Protocol

from trapline.platform.ptrace_binding import (
    PTRACE_CONT,
    PTRACE_GETEVENTMSG,
    PTRACE_GETREGS,
    PTRACE_GETSIGINFO,
    PTRACE_O_TRACECLONE,
    PTRACE_O_TRACEEXEC,
    PTRACE_O_TRACEFORK,
    PTRACE_O_TRACESYSGOOD,
    PTRACE_O_TRACEVFORK,
    PTRACE_SETREGS,
    PTRACE_SETSIGINFO,
    PTRACE_SYSCALL,
    linux_struct,
)
from trapline.sentry.protocol import Gone


class Registers(Protocol):
    """python-ptrace's user_regs_struct on x86-64 (asm/user_64.h)."""

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int


_Structure: Any = linux_struct.user_regs_struct

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_LISTEN = 0x4206, 0x4207, 0x4208
PTRACE_GET_SYSCALL_INFO = 0x420E
PTRACE_PEEKSIGINFO, PTRACE_GETSIGMASK, PTRACE_SETSIGMASK = 0x4209, 0x420A, 0x420B
PTRACE_O_TRACESECCOMP, PTRACE_O_EXITKILL = 0x80, 0x100000
OPTIONS = (
    PTRACE_O_TRACESYSGOOD
    | PTRACE_O_TRACEFORK
    | PTRACE_O_TRACEVFORK
    | PTRACE_O_TRACECLONE
    | PTRACE_O_TRACEEXEC
    | PTRACE_O_TRACESECCOMP
    | PTRACE_O_EXITKILL
)
EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_SECCOMP, EVENT_STOP = 1, 2, 3, 4, 7, 128

U64 = (1 << 64) - 1
WNOHANG, WALL = 1, 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long
# At every stop: the same without argument types, given `int`s that fit 32 bits (which libffi extends) and pointers
# that are ctypes objects already. That saves 0.5 us of each.
_quick_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_quick_ptrace.restype = ctypes.c_long
_wait4 = _libc.wait4
_wait4.restype = ctypes.c_int


def call(request: int, host: int, address: int = 0, data: int = 0) -> None:
    """One ptrace request. Gone when the tracee is dead or not stopped any more; OSError."""
    if _ptrace(request, host, address, data) == -1:
        _failed(request, host)


def _failed(request: int, host: int) -> None:
    number = ctypes.get_errno()
    if number == errno.ESRCH:
        raise Gone(host)
    raise OSError(number, f"ptrace {request:#x} of {host}: {os.strerror(number)}")


class RegisterFile:
    """A buffer for one tracee's registers at a time."""

    def __init__(self) -> None:
        structure = _Structure()
        self.r: Registers = structure
        self._structure = structure
        self._at = ctypes.c_void_p(ctypes.addressof(structure))

    def load(self, host: int) -> Registers:
        """PTRACE_GETREGS."""
        if _quick_ptrace(PTRACE_GETREGS, host, 0, self._at) == -1:
            raise Gone(host)
        return self.r

    def copy(self) -> bytes:
        """All of them, for `put`."""
        return bytes(self._structure)

    def put(self, saved: bytes) -> None:
        """Take back what `copy` gave; `store` writes it."""
        ctypes.memmove(self._at, saved, len(saved))

    def store(self, host: int) -> None:
        """PTRACE_SETREGS."""
        if _quick_ptrace(PTRACE_SETREGS, host, 0, self._at) == -1:
            raise Gone(host)


def cont(host: int, signo: int = 0) -> None:
    """PTRACE_CONT."""
    if _quick_ptrace(PTRACE_CONT, host, 0, signo) == -1:
        raise Gone(host)


def cont_to_exit(host: int, signo: int = 0) -> None:
    """PTRACE_SYSCALL: run to the next entry or exit of a call."""
    if _quick_ptrace(PTRACE_SYSCALL, host, 0, signo) == -1:
        raise Gone(host)


_message = ctypes.c_ulong()
_message_at = ctypes.addressof(_message)


def event_message(host: int) -> int:
    """PTRACE_GETEVENTMSG."""
    call(PTRACE_GETEVENTMSG, host, 0, _message_at)
    return _message.value


_siginfo = ctypes.create_string_buffer(128)
_siginfo_at = ctypes.c_void_p(ctypes.addressof(_siginfo))


def get_siginfo(host: int) -> bytes:
    """PTRACE_GETSIGINFO, 128 bytes."""
    if _quick_ptrace(PTRACE_GETSIGINFO, host, 0, _siginfo_at) == -1:
        _failed(PTRACE_GETSIGINFO, host)
    return _siginfo.raw


def set_siginfo(host: int, raw: bytes) -> None:
    """PTRACE_SETSIGINFO."""
    _siginfo.raw = raw
    if _quick_ptrace(PTRACE_SETSIGINFO, host, 0, _siginfo_at) == -1:
        _failed(PTRACE_SETSIGINFO, host)


def peek_siginfo(host: int, arguments: int, room: int) -> int:
    """PTRACE_PEEKSIGINFO: how many were found, by a struct ptrace_peeksiginfo_args. Gone; OSError."""
    count = int(_ptrace(PTRACE_PEEKSIGINFO, host, arguments, room))
    if count < 0:
        _failed(PTRACE_PEEKSIGINFO, host)
    return count


_mask = ctypes.c_uint64()


def get_sigmask(host: int) -> int:
    """PTRACE_GETSIGMASK."""
    call(PTRACE_GETSIGMASK, host, 8, ctypes.addressof(_mask))
    return _mask.value


def set_sigmask(host: int, mask: int) -> None:
    """PTRACE_SETSIGMASK."""
    _mask.value = mask
    call(PTRACE_SETSIGMASK, host, 8, ctypes.addressof(_mask))


_status = ctypes.c_int()
_status_at = ctypes.c_void_p(ctypes.addressof(_status))
RUSAGE_SIZE = 144
_rusage = ctypes.create_string_buffer(RUSAGE_SIZE)
_rusage_at = ctypes.c_void_p(ctypes.addressof(_rusage))


def wait_any() -> tuple[int, int]:
    """wait4(-1, WNOHANG|__WALL): (host tid, status), (0, 0) when nothing has changed, (-1, 0) without children."""
    host = _wait4(-1, _status_at, WNOHANG | WALL, _rusage_at)
    return host, _status.value


def wait_for_any() -> tuple[int, int]:
    """The same, but blocks; (-1, 0) without children."""
    while True:
        host = _wait4(-1, _status_at, WALL, _rusage_at)
        if host >= 0 or ctypes.get_errno() != errno.EINTR:
            return host, _status.value


def wait_one(host: int) -> int:
    """Wait for one tracee; its status. Blocks."""
    while _wait4(host, _status_at, WALL, _rusage_at) < 0:
        if ctypes.get_errno() != errno.EINTR:
            raise Gone(host)
    return _status.value


def wait_now(host: int) -> int | None:
    """The status of one tracee if it has changed."""
    if _wait4(host, _status_at, WALL | WNOHANG, _rusage_at) == host:
        return _status.value
    return None


_waitid = _libc.waitid
_waitid.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_void_p, ctypes.c_int]
_P_ALL, _P_PID, _WSTOPPED, _WEXITED, _WNOWAIT = 0, 1, 2, 4, 0x01000000
_si_pid = ctypes.c_int.from_buffer(_siginfo, 16)
_si_status = ctypes.c_int.from_buffer(_siginfo, 24)


def stopped_now(host: int) -> int | None:
    """The status of one tracee if it has stopped; its death is not looked for.

    Without the process's rusage, for which the host adds up the times of all its threads (Linux getrusage), 30 us
    of 1,000.
    """
    _si_pid.value = 0
    if _waitid(_P_PID, host, _siginfo_at, _WSTOPPED | WALL | WNOHANG) == 0 and _si_pid.value:
        return _si_status.value << 8 | 0x7F
    return None


_PF_EXITING = 4  # include/linux/sched.h


def wait_stop(host: int) -> int:
    """Wait until one tracee stops; its status. Gone when it dies instead, and its death is still to be waited for.

    What goes wrong otherwise: the leader of a process that ends cannot be waited for before all of its threads are
    (Linux delay_group_leader), so who waits for it, and for nothing else, waits for ever.
    """
    looked = 0
    while (status := stopped_now(host)) is None:
        looked += 1
        if looked % 32 == 0 and is_dead(host):
            raise Gone(host)
        if looked < 4096:
            os.sched_yield()
        else:
            time.sleep(0.0002)
    return status


def is_dead(host: int) -> bool:
    """Whether a task has ended, though it may still be there for those who wait, or for its threads; or is about to,
    past all stops (PF_EXITING).

    What goes wrong otherwise: the last thread of a pid 1 waits in its end until all tasks of its pid namespace are gone
    (Linux zap_pid_ns_processes), threads that we have still to wait for among them, while we wait for it to stop.
    """
    try:
        with open(f"/proc/{host}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[0] in b"ZX" or bool(int(fields[6]) & _PF_EXITING)
    except OSError:
        return True


def any_stopped() -> tuple[int, int]:
    """The same of all tracees: (host tid, status), or (0, 0)."""
    _si_pid.value = 0
    if _waitid(_P_ALL, 0, _siginfo_at, _WSTOPPED | WALL | WNOHANG) == 0 and _si_pid.value:
        return _si_pid.value, _si_status.value << 8 | 0x7F
    return 0, 0


def any_dead() -> int:
    """The host tid of a tracee (or child) that has ended and was not waited for; 0 for none. It stays so."""
    _si_pid.value = 0
    if _waitid(_P_ALL, 0, _siginfo_at, _WEXITED | _WNOWAIT | WALL | WNOHANG) == 0:
        return _si_pid.value
    return 0


def last_rusage() -> bytes:
    """struct rusage of what the last wait returned."""
    return _rusage.raw


_syscall_info = ctypes.create_string_buffer(88)


def at_entry(host: int) -> bool:
    """Whether a task that stands at a call's stop is entering it (PTRACE_GET_SYSCALL_INFO, Linux 5.3)."""
    call(PTRACE_GET_SYSCALL_INFO, host, 88, ctypes.addressof(_syscall_info))
    return _syscall_info[0] == b"\1"


_entry_info = struct.Struct("<16xQ7Q").unpack_from
_exit_info = struct.Struct("<24xq").unpack_from


def last_entry() -> tuple[int, ...]:
    """Of the entry that `at_entry` saw last: (rsp, number, the six arguments), all unsigned."""
    return _entry_info(_syscall_info)


def last_result() -> int:
    """Of the exit that `at_entry` saw last: the result."""
    return int(_exit_info(_syscall_info)[0])


def signed(value: int) -> int:
    """A register as a signed number."""
    return value - (1 << 64) if value >> 63 else value
