"""eventfd, timerfd, signalfd, epoll, inotify and pidfds of the dead, made again. See restore_files.py."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trapline.platform import descriptor_calls as calls
from trapline.platform.wall_timerfds import MARK_SECONDS
from trapline.sentry.state.files import (
    EventCounter,
    EventPoll,
    Interest,
    Notifier,
    ProcessFile,
    SignalFile,
    TimerFile,
)

if TYPE_CHECKING:
    from trapline.platform.restore_files import Pool

_SYS_EPOLL_CTL, _SYS_SIGNALFD4 = 233, 289
_NSEC = 1_000_000_000
_TFD_IOC_SET_TICKS = 0x40085400
_ABSTIME = 1
_EVENTS_MOST = (1 << 64) - 2
_ADD = 1  # EPOLL_CTL_ADD
_SEMAPHORE = 1  # EFD_SEMAPHORE
_EDGE, _ONE_SHOT = 1 << 31, 1 << 30
_EXCLUSIVE, _WAKE_UP = 1 << 28, 1 << 29
#: What an interest keeps when EPOLLONESHOT has switched it off (Linux EP_PRIVATE_BITS).
_PRIVATE = _EDGE | _ONE_SHOT | _EXCLUSIVE | _WAKE_UP
_ALL_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLPRI | select.EPOLLRDHUP
_IN_ATTRIB, _IN_DONT_FOLLOW, _IN_MASK_CREATE = 4, 0x02000000, 0x10000000


def open_anonymous(pool: Pool) -> None:
    """All of these. OSError."""
    for key, file in pool.image.files.items():
        if isinstance(file, EventCounter):
            _put(pool, key, _eventfd(file))
        elif isinstance(file, SignalFile):
            mask = file.mask.to_bytes(8, "little")
            _put(pool, key, calls.call("signalfd4", _SYS_SIGNALFD4, -1, mask, 8, os.O_CLOEXEC))
        elif isinstance(file, TimerFile):
            _put(pool, key, _timerfd(pool, key, file))
        elif isinstance(file, EventPoll):
            _put(pool, key, select_epoll())
            pool.watch.append(lambda key=key, file=file: _fill_set(pool, key, file))  # type: ignore[misc]
        elif isinstance(file, Notifier):
            made = calls.libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
            if made < 0:
                raise calls.failure("inotify_init1")
            _put(pool, key, made)
            pool.finish.append(lambda key=key, file=file: _watch(pool, key, file))  # type: ignore[misc]
        elif isinstance(file, ProcessFile) and not file.process:
            _put(pool, key, _dead(file))
        else:
            continue
        pool.set_flags(key, file)


def _put(pool: Pool, key: int, made: int) -> None:
    pool.put(key, made)


def _eventfd(file: EventCounter) -> int:
    made = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | (_SEMAPHORE if file.semaphore else 0))
    if file.count:
        os.eventfd_write(made, min(file.count, _EVENTS_MOST))
    return made


def _timerfd(pool: Pool, key: int, file: TimerFile) -> int:
    made = int(calls.libc.timerfd_create(file.clock, os.O_CLOEXEC | os.O_NONBLOCK))
    if made < 0:
        raise calls.failure("timerfd_create")
    clocks = pool.clocks
    interval, count = clocks.span_to_host(file.interval), file.ticks
    if file.cancelled:
        # It can be read, and its reader is told (wall_timerfds.py); it is known by this mark.
        marked = struct.pack("qqqq", MARK_SECONDS, key, 0, 1)
        if calls.libc.timerfd_settime(made, file.settings, marked, None) < 0 and ctypes.get_errno() != errno.ECANCELED:
            raise calls.failure("timerfd_settime")
        return made
    if file.deadline or file.settings & ~_ABSTIME:
        left = clocks.span_to_host(file.deadline - clocks.now(file.clock)) if file.deadline else 0
        if file.deadline and left <= 0:
            # Its periods went on meanwhile: they are counted, and it keeps its phase.
            missed = -left // interval + 1 if interval else 0
            count += missed
            left = left + missed * interval if missed else 1
        if file.settings & _ABSTIME and file.clock in (0, 8) and left:
            # It follows steps of the wall clock, so the host must know it as absolute.
            when = time.clock_gettime_ns(time.CLOCK_REALTIME) + left
        else:
            when = left
        settings = file.settings if file.clock in (0, 8) else 0
        setting = struct.pack("qqqq", *divmod(interval, _NSEC), *divmod(when, _NSEC))
        if calls.libc.timerfd_settime(made, settings, setting, None) < 0 and ctypes.get_errno() != errno.ECANCELED:
            raise calls.failure("timerfd_settime")
    if count:
        ticks = struct.pack("Q", count)
        try:
            fcntl.ioctl(made, _TFD_IOC_SET_TICKS, ticks)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            pool.notes.append("a timerfd's expirations that were not read are lost: the host has no CHECKPOINT_RESTORE")
    return made


def _dead(file: ProcessFile) -> int:
    """A pidfd of a process that has ended and was waited for."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    made = os.pidfd_open(child)
    os.waitpid(child, 0)
    return int(made)


