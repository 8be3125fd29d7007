"""perf task-clock events: one thread's CPU time, exactly, and an alarm on it (perf_event_open(2)).

A software event: it needs no hardware counter, and is forbidden only where the sysctl kernel.perf_event_paranoid or a
seccomp policy says so. The alarm is a high-resolution timer that the host runs while the thread runs; it comes
within 0.1 ms. It is heard by a signal that carries the event's descriptor (fcntl(2), F_SETSIG), so an event needs
no ring buffer, of which an ordinary user may lock few.

A counter and an alarm are two events: a one-shot alarm stops its event, which counts no longer then.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct

#: The signal that they come by, read from the sentry's signalfd.
SIGNAL = int(signal.SIGRTMIN) + 4
_PERF_EVENT_OPEN, _CLOEXEC = 298, 8
_TYPE_SOFTWARE, _TASK_CLOCK = 1, 1
_DISABLED, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1, 1 << 5, 1 << 6
_IOC_DISABLE, _IOC_REFRESH, _IOC_PERIOD = 0x2401, 0x2402, 0x40082404
_F_SETSIG = 10
#: The host runs these timers no shorter (Linux perf_swevent_start_hrtimer).
_SHORTEST = 10_000
#: ns after which an event that nobody read is not believed; alarms are set for less.
TRUSTED = 100_000_000
#: How many readings one of an exact account is looked for in.
_WINDOW = 8
#: type, size, config, period, sample_type, read_format, flags, wakeup_events, bp_type, config1
_ATTRIBUTES = struct.Struct("=IIQQQQQIIQ")
_SIZE = 112
_COUNT = struct.Struct("=Q")
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _open(host: int, period: int, flags: int) -> int:
    packed = _ATTRIBUTES.pack(_TYPE_SOFTWARE, _SIZE, _TASK_CLOCK, period, 0, 0, flags, 1, 0, 0)
    attributes = ctypes.create_string_buffer(packed, _SIZE)
    fd = _syscall(_PERF_EVENT_OPEN, attributes, host, -1, -1, _CLOEXEC)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, "perf_event_open: " + os.strerror(number))
    return int(fd)


class TaskClock:
    """The CPU clock of one thread of a guest."""

    def __init__(self, host: int, group: int, used: int) -> None:
        """`used`: the host's account of the thread now, ns. OSError when it is dead or events are forbidden."""
        self.host = host
        self.group = group
        #: Who waits for the alarm, and until which count.
        self.wanted: dict[str, int] = {}
        #: Whether alarms come also while the thread is in the kernel: else one that is due there is lost.
        self.in_kernel = True
        self._armed = False
        try:
            self._counter = _open(host, 0, 0)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
            self.in_kernel = False
            self._counter = _open(host, 0, _EXCLUDE_KERNEL | _EXCLUDE_HV)
        flags = _DISABLED | (0 if self.in_kernel else _EXCLUDE_KERNEL | _EXCLUDE_HV)
        try:
            self.alarm = _open(host, 1 << 40, flags)
        except OSError:
            os.close(self._counter)
            raise
        fcntl.fcntl(self.alarm, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self.alarm, _F_SETSIG, SIGNAL)
        fcntl.fcntl(self.alarm, fcntl.F_SETFL, fcntl.fcntl(self.alarm, fcntl.F_GETFL) | os.O_ASYNC)
        self._last = self.count()
        self._base = used - self._last
        self._readings, self._least = 0, TRUSTED

    def count(self) -> int:
        """ns of CPU since the event was made."""
        return int(_COUNT.unpack(os.read(self._counter, 8))[0])

    def exact(self, used: int) -> int:
        """The thread's CPU time, where the host's account says `used`, which may be behind but not ahead.

        The event also counts what the account leaves out (interrupts, time that a hypervisor took: some ms a second
        have been seen), so it is believed only from one tick of the account to the next: what it was ahead at the
        least over some readings is taken off. While the thread stands in a call or at a stop the account is exact,
        and readings then say what the event gained.
        """
        count = self.count()
        if count - self._last > TRUSTED:
            self._base = used - count
        self._last = count
        ahead = self._base + count - used
        if ahead < 0:
            self._base -= ahead  # the account was behind when we began
            ahead = 0
        self._readings += 1
        self._least = min(self._least, ahead)
        if self._readings == _WINDOW:
            self._base -= self._least
            ahead -= self._least
            self._readings, self._least = 0, ahead
        return used + ahead

    def want(self, key: str, after: int) -> None:
        """Ring after `after` ns more CPU."""
        self.wanted[key] = self.count() + after
        self._arm()

    def forget(self, key: str) -> None:
        """Do not ring for this one. A ring that is on its way is heard as one that is early."""
        self.wanted.pop(key, None)
        if not self.wanted and self._armed:
            fcntl.ioctl(self.alarm, _IOC_DISABLE, 0)
            self._armed = False

    def rang(self) -> None:
        """The alarm came, and is off."""
        self._armed = False

    def _arm(self) -> None:
        period = max(min(self.wanted.values()) - self.count(), _SHORTEST)
        fcntl.ioctl(self.alarm, _IOC_PERIOD, _COUNT.pack(period))
        if not self._armed:
            # Once. Were it armed already, this would allow a second time.
            fcntl.ioctl(self.alarm, _IOC_REFRESH, 1)
            self._armed = True

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._counter)
        os.close(self.alarm)
