"""Unix sockets made again. See restore_sockets.py; source: unix(7), Linux net/unix/af_unix.c."""

from __future__ import annotations

import array
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trapline.platform import socket_calls as calls
from trapline.platform.process_stand_in import act_as
from trapline.sentry.state.files import Message, Socket

if TYPE_CHECKING:
    from trapline.platform.restore_files import Pool


def open_unix(pool: Pool, records: dict[int, Socket]) -> None:
    """All of them, empty. OSError."""
    from trapline.platform.restore_sockets import set_options

    made: dict[int, int] = {}
    listening = {record.name for record in records.values() if record.state == "listening"}
    for key, record in records.items():
        if key in made:
            continue
        peer = records.get(record.peer)
        if record.state == "connected" and peer is not None and peer.peer == key:
            made[key], made[record.peer] = _connection(record, peer, listening)
        elif record.state in ("ended", "reset"):
            made[key] = _ended(pool, key, record, listening)
        else:
            made[key] = calls.make(record.family, record.type, record.protocol)
    undo: list[Callable[[], None]] = []
    # Names that are in the file system come last, over what others had there before.
    for key in sorted(records, key=lambda key: records[key].node is not None):
        record = records[key]
        pool.put(key, made[key])
        set_options(pool, pool.at[key], record)
        if record.name and not calls.local_name(pool.at[key])[2:]:
            undo.append(_bind(pool.at[key], record))
        if record.state == "listening":
            fd, backlog = pool.at[key], record.backlog
            act_as(record.credentials, lambda fd=fd, backlog=backlog: calls.listen(fd, backlog))  # type: ignore[misc]
    for key, record in records.items():
        for waiting in record.waiting:
            _wait(pool, record, waiting)
        peer = records.get(record.peer)
        if record.type == socket.SOCK_DGRAM and peer is not None and peer.peer != key:
            _connect_one_way(pool, key, peer)
    for action in undo:
        action()


# -- connections
def _connection(first: Socket, second: Socket, listening: set[bytes]) -> tuple[int, int]:
    """Two sockets that are each other's peers. Who was accepted has the name of who listened; where nobody does so any
    more it makes no difference."""
    family, kind, protocol = first.family, first.type, first.protocol
    same = first.credentials == second.credentials
    if kind == socket.SOCK_DGRAM or (same and not first.name and not second.name):
        if not same or first.credentials is None or kind == socket.SOCK_DGRAM:
            return calls.make_pair(family, kind, protocol)
        # The child's pair comes to us by a socket.
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours, its:

            def pair() -> None:
                one, two = calls.make_pair(family, kind, protocol)
                socket.send_fds(its, [b"p"], [one, two])
                os.close(one)
                os.close(two)

            act_as(first.credentials, pair)
            _, fds, _, _ = socket.recv_fds(ours, 1, 2)
        return fds[0], fds[1]
    server = first if first.name and (first.name in listening or not second.name) else second
    client = second if server is first else first
    connected, accepted = _through_listener(client, server)
    return (accepted, connected) if server is first else (connected, accepted)


def _through_listener(client: Socket, server: Socket) -> tuple[int, int]:
    """What knows of whom by SO_PEERCRED: the client of who listens, the accepted one of who connects."""
    listener = calls.make(server.family, server.type, server.protocol)
    undo: Callable[[], None] = _nothing
    try:
        if server.name:
            undo = _bind(listener, server, lasting=False)
        else:
            calls.bind(listener, struct.pack("H", socket.AF_UNIX))  # any name
        act_as(client.credentials, lambda: calls.listen(listener, 1))
        connected = calls.make(client.family, client.type, client.protocol)
        act_as(server.credentials, lambda: _connect(connected, listener, server))
        return connected, calls.accept(listener)
    finally:
        undo()
        os.close(listener)


def _connect(fd: int, listener: int, record: Socket) -> None:
    with _directory(record):
        calls.connect(fd, calls.local_name(listener))


def _ended(pool: Pool, key: int, record: Socket, listening: set[bytes]) -> int:
    """One whose peer sends what is in the queue, and is closed then."""
    if record.type == socket.SOCK_DGRAM:
        ours, its = calls.make_pair(record.family, record.type, record.protocol)
    else:
        stand_in = Socket(record.family, record.type, record.protocol, record.peer_name)
        stand_in.credentials = record.credentials
        ours, its = _connection(record, stand_in, listening)
    pool.ends[key] = its
    return ours


def _wait(pool: Pool, listener: Socket, key: int) -> None:
    """A connection that was not accepted yet."""
    fd = pool.at[key] if key else calls.make(listener.family, listener.type, listener.protocol)
    blocking = os.get_blocking(fd)
    os.set_blocking(fd, False)
    try:
        with _directory(listener):
            calls.connect(fd, listener.name)
    finally:
        os.set_blocking(fd, blocking)
        if not key:
            os.close(fd)


