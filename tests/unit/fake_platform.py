"""A platform without processes: memory is a dictionary of pages, the host's clock is set by hand."""

from __future__ import annotations

import errno
import struct
from copy import copy

from trapline.sentry.kernel.block import Execute
from trapline.sentry.kernel.tty import Terminal
from trapline.sentry.protocol import Gone


class FakeMemory:
    """Pages at fixed addresses, each readable, writable or neither."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.ranges: list[tuple[int, int, bool]] = [(0x1000, 0x9000, True), (0xA000, 0xB000, False)]

    def _check(self, address: int, size: int, write: bool) -> None:
        for low, high, writable in self.ranges:
            if low <= address and address + size <= high and (writable or not write):
                return
        raise OSError(errno.EFAULT, "fake")

    def read(self, address: int, size: int) -> bytes:
        self._check(address, size, False)
        return bytes(self.bytes.get(address + i, 0) for i in range(size))

    def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data), True)
        for i, byte in enumerate(data):
            self.bytes[address + i] = byte

    def read_string(self, address: int, limit: int = 4096) -> bytes:
        found = b""
        while len(found) < limit:
            byte = self.read(address + len(found), 1)
            if byte == b"\0":
                return found
            found += byte
        raise OSError(errno.ENAMETOOLONG, "fake")


class FakePlatform:
    """Records what the kernel asks for."""

    def __init__(self) -> None:
        self.memories: dict[int, FakeMemory] = {}
        self.pokes: list[tuple[int, int]] = []
        self.killed: list[int] = []
        self.masks: dict[int, int] = {}  # what the host has a thread block
        self.held: dict[int, int] = {}  # what the host made and holds back
        self.opened: list[tuple[int, int]] = []
        self.lendings: list[tuple[int, int, bool]] = []
        self.continued: list[int] = []
        self.completed: list[tuple[int, int]] = []
        self.executed: list[tuple[int, Execute]] = []
        self.begun_anew: list[int] = []
        self.deliver = True  # whether `complete` reaches the guest at once
        self.monotonic = 5_000_000_000
        self.realtime = 1_700_000_000_000_000_000
        self.alarms: dict[int, int] = {}
        self.cpu_alarms: dict[str, int] = {}
        self.cpu: dict[int, int] = {}
        self.gone: set[int] = set()
        self.uids: dict[int, tuple[int, int, int]] = {}
        self.capabilities = (1 << 41) - 1
        self.permits: dict[int, int] = {}
        self.affinity: dict[int, list[int]] = {}
        self.gids: dict[int, tuple[int, int, int]] = {}
        self.runner = 0
        self.ticks = (1, 2, 3, 4)
        self.sp = 0x2000
        self.fdinfo: dict[tuple[int, int], str] = {}
        self.wall_moves: list[int] = []
        # As Linux has it when nothing disciplines the clock: TIME_ERROR, STA_UNSYNC.
        fields = (0, 0, 0, 16_000_000, 16_000_000, 0x40, 2, 1, 500 << 16, 7, 7, 10_000)
        self.timex = 5, struct.pack("<I4x4qi4x3q3q", *fields).ljust(208, b"\0")
        self.cancelled: set[int] = set()
        self.terminals: dict[tuple[int, int], Terminal | OSError] = {}
        self.host_ttys: dict[int, int] = {}
        self.directories: dict[tuple[int, int], int] = {}

    def memory(self, tid: int) -> FakeMemory:
        if tid in self.gone:
            raise Gone(tid)
        return self.memories.setdefault(tid, FakeMemory())

    def complete(self, tid: int, result: int) -> bool:
        self.completed.append((tid, result))
        return self.deliver

    def execute(self, tid: int, request: Execute) -> None:
        self.executed.append((tid, request))

    def begin_anew(self, tid: int) -> None:
        self.begun_anew.append(tid)

    def stack_pointer(self, tid: int) -> int:
        return self.sp

    def poke(self, tid: int, signo: int) -> None:
        self.pokes.append((tid, signo))

    def poke_process(self, tgid: int, signo: int) -> None:
        self.pokes.append((tgid, signo))

    def host_pending(self, tid: int) -> int:
        return self.held.get(tid, 0)

    def host_mask(self, tid: int) -> int:
        return self.masks[tid]

    def open_mask(self, tid: int, signals: int) -> None:
        self.opened.append((tid, signals))

    def lend(self, tid: int, signo: int, shared: bool) -> None:
        self.lendings.append((tid, signo, shared))

    def kill_group(self, tgid: int) -> None:
        self.killed.append(tgid)

    def continue_group(self, tgid: int) -> None:
        self.continued.append(tgid)

    def host_monotonic(self) -> int:
        return self.monotonic

    def host_realtime(self) -> int:
        return self.realtime

    def host_clock_resolution(self, clock_id: int) -> int:
        return 4_000_000 if clock_id in (5, 6) else 1

    def host_adjtimex(self) -> tuple[int, bytes]:
        return self.timex

    def wall_clock_moved(self, span: int) -> None:
        self.wall_moves.append(span)

    def set_alarm(self, clock_id: int, when: int) -> None:
        self.alarms[clock_id] = when

    def thread_cpu_ns(self, tid: int) -> int:
        return self.cpu.get(tid, 0)

    def group_cpu_ns(self, tgid: int) -> int:
        return self.cpu.get(tgid, 0)

    def group_user_ns(self, tgid: int) -> int:
        return self.cpu.get(tgid, 0)

    def thread_user_ns(self, tid: int) -> int:
        return self.cpu.get(tid, 0)

    def set_cpu_alarm(self, key: str, tid: int, whole_group: bool, after: int) -> None:
        self.cpu_alarms[key] = after

    def running_thread(self, tgid: int) -> int:
        return self.runner

    def process_times(self, tgid: int) -> tuple[int, int, int, int]:
        return self.ticks

    def pending_limit(self, tgid: int) -> int:
        return 1000

    def has_ended(self, tid: int) -> bool:
        return tid in self.gone

    def descriptor(self, tid: int, fd: int) -> int:
        raise OSError(errno.EBADF, "fake")

    def terminal(self, tid: int, fd: int) -> Terminal:
        found = self.terminals.get((tid, fd), OSError(errno.EBADF, "fake"))
        if isinstance(found, OSError):
            raise found
        return copy(found)

    def controlling_terminal(self, tgid: int) -> int:
        if tgid in self.gone:
            raise Gone(tgid)
        return self.host_ttys.get(tgid, 0)

    def close_descriptor(self, fd: int) -> None:
        return

    def descriptor_info(self, tid: int, fd: int) -> str:
        try:
            return self.fdinfo[tid, fd]
        except KeyError:
            raise OSError(errno.EBADF, "fake") from None

    def process_of_directory(self, tid: int, fd: int) -> int:
        try:
            return self.directories[tid, fd]
        except KeyError:
            raise OSError(errno.EBADF, "fake") from None

    def timerfd_settime(self, fd: int, flags: int, value: int, interval: int) -> None:
        raise OSError(errno.EBADF, "fake")

    def timerfd_gettime(self, fd: int) -> tuple[int, int]:
        raise OSError(errno.EBADF, "fake")

    def timerfd_uncancel(self, fd: int) -> bool:
        return False

    def credentials(self, tid: int) -> tuple[tuple[int, int, int], int]:
        if tid in self.gone:
            raise Gone(tid)
        return self.uids.get(tid, (0, 0, 0)), self.capabilities

    def permitted(self, tid: int) -> int:
        return self.permits.get(tid, self.capabilities)

    def cpu_mask_size(self) -> int:
        return 8

    def set_affinity(self, tid: int, cpus: list[int]) -> None:
        self.affinity[tid] = cpus

    def group_ids(self, tid: int) -> tuple[int, int, int]:
        return self.gids.get(tid, (0, 0, 0))
