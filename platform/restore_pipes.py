"""Pipes and FIFOs made again, with what was in them. See restore_files.py; source: pipe(7), fifo(7)."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from trapline.platform import descriptor_calls as calls
from trapline.platform.restore_paths import reopen
from trapline.sentry.state.files import Pipe, PipeEnd

if TYPE_CHECKING:
    from trapline.platform.restore_files import Pool

_KEPT = os.O_ACCMODE | os.O_NONBLOCK | os.O_DIRECT | os.O_CLOEXEC


def open_pipes(pool: Pool) -> None:
    """Every pipe with all its ends. OSError."""
    ends: dict[int, dict[int, PipeEnd]] = {}
    for key, file in pool.image.files.items():
        if isinstance(file, PipeEnd):
            ends.setdefault(file.pipe, {})[key] = file
    for number, own in ends.items():
        _open(pool, pool.image.pipes[number], own)


def _open(pool: Pool, pipe: Pipe, ends: dict[int, PipeEnd]) -> None:
    path = next((file.path for file in ends.values() if file.path), b"")
    if path:
        both = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        reader, writer = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), both
    else:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _fill(writer, pipe, any(file.flags & os.O_DIRECT for file in ends.values()))
        left = {os.O_RDONLY: reader, os.O_WRONLY: writer} if not path else {}
        for key, file in ends.items():
            access = file.flags & os.O_ACCMODE
            # What pipe(2) opened says of itself, by O_LARGEFILE, that it was not opened by a path.
            opened = left.pop(access, -1) if not file.flags & calls.O_LARGEFILE else -1
            if opened >= 0:
                pool.put(key, opened, keep=True)
            else:
                pool.put(key, reopen(writer if access == os.O_WRONLY else reader, file.flags & _KEPT | os.O_NONBLOCK))
            fcntl.fcntl(pool.at[key], fcntl.F_SETFL, file.flags & ~os.O_ACCMODE)
            if file.signal:
                fcntl.fcntl(pool.at[key], calls.F_SETSIG, file.signal)
    finally:
        os.close(reader)
        os.close(writer)


def _fill(writer: int, pipe: Pipe, packets: bool) -> None:
    if fcntl.fcntl(writer, calls.F_GETPIPE_SZ) != pipe.capacity:
        try:
            fcntl.fcntl(writer, calls.F_SETPIPE_SZ, pipe.capacity)
        except PermissionError:
            pass  # more than an ordinary user may have: what is in it may still fit
    if packets:
        fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK | os.O_DIRECT)
    for chunk in pipe.content:
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(writer, rest) :]
    if packets:
        fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
