"""Whether the records of open files make sense: what they refer to, and numbers that the host could have given."""

from __future__ import annotations

from trapline.sentry.state import files
from trapline.sentry.state.files import AnyFile, Socket, Terminal
from trapline.sentry.state.image_bounds import (
    MOST_DESCRIPTORS,
    MOST_PIDS,
    U32,
    U64,
    Bad,
    absolute,
    known,
    length,
    name,
    number,
)
from trapline.sentry.state.records import Image

_OFFSETS = 1 << 63
_CLOCKS = 12  # MAX_CLOCKS is 16; ids from 12 on are no clocks
_PIPE_MOST = 1 << 31  # round_pipe_size (fs/pipe.c)
_SOCKADDR = 128  # struct sockaddr_storage
_TERMIOS2 = 44
#: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: others are not saved; and SOCK_STREAM, SOCK_DGRAM, SOCK_RAW (of AF_NETLINK),
#: SOCK_SEQPACKET (of AF_UNIX).
_SOCKETS = {1: (1, 2, 5), 2: (1, 2), 10: (1, 2), 16: (2, 3)}
#: O_CREAT, O_EXCL, O_TRUNC: what open(2) did, which F_GETFL does not tell.
_AT_OPEN = 0o100 | 0o200 | 0o1000
_SCM_MAX_FD = 253
_SOCKET_STATES = ("", "connected", "listening", "ended", "reset", "waiting")
_DATAGRAMS = 2  # SOCK_DGRAM
_INTERNET = {2, 10}  # AF_INET, AF_INET6


def check_files(image: Image) -> None:
    """All descriptions, and the pipes, sockets, terminals and locks that they share. Bad."""
    for key, file in image.files.items():
        _check_file(f"file {key}", file, image)
        if isinstance(file, files.SocketFile):
            known(f"file {key}", "the socket", key, image.sockets)
    for key, pipe in image.pipes.items():
        number(f"the capacity of pipe {key}", pipe.capacity, _PIPE_MOST + 1, 1)
        if sum(map(len, pipe.content)) > pipe.capacity:
            raise Bad(f"pipe {key} holds more than it can")
    for key, socket in image.sockets.items():
        _check_socket(f"socket {key}", socket, image)
        _check_peer(f"socket {key}", key, socket, image)
    if image.caller_terminal:
        length("the settings of the caller's terminal", image.caller_terminal, _TERMIOS2, _TERMIOS2)
    for key, terminal in image.terminals.items():
        _check_terminal(f"terminal {key}", terminal)
    for table, locks in image.locks.items():
        known("a lock", "the table", table, image.tables)
        for lock in locks:
            known(f"a lock of table {table}", "the descriptor", lock.descriptor, image.tables[table])
            number("the start of a lock", lock.start, _OFFSETS)
            number("the length of a lock", lock.length, _OFFSETS)


def _check_file(who: str, file: AnyFile, image: Image) -> None:
    number(f"{who}: its flags", file.flags, U32)
    if file.flags & _AT_OPEN:
        raise Bad(f"{who}: its flags cannot be {file.flags:#o}")
    number(f"{who}: the kind of its owner", file.owner_kind, 3)
    number(f"{who}: its owner", file.owner, MOST_PIDS + 1)
    number(f"{who}: its signal", file.signal, 65)
    for lock in file.locks:
        if lock.kind not in ("flock", "ofd"):
            raise Bad(f"{who} has a lock of the kind '{lock.kind}', which there is not")
        number(f"{who}: the start of a lock", lock.start, _OFFSETS)
        number(f"{who}: the length of a lock", lock.length, _OFFSETS)
    match file:
        case files.PathFile():
            absolute(f"{who}: its path", file.path)
            number(f"{who}: its position", file.position, _OFFSETS)
            number(f"{who}: whose it is", file.process, MOST_PIDS + 1)
        case files.GhostFile():
            known(who, "the nameless file", file.ghost, image.ghosts)
            number(f"{who}: its position", file.position, _OFFSETS)
        case files.MemoryFile():
            known(who, "shared memory", file.key, image.shared)
            number(f"{who}: its position", file.position, _OFFSETS)
        case files.InheritedFile():
            number(f"{who}: the caller's descriptor", file.number, MOST_DESCRIPTORS)
        case files.PipeEnd():
            known(who, "the pipe", file.pipe, image.pipes)
            name(f"{who}: its path", file.path)
        case files.EventCounter():
            number(f"{who}: its count", file.count, U64)
        case files.SignalFile():
            number(f"{who}: its mask", file.mask, U64)
        case files.TimerFile():
            number(f"{who}: its clock", file.clock, _CLOCKS)
            number(f"{who}: its deadline", file.deadline, _OFFSETS, -_OFFSETS)
            number(f"{who}: its interval", file.interval, _OFFSETS)
            number(f"{who}: its settings", file.settings, 4)
            number(f"{who}: its ticks", file.ticks, U64)
        case files.EventPoll():
            for interest in file.interests:
                known(who, "the file", interest.file, image.files)
                number(f"{who}: a descriptor", interest.descriptor, MOST_DESCRIPTORS)
                number(f"{who}: a set of events", interest.events, U32)
                number(f"{who}: what is told with events", interest.data, U64)
        case files.Notifier():
            for watch in file.watches:
                absolute(f"{who}: a watched path", watch.path)
                number(f"{who}: a watch", watch.number, 1 << 31, 1)
                number(f"{who}: the mask of a watch", watch.mask, U32)
        case files.ProcessFile():
            number(f"{who}: its process", file.process, MOST_PIDS + 1)
        case files.TerminalMaster() | files.TerminalSlave():
            known(who, "the terminal", file.terminal, image.terminals)


