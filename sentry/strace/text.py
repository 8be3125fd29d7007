"""Bytes and numbers as strace writes them: quoting, modes, devices, signal names, signal sets."""

from __future__ import annotations

import re

from trapline.sentry.strace.names import one

#: How much of a string is shown (strace's -s).
LIMIT = 32

_ESCAPES = {
    ord('"'): '\\"', ord("\\"): "\\\\", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r",
}  # fmt: skip
_DIGITS = frozenset(b"0123456789")
#: Bytes that are written in octal: neither printed as they are nor with a letter.
_OCTAL = frozenset(range(256)) - frozenset(range(0x20, 0x7F)) - _ESCAPES.keys()
_TABLE = {**{byte: f"\\{byte:o}" for byte in _OCTAL}, **_ESCAPES}
_BEFORE_DIGIT = re.compile("[" + "".join([f"\\x{byte:02x}" for byte in sorted(_OCTAL)]) + "][0-9]")


def quote(data: bytes, limit: int | None = LIMIT, more: bool = False) -> str:
    """A C string. An octal escape has three digits only where a digit follows.

    `limit`: bytes that are shown, None for all; `more`: there is more than `data`.
    """
    if limit is not None and len(data) > limit:
        data, more = data[:limit], True
    text = data.decode("latin-1")
    if not _BEFORE_DIGIT.search(text):
        return f'"{text.translate(_TABLE)}"' + ("..." if more else "")
    parts = []
    for byte, following in zip(data, [*data[1:], 0], strict=True):
        octal_form = byte in _OCTAL and following in _DIGITS
        parts.append(f"\\{byte:03o}" if octal_form else _TABLE.get(byte, chr(byte)))
    return f'"{"".join(parts)}"' + ("..." if more else "")


def quote_hex(data: bytes, limit: int = LIMIT) -> str:
    """Every byte as `\\xNN`, for random data."""
    shown = "".join([f"\\x{byte:02x}" for byte in data[:limit]])
    return f'"{shown}"' + ("..." if len(data) > limit else "")


def pointer(value: int) -> str:
    """An address."""
    return f"{value:#x}" if value else "NULL"


def octal(value: int) -> str:
    """Permissions, with at least three digits."""
    return f"0{value:o}" if value > 0o77 else f"{value:03o}"


def mode(value: int) -> str:
    """A file's type and permissions: `S_IFDIR|S_ISVTX|0777`."""
    kind = value & 0o170000
    parts = [one("stattype", kind)] if kind else []
    for bit, name in ((0o4000, "S_ISUID"), (0o2000, "S_ISGID"), (0o1000, "S_ISVTX")):
        if value & bit:
            parts.append(name)
    return "|".join([*parts, octal(value & 0o777)])


def device(value: int) -> str:
    """A device number (makedev(3))."""
    major = value >> 8 & 0xFFF | value >> 32 & ~0xFFF
    minor = value & 0xFF | value >> 12 & ~0xFF
    return f"makedev({major:#x}, {minor:#x})"


_STANDARD = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN "
    "TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS RTMIN"
)
_SIGNALS = [*_STANDARD.split(), *[f"RT_{number}" for number in range(1, 33)]]


def signal_name(signo: int) -> str:
    """`SIGINT`, `SIGRT_3`; the number where there is none."""
    return f"SIG{_SIGNALS[signo - 1]}" if 1 <= signo <= 64 else str(signo)


def signal_set(mask: int) -> str:
    """`[INT CHLD]`, or what is missing of a set that has two thirds of all: `~[KILL STOP]`."""
    inverted = mask.bit_count() >= 64 * 2 // 3
    if inverted:
        mask = ~mask & (1 << 64) - 1
    inside = " ".join([_SIGNALS[bit] for bit in range(64) if mask >> bit & 1])
    return f"{'~' if inverted else ''}[{inside}]"


def wait_status(status: int) -> str:
    """As the macros of wait(2) say it."""
    if status == 0xFFFF:
        return "{WIFCONTINUED(s)}"
    if status & 0xFF == 0x7F:
        return f"{{WIFSTOPPED(s) && WSTOPSIG(s) == {signal_name(status >> 8 & 0xFF)}}}"
    if status & 0x7F:
        core = " && WCOREDUMP(s)" if status & 0x80 else ""
        return f"{{WIFSIGNALED(s) && WTERMSIG(s) == {signal_name(status & 0x7F)}{core}}}"
    return f"{{WIFEXITED(s) && WEXITSTATUS(s) == {status >> 8 & 0xFF}}}"
