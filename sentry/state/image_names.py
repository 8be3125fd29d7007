"""Names of files in an image, and how they are opened: nothing outside of its directory, and nothing but files."""

from __future__ import annotations

import os
import stat

#: Bytes that are read or summed at once.
PIECE = 1 << 20


def is_good(name: str) -> bool:
    """Whether it names a file in the directory, in the one way in which one writes it: `ghosts/7`."""
    if not name or "\0" in name or len(name) > 1024 or name.startswith("/"):
        return False
    return all(part not in ("", ".", "..") and len(os.fsencode(part)) <= 255 for part in name.split("/"))


def open_in(directory: int, name: str, flags: int, mode: int = 0o600) -> int:
    """The descriptor of a file of a good name; no symbolic link is followed anywhere in it. OSError."""
    *parents, last = name.split("/")
    opened: list[int] = []
    try:
        for part in parents:
            where = opened[-1] if opened else directory
            if flags & os.O_CREAT:
                try:
                    os.mkdir(part, 0o700, dir_fd=where)
                except FileExistsError:
                    pass
            how = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            opened.append(os.open(part, how, dir_fd=where))
        where = opened[-1] if opened else directory
        # A pipe must not make us wait.
        return os.open(last, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=where)
    finally:
        for fd in opened:
            os.close(fd)


def size_of(fd: int) -> int:
    """Of a regular file; -1 of anything else."""
    status = os.fstat(fd)
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def sum_of(fd: int) -> int:
    """XXH3_64 of all of a file, from its beginning, wherever its position is. OSError."""
    import xxhash

    state = xxhash.xxh3_64()
    buffer = bytearray(PIECE)
    view = memoryview(buffer)
    offset = 0
    while count := os.preadv(fd, [buffer], offset):
        state.update(view[:count])
        offset += count
    return state.intdigest()
