"""Records of open file descriptions: what dup(2), fork(2) and SCM_RIGHTS share, one record each.

A description is known by its key in `Image.files`, and a table of descriptors refers to it by that. Objects that
several descriptions have in common, and that end with the last of them, have a record and key of their own: pipes, and
the queues of sockets. Flags are those that F_GETFL tells. Paths are as the sandbox's root shows them.
"""

from __future__ import annotations

import msgspec


class FileLock(msgspec.Struct):
    """A lock that belongs to the description: flock(2), or F_OFD_SETLK of fcntl(2)."""

    kind: str  # "flock", "ofd"
    exclusive: bool
    start: int = 0
    length: int = 0  # 0: to the end, wherever that is


class RecordLock(msgspec.Struct):
    """A lock of F_SETLK, which belongs to a table of descriptors and a file."""

    descriptor: int  # one that is open on the file
    exclusive: bool
    start: int
    length: int


class Descriptor(msgspec.Struct):
    """One entry of a table."""

    file: int
    close_on_exec: bool = False


class OpenFile(msgspec.Struct, tag_field="kind", kw_only=True):
    """What all kinds have."""

    flags: int = 0
    owner_kind: int = 1  # F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP
    owner: int = 0  # 0: nobody
    signal: int = 0  # F_GETSIG
    locks: list[FileLock] = []


class PathFile(OpenFile, tag="path"):
    """A regular file, directory, symbolic link (O_PATH) or device that has a path."""

    path: bytes
    position: int = 0
    device: int = 0  # st_dev and st_ino, to know it again
    inode: int = 0
    type: int = 0  # S_IFMT of st_mode
    #: It lies in /proc/PID of the process with this id: it can be opened once that exists. 0: of none.
    process: int = 0


class GhostFile(OpenFile, tag="ghost"):
    """A file or directory without a name: what it is lies in `Image.ghosts`."""

    ghost: str
    position: int = 0


class QueueFile(OpenFile, tag="mqueue"):
    """A POSIX message queue (mq_open(3)), which is in `Image.ipc`."""

    name: bytes  # without the slash


class MemoryFile(OpenFile, tag="memfd"):
    """memfd_create(2); its content is an object of `Image.shared`."""

    key: str
    position: int = 0


class InheritedFile(OpenFile, tag="inherited"):
    """The caller's of the command that started the sandbox: after a restore, of the one that restores it."""

    number: int  # the caller's descriptor
    reopened: bool = False  # through /proc/self/fd or /dev/stdin: another description of the same file


class DroppedFile(OpenFile, tag="dropped"):
    """What could not be saved: /dev/null is in its place."""

    what: str


class PipeEnd(OpenFile, tag="pipe"):
    """One end of a pipe, by the access mode of `flags`; both, where it was opened so."""

    pipe: int  # in Image.pipes
    path: bytes = b""  # of a FIFO


class EventCounter(OpenFile, tag="eventfd"):
    """eventfd(2)."""

    count: int
    semaphore: bool = False


class SignalFile(OpenFile, tag="signalfd"):
    """signalfd(2)."""

    mask: int


class TimerFile(OpenFile, tag="timerfd"):
    """timerfd_create(2)."""

    clock: int
    deadline: int = 0  # on the sandbox's clock, ns; 0: disarmed
    interval: int = 0  # ns
    settings: int = 0  # TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET
    ticks: int = 0  # expirations that were not read
    cancelled: bool = False  # a step of the wall clock has cancelled it, and its reader was not told


class Interest(msgspec.Struct):
    """One entry of an epoll set."""

    descriptor: int  # its number when it was added
    file: int
    events: int
    data: int


class EventPoll(OpenFile, tag="epoll"):
    """epoll_create(2)."""

    interests: list[Interest] = []
    ready: bool = True  # something was ready: edges that were reported already may be reported once more


class Watch(msgspec.Struct):
    """inotify_add_watch(2)."""

    number: int
    path: bytes
    mask: int


class Notifier(OpenFile, tag="inotify"):
    """inotify_init(2)."""

    watches: list[Watch] = []


class ProcessFile(OpenFile, tag="pidfd"):
    """pidfd_open(2)."""

    process: int = 0  # its id in the sandbox; 0: it has ended and was waited for
    thread: bool = False  # PIDFD_THREAD


