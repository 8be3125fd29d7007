"""What the host knows of all unix sockets of a network namespace, by NETLINK_SOCK_DIAG.

Sources: sock_diag(7), linux/unix_diag.h. The namespace is entered by a child, with its user namespace where that is
another one, as its creator may (setns(2)).
"""

from __future__ import annotations

import os
import socket
import struct
import traceback

import msgspec

from trapline.platform.descriptor_calls import libc

_SOCK_DIAG_BY_FAMILY, _DUMP, _DONE, _ERROR = 20, 0x301, 3, 2
_NAME, _VFS, _PEER, _ICONS, _RQLEN, _SHUTDOWN = 0, 1, 2, 3, 4, 6
_SHOW = 1 | 2 | 4 | 8 | 16
_NETLINK_SOCK_DIAG = 4
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


class UnixFacts(msgspec.Struct):
    """One socket. The ends of connections that were not accepted yet are not told."""

    inode: int
    type: int
    state: int
    name: bytes = b""  # without the family
    peer: int = 0  # inode; 0: none that is open
    has_peer: bool = False
    waiting: list[int] = []  # of a listening socket: inodes of those that connected, in order
    unread: int = 0  # bytes; of a listening socket: how many wait
    backlog: int = 0
    shutdown: int = 0


def of_namespace(host: int) -> list[UnixFacts]:
    """Of the network namespace of a process. OSError."""
    if _same(host, "net"):
        return _dump()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _in_child(host, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    if not answer.startswith(b"+"):
        raise OSError(0, f"unix sockets cannot be looked at: {answer[1:].decode(errors='replace')}")
    return msgspec.msgpack.decode(answer[1:], type=list[UnixFacts])


def _same(host: int, kind: str) -> bool:
    theirs, ours = os.stat(f"/proc/{host}/ns/{kind}"), os.stat(f"/proc/self/ns/{kind}")
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _in_child(host: int, writer: int) -> None:
    try:
        spaces = [] if _same(host, "user") else [("user", _CLONE_NEWUSER)]
        for kind, flag in [*spaces, ("net", _CLONE_NEWNET)]:
            fd = os.open(f"/proc/{host}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            if libc.setns(fd, flag) < 0:
                raise OSError(f"setns: {kind}")
        answer = b"+" + msgspec.msgpack.encode(_dump())
    except BaseException:
        answer = b"-" + traceback.format_exc(limit=1).encode()
    rest = memoryview(answer)
    try:
        while rest:
            rest = rest[os.write(writer, rest) :]
    finally:
        os._exit(0)


def _dump() -> list[UnixFacts]:
    found: list[UnixFacts] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
        request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW, 0, 0)
        link.send(struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0) + request)
        while True:
            answer = link.recv(1 << 18)
            at = 0
            while at + 16 <= len(answer):
                length, kind = struct.unpack_from("=IH", answer, at)
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", answer, at + 16)[0]
                    raise OSError(number, f"sock_diag: {os.strerror(number)}")
                found.append(_facts(answer[at + 16 : at + length]))
                at += (length + 3) & ~3


def _facts(message: bytes) -> UnixFacts:
    _, kind, state, _, inode = struct.unpack_from("=BBBBI", message)
    facts = UnixFacts(inode, kind, state)
    at = 16
    while at + 4 <= len(message):
        length, name = struct.unpack_from("=HH", message, at)
        value = message[at + 4 : at + length]
        if name == _NAME:
            facts.name = value
        elif name == _PEER:
            facts.peer, facts.has_peer = struct.unpack("=I", value)[0], True
        elif name == _ICONS:
            facts.waiting = list(struct.unpack(f"={len(value) // 4}I", value))
        elif name == _RQLEN:
            facts.unread, facts.backlog = struct.unpack("=II", value)
        elif name == _SHUTDOWN:
            facts.shutdown = value[0]
        at += (length + 3) & ~3
    return facts
