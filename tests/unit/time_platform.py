"""The fake platform with all clocks, CPU clocks that can die, and timerfds."""

from __future__ import annotations

import errno
import os

from fake_platform import FakePlatform

from trapline.sentry.protocol import Gone

TAI_OFFSET = 37_000_000_000
TICK = 4_000_000


class TimePlatform(FakePlatform):
    """`boot` is how long the host was suspended; `told` lists every alarm that was set."""

    def __init__(self) -> None:
        super().__init__()
        self.boot = 0
        self.told: list[tuple[int, int]] = []
        self.cpu_user: dict[int, int] = {}
        self.dead: set[int] = set()
        self.timerfds: dict[int, tuple[int, int, int]] = {}
        self.opened: list[int] = []

    def host_clock(self, clock_id: int) -> int:
        clocks = {
            0: self.realtime, 1: self.monotonic, 4: self.monotonic, 5: self.realtime // TICK * TICK,
            6: self.monotonic // TICK * TICK, 7: self.monotonic + self.boot, 11: self.realtime + TAI_OFFSET,
        }  # fmt: skip
        return clocks[clock_id]

    def set_alarm(self, clock_id: int, when: int) -> None:
        self.told.append((clock_id, when))
        super().set_alarm(clock_id, when)

    def _used(self, ident: int, user: bool) -> int:
        if ident in self.dead:
            raise Gone(ident)
        return (self.cpu_user if user else self.cpu).get(ident, 0)

    def thread_cpu_ns(self, tid: int) -> int:
        return self._used(tid, False)

    def group_cpu_ns(self, tgid: int) -> int:
        return self._used(tgid, False)

    def thread_user_ns(self, tid: int) -> int:
        return self._used(tid, True)

    def group_user_ns(self, tgid: int) -> int:
        return self._used(tgid, True)

    def set_cpu_alarm(self, key: str, tid: int, whole_group: bool, after: int) -> None:
        if after >= 0 and tid in self.dead:
            raise Gone(tid)
        super().set_cpu_alarm(key, tid, whole_group, after)

    def descriptor(self, tid: int, fd: int) -> int:
        if (tid, fd) not in self.fdinfo:
            raise OSError(errno.EBADF, "fake")
        duplicate = os.open(os.devnull, os.O_RDONLY)
        self.opened.append(duplicate)
        self.timerfds[duplicate] = self.timerfds.get(-fd, (0, 0, 0))
        return duplicate

    def close_descriptor(self, fd: int) -> None:
        os.close(fd)

    def timerfd_settime(self, fd: int, flags: int, value: int, interval: int) -> None:
        self.timerfds[-4] = (flags, value, interval)

    def timerfd_gettime(self, fd: int) -> tuple[int, int]:
        _, value, interval = self.timerfds[fd]
        return value, interval
