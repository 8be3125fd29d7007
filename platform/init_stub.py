"""pid 1 of a `do` sandbox once everything is set up: one page of machine code that reaps.

A program that is pid 1 loses default signal actions, so `do` puts a stub there. It was forked from the
sentry's Python and would hold on to that memory (each page the sentry changes later would exist twice), so
it unmaps everything but the page it runs in. It owns no descriptor, no capability and no signal handler:
only SIGKILL from outside ends it, and with it the namespace (pid_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
from typing import NoReturn

from trapline.platform import setup_calls as calls

_TASK_SIZE = 0x7FFFFFFFF000  # of x86-64 with four levels of page tables; nothing of ours lies above
_PAGE = 4096
_MUNMAP, _WAIT4, _RT_SIGTIMEDWAIT = 11, 61, 128
_WALL = 0x40000000
_ECHILD = 10
_PROT_READ, _PROT_EXEC = 1, 4


def _code(page: int, unmap: bool) -> bytes:
    """The stub's instructions for a page at this address.

    SIGCHLD is blocked when they run: then it is kept though its action is to be ignored, so that an orphan
    which arrives and ends between wait4 and rt_sigtimedwait is not missed.
    """
    out = b""
    if unmap:
        for start, end in ((0, page), (page + _PAGE, _TASK_SIZE)):
            out += b"\xb8" + struct.pack("<I", _MUNMAP)  # mov eax, munmap
            out += b"\x48\xbf" + struct.pack("<Q", start)  # mov rdi, start
            out += b"\x48\xbe" + struct.pack("<Q", end - start)  # mov rsi, length
            out += b"\x0f\x05"  # syscall
    loop = len(out)
    out += b"\xb8" + struct.pack("<I", _WAIT4)
    out += b"\x48\xc7\xc7\xff\xff\xff\xff"  # mov rdi, -1
    out += b"\x31\xf6"  # xor esi, esi
    out += b"\xba" + struct.pack("<I", _WALL)  # mov edx, __WALL
    out += b"\x45\x31\xd2"  # xor r10d, r10d
    out += b"\x0f\x05"
    out += b"\x48\x83\xf8" + struct.pack("<b", -_ECHILD)  # cmp rax, -ECHILD
    out += b"\x75" + struct.pack("<b", loop - len(out) - 2)  # jne loop
    out += b"\xb8" + struct.pack("<I", _RT_SIGTIMEDWAIT)
    mask_at = len(out) + 7 + 2 + 2 + 6 + 2 + 2
    out += b"\x48\x8d\x3d" + struct.pack("<i", mask_at - len(out) - 7)  # lea rdi, [rip + mask]
    out += b"\x31\xf6\x31\xd2"  # xor esi, esi; xor edx, edx
    out += b"\x41\xba" + struct.pack("<I", 8)  # mov r10d, 8
    out += b"\x0f\x05"
    out += b"\xeb" + struct.pack("<b", loop - len(out) - 2)  # jmp loop
    assert len(out) == mask_at
    return out + struct.pack("<Q", 1 << (signal.SIGCHLD - 1))


def become_stub() -> NoReturn:
    """Turn this process, pid 1 with its only child started, into the stub. Never returns.

    Signals must all be blocked: then it does not matter which handlers Python left behind.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by the caller, children would not be ours to reap
    calls.set_name(b"trapline-init")
    os.umask(0o022)
    area = mmap.mmap(-1, _PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    unmap = calls.unregister_rseq()
    area[:] = _code(address, unmap).ljust(_PAGE, b"\xcc")
    if calls.libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(_PAGE), _PROT_READ | _PROT_EXEC):
        os._exit(1)
    calls.set_capabilities(0, 0, 0)
    calls.close_all_but([])
    ctypes.CFUNCTYPE(None)(address)()
    os._exit(1)
