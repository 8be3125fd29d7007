"""What is saved of a sandbox's IPC namespace: System V objects (svipc(7)) and POSIX message queues (mq_overview(7)).

Ids, keys and owners are those that guests see. POSIX semaphores and shared memory are files of /dev/shm. What of shared
memory is attached somewhere is saved with the memory of whoever has it, as the shared object `sysv:ID`.
"""

from __future__ import annotations

import msgspec

_LARGEST_ID = (1 << 32) - 2
_LARGEST_IPC_ID = (1 << 31) - 1


class IpcObject(msgspec.Struct):
    """What all System V objects have (struct ipc_perm)."""

    id: int
    key: int  # 0 (IPC_PRIVATE) of one that has none, or is marked to be removed
    mode: int  # permission bits
    uid: int
    gid: int
    creator_uid: int
    creator_gid: int


class SharedSegment(IpcObject):
    """shmget(2)."""

    size: int
    attached: int = 0  # how often
    removed: bool = False  # by IPC_RMID: it goes when nobody has it attached any more
    locked: bool = False  # SHM_LOCK
    huge: int = 0  # log2 of its page size, 0 for usual pages. Of an attached one whoever saves the mapping knows it


class SemaphoreSet(IpcObject):
    """semget(2)."""

    values: list[int] = []
    pids: list[int] = []  # who did the last operation on each, as the sandbox numbers it; 0: who is gone


class MessageQueue(IpcObject):
    """msgget(2)."""

    capacity: int = 0  # msg_qbytes
    messages: list[tuple[int, bytes]] = []  # type, text; the oldest first


class PosixQueue(msgspec.Struct):
    """mq_open(3)."""

    name: bytes  # without the slash
    mode: int
    uid: int
    gid: int
    maximum: int  # messages
    message_size: int
    messages: list[tuple[int, bytes]] = []  # priority, text; the next one to be received first


class IpcRecord(msgspec.Struct):
    """All of an IPC namespace."""

    segments: list[SharedSegment] = []
    semaphores: list[SemaphoreSet] = []
    queues: list[MessageQueue] = []
    posix: list[PosixQueue] = []
    limits: dict[str, str] = {}  # below /proc/sys


#: Limits that are the namespace's own (proc_sys_kernel(5), mq_overview(7)).
LIMITS = (
    "kernel/shmmax", "kernel/shmall", "kernel/shmmni", "kernel/shm_rmid_forced", "kernel/msgmax", "kernel/msgmnb",
    "kernel/msgmni", "kernel/sem", "fs/mqueue/queues_max", "fs/mqueue/msg_max", "fs/mqueue/msgsize_max",
    "fs/mqueue/msg_default", "fs/mqueue/msgsize_default",
)  # fmt: skip


def check(record: IpcRecord) -> str:
    """What cannot be in a record that was read; "" where nothing is wrong."""
    for kind, objects in (
        ("shared memory segment", record.segments),
        ("semaphore set", record.semaphores),
        ("message queue", record.queues),
    ):
        seen: set[int] = set()
        for each in objects:
            owners = (each.uid, each.gid, each.creator_uid, each.creator_gid)
            if not 0 <= each.id <= _LARGEST_IPC_ID or each.id in seen:
                return f"{kind} {each.id}: an id that cannot be"
            if not -1 << 31 <= each.key < 1 << 32 or any(not 0 <= owner <= _LARGEST_ID for owner in owners):
                return f"{kind} {each.id}: a key or an owner that cannot be"
            seen.add(each.id)
    for segment in record.segments:
        if not 0 < segment.size < 1 << 62 or segment.huge not in (0, 16, 19, 20, 21, 23, 24, 25, 28, 29, 30, 31, 34):
            return f"shared memory segment {segment.id}: a size that cannot be"
    for semaphores in record.semaphores:
        if not semaphores.values or len(semaphores.pids) != len(semaphores.values):
            return f"semaphore set {semaphores.id}: no semaphores"
        if any(not 0 <= value <= 32767 for value in semaphores.values):
            return f"semaphore set {semaphores.id}: a value that cannot be"
    for queue in record.queues:
        if any(kind < 1 for kind, _ in queue.messages) or not 0 <= queue.capacity < 1 << 31:
            return f"message queue {queue.id}: a message or capacity that cannot be"
    names = [queue.name for queue in record.posix]
    for name in names:
        if not name or b"/" in name or b"\0" in name or name in (b".", b"..") or names.count(name) > 1:
            return f"POSIX message queue {name!r}: a name that cannot be"
    for limit in record.limits:
        if limit not in LIMITS:
            return f"{limit}: not a limit of System V or POSIX IPC"
    return ""
