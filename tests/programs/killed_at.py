"""trapline, brought to an end at one exact step: `killed_at.py SPEC VERB ...`, SPEC being JSON of `Steps`' arguments.

A step is a call of one of trapline's own functions, or of one of the system's from such a function: its name is
`module:function`, with `/call` behind it for the latter (`partial:Partial.finish/rename`). Nothing of trapline is
changed for that: the interpreter tells of each call (sys.setprofile), in the forks of the sentry and in its threads too.

The process that has begun kills itself there (SIGKILL). A fork of it may be in a pid namespace, where it cannot, so it
stands still and says so in the shared file, and whoever has started us kills what is to be killed. In place of that a
call of the system's may fail.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from inspect import CO_OPTIMIZED
from types import FrameType
from typing import Any

#: C functions that are steps of their own, where one of trapline's calls them: what changes something outside.
CALLS = frozenset(
    ["fork", "mkdir", "open", "rename", "unlink", "rmdir", "write", "pwrite", "pwritev", "pread", "preadv", "copy_file_range", "sendfile", "ftruncate", "fsync", "fdatasync", "kill", "pidfd_send_signal", "mount", "flock", "send", "sendmsg", "recv", "connect", "bind", "dup2", "setns", "unshare", "pipe2", "memfd_create"]
)
#: The shared file: how many processes have a part of it; the id, in its namespace, of the one that stands still. Then
#: the parts: how many bytes are in use, and the names of the steps, a line each.
_HEADER, _PART, _PARTS = 4096, 1 << 20, 16


class Steps:
    """`begin`: the step from which on they count, in each process. `at`, `nth`: the one that is the last, counted from
    1 in each process. `file`: the shared one. `trace`: write down all steps there. `forks`: the last one is not the
    process's own that has begun, but a fork's. `errors`: it is a call of the system's, and fails with the error of this
    number. `again`: a file with another `at`, `nth` and error for each time that `begin` comes."""

    def __init__(
        self,
        begin: str,
        file: str,
        at: str = "",
        nth: int = 1,
        trace: bool = False,
        forks: bool = False,
        errors: int = 0,
        again: str = "",
    ) -> None:
        import trapline

        self._begin, self._at, self._left, self._trace, self._forks = begin, at, nth, trace, forks
        self._error, self._again = errors, again
        self._begun = 0
        self._names: dict[Any, str] = {}
        root = os.path.dirname(trapline.__file__ or "")
        self._roots = tuple(os.path.realpath(f"{root}/{name}") + "/" for name in ("platform", "sentry"))
        with open(file, "w+b") as shared:
            shared.truncate(_HEADER + _PART * _PARTS)
            self._shared = mmap.mmap(shared.fileno(), 0)
        self._part = self._owner = 0
        if errors:
            for name in CALLS & set(dir(os)):
                setattr(os, name, self._refusing(name, getattr(os, name)))

    def _refusing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A call of the system's that may fail. (What looks at calls cannot: it is not asked any more once it raises.)"""

        def call(*words: Any, **more: Any) -> Any:
            by = self._name(sys._getframe(1)) if self._begun else ""
            if by:
                self._step(f"{by}/{name}")
            return function(*words, **more)

        return call

    def look(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call":
            name = self._names.get(code)
            if name is None:
                name = self._names[code] = self._name(frame)
        elif event == "c_call" and self._begun and not self._error and argument.__name__ in CALLS:
            name = self._names.get(code)
            if name is None:
                name = self._names[code] = self._name(frame)
            name = name and f"{name}/{argument.__name__}"
        else:
            return
        if name:
            self._step(name)

    def _step(self, name: str) -> None:
        if not self._begun:
            if name != self._begin:
                return
            self._begun = os.getpid()
        if self._again and name == self._begin:
            with open(self._again) as file:
                self._at, self._left, self._error = json.load(file)
        if self._trace:
            self._write(name)
        if name == self._at and self._forks == (os.getpid() != self._begun):
            self._left -= 1
            if not self._left:
                if self._error:
                    raise OSError(self._error, os.strerror(self._error))
                if not self._forks:
                    os.kill(os.getpid(), signal.SIGKILL)
                struct.pack_into("<Q", self._shared, 8, os.getpid())
                while True:
                    time.sleep(1)  # until we are killed

    def _write(self, name: str) -> None:
        if self._owner != os.getpid():
            self._owner = os.getpid()
            (self._part,) = struct.unpack_from("<Q", self._shared, 0)
            struct.pack_into("<Q", self._shared, 0, self._part + 1)
        at = _HEADER + self._part * _PART
        (used,) = struct.unpack_from("<Q", self._shared, at)
        line = name.encode() + b"\n"
        if self._part < _PARTS and 8 + used + len(line) <= _PART:
            self._shared[at + 8 + used : at + 8 + used + len(line)] = line
            struct.pack_into("<Q", self._shared, at, used + len(line))

    def _name(self, frame: FrameType) -> str:
        """Of a function of trapline's; "" for another's, and for what is no function with a name (a class is executed, too)."""
        code = frame.f_code
        if not code.co_flags & CO_OPTIMIZED or code.co_name.startswith("<") or not os.path.realpath(code.co_filename).startswith(self._roots):
            return ""
        qualified = getattr(code, "co_qualname", code.co_name)
        return f"{os.path.basename(code.co_filename).removesuffix('.py')}:{qualified}"


def stands_still(file: str) -> int:
    """The id, in its own namespace, of the fork that has come to its last step; 0: none has."""
    try:
        with open(file, "rb") as shared:
            shared.seek(8)
            return int.from_bytes(shared.read(8), "little")
    except FileNotFoundError:
        return 0


def traced(file: str) -> list[list[str]]:
    """The steps of each process, the one that has begun first."""
    with open(file, "rb") as shared:
        data = shared.read()
    found = []
    for part in range(min(_PARTS, int.from_bytes(data[:8], "little"))):
        at = _HEADER + part * _PART
        used = int.from_bytes(data[at : at + 8], "little")
        found.append(data[at + 8 : at + 8 + used].decode().splitlines())
    return found


if __name__ == "__main__":
    from trapline.__main__ import main

    steps = Steps(**json.loads(sys.argv[1]))
    del sys.argv[1]
    threading.setprofile(steps.look)
    sys.setprofile(steps.look)
    sys.exit(main())
