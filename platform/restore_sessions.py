"""The controlling terminals of a restored sandbox's sessions, and which process groups are in their foreground.

A process gets its controlling terminal from its parent, at its birth, so a leader takes the terminal before it has
children. The foreground is given when all groups are there.

Sources: TIOCSCTTY and TIOCSPGRP of ioctl_tty(2); Linux tty_jobctrl.c (__proc_set_tty, tty_check_change).
"""

from __future__ import annotations

import os
import struct
import termios
from typing import TYPE_CHECKING

from trapline.platform.injection import Data, Injection, Try
from trapline.sentry.kernel.tty import OUTSIDE
from trapline.sentry.state.files import TerminalSlave

if TYPE_CHECKING:
    from trapline.sentry.kernel.state import TTY, KernelState
    from trapline.sentry.state.files import AnyFile

_CLOSE, _IOCTL, _OPENAT, _AT_FDCWD = 3, 16, 257, -100
_FIRST_MAJOR = 136  # UNIX98_PTY_SLAVE_MAJOR


class Sessions:
    """`files` are the image's, `pool` where they are open in every process."""

    def __init__(self, state: KernelState, files: dict[int, AnyFile], pool: dict[int, int]) -> None:
        self._groups = state.groups
        #: By the session; those of terminals from outside are the caller's affair.
        self._ttys = {tty.sid: tty for tty in state.ttys.values() if tty.sid in state.groups and tty.number < OUTSIDE}
        self._open: dict[int, int] = {}  # descriptors by a terminal's number, readable ones before others
        for key, file in files.items():
            if not isinstance(file, TerminalSlave) or key not in pool:
                continue
            if file.flags & os.O_ACCMODE != os.O_WRONLY or file.terminal not in self._open:
                self._open[file.terminal] = pool[key]

    def lead(self, tgid: int, leader: Injection) -> None:
        """It has become the leader of its session, and has no children yet. OSError."""
        self._ask(tgid, leader, termios.TIOCSCTTY, 0)

    def foreground(self, at: dict[int, Injection]) -> None:
        """All processes are in their groups. OSError."""
        for sid, tty in self._ttys.items():
            if any(group.pgid == tty.foreground for group in self._groups.values()):
                self._ask(sid, at[sid], termios.TIOCSPGRP, Data(struct.pack("<i", tty.foreground)))

    def _ask(self, sid: int, leader: Injection, request: int, argument: int | Data) -> None:
        tty = self._ttys.get(sid)
        if tty is None:
            return
        number = _number(tty)
        if number in self._open:
            leader.run([(_IOCTL, self._open[number], request, argument)])
            return
        # No process has it open any more.
        (opened,) = leader.run(
            [Try((_OPENAT, _AT_FDCWD, Data(b"/dev/pts/%d\0" % number), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, 0))]
        )
        if opened >= 0:
            leader.run([(_IOCTL, opened, request, argument), (_CLOSE, opened)])


def _number(tty: TTY) -> int:
    """That in its name in /dev/pts."""
    return (os.major(tty.number) - _FIRST_MAJOR) * 256 + os.minor(tty.number)
