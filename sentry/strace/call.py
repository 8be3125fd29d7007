"""One call on its way: what the decoders of arguments look at."""

from __future__ import annotations

import struct
from collections.abc import Callable

from trapline.sentry.protocol import Gone, Memory
from trapline.sentry.syscalls.table_types import Syscall

MAX_ARRAY = 32  # elements shown


class Call:
    """A call of a task. `args` are typed by the table's signature, `raw` are the six registers."""

    __slots__ = (
        "args", "complete", "entered", "entry", "memory", "naming", "owned", "pending", "raw", "refused", "result",
        "row", "shown", "split", "stack", "started", "tid",
    )  # fmt: skip

    def __init__(
        self,
        tid: int,
        row: Syscall,
        raw: tuple[int, ...],
        args: tuple[int, ...],
        memory: Memory,
        naming: Callable[[int, int], str] | None = None,
    ) -> None:
        self.tid = tid
        self.row = row
        self.raw = raw
        self.args = args
        self.memory = memory
        self.naming = naming  # (tid, descriptor) -> `</path>`, with -y
        self.result = 0
        self.stack = 0  # rsp at the entry, where it matters
        self.owned = False  # the sentry's dispatcher served it
        self.refused = False  # the sandbox's filter did
        self.pending: int | None = None  # a result that may yet turn into a restart of the same call
        self.entry = ""  # the name and what was decoded at the entry
        self.split = 0  # the first argument that is printed at the end
        self.complete = True  # none of them is
        self.shown = False  # an unfinished line was printed
        self.started = 0  # monotonic, ns
        self.entered = 0  # wall clock, ns

    @property
    def failed(self) -> bool:
        """Whether it returned an error (or is to be restarted)."""
        return -4096 < self.result < 0

    def read(self, address: int, size: int) -> bytes | None:
        """Guest memory, or None where it cannot be read."""
        try:
            return self.memory.read(address, size)
        except (OSError, Gone, OverflowError, struct.error):
            return None

    def read_up_to(self, address: int, size: int) -> bytes | None:
        """Guest memory as far as it goes; None where not even its first byte can be read."""
        data = self.read(address, size)
        if data is not None or size <= 1:
            return data
        first = min(size, -address & 0xFFF or 4096)
        return self.read(address, first) if first < size else None

    def read_string(self, address: int, limit: int) -> tuple[bytes, bool] | None:
        """(up to `limit` bytes of a C string, whether there is more); None where it cannot be read."""
        try:
            return self.memory.read_string(address, limit), False
        except OSError as error:
            if error.errno == 36:  # ENAMETOOLONG: no NUL within the limit
                data = self.read(address, limit)
                return (data, True) if data is not None else None
            return None
        except (Gone, OverflowError, struct.error):
            return None

    def number(self, address: int, form: str) -> int | None:
        """One number of guest memory, by a format of the struct module."""
        data = self.read(address, struct.calcsize(form))
        return struct.unpack(form, data)[0] if data is not None else None

    def descriptor(self, fd: int) -> str:
        """A descriptor, with -y its path too."""
        if self.naming is None or fd < 0:
            return str(fd)
        return f"{fd}{self.naming(self.tid, fd)}"
