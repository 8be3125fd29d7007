"""Which paths inotify descriptors watch. The host tells their inodes by number only.

Looked for first where programs watch: what they have open, the directories above, their current directories and what
lies in these; then in the whole of the sandbox's root, up to a limit. A candidate is known for sure by a watch of our
own on it, whose fdinfo must name the same inode.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trapline.platform import descriptor_calls as calls
from trapline.sentry.state.files import PathFile

if TYPE_CHECKING:
    from trapline.platform.capture_files import Capture

_LIMIT = 400_000  # entries of directories that are looked at: half a second or so
_LINE = re.compile(r"inotify wd:[0-9a-f]+ ino:([0-9a-f]+) sdev:([0-9a-f]+)")
_IN_ATTRIB, _IN_DONT_FOLLOW = 4, 0x02000000
_LIKELY = (b"/tmp", b"/run", b"/dev", b"/etc", b"/var", b"/home", b"/root")
_NEVER = (b"/proc", b"/sys")
Inode = tuple[int, int]  # device, inode


def find(work: Capture, wanted: set[Inode]) -> dict[Inode, bytes]:
    """Paths as the sandbox's root shows them, of those that were found."""
    found: dict[Inode, bytes] = {}
    numbers = {inode for _, inode in wanted}
    for path in _likely(work):
        if len(found) == len(wanted):
            return found
        identity = _identity(work.root + path)
        if identity in wanted:
            found.setdefault(identity, path)
    roots = deque([*_directories(work), *_LIKELY, b"/"])
    seen: set[bytes] = set()
    left = _LIMIT
    while roots and left > 0 and len(found) < len(wanted):
        directory = roots.popleft()
        if directory in seen or directory in _NEVER:
            continue
        seen.add(directory)
        try:
            entries = list(os.scandir(work.root + directory))
        except OSError:
            continue
        left -= len(entries)
        for entry in entries:
            path = directory.rstrip(b"/") + b"/" + entry.name
            if entry.inode() in numbers:
                identity = _identity(work.root + path)
                if identity in wanted:
                    found.setdefault(identity, path)
            if entry.is_dir(follow_symlinks=False):
                roots.append(path)
    return found


def _directories(work: Capture) -> Iterator[bytes]:
    for host in work.processes:
        try:
            yield os.readlink(b"/proc/%d/cwd" % host)
        except OSError:
            continue


def _likely(work: Capture) -> Iterator[bytes]:
    """Without a path twice."""
    seen = set()
    starts = [file.path for file in work.result.files.values() if isinstance(file, PathFile)]
    for path in [*_directories(work), *starts, *_LIKELY]:
        while path not in seen:
            seen.add(path)
            yield path
            path = os.path.dirname(path)


def _identity(path: bytes) -> Inode | None:
    """How fdinfo names a path's inode."""
    watcher = calls.libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if watcher < 0:
        return None
    try:
        if calls.libc.inotify_add_watch(watcher, ctypes.c_char_p(path), _IN_ATTRIB | _IN_DONT_FOLLOW) < 0:
            return None
        for line in calls.info_of("self", watcher).lines:
            match = _LINE.match(line)
            if match is not None:
                device = int(match[2], 16)
                return os.makedev(device >> 20, device & 0xFFFFF), int(match[1], 16)
    finally:
        os.close(watcher)
    return None
