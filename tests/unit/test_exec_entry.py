"""What the sentry hears of a process that is made from outside (platform/exec_entry.py)."""

from __future__ import annotations

import socket
from typing import Any, cast

import trio

from trapline.platform.exec_entry import Entry
from trapline.sentry.control.interface import ExecSpec


def test_one_that_is_killed_with_our_word_unread_has_hung_up() -> None:
    """The host then says ECONNRESET once (unix(7)), which is no more an error than the end that an empty message tells."""
    ours, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with ours:
        ours.send(b"g")
        inside.close()
        entry = Entry(cast("Any", None), cast("Any", None), ExecSpec(["true"]), [])
        assert trio.run(entry._receive, ours) == b""
        assert trio.run(entry._receive, ours) == b""