class TerminalMaster(OpenFile, tag="master"):
    """A master of the sandbox's devpts: an open of /dev/ptmx."""

    terminal: int  # in Image.terminals


class TerminalSlave(OpenFile, tag="slave"):
    """A terminal of the sandbox's devpts, by /dev/pts/N or /dev/tty."""

    terminal: int


class SocketFile(OpenFile, tag="socket"):
    """socket(2): what it is, is in `Image.sockets` under the same key."""


class Terminal(msgspec.Struct):
    """A pseudoterminal of the sandbox's own devpts."""

    number: int  # -1: its master is closed
    settings: bytes = b""  # struct termios2
    window: tuple[int, int, int, int] = (0, 0, 0, 0)  # struct winsize
    closed: bool = False  # nobody has the slave open any more: the master is told so
    locked: bool = False  # TIOCGPTLCK
    packet: bool = False  # TIOCGPKT
    exclusive: bool = False  # TIOCGEXCL
    #: Unread by the slave: lines, of which one without a newline was ended by VEOF; then what is no line yet.
    input: list[bytes] = []
    output: bytes = b""  # unread by the master
    mode: int = 0o620
    uid: int = 0
    gid: int = 0
    #: Its master is trapline's own (`-t`): the restoring command has a terminal in its place.
    own: bool = False


class Pipe(msgspec.Struct):
    """pipe(2), or a FIFO that somebody has open."""

    capacity: int
    #: What was written and not read. Packets (O_DIRECT) one by one.
    content: list[bytes] = []


class Message(msgspec.Struct):
    """What one send(2) left in a queue; of a stream, a run of bytes that have the same ancillary data."""

    data: bytes
    files: list[int] = []  # descriptions in flight (SCM_RIGHTS)
    sender: bytes = b""  # address of a datagram's sender
    credentials: tuple[int, int, int] | None = None  # SCM_CREDENTIALS, where the receiver asks for them


class Socket(msgspec.Struct):
    """A socket; its key is that of its description. Addresses are struct sockaddr, as getsockname(2) gives it."""

    family: int
    type: int  # without SOCK_NONBLOCK and SOCK_CLOEXEC
    protocol: int = 0
    name: bytes = b""  # bound to; b"" for none
    peer_name: bytes = b""  # getpeername(2)
    peer: int = 0  # key of the peer's socket; 0: none, or it is closed
    #: "" neither, "connected", "listening", "ended" (the peer has gone; what it sent may still be read), "reset" (it
    #: has gone with something unread), "waiting" (connected to a listening socket, and not accepted yet)
    state: str = ""
    backlog: int = 0
    options: list[tuple[int, int, bytes]] = []  # level, name, value of setsockopt(2)
    buffer_locks: int = -1  # SO_BUF_LOCK; -1: the host has none
    shutdown: int = 0  # bit 0: receives no more, bit 1: sends no more
    queue: list[Message] = []  # received and not read
    unsent: bytes = b""  # sent, and not yet in the peer's queue (TCP)
    waiting: list[int] = []  # keys of the sockets that wait to be accepted, in order; 0: of one that is closed again
    directory: bytes = b""  # in which a relative name of a unix socket was bound
    #: The node of a unix socket's name in the file system: mode, uid, gid; None: it is there no more.
    node: tuple[int, int, int] | None = None
    credentials: tuple[int, int, int] | None = None  # SO_PEERCRED: process, user, group


AnyFile = (
    PathFile
    | GhostFile
    | QueueFile
    | MemoryFile
    | InheritedFile
    | DroppedFile
    | PipeEnd
    | EventCounter
    | SignalFile
    | TimerFile
    | EventPoll
    | Notifier
    | ProcessFile
    | TerminalMaster
    | TerminalSlave
    | SocketFile
)


def first_free(files: dict[int, AnyFile], tables: dict[int, dict[int, Descriptor]]) -> int:
    """A number above all that the image's descriptors have, or had when they were added to an epoll set."""
    highest = max((max(table, default=-1) for table in tables.values()), default=-1)
    for file in files.values():
        if isinstance(file, EventPoll):
            highest = max([highest, *(interest.descriptor for interest in file.interests)])
    return highest + 1
