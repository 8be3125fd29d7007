"""TCP and UDP sockets. A TCP connection is saved where both of its ends are in the sandbox.

What a sender holds that its peer has not received is told by the sequence numbers of both, and read in the repair
mode of the socket, which is left again without a probe; the mode takes SO_REUSEADDR away, which is set anew.

Sources: tcp(7), udp(7), socket(7), linux/tcp.h (TCP_REPAIR, struct tcp_info), Linux net/ipv4/tcp.c.
"""

from __future__ import annotations

import array
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trapline.platform import socket_calls as calls
from trapline.sentry.state.files import Message, Socket

if TYPE_CHECKING:
    from trapline.platform.capture_files import Capture, Held

_REPAIR, _REPAIR_QUEUE, _QUEUE_SEQUENCE = 19, 20, 21  # TCP_*
_OFF_WITHOUT_PROBE, _NO_QUEUE, _RECEIVE, _SEND = -1, 0, 1, 2
_ESTABLISHED, _SYN_SENT, _FIN_WAIT1, _FIN_WAIT2, _CLOSE, _CLOSE_WAIT, _LAST_ACK, _LISTEN = 1, 2, 4, 5, 7, 8, 9, 10
_CLOSING = 11
#: Has sent its end; has received the other's.
_SENT_END = (_FIN_WAIT1, _FIN_WAIT2, _LAST_ACK, _CLOSING)
_HEARD_END = (_CLOSE_WAIT, _LAST_ACK, _CLOSING)
_BACKLOG, _BYTES_SENT = 28, 200  # offsets in struct tcp_info
_LOOPBACK = (b"\x7f", bytes(15) + b"\x01")
_AT_A_TIME = 1 << 16


