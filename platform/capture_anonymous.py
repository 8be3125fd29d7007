"""Descriptions without a file: eventfd, epoll, inotify, timerfd, signalfd, pidfd; by what fdinfo says of them.

Source: proc_pid_fdinfo(5), Linux fs/eventpoll.c (ep_show_fdinfo), fs/notify/fdinfo.c.
"""

from __future__ import annotations

import array
import fcntl
import os
import re
import select
import termios
import time
from typing import TYPE_CHECKING

from trapline.platform import descriptor_calls as calls
from trapline.platform import wall_timerfds
from trapline.sentry.state.files import (
    EventCounter,
    EventPoll,
    Interest,
    Notifier,
    ProcessFile,
    SignalFile,
    TimerFile,
    Watch,
)

if TYPE_CHECKING:
    from trapline.platform.capture_files import Capture, Held

_TARGET = re.compile(r"tfd:\s*(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)(?:.* ino:([0-9a-f]+) sdev:([0-9a-f]+))?")
#: A timer with a period of less than a look takes is never still for one.
_LOOKS = 10
_WATCH = re.compile(r"inotify wd:([0-9a-f]+) ino:([0-9a-f]+) sdev:([0-9a-f]+) mask:([0-9a-f]+)")


def describe(work: Capture, held: Held) -> None:
    """Make the record of one description."""
    kind = held.link.removeprefix(b"anon_inode:").strip(b"[]").decode(errors="replace")
    kind = "pidfd" if kind.startswith("pidfd:") else kind
    if kind == "eventpoll":
        work.found(held, EventPoll())
        work.later.append(lambda: _interests(work, held))
    elif kind == "inotify":
        _watches(work, held)
    elif kind in _SIMPLE:
        _SIMPLE[kind](work, held)
    else:
        work.drop(held, f"a descriptor of kind {kind}")


def _eventfd(work: Capture, held: Held) -> None:
    fields = held.info.fields
    work.found(
        held,
        EventCounter(count=int(fields["eventfd-count"], 16), semaphore=fields.get("eventfd-semaphore", "0") == "1"),
    )


def _signalfd(work: Capture, held: Held) -> None:
    work.found(held, SignalFile(mask=int(held.info.fields["sigmask"], 16)))


def _timerfd(work: Capture, held: Held) -> None:
    info = wall_timerfds.info_of("self", held.descriptor)
    if info is None:
        work.drop(held, "a timerfd that the host does not describe")
        return
    setting = work.cancelled.get(info.mark)
    if setting is not None:
        left = max(setting.deadline - time.clock_gettime_ns(time.CLOCK_REALTIME), 1) if setting.deadline else 0
        now = work.clocks.now(info.clock_id)
        interval, settings, ticks = setting.interval, setting.flags, setting.ticks
    else:
        left, interval, ticks, now = _left_and_ticks(work, held, info)
        settings = info.flags
    deadline = now + work.clocks.span_from_host(left) if left else 0
    work.found(
        held,
        TimerFile(
            clock=info.clock_id,
            deadline=deadline,
            interval=work.clocks.span_from_host(interval),
            settings=settings,
            ticks=ticks,
            cancelled=setting is not None,
        ),
    )


def _left_and_ticks(work: Capture, held: Held, info: wall_timerfds.Info) -> tuple[int, int, int, int]:
    """What is left of a period, the interval, the expirations that were not read, and the time then.

    All of one moment: an expiration between the looks would be counted and still be ahead, and each ns between the
    first look and the clock's would make the timer late by as much, in each save again.
    """
    calls.timerfd_gettime(held.descriptor)  # which counts the periods that have passed; until then there is one of them
    for _ in range(_LOOKS):
        before = wall_timerfds.info_of("self", held.descriptor) or info
        left, interval = calls.timerfd_gettime(held.descriptor)
        now = work.clocks.now(info.clock_id)
        after = wall_timerfds.info_of("self", held.descriptor) or info
        if before.ticks == after.ticks:
            break
    return left, interval, after.ticks, now


def _pidfd(work: Capture, held: Held) -> None:
    fields = held.info.fields
    host = int(fields.get("Pid", "-1"))
    thread = bool(held.flags & os.O_EXCL)
    if host <= 0:
        work.found(held, ProcessFile(process=0, thread=thread))
        return
    process = work.inside(host)
    if not process:
        work.drop(held, f"a pidfd of a process outside of the sandbox, {host}")
        return
    work.found(held, ProcessFile(process=process, thread=thread))


_SIMPLE = {"eventfd": _eventfd, "signalfd": _signalfd, "timerfd": _timerfd, "pidfd": _pidfd}


def _interests(work: Capture, held: Held) -> None:
    poll = work.result.files[held.key]
    if not isinstance(poll, EventPoll):
        return
    # A set that has nothing ready has reported all its edges.
    poller = select.poll()
    poller.register(held.descriptor, select.POLLIN)
    poll.ready = bool(poller.poll(0))
    met: dict[int, int] = {}
    for line in held.info.lines:
        match = _TARGET.match(line)
        if match is None:
            continue
        number = int(match[1])
        index = met[number] = met.get(number, -1) + 1
        target = _target(work, held, number, index, int(match[4], 16) if match[4] else -1)
        if target is None:
            work.drop(held, f"an epoll set with what no process of the sandbox has any more (added as {number})")
            return
        poll.interests.append(Interest(number, target.key, int(match[2], 16), int(match[3], 16)))


def _target(work: Capture, held: Held, number: int, index: int, inode: int) -> Held | None:
    """Which description an epoll set has; looking first at those of the same inode."""
    for like in (True, False):
        for other in work.held.values():
            if (other.status.st_ino == inode) == like and calls.is_target(
                other.descriptor, held.descriptor, number, index
            ):
                return other
        if inode < 0:
            break
    return None


def _watches(work: Capture, held: Held) -> None:
    unread = array.array("i", [0])
    fcntl.ioctl(held.descriptor, termios.FIONREAD, unread)
    if unread[0]:
        work.drop(held, "an inotify descriptor with events that were not read")
        return
    found: list[Watch] = []
    wanted: list[tuple[int, int, int, int]] = []
    for line in held.info.lines:
        match = _WATCH.match(line)
        if match is not None:
            number, inode, device, mask = (int(word, 16) for word in match.groups())
            # The kernel's own form of a device number (linux/kdev_t.h).
            wanted.append((number, inode, os.makedev(device >> 20, device & 0xFFFFF), mask))
    work.found(held, Notifier(watches=found))
    if wanted:
        work.later.append(lambda: _find_watched(work, held, wanted, found))


def _find_watched(
    work: Capture, held: Held, wanted: list[tuple[int, int, int, int]], found: list[Watch]
) -> None:
    from trapline.platform import watched_paths

    paths = watched_paths.find(work, {(device, inode) for _, inode, device, _ in wanted})
    for number, inode, device, mask in wanted:
        if (device, inode) not in paths:
            work.drop(held, "an inotify descriptor that watches a file which was not found by its number")
            return
        found.append(Watch(number, paths[device, inode], mask))