def _connect_one_way(pool: Pool, key: int, peer: Socket) -> None:
    if not peer.name:
        pool.notes.append("a datagram socket is not connected any more: its peer has no name")
        return
    with _directory(peer):
        calls.connect(pool.at[key], peer.name)


# -- names
def _nothing() -> None:
    pass


@contextmanager
def _directory(record: Socket) -> Iterator[None]:
    """Where a relative name means what it meant."""
    if not record.directory:
        yield
        return
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(record.directory)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _bind(fd: int, record: Socket, lasting: bool = True) -> Callable[[], None]:
    """Bind to the saved name; what to do afterwards: a name that was removed is removed again, and what had its place
    comes back."""
    if record.name[2:3] == b"\0":
        calls.bind(fd, record.name)
        return _nothing
    name = record.name[2:].rstrip(b"\0")
    path = os.path.join(record.directory or b"/", name)
    node = record.node if lasting else None
    aside = b""
    try:
        there = os.lstat(path)
    except OSError:
        there = None
    if there is not None:
        # To a connected stream nobody can connect: the node that is there is as good as its own.
        if record.state in ("connected", "ended", "reset") and record.type != socket.SOCK_DGRAM:
            node = None
        if node is not None and stat.S_ISSOCK(there.st_mode):
            os.unlink(path)
        else:
            aside = path + b".aside"
            os.rename(path, aside)
    with _directory(record):
        calls.bind(fd, record.name)
    if node is not None:
        mode, user, group = node
        os.chmod(path, mode)
        try:
            os.chown(path, user, group)
        except OSError:
            pass  # an id that does not exist here
        return _nothing

    def undo() -> None:
        os.unlink(path)
        if aside:
            os.rename(aside, path)

    return undo


# -- queues
def fill(pool: Pool, records: dict[int, Socket]) -> None:
    """Send what was in the queues, from whom it came; then close the peers of those whose peer is gone."""
    for key, record in records.items():
        for message in record.queue:
            _send(pool, records, key, record, message)
    for key, its in pool.ends.items():
        if key not in records:
            continue
        if records[key].state == "reset":
            # Closed with something unread, it leaves ECONNRESET behind.
            at = socket.socket(fileno=os.dup(pool.at[key]))
            with at:
                at.send(b"x", socket.MSG_DONTWAIT)
        os.close(its)


def _send(pool: Pool, records: dict[int, Socket], key: int, record: Socket, message: Message) -> None:
    null = -1
    fds = array.array("i")
    for file in message.files:
        if file not in pool.at and null < 0:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            pool.notes.append("a descriptor in flight that only a running process can have is /dev/null now")
        fds.append(pool.at.get(file, null))
    by, address, temporary = _sender(pool, records, key, record, message)
    ancillary: list[tuple[int, int, bytes]] = []
    if fds:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, fds.tobytes()))
    try:
        act_as(message.credentials, lambda: _send_one(by, message, ancillary, address, record))
    finally:
        if temporary:
            os.close(by)
        if null >= 0:
            os.close(null)


def _sender(
    pool: Pool, records: dict[int, Socket], key: int, record: Socket, message: Message
) -> tuple[int, bytes, bool]:
    """(descriptor to send by, address to send to, whether it is to be closed)."""
    if key in pool.ends and record.type != socket.SOCK_DGRAM:
        return pool.ends[key], b"", False
    if record.type != socket.SOCK_DGRAM:
        return pool.at[record.peer], b"", False
    mutual = records.get(record.peer)
    if mutual is not None and mutual.name == message.sender and mutual.peer == key:
        return pool.at[record.peer], b"", False
    for other, candidate in records.items():
        if candidate.type == record.type and candidate.name == message.sender and message.sender:
            return pool.at[other], record.name, False
    if key in pool.ends:
        return pool.ends[key], b"", False
    made = calls.make(record.family, record.type, record.protocol)
    if message.sender:
        try:
            _bind(made, Socket(record.family, record.type, name=message.sender), lasting=False)()
        except OSError:
            pool.notes.append("the sender of a datagram that waits to be read has no name any more")
    return made, record.name, True


def _send_one(
    by: int, message: Message, ancillary: list[tuple[int, int, bytes]], address: bytes, receiver: Socket
) -> None:
    from trapline.platform.restore_sockets import send_all

    ours = socket.socket(fileno=os.dup(by))
    with ours:
        if receiver.type == socket.SOCK_STREAM:
            first = message.data
            if ancillary:
                sent = ours.sendmsg([first], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                first = first[sent:]
            send_all(by, first)
            return
        to: str | bytes | None = None
        if address:
            name = address[2:]
            to = name if name[:1] == b"\0" else name.rstrip(b"\0")
        with _directory(receiver):
            if to is None:
                ours.sendmsg([message.data], ancillary, socket.MSG_DONTWAIT)
            else:
                ours.sendmsg([message.data], ancillary, socket.MSG_DONTWAIT, to)
