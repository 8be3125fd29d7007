"""From the syscall table to one seccomp program (seccomp(2), linux/filter.h, linux/seccomp.h).

The program looks at the architecture, then at the number by a binary search over ranges of numbers with the
same outcome, and at arguments only where a row has conditions. What is decided by architecture and number
alone and allowed stays in the kernel's action bitmap (kernel/seccomp.c, seccomp_is_const_allow), which costs
no run of the program at all: so nothing but those two is loaded before such an ALLOW.

The number -1 is allowed: it is what a tracer writes to skip a call, and the result that the tracer set is
kept then. A guest that makes it gets ENOSYS from the host.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from trapline.sentry.syscalls.table_types import LOW_32, Class, Condition, Op, Syscall

# linux/bpf_common.h
LD_W_ABS, AND_K, JA, JEQ, JGE, JSET, RET = 0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06
# linux/seccomp.h
RET_ERRNO, RET_USER_NOTIF, RET_TRACE, RET_ALLOW = 0x00050000, 0x7FC00000, 0x7FF00000, 0x7FFF0000
OFFSET_NR, OFFSET_ARCH, OFFSET_ARGS = 0, 4, 16
AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000
SKIPPED = 0xFFFFFFFF

#: RET_DATA of a RET_TRACE: what PTRACE_GETEVENTMSG tells the tracer at the stop.
TRACE_STOP, TRACE_WRAP, TRACE_NOTIFY = 1, 2, 3

PLATFORMS = ("seccomp", "ptrace")
MAX_INSTRUCTIONS = 4096
_FAR = 255  # the longest conditional jump
_ENOSYS = 38
_INSTRUCTION = struct.Struct("=HBBI")


def action(kind: Class, platform: str, errno: int = 0) -> int:
    """The filter's return value for a class. ValueError for a platform that is not known."""
    if platform not in PLATFORMS:
        raise ValueError(f"no platform named {platform!r}")
    if kind is Class.NATIVE:
        return RET_ALLOW
    if kind is Class.STOP:
        return RET_TRACE | TRACE_STOP
    if kind is Class.WRAP:
        return RET_TRACE | TRACE_WRAP
    if kind is Class.REFUSE:
        return RET_ERRNO | errno
    # Class.NONE too: the sentry answers ENOSYS, and logs it once
    return RET_USER_NOTIF if platform == "seccomp" else RET_TRACE | TRACE_NOTIFY


class _Assembler:
    """Emits a program from its end to its beginning, so that the target of every jump exists already.

    A label is an instruction's distance from the end of the program.
    """

    def __init__(self) -> None:
        self.backward: list[tuple[int, int, int, int]] = []
        self.returns: dict[int, int] = {}  # by value: the label nearest to the beginning

    def emit(self, code: int, k: int, yes: int = 0, no: int = 0) -> int:
        self.backward.append((code, yes, no, k))
        return len(self.backward) - 1

    def near(self, label: int, spare: int = 0) -> int:
        """A label that stands for this one and can be reached by a jump after `spare` more instructions."""
        distance = len(self.backward) + spare - 1 - label
        if distance <= _FAR:
            return label
        code, _, _, k = self.backward[label]
        if code == RET:
            self.returns[k] = self.emit(RET, k)
            return self.returns[k]
        return self.emit(JA, len(self.backward) - 1 - label)

    def ret(self, value: int) -> int:
        label = self.returns.get(value)
        if label is None:
            label = self.returns[value] = self.emit(RET, value)
        return label

    def jump(self, code: int, k: int, yes: int, no: int) -> int:
        """A conditional jump to two labels."""
        yes = self.near(yes, 2)  # it may take an instruction, and the other label may take one more
        no = self.near(no)
        at = len(self.backward)
        return self.emit(code, k, at - 1 - yes, at - 1 - no)

    def before(self, code: int, k: int, label: int) -> int:
        """An instruction that goes on at `label`."""
        if label != len(self.backward) - 1:
            self.emit(JA, len(self.backward) - 1 - label)
        return self.emit(code, k)

    def program(self) -> bytes:
        return b"".join([_INSTRUCTION.pack(*instruction) for instruction in reversed(self.backward)])


