"""A program that makes descriptors of one kind, and tells later what it finds in them.

    descriptor_kinds.py make KIND            make them, print a line, wait for a line, print what is found (JSON)
    descriptor_kinds.py restore KIND IMAGE   take them from a checkpoint's record, and print what is found

What both print must be equal: whether a process's descriptors were looked at, or made again, it finds the same.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
import tty
from collections.abc import Callable

FIRST = 20  # number of the first descriptor that a kind makes
Numbers = list[int]
libc = ctypes.CDLL(None, use_errno=True)


def place(*made: int) -> Numbers:
    """Move descriptors to FIRST and on."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 300) for fd in made]
    for fd in made:
        os.close(fd)
    for index, fd in enumerate(high):
        os.dup2(fd, FIRST + index)
        os.close(fd)
    return [FIRST + index for index in range(len(made))]


def common(fd: int) -> list[object]:
    """What every descriptor has."""
    status = os.fstat(fd)
    return [
        fcntl.fcntl(fd, fcntl.F_GETFL),
        fcntl.fcntl(fd, fcntl.F_GETFD),
        fcntl.fcntl(fd, 10),  # F_GETSIG
        status.st_mode,
    ]


def read_all(fd: int, size: int = 1 << 20) -> list[str]:
    """What can be read now, read by read."""
    os.set_blocking(fd, False)
    found = []
    while True:
        try:
            data = os.read(fd, size)
        except OSError as error:
            found.append(errno.errorcode[error.errno or 0])
            return found
        found.append(data.hex() if len(data) < 100 else f"{len(data)}:{hash_of(data)}")
        if not data:
            return found


