"""What memory is mapped from, opened once in the first process of a restore: files by their paths, memfds and shared
anonymous memory made anew, each with its content.

It runs in the sandbox's mount and IPC namespaces, in Python, before there is a guest; every process inherits the
descriptors and closes them when it has mapped its memory. Keys are those of restore_memory.py: an object's or file's,
with "/r" or "/w" for how it is open.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from trapline.platform.restore_memory import exe_key, pool_key
from trapline.sentry.state.records import Image, PageRun, SharedObject
from trapline.sentry.state.unusable import UnusableImage

#: Reads from the image: (index of the image as in `PageRun.image`, offset, a buffer to fill).
Read = Callable[[int, int, memoryview], None]
PIECE = 1 << 20
_F_ADD_SEALS, _SEAL, _FUTURE_WRITE = 1033, 0x1, 0x10
_MFD_ALLOW_SEALING, _MFD_EXEC = 2, 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p
_libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
_libc.shmdt.argtypes = [ctypes.c_void_p]


def open_shared(image: Image, runs: Iterable[PageRun], read: Read) -> dict[str, int]:
    """Descriptors of the image's memfds and shared anonymous memory, under KEY/w and KEY/r, filled with their pages;
    System V segments, which must be there by now, are filled too. Seals that mappings have to come before are not set
    yet: `seal`. OSError; UnusableImage."""
    by_owner: dict[str, list[PageRun]] = {}
    for run in runs:
        if run.owner in image.shared:
            by_owner.setdefault(run.owner, []).append(run)
    pool: dict[str, int] = {}
    try:
        for key, found in image.shared.items():
            own = by_owner.get(key, [])
            if found.kind == "sysv":
                _fill_segment(found, own, read)
                continue
            writable = _make(found)
            pool[f"{key}/w"] = writable
            _fill(writable, own, read)
            pool[f"{key}/r"] = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
            early = found.seals & ~(_FUTURE_WRITE | _SEAL) if found.seals & _FUTURE_WRITE else found.seals
            if found.kind == "memfd" and early:
                fcntl.fcntl(writable, _F_ADD_SEALS, early)
    except BaseException:
        close(pool)
        raise
    return pool


def _make(found: SharedObject) -> int:
    if found.kind == "memfd":
        flags = os.MFD_CLOEXEC | _MFD_ALLOW_SEALING
        try:  # Linux 6.3 wants to know
            fd = os.memfd_create(found.name, flags | _MFD_EXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fd = os.memfd_create(found.name, flags)
    else:
        return _anonymous(found.size)
    try:
        os.ftruncate(fd, found.size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _anonymous(size: int) -> int:
    """Shared anonymous memory, as mmap(2) makes it, by a descriptor. That needs CAP_SYS_ADMIN; without, a memfd, which
    is the same but for its name in /proc/PID/maps."""
    length = size + -size % mmap.PAGESIZE
    area = mmap.mmap(-1, length, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NORESERVE)
    try:
        place = ctypes.addressof(ctypes.c_char.from_buffer(area))
        try:
            return os.open(f"/proc/self/map_files/{place:x}-{place + length:x}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            fd = os.memfd_create("anonymous", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
            return fd
    finally:
        # The exported pointer is gone with `place`'s temporary; the mapping goes with the object.
        del area


_NORESERVE = 0x4000


def _pieces(runs: Iterable[PageRun]) -> Iterator[tuple[int, int, int, int]]:
    """Image, offset in its pages, offset in the object, size: PIECE at most."""
    for run in runs:
        for done in range(0, run.size, PIECE):
            yield run.image, run.offset + done, run.start + done, min(PIECE, run.size - done)


def _fill(fd: int, runs: list[PageRun], read: Read) -> None:
    size = os.fstat(fd).st_size
    buffer = memoryview(bytearray(PIECE)) if runs else memoryview(b"")
    for image, offset, place, length in _pieces(runs):
        read(image, offset, buffer[:length])
        data = buffer[: min(length, size - place)]
        while data:
            count = os.pwrite(fd, data, place)
            place += count
            data = data[count:]


def _fill_segment(found: SharedObject, runs: list[PageRun], read: Read) -> None:
    if not runs:
        return
    at = _libc.shmat(found.identity, None, 0)
    if at in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"System V shared memory {found.identity}")
    try:
        whole = found.size + -found.size % mmap.PAGESIZE
        view = memoryview((ctypes.c_char * whole).from_address(at)).cast("B")
        for image, offset, place, length in _pieces(runs):
            if place + length > whole:
                raise UnusableImage(f"System V shared memory {found.identity} is shorter than its pages")
            read(image, offset, view[place : place + length])
    finally:
        _libc.shmdt(at)


def open_mapped(image: Image, ghosts: Mapping[str, int]) -> dict[str, int]:
    """Descriptors of all files that memory is mapped from, and of the programs that processes run. `ghosts`: of files
    without a name, by key. UnusableImage for a file that is not there any more."""
    pool: dict[str, int] = {}
    try:
        for space in image.spaces.values():
            if not space.exe_ghost:
                _open(pool, exe_key(space), space.exe, False)
            elif exe_key(space) not in pool:
                _reopen(pool, exe_key(space), space.exe_ghost, ghosts, False)
            for mapping in space.mappings:
                if mapping.kind == "file":
                    key, writable = pool_key(mapping), mapping.shared and mapping.writable_file
                    if key in pool:
                        continue
                    if mapping.deleted:
                        _reopen(pool, key, mapping.key, ghosts, writable)
                    else:
                        _open(pool, key, mapping.path, writable)
    except BaseException:
        close(pool)
        raise
    return pool


def _open(pool: dict[str, int], key: str, path: str, writable: bool) -> None:
    if key in pool:
        return
    try:
        pool[key] = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnusableImage(f"{path}, which a program has mapped, cannot be opened here: {reason}") from None


def _reopen(pool: dict[str, int], key: str, ghost: str, ghosts: Mapping[str, int], writable: bool) -> None:
    if ghost not in ghosts:
        raise UnusableImage(f"the content of the deleted file {ghost} is not in the image")
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
    pool[key] = os.open(f"/proc/self/fd/{ghosts[ghost]}", flags)


def late_seals(image: Image, pool: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Calls that set the seals which writable mappings had to come before (F_SEAL_FUTURE_WRITE): for one process, when
    all have mapped their memory."""
    return [
        (72, pool[f"{key}/w"], _F_ADD_SEALS, found.seals)
        for key, found in image.shared.items()
        if found.kind == "memfd" and found.seals & _FUTURE_WRITE
    ]


def close(pool: Mapping[str, int]) -> None:
    """All of them."""
    for fd in pool.values():
        os.close(fd)
