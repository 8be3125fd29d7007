"""Guests' timerfds when the sandbox's wall clock is stepped.

A guest's timerfd is a real one, on the host's clock. A step inside moves no host clock, so absolute REALTIME
timers are set anew, and those with TFD_TIMER_CANCEL_ON_SET are cancelled by hand. Nothing is kept about
timerfds before: at a step all descriptors of the sandbox are looked through (fdinfo has clock, flags and
setting), which finds them wherever they were inherited, duplicated or sent to. A timerfd that is on its way in a
message of a unix socket, and nowhere else, is not found.

One object can be met under many descriptors, and must be moved once. It is marked by its interval: one that
nobody asks for (292 years), in which the nanoseconds are a number of ours. A cancelled one keeps its mark, and
has expired, which makes it readable for poll and epoll, until somebody reads it (platform/wall_clock.py answers
ECANCELED) or sets it. Holding a duplicate instead would keep it in a guest's epoll set after the guest closed it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from trapline.sentry.protocol import Gone
from trapline.sentry.time.timekeeper import REALTIME, REALTIME_ALARM
from trapline.sentry.time.timer_setting import TIME_MAX

if TYPE_CHECKING:
    from trapline.platform.host_services import HostServices

ABSTIME, CANCEL_ON_SET = 1, 2
NSEC = 1_000_000_000
_LINK = "anon_inode:[timerfd]"
MARK_SECONDS = 9_199_999_999


class Info(msgspec.Struct):
    """What fdinfo says of a timerfd."""

    clock_id: int
    ticks: int
    flags: int
    interval: int  # ns

    @property
    def mark(self) -> int:
        """Our number in the interval; -1 when it is the guest's own."""
        seconds, nanoseconds = divmod(self.interval, NSEC)
        return nanoseconds if seconds == MARK_SECONDS else -1


class Setting(msgspec.Struct):
    """A timerfd's own setting while it is marked: host ns, `deadline` 0 for disarmed."""

    deadline: int
    interval: int
    ticks: int
    flags: int

    def move(self, span: int) -> None:
        """The sandbox's clock went `span` host ns forward."""
        if 0 < self.deadline < TIME_MAX:
            self.deadline = min(max(self.deadline - span, 1), TIME_MAX)