def hash_of(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()[:16]


# -- files
def make_files(work: str) -> Numbers:
    with open("file", "wb") as f:
        f.write(bytes(range(256)))
    one = os.open("file", os.O_RDWR | os.O_APPEND)
    os.lseek(one, 100, os.SEEK_SET)
    copy = os.dup(one)
    two = os.open("file", os.O_RDONLY | os.O_NONBLOCK)
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    path = os.open("file", os.O_PATH)
    os.symlink("file", "link")
    link = os.open("link", os.O_PATH | os.O_NOFOLLOW)
    with open("gone", "wb") as f:
        f.write(b"deleted " * 1000)
    gone = os.open("gone", os.O_RDWR)
    gone_again = os.open("gone", os.O_RDONLY)
    os.lseek(gone, 7990, os.SEEK_SET)
    os.unlink("gone")
    temporary = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(temporary, b"never had a name")
    os.mkdir("was")
    dead = os.open("was", os.O_RDONLY)
    os.rmdir("was")
    os.rename("file", "renamed")
    os.write(os.open("odd\udcff\n name", os.O_CREAT | os.O_WRONLY), b"x")
    odd = os.open("odd\udcff\n name", os.O_RDONLY)
    made = place(one, copy, two, directory, path, link, gone, gone_again, temporary, dead, odd)
    fcntl.fcntl(made[0], fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return made


def report_files(fds: Numbers) -> object:
    one, copy, two, directory, path, link, gone, gone_again, temporary, dead, odd = fds
    found: list[object] = [common(fd) if fd not in (path, link) else fcntl.fcntl(fd, fcntl.F_GETFL) for fd in fds]
    found.append([os.lseek(fd, 0, os.SEEK_CUR) for fd in (one, copy, two, gone, gone_again, temporary)])
    os.lseek(one, 33, os.SEEK_SET)
    found.append([os.lseek(copy, 0, os.SEEK_CUR), os.lseek(two, 0, os.SEEK_CUR)])
    found.append(sorted(os.listdir(directory)))
    found.append(os.readlink("", dir_fd=link))
    found.append(os.pread(gone_again, 9000, 0).hex())
    os.pwrite(gone, b"DELETED", 0)
    found.append(os.pread(gone_again, 16, 0).hex())
    found.append([os.fstat(fd).st_nlink for fd in (gone, gone_again, temporary, dead)])
    found.append(os.pread(temporary, 100, 0).hex())
    found.append([os.readlink(f"/proc/self/fd/{fd}") for fd in (one, gone)])
    found.append(os.read(odd, 10).hex())
    return found


def make_devices(work: str) -> Numbers:
    return place(*[os.open("/dev/" + n, os.O_RDWR) for n in ("null", "zero", "full", "urandom")])


def report_devices(fds: Numbers) -> object:
    found: list[object] = [common(fd) for fd in fds]
    try:
        os.write(fds[2], b"x")
    except OSError as error:
        found.append(error.errno)
    return [*found, os.read(fds[0], 9).hex(), os.read(fds[1], 9).hex(), len(os.read(fds[3], 9)), *links(fds)]


def links(fds: Numbers) -> list[str]:
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]


# -- pipes
def make_pipes(work: str) -> Numbers:
    r, w = os.pipe()
    os.write(w, b"in the pipe")
    full_r, full_w = os.pipe()
    fcntl.fcntl(full_w, 1031, 4096 * 64)
    os.set_blocking(full_w, False)
    os.write(full_w, os.urandom(1 << 20))
    packet_r, packet_w = os.pipe2(os.O_DIRECT)
    for text in (b"one", b"two and", b"three"):
        os.write(packet_w, text)
    closed_r, closed_w = os.pipe()
    os.write(closed_w, b"the last words")
    os.close(closed_w)
    broken_r, broken_w = os.pipe()
    os.close(broken_r)
    os.mkfifo("fifo")
    fifo_r = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    fifo_w = os.open("fifo", os.O_WRONLY)
    fifo_rw = os.open("fifo", os.O_RDWR)
    os.write(fifo_w, b"by name")
    again = os.open(f"/proc/self/fd/{w}", os.O_WRONLY | os.O_NONBLOCK)
    made = place(r, w, full_r, full_w, packet_r, packet_w, closed_r, broken_w, fifo_r, fifo_w, fifo_rw, again)
    fcntl.fcntl(made[0], 10, signal.SIGUSR1)  # F_SETSIG
    fcntl.fcntl(made[0], fcntl.F_SETOWN, os.getpid())
    return made


def report_pipes(fds: Numbers) -> object:
    r, w, full_r, _, packet_r, _, closed_r, broken_w, fifo_r, fifo_w, fifo_rw, again = fds
    found: list[object] = [common(fd) for fd in fds]
    found.append([fcntl.fcntl(fd, 1032) for fd in (r, full_r)])
    found.append(fcntl.fcntl(r, fcntl.F_GETOWN))
    os.write(w, b" and more")
    os.write(again, b" again")
    os.write(fifo_w, b" more")
    found.append(os.fstat(fifo_r).st_ino == os.fstat(fifo_w).st_ino == os.fstat(fifo_rw).st_ino)
    found.append(os.path.basename(os.readlink(f"/proc/self/fd/{fifo_w}")))
    for fd in (r, full_r, packet_r, closed_r, fifo_r):
        found.append(read_all(fd))
    try:
        os.write(broken_w, b"x")
    except OSError as error:
        found.append(error.errno)
    os.close(w)
    os.close(again)
    found.append(read_all(r))
    return found


# -- without files
def poll_of(fd: int) -> select.epoll:
    """An object that closes no more than its own duplicate."""
    return select.epoll.fromfd(os.dup(fd))


def make_counters(work: str) -> Numbers:
    one = os.eventfd(7)
    two = os.eventfd(3, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
    mask = (1 << (signal.SIGUSR1 - 1)).to_bytes(8, "little")
    signals = libc.signalfd(-1, mask, os.O_NONBLOCK)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    timer = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
    libc.timerfd_settime(timer, 0, struct.pack("qqqq", 1000, 0, 500, 0), None)
    passed = libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK)
    libc.timerfd_settime(passed, 1, struct.pack("qqqq", 0, 0, 1, 0), None)
    periodic = libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK)
    now = int(time.time())
    libc.timerfd_settime(periodic, 3, struct.pack("qqqq", 100, 0, now - 250, 0), None)
    disarmed = libc.timerfd_create(time.CLOCK_BOOTTIME, 0)
    many = [os.eventfd(n) for n in range(100)]
    return place(one, two, signals, timer, passed, periodic, disarmed, *many)


def left_of(fd: int) -> tuple[int, int]:
    old = ctypes.create_string_buffer(32)
    libc.timerfd_gettime(fd, old)
    interval, _, seconds, _ = struct.unpack("qqqq", old.raw)
    return interval, (seconds + 5) // 10  # what a capture takes is no difference


