"""Sockets of all families; those of unix(7) are in capture_unix.py, TCP and UDP in capture_inet.py."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from trapline.platform import capture_inet, capture_unix
from trapline.platform import socket_calls as calls
from trapline.sentry.state.files import Socket, SocketFile

if TYPE_CHECKING:
    from trapline.platform.capture_files import Capture, Held


def describe(work: Capture, held: Held) -> None:
    """Make the record of one description, and one of its socket under the same key."""
    fd = held.descriptor
    family, kind = calls.get_int(fd, calls.SOL_SOCKET, calls.SO_DOMAIN), calls.get_int(fd, calls.SOL_SOCKET, 3)
    record = Socket(family, kind, calls.get_int(fd, calls.SOL_SOCKET, calls.SO_PROTOCOL))
    record.options = calls.options_of(fd, family, kind)
    try:
        record.buffer_locks = calls.get_int(fd, calls.SOL_SOCKET, calls.SO_BUF_LOCK)
    except OSError:
        pass  # Linux 5.14
    work.result.sockets[held.key] = record
    work.found(held, SocketFile())
    if family == socket.AF_UNIX:
        capture_unix.describe(work, held, record)
    elif family in (socket.AF_INET, socket.AF_INET6) and kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        capture_inet.describe(work, held, record)
    elif family == calls.NETLINK:
        record.name = calls.local_name(fd)
        if capture_inet.unread(fd):
            work.result.notes.append(f"{held.where}: a netlink socket loses what was not read")
    else:
        drop(work, held, f"a socket of family {family}, type {kind}")


def drop(work: Capture, held: Held, what: str) -> None:
    """It cannot be saved."""
    work.result.sockets.pop(held.key, None)
    work.drop(held, what)
