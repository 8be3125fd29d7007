"""Constants to names, as strace prints them: `O_RDONLY|O_CLOEXEC`, `SEEK_SET`, `0x29 /* F_??? */`."""

from __future__ import annotations

from functools import cache

from trapline.sentry.strace import names_files, names_memory, names_net, names_process

_MODULES = (names_files, names_memory, names_net, names_process)


def words(*texts: str) -> frozenset[str]:
    """The words of some texts."""
    return frozenset(" ".join(texts).split())


@cache
def group(name: str) -> tuple[tuple[int, str], ...]:
    """The (value, name) pairs of a group. KeyError."""
    for module in _MODULES:
        text = module.GROUPS.get(name)
        if text is not None:
            pairs = [word.split("=") for word in text.split()]
            return tuple([(int(value, 0), constant) for constant, value in pairs])
    raise KeyError(name)


@cache
def _by_value(name: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for value, constant in group(name):
        found.setdefault(value, constant)
    return found


@cache
def _prefix(name: str) -> str:
    """What the names of a group have in common: `PROT_`, `__W`, `TC`."""
    names = [constant for _, constant in group(name)]
    first, last = min(names), max(names)
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    if not any(["_" in constant for constant in names]):
        return first[:same]
    cut = first[:same].rfind("_") + 1
    return first[:cut] or names[0].partition("_")[0] + "_"


def hexadecimal(value: int) -> str:
    """As C's `%#x`: `0` has no prefix."""
    return f"{value:#x}" if value else "0"


def one(name: str, value: int) -> str:
    """Exactly one constant."""
    found = _by_value(name).get(value)
    if found is None:
        found = _by_value(name).get(value & 0xFFFFFFFF)
    return found if found is not None else f"{hexadecimal(value & 0xFFFFFFFFFFFFFFFF)} /* {_prefix(name)}??? */"


def flags(name: str, value: int) -> str:
    """Or'ed constants; what is left over in hexadecimal."""
    if not value:
        return _by_value(name).get(0, "0")
    found = []
    rest = value
    for bits, constant in group(name):
        if bits and rest & bits == bits:
            found.append(constant)
            rest &= ~bits
    if not found:
        return f"{value:#x} /* {_prefix(name)}??? */"
    if rest:
        found.append(f"{rest:#x}")
    return "|".join(found)