def parse(text: str) -> Info | None:
    """fdinfo of a timerfd; None for anything else."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        seconds, nanoseconds = fields["it_interval"].strip(" ()").split(", ")
        return Info(
            int(fields["clockid"]),
            int(fields["ticks"]),
            int(fields["settime flags"], 8),
            int(seconds) * NSEC + int(nanoseconds),
        )
    except (KeyError, ValueError):
        return None


class WallTimerfds:
    """See the module."""

    def __init__(self, host: HostServices) -> None:
        self._host = host
        #: Those that are cancelled and whose guests have not been told, by their marks.
        self.cancelled: dict[int, Setting] = {}
        self._number = 0

    def cancelled_before(self, mark: int, setting: Setting) -> None:
        """One that a restore has made, with this mark."""
        self.cancelled[mark] = setting
        self._number = max(self._number, mark)

    # -- a step
    def moved(self, tids: Iterable[int], span: int) -> None:
        """Let all timerfds of these tasks, one of each process, follow a step of `span` host ns."""
        met: dict[int, tuple[int, Setting]] = {}
        again: set[int] = set()
        try:
            for tid in tids:
                for fd in self.timerfds_of(tid):
                    self._collect(tid, fd, met, again)
        finally:
            for mark, (duplicate, setting) in met.items():
                try:
                    setting.move(span)
                    self._apply(duplicate, setting, mark)
                finally:
                    os.close(duplicate)
        for mark in list(self.cancelled):
            if mark in again:
                self.cancelled[mark].move(span)
            elif mark not in met:
                del self.cancelled[mark]  # nobody has it any more

    def timerfds_of(self, tid: int) -> Iterator[int]:
        """The descriptors of a task that are timerfds."""
        try:
            place = f"/proc/{self._host.find(tid).host}/fd"
            names = os.listdir(place)
        except (OSError, Gone):
            return
        for name in names:
            try:
                if os.readlink(f"{place}/{name}") == _LINK:
                    yield int(name)
            except OSError:
                continue  # closed meanwhile

    def _collect(self, tid: int, fd: int, met: dict[int, tuple[int, Setting]], again: set[int]) -> None:
        """Take the setting of one descriptor's timerfd, if the step concerns it and it was not met before."""
        try:
            duplicate = self._host.descriptor(tid, fd)
        except (OSError, Gone):
            return
        kept = False
        try:
            info = info_of("self", duplicate)
            if info is None or info.clock_id not in (REALTIME, REALTIME_ALARM) or not info.flags & ABSTIME:
                return
            if info.mark in self.cancelled:
                again.add(info.mark)
            if info.mark >= 0:
                return
            deadline = self._deadline(duplicate)
            if not deadline and not info.flags & CANCEL_ON_SET:
                return  # disarmed, or expired once and not read yet
            info = info_of("self", duplicate) or info  # periods that have passed are counted by now
            self._number = (self._number + 1) % NSEC
            self._set(duplicate, info.flags, TIME_MAX, MARK_SECONDS * NSEC + self._number)
            met[self._number] = duplicate, Setting(deadline, info.interval, info.ticks, info.flags)
            kept = True
        finally:
            if not kept:
                os.close(duplicate)

    def _deadline(self, duplicate: int) -> int:
        """When it expires next on the host's clock: never early, and late by what it takes to ask. 0: never."""
        best = (TIME_MAX, 0)
        for _ in range(3):
            before = self._host.host_realtime()
            left = self._host.timerfd_gettime(duplicate)[0]
            after = self._host.host_realtime()
            if not left:
                return 0
            best = min(best, (after - before, after + left))
        # A timer for the end of time stays one.
        return best[1] if best[1] < TIME_MAX - NSEC else TIME_MAX

    def _apply(self, duplicate: int, setting: Setting, mark: int) -> None:
        if setting.flags & CANCEL_ON_SET:
            self.cancelled[mark] = setting
            self._set(duplicate, setting.flags, 1, MARK_SECONDS * NSEC + mark)  # expires at once
            return
        deadline = setting.deadline
        if setting.ticks and deadline < TIME_MAX:
            # Not read yet: expired again at its first time, the host counts the periods from there, as Linux does.
            deadline = max(deadline - setting.ticks * setting.interval, 1)
        self._set(duplicate, setting.flags, deadline, setting.interval)

    def _set(self, duplicate: int, flags: int, value: int, interval: int) -> None:
        try:
            self._host.timerfd_settime(duplicate, flags, value, interval)
        except OSError:
            return  # ECANCELED by a step of the host's clock: it is set all the same

    # -- afterwards
    def take(self, tid: int, host: int, fd: int) -> bool:
        """A guest reads a descriptor: whether that is of a cancelled timerfd. If so, it goes on as it was set,
        with nothing to read; one whose time has come meanwhile stands still (Linux timerfd_read_iter)."""
        try:
            if os.readlink(f"/proc/{host}/fd/{fd}") != _LINK:
                return False
        except OSError:
            return False
        info = info_of(str(host), fd)
        if info is None or info.mark not in self.cancelled:
            return False
        duplicate = self._host.descriptor(tid, fd)
        try:
            setting = self.cancelled.pop(info.mark)
            due = setting.deadline <= self._host.host_realtime()
            self._set(duplicate, setting.flags, 0 if due else setting.deadline, setting.interval)
        finally:
            os.close(duplicate)
        return True

    def uncancel(self, duplicate: int) -> bool:
        """A guest sets a timerfd: whether it was cancelled, which it is not any more."""
        info = info_of("self", duplicate) if self.cancelled else None
        return info is not None and self.cancelled.pop(info.mark, None) is not None

    def setting(self, duplicate: int) -> tuple[int, int] | None:
        """What timerfd_gettime(2) has to say of a cancelled one: (remaining, interval), host ns; else None."""
        info = info_of("self", duplicate) if self.cancelled else None
        found = self.cancelled.get(info.mark) if info is not None else None
        if found is None:
            return None
        return max(found.deadline - self._host.host_realtime(), 0) if found.deadline else 0, found.interval


def info_of(process: str, fd: int) -> Info | None:
    """/proc/PROCESS/fdinfo/FD of a timerfd; None for anything else, or when it is closed."""
    try:
        with open(f"/proc/{process}/fdinfo/{fd}") as file:
            return parse(file.read())
    except OSError:
        return None
