"""Records of descriptions, and the calls by which a restored process takes its own from the pool."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

import msgspec

from trapline.platform import restore_files, socket_calls
from trapline.platform.injection import Data
from trapline.sentry.state import files
from trapline.sentry.state.files import Descriptor, EventPoll, Interest, PathFile, PipeEnd, ProcessFile, RecordLock
from trapline.sentry.state.records import Image

_CLOSE, _LSEEK, _FCNTL, _EPOLL_CTL, _OPENAT, _DUP3, _PIDFD_OPEN, _CLOSE_RANGE = 3, 8, 72, 233, 257, 292, 434, 436


def test_every_kind_is_told_from_the_others_in_an_image() -> None:
    made: dict[int, files.AnyFile] = {}
    for key, kind in enumerate(files.AnyFile.__args__, 1):
        required = {f.name: b"" if f.type is bytes else "" if f.type is str else 0 for f in msgspec.structs.fields(kind) if f.required}
        made[key] = kind(**required)
    image = Image(files=made)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(image), type=Image)
    assert again == image
    assert [type(file) for file in again.files.values()] == list(files.AnyFile.__args__)


def test_a_path_need_not_be_text() -> None:
    image = Image(files={1: PathFile(path=b"/odd\xff\n")})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(image), type=Image) == image


def test_the_pool_begins_above_all_numbers_that_an_image_uses() -> None:
    assert files.first_free({}, {}) == 0
    assert files.first_free({}, {1: {}, 2: {5: Descriptor(1)}}) == 6
    poll = EventPoll(interests=[Interest(90, 1, 1, 0)])  # added by a number that is closed since
    assert files.first_free({1: poll}, {1: {5: Descriptor(1)}}) == 91


def test_a_process_takes_its_descriptors_and_nothing_else() -> None:
    image = Image(
        files={1: PipeEnd(pipe=1), 2: PipeEnd(pipe=1)}, tables={1: {0: Descriptor(1), 7: Descriptor(2, True)}, 2: {}}
    )
    pool = {1: 100, 2: 101}
    assert restore_files.place(image, 1, pool) == [
        (_DUP3, 100, 0, 0),
        (_DUP3, 101, 7, os.O_CLOEXEC),
        (_CLOSE_RANGE, 100, 0xFFFFFFFF, 0),
    ]
    assert restore_files.place(image, 2, pool) == [(_CLOSE_RANGE, 100, 0xFFFFFFFF, 0)]


def test_what_needs_the_processes_is_opened_last_and_by_the_lowest_number() -> None:
    status = PathFile(path=b"/proc/5/status", process=5, position=10)
    image = Image(
        files={1: PipeEnd(pipe=1), 2: ProcessFile(process=5), 3: status, 4: EventPoll(interests=[Interest(4, 2, 1, 9)])},
        tables={1: {0: Descriptor(1), 1: Descriptor(2), 4: Descriptor(2), 3: Descriptor(3, True), 6: Descriptor(4)}},
    )
    made = restore_files.place(image, 1, {1: 100, 4: 101})[3:]
    event = made[-1][-1]
    assert isinstance(event, Data) and event.value == struct.pack("<IQ", 1, 9)
    assert made[:-1] == [
        (_PIDFD_OPEN, 5, 0),  # the lowest free number is the one that it is to have
        (_FCNTL, 1, fcntl.F_SETFD, 0),
        (_DUP3, 1, 4, 0),
        (_OPENAT, made[3][1], made[3][2], os.O_NOCTTY, 0),  # as 2, which nothing has
        (_DUP3, 2, 3, os.O_CLOEXEC),
        (_CLOSE, 2),
        (_LSEEK, 3, 10, os.SEEK_SET),
    ]
    assert made[-1][:4] == (_EPOLL_CTL, 6, 1, 4)


def test_record_locks_are_set_by_who_had_them() -> None:
    image = Image(files={1: PathFile(path=b"/f")}, tables={1: {3: Descriptor(1)}}, locks={1: [RecordLock(3, True, 5, 6)]})
    *_, last = restore_files.place(image, 1, {1: 100})
    assert last[:3] == (_FCNTL, 3, fcntl.F_SETLK)
    assert isinstance(last[3], Data)
    assert struct.unpack("hhxxxxqqixxxx", last[3].value) == (fcntl.F_WRLCK, os.SEEK_SET, 5, 6, 0)


def test_addresses_are_packed_as_the_host_has_them() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        name = socket_calls.local_name(s.fileno())
        assert socket_calls.packed(s.getsockname(), socket.AF_INET) == name
        assert socket_calls.endpoint(name) == (b"\x7f\0\0\1", s.getsockname()[1])
    mapped = struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", 80, 0) + bytes(10) + b"\xff\xff\x7f\0\0\1" + bytes(4)
    assert socket_calls.endpoint(mapped) == (b"\x7f\0\0\1", 80)
    assert socket_calls.shown(mapped) == "127.0.0.1:80"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(b"\0abstract name\0 with more")
        assert socket_calls.packed(s.getsockname(), socket.AF_UNIX) == socket_calls.local_name(s.fileno())
