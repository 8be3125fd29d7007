"""What /proc/PID/smaps says of a process's memory (proc_pid_smaps(5), proc_pid_maps(5), Linux fs/proc/task_mmu.c)."""

from __future__ import annotations

import os

import msgspec

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
HOST_VDSO = frozenset({"[vdso]", "[vvar]", "[vvar_vclock]"})
_DELETED = b" (deleted)"


class Area(msgspec.Struct):
    """One line of maps with its VmFlags. Addresses and sizes are bytes."""

    start: int
    end: int
    prot: int  # PROT_*
    shared: bool
    offset: int
    device: int  # as stat(2) gives it
    inode: int
    path: str  # without " (deleted)"
    deleted: bool
    flags: frozenset[str] = frozenset()
    present: int = -1  # bytes in memory or swapped out; -1: not known

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def of_file(self) -> bool:
        """Whether it is of a file, or of shared memory, which is one to the host. The inode alone does not say so: that
        of the first System V segment, whose id it is, is 0."""
        return bool(self.inode or self.device)


def read_areas(host: int) -> list[Area]:
    """All of a process, ascending. OSError."""
    with open(f"/proc/{host}/smaps", "rb", buffering=0) as file:
        return parse_smaps(file.read())


def read_maps(host: int) -> list[Area]:
    """The same without flags and sizes, for which the host would look at every page: 14 ms for 1 GiB. OSError."""
    with open(f"/proc/{host}/maps", "rb", buffering=0) as file:
        return parse_smaps(file.read())


def host_vdso(host: int) -> dict[str, tuple[int, int]]:
    """Where a process has the host's [vdso], [vvar] ...: address, length. OSError."""
    with open(f"/proc/{host}/maps", "rb", buffering=0) as file:
        areas = [parse_line(line) for line in file.read().splitlines() if line.endswith(b"]")]
    return {area.path: (area.start, area.size) for area in areas if area.path in HOST_VDSO and not area.inode}


def parse_smaps(text: bytes) -> list[Area]:
    """The text of smaps. ValueError for what is none."""
    areas: list[Area] = []
    for line in text.split(b"\n"):
        if line.startswith(b"VmFlags:"):
            areas[-1].flags = frozenset(line[8:].decode().split())
        elif line.startswith((b"Rss:", b"Swap:")):
            area, size = areas[-1], int(line.split()[1]) << 10
            area.present = size if area.present < 0 else area.present + size
        elif line[:1] in _HEX and line:
            areas.append(parse_line(line))
    return areas


_HEX = frozenset(b"%x" % digit for digit in range(16))


def parse_line(line: bytes) -> Area:
    """One line of maps. ValueError."""
    fields = line.split(None, 5)
    if len(fields) < 5 or len(fields[1]) != 4:
        raise ValueError(f"no line of maps: {line!r}")
    start, end = (int(part, 16) for part in fields[0].split(b"-"))
    major, minor = (int(part, 16) for part in fields[3].split(b":"))
    perms = fields[1]
    # A path may end with blanks: what is left of the line, from its column on.
    path = fields[5] if len(fields) > 5 else b""
    if path.endswith(_DELETED) and (int(fields[4]) or major or minor):
        path, deleted = path[: -len(_DELETED)], True
    else:
        deleted = False
    return Area(
        start,
        end,
        (PROT_READ if perms[:1] == b"r" else 0)
        | (PROT_WRITE if perms[1:2] == b"w" else 0)
        | (PROT_EXEC if perms[2:3] == b"x" else 0),
        perms[3:4] == b"s",
        int(fields[2], 16),
        os.makedev(major, minor),
        int(fields[4]),
        path.replace(b"\\012", b"\n").decode("utf-8", "surrogateescape"),
        deleted,
    )
