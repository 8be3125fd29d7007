"""Signal numbers, sets and siginfo: the facts of signal(7) and sigaction(2) for x86-64."""

from __future__ import annotations

import struct

from trapline.sentry.kernel.state import SigInfo

SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL = range(1, 10)
SIGUSR1, SIGSEGV, SIGUSR2, SIGPIPE, SIGALRM, SIGTERM, SIGSTKFLT, SIGCHLD, SIGCONT = range(10, 19)
SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF = range(19, 28)
SIGWINCH, SIGIO, SIGPWR, SIGSYS, SIGRTMIN, SIGRTMAX = 28, 29, 30, 31, 32, 64

SIG_DFL, SIG_IGN = 0, 1
SA_NOCLDSTOP, SA_NOCLDWAIT, SA_SIGINFO = 1, 2, 4
SA_ONSTACK, SA_RESTART, SA_NODEFER, SA_RESETHAND = 0x08000000, 0x10000000, 0x40000000, 0x80000000

#: pid 1 of the sandbox: its init, or with `trapline run` the program itself.
INIT = 1

SI_USER, SI_KERNEL, SI_QUEUE, SI_TIMER, SI_TKILL = 0, 0x80, -1, -2, -6
CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_TRAPPED, CLD_STOPPED, CLD_CONTINUED = range(1, 7)


def bit(signo: int) -> int:
    """The signal's bit in a sigset_t."""
    return 1 << (signo - 1)


def bits(*signos: int) -> int:
    """The set of some signals."""
    return sum(1 << (s - 1) for s in signos)


DEFAULT_IGNORE = bits(SIGCHLD, SIGCONT, SIGURG, SIGWINCH)
DEFAULT_STOP = bits(SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU)
UNMASKABLE = bits(SIGKILL, SIGSTOP)
DEFAULT_CORE = bits(SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGXCPU, SIGXFSZ, SIGSYS)
#: Raised by the instruction that a thread executes: delivered first, and never held back by an ignore.
SYNCHRONOUS = bits(SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS)


def first_of(ready: int) -> int:
    """Which signal of a set is taken first: those of faults, then the lowest number (Linux next_signal)."""
    ready = ready & SYNCHRONOUS or ready
    return (ready & -ready).bit_length()


_HEAD = struct.Struct("<iiiI")  # si_signo, si_errno, si_code, padding


def pack_siginfo(info: SigInfo) -> bytes:
    """siginfo_t as the guest's handler sees it, 128 bytes."""
    head = _HEAD.pack(info.signo, info.errno, info.code, 0)
    if info.fields:
        body = info.fields
    elif info.signo == SIGCHLD and info.code > 0:
        body = struct.pack("<iIiIqq", info.pid, info.uid, info.status, 0, info.utime, info.stime)
    elif info.code == SI_TIMER:
        body = struct.pack("<iiQ", info.timer_id, info.overrun, info.value)
    else:
        body = struct.pack("<iIQ", info.pid, info.uid, info.value)
    return (head + body).ljust(128, b"\0")[:128]


def unpack_siginfo(raw: bytes) -> SigInfo:
    """A siginfo_t of the host's, kept whole in `fields`."""
    signo, errno, code, _ = _HEAD.unpack_from(raw)
    pid, uid = struct.unpack_from("<iI", raw, 16)
    return SigInfo(signo=signo, errno=errno, code=code, pid=pid, uid=uid, fields=bytes(raw[16:128]))


#: The highest si_code that a fault or event of these signals has (Linux asm-generic/siginfo.h).
_CODES = {SIGILL: 11, SIGFPE: 15, SIGSEGV: 10, SIGBUS: 5, SIGTRAP: 6, SIGCHLD: 6, SIGIO: 6, SIGSYS: 2}
_SI_DETHREAD, _SI_ASYNCNL = -7, -60


def known_siginfo_layout(signo: int, code: int) -> bool:
    """Whether Linux knows which fields a siginfo_t of this kind has (kernel/signal.c). Of others the bytes
    behind those that every layout has must be zero."""
    if code > SI_USER:
        return code == SI_KERNEL or code <= _CODES.get(signo, _CODES[SIGIO])
    return code >= _SI_DETHREAD or code == _SI_ASYNCNL
