"""The calls of System V IPC and POSIX message queues that Python does not offer, and those that mount the queues.

Numbers are x86-64's (asm/unistd_64.h); structures those of the kernel (asm-generic/shmbuf.h, msgbuf.h, ipcbuf.h,
linux/mqueue.h). All raise OSError.
"""

from __future__ import annotations

import ctypes
import os
import struct

from trapline.platform.setup_calls import syscall

IPC_CREAT, IPC_EXCL, IPC_NOWAIT = 0o1000, 0o2000, 0o4000
IPC_RMID, IPC_SET, IPC_STAT = 0, 1, 2
SHM_LOCK, SHM_HUGETLB, SHM_HUGE_SHIFT = 11, 0o4000, 26
SHM_DEST, SHM_LOCKED = 0o1000, 0o2000
GETPID, GETALL, SETVAL, SETALL = 11, 13, 16, 17
MSG_COPY = 0o40000

SHMGET, SHMAT, SHMCTL, SEMGET, SEMCTL, SHMDT, MSGGET, MSGSND, MSGRCV, MSGCTL = 29, 30, 31, 64, 66, 67, 68, 69, 70, 71
_MQ_OPEN, _MQ_TIMEDSEND, _MQ_TIMEDRECEIVE, _MQ_GETSETATTR = 240, 242, 243, 245
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 1, 6

_MSQID_DS = 120  # bytes
_PERM = struct.Struct("=iIIIII")  # key, uid, gid, cuid, cgid, mode


def signed_key(key: int) -> int:
    """A key as the kernel's key_t."""
    return key - (1 << 32) if key >> 31 & 1 and key > 0 else key


def set_owner(number: int, identity: int, uid: int, gid: int, mode: int, capacity: int = 0) -> None:
    """IPC_SET. `number`: of shmctl, semctl or msgctl; `capacity`: msg_qbytes of a message queue."""
    raw = bytearray(_MSQID_DS)
    _PERM.pack_into(raw, 0, 0, uid, gid, 0, 0, mode)
    struct.pack_into("=Q", raw, 88, capacity)
    buffer = (ctypes.c_char * len(raw)).from_buffer(raw)
    if number == SEMCTL:
        syscall("semctl IPC_SET", number, identity, 0, IPC_SET, ctypes.byref(buffer))
    else:
        syscall("IPC_SET", number, identity, IPC_SET, ctypes.byref(buffer))


def message_queue_state(identity: int) -> tuple[int, int, int]:
    """(bytes in it, messages in it, msg_qbytes)."""
    buffer = ctypes.create_string_buffer(_MSQID_DS)
    syscall("msgctl IPC_STAT", MSGCTL, identity, IPC_STAT, buffer)
    bytes_, messages, capacity = struct.unpack_from("=QQQ", buffer, 72)
    return bytes_, messages, capacity


def copy_message(identity: int, index: int, size: int) -> tuple[int, bytes]:
    """(type, text) of the message at this place of a queue, which stays there (msgrcv(2), MSG_COPY)."""
    buffer = ctypes.create_string_buffer(8 + size)
    got = syscall("msgrcv MSG_COPY", MSGRCV, identity, buffer, size, index, MSG_COPY | IPC_NOWAIT)
    (kind,) = struct.unpack_from("=q", buffer)
    return kind, buffer.raw[8 : 8 + got]


def send_message(identity: int, kind: int, text: bytes) -> None:
    """msgsnd(2), which does not wait."""
    syscall("msgsnd", MSGSND, identity, struct.pack("=q", kind) + text, len(text), IPC_NOWAIT)


def semaphore_values(identity: int, count: int) -> list[int]:
    """GETALL."""
    values = (ctypes.c_ushort * count)()
    syscall("semctl GETALL", SEMCTL, identity, 0, GETALL, values)
    return list(values)


def set_semaphore_values(identity: int, values: list[int]) -> None:
    """SETALL."""
    syscall("semctl SETALL", SEMCTL, identity, 0, SETALL, (ctypes.c_ushort * len(values))(*values))


def open_message_queues() -> int:
    """A descriptor of the directory of the IPC namespace's POSIX queues, mounted nowhere (fsmount(2)). Needs
    CAP_SYS_ADMIN over the mount namespace."""
    context = syscall("fsopen mqueue", _FSOPEN, b"mqueue", _FSOPEN_CLOEXEC)
    try:
        syscall("fsconfig mqueue", _FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        place = syscall("fsmount mqueue", _FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    finally:
        os.close(place)


def queue_attributes(handle: int) -> tuple[int, int, int]:
    """(largest number of messages, largest message, messages in it)."""
    buffer = ctypes.create_string_buffer(64)
    syscall("mq_getattr", _MQ_GETSETATTR, handle, None, buffer)
    _, maximum, size, count = struct.unpack_from("=4q", buffer)
    return maximum, size, count


def create_queue(name: bytes, maximum: int, size: int) -> int:
    """A descriptor of a new queue, which does not wait."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC
    attributes = struct.pack("=8q", 0, maximum, size, 0, 0, 0, 0, 0)
    return syscall(f"mq_open {name!r}", _MQ_OPEN, name, flags, 0o600, attributes)


def open_queue(name: bytes, flags: int) -> int:
    """A descriptor of a queue that is there."""
    return syscall(f"mq_open {name!r}", _MQ_OPEN, name, flags | os.O_CLOEXEC, 0, None)


def receive(handle: int, size: int) -> tuple[int, bytes]:
    """(priority, text) of the next message of a POSIX queue."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    priority = ctypes.c_uint()
    got = syscall("mq_receive", _MQ_TIMEDRECEIVE, handle, buffer, size, ctypes.byref(priority), None)
    return priority.value, buffer.raw[:got]


def send(handle: int, priority: int, text: bytes) -> None:
    """mq_send(3)."""
    syscall("mq_send", _MQ_TIMEDSEND, handle, text, len(text), priority, None)
