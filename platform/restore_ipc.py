"""Making a saved sandbox's System V objects and POSIX message queues again, in the IPC namespace of a new one.

Runs in pid 1 of the new sandbox, in its namespaces, while /proc is still the host's: what lies in the IPC namespace
shows there as the reader's own. An object's id is asked for by /proc/sys/kernel/*_next_id (CONFIG_CHECKPOINT_RESTORE).
Who made an object (cuid, cgid) is who we are at that moment. What has to be done by the processes themselves, once they
are there, is given as calls for injection. Sources: proc_sys_kernel(5), svipc(7), mq_overview(7).
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from trapline.platform import ipc_calls as ipc
from trapline.platform.setup_calls import syscall
from trapline.sentry.state import archive
from trapline.sentry.state.archive import Member
from trapline.sentry.state.ipc import IpcObject, IpcRecord, MessageQueue, PosixQueue, SemaphoreSet, SharedSegment, check
from trapline.sentry.state.unusable import UnusableImage

_PIECE = 1 << 20  # bytes copied at a time

#: Number and arguments of a system call.
Call = tuple[int, ...]


class IpcRestorer:
    """A record that was read, checked. `handle` is a descriptor of the archive of what unattached segments hold, -1 for
    none; it stays its owner's and is to be kept open for pid 1. UnusableImage."""

    def __init__(self, record: IpcRecord, handle: int = -1, name: str = "ipc/segments.tar") -> None:
        if wrong := check(record):
            raise UnusableImage(wrong)
        self._record = record
        self._handle = handle
        self._contents: dict[int, Member] = {}
        if handle >= 0:
            found = archive.members(lambda size, offset: os.pread(handle, size, offset), name)
            self._contents = {int(member.name): member for member in found if member.name.isdigit()}
        for segment in record.segments:
            content = self._contents.get(segment.id)
            if segment.attached:
                continue
            if content is None or content.size != segment.size or content.hard_link:
                raise UnusableImage(f"{name}: the content of shared memory segment {segment.id} is missing")

    def restore(self) -> None:
        """OSError, UnusableImage."""
        self._set_limits()
        for segment in self._record.segments:
            self._segment(segment)
        for semaphores in self._record.semaphores:
            self._semaphores(semaphores)
        for queue in self._record.queues:
            self._messages(queue)
        if self._record.posix:
            with _as_many_messages_as_we_like():
                for posix in self._record.posix:
                    _posix_queue(posix)

    def _set_limits(self) -> None:
        for name, value in self._record.limits.items():
            try:
                with open(f"/proc/sys/{name}", "rb", 0) as file:
                    if " ".join(file.read().decode().split()) == value:
                        continue
                with open(f"/proc/sys/{name}", "wb", 0) as file:
                    file.write(value.encode())
            except OSError as error:
                raise OSError(error.errno, f"/proc/sys/{name} cannot be {value} as it was: {error.strerror}") from None

    def _segment(self, segment: SharedSegment) -> None:
        flags = ipc.IPC_CREAT | ipc.IPC_EXCL | segment.mode
        if segment.huge:
            flags |= ipc.SHM_HUGETLB | segment.huge << ipc.SHM_HUGE_SHIFT
        with _created("shm", segment):
            _same(segment, syscall("shmget", ipc.SHMGET, segment.key, segment.size, flags), "shared memory segment")
        ipc.set_owner(ipc.SHMCTL, segment.id, segment.uid, segment.gid, segment.mode)
        if segment.locked:
            syscall("shmctl SHM_LOCK", ipc.SHMCTL, segment.id, ipc.SHM_LOCK, None)
        content = self._contents.get(segment.id)
        if segment.attached or content is None:
            return
        address = syscall("shmat", ipc.SHMAT, segment.id, None, 0)
        try:
            offset = content.offset
            view = memoryview((ctypes.c_char * segment.size).from_address(address)).cast("B")
            for start, size in content.extents if content.extents is not None else [(0, segment.size)]:
                for at in range(start, start + size, _PIECE):
                    with view[at : min(at + _PIECE, start + size)] as part:
                        offset += os.preadv(self._handle, [part], offset)
            view.release()
        finally:
            syscall("shmdt", ipc.SHMDT, address)

    def _semaphores(self, semaphores: SemaphoreSet) -> None:
        flags = ipc.IPC_CREAT | ipc.IPC_EXCL | semaphores.mode
        with _created("sem", semaphores):
            got = syscall("semget", ipc.SEMGET, semaphores.key, len(semaphores.values), flags)
            _same(semaphores, got, "semaphore set")
        ipc.set_semaphore_values(semaphores.id, semaphores.values)
        ipc.set_owner(ipc.SEMCTL, semaphores.id, semaphores.uid, semaphores.gid, semaphores.mode)

    def _messages(self, queue: MessageQueue) -> None:
        with _created("msg", queue):
            flags = ipc.IPC_CREAT | ipc.IPC_EXCL | queue.mode
            _same(queue, syscall("msgget", ipc.MSGGET, queue.key, flags), "message queue")
        # It may hold more than its capacity, which was lowered since; so the capacity comes last.
        size = max(sum([len(text) for _, text in queue.messages]), len(queue.messages), queue.capacity)
        ipc.set_owner(ipc.MSGCTL, queue.id, queue.uid, queue.gid, queue.mode, size)
        for kind, text in queue.messages:
            ipc.send_message(queue.id, kind, text)
        if size != queue.capacity:
            ipc.set_owner(ipc.MSGCTL, queue.id, queue.uid, queue.gid, queue.mode, queue.capacity)


def removals(record: IpcRecord) -> list[Call]:
    """Calls for any one process, once all have attached their shared memory: of segments that were to be removed."""
    return [(ipc.SHMCTL, each.id, ipc.IPC_RMID, 0) for each in record.segments if each.removed]


def marks(record: IpcRecord, tgid: int) -> list[Call]:
    """Calls for one process, with the capabilities that it starts with: to be the last that changed the semaphores
    that it was the last to change (semctl(2), GETPID)."""
    return [
        (ipc.SEMCTL, each.id, number, ipc.SETVAL, each.values[number])
        for each in record.semaphores
        for number, pid in enumerate(each.pids)
        if pid == tgid
    ]


@contextmanager
def _created(kind: str, what: IpcObject) -> Iterator[None]:
    """Make an object of this id, as who made it."""
    path = f"/proc/sys/kernel/{kind}_next_id"
    try:
        with open(path, "wb", 0) as file:
            file.write(b"%d" % what.id)
    except FileNotFoundError:
        raise UnusableImage(f"IPC objects cannot have their ids: no {path} (CONFIG_CHECKPOINT_RESTORE)") from None
    uid, gid = os.geteuid(), os.getegid()
    try:
        if gid != what.creator_gid:
            os.setegid(what.creator_gid)
        if uid != what.creator_uid:
            os.seteuid(what.creator_uid)
        yield
    finally:
        if os.geteuid() != uid:
            os.seteuid(uid)
        if os.getegid() != gid:
            os.setegid(gid)


def _same(what: IpcObject, got: int, name: str) -> None:
    if got != what.id:
        raise UnusableImage(f"{name} {what.id} cannot have its id: this kernel gives {got}")


@contextmanager
def _as_many_messages_as_we_like() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    try:
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (soft, hard))


def _posix_queue(queue: PosixQueue) -> None:
    handle = ipc.create_queue(queue.name, queue.maximum, queue.message_size)
    try:
        for priority, text in queue.messages:
            ipc.send(handle, priority, text)
        os.fchown(handle, queue.uid, queue.gid)
        os.fchmod(handle, queue.mode)
    finally:
        os.close(handle)
