"""Pokes: host signals that only bring a thread to a delivery stop. What is delivered there is the kernel's."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

from trapline.platform.tracee import Tracee
from trapline.sentry.kernel.signal_send import deliverable, poke_number
from trapline.sentry.kernel.signals import SI_QUEUE, SI_TKILL, SI_USER, SIGCONT, SIGPIPE, SIGXFSZ, bit

if TYPE_CHECKING:
    from trapline.platform.engine import Engine

#: Marks the host signals that are only pokes. Guests cannot forge it: rt_sigqueueinfo is the sentry's.
COOKIE = 0x7472_6170_6C69_6E65 ^ os.getpid() << 40 & (1 << 63) - 1
_HEAD = struct.Struct("<i4xi4xi").unpack_from
_COOKIE = struct.pack("<Q", COOKIE)
_KILL, _TKILL, _TGKILL = 62, 200, 234
_NOT_BY_ITSELF = (SIGPIPE, SIGCONT, SIGXFSZ)
_RT_TGSIGQUEUEINFO, _RT_SIGQUEUEINFO = 297, 129
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_info = ctypes.create_string_buffer(128)


def _token(signo: int) -> ctypes.Array[ctypes.c_char]:
    struct.pack_into("<iiiIiIQ", _info, 0, signo, 0, SI_QUEUE, 0, 0, 0, COOKIE)
    return _info


def poke_thread(host_group: int, host: int, signo: int) -> None:
    """Queue a poke to one thread. A dead thread is nobody's error: its death is on its way."""
    _syscall(_RT_TGSIGQUEUEINFO, host_group, host, signo, _token(signo))


def poke_group(host_group: int, signo: int) -> None:
    """Queue a poke to a process."""
    _syscall(_RT_SIGQUEUEINFO, host_group, signo, _token(signo))


def is_poke(raw: bytes, t: Tracee) -> bool:
    """Whether a siginfo_t is that of a poke."""
    signo, code, pid = _HEAD(raw)
    if code == SI_QUEUE:
        return raw[24:32] == _COOKIE
    if t.self_sent and signo == t.self_sent and code in (SI_USER, SI_TKILL) and t.task and pid == t.task.tgid:
        t.self_sent = 0
        return True
    return False


def pokes_itself(t: Tracee, nr: int, args: tuple[int, ...], signo: int, alone: bool) -> bool:
    """Whether the call of this thread, executed by the host, is the poke that it needs: a kill(2) or its like of
    the thread itself. The signal is in the kernel's queue by then, and what the host makes only stands for it.

    Why: a poke wakes a thread that waits in a notification for nothing (it waits again, for deadly signals only),
    which costs 10 us of a signal to oneself. Not SIGPIPE and SIGXFSZ, which the host makes with the same
    siginfo (SEND_SIG_NOINFO), nor SIGCONT, which takes effect when it is sent.
    """
    assert t.task is not None
    if signo in _NOT_BY_ITSELF:
        return False
    if nr == _KILL:
        return alone and args[0] == t.task.tgid and args[1] == signo
    if nr == _TGKILL:
        return args[0] == t.task.tgid and args[1] == t.tid and args[2] == signo
    return nr == _TKILL and args[0] == t.tid and args[1] == signo


def poke_again(e: Engine, t: Tracee) -> None:
    """There is more that this thread can take: bring it to another delivery stop."""
    assert t.task is not None
    more = deliverable(e.kernel.group(t.task), t.task)
    if more:
        signo = poke_number(t.task, more)
        t.poked |= bit(signo)
        poke_thread(t.host_group, t.host, signo)
