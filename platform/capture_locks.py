"""Locks on files, from the "lock:" lines of fdinfo: flock(2), and fcntl(2)'s, of a process or of a description.

The line is that of /proc/locks: `lock: 1: POSIX  ADVISORY  WRITE 4711 00:1f:99 0 EOF` (Linux fs/locks.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.state.files import FileLock, RecordLock

if TYPE_CHECKING:
    from trapline.platform import descriptor_calls as calls
    from trapline.platform.capture_files import Capture


def of_table(work: Capture, table: int, number: int, file: int, info: calls.FdInfo) -> None:
    """Those of one descriptor. A process's lock shows on each that is open on its file, a description's on each
    that is one: they are taken once."""
    whole: list[FileLock] = []
    for line in info.lines:
        if not line.startswith("lock:"):
            continue
        words = line.split()[2:]
        if words[0] == "->" or len(words) < 7:
            continue  # waits for another one
        kind, exclusive = words[0], words[2] == "WRITE"
        start = int(words[5])
        length = 0 if words[6] == "EOF" else int(words[6]) - start + 1
        if kind == "POSIX":
            seen = (table, words[4], start, length)
            if seen not in work.locks_seen:
                work.locks_seen.add(seen)
                work.result.locks.setdefault(table, []).append(RecordLock(number, exclusive, start, length))
        elif kind == "FLOCK":
            whole.append(FileLock("flock", exclusive))
        elif kind == "OFDLCK":
            whole.append(FileLock("ofd", exclusive, start, length))
        else:
            work.result.notes.append(f"a lease of a file is not kept: {line.split(':', 1)[1].strip()}")
    if whole:
        work.file_locks.setdefault(file, whole)
