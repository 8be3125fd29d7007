"""Records of open files that make no sense are told from those that do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from image_samples import image as sample

from trapline.sentry.state import codec, files
from trapline.sentry.state.files import (
    Descriptor,
    FileLock,
    Interest,
    Message,
    Pipe,
    RecordLock,
    Socket,
    Terminal,
    Watch,
)
from trapline.sentry.state.image_bounds import Bad
from trapline.sentry.state.image_check import check_image
from trapline.sentry.state.records import Image


def image() -> Image:
    """One of each kind."""
    found = sample()
    found.files = dict(
        enumerate(
            [
                files.PathFile(path=b"/etc/\xff", position=5, locks=[FileLock("flock", True)]),
                files.GhostFile(ghost="1"),
                files.MemoryFile(key="shm:1:2"),
                files.InheritedFile(number=0),
                files.DroppedFile(what="a socket"),
                files.PipeEnd(pipe=1, flags=1),
                files.EventCounter(count=(1 << 64) - 2),
                files.SignalFile(mask=1 << 9),
                files.TimerFile(clock=1, deadline=-5, interval=7),
                files.EventPoll(interests=[Interest(3, 6, 1, (1 << 64) - 1)]),
                files.Notifier(watches=[Watch(1, b"/tmp", 2)]),
                files.ProcessFile(process=7),
                files.TerminalMaster(terminal=1),
                files.TerminalSlave(terminal=1),
                files.SocketFile(),
                files.SocketFile(),
            ]
        )
    )
    found.tables[1] = {number: Descriptor(number) for number in found.files}
    found.pipes[1] = Pipe(4096, [b"x" * 4096])
    found.sockets = {
        14: Socket(1, 1, peer=15, state="connected", queue=[Message(b"x", [0, 14])], options=[(1, 7, bytes(4))]),
        15: Socket(1, 1, peer=14, state="connected"),
    }
    found.terminals[1] = Terminal(0, bytes(44), (24, 80, 0, 0), input=[b"line\n"])
    found.locks[1] = [RecordLock(0, True, 0, 0)]
    return found


def test_one_of_each_kind() -> None:
    found = image()
    check_image(found)
    assert codec.unpack(codec.pack(found), Image) == found


def put(file: int, /, **fields: object) -> Callable[[Image], None]:
    def change(found: Image) -> None:
        for name, value in fields.items():
            setattr(found.files[file], name, value)

    return change


#: What is changed, and what is said of it.
NONSENSE: list[tuple[str, Callable[[Image], object], str]] = [
    ("descriptor", lambda i: i.tables[1].update({99: Descriptor(99)}), "descriptor 99 of table 1 refers to file 99"),
    ("number", lambda i: i.tables[1].update({-1: Descriptor(0)}), "a descriptor of table 1 cannot be -1"),
    ("flags", put(0, flags=-1), "file 0: its flags"),
    ("signal", put(0, signal=65), "its signal cannot be 65"),
    ("owner", put(0, owner=-5), "its owner"),
    ("lock kind", lambda i: i.files[0].locks.append(FileLock("x", True)), "lock of the kind 'x'"),
    ("lock", lambda i: i.files[0].locks.append(FileLock("ofd", True, -1)), "start of a lock"),
    ("path", put(0, path=b"x"), "no absolute path"),
    ("nul", put(0, path=b"/\0"), "cannot be a name"),
    ("position", put(0, position=-1), "position"),
    ("ghost", put(1, ghost="7"), "nameless file 7"),
    ("memfd", put(2, key="x"), "shared memory x"),
    ("inherited", put(3, number=-1), "caller's descriptor"),
    ("pipe", put(5, pipe=7), "the pipe 7"),
    ("count", put(6, count=1 << 64), "its count"),
    ("mask", put(7, mask=-1), "its mask"),
    ("clock", put(8, clock=99), "its clock cannot be 99"),
    ("interval", put(8, interval=-1), "interval"),
    ("interest", put(9, interests=[Interest(0, 99, 0, 0)]), "the file 99"),
    ("watch", put(10, watches=[Watch(1, b"x", 0)]), "no absolute path"),
    ("pidfd", put(11, process=1 << 23), "its process"),
    ("master", put(12, terminal=2), "the terminal 2"),
    ("slave", put(13, terminal=2), "the terminal 2"),
    ("socket", lambda i: i.sockets.pop(14), "the socket 14"),
    ("pipe is full", lambda i: i.pipes[1].content.append(b"x"), "more than it can"),
    ("capacity", lambda i: setattr(i.pipes[1], "capacity", 0), "capacity"),
    ("peer", lambda i: setattr(i.sockets[14], "peer", 9), "the socket 9"),
    ("state", lambda i: setattr(i.sockets[14], "state", "x"), "state 'x'"),
    ("raw", lambda i: setattr(i.sockets[14], "type", 3), "type 3"),
    ("truncated", lambda i: setattr(i.files[14], "flags", 0o1001), "flags cannot be 0o1001"),
    ("family", lambda i: setattr(i.sockets[14], "family", 99), "family"),
    ("address", lambda i: setattr(i.sockets[14], "name", bytes(200)), "address cannot have 200 bytes"),
    ("in flight", lambda i: i.sockets[14].queue[0].files.append(99), "the file 99"),
    ("many in flight", lambda i: i.sockets[14].queue[0].files.extend([0] * 300), "302 files"),
    ("a socket's file", lambda i: i.sockets.update({1: Socket(1, 1)}), "socket 1 is of no file"),
    ("peer's kind", lambda i: setattr(i.sockets[15], "family", 2), "a peer of another kind"),
    ("peer's peer", lambda i: setattr(i.sockets[15], "peer", 0), "a peer that has another one"),
    ("own peer", lambda i: setattr(i.sockets[14], "peer", 14), "a peer that has another one"),
    ("from nobody", lambda i: setattr(i.sockets[14], "peer", 0), "from nobody"),
    ("waiting", lambda i: i.sockets[14].waiting.append(9), "the socket 9"),
    ("terminal", lambda i: setattr(i.terminals[1], "number", -2), "its number"),
    ("settings", lambda i: setattr(i.terminals[1], "settings", b"x"), "settings"),
    ("record lock", lambda i: i.locks[1].append(RecordLock(99, True, 0, 0)), "descriptor 99"),
    ("lock's table", lambda i: i.locks.update({5: []}), "table 5"),
]


@pytest.mark.parametrize(("change", "says"), [entry[1:] for entry in NONSENSE], ids=[entry[0] for entry in NONSENSE])
def test_nonsense(change: Callable[[Image], object], says: str) -> None:
    found = image()
    change(found)
    with pytest.raises(Bad) as caught:
        check_image(found)
    assert says in str(caught.value)
