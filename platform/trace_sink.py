"""Where a trace goes: standard error or a file, one write a line, so that lines stay whole among the guest's own."""

from __future__ import annotations

import os
import select
from collections.abc import Callable


class TraceSink:
    """Writes text. After the first failure it is silent, and says so once by `on_failure`."""

    def __init__(self, path: str | None, on_failure: Callable[[str], None]) -> None:
        """OSError when the file cannot be made."""
        self.path = path
        self.on_failure = on_failure
        self.failed = False
        how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        # A descriptor of our own: a guest's O_APPEND or close elsewhere is none of ours.
        self._fd = os.open(path, how, 0o666) if path is not None else os.dup(2)

    def write(self, text: str) -> None:
        """All of it. Never raises."""
        if self.failed:
            return
        data = text.encode(errors="surrogateescape")
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                # Somebody made the terminal or pipe that we share non-blocking.
                select.select([], [self._fd], [])
            except OSError as error:
                self.failed = True
                self.on_failure("" if self.path is None else f"{self.path}: {os.strerror(error.errno or 0)}")
                return

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.failed = True
