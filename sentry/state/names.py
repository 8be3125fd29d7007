"""Names of files as text that can be written as UTF-8: Linux's are bytes, and Python's stand for any of them."""

from __future__ import annotations


def quoted(name: str) -> str:
    """A name as os.fsdecode gives it, with what is not UTF-8, and the per cent sign, as per cent and two hexadecimal
    digits."""
    if "%" not in name and name.isprintable():
        return name  # what is not UTF-8 is not printable
    codes = [f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else "%25" if c == "%" else c for c in name]
    return "".join(codes)


def unquoted(text: str) -> str:
    """The name again. ValueError."""
    first, *rest = text.split("%")
    raw = first.encode() + b"".join([bytes.fromhex(part[:2]) + part[2:].encode() for part in rest])
    return raw.decode(errors="surrogateescape")


def printable(text: str) -> str:
    """A text for people in which names stand, as UTF-8 can hold it."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
