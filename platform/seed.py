"""The first process of a restored sandbox, until it is taken apart: what all others are made from.

It is a fork of the sentry inside the sandbox's namespaces, as the first guest of a new sandbox is (namespaces.py). As
ordinary Python it opens every open file description of the image once (restore_files.py); then it executes a program of
two instructions. It never runs on: the sentry traces it, gives it a workspace for injected calls (injection.py) in
place of all else (`clear`), and makes it the first process of the saved ones, with the others as its children.

Why a program is executed: memory belongs to the user namespace in which that was done. An ordinary user's sentry could
not read or write that of a guest which is not dumpable, if it were the sentry's own (ptrace(2), Linux kernel/ptrace.c).
"""

from __future__ import annotations

import ctypes
import errno
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
from trapline.platform.injection import Injection, Workspace, single
from trapline.platform.memory_areas import HOST_VDSO, read_areas

_MMAP, _MPROTECT, _MUNMAP, _MREMAP, _MREMAP_MAYMOVE, _MREMAP_FIXED = 9, 10, 11, 25, 1, 2
_CAPGET, _CAPSET, _PRCTL, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 125, 126, 157, 47, 2
_CAPABILITY_VERSION_3 = 0x20080522
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_FIXED_NOREPLACE = 2, 0x20, 0x100000
_TASK_SIZE = 0x7FFFFFFFF000
#: Behind the workspace: room for the host's [vvar], [vvar_vclock] and [vdso].
VDSO_ROOM = 32 * PAGE
ROOM = injection.SIZE + VDSO_ROOM
_STEP = 0x100_0000  # between addresses that are tried for the workspace
_INSTRUCTIONS = b"\xcc\x0f\x05"


class Ready(msgspec.Struct):
    """What the seed tells before it waits for its tracer."""

    base: int  # where the workspace is to be
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
            for fd in (*pool.files.values(), *pool.shared.values()):
                os.set_inheritable(fd, True)
            base = _room(taken)
            program = os.memfd_create("seed", os.MFD_CLOEXEC)
            os.write(program, _program(base + ROOM))
            _keep_capabilities()
            _send(channel, msgspec.msgpack.encode(Ready(base, pool.first, pool.files, pool.shared)))
        except BaseException as error:
            fail(channel, error)
        if channel.recv(1) != b"g":
            os._exit(125)
        channel.close()
        try:
            os.execve(program, [b"seed"], {})
        finally:
            os._exit(125)

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


def _room(taken: list[tuple[int, int]]) -> int:
    """An address for the workspace that nobody will need. MemoryError."""
    candidate = 0x2000_0000
    busy = sorted(taken)
    while candidate + ROOM + PAGE <= _TASK_SIZE:
        while busy and busy[0][1] <= candidate:
            busy.pop(0)
        if busy and busy[0][0] < candidate + ROOM:
            candidate = -(-busy[0][1] // _STEP) * _STEP
        else:
            return candidate
    raise MemoryError("no room for a workspace in the address space")


def _program(at: int) -> bytes:
    """An ELF file for an address: int3, syscall (elf(5))."""
    size = 64 + 56 + len(_INSTRUCTIONS)
    header = b"\x7fELF\2\1\1" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, at + 64 + 56, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, at, at, size, size, PAGE) + _INSTRUCTIONS


def _keep_capabilities() -> None:
    """Over the execution of a program, for which all of them have to be ambient (capabilities(7))."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)
    calls.syscall("capget", _CAPGET, ctypes.c_char_p(header), sets)
    low, permitted_low, _, high, permitted_high, _ = struct.unpack("<6I", sets.raw)
    data = struct.pack("<6I", low, permitted_low, permitted_low, high, permitted_high, permitted_high)
    calls.syscall("capset", _CAPSET, ctypes.c_char_p(header), ctypes.c_char_p(data))
    permitted = permitted_high << 32 | permitted_low
    for number in range(permitted.bit_length()):
        if permitted >> number & 1:
            calls.syscall("prctl", _PRCTL, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0)


# -- in the sentry
def clear(host: int, base: int) -> dict[str, tuple[int, int]]:
    """Take all but the host's vDSO from the seed, which stands at its int3, and give it the workspace. Where the
    mappings of that lie behind it: address and length, by name. OSError; Gone."""
    at = base + ROOM + 64 + 56 + 1
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
    single(host, at, _MMAP, base, injection.SIZE, 3, flags, -1, 0)
    work = Injection(host, Workspace(base))
    work.memory.write(base, injection.CODE)
    single(host, at, _MPROTECT, base, PAGE, 5)
    found: dict[str, tuple[int, int]] = {}
    moves: list[injection.Call | injection.Try] = []
    to = base + injection.SIZE
    for area in read_areas(host):
        if area.path in HOST_VDSO:
            moves.append((_MREMAP, area.start, area.size, area.size, _MREMAP_MAYMOVE | _MREMAP_FIXED, to))
            found[area.path] = to, area.size
            to += area.size
    if to > base + ROOM:
        raise OSError(errno.ENOMEM, "the host's vDSO is larger than expected")
    work.run([*moves, (_MUNMAP, 0, base), (_MUNMAP, to, _TASK_SIZE - to)])
    return found
