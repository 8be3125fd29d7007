"""A signalfd for the sentry's own signals (signalfd(2)): child stops, and what the user sends to trapline."""

from __future__ import annotations

import ctypes
import os
import signal
import struct

from trapline.platform.host_cpu_timers import SIGNAL as CPU_TIMER
from trapline.platform.task_clock_events import SIGNAL as CPU_EVENT

#: SIGIO comes in place of a CPU event's own signal when the queue is full (fcntl(2), F_SETSIG).
WATCHED = (
    signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGIO, CPU_TIMER, CPU_EVENT,
    signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT,
)  # fmt: skip
SI_KERNEL = 0x80
_SIZE = 128
_SIGCHLD = int(signal.SIGCHLD)
#: ssi_signo, ssi_errno, ssi_code, ssi_pid, ssi_uid, ssi_fd, five fields, ssi_int.
_HEAD = struct.Struct("<IiiI4xi20xi")
_libc = ctypes.CDLL(None, use_errno=True)


class SignalDescriptor:
    """Blocks the watched signals in this process and reads them instead."""

    def __init__(self, watched: tuple[int, ...] = WATCHED) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        mask = ctypes.c_uint64(sum(1 << (s - 1) for s in watched))
        self.fd = _libc.signalfd(-1, ctypes.byref(mask), os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "signalfd")

    def read(self) -> list[tuple[int, int, int]]:
        """(number, si_code, sigval, or for SIGCHLD the child's id, or a CPU event's descriptor) of what has come."""
        try:
            raw = os.read(self.fd, _SIZE * 8)
        except BlockingIOError:
            return []
        found = []
        for at in range(0, len(raw), _SIZE):
            number, _, code, child, fd, value = _HEAD.unpack_from(raw, at)
            found.append((number, code, child if number == _SIGCHLD else fd if number == CPU_EVENT else value))
        return found

    def close(self) -> None:
        """Give the signals back."""
        os.close(self.fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