def report_counters(fds: Numbers) -> object:
    one, two, signals, timer, passed, periodic, disarmed, *many = fds
    found: list[object] = [common(fd) for fd in fds]
    found.append([left_of(fd) for fd in (timer, passed, periodic, disarmed)])
    found.append([read_all(fd, 8) for fd in (one, two, timer, passed, periodic)])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR1)
    found.append(struct.unpack_from("I", os.read(signals, 128))[0])
    found.append([os.eventfd_read(fd) for fd in many if fd != many[0]])
    return found


def make_polls(work: str) -> Numbers:
    poll = libc.epoll_create1(0)
    r, w = os.pipe()
    quiet_r, quiet_w = os.pipe()
    (poll, r, w, quiet_r, quiet_w, hidden) = place(poll, r, w, quiet_r, quiet_w, os.eventfd(1))
    e = poll_of(poll)
    e.register(r, select.EPOLLIN | select.EPOLLET)
    e.register(w, select.EPOLLOUT | select.EPOLLONESHOT)
    e.register(quiet_r, select.EPOLLIN)
    os.write(w, b"x")
    e.poll(0)  # reports r's edge, and switches w off
    moved = os.dup(hidden)
    e.register(hidden, select.EPOLLIN | select.EPOLLONESHOT)
    e.poll(0)
    e.modify(hidden, select.EPOLLOUT | select.EPOLLONESHOT)
    e.poll(0)
    outer = libc.epoll_create1(0)
    o = poll_of(outer)
    o.register(poll, select.EPOLLIN)
    os.dup2(moved, 90)
    os.close(moved)
    os.close(hidden)  # the set has it as `hidden` still
    os.dup2(outer, 91)
    os.close(outer)
    return [poll, r, w, quiet_r, quiet_w, 90, 91]


def report_polls(fds: Numbers) -> object:
    poll, r, w, quiet_r, quiet_w, _, outer = fds
    e, o = poll_of(poll), poll_of(outer)
    found: list[object] = [common(fd) for fd in fds]
    found.append(sorted(e.poll(0)))
    found.append(sorted(o.poll(0)))
    os.write(quiet_w, b"y")
    found.append(sorted(e.poll(0)))
    found.append(sorted(o.poll(0)))
    os.write(w, b"another edge")
    found.append(sorted(e.poll(0)))
    e.modify(w, select.EPOLLOUT)
    found.append(sorted(e.poll(0)))
    e.unregister(quiet_r)
    try:
        e.register(r, select.EPOLLIN)
    except FileExistsError:
        found.append("exists")
    found.append(sorted(e.poll(0)))
    return found


def make_watches(work: str) -> Numbers:
    os.mkdir("watched")
    with open("watched/file", "w"):
        pass
    fd = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(fd, b"watched", 0x100 | 0x200)  # IN_CREATE | IN_DELETE
    unused = libc.inotify_add_watch(fd, b"/", 0x100)
    libc.inotify_rm_watch(fd, unused)
    libc.inotify_add_watch(fd, b"watched/file", 0x2)
    os.read(fd, 4096)
    return place(fd)


def report_watches(fds: Numbers) -> object:
    found: list[object] = [common(fds[0]), read_all(fds[0])]
    with open("watched/new", "w"):
        pass
    os.unlink("watched/new")
    with open("watched/file", "w") as f:
        f.write("x")
    return [*found, read_all(fds[0])]


def make_memory(work: str) -> Numbers:
    one = os.memfd_create("name of it", os.MFD_ALLOW_SEALING)
    os.write(one, b"content" * 1000)
    fcntl.fcntl(one, 1033, 2 | 4)  # F_SEAL_SHRINK | F_SEAL_GROW
    read_only = os.open(f"/proc/self/fd/{one}", os.O_RDONLY)
    return place(one, read_only)


def report_memory(fds: Numbers) -> object:
    one, read_only = fds
    found: list[object] = [common(fd) for fd in fds]
    found.append([os.lseek(fd, 0, os.SEEK_CUR) for fd in fds])
    found.append(links(fds))
    os.pwrite(one, b"CONTENT", 0)
    found.append(hash_of(os.pread(read_only, 10000, 0)))
    found.append(fcntl.fcntl(one, 1034))
    return found


