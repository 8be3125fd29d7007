"""Arguments of calls on processes, threads, futexes and limits."""

from __future__ import annotations

import struct

from trapline.sentry.strace.call import Call
from trapline.sentry.strace.kinds import after, array, decoder, late, of_result, string_at, structure
from trapline.sentry.strace.names import flags, group, hexadecimal, one
from trapline.sentry.strace.text import pointer, quote, signal_name, wait_status

CSIGNAL = 0xFF
CLONE_PIDFD, CLONE_SETTLS, CLONE_PARENT_SETTID = 0x1000, 0x80000, 0x100000
CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID = 0x200000, 0x1000000
FUTEX_PRIVATE, FUTEX_REALTIME = 128, 256
_WAIT, _WAKE, _REQUEUE, _CMP_REQUEUE, _WAKE_OP, _LOCK_PI, _UNLOCK_PI, _TRYLOCK_PI = 0, 1, 3, 4, 5, 6, 7, 8
_WAIT_BITSET, _WAKE_BITSET, _WAIT_REQUEUE_PI, _CMP_REQUEUE_PI, _LOCK_PI2 = 9, 10, 11, 12, 13
_TWO_COUNTS = frozenset({_REQUEUE, _CMP_REQUEUE, _WAKE_OP, _CMP_REQUEUE_PI})


# -- clone


@decoder("clone")
def _clone(call: Call, value: int) -> str:
    signo = value & CSIGNAL
    rest = value & ~CSIGNAL
    parts = [flags("clone", rest)] if rest or not signo else []
    if signo:
        parts.append(signal_name(signo))
    return f"flags={'|'.join(parts)}"


@decoder("child_stack")
def _child_stack(call: Call, value: int) -> str:
    return f"child_stack={pointer(value)}"


@late("parent_tid")
def _parent_tid_late(call: Call) -> bool:
    return bool(call.args[0] & (CLONE_PARENT_SETTID | CLONE_PIDFD))


@decoder("parent_tid", even_failed=True)
def _parent_tid(call: Call, value: int, how: int) -> str | None:
    if not how & (CLONE_PARENT_SETTID | CLONE_PIDFD):
        return None
    number = None if call.failed else call.number(value, "<i")
    return f"parent_tid={f'[{number}]' if number is not None else pointer(value)}"


@decoder("child_tid", even_failed=True)
def _child_tid(call: Call, value: int, how: int) -> str | None:
    return f"child_tidptr={pointer(value)}" if how & (CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID) else None


@decoder("tls", even_failed=True)
def _tls(call: Call, value: int, how: int) -> str | None:
    return f"tls={pointer(value)}" if how & CLONE_SETTLS else None


def _words(call: Call, address: int, size: int) -> tuple[int, ...] | None:
    data = call.read(address, min(size, 88)) if size >= 64 else None
    return struct.unpack("<11Q", data.ljust(88, b"\0")) if data is not None else None


@decoder("clone_args")
def _clone_args(call: Call, value: int, size: int) -> str:
    words = _words(call, value, size)
    if words is None:
        return pointer(value)
    how, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls = words[:8]
    parts = [f"flags={flags('clone', how)}"]
    if how & CLONE_PIDFD:
        parts.append(f"pidfd={pointer(pidfd)}")
    if how & (CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID):
        parts.append(f"child_tid={pointer(child_tid)}")
    if how & CLONE_PARENT_SETTID:
        parts.append(f"parent_tid={pointer(parent_tid)}")
    parts.append(f"exit_signal={signal_name(exit_signal)}")
    parts.append(f"stack={pointer(stack)}")
    parts.append(f"stack_size={hexadecimal(stack_size)}")
    if how & CLONE_SETTLS:
        parts.append(f"tls={pointer(tls)}")
    return f"{{{', '.join(parts)}}}"


@after("clone_args")
def _clone_result(call: Call, value: int) -> str:
    """What the host wrote to where the structure points."""
    words = _words(call, value, call.args[1]) if not call.failed else None
    if words is None:
        return ""
    parts = []
    for bit, name, address in ((CLONE_PIDFD, "pidfd", words[1]), (CLONE_PARENT_SETTID, "parent_tid", words[3])):
        if words[0] & bit:
            number = call.number(address, "<i")
            if number is not None:
                parts.append(f"{name}=[{number}]")
    return f" => {{{', '.join(parts)}}}" if parts else ""


# -- wait, limits


@decoder("wait_status")
def _wait_status(call: Call, value: int) -> str:
    if not value:
        return "NULL"
    status = call.number(value, "<i") if call.result > 0 else None
    return f"[{wait_status(status & 0xFFFFFFFF)}]" if status is not None else pointer(value)


@decoder("rusage")
def _rusage(call: Call, value: int) -> str:
    if call.row.name == "wait4" and call.result <= 0:
        return pointer(value)
    return structure(call, value, "rusage")


def _ids(call: Call, value: int, count: int) -> str:
    return array(call, value, count, 4, lambda data: str(struct.unpack("<I", data)[0]))


@decoder("ids")
def _ids_in(call: Call, value: int, count: int) -> str:
    return _ids(call, value, count)


@decoder("ids_out")
def _ids_out(call: Call, value: int) -> str:
    return _ids(call, value, call.result) if call.args[0] else pointer(value)


@of_result("scheduler")
def _scheduler(call: Call) -> str:
    return f"{call.result} ({one('sched', call.result & ~0x40000000)})"


