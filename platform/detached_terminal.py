"""The terminal of a detached sandbox: what was shown last is kept, logged, and shown to whoever attaches.

Its master is the sentry's own, polled by the pump: a terminal that nobody reads would stop who writes to it. A client
has one end of a socket; one that reads too slowly is cut off rather than waited for. Source: pty(7).
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapline.platform.pump import Pump

SCROLLBACK = 65536  # bytes
_CHUNK = 4096  # what a master gives at a time
_UNSENT = 1 << 18  # bytes that a client may lag behind, or that the terminal has not taken


class DetachedTerminal:
    """See the module. `master` is ours from now on, and `slave`, which stays open: a session that closes its terminal
    for a moment would else look like the end. `log` takes what is shown, -1 for none."""

    def __init__(self, pump: Pump, master: int, slave: int, log: int) -> None:
        self.master = master
        self._slave = slave
        self._pump = pump
        self._log = log
        self._shown = b""
        self._typed = b""  # that the terminal has not taken yet
        self._clients: dict[int, socket.socket] = {}
        os.set_blocking(master, False)
        pump.add(master, self._hear, self._hung_up)

    def _hear(self) -> None:
        self._send()
        try:
            data = os.read(self.master, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._hung_up()
            return
        self._shown = (self._shown + data)[-SCROLLBACK:]
        if self._log >= 0:
            try:
                os.write(self._log, data)
            except OSError:
                self._log = -1  # a full disk: what is shown goes on
        for client in list(self._clients.values()):
            try:
                if client.send(data) < len(data):
                    self._drop(client)
            except OSError:
                self._drop(client)

    def _hung_up(self) -> None:
        """No guest has it open any more; what they wrote is read."""
        self._pump.remove(self.master)
        for client in list(self._clients.values()):
            self._drop(client)

    def attach(self) -> tuple[int, bytes]:
        """One end of a new client's socket, and what was shown last."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT)
        self._clients[ours.fileno()] = ours
        self._pump.add(ours.fileno(), lambda: self._hear_client(ours), lambda: self._drop(ours))
        return its.detach(), self._shown

    def _hear_client(self, client: socket.socket) -> None:
        try:
            data = client.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        self._typed = (self._typed + data)[-_UNSENT:]
        self._send()

    def _send(self) -> None:
        if not self._typed or not self._pump.watches(self.master):
            return
        try:
            self._typed = self._typed[os.write(self.master, self._typed) :]
        except BlockingIOError:
            pass
        except OSError:
            self._typed = b""
        self._pump.await_room(self.master, bool(self._typed))

    def _drop(self, client: socket.socket) -> None:
        if self._clients.pop(client.fileno(), None) is not None:
            self._pump.remove(client.fileno())
            client.close()

    def finish(self) -> None:
        """All guests are gone: take what they wrote last."""
        os.close(self._slave)
        while self._pump.watches(self.master):
            before = self._shown
            self._hear()
            if self._shown == before:
                break
        for client in list(self._clients.values()):
            self._drop(client)
        os.close(self.master)
