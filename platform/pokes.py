"""Pokes: host signals that only bring a thread to a delivery stop. What is delivered there is the kernel's."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

from trapline.platform.tracee import Tracee
from trapline.sentry.kernel.signal_send import deliverable, poke_number
from trapline.sentry.kernel.signals import SI_QUEUE

if TYPE_CHECKING:
    from trapline.platform.engine import Engine

#: Marks the host signals that are only pokes. Guests cannot forge it: rt_sigqueueinfo is the sentry's.
COOKIE = 0x7472_6170_6C69_6E65 ^ os.getpid() << 40 & (1 << 63) - 1
_CODE = struct.Struct("<8xi")
_COOKIE = struct.pack("<Q", COOKIE)
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


def is_poke(raw: bytes) -> bool:
    """Whether a siginfo_t is that of a poke."""
    return _CODE.unpack_from(raw)[0] == SI_QUEUE and raw[24:32] == _COOKIE


def poke_again(e: Engine, t: Tracee) -> None:
    """There is more that this thread can take: bring it to another delivery stop."""
    assert t.task is not None
    more = deliverable(e.kernel.group(t.task), t.task)
    if more:
        poke_thread(t.host_group, t.host, poke_number(t.task, more))
