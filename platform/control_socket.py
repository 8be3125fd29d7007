"""The socket on which a sandbox can be asked, in its directory of the state directory (unix(7))."""

from __future__ import annotations

import os
import socket

NAME = "control.sock"
_BACKLOG = 128


def listen(directory: str) -> socket.socket:
    """Only its owner and root may connect. By a descriptor of the directory, since a socket's path has 107 bytes at
    most. OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    before = os.umask(0o177)
    try:
        sock.bind(f"/proc/self/fd/{handle}/{NAME}")
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
        os.close(handle)
    return sock
