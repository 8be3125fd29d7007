"""Which memory of a process belongs into its core, and reading what of it is there (core(5), proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from trapline.sentry.kernel.core_elf import PAGE, Mapping

_PRIVATE, _SHARED, _FILE_PRIVATE, _FILE_SHARED, _ELF_HEADERS, _HUGE_PRIVATE, _HUGE_SHARED = range(7)
_CHUNK = 1 << 20
_ENTRIES = 1 << 16  # of pagemap at a time, 8 bytes a page
_PRESENT = 3 << 62  # in memory, or swapped out
#: Place in the core, address, size, whether of a file.
Piece = tuple[int, int, int, bool]


def mappings_of(host: int) -> list[Mapping]:
    """All mappings of a stopped process, each with how much of it is dumped. OSError."""
    with open(f"/proc/{host}/coredump_filter") as file:
        wanted = int(file.read(), 16)
    with open(f"/proc/{host}/smaps", "rb") as file:
        text = file.read()
    found: list[Mapping] = []
    details: dict[bytes, bytes] = {}
    fields: list[bytes] = []
    for line in [*text.splitlines(), b""]:
        name, colon, value = line.partition(b":")
        if colon and b"-" not in name and b" " not in name:
            details[name] = value
            continue
        if fields:
            found.append(_mapping(host, fields, details, wanted))
        fields, details = line.split(None, 5), {}
    return found


def _mapping(host: int, fields: list[bytes], details: dict[bytes, bytes], wanted: int) -> Mapping:
    start, end = (int(part, 16) for part in fields[0].split(b"-"))
    permissions, offset, of_file = fields[1], int(fields[2], 16), fields[3] != b"00:00"
    path = fields[5] if len(fields) > 5 else b""
    mapping = Mapping(
        start, end, permissions[:1] == b"r", permissions[1:2] == b"w", permissions[2:3] == b"x", 0,
        file=path if of_file and path.startswith(b"/") else b"", offset=offset,
    )  # fmt: skip
    mapping.dumped = _size(host, mapping, details, wanted, shared=permissions[3:4] == b"s", path=path)
    return mapping


def _size(
    host: int, mapping: Mapping, details: dict[bytes, bytes], wanted: int, shared: bool, path: bytes
) -> int:
    """Linux vma_dump_size."""
    whole = mapping.end - mapping.start
    flags = details.get(b"VmFlags", b"").split()
    if path in (b"[vdso]", b"[vsyscall]"):
        return whole if mapping.readable else 0
    if b"dd" in flags or b"io" in flags or path.startswith(b"[vvar"):
        return 0
    if b"ht" in flags:
        return whole if wanted >> (_HUGE_SHARED if shared else _HUGE_PRIVATE) & 1 else 0
    if shared:
        unlinked = path.endswith(b" (deleted)") or not path
        return whole if wanted >> (_SHARED if unlinked else _FILE_SHARED) & 1 else 0
    written = int(details.get(b"Anonymous", b"0 kB").split()[0]) or int(details.get(b"Swap", b"0 kB").split()[0])
    if written and wanted >> _PRIVATE & 1:
        return whole
    if not mapping.file:
        return 0
    if wanted >> _FILE_PRIVATE & 1:
        return whole
    if wanted >> _ELF_HEADERS & 1 and not mapping.offset and mapping.readable:
        with open(f"/proc/{host}/mem", "rb", buffering=0) as memory:
            memory.seek(mapping.start)
            try:
                return PAGE if memory.read(4) == b"\x7fELF" else 0
            except OSError:
                return 0
    return 0


def read_present(host: int, pieces: Iterable[Piece]) -> Iterator[tuple[int, bytes]]:
    """(place in the core, data) of some pieces of memory; what was never touched is left out. OSError."""
    memory = os.open(f"/proc/{host}/mem", os.O_RDONLY | os.O_CLOEXEC)
    pagemap = os.open(f"/proc/{host}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for place, start, size, of_file in pieces:
            for address, length in [(start, size)] if of_file else _present(pagemap, start, size):
                for at in range(address, address + length, _CHUNK):
                    try:
                        data = os.pread(memory, min(_CHUNK, address + length - at), at)
                    except OSError:
                        continue  # a device's, or gone from its file: Linux leaves a hole too
                    yield place + at - start, data
    finally:
        os.close(memory)
        os.close(pagemap)


def _present(pagemap: int, start: int, size: int) -> Iterator[tuple[int, int]]:
    """Runs of pages that are there. (A file's pages are read whole instead: those that this process has not looked
    at yet are not in its page table.)"""
    first, last, begun = start // PAGE, (start + size) // PAGE, -1
    for page in range(first, last, _ENTRIES):
        count = min(_ENTRIES, last - page)
        raw = os.pread(pagemap, count * 8, page * 8)
        if not any(raw) and begun < 0:
            continue
        for index, entry in enumerate(memoryview(raw).cast("Q")):
            if entry & _PRESENT:
                begun = page + index if begun < 0 else begun
            elif begun >= 0:
                yield begun * PAGE, (page + index - begun) * PAGE
                begun = -1
    if begun >= 0:
        yield begun * PAGE, (last - begun) * PAGE