# -- epoll
def select_epoll() -> int:
    """A new set's descriptor."""
    made = calls.libc.epoll_create1(os.O_CLOEXEC)
    if made < 0:
        raise calls.failure("epoll_create1")
    return int(made)


@contextmanager
def at_number(number: int, descriptor: int) -> Iterator[None]:
    """While it lasts, a descriptor has this number too. What has it otherwise is put aside."""
    aside = -1
    try:
        aside = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, number + 1)
    except OSError:
        pass  # free
    os.dup2(descriptor, number)
    try:
        yield
    finally:
        if aside >= 0:
            os.dup2(aside, number)
            os.close(aside)
        else:
            os.close(number)


def _fill_set(pool: Pool, key: int, file: EventPoll) -> None:
    """Add what it has, by the numbers that it knows it by. What was switched off, and edges that were reported, are
    reported to nobody here, and so to no guest again."""
    poll = pool.at[key]
    own = [interest for interest in file.interests if interest.file in pool.at]
    off = [i for i in own if i.events & _ONE_SHOT and not i.events & ~_PRIVATE]
    for interest in off:
        _switched_off(pool, poll, interest)
    edges = [i for i in own if i not in off and i.events & _EDGE and not i.events & _ONE_SHOT]
    rest = [i for i in own if i not in off and i not in edges]
    for interest in edges:
        _add(pool, poll, interest, interest.events)
    if edges and not file.ready:
        _harvest(poll, len(edges) + len(off))
    for interest in rest:
        _add(pool, poll, interest, interest.events)


def _add(pool: Pool, poll: int, interest: Interest, events: int) -> None:
    with at_number(interest.descriptor, pool.at[interest.file]):
        _control(poll, _ADD, interest, events)


def _control(poll: int, operation: int, interest: Interest, events: int) -> None:
    event = struct.pack("<IQ", events, interest.data)
    calls.call("epoll_ctl", _SYS_EPOLL_CTL, poll, operation, interest.descriptor, event)


def _switched_off(pool: Pool, poll: int, interest: Interest) -> None:
    """Let it report something, which switches it off; where there is nothing to report, it only asks for what cannot be
    left out (EPOLLERR, EPOLLHUP)."""
    poller = select.poll()
    descriptor = pool.at[interest.file]
    poller.register(descriptor, select.POLLIN | select.POLLOUT | select.POLLPRI | select.POLLRDHUP)
    something = bool(poller.poll(0))
    _add(pool, poll, interest, interest.events | (_ALL_EVENTS if something else 0))
    if something:
        _harvest(poll, 1)


def _harvest(poll: int, most: int) -> None:
    """Take the events that there are."""
    events = ctypes.create_string_buffer(12 * most)
    if calls.libc.epoll_wait(poll, events, most, 0) < 0:
        raise calls.failure("epoll_wait")


# -- inotify
def _watch(pool: Pool, key: int, file: Notifier) -> None:
    """Watches get ascending numbers: those that lie between are used up."""
    at = pool.at[key]
    last = 0
    for watch in sorted(file.watches, key=lambda watch: watch.number):
        while last < watch.number - 1:
            last = _add_watch(at, b"/", _IN_ATTRIB)
            calls.libc.inotify_rm_watch(at, last)
            os.read(at, 4096)  # IN_IGNORED
        got = _add_watch(at, watch.path, watch.mask | _IN_DONT_FOLLOW)
        if got != watch.number:
            raise OSError(errno.EBUSY, "the watch has another number than when it was saved", os.fsdecode(watch.path))
        last = got


def _add_watch(at: int, path: bytes, mask: int) -> int:
    got = calls.libc.inotify_add_watch(at, ctypes.c_char_p(path), ctypes.c_uint32(mask))
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fsdecode(path))
    return int(got)
