"""System calls made in a guest that stands at a stop: many of them in one resume.

A *workspace* is a range of pages in the guest: one page of code, and behind it a table of calls and the data that they
point to. The code takes the calls from the table one after the other, writes each result into it, and ends with an
int3 at the first that fails, or after the last. So a restore of a process with hundreds of mappings costs one stop
instead of two a call (25 us each).

Only for tasks of which no guest code runs meanwhile, with their signals blocked but for SIGTRAP: what goes wrong
otherwise is that the host resets a SIGTRAP's disposition where it is blocked (force_sig_info_to_task). Before a task
has its filter, any call may be made; afterwards those of class native.

Under construction everything a call points to must be in the workspace: see `Data`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Sequence

import msgspec

from trapline.platform import ptrace_calls as pt
from trapline.platform.guest_memory import PAGE, GuestMemory
from trapline.sentry.protocol import Gone

_SIGTRAP = 5
_ENTRY = struct.Struct("<8Q")
#: rbx: the next entry; r12: how many are left.
CODE = (
    b"\x48\x8b\x03"  # loop: mov rax, [rbx]
    b"\x48\x8b\x7b\x08\x48\x8b\x73\x10\x48\x8b\x53\x18"  # mov rdi, [rbx+8]; rsi, [rbx+16]; rdx, [rbx+24]
    b"\x4c\x8b\x53\x20\x4c\x8b\x43\x28\x4c\x8b\x4b\x30"  # mov r10, [rbx+32]; r8, [rbx+40]; r9, [rbx+48]
    b"\x0f\x05"  # syscall
    b"\x48\x8b\x4b\x38"  # mov rcx, [rbx+56]: not 0 where it may fail
    b"\x48\x89\x43\x38"  # mov [rbx+56], rax
    b"\x48\x85\xc9"  # test rcx, rcx
    b"\x75\x08"  # jnz next
    b"\x48\x3d\x00\xf0\xff\xff"  # cmp rax, -4096
    b"\x77\x09"  # ja end
    b"\x48\x83\xc3\x40"  # next: add rbx, 64
    b"\x49\xff\xcc"  # dec r12
    b"\x75\xc5"  # jnz loop
    b"\xcc"  # end: int3
)
#: So many calls fit into one resume.
BATCH = 512
#: Offsets in the workspace: the table begins in its second page, data lies behind it.
TABLE = PAGE
DATA = TABLE + BATCH * _ENTRY.size
#: Size of a workspace, data included.
SIZE = DATA + 60 * PAGE


class Data:
    """Bytes that a call's argument points to; `links` puts the address of other data at an offset of these. After the
    call `value` is what the bytes have become, where `read_back` is set."""

    __slots__ = ("at", "links", "read_back", "value")

    def __init__(self, value: bytes, links: dict[int, Data] | None = None, read_back: bool = False) -> None:
        self.value = value
        self.links = links or {}
        self.read_back = read_back
        self.at = 0


class Try:
    """A call that may fail: its result is then -errno, and the next one is made."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call = call


Argument = int | Data
Call = tuple[Argument, ...]


class Workspace(msgspec.Struct, frozen=True):
    """Where it lies in the guest: SIZE bytes from `base`, of which the first page holds CODE and can be executed."""

    base: int


class Injection:
    """One task's. OSError for a call that failed, with its place and number; Gone."""

    def __init__(self, host: int, workspace: Workspace) -> None:
        self.host = host
        self.workspace = workspace
        self.memory = GuestMemory(host)
        #: Host ids of the tasks that calls have made, in order.
        self.born: list[int] = []
        self._registers = pt.RegisterFile()
        self._sent: Sequence[Call | Try] = ()
        self._data: list[Data] = []

    def run(self, calls: Iterable[Call | Try]) -> list[int]:
        """Make these calls; their results. The task stands at a stop before and after."""
        pending = list(calls)
        results: list[int] = []
        while pending:
            taken = self._start(pending)
            results += self.finish()
            del pending[:taken]
        return results

    def start(self, calls: Sequence[Call | Try]) -> None:
        """Let the task begin with these, all of which must fit into one resume; `finish` waits for it."""
        if self._start(calls) < len(calls):
            raise ValueError("more calls, or more data, than fit into one resume")

    def _start(self, calls: Sequence[Call | Try]) -> int:
        """How many of them were taken."""
        table, data = bytearray(), bytearray()
        self._data = []
        taken = 0
        for item in calls[:BATCH]:
            call = item.call if isinstance(item, Try) else item
            mark, count = len(data), len(self._data)
            try:
                words = [self._word(argument, data) for argument in call]
            except OverflowError:
                if not taken:
                    raise ValueError("the data of one call does not fit into the workspace") from None
                del data[mark:], self._data[count:]
                break
            words += [0] * (7 - len(words))
            table += _ENTRY.pack(*[word & pt.U64 for word in words], isinstance(item, Try))
            taken += 1
        self._sent = calls[:taken]
        if taken:
            self.memory.write(self.workspace.base + TABLE, bytes(table))
            if data:
                self.memory.write(self.workspace.base + DATA, bytes(data))
            regs = self._registers.load(self.host)
            regs.rip, regs.orig_rax, regs.rax = self.workspace.base, pt.U64, 0
            regs.rbx, regs.r12 = self.workspace.base + TABLE, taken
            self._registers.store(self.host)
            pt.cont(self.host)
        return taken

    def _word(self, argument: Argument, data: bytearray) -> int:
        if isinstance(argument, int):
            return argument
        inner = {offset: self._word(other, data) for offset, other in argument.links.items()}
        content = bytearray(argument.value)
        for offset, address in inner.items():
            struct.pack_into("<Q", content, offset, address)
        data += bytes(-len(data) % 16)
        if len(data) + len(content) > SIZE - DATA:
            raise OverflowError
        argument.at = self.workspace.base + DATA + len(data)
        data += content
        if argument.read_back:
            self._data.append(argument)
        return argument.at

    def finish(self) -> list[int]:
        """Wait until what was started is done; the results."""
        sent = self._sent
        if not sent:
            return []
        await_trap(self.host, self.born)
        regs = self._registers.load(self.host)
        table = self.memory.read(self.workspace.base + TABLE, len(sent) * _ENTRY.size)
        results = [pt.signed(entry[7]) for entry in _ENTRY.iter_unpack(table)]
        if regs.r12:
            at = len(sent) - regs.r12
            item = sent[at]
            call = item.call if isinstance(item, Try) else item
            number = -results[at]
            raise OSError(number, f"call {at} ({_text(call)}): {os.strerror(number)}")
        for data in self._data:
            data.value = self.memory.read(data.at, len(data.value))
        return results


