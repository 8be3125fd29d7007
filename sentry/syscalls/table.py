"""The syscall table of x86-64 Linux, complete up to kernel 6.18: rows by number and by name.

Numbers are those of arch/x86/entry/syscalls/syscall_64.tbl, signatures those of the kernel's definitions
(where a manual page names a type better, such as a descriptor as `int`, the manual's).
"""

from __future__ import annotations

from trapline.sentry.syscalls import (
    table_files,
    table_ipc,
    table_memory,
    table_net,
    table_process,
    table_signal,
    table_system,
    table_time,
)
from trapline.sentry.syscalls.table_types import OWNED, Class, Condition, Op, Parameter, Support, Syscall

__all__ = [
    "FAMILIES",
    "OWNED",
    "TABLE",
    "Class",
    "Condition",
    "Op",
    "Parameter",
    "Support",
    "Syscall",
    "by_name",
    "by_number",
    "family_of",
    "name_of",
]

#: The rows by family, each in the order of numbers.
FAMILIES: dict[str, tuple[Syscall, ...]] = {
    "time": table_time.ROWS,
    "signals": table_signal.ROWS,
    "processes": table_process.ROWS,
    "files": table_files.ROWS,
    "memory": table_memory.ROWS,
    "sockets": table_net.ROWS,
    "ipc": table_ipc.ROWS,
    "system": table_system.ROWS,
}

_by_number: dict[int, Syscall] = {row.nr: row for rows in FAMILIES.values() for row in rows}
_by_name: dict[str, Syscall] = {row.name: row for row in _by_number.values()}

#: All rows in the order of numbers.
TABLE: tuple[Syscall, ...] = tuple([_by_number[nr] for nr in sorted(_by_number)])


def by_number(nr: int) -> Syscall | None:
    """The row of a number; None for a hole or a number beyond the table."""
    return _by_number.get(nr)


def by_name(name: str) -> Syscall | None:
    """The row of a name as in `__NR_name`; None when there is none."""
    return _by_name.get(name)


def name_of(nr: int) -> str:
    """A name for messages: `syscall_500` for a number that has none."""
    row = _by_number.get(nr)
    return row.name if row is not None else f"syscall_{nr}"


def family_of(row: Syscall) -> str:
    """The family that a row is listed in. KeyError when it is in none."""
    for family, rows in FAMILIES.items():
        if row in rows:
            return family
    raise KeyError(row.name)
