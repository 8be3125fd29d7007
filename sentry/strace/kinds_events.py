"""Arguments of calls that wait for descriptors: poll, select, epoll."""

from __future__ import annotations

import struct

from trapline.sentry.strace.call import MAX_ARRAY, Call
from trapline.sentry.strace.kinds import array, decoder, of_result, structure
from trapline.sentry.strace.names import flags
from trapline.sentry.strace.text import pointer, signal_set

EPOLL_CTL_DEL = 2
_POLLFD = struct.Struct("<ihh")


def _pollfd(call: Call, data: bytes) -> str:
    fd, events, _ = _POLLFD.unpack(data)
    if fd < 0:
        return f"{{fd={fd}}}"
    return f"{{fd={call.descriptor(fd)}, events={flags('pollevents', events & 0xFFFF)}}}"


@decoder("pollfds")
def _pollfds(call: Call, value: int, count: int) -> str:
    return array(call, value, count, _POLLFD.size, lambda data: _pollfd(call, data))


@of_result("polled")
def _polled(call: Call, address: int, count: int, timeout: int = 0) -> str:
    """How many, and which; how much of ppoll's time is left."""
    notes = []
    if not call.result:
        return "0 (Timeout)"
    data = call.read(address, min(count, 4096) * _POLLFD.size)
    if data is not None:
        ready = []
        for fd, _, found in _POLLFD.iter_unpack(data):
            if found:
                ready.append(f"{{fd={call.descriptor(fd)}, revents={flags('pollevents', found & 0xFFFF)}}}")
        more = ["..."] if len(ready) > MAX_ARRAY else []
        notes.append(f"[{', '.join(ready[:MAX_ARRAY] + more)}]")
    if timeout:
        notes.append(f"left {structure(call, timeout, 'timespec')}")
    return f"{call.result} ({', '.join(notes)})" if notes else str(call.result)


def _set(call: Call, address: int, count: int) -> list[int] | None:
    if not 0 < count <= 65536:
        return None
    size = (count + 63) // 64 * 8
    data = call.read(address, size)
    if data is None:
        return None
    number = int.from_bytes(data, "little")
    return [fd for fd in range(count) if number >> fd & 1]


@decoder("fdset")
def _fdset(call: Call, value: int, count: int) -> str:
    if not value:
        return "NULL"
    found = _set(call, value, count)
    if found is None:
        return pointer(value)
    return f"[{' '.join([call.descriptor(fd) for fd in found])}]"


@of_result("selected")
def _selected(call: Call, count: int, readable: int, writable: int, exceptional: int, timeout: int) -> str:
    if not call.result:
        return "0 (Timeout)"
    notes = []
    for name, address in (("in", readable), ("out", writable), ("except", exceptional)):
        found = _set(call, address, count) if address else None
        if found:
            notes.append(f"{name} [{' '.join([call.descriptor(fd) for fd in found])}]")
    if timeout:
        kind = "timeval" if call.row.name == "select" else "timespec"
        notes.append(f"left {structure(call, timeout, kind)}")
    return f"{call.result} ({', '.join(notes)})" if notes else str(call.result)


@decoder("sigset_argument")
def _sigset_argument(call: Call, value: int) -> str:
    """pselect6's sixth: the address and size of a set."""
    data = call.read(value, 16) if value else None
    if data is None:
        return pointer(value)
    address, size = struct.unpack("<QQ", data)
    mask = call.number(address, "<Q") if address else None
    shown = signal_set(mask) if mask is not None else pointer(address)
    return f"{{sigmask={shown}, sigsetsize={size}}}"


def _event(data: bytes) -> str:
    events, value = struct.unpack("<IQ", data)
    return f"{{events={flags('epollevents', events)}, data={{u32={value & 0xFFFFFFFF}, u64={value}}}}}"


@decoder("epoll_event")
def _epoll_event(call: Call, value: int, operation: int) -> str:
    if not value or operation == EPOLL_CTL_DEL:
        return pointer(value)
    data = call.read(value, 12)
    return _event(data) if data is not None else pointer(value)


@decoder("epoll_events")
def _epoll_events(call: Call, value: int) -> str:
    return array(call, value, call.result, 12, _event)
