"""Records to bytes and back: msgpack for the machine, JSON for what a person reads too.

Names of files are bytes to Linux and strings here (PEP 383: a byte that is not UTF-8 stands as a lone surrogate, U+DC80
to U+DCFF), and neither msgpack nor JSON can hold such a string. So an escape is written in its place: `MARK`, which is
not a character and in no sensible name, and a letter for the byte; `MARK` itself is doubled. Both directions look at
strings one by one only where there is something to be escaped.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

MARK = "\U0010ffff"
_MARK = MARK.encode()
#: Letters of escapes: one of the private use area for each of the 128 bytes.
_LETTERS = 0xE000


class Malformed(Exception):
    """Bytes that are not such a record: what is wrong with them."""


def pack(record: Any) -> bytes:
    """Any record as msgpack."""
    try:
        data = msgspec.msgpack.encode(record)
    except UnicodeEncodeError:
        return msgspec.msgpack.encode(plain(record))
    # Where a string holds the mark by itself. (In a field of bytes it may stand by chance: that does no harm.)
    return msgspec.msgpack.encode(plain(record)) if _MARK in data else data


def unpack(data: bytes, kind: type[T]) -> T:
    """The record of this type. Malformed."""
    try:
        if _MARK in data:
            return typed(loose(data), kind)
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
        raise Malformed(str(error)) from None


def loose(data: bytes) -> Any:
    """The same as dictionaries, lists, strings, bytes and numbers. Malformed."""
    try:
        found = msgspec.msgpack.decode(data)
        return _walk(found, _unescape) if _MARK in data else found
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError, TypeError) as error:
        raise Malformed(str(error)) from None


def typed(value: Any, kind: type[T]) -> T:
    """What `loose` gave, as a record of this type. Malformed."""
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes,))
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
        raise Malformed(str(error)) from None


def plain(record: Any, json: bool = False) -> Any:
    """A record as dictionaries, lists, bytes, numbers, and strings that can be encoded. `json`: in JSON, which knows no
    bytes, and no keys but strings."""
    return _walk(msgspec.to_builtins(record, builtin_types=() if json else (bytes,), str_keys=json), _escape)


def json_text(value: Any) -> bytes:
    """What `plain` gave, as JSON for people: the one form in which it is written."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def canonical(value: Any) -> bytes:
    """What `plain` gave, as JSON without white space and with keys in order: what a checksum is made of."""
    return msgspec.json.encode(value, order="sorted")


def from_json(text: bytes) -> Any:
    """The opposite of `json_text`; escapes stand as they are. Malformed: also for what `json_text` writes otherwise."""
    try:
        value = msgspec.json.decode(text)
        if json_text(value) != text:
            raise Malformed("it is not as trapline writes it: a key stands there twice, or it was edited")
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError, TypeError) as error:
        raise Malformed(str(error)) from None
    return value


def unescaped(value: Any) -> Any:
    """What `plain` gave with the strings as they were."""
    return _walk(value, _unescape)


def _walk(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_walk(k, change): _walk(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(v, change) for v in value]
    return value


def _escape(text: str) -> str:
    if text.isascii():
        return text
    text = text.replace(MARK, MARK + MARK)
    return "".join(MARK + chr(_LETTERS + ord(c) - 0xDC80) if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


def _unescape(text: str) -> str:
    """ValueError for an escape that `_escape` does not write."""
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