def _text(call: Call) -> str:
    from trapline.sentry.syscalls import table

    words = ["..." if isinstance(argument, Data) else hex(argument) for argument in call[1:]]
    assert isinstance(call[0], int)
    return f"{table.name_of(call[0])} {' '.join(words)}"


def await_trap(host: int, born: list[int] | None = None) -> None:
    """Wait until a task stands at the stop of its int3. Tasks that it makes on the way are added to `born`: they stand
    at their first stop, or will. OSError where it stops for something else; Gone."""
    while True:
        status = pt.wait_one(host)
        if status & 0xFF != 0x7F:
            raise Gone(host)
        event, signo = status >> 16, status >> 8 & 0xFF
        if event in (pt.EVENT_FORK, pt.EVENT_VFORK, pt.EVENT_CLONE):
            if born is not None:
                born.append(pt.event_message(host))
        elif not event and signo == _SIGTRAP:
            return
        elif not event:
            raise OSError(errno.EFAULT, f"signal {signo} in the middle of injected calls")
        pt.cont(host)


def await_birth(host: int) -> None:
    """Wait for the first stop of a task that was made. Gone."""
    status = pt.wait_one(host)
    if status & 0xFF != 0x7F:
        raise Gone(host)


_FAULTS = (4, 7, 11)  # SIGILL, SIGBUS, SIGSEGV


def single(host: int, at: int, nr: int, *args: int) -> int:
    """One call, made from a `syscall` instruction of the guest's own at `at`; nothing is needed in its memory. OSError;
    Gone. The task stands at the call's exit afterwards."""
    registers = pt.RegisterFile()
    regs = registers.load(host)
    regs.rip, regs.rax, regs.orig_rax = at, nr, pt.U64
    values = (*args, 0, 0, 0, 0, 0, 0)[:6]
    regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9 = (value & pt.U64 for value in values)
    registers.store(host)
    for _ in range(2):  # to its entry, and to its exit
        pt.cont_to_exit(host)
        while True:
            status = pt.wait_stop(host)
            signo = status >> 8 & 0xFF
            if signo == _SIGTRAP | 0x80:
                break
            if signo in _FAULTS and not status >> 16 and struct.unpack_from("<i", pt.get_siginfo(host), 8)[0] > 0:
                raise OSError(errno.EFAULT, f"there is no call instruction at {at:#x}")  # it would fault for ever
            pt.cont_to_exit(host)
    result = pt.signed(registers.load(host).rax)
    if result < 0:
        raise OSError(-result, f"call {nr}: {os.strerror(-result)}")
    return result


_xstate = ctypes.create_string_buffer(64 << 10)  # image_check.py lets no more in
_vector = (ctypes.c_ulong * 2)()
PTRACE_GETREGSET, PTRACE_SETREGSET, NT_X86_XSTATE = 0x4204, 0x4205, 0x202


def get_extended(host: int) -> bytes:
    """The extended state of a task that stands at a stop (NT_X86_XSTATE)."""
    _vector[0], _vector[1] = ctypes.addressof(_xstate), len(_xstate)
    pt.call(PTRACE_GETREGSET, host, NT_X86_XSTATE, ctypes.addressof(_vector))
    return _xstate.raw[: _vector[1]]


def set_extended(host: int, state: bytes) -> None:
    """Likewise. OSError(EINVAL) where this CPU has other features."""
    if len(state) > len(_xstate):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    ctypes.memmove(_xstate, state, len(state))
    _vector[0], _vector[1] = ctypes.addressof(_xstate), len(state)
    pt.call(PTRACE_SETREGSET, host, NT_X86_XSTATE, ctypes.addressof(_vector))