def make_processes(work: str) -> Numbers:
    child = os.fork()
    if child == 0:
        os._exit(0)
    dead = os.pidfd_open(child)
    os.waitpid(child, 0)
    own = os.pidfd_open(os.getpid(), os.O_NONBLOCK)
    status = os.open("/proc/self/status", os.O_RDONLY)
    os.read(status, 5)
    made = place(dead, own, status)
    poll = select.epoll()
    poll.register(made[1], select.EPOLLIN, )
    poll.register(made[0], select.EPOLLIN)
    os.dup2(poll.fileno(), 40)
    return [*made, 40]


def report_processes(fds: Numbers) -> object:
    dead, own, status, poll = fds
    found: list[object] = [common(fd) for fd in fds]
    try:
        signal.pidfd_send_signal(dead, 0)
    except OSError as error:
        found.append(error.errno)
    signal.pidfd_send_signal(own, 0)
    found.append(os.read(status, 7).decode())
    found.append(sorted(poll_of(poll).poll(0)))
    with open(f"/proc/self/fdinfo/{poll}") as f:
        found.append(sorted(line.split()[1] for line in f if line.startswith("tfd")))
    return found


def make_locks(work: str) -> Numbers:
    with open("locked", "wb") as f:
        f.write(bytes(100))
    flocked = os.open("locked", os.O_RDWR)
    fcntl.flock(flocked, fcntl.LOCK_SH)
    with open("recorded", "wb") as f:
        f.write(bytes(100))
    posix = os.open("recorded", os.O_RDWR)
    fcntl.lockf(posix, fcntl.LOCK_EX, 10, 20)
    fcntl.lockf(posix, fcntl.LOCK_SH, 0, 50)
    with open("of_file", "wb") as f:
        f.write(bytes(100))
    own = os.open("of_file", os.O_RDWR)
    fcntl.fcntl(own, 37, struct.pack("hhxxxxqqixxxx", fcntl.F_WRLCK, 0, 5, 6, 0))  # F_OFD_SETLK
    return place(flocked, posix, own)


def report_locks(fds: Numbers) -> object:
    found = []
    for fd in fds:
        with open(f"/proc/self/fdinfo/{fd}") as f:
            lines = [line.split()[2:5] + line.split()[7:] for line in f if line.startswith("lock:")]
        found.append(sorted(lines))
    return found


# -- sockets
def make_pairs(work: str) -> Numbers:
    made = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        a, b = socket.socketpair(socket.AF_UNIX, kind)
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100000)
        b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1 if kind == socket.SOCK_DGRAM else 0)
        a.settimeout(None)
        for text in (b"one", b"two and", b"three" * 1000):
            a.send(text)
        b.send(b"back")
        made += [a.detach(), b.detach()]
    ended, closed = socket.socketpair()
    closed.send(b"last words")
    closed.close()
    reset, closed = socket.socketpair()
    reset.send(b"never read")
    closed.send(b"words")
    closed.close()
    half, other = socket.socketpair()
    half.send(b"all of it")
    half.shutdown(socket.SHUT_WR)
    # In flight: a file, a pipe's end, an end of a pair that is in its own queue, a pair's end within it.
    a, b = socket.socketpair()
    r, w = os.pipe()
    os.write(w, b"in the pipe in flight")
    fd = os.open("/dev/zero", os.O_RDONLY)
    c, d = socket.socketpair()
    c.send(b"in the socket in flight")
    a.send(b"before")
    socket.send_fds(a, [b"carries"], [r, fd, d.fileno()])
    a.send(b"after")
    socket.send_fds(c, [b"own"], [d.fileno()])
    d.close()
    os.close(r)
    os.close(fd)
    rest = (ended, reset, half, other, a, b, c)
    return place(*made, *(s.detach() for s in rest), w)


def receive_all(fd: int, size: int = 65536) -> list[object]:
    found: list[object] = []
    s = socket.socket(fileno=os.dup(fd))
    with s:
        while True:
            try:
                data, ancillary, flags, address = s.recvmsg(size, 4096, socket.MSG_DONTWAIT)
            except OSError as error:
                found.append(errno.errorcode[error.errno or 0])
                return found
            carried = []
            for _, kind, value in ancillary:
                if kind == socket.SCM_RIGHTS:
                    for got in array.array("i", value):
                        carried.append(describe(got))
                        os.close(got)
                else:
                    carried.append(value.hex()[8:])  # not the process: the one that was looked at has it
            found.append([data[:40].decode(), len(data), carried, flags, str(address)])
            if not data:
                return found