def _compare(out: _Assembler, condition: Condition, yes: int, no: int) -> int:
    """Code that goes to `yes` when the condition holds, else to `no`."""
    low_at = OFFSET_ARGS + 8 * condition.arg
    halves = [(low_at, condition.mask & LOW_32, condition.value & LOW_32)]
    if condition.mask >> 32:
        halves.append((low_at + 4, condition.mask >> 32, condition.value >> 32))
    if condition.op is Op.EQUAL:
        if condition.value & ~condition.mask:
            return no  # a value with bits outside of the mask is never equal
        for offset, mask, value in halves:
            yes = out.jump(JEQ, value, yes, no)
            if mask != LOW_32:
                yes = out.before(AND_K, mask, yes)
            yes = out.before(LD_W_ABS, offset, yes)
        return yes
    for offset, mask, _ in halves:
        if mask:
            no = out.before(LD_W_ABS, offset, out.jump(JSET, mask, yes, no))
    return no


def _same_word(one: Condition, other: Condition) -> bool:
    """Whether both compare one argument's low 32 bits, whole: then one load serves both."""
    if one.arg != other.arg or one.op is not Op.EQUAL or other.op is not Op.EQUAL:
        return False
    return one.mask == other.mask == LOW_32 and one.value <= LOW_32 and other.value <= LOW_32


def _any_of(out: _Assembler, conditions: tuple[Condition, ...], yes: int, no: int) -> int:
    """Code that goes to `yes` when any of the conditions holds, else to `no`."""
    for at in range(len(conditions) - 1, -1, -1):
        condition = conditions[at]
        if at and _same_word(conditions[at - 1], condition):
            no = out.jump(JEQ, condition.value, yes, no)  # the word is loaded already
        else:
            no = _compare(out, condition, yes, no)
    return no


#: What a call comes to: a return value, or a row whose conditions decide.
_Outcome = int | Syscall


def _ranges(rows: Iterable[Syscall], platform: str, profile: str) -> tuple[list[int], list[_Outcome]]:
    """The first number of each range of equal outcome, and the outcomes. The last range has no end."""
    unknown = action(Class.NONE, platform)
    starts: list[int] = []
    outcomes: list[_Outcome] = []

    def add(start: int, outcome: _Outcome) -> None:
        if not outcomes or (outcomes[-1] is not outcome and outcomes[-1] != outcome):
            starts.append(start)
            outcomes.append(outcome)

    expected = 0
    for row in sorted(rows, key=lambda row: row.nr):
        if row.nr < expected:
            raise ValueError(f"two rows for call {row.nr} ({row.name})")
        if row.nr > expected:
            add(expected, unknown)
        if row.refuse_when or row.conditions_in(profile):
            add(row.nr, row)
        else:
            add(row.nr, action(row.class_in(profile), platform, row.errno))
        expected = row.nr + 1
    add(expected, unknown)
    return starts, outcomes


def _leaf(out: _Assembler, outcome: _Outcome, platform: str, profile: str) -> int:
    if isinstance(outcome, int):
        return out.ret(outcome)
    row = outcome
    label = out.ret(action(row.class_in(profile), platform, row.errno))
    conditions = row.conditions_in(profile)
    if conditions:
        other = out.ret(action(row.otherwise, platform, row.errno))
        for case in reversed(row.cases_in(profile)):
            other = _any_of(out, case.when, out.ret(action(case.kind, platform, row.errno)), other)
        label = _any_of(out, conditions, label, other)
    if row.refuse_when:
        label = _any_of(out, row.refuse_when, out.ret(action(Class.REFUSE, platform, row.errno)), label)
    return label


def build(table: Iterable[Syscall], platform: str, profile: str = "control") -> bytes:
    """The program for a platform ("seccomp" or "ptrace"), as an array of struct sock_filter.

    ValueError for an unknown platform, a number that occurs twice, or a table that gives too long a program.
    """
    starts, outcomes = _ranges(table, platform, profile)
    out = _Assembler()

    def search(low: int, high: int) -> int:
        """Code that finds the outcome of a number within the ranges low to high (exclusive)."""
        if high - low == 1:
            return _leaf(out, outcomes[low], platform, profile)
        middle = (low + high) // 2
        right = search(middle, high)
        left = search(low, middle)
        return out.jump(JGE, starts[middle], right, left)

    found = search(0, len(starts))
    no_such_call = out.ret(RET_ERRNO | _ENOSYS)
    foreign = out.jump(JEQ, SKIPPED, out.ret(RET_ALLOW), no_such_call)
    number = out.before(LD_W_ABS, OFFSET_NR, out.jump(JSET, X32_BIT, foreign, found))
    out.before(LD_W_ABS, OFFSET_ARCH, out.jump(JEQ, AUDIT_ARCH_X86_64, number, out.ret(RET_ERRNO | _ENOSYS)))
    if len(out.backward) >= MAX_INSTRUCTIONS:
        raise ValueError(
            f"the filter has {len(out.backward)} instructions; the kernel takes {MAX_INSTRUCTIONS}"
        )
    return out.program()
