"""A terminal session as asciicast v2: a header line, then one line `[seconds, kind, data]` for each event.

Kinds: "o" output, "i" input, "r" a new size "COLUMNSxROWS". Times are the sandbox's MONOTONIC since the session began.
Source: the format's description, https://docs.asciinema.org/manual/asciicast/v2/
"""

from __future__ import annotations

import codecs
import os
import time

import msgspec


class Recording:
    """Writes to `fd` at once, so that what was recorded is there whatever ends the session. `rate`: sandbox time per
    host time, as a fraction."""

    def __init__(self, fd: int, rate: tuple[int, int], with_input: bool) -> None:
        self.fd = fd
        self.error = 0  # errno of the write that failed: nothing is recorded from then on
        self._rate = rate
        self._with_input = with_input
        self._started = 0
        # A character may be split over two reads; what is no UTF-8 becomes U+FFFD.
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"o": decoder("replace"), "i": decoder("replace")}

    def begin(self, size: tuple[int, int], timestamp: int, command: str, environment: dict[str, str]) -> None:
        """Write the header. `size`: (rows, columns); `timestamp`: the sandbox's REALTIME, s."""
        self._started = time.monotonic_ns()
        header = {
            "version": 2,
            "width": size[1],
            "height": size[0],
            "timestamp": timestamp,
            "command": command,
            "env": environment,
        }
        self._write(msgspec.json.encode(header))

    def output(self, data: bytes) -> None:
        """What the terminal shows."""
        self._event("o", self._decoders["o"].decode(data))

    def input(self, data: bytes) -> None:
        """What is typed, if that was asked for: it has passwords in it."""
        if self._with_input:
            self._event("i", self._decoders["i"].decode(data))

    def resized(self, rows: int, columns: int) -> None:
        """The window has another size."""
        self._event("r", f"{columns}x{rows}")

    def end(self) -> None:
        """The rest of a character that never came whole."""
        self._event("o", self._decoders["o"].decode(b"", True))

    def _event(self, kind: str, text: str) -> None:
        if text and not self.error:
            passed = (time.monotonic_ns() - self._started) * self._rate[0] // self._rate[1]
            self._write(msgspec.json.encode([passed // 1000 / 1_000_000, kind, text]))

    def _write(self, line: bytes) -> None:
        line += b"\n"
        try:
            while line:
                line = line[os.write(self.fd, line) :]
        except OSError as error:
            self.error = error.errno or 5