def describe(fd: int) -> object:
    """What a descriptor that was in flight is."""
    mode = os.fstat(fd).st_mode >> 12
    if mode == 1:
        return ["pipe", read_all(fd)]
    if mode == 0o14:
        return ["socket", receive_all(fd)]
    return [mode, os.readlink(f"/proc/self/fd/{fd}")]


def options(fd: int) -> list[str]:
    s = socket.socket(fileno=os.dup(fd))
    with s:
        found = [str(s.getsockname()), str(s.family), str(s.type), str(s.proto)]
        for name in (2, 7, 8, 9, 15, 16, 18, 30, 42, 72):
            try:
                found.append(str(s.getsockopt(socket.SOL_SOCKET, name)))
            except OSError as error:
                found.append(str(error.errno))
        try:
            found.append(str(s.getpeername()))
        except OSError as error:
            found.append(str(error.errno))
        if s.family == socket.AF_UNIX:
            found.append(s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12).hex()[8:])
        elif s.type == socket.SOCK_STREAM:
            found += [str(s.getsockopt(socket.IPPROTO_TCP, n)) for n in (socket.TCP_NODELAY, socket.TCP_KEEPIDLE)]
        return found


def report_pairs(fds: Numbers) -> object:
    found: list[object] = [common(fd) for fd in fds]
    found += [options(fd) for fd in fds[:-1]]
    found += [receive_all(fd) for fd in fds[:-1]]
    for fd in fds[:-1]:
        try:
            os.write(fd, b"again")
        except OSError as error:
            found.append(error.errno)
    found += [receive_all(fd) for fd in fds[:-1]]
    try:
        os.write(fds[-1], b"nobody reads")
    except OSError as error:
        found.append(error.errno)
    return found


def make_named(work: str) -> Numbers:
    server = socket.socket(socket.AF_UNIX)
    server.bind(work + "/server")
    os.chmod(work + "/server", 0o640)
    server.listen(7)
    client = socket.socket(socket.AF_UNIX)
    client.bind("relative")
    client.connect("server")
    accepted, _ = server.accept()
    client.send(b"to the server")
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect("server")
    gone = socket.socket(socket.AF_UNIX)
    gone.connect("server")
    gone.close()
    abstract = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    abstract.bind(b"\0trapline-test-%d" % os.getpid())
    abstract.listen(3)
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind("receiver")
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.bind("sender")
    sender.connect("receiver")
    sender.send(b"from somebody")
    nobody = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    nobody.sendto(b"from nobody", "receiver")
    nobody.close()
    removed = socket.socket(socket.AF_UNIX)
    removed.bind("removed")
    removed.listen(1)
    os.unlink("removed")
    fresh = socket.socket(socket.AF_UNIX)
    fresh.setblocking(False)
    all_of = (server, client, accepted, waiting, abstract, receiver, sender, removed, fresh)
    return place(*(s.detach() for s in all_of))


def report_named(fds: Numbers) -> object:
    server, client, accepted, waiting, abstract, receiver, sender, _, _ = fds
    found: list[object] = [common(fd) for fd in fds]
    for fd in fds:
        told = options(fd)
        found.append([text for text in told if "trapline-test" not in text])
    found.append([receive_all(fd) for fd in (client, accepted, receiver, sender)])
    os.write(accepted, b"to the client")
    os.write(sender, b"more")
    os.write(waiting, b"from who waits")
    found.append([receive_all(fd) for fd in (client, receiver)])
    s = socket.socket(fileno=os.dup(server))
    for _ in range(2):
        got, address = s.accept()
        found.append([receive_all(got.fileno()), str(address)])
    s.setblocking(False)
    try:
        s.accept()
    except BlockingIOError:
        found.append("no more")
    s.close()
    more = socket.socket(socket.AF_UNIX)
    more.connect("server")
    found.append([oct(os.stat("server").st_mode), sorted(os.listdir("."))])
    found.append(len(socket.socket(fileno=os.dup(abstract)).getsockname()))
    return found


