"""Sockets made again, connected with each other, and filled. See restore_files.py.

Connections come first, each by a listening socket of its own, then what is bound and listens, then connections that
wait to be accepted; queues are filled when all descriptions are there, and what was shut down is shut down last. Unix
sockets: restore_unix.py; TCP and UDP: restore_inet.py. """

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from trapline.platform import restore_inet, restore_unix
from trapline.platform import socket_calls as calls
from trapline.sentry.state.files import Socket, SocketFile

if TYPE_CHECKING:
    from trapline.platform.restore_files import Pool

#: Options by which two sockets may have one address; as saved only when all are there.
_REUSE = (2, 15)
_FORCED = {calls.SNDBUF: calls.SO_SNDBUFFORCE, calls.RCVBUF: calls.SO_RCVBUFFORCE}


def open_sockets(pool: Pool) -> None:
    """All of them. OSError."""
    unix = {key: s for key, s in pool.image.sockets.items() if s.family == socket.AF_UNIX}
    inet = {key: s for key, s in pool.image.sockets.items() if s.family in (socket.AF_INET, socket.AF_INET6)}
    if unix:
        restore_unix.open_unix(pool, unix)
    if inet:
        restore_inet.open_inet(pool, inet)
    for key, record in pool.image.sockets.items():
        if key not in pool.at:
            _open_other(pool, key, record)
    pool.fill.append(lambda: _fill_all(pool, unix, inet))


def _open_other(pool: Pool, key: int, record: Socket) -> None:
    made = calls.make(record.family, record.type, record.protocol)
    set_options(pool, made, record)
    if record.name and record.family == calls.NETLINK:
        port, groups = struct.unpack_from("II", record.name, 4)
        try:
            calls.bind(made, struct.pack("HHII", record.family, 0, port, groups))
        except OSError:
            calls.bind(made, struct.pack("HHII", record.family, 0, 0, groups))
    pool.put(key, made)


def _fill_all(pool: Pool, unix: dict[int, Socket], inet: dict[int, Socket]) -> None:
    restore_unix.fill(pool, unix)
    restore_inet.fill(pool, inet)
    for key, record in pool.image.sockets.items():
        at = pool.at[key]
        if record.shutdown and record.state in ("connected", "") and record.family == socket.AF_UNIX:
            _shut_down(at, record.shutdown)
        set_options(pool, at, record, last=True)
    for key, file in pool.image.files.items():
        if isinstance(file, SocketFile):
            pool.set_flags(key, file)


def _shut_down(at: int, bits: int) -> None:
    ours = socket.socket(fileno=at)
    try:
        ours.shutdown(bits - 1)
    except OSError:
        pass  # not connected
    finally:
        ours.detach()


def set_options(pool: Pool, fd: int, record: Socket, last: bool = False) -> None:
    """What differs from what the socket has. Before it is connected, and for those that matter then once more at the
    end."""
    known = set(calls.names_of_options(record.family, record.type))
    for level, name, value in record.options:
        if (level, name) not in known:
            continue  # none that a save writes down: the seed may do more than the programs
        if (level, name) == (calls.SOL_SOCKET, calls.SO_PEEK_OFF) and not last:
            continue
        if level == calls.SOL_SOCKET and name in _REUSE and not last:
            continue
        try:
            if calls.get_option(fd, level, name) == value:
                continue
        except OSError:
            continue
        try:
            forced = _FORCED.get((level, name))
            if forced is None:
                calls.set_option(fd, level, name, value)
            else:
                # The host tells twice of what was asked for.
                calls.set_option(fd, level, forced, struct.unpack("i", value)[0] // 2)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM, errno.ENODEV):
                raise
            if last:
                pool.notes.append(f"a socket's option {level}/{name} could not be set: {error.strerror}")
    if last and record.buffer_locks >= 0:
        try:
            calls.set_option(fd, calls.SOL_SOCKET, calls.SO_BUF_LOCK, record.buffer_locks)
        except OSError:
            pass  # Linux 5.14


def send_all(fd: int, data: bytes) -> None:
    """To a stream whose buffers may be smaller than what once was in them. OSError."""
    ours = socket.socket(fileno=os.dup(fd))
    rest = memoryview(data)
    size = calls.get_int(fd, *calls.SNDBUF)
    try:
        while rest:
            try:
                rest = rest[ours.send(rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                before = calls.get_int(fd, *calls.SNDBUF)
                calls.set_option(fd, calls.SOL_SOCKET, calls.SO_SNDBUFFORCE, before)  # it takes half of what it has
                if calls.get_int(fd, *calls.SNDBUF) <= before:
                    raise
    finally:
        ours.close()
        if calls.get_int(fd, *calls.SNDBUF) != size:
            calls.set_option(fd, calls.SOL_SOCKET, calls.SO_SNDBUFFORCE, size // 2)
