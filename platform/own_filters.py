"""Seccomp filters that guests put on top of the sandbox's: read for a checkpoint, and installed again at a restore.

The host gives a filter out to a tracer with CAP_SYS_ADMIN that has none itself. A task's filters are a chain: those of
whoever started trapline, the sandbox's, and then the task's own, of which all processes that it makes have a part.

What is injected into such a task would be judged by its own filters, and may be what they kill for: so they are
suspended for that moment, as is all of seccomp.

Sources: ptrace(2) (PTRACE_SECCOMP_GET_FILTER, PTRACE_O_SUSPEND_SECCOMP), include/uapi/linux/ptrace.h and
kernel/seccomp.c (seccomp_get_filter, seccomp_get_metadata), seccomp(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import struct
from collections.abc import Iterator, Sequence

from trapline.platform import injection
from trapline.platform import ptrace_calls as pt
from trapline.platform.injection import Injection, single
from trapline.sentry.state.records import OwnFilter, ThreadRecord

_GET_FILTER, _GET_METADATA, _SETOPTIONS = 0x420C, 0x420D, 0x4200
_O_SUSPEND_SECCOMP = 0x200000
_SECCOMP, _SET_MODE_FILTER, _FLAG_TSYNC = 317, 1, 1
_INSTRUCTION = 8  # bytes of struct sock_filter
_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def of_the_sandbox() -> int:
    """How many filters a guest has that are not its own: the sandbox's, and those that trapline was started under."""
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields.get("Seccomp_filters", "0")) + 1


def read(host: int, count: int) -> list[OwnFilter]:
    """Of a task at a stop that has `count` filters: its own, the first installed first. OSError where the host does not
    give them out; Gone."""
    found = []
    for index in range(of_the_sandbox(), count):  # from the first that was installed
        size = _libc.ptrace(_GET_FILTER, host, ctypes.c_void_p(index), None)
        if size < 0:
            pt.call(_GET_FILTER, host, index)  # says why
        program = ctypes.create_string_buffer(size * _INSTRUCTION)
        pt.call(_GET_FILTER, host, index, ctypes.addressof(program))
        metadata = (ctypes.c_uint64 * 2)(index, 0)
        pt.call(_GET_METADATA, host, ctypes.sizeof(metadata), ctypes.addressof(metadata))
        found.append(OwnFilter(program.raw, metadata[1]))
    return found


@contextlib.contextmanager
def suspended(host: int) -> Iterator[None]:
    """Of a task that stands at a stop, and at another one in the end. OSError; Gone."""
    pt.call(_SETOPTIONS, host, 0, pt.OPTIONS | _O_SUSPEND_SECCOMP)
    try:
        yield
    finally:
        pt.call(_SETOPTIONS, host, 0, pt.OPTIONS)


def install(leader: Injection, at: int, threads: Sequence[tuple[Injection, ThreadRecord]]) -> None:
    """Give all threads of a process their own filters; nobody's count yet, for they are suspended. `at` is a `syscall`
    instruction of the process, whose workspace is still there. What all threads begin with is installed once for all
    of them: a filter that one synchronises later must be able to follow from there. OSError; Gone."""
    chains = [thread.filters for _, thread in threads]
    common = 0
    while all(len(chain) > common for chain in chains) and all(chain[common] == chains[0][common] for chain in chains):
        common += 1
    for own in chains[0][:common]:
        _install_one(leader, leader.host, at, own, _FLAG_TSYNC if len(threads) > 1 else 0)
    for made, thread in threads:
        for own in thread.filters[common:]:
            _install_one(leader, made.host, at, own, 0)


def _install_one(leader: Injection, host: int, at: int, own: OwnFilter, flags: int) -> None:
    data = leader.workspace.base + injection.DATA
    header = struct.pack("<H6xQ", len(own.program) // _INSTRUCTION, data + 16)
    leader.memory.write(data, header + own.program)
    failed = single(host, at, _SECCOMP, _SET_MODE_FILTER, own.flags | flags, data)
    if failed:
        raise OSError(0, f"its seccomp filter cannot be given to thread {failed}")
