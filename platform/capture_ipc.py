"""Saving a sandbox's System V objects and POSIX message queues while its guests stand still.

Nothing is changed, with two exceptions that nobody can see. A segment that nobody has attached is attached to be read
(shm_atime and shm_lpid change). POSIX queues cannot be looked into: each is emptied and filled again in the same order,
by the sentry itself, with which the sandbox would end in any case. Nobody may be registered for a message's arrival
(mq_notify(3)), who would be told of one that is none: such a queue cannot be saved.

Sources: sysvipc(7), proc_sysvipc(5), msgrcv(2) (MSG_COPY), mq_overview(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from trapline.platform import ipc_calls as ipc
from trapline.platform.capture_entry import Entry, Sink, work_inside
from trapline.platform.setup_calls import syscall
from trapline.sentry.state import archive
from trapline.sentry.state.archive import Member
from trapline.sentry.state.ipc import LIMITS, IpcRecord, MessageQueue, PosixQueue, SemaphoreSet, SharedSegment
from trapline.sentry.state.names import quoted
from trapline.sentry.state.unsavable import Unsavable

if TYPE_CHECKING:
    from trapline.platform.namespaces import Sandbox

_PAGE = 4096
_PIECE = 1 << 20  # bytes
_MADV_REMOVE = 9
_NO_QUEUES = (errno.ENODEV, errno.ENOSYS, errno.EPERM)  # a kernel without them
_Found = tuple[IpcRecord, dict[bytes, str]]  # and what cannot be saved, by name of the queue


def capture_ipc(sandbox: Sandbox, sink: Sink, strangers: set[int], refuse: Callable[[str], None]) -> IpcRecord:
    """All of the sandbox's IPC namespace. `sink` takes the content of segments that nobody has attached, an archive
    with a file `ID` for each, and is not called where there is none. `strangers` is `Session.strangers`. `refuse` is
    told what cannot be saved: it raises Unsavable, or it is left out. Unsavable, OSError.
    """
    handles: list[int] = []
    try:
        raw = work_inside(sandbox.init_pid, True, _capture, sink, strangers, handles)
        found: _Found = msgspec.msgpack.decode(raw, type=_Found)
        record, refused = found
        for text in refused.values():
            refuse(text)
        for queue, handle in zip(record.posix, handles, strict=True):
            if queue.name not in refused:
                _read_queue(queue, handle)
        return record
    finally:
        for handle in handles:
            os.close(handle)


def _capture(entry: Entry) -> bytes:
    record = IpcRecord()
    record.segments = [_segment(fields) for fields in _table("shm")]
    record.semaphores = [_semaphores(fields) for fields in _table("sem")]
    record.queues = [_messages(fields) for fields in _table("msg")]
    record.limits = _limits()
    unattached = [segment for segment in record.segments if not segment.attached]
    if unattached:
        device = _memory_device()
        for segment in unattached:
            _content(segment, device, entry.sink)
        entry.sink(archive.end())
    refused: dict[bytes, str] = {}
    record.posix = _posix_queues(entry, refused)
    return msgspec.msgpack.encode((record, refused))


def _table(name: str) -> list[list[int]]:
    """A table of proc_sysvipc(5); keys are decimal there, permissions octal."""
    try:
        with open(f"/proc/sysvipc/{name}", "rb", 0) as file:
            lines = file.read().splitlines()[1:]
    except FileNotFoundError:
        return []  # a kernel without them
    return [[int(word, 8) if index == 2 else int(word) for index, word in enumerate(line.split())] for line in lines]


def _segment(fields: list[int]) -> SharedSegment:
    key, identity, mode, size, _, _, attached, uid, gid, creator_uid, creator_gid = fields[:11]
    return SharedSegment(
        identity, ipc.signed_key(key), mode & 0o777, uid, gid, creator_uid, creator_gid,
        size, attached, bool(mode & ipc.SHM_DEST), bool(mode & ipc.SHM_LOCKED),
    )  # fmt: skip


def _semaphores(fields: list[int]) -> SemaphoreSet:
    key, identity, mode, count, uid, gid, creator_uid, creator_gid = fields[:8]
    values = ipc.semaphore_values(identity, count)
    hosts = [syscall("semctl GETPID", ipc.SEMCTL, identity, n, ipc.GETPID, None) for n in range(count)]
    pids = {host: _inner_id(host) for host in set(hosts)}
    return SemaphoreSet(
        identity, ipc.signed_key(key), mode & 0o777, uid, gid, creator_uid, creator_gid,
        values, [pids[host] for host in hosts],
    )  # fmt: skip


def _inner_id(host: int) -> int:
    """What the sandbox calls a process; 0 for one that is gone."""
    try:
        with open(f"/proc/{host}/status", "rb") as file:
            return int(file.read().partition(b"\nNSpid:")[2].partition(b"\n")[0].split()[-1])
    except (OSError, IndexError):
        return 0


def _messages(fields: list[int]) -> MessageQueue:
    key, identity, mode = fields[:3]
    uid, gid, creator_uid, creator_gid = fields[7:11]
    size, count, capacity = ipc.message_queue_state(identity)
    try:
        with open("/proc/sys/kernel/msgmax", "rb") as file:
            largest = int(file.read())
        messages = [ipc.copy_message(identity, index, min(size, largest)) for index in range(count)]
    except OSError as error:
        raise Unsavable(f"System V message queue {identity}: its messages cannot be read: {error.strerror}") from None
    return MessageQueue(
        identity, ipc.signed_key(key), mode & 0o777, uid, gid, creator_uid, creator_gid, capacity, messages
    )


def _limits() -> dict[str, str]:
    found = {}
    for name in LIMITS:
        try:
            with open(f"/proc/sys/{name}", "rb", 0) as file:
                found[name] = " ".join(file.read().decode().split())
        except FileNotFoundError:
            continue  # a kernel without POSIX queues
    return found


# -- shared memory that nobody has attached


def _memory_device() -> int:
    """st_dev of usual shared memory: what lies elsewhere is of huge pages."""
    handle = os.memfd_create("trapline", os.MFD_CLOEXEC)
    try:
        return os.fstat(handle).st_dev
    finally:
        os.close(handle)


def _content(segment: SharedSegment, device: int, sink: Sink) -> None:
    try:
        address = syscall("shmat", ipc.SHMAT, segment.id, None, 0)
    except OSError as error:
        raise Unsavable(f"shared memory segment {segment.id}: it cannot be attached: {error.strerror}") from None
    try:
        segment.huge = _huge(address, device)
        page = 1 << segment.huge if segment.huge else _PAGE
        whole = segment.size + -segment.size % page
        view = memoryview((ctypes.c_char * whole).from_address(address)).cast("B")
        member = Member(b"%d" % segment.id)
        member.size = segment.size
        member.extents = _filled(view, address, 0 if segment.huge else segment.size)
        if segment.huge:
            member.extents = [(0, segment.size)]
        sink(archive.header(member))
        for start, size in member.extents:
            for at in range(start, start + size, _PIECE):
                sink(view[at : min(at + _PIECE, start + size)])
        sink(bytes(archive.padding(archive.content_size(member))))
        view.release()
    finally:
        syscall("shmdt", ipc.SHMDT, address)


def _huge(address: int, device: int) -> int:
    """log2 of the size of its pages, 0 for usual ones."""
    start = b"%x-" % address
    with open("/proc/thread-self/smaps", "rb") as file:
        found = False
        for line in file:
            if line.startswith(start):
                major, _, minor = line.split()[3].partition(b":")
                if os.makedev(int(major, 16), int(minor, 16)) == device:
                    return 0
                found = True
            elif found and line.startswith(b"KernelPageSize:"):
                return (int(line.split()[1]) * 1024).bit_length() - 1
    return 0


def _filled(view: memoryview, address: int, size: int) -> archive.Extents:
    """Where there is something else than zeros. To look at a page that was never used makes one of zeros, which is
    given back: guests stand still, so nothing can be written to it meanwhile."""
    found: archive.Extents = []
    zeros = bytes(_PIECE)
    for start in range(0, size, _PIECE):
        piece = bytes(view[start : min(start + _PIECE, size)])
        if piece == zeros[: len(piece)]:
            _give_up(address + start, len(piece))
            continue
        for at in range(0, len(piece), _PAGE):
            part = piece[at : at + _PAGE]
            if part == zeros[: len(part)]:
                _give_up(address + start + at, len(part))
            elif found and sum(found[-1]) == start + at:
                found[-1] = (found[-1][0], found[-1][1] + len(part))
            else:
                found.append((start + at, len(part)))
    return found


def _give_up(address: int, size: int) -> None:
    try:
        syscall("madvise", 28, address, size + -size % _PAGE, _MADV_REMOVE)
    except OSError:
        pass  # locked memory keeps its pages


# -- POSIX message queues


def _posix_queues(entry: Entry, refused: dict[bytes, str]) -> list[PosixQueue]:
    try:
        directory = ipc.open_message_queues()
    except OSError as error:
        if error.errno in _NO_QUEUES:
            return []
        raise
    try:
        names = sorted(os.listdir(directory))
        return [_posix_queue(entry, directory, name, refused) for name in names]
    finally:
        os.close(directory)


def _posix_queue(entry: Entry, directory: int, name: str, refused: dict[bytes, str]) -> PosixQueue:
    handle = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        words = dict([word.split(b":", 1) for word in os.read(handle, 200).split()])
        if int(words.get(b"NOTIFY_PID", 0)):
            pid = _inner_id(int(words[b"NOTIFY_PID"]))
            text = f"POSIX message queue /{quoted(name)}: process {pid} waits to be told of a message (mq_notify)"
            refused[os.fsencode(name)] = text
        found = os.fstat(handle)
        maximum, size, _ = ipc.queue_attributes(handle)
        entry.give(handle)
        return PosixQueue(os.fsencode(name), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, maximum, size)
    finally:
        os.close(handle)


def _read_queue(queue: PosixQueue, handle: int) -> None:
    """Its messages, which are there again afterwards."""
    try:
        while len(queue.messages) < queue.maximum:
            try:
                queue.messages.append(ipc.receive(handle, queue.message_size))
            except BlockingIOError:
                break
    finally:
        for priority, text in queue.messages:
            ipc.send(handle, priority, text)
