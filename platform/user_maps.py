"""Users and groups as a sandbox numbers them, from what the sentry sees of its tasks (user_namespaces(7))."""

from __future__ import annotations

Four = tuple[int, int, int, int]
_OVERFLOW = 65534


class UserMaps:
    """By /proc/PID/uid_map and gid_map of a process in the sandbox's user namespace."""

    def __init__(self, host: int) -> None:
        self._uids = _ranges(f"/proc/{host}/uid_map")
        self._gids = _ranges(f"/proc/{host}/gid_map")

    def uids(self, text: str) -> Four:
        """The four of a status file's line."""
        return _four([_inside(self._uids, int(word)) for word in text.split()])

    def gids(self, text: str) -> Four:
        return _four([_inside(self._gids, int(word)) for word in text.split()])

    def groups(self, text: str) -> list[int]:
        """Supplementary groups; those that the sandbox has no number for are left out."""
        found = [_inside(self._gids, int(word)) for word in text.split()]
        return [gid for gid in found if gid != _OVERFLOW]


def _ranges(path: str) -> list[tuple[int, int, int]]:
    """(first inside, first as we see it, count)."""
    with open(path, encoding="ascii") as file:
        rows = [line.split() for line in file]
    return [(int(a), int(b), int(c)) for a, b, c in rows]


def _inside(ranges: list[tuple[int, int, int]], ident: int) -> int:
    for inside, outside, count in ranges:
        if outside <= ident < outside + count:
            return inside + ident - outside
    return _OVERFLOW


def _four(words: list[int]) -> Four:
    real, effective, saved, of_files = words
    return real, effective, saved, of_files
