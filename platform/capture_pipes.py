"""Pipes and FIFOs: who has which end, and what is in them, looked at by tee(2), which takes nothing out.

Sources: pipe(7), tee(2), Linux fs/splice.c (link_pipe: packets stay packets).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
from typing import TYPE_CHECKING

from trapline.platform import descriptor_calls as calls
from trapline.sentry.state.files import Pipe, PipeEnd

if TYPE_CHECKING:
    from trapline.platform.capture_files import Capture, Held

_O_DIRECT = 0o40000
_SPLICE_F_NONBLOCK = 2
_MOST = 1 << 30


def describe(work: Capture, held: Held) -> None:
    """One end. What is in the pipe is read once all ends are known."""
    identity = held.status.st_dev, held.status.st_ino
    key = work.pipe_keys.get(identity)
    named = not held.link.startswith(b"pipe:")
    if named:
        try:
            there = os.lstat(work.root + held.link)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != identity:
            named = False  # it was unlinked, and is as a pipe without a name
    if key is None:
        key = work.pipe_keys[identity] = len(work.pipe_keys) + 1
        work.result.pipes[key] = Pipe(fcntl.fcntl(held.descriptor, calls.F_GETPIPE_SZ))
        work.later.append(lambda: _content(work, key))
    work.found(held, PipeEnd(pipe=key, path=held.link if named else b""))


def _content(work: Capture, key: int) -> None:
    ends = [h for h in work.held.values() if _is_end(work, h, key)]
    readers = [h for h in ends if h.flags & os.O_ACCMODE != os.O_WRONLY]
    writers = [h for h in ends if h.flags & os.O_ACCMODE != os.O_RDONLY]
    if not any(_is_named(work, h) for h in ends):
        # Nobody at the other end is in the sandbox: the host tells whether anybody is.
        outside = not writers and not _polled(readers[0]) & select.POLLHUP
        outside = outside or (not readers and not _polled(writers[0]) & select.POLLERR)
        if outside:
            for end in ends:
                work.drop(end, "a pipe whose other end is outside of the sandbox")
            del work.result.pipes[key]
            return
    packets = any(h.flags & _O_DIRECT for h in writers)
    try:
        work.result.pipes[key].content = _peek(readers[0] if readers else None, ends[0], packets)
    except OSError as error:
        for end in ends:
            work.drop(end, f"a pipe that cannot be looked into: {error.strerror}")
        del work.result.pipes[key]


def _is_end(work: Capture, held: Held, key: int) -> bool:
    file = work.result.files[held.key]
    return isinstance(file, PipeEnd) and file.pipe == key


def _is_named(work: Capture, held: Held) -> bool:
    file = work.result.files[held.key]
    return isinstance(file, PipeEnd) and bool(file.path)


def _polled(held: Held) -> int:
    poller = select.poll()
    poller.register(held.descriptor, select.POLLIN | select.POLLOUT)
    return dict(poller.poll(0)).get(held.descriptor, 0)


def _peek(reader: Held | None, any_end: Held, packets: bool) -> list[bytes]:
    if reader is not None:
        source, opened = reader.descriptor, False
    else:
        # What is in it could be read by who opens it once more.
        source = os.open(f"/proc/self/fd/{any_end.descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        opened = True
    ours = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        capacity = fcntl.fcntl(source, calls.F_GETPIPE_SZ)
        if fcntl.fcntl(ours[1], calls.F_GETPIPE_SZ) < capacity:
            fcntl.fcntl(ours[1], calls.F_SETPIPE_SZ, capacity)
        found = calls.libc.tee(source, ours[1], ctypes.c_size_t(_MOST), _SPLICE_F_NONBLOCK)
        if found < 0 and ctypes.get_errno() != 11:  # EAGAIN: empty
            raise calls.failure("tee")
        chunks = []
        while found > 0:
            chunk = os.read(ours[0], max(capacity, 65536))
            chunks.append(chunk)
            found -= len(chunk)
        return chunks if packets else [b"".join(chunks)] if chunks else []
    finally:
        if opened:
            os.close(source)
        os.close(ours[0])
        os.close(ours[1])
