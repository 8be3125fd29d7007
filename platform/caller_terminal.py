"""The terminal that trapline was started on: what it is, who has its foreground, and how it was set.

Sources: tcsetpgrp(3), termios(3), credentials(7) (sessions, orphaned process groups).
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import struct
import termios
from typing import Any

_TIOCGDEV, _TCGETS2, _TCSETS2 = 0x80045432, 0x802C542A, 0x402C542B  # asm-generic/ioctls.h
SETTINGS_SIZE = 44  # struct termios2

#: How the first guest's process group is to be made; see `CallerTerminal.group_of_guest`.
SHARED, JOB, ORPHANED = "", "job", "orphaned"
#: Signals by which a terminal, or somebody in its place, stops jobs.
STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


class CallerTerminal:
    """One of the standard descriptors that is a terminal, or else the controlling terminal by its own descriptor.

    Nothing here raises: a terminal may be hung up at any time, and is then nobody's.
    """

    __slots__ = ("caller", "controlling", "device", "fd", "group", "name", "settings", "standard")

    def __init__(self, fd: int, standard: bool) -> None:
        self.fd = fd
        self.standard = standard  # one of 0, 1 and 2
        self.group = os.getpgrp()  # trapline's own
        try:
            self.caller = os.getpgid(os.getppid())  # the shell's, perhaps
        except OSError:
            self.caller = -1  # outside of our pid namespace
        self.settings = self.read_settings()  # those that it is to have again
        self.controlling = self.foreground() > 0
        try:
            (self.device,) = struct.unpack("I", fcntl.ioctl(fd, _TIOCGDEV, bytes(4)))
        except OSError:
            self.device = 0
        try:
            self.name = os.ttyname(fd) if standard else ""
        except OSError:
            self.name = ""

    def read_settings(self) -> list[Any] | None:
        """termios; None when it is hung up."""
        try:
            return termios.tcgetattr(self.fd)
        except termios.error:
            return None

    def restore(self) -> None:
        """Give it the settings that it had. In the background too, so ask before whose it is."""
        if self.settings is None:
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            termios.tcsetattr(self.fd, termios.TCSANOW, self.settings)
        except termios.error:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def all_settings(self) -> bytes:
        """struct termios2, for a checkpoint; b"" when it is hung up."""
        try:
            return fcntl.ioctl(self.fd, _TCGETS2, bytes(SETTINGS_SIZE))
        except OSError:
            return b""

    def set_up(self, settings: bytes) -> None:
        """struct termios2 of another terminal, from a checkpoint. It is the guests' then, and may refuse some."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            fcntl.ioctl(self.fd, _TCSETS2, settings)
        except OSError:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def foreground(self) -> int:
        """The foreground process group, a host id; -1 where it is not our controlling terminal (any more)."""
        try:
            return os.tcgetpgrp(self.fd)
        except OSError:
            return -1

    def give(self, group: int) -> bool:
        """Make a process group of our session the foreground one; whether that was possible."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            os.tcsetpgrp(self.fd, group)
            return True
        except OSError:
            return False  # it has ended, or the terminal is gone
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def group_of_guest(self) -> str:
        """Whether the first guest leads a process group, as it would if the caller had started it in trapline's place.

        JOB where trapline is a job of a shell: alone in its group as far as can be seen, that is, not first in a
        pipeline, whose other processes must stay in the foreground together with the guest. ORPHANED where its
        group has no parent in its session, as a session leader's: such a group is not stopped by the terminal's keys,
        and the guest's must not be either. Else SHARED: the guest stays in trapline's group.
        """
        if not (self.standard and self.controlling) or self.group != os.getpid() or any(map(_is_pipe, (0, 1))):
            return SHARED
        parent = os.getppid()
        return JOB if parent and _session_of(parent) == os.getsid(0) else ORPHANED


def find() -> CallerTerminal | None:
    """None where there is none at all."""
    for fd in (0, 1, 2):
        if os.isatty(fd):
            return CallerTerminal(fd, True)
    try:
        return CallerTerminal(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC), False)
    except OSError:
        return None


def edits_a_line(settings: list[Any] | None) -> bool:
    """Whether these are settings as a shell has them that edits its input: no lines, but the keys' signals."""
    flags = settings[3] if settings is not None else 0
    return not flags & termios.ICANON and bool(flags & termios.ISIG)


def is_gone(group: int) -> bool:
    """Whether a process group has no member any more."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _is_pipe(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1