def unread(fd: int) -> int:
    """FIONREAD; 0 where there is none."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]


def describe(work: Capture, held: Held, record: Socket) -> None:
    """Names now; what belongs together when all are known."""
    fd = held.descriptor
    name = calls.local_name(fd)
    if calls.endpoint(name)[1] or any(calls.endpoint(name)[0]):
        record.name = name
    record.peer_name = calls.peer_name(fd)
    if record.type == socket.SOCK_DGRAM:
        record.state = "connected" if record.peer_name else ""
        _datagrams(work, held, record)
        return
    if not work.inet_sockets:
        work.later.append(lambda: _relate(work))
    work.inet_sockets.append(held)


def _datagrams(work: Capture, held: Held, record: Socket) -> None:
    fd = held.descriptor
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not dict(poller.poll(0)).get(fd, 0) & select.POLLIN:
        return
    before = calls.get_int(fd, calls.SOL_SOCKET, calls.SO_PEEK_OFF)
    calls.set_option(fd, calls.SOL_SOCKET, calls.SO_PEEK_OFF, 0)
    ours = socket.socket(record.family, record.type, record.protocol, fileno=fd)
    try:
        while not dict(poller.poll(0)).get(fd, 0) & select.POLLERR:
            try:
                data, sender = ours.recvfrom(_AT_A_TIME, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError:
                return
            record.queue.append(Message(data, sender=calls.packed(sender, record.family)))
    finally:
        ours.detach()
        calls.set_option(fd, calls.SOL_SOCKET, calls.SO_PEEK_OFF, before)


# -- TCP, when all are known
def _relate(work: Capture) -> None:
    from trapline.platform.capture_sockets import drop

    ends: dict[tuple[tuple[bytes, int], tuple[bytes, int]], Held] = {}
    states: dict[int, int] = {}
    listening: list[tuple[tuple[bytes, int], Held]] = []
    for held in work.inet_sockets:
        record = work.result.sockets[held.key]
        info = calls.get_option(held.descriptor, calls.SOL_TCP, calls.TCP_INFO, 256)
        state = states[held.key] = info[0]
        if state == _LISTEN:
            record.state, record.backlog = "listening", struct.unpack_from("I", info, _BACKLOG)[0]
            listening.append((calls.endpoint(record.name), held))
        elif record.peer_name:
            ends[calls.endpoint(record.name), calls.endpoint(record.peer_name)] = held
    for held in work.inet_sockets:
        if states[held.key] != _LISTEN and held.key in work.result.sockets:
            _one(work, held, work.result.sockets[held.key], states, ends, listening)
    for held in work.inet_sockets:
        kept = work.result.sockets.get(held.key)
        if kept is None or not kept.peer:
            continue
        if kept.peer not in work.result.sockets:
            drop(work, held, "a TCP socket whose peer cannot be saved")
            continue
        other = work.held[kept.peer]
        try:
            _contents(held, kept, other, states[held.key], states[other.key])
        except PermissionError:
            # Of the host's network, as an ordinary user.
            drop(work, held, "a TCP socket with data under way, which takes CAP_NET_ADMIN to read")


def _one(
    work: Capture,
    held: Held,
    record: Socket,
    states: dict[int, int],
    ends: dict[tuple[tuple[bytes, int], tuple[bytes, int]], Held],
    listening: list[tuple[tuple[bytes, int], Held]],
) -> None:
    from trapline.platform.capture_sockets import drop

    state = states[held.key]
    if not record.peer_name:
        if state == _CLOSE:
            return  # never connected, or ended and all read
        drop(work, held, "a TCP socket that is being connected or closed")
        return
    local, remote = calls.endpoint(record.name), calls.endpoint(record.peer_name)
    peer = ends.get((remote, local))
    if peer is not None and peer is not held and state != _SYN_SENT:
        record.peer, record.state = peer.key, "connected"
        return
    if state in _HEARD_END and remote[0].startswith(_LOOPBACK) and not work.on_hosts_network:
        record.state = "ended"
        _received(held, record)
        return
    if state == _ESTABLISHED:
        for name, listener in listening:
            if name[1] == remote[1] and (name[0] == remote[0] or not any(name[0])):
                info = calls.get_option(held.descriptor, calls.SOL_TCP, calls.TCP_INFO, 256)
                if len(info) >= _BYTES_SENT + 8 and not struct.unpack_from("Q", info, _BYTES_SENT)[0]:
                    record.state = "waiting"
                    work.result.sockets[listener.key].waiting.append(held.key)
                    return
                drop(work, held, "a TCP socket with data on a connection that was not accepted yet")
                return
    drop(work, held, f"a connected TCP socket, to {calls.shown(record.peer_name)}")


def _received(held: Held, record: Socket) -> None:
    count = unread(held.descriptor)
    if count:
        ours = socket.socket(record.family, record.type, record.protocol, fileno=held.descriptor)
        try:
            record.queue = [Message(ours.recv(count, socket.MSG_PEEK | socket.MSG_DONTWAIT))]
        finally:
            ours.detach()


def _contents(held: Held, record: Socket, other: Held, state: int, peers: int) -> None:
    _received(held, record)
    record.shutdown = (2 if state in _SENT_END else 0) | (1 if state in _HEARD_END else 0)
    count = array.array("i", [0])
    fcntl.ioctl(held.descriptor, termios.TIOCOUTQ, count)
    if not count[0]:
        return
    with _repaired(held.descriptor), _repaired(other.descriptor):
        calls.set_option(held.descriptor, calls.SOL_TCP, _REPAIR_QUEUE, _SEND)
        written = calls.get_int(held.descriptor, calls.SOL_TCP, _QUEUE_SEQUENCE)
        calls.set_option(other.descriptor, calls.SOL_TCP, _REPAIR_QUEUE, _RECEIVE)
        received = calls.get_int(other.descriptor, calls.SOL_TCP, _QUEUE_SEQUENCE)
        missing = (written - received) % (1 << 32)
        if state in _SENT_END and peers not in _HEARD_END:
            missing -= 1  # the end has a number of its own
        if missing > 0:
            ours = socket.socket(record.family, record.type, record.protocol, fileno=held.descriptor)
            try:
                data = ours.recv(count[0], socket.MSG_PEEK | socket.MSG_DONTWAIT)
            finally:
                ours.detach()
            record.unsent = data[-missing:]


@contextmanager
def _repaired(fd: int) -> Iterator[None]:
    reuse = calls.get_int(fd, *calls.REUSEADDR)
    calls.set_option(fd, calls.SOL_TCP, _REPAIR, 1)
    try:
        yield
    finally:
        calls.set_option(fd, calls.SOL_TCP, _REPAIR_QUEUE, _NO_QUEUE)
        calls.set_option(fd, calls.SOL_TCP, _REPAIR, _OFF_WITHOUT_PROBE)
        calls.set_option(fd, *calls.REUSEADDR, reuse)
