"""Unix sockets: who is connected to whom, what lies in their queues, and the descriptors in flight there.

A queue is looked through by MSG_PEEK with SO_PEEK_OFF, which is set back afterwards. What a peek must not meet is a
pending error, which it would take away: a stream is read no further than FIONREAD says, and a datagram socket with
one is refused.

Sources: unix(7), socket(7), Linux net/unix/af_unix.c.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import stat
import struct
import termios
from typing import TYPE_CHECKING

from trapline.platform import socket_calls as calls
from trapline.platform import unix_diag
from trapline.sentry.state.files import Message, Socket

if TYPE_CHECKING:
    from trapline.platform.capture_files import Capture, Held
    from trapline.platform.unix_diag import UnixFacts

_SIOCUNIXFILE = 0x89E0
_LISTEN = 10
_SCM_PIDFD = 4
_AT_A_TIME = 1 << 20
_ANCILLARY = socket.CMSG_SPACE(253 * 4) + socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4) + 512


class UnixSockets:
    """All of a capture."""

    def __init__(self, facts: list[UnixFacts]) -> None:
        self.facts = {fact.inode: fact for fact in facts}
        #: Inodes of those that wait to be accepted, and the listening socket's.
        self.waiting = {inode: fact.inode for fact in facts for inode in fact.waiting if inode}
        self.held: dict[int, Held] = {}  # by inode


def describe(work: Capture, held: Held, record: Socket) -> None:
    """Names and queue now; peers when all are known."""
    if work.unix_sockets is None:
        work.unix_sockets = UnixSockets(unix_diag.of_namespace(next(iter(work.processes))))
        work.later.append(lambda: _relate(work))
    known = work.unix_sockets
    fd = held.descriptor
    facts = known.facts.get(held.status.st_ino)
    if facts is None:
        _drop(work, held, "a unix socket from outside of the sandbox")
        return
    known.held[facts.inode] = held
    record.shutdown = facts.shutdown
    record.credentials = _credentials(work, fd)
    name = calls.local_name(fd)
    if len(name) > 2:
        record.name = name
        if name[2:3] != b"\0":
            _node(work, held, record, name[2:].rstrip(b"\0"))
    if facts.state == _LISTEN:
        record.state, record.backlog = "listening", facts.backlog
        return
    peer = calls.peer_name(fd)
    record.peer_name = peer if len(peer) > 2 else b""  # it has none
    try:
        record.queue = _peek(work, held, record)
    except OSError as error:
        _drop(work, held, f"a unix socket whose queue cannot be looked into: {error.strerror}")


def _drop(work: Capture, held: Held, what: str) -> None:
    from trapline.platform.capture_sockets import drop

    drop(work, held, what)


def _credentials(work: Capture, fd: int) -> tuple[int, int, int] | None:
    pid, uid, gid = struct.unpack("iII", calls.get_option(fd, calls.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if pid <= 0:
        return None
    return work.inside(pid), uid, gid


def _node(work: Capture, held: Held, record: Socket, name: bytes) -> None:
    """Where in the file system its name lies."""
    try:
        file = fcntl.ioctl(held.descriptor, _SIOCUNIXFILE)
    except OSError:
        return
    try:
        path = os.readlink(b"/proc/self/fd/%d" % file)
        status = os.fstat(file)
    finally:
        os.close(file)
    if not name.startswith(b"/"):
        record.directory = path.removesuffix(b" (deleted)").removesuffix(b"/" + name.removeprefix(b"./")) or b"/"
    try:
        there = os.lstat(work.root + path)
    except OSError:
        return
    if (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino):
        record.node = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def _peek(work: Capture, held: Held, record: Socket) -> list[Message]:
    fd = held.descriptor
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    events = dict(poller.poll(0)).get(fd, 0)
    datagrams = record.type == socket.SOCK_DGRAM
    if datagrams and events & select.POLLERR:
        raise OSError(0, "it has an error that was not read")
    count = array.array("i", [0])
    if not datagrams:
        if events & select.POLLERR:
            record.state = "reset"
        try:
            fcntl.ioctl(fd, termios.FIONREAD, count)
        except OSError:
            return []  # not connected
        if not count[0]:
            return []
    elif not events & select.POLLIN:
        return []
    before = calls.get_int(fd, calls.SOL_SOCKET, calls.SO_PEEK_OFF)
    found: list[Message] = []
    calls.set_option(fd, calls.SOL_SOCKET, calls.SO_PEEK_OFF, 0)
    ours = socket.socket(record.family, record.type, record.protocol, fileno=fd)
    try:
        left = count[0]
        while datagrams or left > 0:
            message = _peek_one(work, held, ours)
            if message is None:
                break
            found.append(message)
            left -= len(message.data)
            if datagrams and record.shutdown & 1 and not message.data:
                found.pop()  # the end, which never stops
                break
    finally:
        ours.detach()
        calls.set_option(fd, calls.SOL_SOCKET, calls.SO_PEEK_OFF, before)
    return found


def _peek_one(work: Capture, held: Held, ours: socket.socket) -> Message | None:
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    try:
        data, ancillary, got, sender = ours.recvmsg(_AT_A_TIME, _ANCILLARY, flags)
    except BlockingIOError:
        return None
    message = Message(data, sender=calls.packed(sender, socket.AF_UNIX))
    for level, kind, value in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            fds = array.array("i", value[: len(value) - len(value) % 4])
            message.files = [work.hold(fd, f"in flight to {held.where}") for fd in fds]
        elif kind == socket.SCM_CREDENTIALS:
            pid, uid, gid = struct.unpack("iII", value[:12])
            message.credentials = work.inside(pid) if pid else 0, uid, gid
        elif kind == _SCM_PIDFD:
            os.close(struct.unpack("i", value[:4])[0])
    if got & socket.MSG_CTRUNC:
        raise OSError(0, "too many descriptors in flight")
    return message


def _unsent(fd: int) -> int:
    """Memory of what was sent and not received yet, bytes."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.TIOCOUTQ, count)
    return count[0]


