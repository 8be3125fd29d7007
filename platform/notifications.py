"""Seccomp user notifications: the listener's ioctls (seccomp_unotify(2), linux/seccomp.h)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

RECV, SEND, ID_VALID, ADDFD, SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103, 0x40082104
SYNC_WAKE_UP = 1
CONTINUE = 1
ADDFD_SEND = 2
SET_MODE_FILTER, NEW_LISTENER, WAIT_KILLABLE_RECV = 1, 8, 32
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP = 317

_libc = ctypes.CDLL(None, use_errno=True)
_ioctl = _libc.ioctl
_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
_ioctl.restype = ctypes.c_int

# On the path of every call. Without argument types, and with arguments that are ctypes objects already, a call
# costs 0.5 us less; no errno is kept, since here a failure has one meaning.
_quick_ioctl = ctypes.CDLL(None).ioctl
_RECV, _SEND = ctypes.c_ulong(RECV), ctypes.c_ulong(SEND)

_NOTE = struct.Struct("=QIIiIQ6Q")
_ZERO = bytes(_NOTE.size)
_RESPONSE = struct.Struct("=QqiI")


def install_filter(program: bytes, listener: bool, killable: bool = False) -> int:
    """Install a BPF program on the calling thread; the listener's descriptor, or 0. OSError.

    `killable`: once a call was received here, only a deadly signal ends its wait for the answer.
    """
    flags = (NEW_LISTENER | (WAIT_KILLABLE_RECV if killable else 0)) if listener else 0
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)), 16)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.syscall.restype = ctypes.c_long
    result = _libc.syscall(_SECCOMP, SET_MODE_FILTER, flags, header)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, "seccomp: " + os.strerror(number))
    return int(result)


class Listener:
    """One listener descriptor."""

    def __init__(self, fd: int, sync_wake_up: bool) -> None:
        self.fd = fd
        self.sync = False
        self._note = ctypes.create_string_buffer(_NOTE.size)
        self._note_at = ctypes.c_void_p(ctypes.addressof(self._note))
        self._response = ctypes.create_string_buffer(_RESPONSE.size)
        self._response_at = ctypes.c_void_p(ctypes.addressof(self._response))
        self._view = memoryview(self._note).cast("B")
        if sync_wake_up:
            self.sync = _ioctl(fd, SET_FLAGS, SYNC_WAKE_UP) == 0

    def close(self) -> None:
        """Nobody is under its filter any more."""
        os.close(self.fd)

    def receive(self) -> tuple[int, int, int, tuple[int, int, int, int, int, int], int] | None:
        """(id, host tid, number, arguments, instruction pointer), or None when the caller is gone already.

        The kernel wants a zeroed structure (EINVAL otherwise).
        """
        self._view[:] = _ZERO
        if _quick_ioctl(self.fd, _RECV, self._note_at) < 0:
            return None
        ident, host, _, nr, _, ip, a, b, c, d, e, f = _NOTE.unpack_from(self._note)
        return ident, host, nr, (a, b, c, d, e, f), ip

    def answer(self, ident: int, result: int) -> bool:
        """Finish a call with a result (-errno for an error). False when it is not waiting any more (ENOENT)."""
        if result < 0:
            _RESPONSE.pack_into(self._response, 0, ident, 0, result, 0)
        else:
            _RESPONSE.pack_into(self._response, 0, ident, result, 0, 0)
        return bool(_quick_ioctl(self.fd, _SEND, self._response_at) == 0)

    def go_on(self, ident: int) -> bool:
        """Let the host execute the call as it stands."""
        _RESPONSE.pack_into(self._response, 0, ident, 0, 0, CONTINUE)
        return bool(_quick_ioctl(self.fd, _SEND, self._response_at) == 0)

    def add_descriptor(self, ident: int, fd: int) -> int:
        """Install a descriptor in the caller and finish its call with its number. OSError."""
        request = ctypes.create_string_buffer(struct.pack("=QIIII", ident, ADDFD_SEND, fd, 0, 0), 24)
        result = _ioctl(self.fd, ADDFD, ctypes.addressof(request))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number or errno.EIO, "ADDFD: " + os.strerror(number))
        return int(result)
