"""Files, directories, devices and memfds opened again; files without a name made again. See restore_files.py."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from typing import TYPE_CHECKING

from trapline.platform import descriptor_calls as calls
from trapline.platform import ipc_calls
from trapline.sentry.state.files import AnyFile, DroppedFile, GhostFile, InheritedFile, MemoryFile, PathFile, QueueFile
from trapline.sentry.state.records import Ghost, Image, SharedObject

if TYPE_CHECKING:
    from trapline.platform.restore_files import Pool

_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_HUGETLB, _HUGE_SHIFT = 1, 2, 4, 26
_F_ADD_SEALS, _F_SEAL_SEAL = 1033, 1
_ELSEWHERE = ("/tmp", "/dev/shm", "/")  # for files without a name whose directory is gone
_ACCESS = os.O_ACCMODE | os.O_PATH


def reopen(descriptor: int, flags: int) -> int:
    """Another description of what one of ours is open on."""
    wanted = flags & ~(os.O_NOFOLLOW | calls.O_TMPFILE_BIT)
    if flags & calls.O_TMPFILE_BIT:
        wanted &= ~os.O_DIRECTORY  # a part of O_TMPFILE
    return os.open(f"/proc/self/fd/{descriptor}", wanted | os.O_NOCTTY | os.O_CLOEXEC)


def open_inherited(pool: Pool) -> None:
    """The caller's, and /dev/null where that has none or where something was dropped."""
    for key, file in pool.image.files.items():
        if isinstance(file, DroppedFile):
            pool.put(key, _null(file))
        elif isinstance(file, InheritedFile):
            handle = pool.inherited.get(file.number, -1)
            if handle < 0:
                pool.put(key, _null(file))
            elif not file.reopened:
                pool.put(key, handle, keep=True)
            else:
                pool.put(key, _reopened(pool, handle, file))


def _null(file: AnyFile) -> int:
    return os.open("/dev/null", file.flags & _ACCESS | os.O_NOCTTY | os.O_CLOEXEC)


def _reopened(pool: Pool, handle: int, file: AnyFile) -> int:
    try:
        opened = reopen(handle, file.flags & _ACCESS | os.O_NONBLOCK)
    except OSError:
        # Open for the other direction only: the description itself is the best there is.
        return fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 3)
    fcntl.fcntl(opened, fcntl.F_SETFL, file.flags)
    return opened


