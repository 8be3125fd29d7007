"""Our vDSO in a task that has just executed a program (see vdso_image.py for the plan).

All of it happens at the exec's event stop, served at once: the task has nothing else to do, and takes 0.2 ms.
Its signals are blocked meanwhile, or a delivery stop would come in the middle of the stub; SIGSTOP, which
cannot be blocked, is put off until the end.
"""

from __future__ import annotations

import array
import ctypes
import os
import socket
import struct
from collections.abc import Callable

from trapline.platform import ptrace_calls as pt
from trapline.platform.engine import Engine
from trapline.platform.pokes import poke_again
from trapline.platform.seccomp import SeccompEngine
from trapline.platform.tracee import Tracee
from trapline.platform.vdso_image import AT_IGNORE, VdsoImage, find_sysinfo_ehdr, setup_failure
from trapline.sentry.protocol import Gone

#: A notify-class call, to carry the descriptor, and a stop-class one, to stop at: timer_getoverrun and vfork.
CARRIER, LAST_CALL = 225, 58
_SOCKETPAIR, _RECVMSG, _CLOSE = 53, 47, 3
_AF_UNIX, _SOCK_DGRAM, _SOCK_CLOEXEC, _MSG_CMSG_CLOEXEC = 1, 2, 0o2000000, 0x40000000
_ALL = (1 << 64) - 1
_mask = ctypes.c_uint64()
#: mov %ebp,%eax; syscall; int3.
_SYSCALL = b"\x89\xe8\x0f\x05\xcc\xcc\xcc\xcc"


class VdsoSetup:
    """Installs one sandbox's image."""

    def __init__(self, image: VdsoImage) -> None:
        self.image = image
        self.failures = 0

    def install(self, e: Engine, t: Tracee) -> int:
        """Map the image; its address, 0 when the program gets no vDSO at all. OSError; Gone."""
        regs = e.regs.load(t.host)
        found = find_sysinfo_ehdr(regs.rsp, t.memory.read)
        if found is None:
            return 0
        entry, base = found
        before = e.regs.copy()
        mask = pt.get_sigmask(t.host)
        set_sigmask(t.host, _ALL)
        try:
            if isinstance(e, SeccompEngine):
                plan = self.image.exec_plan(base, carrier=CARRIER, last_call=LAST_CALL)
            else:
                fd = self._give_descriptor(e, t, base + self.image.host.spare)
                plan = self.image.exec_plan(base, descriptor=fd, last_call=LAST_CALL)
            poke(t.host, plan.poke_address, plan.poke_bytes)
            e.regs.put(before)
            for name, value in plan.registers.items():
                setattr(regs, name, value)
            e.regs.store(t.host)
            pt.cont(t.host)
            if isinstance(e, SeccompEngine):
                assert t.listener is not None
                t.listener.add_descriptor(e.await_carrier(t), self.image.descriptor)
            await_stop(e, t, pt.EVENT_SECCOMP, pt.cont)
            e.regs.load(t.host)
            failure = setup_failure(regs.rbx, regs.r12)
        finally:
            e.regs.put(before)
            regs.rax, regs.orig_rax = 0, pt.U64
            e.regs.store(t.host)
            set_sigmask(t.host, mask)
            if t.repoke:
                t.repoke = False
                poke_again(e, t)
        if failure is not None:
            t.memory.write(entry, struct.pack("<Q", AT_IGNORE))
            self.failures += 1
            raise OSError(0, failure)
        return plan.image_base

    def _give_descriptor(self, e: Engine, t: Tracee, at: int) -> int:
        """Put the image's descriptor into a task by calls of its own: a socket pair, one end of which the
        sentry borrows to send the descriptor over. For a platform without notifications."""
        pt.cont_to_exit(t.host)  # the exec's own exit comes first
        await_stop(e, t, 0, pt.cont_to_exit)
        poke(t.host, at, _SYSCALL)
        scratch = (e.regs.r.rsp - 1024) & ~15
        inject(e, t, at, _SOCKETPAIR, _AF_UNIX, _SOCK_DGRAM | _SOCK_CLOEXEC, 0, scratch)
        ours, theirs = struct.unpack("<ii", t.memory.read(scratch, 8))
        borrowed = socket.socket(fileno=e.descriptor(t.tid, ours))
        with borrowed:
            rights = array.array("i", [self.image.descriptor])
            borrowed.sendmsg([b"v"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        # struct msghdr, struct iovec, one byte, a control message of 24 bytes
        vector, byte, control = scratch + 64, scratch + 96, scratch + 128
        header = struct.pack("<QIIQQQQI4x", 0, 0, 0, vector, 1, control, 24, 0)
        t.memory.write(scratch, header.ljust(64, b"\0") + struct.pack("<QQ", byte, 1).ljust(96, b"\0"))
        inject(e, t, at, _RECVMSG, theirs, scratch, _MSG_CMSG_CLOEXEC)
        (fd,) = struct.unpack("<i", t.memory.read(control + 16, 4))
        inject(e, t, at, _CLOSE, ours)
        inject(e, t, at, _CLOSE, theirs)
        return int(fd)


def hide(e: Engine, t: Tracee) -> None:
    """Make a program that has just been executed do without a vDSO: it makes real calls, which the sentry
    answers. Left alone it would read the host's clocks past the sentry."""
    regs = e.regs.load(t.host)
    found = find_sysinfo_ehdr(regs.rsp, t.memory.read)
    if found is not None:
        t.memory.write(found[0], struct.pack("<Q", AT_IGNORE))


def poke(host: int, address: int, data: bytes) -> None:
    """Write through page protections, for code of ours only."""
    fd = os.open(f"/proc/{host}/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, address)
    finally:
        os.close(fd)


def inject(e: Engine, t: Tracee, at: int, nr: int, *args: int) -> int:
    """One call of class native in a task that stands at a stop with its signals blocked, from the code poked
    to `at`. Its registers are left as the call leaves them. OSError; Gone."""
    regs = e.regs.r
    regs.rip, regs.rbp, regs.orig_rax = at, nr, pt.U64
    values = (*args, 0, 0, 0, 0, 0, 0)[:6]
    regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9 = (v & pt.U64 for v in values)
    e.regs.store(t.host)
    for _ in range(2):  # to the entry of the call, and to its exit
        pt.cont_to_exit(t.host)
        await_stop(e, t, 0, pt.cont_to_exit)
    e.regs.load(t.host)
    result = pt.signed(regs.rax)
    if result < 0:
        raise OSError(-result, f"injected call {nr}")
    return result


def await_stop(e: Engine, t: Tracee, event: int, resume: Callable[[int], None]) -> None:
    """Wait for this stop. OSError for another; Gone when the task dies instead (which is served later)."""
    while True:
        status = pt.wait_one(t.host)
        if status & 0xFF != 0x7F:
            e.deferred.append((t.host, status, pt.last_rusage()))
            raise Gone(t.host)
        if e.put_off_stop(t, status):
            resume(t.host)
        elif status >> 16 != event:
            raise OSError(0, f"unexpected stop {status:#x}")
        else:
            return


def set_sigmask(host: int, mask: int) -> None:
    """PTRACE_SETSIGMASK."""
    _mask.value = mask
    pt.call(pt.PTRACE_SETSIGMASK, host, 8, ctypes.addressof(_mask))