def _check_socket(who: str, socket: Socket, image: Image) -> None:
    if socket.type not in _SOCKETS.get(socket.family, ()):
        raise Bad(f"{who} cannot be of the family {socket.family} and the type {socket.type}")
    number(f"{who}: its protocol", socket.protocol, 1 << 31)
    if socket.state not in _SOCKET_STATES:
        raise Bad(f"{who} is in the state '{socket.state}', which there is not")
    for address in (socket.name, socket.peer_name, *(message.sender for message in socket.queue)):
        length(f"{who}: an address", address, _SOCKADDR)
    name(f"{who}: its directory", socket.directory)
    number(f"{who}: its backlog", socket.backlog, 1 << 31, -(1 << 31))
    number(f"{who}: what it has shut down", socket.shutdown, 4)
    for level, option, value in socket.options:
        number(f"{who}: the level of an option", level, 1 << 31)
        number(f"{who}: an option", option, 1 << 31)
        length(f"{who}: the value of an option", value, 1 << 16)
    for other in [key for key in [socket.peer, *socket.waiting] if key]:
        known(who, "the socket", other, image.sockets)
    for message in socket.queue:
        if len(message.files) > _SCM_MAX_FD:
            raise Bad(f"{who}: {len(message.files)} files are in one message")
        for file in message.files:
            known(f"a message to {who}", "the file", file, image.files)
    senders = [word for message in socket.queue for word in message.credentials or ()]
    for word in (*(socket.node or ()), *(socket.credentials or ()), *senders):
        number(f"{who}: an id", word, U32)


def _may_meet(one: int, other: int) -> bool:
    """An IPv6 socket has connections to IPv4 ones, too (ipv6(7))."""
    return one == other or {one, other} == _INTERNET


def _check_peer(who: str, key: int, socket: Socket, image: Image) -> None:
    """What is needed to connect and fill it."""
    if not isinstance(image.files.get(key), files.SocketFile):
        raise Bad(f"{who} is of no file")
    peer = image.sockets.get(socket.peer)
    if socket.peer and (peer is None or peer.type != socket.type or not _may_meet(peer.family, socket.family)):
        raise Bad(f"{who} has a peer of another kind")
    if socket.type == _DATAGRAMS:
        return
    if peer is not None and (peer.peer != key or socket.peer == key or socket.state != "connected"):
        raise Bad(f"{who} has a peer that has another one")
    if (socket.queue or socket.unsent) and peer is None and socket.state not in ("ended", "reset"):
        raise Bad(f"{who} has received something from nobody")


def _check_terminal(who: str, terminal: Terminal) -> None:
    number(f"{who}: its number", terminal.number, 1 << 20, -1)
    if terminal.settings:
        length(f"{who}: its settings", terminal.settings, _TERMIOS2, _TERMIOS2)
    for word in terminal.window:
        number(f"{who}: its window", word, 1 << 16)
    number(f"{who}: its mode", terminal.mode, 0o10000)
    number(f"{who}: its user", terminal.uid, U32)
    number(f"{who}: its group", terminal.gid, U32)
