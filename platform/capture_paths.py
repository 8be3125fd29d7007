"""Descriptions of what has, or had, a path: files, directories, devices, memfds."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from typing import TYPE_CHECKING

from trapline.platform import descriptor_calls as calls
from trapline.sentry.state.files import GhostFile, MemoryFile, PathFile, QueueFile
from trapline.sentry.state.records import Ghost, SharedObject

if TYPE_CHECKING:
    from trapline.platform.capture_files import Capture, Held

_DELETED = b" (deleted)"
_PROCESS = re.compile(rb"/proc/(\d+)(/|$)")
#: Devices without a state: /dev/mem to /dev/urandom, /dev/kmsg (linux/major.h, MEM_MAJOR).
_MEM_MAJOR = 1
_HUGETLBFS_MAGIC = 0x958458F6
_MQUEUE_MAGIC, _MQUEUE_SIZE = 0x19800202, 80  # ipc/mqueue.c; st_size of every queue


def ghost_key(device: int, inode: int) -> str:
    """Of a file without a name; who maps it and who has it open mean the same one by it."""
    return f"{device:x}-{inode:x}"


def memory_key(device: int, inode: int) -> str:
    """Of a memfd."""
    return f"memfd:{device:x}:{inode}"


def describe(work: Capture, held: Held) -> None:
    """Make the record of one description."""
    status = held.status
    if held.link.startswith(b"/memfd:") and _memfd(work, held):
        return
    if stat.S_ISCHR(status.st_mode) and not held.flags & os.O_PATH:
        from trapline.platform import capture_terminals

        if capture_terminals.hung_up(work, held):
            return
    like_a_queue = stat.S_ISREG(status.st_mode) and status.st_size == _MQUEUE_SIZE and not held.flags & os.O_PATH
    if like_a_queue and calls.file_system(held.descriptor) == _MQUEUE_MAGIC:
        _queue(work, held)
        return
    path = held.link
    where = _PROCESS.match(path)
    if _is_at(work, path, status):
        file = PathFile(
            path=path,
            position=held.info.position,
            device=status.st_dev,
            inode=status.st_ino,
            type=stat.S_IFMT(status.st_mode),
            process=int(where[1]) if where else 0,
        )
        if stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) != _MEM_MAJOR and not held.flags & os.O_PATH:
            work.drop(held, f"{os.fsdecode(path)}, a device whose state only its driver knows")
            return
        work.found(held, file)
        return
    if where:
        work.drop(held, f"{os.fsdecode(path)} of a process that has ended")
        return
    other = b""
    if status.st_nlink and not stat.S_ISDIR(status.st_mode):
        other = other_name(work.root, path.removesuffix(_DELETED), status.st_dev, status.st_ino)
    if other:
        work.found(
            held,
            PathFile(
                path=other,
                position=held.info.position,
                device=status.st_dev,
                inode=status.st_ino,
                type=stat.S_IFMT(status.st_mode),
            ),
        )
        return
    if _same_device(work, path, status):
        work.found(held, PathFile(path=path, device=status.st_dev, inode=status.st_ino, type=stat.S_IFCHR))
        return
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        work.drop(held, f"{os.fsdecode(path)}, a node that has no name any more")
        return
    _ghost(work, held, path)


def _queue(work: Capture, held: Held) -> None:
    # It may be mounted anywhere or nowhere, so only the last name of what the link shows is its own.
    name = os.path.basename(held.link)
    if not held.status.st_nlink:
        work.drop(held, f"{os.fsdecode(name)}, a POSIX message queue without a name")
        return
    work.found(held, QueueFile(name=name))


def _is_at(work: Capture, path: bytes, status: os.stat_result) -> bool:
    try:
        there = os.lstat(work.root + path)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)


def _same_device(work: Capture, path: bytes, status: os.stat_result) -> bool:
    """Whether the sandbox has a node for it under the same name, as for a host's /dev/null that somebody passed in."""
    if not stat.S_ISCHR(status.st_mode) or os.major(status.st_rdev) != _MEM_MAJOR:
        return False
    try:
        there = os.lstat(work.root + path)
    except OSError:
        return False
    return stat.S_ISCHR(there.st_mode) and there.st_rdev == status.st_rdev


def other_name(root: bytes, path: bytes, device: int, inode: int) -> bytes:
    """Another hard link in the same directory, as the sandbox's root shows it; b"" for none. `path`: the name that it
    had."""
    directory = os.path.dirname(path)
    try:
        with os.scandir(root + directory) as entries:
            for entry in entries:
                if entry.inode() == inode:
                    status = os.lstat(entry.path)
                    if (status.st_dev, status.st_ino) == (device, inode):
                        return os.path.join(directory, entry.name)
    except OSError:
        pass
    return b""


def _ghost(work: Capture, held: Held, path: bytes) -> None:
    status = held.status
    key = ghost_key(status.st_dev, status.st_ino)
    if key not in work.result.ghosts:
        # A directory without a name is empty.
        content = f"/proc/self/fd/{held.descriptor}" if stat.S_ISREG(status.st_mode) else "/dev/null"
        try:
            work.result.handles[key] = os.open(content, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            work.drop(held, f"{os.fsdecode(path)} cannot be read: {error.strerror}")
            return
        if status.st_nlink and stat.S_ISREG(status.st_mode):
            work.result.notes.append(
                f"{held.where}: {os.fsdecode(path)} has another name somewhere, and will be a file of its own"
            )
        work.result.ghosts[key] = Ghost(
            size=status.st_size if stat.S_ISREG(status.st_mode) else 0,
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            path=os.fsdecode(path.removesuffix(_DELETED)).encode(errors="replace").decode(),
        )
    work.found(held, GhostFile(ghost=key, position=held.info.position))


def _memfd(work: Capture, held: Held) -> bool:
    """Whether it was one: any file may be called so."""
    try:
        seals = fcntl.fcntl(held.descriptor, calls.F_GET_SEALS)
    except OSError:
        return False
    status = held.status
    if status.st_nlink:
        return False
    key = memory_key(status.st_dev, status.st_ino)
    if key not in work.result.shared:
        name = held.link.removeprefix(b"/memfd:").removesuffix(_DELETED).decode(errors="replace")
        huge = status.st_blksize.bit_length() - 1 if status.st_blksize >= 1 << 21 and _on_hugetlbfs(held) else 0
        work.result.shared[key] = SharedObject("memfd", status.st_size, name, seals, 0, huge)
        work.result.handles[key] = os.open(
            f"/proc/self/fd/{held.descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )
    work.found(held, MemoryFile(key=key, position=held.info.position))
    return True


def _on_hugetlbfs(held: Held) -> bool:
    return calls.file_system(held.descriptor) == _HUGETLBFS_MAGIC