@decoder("cpus")
def _cpus(call: Call, value: int, size: int) -> str:
    reads = call.row.name == "sched_getaffinity"
    data = call.read(value, min(call.result if reads else size, 1024)) if value else None
    if data is None:
        return pointer(value)
    number = int.from_bytes(data, "little")
    return f"[{' '.join([str(cpu) for cpu in range(8 * len(data)) if number >> cpu & 1])}]"


@decoder("cap_data")
def _cap_data(call: Call, value: int) -> str:
    version = call.number(call.args[0], "<I")
    data = call.read(value, 12 if version == 0x19980330 else 24) if value else None
    if data is None:
        return pointer(value)
    words = struct.unpack(f"<{len(data) // 4}I", data)
    sets = []
    for at, name in enumerate(("effective", "permitted", "inheritable")):
        bits = words[at] | (words[at + 3] << 32 if len(words) > 3 else 0)
        names = [f"1<<{constant}" for number, constant in group("capability") if bits >> number & 1]
        rest = bits >> len(group("capability")) << len(group("capability"))
        sets.append(f"{name}={'|'.join(names + ([hex(rest)] if rest else [])) or 0}")
    return f"{{{', '.join(sets)}}}"


@decoder("utsname")
def _utsname(call: Call, value: int) -> str:
    data = call.read(value, 390) if value else None
    if data is None:
        return pointer(value)
    names = [quote(data[at : at + 65].split(b"\0")[0], None) for at in (0, 65)]
    return f"{{sysname={names[0]}, nodename={names[1]}, ...}}"


# -- prctl: how many arguments there are, and what they are

_PRCTL = {
    1: "signal", 2: "number", 4: "decimal", 8: "decimal", 15: "text", 16: "text_out", 23: "capability",
    24: "capability", 29: "decimal", 36: "decimal", 37: "number", 38: "zeros", 39: "zeros", 53: "hex",
    22: "hex",
}  # fmt: skip
_PRCTL_ALONE = frozenset({3, 7, 21, 27, 30})


@decoder("prctl_argument", even_failed=True)
def _prctl_argument(call: Call, value: int, option: int) -> str | None:
    kind = _PRCTL.get(option, "hex")
    if option in _PRCTL_ALONE:
        return None
    if kind == "signal":
        return signal_name(value) if value else "0"
    if kind == "text":
        return string_at(call, value)
    if kind == "capability":
        return one("capability", value)
    if kind in ("decimal", "zeros"):
        return str(value)
    return hexadecimal(value)


@decoder("prctl_more", even_failed=True)
def _prctl_more(call: Call, value: int, option: int) -> str | None:
    if _PRCTL.get(option) == "zeros":
        return str(value)
    return hexadecimal(value) if option not in _PRCTL and option not in _PRCTL_ALONE else None


# -- futex


def _operation(value: int) -> int:
    return value & ~(FUTEX_PRIVATE | FUTEX_REALTIME)


@decoder("futex_operation")
def _futex_operation(call: Call, value: int) -> str:
    text = one("futex", _operation(value))
    if value & FUTEX_PRIVATE:
        text += "_PRIVATE" if "/*" not in text else f"|{FUTEX_PRIVATE:#x}"
    return text + ("|FUTEX_CLOCK_REALTIME" if value & FUTEX_REALTIME else "")


@decoder("futex_value")
def _futex_value(call: Call, value: int, operation: int) -> str | None:
    return None if _operation(operation) in (_LOCK_PI, _UNLOCK_PI, _TRYLOCK_PI, _LOCK_PI2) else str(value)


@decoder("futex_timeout")
def _futex_timeout(call: Call, value: int, operation: int) -> str | None:
    number = _operation(operation)
    if number in (_WAIT, _LOCK_PI, _WAIT_BITSET, _WAIT_REQUEUE_PI, _LOCK_PI2):
        return structure(call, value, "timespec")
    return str(value & 0xFFFFFFFF) if number in _TWO_COUNTS else None


@decoder("futex_second")
def _futex_second(call: Call, value: int, operation: int) -> str | None:
    return pointer(value) if _operation(operation) in (*_TWO_COUNTS, _WAIT_REQUEUE_PI) else None


@decoder("futex_third")
def _futex_third(call: Call, value: int, operation: int) -> str | None:
    number = _operation(operation)
    if number in (_WAIT_BITSET, _WAKE_BITSET):
        return "FUTEX_BITSET_MATCH_ANY" if value == 0xFFFFFFFF else hexadecimal(value)
    if number in (_CMP_REQUEUE, _CMP_REQUEUE_PI):
        return str(value)
    return _wake_operation(value) if number == _WAKE_OP else None


def _wake_operation(value: int) -> str:
    """linux/futex.h: what is done to the second word, and which old value wakes its waiters."""
    operations = ("FUTEX_OP_SET", "FUTEX_OP_ADD", "FUTEX_OP_OR", "FUTEX_OP_ANDN", "FUTEX_OP_XOR")
    tests = ("FUTEX_OP_CMP_EQ", "FUTEX_OP_CMP_NE", "FUTEX_OP_CMP_LT", "FUTEX_OP_CMP_LE", "FUTEX_OP_CMP_GT",
             "FUTEX_OP_CMP_GE")  # fmt: skip
    operation, test = value >> 28 & 7, value >> 24 & 0xF
    shift = "FUTEX_OP_OPARG_SHIFT<<28|" if value >> 31 else ""
    named = operations[operation] if operation < len(operations) else hex(operation)
    compared = tests[test] if test < len(tests) else hex(test)
    return f"{{{shift}{named}<<28|{hexadecimal(value >> 12 & 0xFFF)}<<12|{compared}<<24|{hexadecimal(value & 0xFFF)}}}"