def make_internet(work: str) -> Numbers:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 0))
    server.listen(5)
    client = socket.create_connection(server.getsockname())
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    accepted, _ = server.accept()
    client.send(b"unread by the server")
    big, _ = socket.create_connection(server.getsockname()), None
    big_accepted, _ = server.accept()
    big_accepted.setblocking(False)
    count = 0
    try:
        while True:
            count += big_accepted.send(bytes(range(256)) * 256)
    except BlockingIOError:
        pass
    half = socket.create_connection(server.getsockname())
    half_accepted, _ = server.accept()
    half.send(b"the end")
    half.shutdown(socket.SHUT_WR)
    left = socket.create_connection(server.getsockname())
    left_accepted, _ = server.accept()
    left.send(b"last words")
    left.close()
    waiting = socket.create_connection(server.getsockname())
    six = socket.socket(socket.AF_INET6)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    six.bind(("::1", 0))
    six.listen(2)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    udp_client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp_client.connect(udp.getsockname())
    udp_client.send(b"a datagram")
    udp_client.send(b"and one more")
    fresh = socket.socket()
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    netlink.bind((0, 0))
    all_of = (
        server, client, accepted, big, big_accepted, half, half_accepted, left_accepted, waiting, six, udp, udp_client,
        fresh, netlink,
    )  # fmt: skip
    return place(*(s.detach() for s in all_of))


def stream(fd: int, size: int) -> list[object]:
    """Up to so many bytes, waiting for them."""
    s = socket.socket(fileno=os.dup(fd))
    s.settimeout(5)
    data = b""
    while len(data) < size:
        more = s.recv(size - len(data))
        if not more:
            break
        data += more
    s.settimeout(None)
    s.close()
    return [len(data), hash_of(data)]


def report_internet(fds: Numbers) -> object:
    (server, client, accepted, big, big_accepted, half, half_accepted, left_accepted, waiting, six, udp, udp_client,
     _, netlink) = fds  # fmt: skip
    found: list[object] = [common(fd) for fd in fds]
    found += [options(fd)[4 if fd == netlink else 0 :] for fd in fds if fd not in (big, big_accepted)]
    found += [options(fd)[:4] for fd in (big, big_accepted)]
    os.write(client, b" and more")
    os.write(accepted, b"answer")
    os.set_blocking(big_accepted, True)
    socket.socket(fileno=os.dup(big_accepted)).shutdown(socket.SHUT_WR)
    found += [stream(accepted, 29), stream(client, 6), stream(big, 1 << 30), stream(half_accepted, 100)]
    found.append(stream(left_accepted, 100))
    os.write(half_accepted, b"to the half-closed")
    found.append(stream(half, 18))
    os.write(waiting, b"from who waits")
    s = socket.socket(fileno=os.dup(server))
    got, address = s.accept()
    found += [stream(got.fileno(), 14), str(address) == str(socket.socket(fileno=os.dup(waiting)).getsockname())]
    s.setblocking(False)
    try:
        s.accept()
    except BlockingIOError:
        found.append("no more")
    s.setblocking(True)
    six_client = socket.create_connection(socket.socket(fileno=os.dup(six)).getsockname()[:2])
    found.append(six_client.family == socket.AF_INET6)
    os.write(udp_client, b"third")
    found.append([item[:4] if isinstance(item, list) else item for item in receive_all(udp)])
    return found


# -- terminals
def make_terminals(work: str) -> Numbers:
    lines_m, lines_s = os.openpty()
    os.write(lines_m, b"a line\nan end\x04\x04half a")
    os.write(lines_s, b"unread\noutput")
    raw_m, raw_s = os.openpty()
    tty.setraw(raw_s)
    os.write(raw_m, bytes(range(200)))
    fcntl.ioctl(raw_s, termios.TIOCSWINSZ, struct.pack("4H", 50, 132, 7, 8))
    packet_m, packet_s = os.openpty()
    fcntl.ioctl(packet_m, 0x5420, struct.pack("i", 1))
    os.write(packet_s, b"in a packet")
    alone, closed = os.openpty()
    os.write(closed, b"last words")
    os.close(closed)
    fresh = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    gone, hung = os.openpty()
    os.close(gone)
    return place(lines_m, lines_s, raw_m, raw_s, packet_m, packet_s, alone, fresh, hung)


