"""TCP and UDP sockets made again. See restore_sockets.py; sources: tcp(7), udp(7), ip(7)."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from trapline.platform import socket_calls as calls
from trapline.sentry.state.files import Socket

if TYPE_CHECKING:
    from trapline.platform.restore_files import Pool


def open_inet(pool: Pool, records: dict[int, Socket]) -> None:
    """All of them, empty. OSError with the address that was not to be had."""
    from trapline.platform.restore_sockets import set_options

    for key, record in records.items():
        if key in pool.at or record.type != socket.SOCK_STREAM or record.state not in ("connected", "ended"):
            continue
        peer = records.get(record.peer)
        if peer is None:
            peer = Socket(record.family, record.type, record.protocol, name=record.peer_name, peer_name=record.name)
        ours, its = _connection(record, peer)
        pool.put(key, ours)
        if record.peer:
            pool.put(record.peer, its)
        else:
            pool.ends[key] = its
    for key, record in records.items():
        if key not in pool.at:
            pool.put(key, calls.make(record.family, record.type, record.protocol))
            set_options(pool, pool.at[key], record)
            if record.name and record.state != "waiting":
                _bind(pool.at[key], record.name)
        else:
            set_options(pool, pool.at[key], record)
    for key, record in records.items():
        if record.state == "listening":
            calls.listen(pool.at[key], record.backlog)
        elif record.type == socket.SOCK_DGRAM and record.peer_name:
            calls.connect(pool.at[key], record.peer_name)
    for record in records.values():
        for waiting in record.waiting:
            client = records[waiting]
            _bind(pool.at[waiting], client.name)
            calls.connect(pool.at[waiting], client.peer_name)


def _connection(client: Socket, server: Socket) -> tuple[int, int]:
    """A TCP connection between the two names."""
    listener = calls.make(server.family, server.type, server.protocol)
    try:
        _bind(listener, server.name)
        calls.listen(listener, 1)
        connected = calls.make(client.family, client.type, client.protocol)
        _bind(connected, client.name)
        calls.connect(connected, client.peer_name)
        return connected, calls.accept(listener)
    finally:
        os.close(listener)


def _bind(fd: int, name: bytes) -> None:
    """Where connections that exist have the port too; what it says of that is set at the end as it was."""
    calls.set_option(fd, *calls.REUSEADDR, 1)
    try:
        calls.bind(fd, name)
    except OSError as error:
        raise OSError(error.errno, f"{calls.shown(name)}: {error.strerror}") from None


def fill(pool: Pool, records: dict[int, Socket]) -> None:
    """Send what was received and not read, and what was still to be received; then what ended a stream."""
    from trapline.platform.restore_sockets import send_all

    for key, record in records.items():
        if record.type == socket.SOCK_DGRAM:
            for message in record.queue:
                _datagram(pool, records, key, record, message.data, message.sender)
            continue
        by = pool.ends.get(key, pool.at.get(record.peer, -1))
        peer = records.get(record.peer)
        data = b"".join(message.data for message in record.queue) + (peer.unsent if peer is not None else b"")
        if data:
            send_all(by, data)
    for key, record in records.items():
        if record.type == socket.SOCK_STREAM and record.state == "connected" and record.shutdown & 2:
            ours = socket.socket(fileno=os.dup(pool.at[key]))
            with ours:
                ours.shutdown(socket.SHUT_WR)
        if key in pool.ends:
            os.close(pool.ends[key])


def _datagram(
    pool: Pool, records: dict[int, Socket], key: int, record: Socket, data: bytes, sender: bytes
) -> None:
    target = _reachable(record.name)
    for other, candidate in records.items():
        if candidate.type == record.type and candidate.name == sender and candidate.family == record.family:
            ours = socket.socket(fileno=os.dup(pool.at[other]))
            with ours:
                try:
                    ours.sendto(data, socket.MSG_DONTWAIT, target)
                except OSError:
                    pool.notes.append("a datagram that waited to be read is lost")
            return
    made = calls.make(record.family, record.type, record.protocol)
    ours = socket.socket(fileno=made)
    with ours:
        try:
            calls.set_option(made, calls.SOL_SOCKET, 15, 1)  # SO_REUSEPORT
            _bind(made, sender)
            ours.sendto(data, socket.MSG_DONTWAIT, target)
        except OSError:
            pool.notes.append(f"a datagram of {calls.shown(sender)} that waited to be read is lost")


def _reachable(name: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
    """Where to send to, for a socket that is bound to this."""
    (family,) = struct.unpack_from("H", name)
    (port,) = struct.unpack_from(">H", name, 2)
    if family == socket.AF_INET:
        host = name[4:8] if any(name[4:8]) else b"\x7f\0\0\1"
        return socket.inet_ntop(family, host), port
    host = name[8:24] if any(name[8:24]) else bytes(15) + b"\1"
    return socket.inet_ntop(family, host), port, 0, struct.unpack_from("=I", name, 24)[0]
