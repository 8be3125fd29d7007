"""What a guest does with System V objects and POSIX message queues, and what it sees of them: `own_ipc_guest.py make|list`.

Runs inside of a sandbox by any Python of the host's. `list` shows all that a checkpoint has to keep, and takes the
messages out of their queues for it.
"""

import ctypes
import hashlib
import os
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
CREATE = 0o1000 | 0o2000
SHMGET, SHMAT, SHMCTL, SEMGET, SEMOP, SEMCTL, SHMDT, MSGGET, MSGSND, MSGRCV, MSGCTL = 29, 30, 31, 64, 65, 66, 67, 68, 69, 70, 71
MQ_OPEN, MQ_SEND, MQ_RECEIVE, MQ_NOTIFY, MQ_ATTR = 240, 242, 243, 244, 245


def call(number: int, *arguments: object) -> int:
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{number}: {os.strerror(ctypes.get_errno())}")
    return int(result)


def make() -> None:
    # Ids that are not those of a new namespace: some objects are gone.
    for _ in range(3):
        call(SHMCTL, call(SHMGET, 0, 4096, 0o600), 0, None)
        call(MSGCTL, call(MSGGET, 0, 0o600), 0, None)
        call(SEMCTL, call(SEMGET, 0, 1, 0o600), 0, 0, None)
    gone = call(SHMGET, 0, 4096, 0o600)
    segment = call(SHMGET, 0x4711, 9_000_001, CREATE | 0o640)
    address = call(SHMAT, segment, None, 0)
    ctypes.memmove(address + 5_000_000, b"in the middle", 13)
    ctypes.memmove(address + 9_000_000, b"!", 1)
    call(SHMDT, address)
    call(SHMGET, -5, 4096, CREATE | 0o604)  # never used
    full = call(SHMGET, 0, 3 << 20, 0o600)
    address = call(SHMAT, full, None, 0)
    ctypes.memmove(address, b"\x5a" * (3 << 20), 3 << 20)
    call(SHMDT, address)
    call(SHMCTL, gone, 0, None)
    held = call(SHMGET, 77, 8192, CREATE | 0o600)
    address = call(SHMAT, held, None, 0)
    call(SHMCTL, held, 0, None)
    if os.fork() == 0:
        os.closerange(0, 3)
        libc.pause()  # with the segment that is marked to be removed
    semaphores = call(SEMGET, 0x1234, 5, CREATE | 0o666)
    call(SEMCTL, semaphores, 0, 17, (ctypes.c_ushort * 5)(0, 1, 32767, 4, 5))
    call(SEMOP, semaphores, struct.pack("HhH", 3, 2, 0), 1)
    call(SEMGET, 0, 1, 0o200)
    queue = call(MSGGET, 0x99, CREATE | 0o622)
    for kind, text in ((5, b"five"), (1, b""), (5, b"again"), (1 << 40, b"x" * 8192)):
        call(MSGSND, queue, struct.pack("q", kind) + text, len(text), 0o4000)
    lowered = call(MSGGET, 0, 0o600)
    call(MSGSND, lowered, struct.pack("q", 1) + b"y" * 500, 500, 0o4000)
    raw = ctypes.create_string_buffer(120)
    call(MSGCTL, lowered, 2, raw)
    struct.pack_into("Q", raw, 88, 100)
    call(MSGCTL, lowered, 1, raw)
    for name, mode, maximum, size in ((b"first", 0o600, 10, 100), (b"second\xff", 0o66, 5, 8192), (b"empty", 0, 3, 8)):
        old = os.umask(0)
        handle = call(MQ_OPEN, name, os.O_RDWR | os.O_CREAT, mode, struct.pack("8q", 0, maximum, size, 0, 0, 0, 0, 0))
        os.umask(old)
        if maximum != 3:
            for priority, text in ((1, b"low"), (9, b"high"), (1, b"low again"), (32767, b""), (9, b"z" * size)):
                call(MQ_SEND, handle, text, len(text), priority, None)


def listing() -> None:
    for kind, columns in (("shm", (0, 1, 2, 3, 7, 8, 9, 10)), ("sem", range(8)), ("msg", (0, 1, 2, 3, 4, 7, 8, 9, 10))):
        with open(f"/proc/sysvipc/{kind}") as file:
            rows = [line.split() for line in file.readlines()[1:]]
        for row in rows:
            print(kind, *[row[column] for column in columns])
            identity = int(row[1])
            if kind == "shm" and int(row[2], 8) & 0o400:
                address = call(SHMAT, identity, None, 0)
                print(hashlib.sha256(ctypes.string_at(address, int(row[3]))).hexdigest())
                call(SHMDT, address)
            elif kind == "sem" and int(row[2], 8) & 0o400:
                print([(call(SEMCTL, identity, n, 12, None)) for n in range(int(row[3]))])
            elif kind == "msg":
                raw = ctypes.create_string_buffer(120)
                call(MSGCTL, identity, 2, raw)
                print("capacity", struct.unpack_from("Q", raw, 88)[0])
                for _ in range(int(row[4])):
                    buffer = ctypes.create_string_buffer(10000)
                    got = call(MSGRCV, identity, buffer, 9000, 0, 0o4000)
                    print(struct.unpack_from("q", buffer), buffer.raw[8 : 8 + got])
    for name in (b"first", b"second\xff", b"empty"):
        try:
            handle = call(MQ_OPEN, name, os.O_RDWR | os.O_NONBLOCK, 0, None)
        except PermissionError:
            print(name, "closed")
            continue
        raw = ctypes.create_string_buffer(64)
        call(MQ_ATTR, handle, None, raw)
        _, maximum, size, count = struct.unpack_from("4q", raw)
        found = os.fstat(handle)
        print(name, oct(found.st_mode), found.st_uid, found.st_gid, maximum, size, count)
        for _ in range(count):
            buffer, priority = ctypes.create_string_buffer(size), ctypes.c_uint()
            got = call(MQ_RECEIVE, handle, buffer, size, ctypes.byref(priority), None)
            print(priority.value, buffer.raw[:got])
    for name in ("kernel/shmmax", "kernel/msgmax", "kernel/sem", "fs/mqueue/msg_max"):
        with open(f"/proc/sys/{name}") as file:
            print(name, file.read().split())


def wait_to_be_told() -> None:
    """A process that goes on waits for a message's arrival."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        handle = call(MQ_OPEN, b"told", os.O_RDWR | os.O_CREAT, 0o600, None)
        call(MQ_NOTIFY, handle, struct.pack("qii48x", 0, 10, 0))
        os.write(writer, b"x")
        os.closerange(0, 3)
        libc.pause()
    os.read(reader, 1)


{"make": make, "list": listing, "told": wait_to_be_told}[sys.argv[1]]()
