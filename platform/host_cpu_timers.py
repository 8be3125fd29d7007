"""POSIX timers of the sentry's own on guests' process CPU clocks.

timer_create(2) takes the CPU clock of another process (clock_getcpuclockid(3)), so nothing is polled and a
process that does not run costs nothing. They come with the host's tick, 1 to 4 ms late. The clock of another
process's *thread* is refused, so what concerns a thread hangs on its process: it may come early, never late.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

#: The signal that they come by, read from the sentry's signalfd.
SIGNAL = int(signal.SIGRTMIN) + 3
_NS = 1_000_000_000
_TIMER_CREATE, _TIMER_SETTIME, _TIMER_DELETE = 222, 223, 226
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class HostCpuTimers:
    """By key. A key's timer is kept while its process lives and its number is stable."""

    def __init__(self) -> None:
        self._timers: dict[str, tuple[int, int, int]] = {}  # key -> (host timer, number, host group)
        self._keys: dict[int, str] = {}
        self._next = 1

    def set(self, key: str, host_group: int, after: int) -> None:
        """Alarm after `after` ns more CPU of the process; -1 cancels. OSError when the process is dead."""
        if after < 0:
            self.cancel(key)
            return
        found = self._timers.get(key)
        if found is None or found[2] != host_group:
            self.cancel(key)
            found = self._create(key, host_group)
        spec = ctypes.create_string_buffer(struct.pack("<qqqq", 0, 0, *divmod(max(after, 1), _NS)), 32)
        if _syscall(_TIMER_SETTIME, found[0], 0, spec, None) < 0:
            self._forget(key)
            raise OSError(ctypes.get_errno(), "timer_settime: " + os.strerror(ctypes.get_errno()))

    def _create(self, key: str, host_group: int) -> tuple[int, int, int]:
        number, self._next = self._next, self._next + 1
        event = ctypes.create_string_buffer(struct.pack("<Qii", number, SIGNAL, 0).ljust(64, b"\0"), 64)
        timer = ctypes.c_int()
        clock = ~host_group << 3 | 2
        if _syscall(_TIMER_CREATE, ctypes.c_int(clock), event, ctypes.byref(timer)) < 0:
            raise OSError(ctypes.get_errno(), "timer_create: " + os.strerror(ctypes.get_errno()))
        found = (timer.value, number, host_group)
        self._timers[key] = found
        self._keys[number] = key
        return found

    def cancel(self, key: str) -> None:
        """Forget an alarm; one that is on its way is not heard any more."""
        self._forget(key)

    def _forget(self, key: str) -> None:
        found = self._timers.pop(key, None)
        if found is not None:
            self._keys.pop(found[1], None)
            _syscall(_TIMER_DELETE, found[0])

    def key(self, number: int) -> str | None:
        """Whose alarm came."""
        return self._keys.get(number)