def open_paths(pool: Pool) -> None:
    """What has a path. OSError with the path."""
    from trapline.platform.restore_files import late

    for key, file in pool.image.files.items():
        if not isinstance(file, PathFile) or late(file):
            continue
        opened = os.open(file.path, file.flags & ~calls.O_TMPFILE_BIT | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if stat.S_IFMT(os.fstat(opened).st_mode) != file.type:
                raise OSError(errno.EINVAL, "it is of another kind than when it was saved", os.fsdecode(file.path))
            if file.position and not file.flags & os.O_PATH:
                os.lseek(opened, file.position, os.SEEK_SET)
        except BaseException:
            os.close(opened)
            raise
        pool.put(key, opened)
        pool.set_flags(key, file)


# -- files without a name
def open_ghosts(pool: Pool) -> None:
    """Make all ghosts, and what has them open. `shared` has each by its key, open for reading and writing."""
    for key, ghost in pool.image.ghosts.items():
        if key not in pool.shared:
            pool.shared[key] = _above(pool, _make_ghost(pool, key, ghost))
    for number, file in pool.image.files.items():
        if isinstance(file, GhostFile):
            opened = pool.temporary.pop(number, -1)
            if opened < 0:
                opened = reopen(pool.shared[file.ghost], file.flags)
            if file.position and not file.flags & os.O_PATH:
                os.lseek(opened, file.position, os.SEEK_SET)
            pool.put(number, opened)
            pool.set_flags(number, file)


def _above(pool: Pool, descriptor: int) -> int:
    """Move a descriptor that is none of a description into the pool too."""
    place = pool.put(-1, descriptor)
    del pool.at[-1]
    return place


def _make_ghost(pool: Pool, key: str, ghost: Ghost) -> int:
    """A descriptor that is open for reading and writing on it, or for reading on a directory."""
    temporary = -1  # the description by which O_TMPFILE made it, which says so in its flags
    for number, file in pool.image.files.items():
        if isinstance(file, GhostFile) and file.ghost == key and file.flags & calls.O_TMPFILE_BIT:
            temporary = number
    last: OSError | None = None
    for directory in (os.path.dirname(ghost.path) or "/", *_ELSEWHERE):
        try:
            if temporary >= 0:
                flags = pool.image.files[temporary].flags
                first = os.open(directory, flags | os.O_CLOEXEC, stat.S_IMODE(ghost.mode) | 0o600)
                pool.temporary[temporary] = first
                made = reopen(first, os.O_RDWR)
            else:
                made = _make_in(directory, os.path.basename(ghost.path), ghost)
        except OSError as error:
            last = error
            continue
        if stat.S_ISREG(ghost.mode) and pool.ghosts is not None:
            with pool.ghosts(key) as content, os.fdopen(os.dup(made), "wb") as out:
                shutil.copyfileobj(content, out, 1 << 20)
            os.ftruncate(made, ghost.size)
        try:
            os.fchown(made, ghost.uid, ghost.gid)
        except OSError:
            pass  # in a user namespace only some ids exist, and ids that do not are nobody's
        os.fchmod(made, stat.S_IMODE(ghost.mode))
        return made
    assert last is not None
    raise last


def _make_in(directory: str, name: str, ghost: Ghost) -> int:
    path = os.path.join(directory, name or "ghost")
    while os.path.lexists(path):
        path += "~"
    if stat.S_ISDIR(ghost.mode):
        os.mkdir(path)
        made = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.rmdir(path)
    else:
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)
    return made


# -- memfds
def open_memory(pool: Pool) -> None:
    """Make the memfds that are not there yet, empty, and what has them open."""
    for key, thing in pool.image.shared.items():
        if thing.kind == "memfd" and f"{key}/w" in pool.shared:
            pool.shared.setdefault(key, pool.shared[f"{key}/w"])
        if thing.kind == "memfd" and key not in pool.shared:
            pool.shared[key] = _above(pool, make_memory(thing))
    for number, file in pool.image.files.items():
        if isinstance(file, MemoryFile):
            opened = reopen(pool.shared[file.key], file.flags)
            os.lseek(opened, file.position, os.SEEK_SET)
            pool.put(number, opened)
            pool.set_flags(number, file)


def open_queues(pool: Pool) -> None:
    """POSIX message queues, which exist by now."""
    for number, file in pool.image.files.items():
        if isinstance(file, QueueFile):
            pool.put(number, ipc_calls.open_queue(file.name, file.flags & (os.O_ACCMODE | os.O_NONBLOCK)))
            pool.set_flags(number, file)


def make_memory(thing: SharedObject) -> int:
    """An empty memfd of the right size. Its seals are set by `seal` once it is filled."""
    flags = _MFD_CLOEXEC
    if thing.seals & ~_F_SEAL_SEAL or not thing.seals:
        flags |= _MFD_ALLOW_SEALING
    if thing.huge:
        flags |= _MFD_HUGETLB | thing.huge << _HUGE_SHIFT
    made = os.memfd_create(thing.name, flags)
    os.ftruncate(made, thing.size)
    return made


def seal(image: Image, shared: dict[str, int]) -> None:
    """Seal what was sealed: when all that is in it has been loaded."""
    for key, thing in image.shared.items():
        if thing.kind == "memfd" and thing.seals and key in shared:
            missing = thing.seals & ~fcntl.fcntl(shared[key], calls.F_GET_SEALS)
            if missing:
                # F_SEAL_SEAL is the last, since it forbids all others.
                fcntl.fcntl(shared[key], _F_ADD_SEALS, missing)
