"""Doing something in the name of a process that does not exist yet: by a child with its id, which ends at once.

What a socket remembers of a process (SO_PEERCRED, SCM_CREDENTIALS) is its id, and stays after its end; the id is free
again for the process itself. Sources: clone3(2) (set_tid), capabilities(7) (SECBIT_NO_SETUID_FIXUP). """

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable

_SYS_CLONE3, _PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 435, 28, 4
_libc = ctypes.PyDLL(None, use_errno=True)  # does not let go of the interpreter, so the child has it too
_libc.syscall.restype = ctypes.c_long


def act_as(credentials: tuple[int, int, int] | None, action: Callable[[], None]) -> None:
    """Do it as (process, user, group); as ourselves where that is nobody's, or not possible. OSError of the action."""
    if credentials is None or not _differs(credentials):
        action()
        return
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = _clone(credentials[0])
    if child == 0:
        _in_child(credentials, action, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    if answer:
        number = int.from_bytes(answer, "little")
        raise OSError(number, os.strerror(number))


def _differs(credentials: tuple[int, int, int]) -> bool:
    process, user, group = credentials
    return (process not in (0, os.getpid())) or (user, group) != (os.geteuid(), os.getegid())


def _clone(process: int) -> int:
    """fork(2) with an id, or with any where that one is not to be had. OSError."""
    wanted = (ctypes.c_int * 1)(process)
    for count in (1, 0) if process else (0,):
        arguments = struct.pack(
            "11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted) if count else 0, count, 0
        )
        made = int(_libc.syscall(ctypes.c_long(_SYS_CLONE3), arguments, ctypes.c_long(len(arguments))))
        if made >= 0:
            return made
    raise OSError(ctypes.get_errno(), "clone3")


def _in_child(credentials: tuple[int, int, int], action: Callable[[], None], writer: int) -> None:
    number = 0
    try:
        _, user, group = credentials
        if (user, group) != (os.geteuid(), os.getegid()):
            _libc.prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0)
            try:
                os.setresgid(group, group, group)
                os.setresuid(user, user, user)
            except OSError:
                pass  # an id that does not exist here
        action()
    except OSError as error:
        number = error.errno or 5
    except BaseException:
        number = 5
    if number:
        os.write(writer, number.to_bytes(2, "little"))
    os._exit(0)
