"""The kinds of arguments: names to decoders. The plain ones are here, the others in kinds_*.py.

A decoder takes the call and the argument and gives the text, or None when the argument is not printed at all
(the mode of an open that creates nothing).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from trapline.sentry.strace import structs
from trapline.sentry.strace.call import MAX_ARRAY, Call
from trapline.sentry.strace.names import flags, hexadecimal, one
from trapline.sentry.strace.text import LIMIT, device, mode, octal, pointer, quote, quote_hex, signal_name

Kind = Callable[[Call, int], "str | None"]
Result = Callable[[Call], str]
Late = Callable[[Call], bool]
_F = TypeVar("_F", bound=Callable[..., Any])
PATH_MAX = 4096
AT_FDCWD = -100

_kinds: dict[str, Callable[..., Any]] = {}
_results: dict[str, Callable[..., str]] = {}
_suffixes: dict[str, Kind] = {}
_late: dict[str, Late] = {}
#: Outputs that are decoded also when the call failed.
_even_failed: set[str] = set()
_loaded = False


def decoder(name: str, even_failed: bool = False) -> Callable[[_F], _F]:
    """Register a decoder; behind the colon of its use come parameters whose arguments it is given too."""

    def register(function: _F) -> _F:
        _kinds[name] = function
        if even_failed:
            _even_failed.add(name)
        return function

    return register


def of_result(name: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Register a decoder of results."""

    def register(function: Callable[..., str]) -> Callable[..., str]:
        _results[name] = function
        return function

    return register


def after(name: str) -> Callable[[Kind], Kind]:
    """Register what is added to an argument of this kind once the call has returned."""

    def register(function: Kind) -> Kind:
        _suffixes[name] = function
        return function

    return register


def _load() -> None:
    global _loaded
    if not _loaded:
        _loaded = True
        from trapline.sentry.strace import kinds_events, kinds_files, kinds_net, kinds_process, kinds_signal

        assert kinds_events and kinds_files and kinds_net and kinds_process and kinds_signal


def structures() -> Collection[str]:
    """The structures that can be decoded by their fields alone."""
    return structs.LAYOUTS


def kind(text: str, places: dict[str, int], output: bool = False) -> Kind:
    """The decoder for `name` or `name:parameter,...`. KeyError."""
    _load()
    name, _, more = text.partition(":")
    show: Kind
    if name == "flags":
        flags(more, 0)

        def show(call: Call, value: int) -> str:
            return flags(more, value & 0xFFFFFFFFFFFFFFFF if value >= 0 else value & 0xFFFFFFFF)

    elif name == "one":
        one(more, 0)

        def show(call: Call, value: int) -> str:
            return one(more, value)

    elif name in _kinds:
        function = _kinds[name]
        others = tuple([places[other] for other in more.split(",")]) if more else ()
        show = function if not others else _with_others(function, others)
    else:
        size = structs.size_of(name)

        def show(call: Call, value: int) -> str:
            return structure(call, value, name, size)

    if output and name not in _even_failed:
        return _output(show)
    return show


def _with_others(function: Callable[..., Any], others: tuple[int, ...]) -> Kind:
    def show(call: Call, value: int) -> str | None:
        found: str | None = function(call, value, *[call.args[at] for at in others])
        return found

    return show


def _output(show: Kind) -> Kind:
    def shown(call: Call, value: int) -> str | None:
        return pointer(value) if call.failed else show(call, value)

    return shown


def late(name: str) -> Callable[[Late], Late]:
    """Register when an output of this kind really is one; else it is printed at the entry."""

    def register(function: Late) -> Late:
        _late[name] = function
        return function

    return register


def is_late(text: str) -> Late | None:
    """Whether an output is one in this call; None for always."""
    return _late.get(text.partition(":")[0])


def suffix(text: str) -> Kind | None:
    """What is added after the return."""
    return _suffixes.get(text.partition(":")[0])


def result(text: str, places: dict[str, int]) -> Result:
    """The decoder of a result. KeyError."""
    _load()
    name, _, more = text.partition(":")
    function = _results[name]
    others = tuple([places[other] for other in more.split(",")]) if more else ()
    return lambda call: function(call, *[call.args[at] for at in others])


# -- helpers for the others


def structure(call: Call, address: int, name: str, size: int = 0) -> str:
    """A structure at an address."""
    if not address:
        return "NULL"
    data = call.read(address, size or structs.size_of(name))
    return structs.show(name, data) if data is not None else pointer(address)


def array(
    call: Call, address: int, count: int, size: int, show: Callable[[bytes], str], limit: int = MAX_ARRAY
) -> str:
    """`[a, b, ...]` of elements of `size` bytes."""
    if not address:
        return "NULL"
    if count <= 0:
        return "[]" if count == 0 else pointer(address)
    data = call.read(address, min(count, limit) * size)
    if data is None:
        return pointer(address)
    shown = [show(data[at : at + size]) for at in range(0, len(data), size)]
    return f"[{', '.join([*shown, *(['...'] if count > limit else [])])}]"


