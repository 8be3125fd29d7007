"""Records to bytes and back: msgpack for the machine, JSON for what a person reads too.

Names of files are bytes to Linux and strings here (PEP 383), and neither msgpack nor JSON can hold such a string: an
escape is written in its place (names.py). Both directions look at strings one by one only where there is something to
be escaped.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from trapline.sentry.state.names import MARK, escaped_text, unescaped_text, walk

T = TypeVar("T")

_MARK = MARK.encode()


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
        return walk(found, unescaped_text) if _MARK in data else found
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
    return walk(msgspec.to_builtins(record, builtin_types=() if json else (bytes,), str_keys=json), escaped_text)


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
    return walk(value, unescaped_text)
