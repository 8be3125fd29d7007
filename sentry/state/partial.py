"""The directory beside an image in which it is made: it gets the image's name when it is complete, by rename(2).

Its name is the image's with `.partial-PID`. Who makes it holds a lock on it (flock(2)), which ends with the process
however that ends: so what another finds unlocked is of a save that died, and is removed by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat


class Taken(Exception):
    """Something has the image's name already, or is about to. One line."""


class Partial:
    """One such directory, open and locked. OSError; Taken."""

    def __init__(self, target: str) -> None:
        self.target = os.path.abspath(target)
        self.path = f"{self.target}.partial-{os.getpid()}"
        self.fd = -1
        check_free(self.target)
        remove_leftovers(self.target)
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            raise Taken(f"{self.path} is being written") from None
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is(self.path, self.fd):
                raise OSError(errno.EAGAIN, "another save took its directory for a leftover; try again")
        except BaseException:
            self.abandon()
            raise

    def finish(self, sync: bool) -> None:
        """Give it the image's name. OSError; Taken."""
        check_free(self.target)
        if sync:
            os.fsync(self.fd)
        try:
            os.rename(self.path, self.target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise Taken(f"{self.target} exists already: another save was faster") from None
            raise
        if sync:
            try:
                _sync_directory(os.path.dirname(self.target))
            except OSError:
                os.rename(self.target, self.path)  # it failed: nothing of it may stay
                raise
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def abandon(self) -> None:
        """Remove it with all that is in it; nothing, where it has its name already."""
        if self.fd < 0 or _is(self.path, self.fd):
            remove(self.path)
        self.close()


def check_free(target: str) -> None:
    """Taken where there is anything of this name; OSError where there is no directory that it could be in."""
    if os.path.lexists(target):
        raise Taken(f"{target} exists already: an image is never written over; name another place, or remove it")
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise OSError(errno.ENOENT, "there is no such directory", parent)


def remove_leftovers(target: str) -> None:
    """Remove what saves to this place left that died."""
    parent, prefix = os.path.dirname(target), os.path.basename(target) + ".partial-"
    for name in os.listdir(parent):
        if not name.startswith(prefix) or not name.removeprefix(prefix).isdecimal():
            continue
        path = os.path.join(parent, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # another's, or gone
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, fd):
                remove(path)
        except OSError:
            continue
        finally:
            os.close(fd)


def remove(path: str) -> None:
    """A directory and all in it, as far as that can be done. No symbolic link is followed."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _is(path: str, fd: int) -> bool:
    try:
        found, ours = os.stat(path, follow_symlinks=False), os.fstat(fd)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
