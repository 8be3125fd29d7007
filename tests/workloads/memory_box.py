"""A process whose memory is saved and made again elsewhere, without a sandbox: what test_memory_restore.py drives."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any, cast

from trapline.platform import ptrace_calls as pt
from trapline.platform.capture_memory import Collector, capture_space
from trapline.platform.injection import CODE, SIZE, Injection, Workspace, single
from trapline.platform.memory_areas import host_vdso, read_areas
from trapline.platform.page_copy import copy_mapped_object, copy_object, copy_pages, private_pages
from trapline.platform.page_fill import PageFill
from trapline.platform.restore_memory import SpaceRestore, find_gap
from trapline.platform.restore_shared import close, late_seals, open_mapped, open_shared
from trapline.platform.task_attributes import Probed
from trapline.sentry.state.records import AddressSpace, Image, PageRun

_libc = ctypes.CDLL(None, use_errno=True)
_PTRACE_SETOPTIONS, _TRACESYSGOOD = 0x4200, 1


class Pages:
    """Stands for an image's file of pages, written and read."""

    compression = "not summed"

    def __init__(self) -> None:
        self.fd = os.memfd_create("pages.img", os.MFD_CLOEXEC)
        self.pages_fds = [self.fd]
        self.pages_size = 0
        self.runs: list[PageRun] = []

    def allocate(self, size: int) -> int:
        self.pages_size += size
        return self.pages_size - size

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert os.pwrite(self.fd, data, offset) == len(data)

    def add_run(self, run: PageRun) -> None:
        self.runs.append(run)

    def read(self, image: int, offset: int, into: memoryview) -> None:
        assert not image and os.preadv(self.fd, [into], offset) == len(into)

    def of(self, owner: str) -> list[PageRun]:
        return [run for run in self.runs if run.owner == owner]


def start(command: list[str], stdout: int, keep: list[int] | None = None) -> int:
    """Run a program as a tracee of this process, until its int3."""
    host = os.fork()
    if not host:
        try:
            os.dup2(stdout, 1)
            for fd in keep or ():
                os.set_inheritable(fd, True)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.execve(command[0], command, {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"})
        finally:
            os._exit(99)
    os.waitpid(host, os.WUNTRACED)
    pt.call(pt.PTRACE_SEIZE, host, 0, _TRACESYSGOOD | pt.PTRACE_O_EXITKILL)
    os.kill(host, signal.SIGCONT)
    while pt.wait_one(host) != signal.SIGTRAP << 8 | 0x7F:
        pt.cont(host)
    return host


def interrupted(host: int, options: int) -> None:
    """Bring a tracee at another stop to an event stop."""
    pt.call(_PTRACE_SETOPTIONS, host, 0, options)
    pt.call(pt.PTRACE_INTERRUPT, host)
    pt.cont(host)
    assert pt.wait_one(host) >> 16 == pt.EVENT_STOP


def capture(host: int, refuse=None) -> tuple[Image, Pages, bytes]:
    """All of a process at a stop: its memory, and its registers."""

    def refused(text: str) -> None:
        raise AssertionError(text)

    collector = Collector(f"/proc/{host}/root", None, refuse or refused)
    at = syscall_place(host)
    registers = pt.RegisterFile()
    registers.load(host)
    before = registers.copy()
    probed = Probed(single(host, at, 12, 0), single(host, at, 157, 3))
    registers.put(before)
    registers.store(host)
    space = capture_space(host, collector, probed)
    pages = Pages()
    copy_pages(host, "s1", private_pages(host, space), pages)
    for key, found in collector.shared.items():
        if collector.sources.get(key):
            copy_object(key, found.size, collector.sources[key], pages)
        else:
            copy_mapped_object(key, found.size, collector.mapped[key], pages)
    return Image(spaces={1: space}, shared=collector.shared, ghosts=collector.ghosts), pages, before


def syscall_place(host: int) -> int:
    low, size = host_vdso(host)["[vdso]"]
    with open(f"/proc/{host}/mem", "rb", buffering=0) as memory:
        memory.seek(low)
        return low + memory.read(size).index(b"\x0f\x05")


def restore(image: Image, pages: Pages, registers: bytes, blank: list[str], stdout: int, ghosts: dict[str, int]) -> int:
    """The same process again; its host id. It stands at a stop."""
    space: AddressSpace = image.spaces[1]
    pool = open_mapped(image, ghosts) | open_shared(image, pages.runs, pages.read)
    host = start(blank, stdout, list(pool.values()))
    try:
        at = syscall_place(host)
        mine = [(area.start, area.size) for area in read_areas(host)]
        base = find_gap([space], SIZE, mine)
        assert single(host, at, 9, base, SIZE, 7, 0x100022, -1, 0) == base
        with open(f"/proc/{host}/mem", "r+b", buffering=0) as memory:
            memory.seek(base)
            memory.write(CODE)
        injection = Injection(host, Workspace(base))
        scratch = find_gap([space], 16 << 20, [*mine, (base, SIZE)])
        work = SpaceRestore(space, pages.of("s1"), pool, host_vdso(host), (base, SIZE), scratch).with_objects(image.shared)
        injection.run(work.map())
        fill = PageFill([cast("Any", pages)], [pages.pages_fds])
        fill.add(pages.of("s1"), host)
        fill.run()
        injection.run([*work.finish(), *late_seals(image, pool)])
        injection.run([(3, fd) for fd in pool.values()])
        injection.run([(12, 0)])
        file = pt.RegisterFile()
        file.put(registers)
        file.r.orig_rax = pt.U64
        file.store(host)
        # The workspace is unmapped from a call of the program's own vDSO.
        place = syscall_place(host)
        single(host, place, 11, base, SIZE)
        file.put(registers)
        file.r.orig_rax = pt.U64
        file.store(host)
    except BaseException:
        os.kill(host, signal.SIGKILL)
        os.waitpid(host, 0)
        raise
    finally:
        close(pool)
    return host


def end(host: int) -> int:
    """Let it run to its end; its status."""
    pt.cont(host)
    while True:
        status = pt.wait_one(host)
        if status & 0xFF != 0x7F:
            return status
        pt.cont(host, status >> 8 & 0xFF)


def make_segments(image: Image, pages: Pages) -> list[int]:
    """System V segments for an image, whose numbers are put into it."""
    made = []
    for key, found in list(image.shared.items()):
        if found.kind == "sysv":
            number = _libc.shmget(0, ctypes.c_size_t(found.size), 0o600)
            assert number >= 0
            made.append(number)
            found.identity = number
            del image.shared[key]
            image.shared[f"sysv:{number}"] = found
            for mapping in image.spaces[1].mappings:
                if mapping.key == key:
                    mapping.key = f"sysv:{number}"
            for run in pages.of(key):
                run.owner = f"sysv:{number}"
    return made


def remove_segments(made: list[int]) -> None:
    for number in made:
        _libc.shmctl(number, 0, None)


