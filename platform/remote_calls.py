"""System calls made in a process that is traced no more: it waits at a futex in memory that it shares with the sentry,
takes a table of calls from there, makes them and says so.

So a copy of a guest can write its memory to a file while the sentry's one ptracing thread does other things; any thread
may ask it. The table is that of injection.py, in shared memory. Only calls of class native: nobody answers the others.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import struct
from collections.abc import Sequence

from trapline.platform.guest_memory import PAGE
from trapline.sentry.protocol import Gone

_ENTRY = struct.Struct("<8Q")
#: Words of the first page: which batch is wanted, which is done, how many calls, how many of them were not made.
_WANTED, _DONE, _COUNT, _LEFT = 0, 4, 8, 16
TABLE = PAGE
#: So many calls at a time, and so many bytes of data behind the table.
BATCH, ROOM = 64, 128 * PAGE
DATA = TABLE + BATCH * _ENTRY.size
SIZE = DATA + ROOM
_FUTEX, _FUTEX_WAIT, _FUTEX_WAKE = 202, 0, 1
#: r15: the shared memory.
CODE = (
    b"\x41\x8b\x07"  # wait: mov eax, [r15]
    b"\x41\x3b\x47\x04"  # cmp eax, [r15+4]
    b"\x75\x16"  # jne go
    b"\x89\xc2"  # mov edx, eax
    b"\xb8\xca\x00\x00\x00"  # mov eax, futex
    b"\x4c\x89\xff"  # mov rdi, r15
    b"\x31\xf6"  # xor esi, esi: FUTEX_WAIT
    b"\x45\x31\xd2"  # xor r10d, r10d
    b"\x45\x31\xc0"  # xor r8d, r8d
    b"\x0f\x05"  # syscall
    b"\xeb\xe1"  # jmp wait
    b"\x49\x8d\x9f\x00\x10\x00\x00"  # go: lea rbx, [r15+TABLE]
    b"\x4d\x8b\x67\x08"  # mov r12, [r15+8]
    b"\x48\x8b\x03"  # loop: mov rax, [rbx]
    b"\x48\x8b\x7b\x08\x48\x8b\x73\x10\x48\x8b\x53\x18"  # mov rdi, [rbx+8]; rsi, [rbx+16]; rdx, [rbx+24]
    b"\x4c\x8b\x53\x20\x4c\x8b\x43\x28\x4c\x8b\x4b\x30"  # mov r10, [rbx+32]; r8, [rbx+40]; r9, [rbx+48]
    b"\x0f\x05"  # syscall
    b"\x48\x89\x43\x38"  # mov [rbx+56], rax
    b"\x48\x3d\x00\xf0\xff\xff"  # cmp rax, -4096
    b"\x77\x09"  # ja end
    b"\x48\x83\xc3\x40"  # add rbx, 64
    b"\x49\xff\xcc"  # dec r12
    b"\x75\xce"  # jnz loop
    b"\x4d\x89\x67\x10"  # end: mov [r15+16], r12
    b"\x41\x8b\x07"  # mov eax, [r15]
    b"\x41\x89\x47\x04"  # mov [r15+4], eax
    b"\xb8\xca\x00\x00\x00"  # mov eax, futex
    b"\x49\x8d\x7f\x04"  # lea rdi, [r15+4]
    b"\xbe\x01\x00\x00\x00"  # mov esi, FUTEX_WAKE
    b"\xba\x01\x00\x00\x00"  # mov edx, 1
    b"\x0f\x05"  # syscall
    b"\xeb\x82"  # jmp wait
)
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class RemoteCalls:
    """The sentry's end. `descriptor` is the memory's, to be mapped shared in the process at `base`."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("trapline-calls", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, SIZE)
        self._map = mmap.mmap(self.descriptor, SIZE)
        self._at = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._batch = 0
        self.base = 0  # in the process
        self.pidfd = -1

    def close(self) -> None:
        """The process has to be gone, or be killed afterwards."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def put(self, offset: int, data: bytes) -> int:
        """Data for calls, `offset` bytes behind the table; its address in the process."""
        if offset + len(data) > ROOM:
            raise ValueError("no room for the data of a call")
        self._map[DATA + offset : DATA + offset + len(data)] = data
        return self.base + DATA + offset

    def run(self, calls: Sequence[tuple[int, ...]]) -> list[int]:
        """Make these, BATCH at most; their results. OSError at the first that fails; Gone."""
        table = b"".join([_ENTRY.pack(*[word & _ALL for word in (*call, *_ZEROS[len(call) :])]) for call in calls])
        self._map[TABLE : TABLE + len(table)] = table
        struct.pack_into("<Q", self._map, _COUNT, len(calls))
        self._batch = (self._batch + 1) & 0xFFFFFFFF
        struct.pack_into("<I", self._map, _WANTED, self._batch)
        _syscall(_FUTEX, ctypes.c_void_p(self._at), _FUTEX_WAKE, 1, None, None, 0)
        self._await()
        (left,) = struct.unpack_from("<Q", self._map, _LEFT)
        results = [
            struct.unpack_from("<q", self._map, TABLE + index * _ENTRY.size + 56)[0] for index in range(len(calls))
        ]
        if left:
            at = len(calls) - left
            raise OSError(-results[at], f"call {calls[at][0]} in a copy: {os.strerror(-results[at])}")
        return results

    def _await(self) -> None:
        second = struct.pack("<qq", 0, 100_000_000)
        timeout = ctypes.create_string_buffer(second, 16)
        while True:
            (done,) = struct.unpack_from("<I", self._map, _DONE)
            if done == self._batch:
                return
            at, value = ctypes.c_void_p(self._at + _DONE), ctypes.c_uint(done)
            failed = _syscall(_FUTEX, at, _FUTEX_WAIT, value, timeout, None, 0)
            if failed and ctypes.get_errno() == errno.ETIMEDOUT and self._gone():
                raise Gone(0)

    def _gone(self) -> bool:
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(0))


_ZEROS, _ALL = (0,) * 8, (1 << 64) - 1
