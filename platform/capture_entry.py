"""Work that must be done inside of a sandbox's namespaces while its guests stand still.

Root needs no user namespace: he looks at files from outside, and enters the IPC namespace and leaves it again in the
thread that asks. An ordinary user has rights over all of his sandbox's files in its user namespace alone, which a
process enters for good and with one thread only: a child does the work, and what it finds comes back by a pipe.

Sources: setns(2), user_namespaces(7) (who made a namespace has all capabilities in it).
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
from collections.abc import Callable
from typing import NoReturn

from trapline.platform import setup_calls as calls
from trapline.sentry.state.unsavable import Unsavable

#: Takes what is found, in pieces.
Sink = Callable[[bytes | bytearray | memoryview], object]
_FRAME = struct.Struct("<cQ")
_PIECE = 1 << 20  # bytes


class Entry:
    """What the work is given: where to put what it finds, and how to hand out a descriptor, which stays its own too."""

    __slots__ = ("give", "sink")

    def __init__(self, sink: Sink, give: Callable[[int], None]) -> None:
        self.sink = sink
        self.give = give


Work = Callable[[Entry], bytes]


def _namespace(init: int, name: str) -> int:
    """A descriptor of a namespace of the sandbox's, -1 where it is ours too. OSError."""
    handle = os.open(f"/proc/{init}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    if os.path.samestat(os.fstat(handle), os.stat(f"/proc/self/ns/{name}")):
        os.close(handle)
        return -1
    return handle


def work_inside(init: int, ipc: bool, work: Work, sink: Sink, strangers: set[int], handles: list[int]) -> bytes:
    """Do it with all rights over the sandbox's files, and in its IPC namespace where `ipc` is set; what it returns.

    `init` is the host id of the sandbox's pid 1. `strangers` takes the id of a child of ours, which whoever waits for
    any child leaves alone. `handles` takes the descriptors that are given out; they are ours, also after a failure.
    Unsavable as the work raises it, OSError.
    """
    user = _namespace(init, "user")
    other = _namespace(init, "ipc") if ipc else -1
    try:
        if user >= 0:
            return _by_child(user, other, work, sink, strangers, handles)
        entry = Entry(sink, lambda handle: handles.append(os.dup(handle)))
        if other < 0:
            return work(entry)
        back = os.open("/proc/thread-self/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
        try:
            calls.setns(other, calls.CLONE_NEWIPC)
            try:
                return work(entry)
            finally:
                calls.setns(back, calls.CLONE_NEWIPC)
        finally:
            os.close(back)
    finally:
        for handle in (user, other):
            if handle >= 0:
                os.close(handle)


def _by_child(user: int, ipc: int, work: Work, sink: Sink, strangers: set[int], handles: list[int]) -> bytes:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        os.close(reader)
        ours.close()
        _child(user, ipc, work, writer, theirs)
    strangers.add(child)
    os.close(writer)
    theirs.close()
    try:
        with open(reader, "rb", _PIECE) as file:
            while True:
                head = file.read(_FRAME.size)
                kind, size = _FRAME.unpack(head) if len(head) == _FRAME.size else (b"", 0)
                data = file.read(size)
                if not kind or len(data) < size:
                    raise OSError(errno.EINTR, "the process that reads the sandbox's files was killed")
                if kind == b"D":
                    sink(data)
                elif kind == b"H":
                    handles.append(socket.recv_fds(ours, 1, 1)[1][0])
                elif kind == b"R":
                    return data
                elif kind == b"U":
                    raise Unsavable(data.decode(errors="surrogateescape"))
                else:
                    raise OSError(errno.EIO, data.decode(errors="surrogateescape"))
    finally:
        ours.close()
        # Where the sink failed the child finds no reader any more, and ends.
        try:
            os.waitpid(child, 0)
            strangers.discard(child)
        except ChildProcessError:
            pass  # whoever waits for any child was faster


def _child(user: int, ipc: int, work: Work, writer: int, out: socket.socket) -> NoReturn:
    def send(kind: bytes, data: bytes | bytearray | memoryview) -> None:
        _write(writer, _FRAME.pack(kind, len(data)))
        with memoryview(data) as view:
            _write(writer, view)

    def give(handle: int) -> None:
        socket.send_fds(out, [b"H"], [handle])
        send(b"H", b"")

    try:
        gc.disable()
        calls.setns(user, calls.CLONE_NEWUSER)
        if ipc >= 0:
            calls.setns(ipc, calls.CLONE_NEWIPC)
            calls.unshare(calls.CLONE_NEWNS)  # a file system of the namespace's may be mounted in one of ours
        send(b"R", work(Entry(lambda piece: send(b"D", piece), give)))
    except Unsavable as error:
        send(b"U", str(error).encode(errors="surrogateescape"))
    except BaseException as error:
        send(b"E", (str(error) or type(error).__name__).encode(errors="surrogateescape"))
    finally:
        os._exit(0)


def _write(writer: int, data: bytes | memoryview) -> None:
    while data:
        data = data[os.write(writer, data) :]
