"""A program on a terminal of ours, typed at and read as somebody who sits there would."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
import time

PATIENCE = 60  # s


class Typist:
    """Starts a command as the leader of a terminal's session."""

    def __init__(self, words: list[str], env: dict[str, str] | None = None, size: tuple[int, int] = (24, 80)) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
            os.execvpe(words[0], words, env or dict(os.environ))
        self.seen = b""

    def expect(self, text: str) -> None:
        """Read until this comes. AssertionError when it does not, or the program has ended."""
        wanted, end = text.encode(), time.monotonic() + PATIENCE
        while wanted not in self.seen:
            assert self._more(end), f"not seen: {wanted!r}, but {self.seen!r}"
        self.seen = self.seen.partition(wanted)[2]

    def send(self, text: str) -> None:
        """Type it, and Return."""
        self.type(text + "\n")

    def type(self, keys: str) -> None:
        """Type these and nothing else."""
        os.write(self.master, keys.encode())

    def interrupt(self) -> None:
        """^C."""
        self.type("\3")

    def end(self) -> int:
        """Read until the program has closed its terminal; its exit status."""
        end = time.monotonic() + PATIENCE
        while self._more(end):
            pass
        os.close(self.master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _more(self, end: float) -> bool:
        ready = select.select([self.master], [], [], max(0.0, end - time.monotonic()))[0]
        assert ready, f"nothing came within {PATIENCE} s after {self.seen!r}"
        try:
            found = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the other side open
            return False
        self.seen += found
        return bool(found)
