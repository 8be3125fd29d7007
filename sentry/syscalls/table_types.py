"""What one row of the syscall table says, and short constructors for the rows.

A row is plain data. From it come the seccomp filter (platform/bpf.py), the conversion of arguments
(registry.py), the strace printer, `trapline syscalls` and docs/syscalls.md. The table is imported at every
start, so nothing here is computed before it is asked for.
"""

from __future__ import annotations

import enum

import msgspec

ALL_BITS = 0xFFFF_FFFF_FFFF_FFFF
LOW_32 = 0xFFFF_FFFF


class Class(enum.IntEnum):
    """Who serves a call, and by which mechanism it is caught."""

    NATIVE = 0  # the host, with no trap
    NOTIFY = 1  # the sentry; it needs the arguments and guest memory only
    STOP = 2  # the sentry, at a ptrace stop: it needs registers
    WRAP = 3  # the sentry before and after, the host executes in between
    REFUSE = 4  # the filter itself, with an errno
    NONE = 5  # nobody: ENOSYS, by the sentry, so that it is logged once


#: The classes of which the sentry decides the outcome.
OWNED = (Class.NOTIFY, Class.STOP, Class.WRAP)


class Support(enum.IntEnum):
    """How much of a call there is."""

    FULL = 0  # decided by the sentry
    PARTIAL = 1  # some of it is missing or not yet the sentry's: the row's note says what
    LENT = 2  # the host kernel's own
    REFUSED = 3  # always an error, on purpose
    NONE = 4  # not there, as in Linux today


class Op(enum.IntEnum):
    """How a condition looks at an argument."""

    ANY_BITS = 0  # argument & mask is not 0
    EQUAL = 1  # argument & mask == value


class Condition(msgspec.Struct, frozen=True):
    """Something that the filter can see of one argument (`arg` 0 to 5, a raw unsigned 64-bit number).

    With a mask of 32 bits the upper half is not looked at, as the kernel does for `int` arguments.
    """

    arg: int
    op: Op
    mask: int
    value: int = 0

    def holds(self, args: tuple[int, ...]) -> bool:
        """Whether it is true of these raw arguments."""
        masked = args[self.arg] & self.mask
        return masked == self.value if self.op is Op.EQUAL else masked != 0


Conditions = tuple[Condition, ...]


def any_bits(arg: int, mask: int) -> Conditions:
    """Any of the bits of `mask` is set."""
    return (Condition(arg, Op.ANY_BITS, mask),)


def one_of(arg: int, *values: int) -> Conditions:
    """The low 32 bits are one of the values."""
    return tuple([Condition(arg, Op.EQUAL, LOW_32, value) for value in values])


def equal(arg: int, value: int, mask: int = ALL_BITS) -> Conditions:
    """All 64 bits, or those of `mask`, are the value."""
    return (Condition(arg, Op.EQUAL, mask, value),)


def non_zero(arg: int) -> Conditions:
    """Any of the 64 bits is set: a pointer that is not null."""
    return (Condition(arg, Op.ANY_BITS, ALL_BITS),)


class Case(msgspec.Struct, frozen=True):
    """A class of its own for some arguments: any of the conditions."""

    when: Conditions
    kind: Class


class Parameter(msgspec.Struct, frozen=True):
    """One parameter of a call: `const struct timespec *` and `tp`."""

    type: str
    name: str

    @property
    def pointer(self) -> bool:
        """Whether the argument is an address in guest memory."""
        return self.type.endswith("*")


class Syscall(msgspec.Struct, frozen=True):
    """One call of x86-64 Linux.

    Which class it has is asked in this order: `refuse_when` (any condition: refused with `errno`); a class
    that `profiles` names for the profile, whatever the arguments; `when` (empty, or any condition: the
    class `default`); the first of `cases` that holds; else `otherwise`.
    """

    nr: int
    name: str
    signature: str  # parameters as in C, separated by ", "; empty for none
    default: Class
    support: Support
    note: str = ""
    when: Conditions = ()
    cases: tuple[Case, ...] = ()  # where `when` does not hold
    otherwise: Class = Class.NATIVE
    refuse_when: Conditions = ()
    errno: int = 0
    profiles: dict[str, Class] = {}

    def class_in(self, profile: str = "control") -> Class:
        """The class for arguments that fulfil `when`."""
        return self.profiles.get(profile, self.default)

    def conditions_in(self, profile: str = "control") -> Conditions:
        """When that class applies; empty for always."""
        return () if profile in self.profiles else self.when

    def cases_in(self, profile: str = "control") -> tuple[Case, ...]:
        """The classes of other arguments; none where the class does not depend on them."""
        return () if profile in self.profiles else self.cases

    def decide(self, args: tuple[int, ...], profile: str = "control") -> Class:
        """The class for these raw arguments. What the filter does, for who sees a call without it."""
        for condition in self.refuse_when:
            if condition.holds(args):
                return Class.REFUSE
        conditions = self.conditions_in(profile)
        if not conditions or any([c.holds(args) for c in conditions]):
            return self.class_in(profile)
        for case in self.cases:
            if any([c.holds(args) for c in case.when]):
                return case.kind
        return self.otherwise

    def owned(self, profile: str = "control") -> bool:
        """Whether the sentry decides it, for some arguments at least."""
        return self.class_in(profile) in OWNED

    def parameters(self) -> tuple[Parameter, ...]:
        """The signature, taken apart."""
        found = []
        for text in self.signature.split(", ") if self.signature else ():
            at = max(text.rfind(" "), text.rfind("*")) + 1
            found.append(Parameter(text[:at].rstrip(), text[at:]))
        return tuple(found)


def native(
    nr: int, name: str, signature: str = "", note: str = "", support: Support = Support.LENT
) -> Syscall:
    """The host's."""
    return Syscall(nr, name, signature, Class.NATIVE, support, note)


def notify(
    nr: int,
    name: str,
    signature: str = "",
    note: str = "",
    support: Support = Support.FULL,
    *,
    when: Conditions = (),
    refuse_when: Conditions = (),
    errno: int = 0,
) -> Syscall:
    """The sentry's, by arguments and memory."""
    return Syscall(
        nr, name, signature, Class.NOTIFY, support, note, when, refuse_when=refuse_when, errno=errno
    )


def stop(
    nr: int,
    name: str,
    signature: str = "",
    note: str = "",
    support: Support = Support.FULL,
    *,
    when: Conditions = (),
) -> Syscall:
    """The sentry's, at a stop."""
    return Syscall(nr, name, signature, Class.STOP, support, note, when)


def wrap(
    nr: int,
    name: str,
    signature: str = "",
    note: str = "",
    support: Support = Support.FULL,
    *,
    when: Conditions = (),
    cases: tuple[Case, ...] = (),
) -> Syscall:
    """The sentry's before and after; executed by the host."""
    return Syscall(nr, name, signature, Class.WRAP, support, note, when, cases)


def refuse(nr: int, name: str, signature: str, errno: int, note: str = "") -> Syscall:
    """Always an error."""
    return Syscall(nr, name, signature, Class.REFUSE, Support.REFUSED, note, errno=errno)


def missing(nr: int, name: str, signature: str = "", note: str = "") -> Syscall:
    """A number whose call Linux itself does not have (any more): ENOSYS."""
    return Syscall(nr, name, signature, Class.NONE, Support.NONE, note)
