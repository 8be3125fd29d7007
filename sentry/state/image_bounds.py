"""What the checks of an image's records are made of: numbers within bounds, keys that there are, possible names."""

from __future__ import annotations

from collections.abc import Collection

#: PID_MAX_LIMIT (include/linux/threads.h).
MOST_PIDS = 1 << 22
#: sysctl_nr_open_max (fs/file.c), about.
MOST_DESCRIPTORS = 1 << 30
PATH_MAX = 4096
U32, U64 = 1 << 32, 1 << 64


class Bad(Exception):
    """What is wrong in the records, in words."""


def number(what: str, value: int, below: int, least: int = 0) -> None:
    """Bad, unless it is in range(least, below)."""
    if not least <= value < below:
        raise Bad(f"{what} cannot be {value}")


def known(who: str, what: str, key: object, there: Collection[object]) -> None:
    """Bad, unless there is something with this key."""
    if key not in there:
        raise Bad(f"{who} refers to {what} {key}, which there is not")


def name(what: str, text: str | bytes) -> None:
    """Bad for what no path or name can be."""
    if ("\0" in text if isinstance(text, str) else b"\0" in text) or len(text) >= PATH_MAX:
        raise Bad(f"{what} cannot be a name")


def absolute(what: str, path: str | bytes) -> None:
    """Bad for anything but an absolute path."""
    name(what, path)
    if path[:1] not in ("/", b"/"):
        raise Bad(f"{what} is no absolute path: {path!r}")


def length(what: str, data: bytes, most: int, least: int = 0, unit: int = 1) -> None:
    """Bad, unless it is so long, and a multiple of the unit."""
    if not least <= len(data) <= most or len(data) % unit:
        raise Bad(f"{what} cannot have {len(data)} bytes")
