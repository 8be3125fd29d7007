"""The caller's side of a sandbox's own terminal: a process that copies between trapline's 0 and 1 and the master.

A process of its own, and not part of the sentry's loop: output does not wait for calls that are being served, nor they
for a caller who does not read. It ends when the terminal does, and then has passed on all that was written to it.

Sources: pty(7), termios(3), ioctl_tty(2), Linux drivers/tty/pty.c (a master reads EIO once the other side is closed and
all is read).
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import termios

from trapline.platform.caller_terminal import CallerTerminal
from trapline.platform.recording import Recording
from trapline.platform.signal_descriptor import SignalDescriptor
from trapline.platform.terminal_nodes import window_size

_CHUNK = 4096  # what a pipe that is ready takes without waiting (PIPE_BUF), and a master gives at a time
_UNSENT = 65536  # input that the terminal has not taken; no more is read beyond that
_IN, _OUT = 0, 1
_VEOF = 4


class Relay:
    """See the module. `terminal` is the caller's, `recording` what is to be written down; None for none."""

    def __init__(self, master: int, terminal: CallerTerminal | None, recording: Recording | None) -> None:
        self.master = master
        self.terminal = terminal
        self.recording = recording
        self.signals = SignalDescriptor((signal.SIGWINCH, signal.SIGCONT))
        self._typed = b""  # read and not yet given to the terminal
        self._shown = b""  # read from the terminal and not yet written
        self._last = b"\n"  # the last byte of input
        self._reading = True  # input has not ended
        os.set_blocking(master, False)

    def run(self) -> None:
        """Until the terminal has ended, or nobody takes its output any more."""
        self._take_over()
        while True:
            poller = select.poll()
            poller.register(self.signals.fd, select.POLLIN)
            if self._shown:
                poller.register(_OUT, select.POLLOUT)
            wanted = (0 if self._shown else select.POLLIN) | (select.POLLOUT if self._typed else 0)
            if wanted:  # a master whose other side is closed is always ready
                poller.register(self.master, wanted)
            if self._reading and len(self._typed) < _UNSENT:
                poller.register(_IN, select.POLLIN)
            for fd, _ in poller.poll():
                if fd == self.signals.fd:
                    self.signals.read()
                    self._take_over()
                elif fd == _OUT and self._shown:
                    if not self._show():
                        return
                elif fd == self.master:
                    if not self._shown and not self._hear():
                        return
                    self._send()
                elif fd == _IN and not self._read():
                    return

    # -- the caller's terminal
    def _take_over(self) -> None:
        """At the start, at each new size, and after trapline was stopped: keys go through as they are, and the sizes
        agree."""
        terminal = self.terminal
        if terminal is None:
            return
        if os.isatty(_IN) and self._in_front():
            make_raw(_IN)
            self._reading = True
        size = window_size(terminal)
        if size != struct.unpack("4H", fcntl.ioctl(self.master, termios.TIOCGWINSZ, bytes(8))):
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", *size))
            if self.recording is not None:
                self.recording.resized(size[0], size[1])

    def _in_front(self) -> bool:
        terminal = self.terminal
        return terminal is None or not terminal.controlling or terminal.foreground() == terminal.group

    # -- bytes
    def _read(self) -> bool:
        """Input. False when the caller's terminal is gone: so is ours then."""
        try:
            data = os.read(_IN, _CHUNK)
        except OSError:
            if os.isatty(_IN) and not self._in_front():
                self._reading = False  # in the background, until a SIGCONT
                return True
            data = b""
        if data:
            self._typed += data
            self._last = data[-1:]
            if self.recording is not None:
                self.recording.input(data)
        else:
            self._reading = False
            if self.terminal is not None and self.terminal.read_settings() is None:
                return False
            self._typed += self._end_of_input()
        self._send()
        return True

    def _end_of_input(self) -> bytes:
        """A terminal has no end; its VEOF makes a program's read return what was typed: nothing, at a line's start."""
        try:
            key: bytes = termios.tcgetattr(self.master)[6][_VEOF]
        except termios.error:
            return b""
        if key == b"\0":  # switched off (_POSIX_VDISABLE)
            return b""
        return key if self._last == b"\n" else key * 2

    def _send(self) -> None:
        if not self._typed:
            return
        try:
            self._typed = self._typed[os.write(self.master, self._typed) :]
        except BlockingIOError:
            return
        except OSError:
            self._typed = b""  # the other side is closed; what it wrote is still to be read

    def _hear(self) -> bool:
        try:
            data = os.read(self.master, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        if self.recording is not None:
            self.recording.output(data)
        self._shown = data
        return True

    def _show(self) -> bool:
        try:
            self._shown = self._shown[os.write(_OUT, self._shown) :]
        except BlockingIOError:
            return True  # the caller made it so
        except OSError:
            return False
        return True


def make_raw(fd: int) -> None:
    """What is typed passes as it is, and what is shown too: the sandbox's terminal does the rest (cfmakeraw(3))."""
    try:
        iflag, oflag, cflag, lflag, ispeed, ospeed, cc = termios.tcgetattr(fd)
        t = termios
        iflag &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
        oflag &= ~t.OPOST
        lflag &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
        cflag = cflag & ~(t.CSIZE | t.PARENB) | t.CS8
        cc[t.VMIN], cc[t.VTIME] = 1, 0
        # What was typed before is kept: it is input all the same.
        t.tcsetattr(fd, t.TCSANOW, [iflag, oflag, cflag, lflag, ispeed, ospeed, cc])
    except termios.error:
        return
