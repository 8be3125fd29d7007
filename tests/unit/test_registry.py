"""Registering handlers, and what the conversion of arguments makes of raw registers."""

from __future__ import annotations

import functools
import struct
import timeit
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.sentry.syscalls import registry
from trapline.sentry.syscalls.registry import bind, converter, effective_table, handler, handlers, override
from trapline.sentry.syscalls.table import TABLE, by_name
from trapline.sentry.syscalls.table_types import Class, Parameter, Support, Syscall

RAW = st.integers(0, 2**64 - 1)
FORMATS = {  # the type as the struct module knows it, by the size and sign that C gives it on x86-64
    "int": "i",
    "pid_t": "i",
    "clockid_t": "i",
    "timer_t": "i",
    "mqd_t": "i",
    "key_t": "i",
    "key_serial_t": "i",
    "rwf_t": "i",
    "__s32": "i",
    "unsigned int": "I",
    "uid_t": "I",
    "gid_t": "I",
    "qid_t": "I",
    "u32": "I",
    "__u32": "I",
    "umode_t": "H",
    "long": "q",
    "off_t": "q",
    "loff_t": "q",
    "unsigned long": "Q",
    "size_t": "Q",
    "u64": "Q",
    "__u64": "Q",
    "aio_context_t": "Q",
}


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """The handlers of other tests are left as they were."""
    before = dict(handlers)
    handlers.clear()
    yield
    handlers.clear()
    handlers.update(before)


def row_of(name: str) -> Syscall:
    row = by_name(name)
    assert row is not None
    return row


def as_c(parameter: Parameter, raw: int) -> int:
    form = "Q" if parameter.pointer else FORMATS[parameter.type]
    value: int = struct.unpack_from("<" + form, struct.pack("<Q", raw))[0]
    return value


@given(args=st.tuples(*[RAW] * 6))
def test_arguments_are_what_c_would_see(args: tuple[int, ...]) -> None:
    for row in TABLE:
        wanted = tuple([as_c(parameter, raw) for parameter, raw in zip(row.parameters(), args, strict=False)])
        assert converter(row)(args) == wanted, row.name


def test_edges() -> None:
    top = 2**64 - 1
    assert converter(row_of("kill"))((top, 0x1_0000_0009, 0, 0, 0, 0)) == (-1, 9)
    assert converter(row_of("kill"))((0x7FFF_FFFF, 0x8000_0000, 0, 0, 0, 0)) == (2**31 - 1, -(2**31))
    assert converter(row_of("alarm"))((top,)) == (2**32 - 1,)
    assert converter(row_of("lseek"))((3, top, 0)) == (3, -1, 0)
    assert converter(row_of("rt_sigpending"))((top, top)) == (top, top)
    assert converter(row_of("pause"))((1, 2, 3, 4, 5, 6)) == ()


def test_conversion_is_fast() -> None:
    convert = converter(row_of("clock_nanosleep"))
    args = (1, 1, 0x7FFF_0000_0000, 0, 0, 0)
    best = min(timeit.repeat(lambda: convert(args), number=10_000, repeat=5)) / 10_000
    assert best < 2e-6  # about 0.2 µs on an idle machine


def test_converters_are_shared() -> None:
    assert converter(row_of("getitimer")) is converter(row_of("timer_gettime"))


def test_register() -> None:
    @handler("getitimer")
    def getitimer(kernel: Any, task: Any, which: int, value: int) -> int:
        return which + value

    @handler("pause")
    async def pause(kernel: Any, task: Any) -> int:
        return 0

    assert set(handlers) == {36, 34}
    function, convert, is_async = handlers[36]
    assert function is getitimer
    assert not is_async
    assert function(None, None, *convert((2**64 - 1, 7, 0, 0, 0, 0))) == 6
    assert handlers[34][0] is pause
    assert handlers[34][2]
    with pytest.raises(ValueError, match="getitimer has a handler"):
        handler("getitimer")(getitimer)


