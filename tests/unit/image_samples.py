"""Images for the tests of their format."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

from trapline.sentry.kernel.state import KernelState, SigInfo, Task, ThreadGroup, TimerSetting
from trapline.sentry.state.image_writer import ImageWriter
from trapline.sentry.state.manifest import Manifest
from trapline.sentry.state.page_places import pieces
from trapline.sentry.state.pages_meta import BLOCK
from trapline.sentry.state.records import (
    AddressSpace,
    Directories,
    Ghost,
    Image,
    Mapping,
    PageRun,
    ProcessRecord,
    SharedObject,
    ThreadRecord,
)

#: A whole block, one more that is not whole.
MEMORY = 0x10000
SIZE = BLOCK + 3 * 4096
NAME = "\udcff not UTF-8 \U0010ffff"


def kernel() -> KernelState:
    leader = Task(7, 7, pending=[SigInfo(10)])
    return KernelState(
        groups={
            7: ThreadGroup(7, ppid=1, pgid=7, sid=7, threads={7: leader, 9: Task(9, 7)}, children={8: 1}, reports=[(1, 8)]),
            8: ThreadGroup(8, ppid=7, pgid=7, sid=7, exit_status=0),
        },
        process_groups={7: {7: 0, 8: 0}},
        timers={"itimer:7:0": TimerSetting(5)},
        checkpoint_count=3,
    )


def thread(tid: int) -> ThreadRecord:
    return ThreadRecord(tid, bytes(216), bytes(832), 0, b"sh", bytes(24))


def image() -> Image:
    mappings = [
        Mapping(MEMORY, MEMORY + SIZE, 3, "anonymous", name=NAME),
        Mapping(MEMORY + SIZE, MEMORY + SIZE + 8192, 1, "file", path="/bin/\udcffsh", flags=["dc"]),
        Mapping(1 << 40, (1 << 40) + 8192, 3, "shared", shared=True, key="shm:1:2"),
        Mapping(2 << 40, (2 << 40) + 4096, 3, "file", deleted=True, key="1"),
    ]
    return Image(
        spaces={1: AddressSpace(mappings, [0] * 11, b"", exe="/bin/sh")},
        shared={"shm:1:2": SharedObject("anonymous", 8000)},
        ghosts={"1": Ghost(6, 0o600, 0, 0, "/tmp/gone")},
        processes=[ProcessRecord(7, 1, 1, 1, [thread(7), thread(9)], 1, comm=b"sh"), ProcessRecord(8, -1, -1, -1, [], 7, zombie=0)],
        tables={1: {}},
        directories={1: Directories("/a\udc80", "/", 0o22)},
    )


def memory(size: int = SIZE, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def put(writer: ImageWriter, offset: int, data: bytes | mmap.mmap) -> None:
    """Pages into the image's files, past the writer."""
    done = 0
    with memoryview(data) as view:
        for file, at, size in pieces(offset, len(view), len(writer.pages_fds)):
            with view[done : done + size] as piece:
                assert os.pwrite(writer.pages_fds[file], piece, at) == size
            done += size


def make(target: Path, compression: str = "none", parent: Path | None = None) -> None:
    """An image with something of everything."""
    with ImageWriter(str(target), compression=compression, fsync=False, parent=str(parent) if parent else None) as writer:
        offset, shared = writer.allocate(SIZE), writer.allocate(4096)
        writer.write(offset, memory())
        writer.write(shared, memory(4096, 2))
        writer.add_run(PageRun("s1", MEMORY, SIZE, offset))
        writer.add_run(PageRun("shm:1:2", 4096, 4096, shared))
        with writer.open("ghosts/1") as ghost:
            ghost.write(b"ghost\n")
        with writer.open("files/upper.tar") as upper:
            upper.write(memory(1000, 3))
        facts = Manifest("seccomp", ["sh", "-c", NAME], {"volumes": [["/x", 1]]}, 3, cpu_flags=["fpu"], monotonic=5)
        writer.commit(kernel(), image(), facts)
