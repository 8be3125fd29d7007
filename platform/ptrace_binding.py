"""What is used of python-ptrace: constants and the structure of registers.

Its binding looks for the C library with ctypes.util.find_library, which imports subprocess and runs ldconfig: a
tenth of what a short program costs under trapline. The C library is in this process already, so it is given that
one, in place of its own module that looks for it.
"""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType

_libc = ModuleType("ptrace.ctypes_libc")
_libc.__dict__.update(libc=ctypes.CDLL(None, use_errno=True), LIBC_FILENAME=None)
sys.modules.setdefault("ptrace.ctypes_libc", _libc)

from ptrace.binding import linux_struct  # noqa: E402
from ptrace.binding.func import (  # noqa: E402
    PTRACE_CONT,
    PTRACE_GETEVENTMSG,
    PTRACE_GETREGS,
    PTRACE_GETSIGINFO,
    PTRACE_O_TRACECLONE,
    PTRACE_O_TRACEEXEC,
    PTRACE_O_TRACEFORK,
    PTRACE_O_TRACESYSGOOD,
    PTRACE_O_TRACEVFORK,
    PTRACE_SETREGS,
    PTRACE_SETSIGINFO,
    PTRACE_SYSCALL,
)

__all__ = [
    "PTRACE_CONT",
    "PTRACE_GETEVENTMSG",
    "PTRACE_GETREGS",
    "PTRACE_GETSIGINFO",
    "PTRACE_O_TRACECLONE",
    "PTRACE_O_TRACEEXEC",
    "PTRACE_O_TRACEFORK",
    "PTRACE_O_TRACESYSGOOD",
    "PTRACE_O_TRACEVFORK",
    "PTRACE_SETREGS",
    "PTRACE_SETSIGINFO",
    "PTRACE_SYSCALL",
    "linux_struct",
]
