"""What the host says of a task that is not known yet."""

from __future__ import annotations

import os

from trapline.sentry.protocol import Gone

_PF_EXITING = 4  # linux/sched.h; /proc/PID/stat, "flags"


def read_ids(host: int) -> tuple[int, int, int]:
    """(host thread group, tid in the sandbox, host parent) from /proc/PID/status. Gone."""
    text = _status(host)
    return int(_field(text, b"\nTgid:")), int(_field(text, b"\nNSpid:").split()[-1]), int(_field(text, b"\nPPid:"))


def blocked(host: int) -> int:
    """The set of signals that this task blocks. Gone."""
    return int(_field(_status(host), b"\nSigBlk:"), 16)


def is_traced(host: int) -> bool:
    """Whether somebody traces this task. Gone."""
    return int(_field(_status(host), b"\nTracerPid:")) != 0


def is_ending(host: int) -> bool:
    """Whether a process is on its way out, or dead."""
    try:
        with open(f"/proc/{host}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return True
    return bool(int(fields[6]) & _PF_EXITING)


def _status(host: int) -> bytes:
    try:
        fd = os.open(f"/proc/{host}/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise Gone(host) from None
    try:
        return os.read(fd, 4096)
    except OSError:
        raise Gone(host) from None
    finally:
        os.close(fd)


def _field(text: bytes, name: bytes) -> bytes:
    at = text.index(name) + len(name)
    return text[at : text.index(b"\n", at)].strip()