def test_register_refuses_what_would_not_work() -> None:
    def two(kernel: Any, task: Any, pid: int, signo: int) -> int:
        return 0

    with pytest.raises(KeyError, match="kil"):
        handler("kil")
    with pytest.raises(KeyError, match="kil"):
        handler("kil")(two)
    with pytest.raises(TypeError, match="tgkill"):
        handler("tgkill")(two)
    with pytest.raises(TypeError, match="getpgrp"):
        bind("getpgrp", two)
    assert not handlers


def test_other_callables() -> None:
    class Counter:
        def count(self, kernel: Any, task: Any, pid: int, signo: int) -> int:
            return pid

        async def wait(self, kernel: Any, task: Any) -> int:
            return 0

        async def __call__(self, *args: Any) -> int:
            return 0

    def general(kernel: Any, task: Any, *args: int) -> int:
        return len(args)

    def optional(kernel: Any, task: Any, pid: int, signo: int, extra: int = 0) -> int:
        return extra

    counter = Counter()
    assert not bind("kill", counter.count)[2]
    assert bind("pause", counter.wait)[2]
    assert bind("kill", counter)[2]
    assert not bind("kill", general)[2]
    assert not bind("kill", optional)[2]
    assert not bind("kill", functools.partial(optional, extra=1))[2]
    with pytest.raises(TypeError):
        bind("tgkill", counter.count)


def test_override() -> None:
    def first(kernel: Any, task: Any) -> int:
        return 1

    def second(kernel: Any, task: Any) -> int:
        return 2

    handler("getpgrp")(first)
    with override("getpgrp", second) as change:
        assert handlers[111][0] is second
        assert change.previous is not None
        assert change.previous[0] is first
    assert handlers[111][0] is first
    lasting = override("getsid", lambda kernel, task, pid: 5)
    assert lasting.previous is None
    assert handlers[124][0](None, None, 1) == 5
    lasting.undo()
    assert set(handlers) == {111}


def test_an_override_that_comes_before_the_handler() -> None:
    """Whoever overrides a call need not have loaded the module of its handler."""

    def own(kernel: Any, task: Any) -> int:
        return 1

    first = override("getpgrp", lambda kernel, task: 2)
    override("getpgrp", lambda kernel, task: 4).undo()
    second = override("getpgrp", lambda kernel, task: 3)
    handler("getpgrp")(own)
    assert handlers[111][0](None, None) == 3
    with pytest.raises(ValueError, match="getpgrp"):
        handler("getpgrp")(own)
    second.undo()
    assert handlers[111][0](None, None) == 2
    first.undo()
    assert handlers[111][0] is own
    with override("getsid", lambda kernel, task, pid: 5):
        pass
    handler("getsid")(lambda kernel, task, pid: 6)
    assert handlers[124][0](None, None, 1) == 6


def test_a_lent_call_with_a_handler_becomes_the_sentrys() -> None:
    assert effective_table() == TABLE
    with override("getuid", lambda kernel, task: 4711), override("unshare", lambda kernel, task, *args: 0):
        changed = {row.name: row for row in effective_table()}
        assert changed["getuid"].decide((0,) * 6) is changed["unshare"].decide((0,) * 6) is Class.NOTIFY
        assert changed["getuid"].support is Support.FULL
        assert {name for name, row in changed.items() if row != by_name(name)} == {"getuid", "unshare"}
    with override("wait4", lambda kernel, task, *args: 0):
        assert effective_table() == TABLE, "a call that is the sentry's already keeps its class"


def test_a_handler_that_waits_is_called_at_a_stop() -> None:
    """A notification is only for what is answered at once."""

    async def wait(kernel: Any, task: Any, *args: int) -> int:
        return 0

    with override("getitimer", wait), override("getuid", wait), override("ppoll", wait):
        changed = {row.name: row for row in effective_table()}
    assert changed["getitimer"].decide((0,) * 6) is changed["getuid"].decide((0,) * 6) is Class.STOP
    assert changed["ppoll"] == by_name("ppoll")


def test_unknown_types_are_found_early() -> None:
    with pytest.raises(KeyError):
        registry.converter(Syscall(999, "new", "bool flag", Class.NATIVE, Support.LENT))
