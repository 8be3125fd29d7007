"""What nobody but a task itself can be asked of it: by calls made in it when it is saved, and set likewise.

Of a thread: securebits, what machine checks do, whether it may read the time stamp counter, its NUMA policy. Of an
address space: whether code may be written (PR_SET_MDWE), whether pages are merged, whether what is mapped from now on
is locked.

Sources: capabilities(7), PR_SET_SECUREBITS(2const), PR_MCE_KILL_GET(2const), PR_GET_TSC(2const), get_mempolicy(2),
PR_GET_MDWE(2const), PR_SET_MEMORY_MERGE(2const), mlockall(2).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import NamedTuple

from trapline.platform.injection import Call, Data, Try
from trapline.sentry.state.records import AddressSpace, ThreadRecord

_MMAP, _MUNMAP, _BRK, _MLOCKALL, _PRCTL, _PERSONALITY = 9, 11, 12, 151, 157, 135
_SET_MEMPOLICY, _GET_MEMPOLICY = 238, 239
_PR_GET_DUMPABLE, _PR_GET_TSC, _PR_SET_TSC, _PR_GET_SECUREBITS = 3, 25, 26, 27
_PR_MCE_KILL, _PR_MCE_KILL_SET, _PR_MCE_KILL_GET, _PR_MCE_KILL_DEFAULT = 33, 1, 34, 2
_PR_SET_MDWE, _PR_GET_MDWE, _PR_SET_MEMORY_MERGE, _PR_GET_MEMORY_MERGE = 65, 66, 67, 68
_MCL_FUTURE, _MCL_ONFAULT = 2, 4
_PRIVATE_ANONYMOUS, _PAGE = 0x22, 4096
_NODES = 64

#: Makes a call in the task; its result. OSError.
Make = Callable[..., int]


class Probed(NamedTuple):
    """What only a process itself tells of its memory."""

    brk: int
    dumpable: int
    strict_code: int = 0  # PR_GET_MDWE
    merged: int = 0  # PR_GET_MEMORY_MERGE
    locked: int = 0  # what is mapped from now on: flags of mlockall(2)


# -- asked
def ask_thread(make: Make, scratch: int, read: Callable[[int, int], bytes], into: ThreadRecord) -> None:
    """`scratch`: 16 bytes in it that may be written."""
    into.secure_bits = _asked(make, 0, _PRCTL, _PR_GET_SECUREBITS)
    into.machine_checks = _asked(make, _PR_MCE_KILL_DEFAULT, _PRCTL, _PR_MCE_KILL_GET, 0, 0, 0, 0)
    if _asked(make, -1, _PRCTL, _PR_GET_TSC, scratch) == 0:
        (into.time_stamps,) = struct.unpack("<i", read(scratch, 4))
    if _asked(make, -1, _GET_MEMPOLICY, scratch + 8, scratch, _NODES, 0, 0) == 0:
        nodes, mode = struct.unpack("<Qi", read(scratch, 12))
        into.memory_policy = mode, nodes


def ask_memory(make: Make, is_locked: Callable[[], int], is_present: Callable[[int], bool]) -> Probed:
    """`is_locked`: kB of it that are; `is_present`: whether there is a page at an address."""
    return Probed(
        make(_BRK, 0),
        make(_PRCTL, _PR_GET_DUMPABLE),
        _asked(make, 0, _PRCTL, _PR_GET_MDWE, 0, 0, 0, 0),
        _asked(make, 0, _PRCTL, _PR_GET_MEMORY_MERGE, 0, 0, 0, 0),
        _lock_of_future(make, is_locked, is_present),
    )


def _asked(make: Make, default: int, *call: int) -> int:
    """`default` where the host knows of no such thing."""
    try:
        return make(*call)
    except OSError:
        return default


def _lock_of_future(make: Make, is_locked: Callable[[], int], is_present: Callable[[int], bool]) -> int:
    """Nothing tells but what a new mapping is like."""
    before = is_locked()
    try:
        address = make(_MMAP, 0, _PAGE, 3, _PRIVATE_ANONYMOUS, -1, 0)
    except OSError as error:
        return _MCL_FUTURE if error.errno == errno.EAGAIN else 0  # more than RLIMIT_MEMLOCK
    try:
        if is_locked() <= before:
            return 0
        return _MCL_FUTURE | (0 if is_present(address) else _MCL_ONFAULT)
    finally:
        make(_MUNMAP, address, _PAGE)


# -- set
def thread_calls(thread: ThreadRecord) -> list[Call | Try]:
    """All but securebits, which go with capabilities. What another host or user may not have stays as it is."""
    calls: list[Call | Try] = []
    if thread.personality:
        calls.append(Try((_PERSONALITY, thread.personality)))
    if thread.machine_checks != _PR_MCE_KILL_DEFAULT:
        calls.append(Try((_PRCTL, _PR_MCE_KILL, _PR_MCE_KILL_SET, thread.machine_checks, 0, 0)))
    if thread.time_stamps != 1:
        calls.append(Try((_PRCTL, _PR_SET_TSC, thread.time_stamps, 0, 0, 0)))
    mode, nodes = thread.memory_policy
    if mode:
        calls.append(Try((_SET_MEMPOLICY, mode, Data(struct.pack("<Q", nodes)), _NODES + 1)))
    return calls


def space_calls(space: AddressSpace) -> list[Call | Try]:
    """Once all of it is mapped, with its last protections."""
    calls: list[Call | Try] = []
    if space.merged:
        calls.append(Try((_PRCTL, _PR_SET_MEMORY_MERGE, 1, 0, 0, 0)))
    if space.strict_code:
        calls.append(Try((_PRCTL, _PR_SET_MDWE, space.strict_code, 0, 0, 0)))
    if space.locked_future:
        calls.append(Try((_MLOCKALL, space.locked_future)))
    return calls