# -- when all are known
def _relate(work: Capture) -> None:
    known = work.unix_sockets
    assert known is not None
    for inode, held in list(known.held.items()):
        record = work.result.sockets.get(held.key)
        if record is not None:
            _relate_one(work, known, held, record, known.facts[inode])
    # A socket whose peer was dropped cannot be kept either.
    for held in known.held.values():
        record = work.result.sockets.get(held.key)
        if record is not None and record.peer and record.peer not in work.result.sockets:
            _drop(work, held, "a unix socket whose peer cannot be saved")


def _relate_one(work: Capture, known: UnixSockets, held: Held, record: Socket, facts: UnixFacts) -> None:
    if facts.state == _LISTEN:
        for inode in facts.waiting:
            other = known.held.get(inode)
            if inode and other is None:
                _drop(work, held, "a listening unix socket with a connection from outside of the sandbox")
                return
            record.waiting.append(other.key if other is not None else 0)
        if 0 in facts.waiting:
            work.result.notes.append(f"{held.where}: what a client sent that has closed before it was accepted is lost")
        return
    peer = known.held.get(facts.peer) if facts.peer else None
    if peer is not None:
        record.peer = peer.key
        record.state = "connected"
    elif facts.peer:
        _drop(work, held, "a unix socket connected to outside of the sandbox")
    elif facts.inode in known.waiting:
        if known.waiting[facts.inode] not in known.held:
            _drop(work, held, "a unix socket that connects to outside of the sandbox")
        elif _unsent(held.descriptor):
            _drop(work, held, "a unix socket with data on a connection that was not accepted yet")
        else:
            record.state = "waiting"
    elif facts.has_peer:
        record.state = record.state or "ended"