# -- numbers


@decoder("decimal")
def _decimal(call: Call, value: int) -> str:
    return str(value)


@decoder("hex")
def _hex(call: Call, value: int) -> str:
    return hexadecimal(value & 0xFFFFFFFFFFFFFFFF)


@decoder("pointer")
def _pointer(call: Call, value: int) -> str:
    return pointer(value)


@decoder("octal")
def _octal(call: Call, value: int) -> str:
    return octal(value & 0xFFFFFFFF)


@decoder("mode")
def _mode(call: Call, value: int) -> str:
    return mode(value)


@decoder("node")
def _node(call: Call, value: int, how: int) -> str | None:
    return device(value) if how & 0o170000 in (0o020000, 0o060000) else None


@decoder("id")
def _id(call: Call, value: int) -> str:
    return "-1" if value & 0xFFFFFFFF == 0xFFFFFFFF else str(value)


@decoder("signal")
def _signal(call: Call, value: int) -> str:
    return signal_name(value)


@decoder("key")
def _key(call: Call, value: int) -> str:
    return hexadecimal(value & 0xFFFFFFFF) if value else "IPC_PRIVATE"


@decoder("clock")
def _clock(call: Call, value: int) -> str:
    if value < 0:
        clock = ("CPUCLOCK_PROF", "CPUCLOCK_VIRT", "CPUCLOCK_SCHED", "CLOCKFD")[value & 3]
        if value & 3 == 3:
            return f"FD_TO_CLOCKID({~(value >> 3)})"
        maker = "MAKE_THREAD_CPUCLOCK" if value & 4 else "MAKE_PROCESS_CPUCLOCK"
        return f"{maker}({~(value >> 3)}, {clock})"
    return one("clock", value)


@decoder("fd")
def _fd(call: Call, value: int) -> str:
    return call.descriptor(value)


@decoder("directory")
def _directory(call: Call, value: int) -> str:
    if value == AT_FDCWD:
        return "AT_FDCWD" + (call.naming(call.tid, AT_FDCWD) if call.naming is not None else "")
    return call.descriptor(value)


def _number_at(form: str) -> Kind:
    def show(call: Call, value: int) -> str:
        if not value:
            return "NULL"
        found = call.number(value, form)
        return f"[{found}]" if found is not None else pointer(value)

    return show


_kinds["number32"] = _number_at("<i")
_kinds["number64"] = _number_at("<q")
_kinds["numbers32"] = _number_at("<i")


@decoder("address")
def _address(call: Call, value: int) -> str:
    found = call.number(value, "<Q") if value else None
    return f"[{pointer(found)}]" if found is not None else pointer(value)


@decoder("pair")
def _pair(call: Call, value: int) -> str:
    data = call.read(value, 8)
    if data is None:
        return pointer(value)
    return "[" + ", ".join([call.descriptor(fd) for fd in struct.unpack("<2i", data)]) + "]"


# -- strings


def path_at(call: Call, address: int) -> str:
    """A path, whole."""
    if not address:
        return "NULL"
    found = call.read_string(address, PATH_MAX)
    if found is None:
        return pointer(address)
    return quote(found[0], None, found[1])


@decoder("path")
def _path(call: Call, value: int) -> str:
    return path_at(call, value)


@decoder("string")
def string_at(call: Call, value: int) -> str:
    """A C string, abbreviated."""
    if not value:
        return "NULL"
    found = call.read_string(value, LIMIT + 1)
    return quote(found[0], LIMIT, found[1]) if found is not None else pointer(value)


def bytes_at(call: Call, address: int, size: int) -> str:
    """So many bytes, abbreviated."""
    if not address:
        return "NULL"
    if size <= 0:
        return '""' if size == 0 else pointer(address)
    data = call.read_up_to(address, min(size, LIMIT + 1))
    if data is None:
        return pointer(address)
    return quote(data, LIMIT, size > max(len(data), LIMIT))


@decoder("buffer")
def _buffer(call: Call, value: int, size: int | None = None) -> str:
    return bytes_at(call, value, call.result if size is None else size)


@decoder("text")
def _text(call: Call, value: int) -> str:
    return bytes_at(call, value, call.result)


@decoder("random")
def _random(call: Call, value: int) -> str:
    data = call.read(value, min(max(call.result, 0), LIMIT + 1)) if value else None
    return quote_hex(data) if data is not None else pointer(value)


# -- results


@of_result("hex")
def _result_hex(call: Call) -> str:
    return hexadecimal(call.result & 0xFFFFFFFFFFFFFFFF)


@of_result("octal")
def _result_octal(call: Call) -> str:
    return octal(call.result)


@of_result("fd")
def _result_fd(call: Call) -> str:
    return call.descriptor(call.result)