def report_terminals(fds: Numbers) -> object:
    lines_m, lines_s, raw_m, raw_s, packet_m, packet_s, alone, fresh, hung = fds
    found: list[object] = [common(fd) for fd in fds]
    found.append([os.ttyname(fd) for fd in (lines_s, raw_s, packet_s)])
    found.append([os.stat(os.ttyname(fd)).st_mode for fd in (lines_s, raw_s)])
    found.append([str(termios.tcgetattr(fd)) for fd in (lines_s, raw_s, packet_s, lines_m)])
    found.append(fcntl.ioctl(raw_s, termios.TIOCGWINSZ, bytes(8)).hex())
    found.append([fcntl.ioctl(fd, 0x80045439, bytes(4)).hex() for fd in (lines_m, fresh)])
    for fd in (lines_m, raw_m, packet_m, alone, fresh):
        found.append(read_all(fd))
    os.set_blocking(lines_s, False)
    for _ in range(4):  # an end of file is among them
        try:
            found.append(os.read(lines_s, 4096).decode())
        except OSError as error:
            found.append(error.errno)
    os.write(lines_m, b" line\n")
    found += [read_all(lines_s), read_all(lines_m), read_all(raw_s)]
    found.append(read_all(hung))
    try:
        os.write(hung, b"x")
    except OSError as error:
        found.append(error.errno)
    return found


Kind = tuple[Callable[[str], Numbers], Callable[[Numbers], object]]
KINDS: dict[str, Kind] = {
    name.removeprefix("make_"): (make, globals()["report_" + name.removeprefix("make_")])
    for name, make in list(globals().items())
    if name.startswith("make_")
}


def execute(calls: list[object]) -> None:
    """Make the calls that are meant for a restored process."""
    for call in calls:
        arguments: list[object] = []
        for argument in call:  # type: ignore[attr-defined]
            arguments.append(ctypes.c_long(argument) if isinstance(argument, int) else argument.value)
        if libc.syscall(*arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{call}: {os.strerror(number)}")


def restore(path: str, tables: list[int] | None = None) -> None:
    """Become what the image holds: its first table's process."""
    import msgspec

    from trapline.platform import restore_files
    from trapline.sentry.state.records import Image

    with open(path, "rb") as f:
        image = msgspec.msgpack.decode(f.read(), type=Image)
    shared: dict[str, int] = {}
    pool = restore_files.open_pool(
        image, max(200, restore_files.first_free(image.files, image.tables)),
        shared=shared, ghosts=lambda key: open(f"{path}.{key}", "rb"),
    )  # fmt: skip
    for key, thing in image.shared.items():
        with open(f"{path}.{key}", "rb") as f:
            os.pwrite(shared[key], f.read(), 0)
        del thing
    restore_files.seal(image, shared)
    execute(restore_files.place(image, 1, pool))


def own_network() -> None:
    """A network namespace with a loopback, in which the names of the one who was looked at are free."""
    if libc.unshare(0x40000000) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def own_terminals() -> None:
    """Likewise, for the numbers of terminals."""
    if libc.unshare(0x20000) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for source, target, kind, flags, data in (
        (b"none", b"/", None, 0x44000, None),  # MS_REC | MS_PRIVATE
        (b"devpts", b"/dev/pts", b"devpts", 0, b"newinstance,ptmxmode=0666,mode=620,gid=5"),
        (b"/dev/pts/ptmx", b"/dev/ptmx", None, 0x1000, None),  # MS_BIND
    ):
        if libc.mount(source, target, kind, ctypes.c_ulong(flags), data) < 0:
            raise OSError(ctypes.get_errno(), f"mount: {target}")


def main() -> None:
    mode, kind = sys.argv[1:3]
    make, report = KINDS[kind]
    if mode == "make":
        fds = make(os.getcwd())
        print(json.dumps(fds), flush=True)
        sys.stdin.readline()
    else:
        if kind in ("pairs", "named", "internet"):
            own_network()
        if kind == "terminals":
            own_terminals()
        restore(sys.argv[3])
        fds = json.loads(sys.argv[4])
    print(json.dumps(report(fds)), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
