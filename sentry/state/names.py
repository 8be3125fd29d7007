"""Names of files as text that can be written as UTF-8: Linux's are bytes, and Python's stand for any of them."""

from __future__ import annotations

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MARK = "\U0010ffff"
#: Letters of escapes: one of the private use area for each of the 128 bytes.
_LETTERS = 0xE000


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


def escaped_text(text: str) -> str:
    """The name with each byte that is not UTF-8, which Python has as a lone surrogate, U+DC80 to U+DCFF (PEP 383), as
    `MARK`, which is not a character and in no sensible name, and a letter for the byte; `MARK` itself is doubled."""
    if text.isascii():
        return text
    text = text.replace(MARK, MARK + MARK)
    return "".join(MARK + chr(_LETTERS + ord(c) - 0xDC80) if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


def unescaped_text(text: str) -> str:
    """The name again. ValueError for an escape that `escaped_text` does not write."""
    if MARK not in text:
        return text
    found = []
    letters = iter(text)
    for letter in letters:
        if letter == MARK:
            letter = next(letters, "")
            if letter != MARK:
                if not letter or not _LETTERS <= ord(letter) < _LETTERS + 0x80:
                    raise ValueError("a string has an escape that there is not")
                letter = chr(ord(letter) - _LETTERS + 0xDC80)
        found.append(letter)
    return "".join(found)


def walk(value: Any, change: Callable[[str], str]) -> Any:
    """A value of dictionaries and lists with each string changed; tuples become lists."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {walk(k, change): walk(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [walk(v, change) for v in value]
    return value
