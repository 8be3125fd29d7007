"""The sentry's log: one line a message, as text or JSON, to a file or to standard error.

Without --log nothing is written unless --debug is given, which writes to standard error: a program's own
standard error stays its own. Only what a program cannot have here is said there in any case (`tell`).
"""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Log:
    """See the module. OSError when the file cannot be opened; what cannot be written later is lost."""

    def __init__(self, path: str | None, form: str = "text", debug: bool = False) -> None:
        self._file: TextIO | None = open(path, "a", encoding="utf-8", buffering=1) if path else None
        self._json = form == "json"
        self._debug = debug

    def info(self, text: str) -> None:
        """Only in a log file, or with --debug."""
        self._write("info", text, quiet=not self._debug)

    def warning(self, text: str) -> None:
        """Something that a user should know."""
        self._write("warning", text, quiet=not self._debug and self._file is None)

    def tell(self, text: str) -> None:
        """What a program cannot have here: on standard error always, and in the log file."""
        say(f"trapline: {text}")
        self._write("warning", text, quiet=True)

    def _write(self, level: str, text: str, quiet: bool) -> None:
        if self._file is None:
            if not quiet:
                say(f"trapline: {text}")
            return
        now = time.time()
        if self._json:
            import json

            line = json.dumps({"time": now, "level": level, "message": text})
        else:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03d}"
            line = f"{stamp} {level} {text}"
        try:
            self._file.write(line + "\n")
        except OSError as error:
            # A disk that is full is no reason to end the programs that run.
            self.close()
            say(f"trapline: the log cannot be written any more: {error.strerror}")

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                return  # what could not be written before; it was said then


def say(text: str) -> None:
    """A line on standard error, if there is one that takes it: never an error, which would end the programs too."""
    if sys.stderr is None:  # closed by the caller
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        return  # nobody listens
