"""Socket calls with addresses as bytes (struct sockaddr), and the options that a socket keeps.

Sources: socket(7), unix(7), ip(7), ipv6(7), tcp(7), asm-generic/socket.h, linux/tcp.h.
"""

from __future__ import annotations

import ctypes
import socket
import struct

from trapline.platform.descriptor_calls import failure, libc

SO_DOMAIN, SO_PROTOCOL, SO_PEEK_OFF, SO_BUF_LOCK = 39, 38, 42, 72
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SOL_SOCKET, SOL_TCP, SOL_IP, SOL_IPV6 = 1, 6, 0, 41
TCP_INFO = 11
NETLINK = 16
#: Of SOL_SOCKET: REUSEADDR, BROADCAST, KEEPALIVE, OOBINLINE, PRIORITY, LINGER, REUSEPORT, PASSCRED, RCVLOWAT, RCVTIMEO,
#: SNDTIMEO, BINDTODEVICE, TIMESTAMP, PASSSEC, TIMESTAMPNS, PEEK_OFF, PASSPIDFD, DONTROUTE.
_GENERAL = (2, 6, 9, 10, 12, 13, 15, 16, 18, 20, 21, 25, 29, 34, 35, 42, 76, 5)
#: NODELAY, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT, LINGER2, DEFER_ACCEPT, CONGESTION, USER_TIMEOUT, FASTOPEN,
#: NOTSENT_LOWAT.
_TCP = (1, 3, 4, 5, 6, 7, 8, 9, 13, 18, 23, 25)
#: TOS, TTL, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, FREEBIND, BIND_ADDRESS_NO_PORT, MULTICAST_TTL, _LOOP.
_IP = (1, 2, 8, 10, 11, 12, 13, 15, 24, 33, 34)
#: UNICAST_HOPS, MULTICAST_HOPS, MULTICAST_LOOP, MTU_DISCOVER, RECVERR, V6ONLY, RECVPKTINFO, RECVHOPLIMIT, RECVTCLASS,
#: TCLASS.
_IPV6 = (16, 18, 19, 23, 25, 26, 49, 51, 66, 67)
SNDBUF, RCVBUF = (SOL_SOCKET, 7), (SOL_SOCKET, 8)
REUSEADDR = (SOL_SOCKET, 2)


def names_of_options(family: int, kind: int) -> list[tuple[int, int]]:
    """(level, name) of what is saved, the sizes of the buffers first."""
    found = [SNDBUF, RCVBUF, *((SOL_SOCKET, name) for name in _GENERAL)]
    if family in (socket.AF_INET, socket.AF_INET6):
        if kind == socket.SOCK_STREAM:
            found += [(SOL_TCP, name) for name in _TCP]
        found += [(SOL_IP, name) for name in _IP]
    if family == socket.AF_INET6:
        found += [(SOL_IPV6, name) for name in _IPV6]
    return found


def get_option(fd: int, level: int, name: int, size: int = 64) -> bytes:
    """OSError."""
    value, length = ctypes.create_string_buffer(size), ctypes.c_uint32(size)
    if libc.getsockopt(fd, level, name, value, ctypes.byref(length)) < 0:
        raise failure("getsockopt")
    return value.raw[: length.value]


def get_int(fd: int, level: int, name: int) -> int:
    """OSError."""
    return int(struct.unpack("i", get_option(fd, level, name, 4))[0])


def set_option(fd: int, level: int, name: int, value: bytes | int) -> None:
    """OSError."""
    raw = struct.pack("i", value) if isinstance(value, int) else value
    if libc.setsockopt(fd, level, name, raw, len(raw)) < 0:
        raise failure("setsockopt")


def options_of(fd: int, family: int, kind: int) -> list[tuple[int, int, bytes]]:
    """All that can be asked for."""
    found = []
    for level, name in names_of_options(family, kind):
        try:
            found.append((level, name, get_option(fd, level, name)))
        except OSError:
            continue  # not of this kind of socket, or not of this kernel
    return found


def local_name(fd: int) -> bytes:
    """getsockname(2). OSError."""
    return _address(libc.getsockname, fd)


def peer_name(fd: int) -> bytes:
    """getpeername(2); b"" where there is none."""
    try:
        return _address(libc.getpeername, fd)
    except OSError:
        return b""


def _address(function: ctypes._FuncPointer, fd: int) -> bytes:
    value, length = ctypes.create_string_buffer(256), ctypes.c_uint32(256)
    if function(fd, value, ctypes.byref(length)) < 0:
        raise failure("getsockname")
    return value.raw[: length.value]


def bind(fd: int, address: bytes) -> None:
    """OSError."""
    if libc.bind(fd, address, len(address)) < 0:
        raise failure("bind")


def connect(fd: int, address: bytes) -> None:
    """OSError."""
    if libc.connect(fd, address, len(address)) < 0:
        raise failure("connect")


def listen(fd: int, backlog: int) -> None:
    """OSError."""
    if libc.listen(fd, backlog) < 0:
        raise failure("listen")


def accept(fd: int) -> int:
    """OSError."""
    made = int(libc.accept4(fd, None, None, socket.SOCK_CLOEXEC))
    if made < 0:
        raise failure("accept")
    return made


def make(family: int, kind: int, protocol: int) -> int:
    """socket(2), closed on exec. OSError."""
    made = int(libc.socket(family, kind | socket.SOCK_CLOEXEC, protocol))
    if made < 0:
        raise failure("socket")
    return made


def make_pair(family: int, kind: int, protocol: int) -> tuple[int, int]:
    """socketpair(2). OSError."""
    pair = (ctypes.c_int * 2)()
    if libc.socketpair(family, kind | socket.SOCK_CLOEXEC, protocol, pair) < 0:
        raise failure("socketpair")
    return pair[0], pair[1]


def packed(address: object, family: int) -> bytes:
    """struct sockaddr of what Python's socket module calls an address; b"" for no address."""
    if family == socket.AF_UNIX:
        if isinstance(address, str):
            return struct.pack("H", family) + address.encode(errors="surrogateescape") + b"\0" if address else b""
        return struct.pack("H", family) + address if isinstance(address, bytes) and address else b""
    if not isinstance(address, tuple):
        return b""
    host, port = address[0], address[1]
    if family == socket.AF_INET:
        return struct.pack("=H", family) + struct.pack(">H", port) + socket.inet_pton(family, host) + bytes(8)
    flow, scope = address[2], address[3]
    return (
        struct.pack("=H", family) + struct.pack(">HI", port, flow)
        + socket.inet_pton(family, host.partition("%")[0]) + struct.pack("=I", scope)
    )  # fmt: skip


def endpoint(address: bytes) -> tuple[bytes, int]:
    """(IP address, port) of an internet address; of an IPv4 one in IPv6 its own form."""
    (family,) = struct.unpack_from("H", address)
    (port,) = struct.unpack_from(">H", address, 2)
    if family == socket.AF_INET:
        return address[4:8], port
    host = address[8:24]
    return (host[12:] if host.startswith(bytes(10) + b"\xff\xff") else host), port


def shown(address: bytes) -> str:
    """For messages."""
    if len(address) < 8:
        return "nobody"
    host, port = endpoint(address)
    if len(host) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, host)}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, host)}]:{port}"
