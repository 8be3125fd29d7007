"""Handlers by number, with the conversion of raw arguments that each call's C signature asks for.

A handler is `def f(kernel, task, *arguments)`, or `async def` when the call may block. It is given exactly
the parameters of the signature in the table, as the kernel's C code would see them: an `int` is the low 32
bits, signed; a pointer or `size_t` all 64, unsigned. Raw arguments are the six registers as *unsigned* 64-bit
numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from trapline.sentry.syscalls.table import TABLE, by_name, by_number, name_of
from trapline.sentry.syscalls.table_types import Class, Support, Syscall

Handler = Callable[..., Any]
#: From the six raw registers (more may follow; they are ignored) to the arguments of a handler.
Converter = Callable[[tuple[int, ...]], tuple[int, ...]]
#: What is called, its converter, and whether it is a coroutine function.
Bound = tuple[Handler, Converter, bool]
_F = TypeVar("_F", bound=Handler)

_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE, without the cost of importing inspect
_BEFORE = 2  # kernel and task

# Widths on x86-64 (include/linux/types.h, asm-generic/posix_types.h).
_S32 = "(a[%d] & 0xFFFFFFFF ^ 0x80000000) - 0x80000000"
_U32 = "a[%d] & 0xFFFFFFFF"
_U16 = "a[%d] & 0xFFFF"
_S64 = "(a[%d] ^ 0x8000000000000000) - 0x8000000000000000"
_U64 = "a[%d]"
_WIDTHS = {
    **dict.fromkeys(
        ("int", "pid_t", "clockid_t", "timer_t", "mqd_t", "key_t", "key_serial_t", "rwf_t", "__s32"), _S32
    ),
    **dict.fromkeys(("unsigned int", "uid_t", "gid_t", "qid_t", "u32", "__u32"), _U32),
    "umode_t": _U16,
    **dict.fromkeys(("long", "off_t", "loff_t"), _S64),
    **dict.fromkeys(("unsigned long", "size_t", "u64", "__u64", "aio_context_t"), _U64),
}
_made: dict[str, Converter] = {}

#: Every registered handler, by the number of its call.
handlers: dict[int, Bound] = {}


def converter(row: Syscall) -> Converter:
    """The function that converts raw arguments for a row; made once for each shape of signature.

    It is generated, since it runs at every owned call and a loop over kinds would cost more than all else
    here. KeyError for a type that is not known.
    """
    parts = [
        (_U64 if parameter.pointer else _WIDTHS[parameter.type]) % at
        for at, parameter in enumerate(row.parameters())
    ]
    source = f"lambda a: ({''.join([part + ', ' for part in parts])})"
    made = _made.get(source)
    if made is None:
        made = _made[source] = eval(source, {"__builtins__": {}})
    return made


def _row(name: str) -> Syscall:
    row = by_name(name)
    if row is None:
        raise KeyError(f"no call named {name!r} in the table")
    return row


def _inner(fn: Handler) -> Any:
    """The code object of what is called, or None for a builtin. Bound methods and callable objects too."""
    either: Any = fn
    code = getattr(either, "__code__", None)
    return code if code is not None else getattr(either.__call__, "__code__", None)


def _check_arity(row: Syscall, fn: Handler) -> None:
    code = getattr(fn, "__code__", None)
    if code is None or code.co_flags & 0x04:  # *args takes anything
        return
    taken = code.co_argcount - _BEFORE - (getattr(fn, "__self__", None) is not None)
    wanted = len(row.parameters())
    if not taken - len(getattr(fn, "__defaults__", None) or ()) <= wanted <= taken:
        raise TypeError(f"{row.name}({row.signature}) has {wanted} arguments, its handler takes {taken}")


def bind(name: str, fn: Handler) -> Bound:
    """(function, converter, whether it is async) for a call. KeyError, TypeError for a wrong number of
    parameters."""
    row = _row(name)
    _check_arity(row, fn)
    code = _inner(fn)
    return fn, converter(row), code is not None and bool(code.co_flags & _CO_COROUTINE)


def handler(name: str) -> Callable[[_F], _F]:
    """Decorator: the function serves the call of this name. KeyError for a name that is not in the table,
    TypeError for a wrong number of parameters, ValueError when the call has a handler."""
    nr = _row(name).nr

    def register(fn: _F) -> _F:
        early = _early.pop(nr, None)
        if early is not None:
            early.previous = bind(name, fn)
            return fn
        if nr in handlers:
            raise ValueError(f"{name} has a handler: {handlers[nr][0]!r}; use override()")
        handlers[nr] = bind(name, fn)
        return fn

    return register


#: Overrides of calls whose own handler has not been loaded yet, if they have one.
_early: dict[int, Override] = {}


class Override:
    """A handler put in the place of another. `undo()`, or leaving it as a context manager, puts it back."""

    def __init__(self, nr: int, bound: Bound) -> None:
        self.nr = nr
        #: What it replaced: call its first element to add to it rather than replace it. None for a call that
        #: has no handler, and until the module of its handler is loaded.
        self.previous = handlers.get(nr)
        if self.previous is None:
            _early[nr] = self
        handlers[nr] = bound

    def undo(self) -> None:
        """The handler as it was before; None is none."""
        if _early.get(self.nr) is self:
            del _early[self.nr]
        if self.previous is None:
            handlers.pop(self.nr, None)
        else:
            handlers[self.nr] = self.previous

    def __enter__(self) -> Override:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<Override of {name_of(self.nr)}>"


def override(name: str, fn: Handler) -> Override:
    """Serve a call by another function, from the next call on; as a context manager, for a while.

    Of a call that the host serves it must be done before the sandbox starts, and so it must when an async
    function takes the place of a plain one: the filter is made from `effective_table()` and cannot be changed
    later. KeyError, TypeError as `bind`.
    """
    return Override(_row(name).nr, bind(name, fn))


#: Rows that are not in the table, by number.
_added: dict[int, Syscall] = {}


def add(row: Syscall, fn: Handler) -> None:
    """Serve a call that Linux does not have, in sandboxes that start from now on. TypeError as `bind`; ValueError for a
    number of the table's."""
    if by_number(row.nr) is not None:
        raise ValueError(f"call {row.nr} is {name_of(row.nr)}")
    _check_arity(row, fn)
    code = _inner(fn)
    handlers[row.nr] = fn, converter(row), code is not None and bool(code.co_flags & _CO_COROUTINE)
    _added[row.nr] = row


def effective_table(profile: str = "control") -> tuple[Syscall, ...]:
    """The table, in which a call that has a handler but is not the sentry's is now the sentry's, and one that may
    wait arrives by a stop; and what was added to it."""
    rows = (*TABLE, *_added.values())
    return tuple([_effective(row, handlers[row.nr], profile) if row.nr in handlers else row for row in rows])


def _effective(row: Syscall, bound: Bound, profile: str) -> Syscall:
    waits = bound[2]
    if row.owned(profile) and not (waits and row.class_in(profile) is Class.NOTIFY):
        return row
    kind = Class.STOP if waits else Class.NOTIFY
    return Syscall(row.nr, row.name, row.signature, kind, Support.FULL, "overridden")
