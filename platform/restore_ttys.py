"""Whose terminals are, in a restored sandbox: its sessions get their controlling terminals back, and the process groups
in front.

Without it the host's terminal layer knows of no session, and its keys send no signal. A session leader acquires its
terminal before it has children of its session, which inherit it, and those that had given it up do so again
(ioctl_tty(2), Linux tty_jobctrl.c). Terminals from outside of the sandbox are not restored.
"""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trapline.platform.injection import Data, Try
from trapline.sentry.state.files import TerminalSlave

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trapline.platform.injection import Injection
    from trapline.sentry.kernel.state import TTY, KernelState
    from trapline.sentry.state.records import Image

_OPENAT, _CLOSE, _IOCTL = 257, 3, 16
_AT_FDCWD = -100
_TIOCSCTTY, _TIOCSPGRP, _TIOCNOTTY = 0x540E, 0x5410, 0x5422
_MAJOR = 136  # UNIX98_PTY_SLAVE_MAJOR; each has 2**20 minors of ours


class Ttys:
    """`pool`: descriptors by open file description, which every process still has."""

    def __init__(self, state: KernelState, image: Image, pool: dict[int, int]) -> None:
        self._groups = state.groups
        self._of_session = {tty.sid: tty for tty in state.ttys.values() if tty.sid in state.groups}
        self._number = {
            os.makedev(_MAJOR, record.number): (key, record.number)
            for key, record in image.terminals.items()
            if record.number >= 0
        }
        self._files = image.files
        self._pool = pool

    def lead(self, tgid: int, leader: Injection) -> None:
        """A process has begun its session. OSError; Gone."""
        tty = self._of_session.get(tgid)
        if tty is None or self._groups[tgid].tty != tty.number:
            return
        with self._descriptor(tty, leader) as at:
            if at >= 0:
                leader.run([Try((_IOCTL, at, _TIOCSCTTY, 0))])

    def finish(self, at: dict[int, Injection]) -> None:
        """All processes are there, in their groups. OSError; Gone."""
        for tgid, process in at.items():
            group = self._groups[tgid]
            tty = self._of_session.get(group.sid)
            if tty is None or group.exit_status >= 0 or (group.sid != tgid and group.tty):
                continue
            with self._descriptor(tty, process) as descriptor:
                if descriptor < 0:
                    continue
                if group.sid != tgid:
                    process.run([Try((_IOCTL, descriptor, _TIOCNOTTY, 0))])
                elif tty.foreground != tgid:
                    # The group may have ended.
                    process.run([Try((_IOCTL, descriptor, _TIOCSPGRP, Data(struct.pack("<i", tty.foreground))))])

    @contextmanager
    def _descriptor(self, tty: TTY, process: Injection) -> Iterator[int]:
        """One of the slave, open for reading in this process; -1 where it cannot be."""
        key, number = self._number.get(tty.number, (-1, -1))
        if number < 0:
            yield -1
            return
        for name, file in self._files.items():
            if isinstance(file, TerminalSlave) and file.terminal == key and file.flags & os.O_ACCMODE != os.O_WRONLY:
                yield self._pool[name]
                return
        path = Data(f"/dev/pts/{number}".encode() + b"\0")
        (made,) = process.run([Try((_OPENAT, _AT_FDCWD, path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, 0))])
        yield made
        if made >= 0:
            process.run([(_CLOSE, made)])
