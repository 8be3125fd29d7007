"""Arguments of calls on signals and clocks, and the siginfo of a signal that is delivered."""

from __future__ import annotations

import struct

from trapline.sentry.strace.call import Call
from trapline.sentry.strace.kinds import decoder, of_result, structure
from trapline.sentry.strace.names import flags, group, hexadecimal, one
from trapline.sentry.strace.text import pointer, signal_name, signal_set

SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGCHLD, SIGIO, SIGSYS = 4, 5, 7, 8, 11, 17, 29, 31
_CODES = {
    SIGILL: "illcode", SIGTRAP: "trapcode", SIGBUS: "buscode", SIGFPE: "fpecode", SIGSEGV: "segvcode",
    SIGCHLD: "chldcode", SIGIO: "pollcode", SIGSYS: "syscode",
}  # fmt: skip
_FAULTS = frozenset({SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV})
_CLD_EXITED = 1
SI_TIMER, SI_QUEUE, SI_MESGQ, SI_USER, SI_TKILL, SI_KERNEL = -2, -1, -3, 0, -6, 0x80
SA_RESTORER = 0x04000000


def _code(signo: int, code: int) -> str:
    name = _CODES.get(signo)
    if name is not None and code in dict(group(name)):
        return one(name, code)
    return one("sicode", code & 0xFFFFFFFF)


def _value(raw: bytes, at: int) -> str:
    number, address = struct.unpack_from("<i", raw, at)[0], struct.unpack_from("<Q", raw, at)[0]
    return f"si_int={number}, si_ptr={pointer(address)}"


def siginfo(raw: bytes) -> str:
    """A siginfo_t of 128 bytes (sigaction(2))."""
    signo, number, code = struct.unpack_from("<iii", raw)
    if not signo and not code and not any(raw):
        return "{}"
    head = f"si_signo={signal_name(signo)}, "
    if number:
        head += f"si_errno={number}, "
    head += f"si_code={_code(signo, code)}"
    pid, uid = struct.unpack_from("<iI", raw, 16)
    sender = f", si_pid={pid}, si_uid={uid}"
    if code == SI_TIMER:
        timer, overrun = struct.unpack_from("<ii", raw, 16)
        tail = f", si_timerid={hexadecimal(timer)}, si_overrun={overrun}, {_value(raw, 24)}"
    elif code in (SI_USER, SI_TKILL):
        tail = sender
    elif code in (SI_QUEUE, SI_MESGQ) or code < 0:
        tail = f"{sender}, {_value(raw, 24)}"
    elif code == SI_KERNEL:
        tail = ""
        if signo in _FAULTS and any(raw[16:24]):
            tail = f", si_addr={pointer(struct.unpack_from('<Q', raw, 16)[0])}"
    elif signo == SIGCHLD:
        status, utime, stime = struct.unpack_from("<i4xqq", raw, 24)
        shown = str(status) if code == _CLD_EXITED else signal_name(status)
        tail = f"{sender}, si_status={shown}, si_utime={utime}, si_stime={stime}"
    elif signo in _FAULTS:
        tail = f", si_addr={pointer(struct.unpack_from('<Q', raw, 16)[0])}"
    elif signo == SIGIO:
        band, fd = struct.unpack_from("<qi", raw, 16)
        tail = f", si_band={band}, si_fd={fd}"
    elif signo == SIGSYS:
        address, number = struct.unpack_from("<Qi", raw, 16)
        from trapline.sentry.syscalls.table import name_of

        tail = f", si_call_addr={pointer(address)}, si_syscall=__NR_{name_of(number)}, si_arch=AUDIT_ARCH_X86_64"
    else:
        tail = sender if pid or uid else ""
    return f"{{{head}{tail}}}"


@decoder("siginfo")
def _siginfo(call: Call, value: int) -> str:
    if not value:
        return "NULL"
    if call.row.name == "waitid" and call.number(value, "<i") == 0:
        return "{}"
    data = call.read(value, 128)
    return siginfo(data) if data is not None else pointer(value)


@decoder("sigset")
def _sigset(call: Call, value: int) -> str:
    if not value:
        return "NULL"
    mask = call.number(value, "<Q")
    return signal_set(mask) if mask is not None else pointer(value)


@decoder("sigaction")
def _sigaction(call: Call, value: int) -> str:
    data = call.read(value, 32) if value else None
    if data is None:
        return pointer(value)
    handler, how, restorer, mask = struct.unpack("<QQQQ", data)
    name = {0: "SIG_DFL", 1: "SIG_IGN"}.get(handler) or pointer(handler)
    end = f", sa_restorer={pointer(restorer)}" if how & SA_RESTORER else ""
    return f"{{sa_handler={name}, sa_mask={signal_set(mask)}, sa_flags={flags('saflags', how)}{end}}}"


@of_result("signal_taken")
def _signal_taken(call: Call) -> str:
    return f"{call.result} ({signal_name(call.result)})"


# -- clocks and timers


@decoder("timespec_left", even_failed=True)
def _timespec_left(call: Call, value: int) -> str:
    """What is left of a sleep: only written when it was interrupted, and never for an absolute deadline."""
    absolute = call.row.name == "clock_nanosleep" and call.args[1] & 1
    if call.result in (-4, -516) and not absolute and value:
        return structure(call, value, "timespec")
    return pointer(value)


@decoder("sigevent")
def _sigevent(call: Call, value: int) -> str:
    data = call.read(value, 64) if value else None
    if data is None:
        return pointer(value)
    number, address = struct.unpack_from("<i", data)[0], struct.unpack_from("<Q", data)[0]
    signo, notify, tid = struct.unpack_from("<iii", data, 8)
    parts = [f"sigev_value={{sival_int={number}, sival_ptr={pointer(address)}}}"] if address else []
    parts.append(f"sigev_signo={signal_name(signo)}")
    parts.append(f"sigev_notify={one('sigev', notify)}")
    if notify == 4:
        parts.append(f"sigev_notify_thread_id={tid}")
    return f"{{{', '.join(parts)}}}"


@of_result("timex_state")
def _timex_state(call: Call) -> str:
    return f"{call.result} ({one('timexstate', call.result)})"
