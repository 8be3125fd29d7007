"""A tracer over a guest memory made of pieces, with a clock that moves a millisecond at every reading."""

from __future__ import annotations

import errno
import os

from trapline.sentry.options import StraceOptions
from trapline.sentry.strace.tracer import Tracer
from trapline.sentry.syscalls.table import by_name

U64 = (1 << 64) - 1


class Pieces:
    """Memory of which only some pieces are there (protocol.Memory)."""

    def __init__(self) -> None:
        self.pieces: dict[int, bytes] = {}
        self._next = 0x10000

    def put(self, data: bytes) -> int:
        """Its address."""
        at, self._next = self._next, self._next + (len(data) + 0x1FFF) // 0x1000 * 0x1000
        self.pieces[at] = data
        return at

    def read(self, address: int, size: int) -> bytes:
        for at, data in self.pieces.items():
            if at <= address and address + size <= at + len(data):
                return data[address - at : address - at + size]
        raise OSError(errno.EFAULT, "nothing there")

    def write(self, address: int, data: bytes) -> None:
        raise AssertionError("a tracer writes nothing")

    def read_string(self, address: int, limit: int = 4096) -> bytes:
        for at, data in self.pieces.items():
            if at <= address < at + len(data):
                rest = data[address - at :][:limit]
                if b"\0" in rest:
                    return rest.partition(b"\0")[0]
                if len(rest) == limit:
                    raise OSError(errno.ENAMETOOLONG, "no end")
        raise OSError(errno.EFAULT, "nothing there")


class Traced:
    """A tracer, its memory, and the lines that it wrote."""

    def __init__(self, **options: object) -> None:
        self.memory = Pieces()
        self.lines: list[str] = []
        self.now = 1_000_000_000_000_000_000
        self.tracer = Tracer(
            StraceOptions(**options),  # type: ignore[arg-type]
            self.lines.append,
            self._clock,
            self._clock,
            os.strerror,
            lambda tid, fd: f"<fd{fd}>",
        )

    def _clock(self) -> int:
        self.now += 1_000_000
        return self.now

    def enter(self, tid: int, name: str, *args: int) -> None:
        row = by_name(name)
        assert row is not None
        self.tracer.entry(tid, row.nr, tuple(a & U64 for a in (*args, 0, 0, 0, 0, 0, 0)[:6]), self.memory)

    def call(self, name: str, *args: int, result: int = 0) -> str:
        """The line of a call that returns at once, without id, times and padding."""
        self.enter(1, name, *args)
        self.tracer.exit(1, result)
        return text(self.lines[-1])


def text(line: str) -> str:
    """A line without id, times and padding."""
    body = line.rstrip("\n").split(" ", 1)[1].lstrip().split(" ", 1)[1]
    head, _, tail = body.rpartition(" <")
    if head and tail.endswith(">") and tail[:-1].replace(".", "").isdigit():
        body = head
    head, equals, tail = body.rpartition(") ")
    return body if not equals else f"{head}) {tail.lstrip()}" if tail.lstrip().startswith("=") else _squeeze(body)


def _squeeze(body: str) -> str:
    import re

    return re.sub(r"\)\s+= ", ") = ", body)
