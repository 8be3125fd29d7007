"""The first process of a restored sandbox, until it is taken apart: what all others are made from.

It is a fork of the sentry inside the sandbox's namespaces, as the first guest of a new sandbox is (namespaces.py). As
ordinary Python it opens every open file description of the image once (restore_files.py); then it unmaps all that is
Python's and leaves a workspace for injected calls (injection.py), behind which the host's vDSO lies. It never runs on:
the sentry traces it, and makes it the first process of the saved ones, with the others as its children.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable
from typing import NoReturn

import msgspec

from trapline.platform import injection
from trapline.platform import setup_calls as calls
from trapline.platform.first_processes import GuestMain, fail
from trapline.platform.guest_memory import PAGE

_MUNMAP, _MREMAP, _MREMAP_MAYMOVE, _MREMAP_FIXED = 11, 25, 1, 2
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_FIXED_NOREPLACE = 2, 0x20, 0x100000
_TASK_SIZE = 0x7FFFFFFFF000
#: Behind the workspace: room for the host's [vvar], [vvar_vclock] and [vdso].
VDSO_ROOM = 32 * PAGE
ROOM = injection.SIZE + VDSO_ROOM
_STEP = 0x100_0000  # between addresses that are tried for the workspace
_START = 512  # in the code page: where the seed jumps to


class Ready(msgspec.Struct):
    """What the seed tells before it waits for its tracer."""

    base: int  # of the workspace
    vdso: dict[str, tuple[int, int]]  # where the host's mappings lie behind it: address, length, by name
    first: int  # all of the pool's descriptors are from here on
    pool: dict[int, int]  # descriptors by the key of their open file description
    shared: dict[str, int]  # descriptors of shared memory and of files without a name, by key


class Pool(msgspec.Struct):
    """What the opening of files gave."""

    first: int
    files: dict[int, int]
    shared: dict[str, int]


def make(open_pool: Callable[[], Pool], taken: list[tuple[int, int]]) -> GuestMain:
    """The function that becomes the seed. `taken` are the ranges of addresses that some process of the image has
    mappings in."""

    def guest_main(channel: socket.socket) -> NoReturn:
        try:
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                _default(number)
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            pool = open_pool()
            base = _workspace(taken)
            vdso = _place_vdso(base)
            places = {name: (to, length) for name, _, to, length in vdso}
            ready = Ready(base, places, pool.first, pool.files, pool.shared)
            _send(channel, msgspec.msgpack.encode(ready))
        except BaseException as error:
            fail(channel, error)
        if channel.recv(1) != b"g":
            os._exit(125)
        channel.close()
        _leave(base, vdso)

    return guest_main


def _default(number: int) -> None:
    """SIG_DFL also for the two that Python hides."""
    action = struct.pack("<4Q", 0, 0, 0, 0)
    calls.syscall("rt_sigaction", 13, int(number), ctypes.c_char_p(action), 0, 8)


def _send(channel: socket.socket, answer: bytes) -> None:
    """By a memfd: a message of the channel has a limited size."""
    fd = os.memfd_create("ready")
    os.write(fd, answer)
    socket.send_fds(channel, [b"L"], [fd])
    os.close(fd)


def _workspace(taken: list[tuple[int, int]]) -> int:
    """Map it where nobody will need the addresses. MemoryError."""
    mmap = calls.libc.mmap
    mmap.restype = ctypes.c_void_p
    candidate = 0x2000_0000
    busy = sorted(taken)
    while candidate + ROOM <= _TASK_SIZE:
        while busy and busy[0][1] <= candidate:
            busy.pop(0)
        if busy and busy[0][0] < candidate + ROOM:
            candidate = -(-busy[0][1] // _STEP) * _STEP
            continue
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
        found = mmap(ctypes.c_void_p(candidate), ctypes.c_size_t(injection.SIZE), 3, flags, -1, ctypes.c_long(0))
        if found == candidate:
            ctypes.memmove(candidate, injection.CODE, len(injection.CODE))
            return candidate
        candidate += _STEP
    raise MemoryError("no room for a workspace in the address space")


Place = tuple[str, int, int, int]


def _place_vdso(base: int) -> list[Place]:
    """Of each of the host's vDSO mappings: its name, where it is, where it is to go, and its length."""
    found: list[Place] = []
    to = base + injection.SIZE
    with open("/proc/self/maps", encoding="ascii") as file:
        for line in file:
            if line.endswith(("[vdso]\n", "[vvar]\n", "[vvar_vclock]\n")):
                low, high = (int(word, 16) for word in line.split(None, 1)[0].split("-"))
                found.append((line.split()[-1], low, to, high - low))
                to += high - low
    if to > base + ROOM:
        raise MemoryError("the host's vDSO is larger than expected")
    return found


def _leave(base: int, vdso: list[Place]) -> NoReturn:
    """Run the workspace's code on calls that unmap all the rest, and stop at its end."""
    calls.unregister_rseq()
    end = base + injection.SIZE + sum(length for *_, length in vdso)
    table = [(_MREMAP, old, length, length, _MREMAP_MAYMOVE | _MREMAP_FIXED, new, 0, 0) for _, old, new, length in vdso]
    table += [(_MUNMAP, 0, base, 0, 0, 0, 0, 0), (_MUNMAP, end, _TASK_SIZE - end, 0, 0, 0, 0, 0)]
    packed = b"".join(struct.pack("<8Q", *entry) for entry in table)
    ctypes.memmove(base + injection.TABLE, packed, len(packed))
    start = b"\x48\xbb" + struct.pack("<Q", base + injection.TABLE)  # mov rbx, table
    start += b"\x49\xc7\xc4" + struct.pack("<i", len(table))  # mov r12, count
    start += b"\xe9" + struct.pack("<i", -(_START + len(start) + 5))  # jmp to the beginning of the page
    ctypes.memmove(base + _START, start, len(start))
    if calls.libc.mprotect(ctypes.c_void_p(base), ctypes.c_size_t(PAGE), 5):
        os._exit(125)
    ctypes.CFUNCTYPE(None)(base + _START)()
    os._exit(125)
