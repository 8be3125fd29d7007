"""The filter: what it does for every call, and that the kernel takes it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable

import pytest
from bpf_machine import JA, Machine, seccomp_data
from hypothesis import given, settings
from hypothesis import strategies as st

from trapline.platform import bpf
from trapline.sentry.syscalls.table import TABLE, by_name, by_number
from trapline.sentry.syscalls.table_types import ALL_BITS, LOW_32, Case, Class, Condition, Op, Support, Syscall

X86_64 = bpf.AUDIT_ARCH_X86_64
ENOSYS = bpf.RET_ERRNO | errno.ENOSYS
MACHINES = {platform: Machine(bpf.build(TABLE, platform)) for platform in bpf.PLATFORMS}
UNKNOWN = {"seccomp": 0x7FC00000, "ptrace": 0x7FF00003}

RAW = st.integers(0, ALL_BITS)
#: Numbers that sit on the edges of what conditions look at, in either half.
EDGES = st.sampled_from([0, 1, 11, 22, 35, 36, 0x2000, 0x4000, 0x11, 0x20000, 0x10000000, 0x3D0F00, 1 << 31])
ARGUMENT = st.one_of(
    RAW, EDGES, EDGES.map(lambda n: n << 32), st.tuples(EDGES, EDGES).map(lambda p: p[0] << 32 | p[1])
)
ARGUMENTS = st.tuples(*[ARGUMENT] * 6)


def expected(row: Syscall, args: tuple[int, ...], platform: str, profile: str = "control") -> int:
    """The return value, said in another way than the code under test does."""
    notify = {"seccomp": 0x7FC00000, "ptrace": 0x7FF00003}[platform]
    return {
        Class.NATIVE: 0x7FFF0000,
        Class.NOTIFY: notify,
        Class.NONE: notify,
        Class.STOP: 0x7FF00001,
        Class.WRAP: 0x7FF00002,
        Class.REFUSE: 0x00050000 | row.errno,
    }[row.decide(args, profile)]


@pytest.mark.parametrize("platform", bpf.PLATFORMS)
@given(args=ARGUMENTS)
@settings(max_examples=40, deadline=None)
def test_every_call_gets_what_the_table_says(platform: str, args: tuple[int, ...]) -> None:
    machine = MACHINES[platform]
    for nr in range(600):
        row = by_number(nr)
        wanted = expected(row, args, platform) if row is not None else UNKNOWN[platform]
        assert machine.run(seccomp_data(nr, X86_64, args)) == wanted, nr


@pytest.mark.parametrize("platform", bpf.PLATFORMS)
@given(nr=st.integers(0, 0xFFFFFFFF), args=ARGUMENTS)
def test_other_architectures_are_refused(platform: str, nr: int, args: tuple[int, ...]) -> None:
    for arch in (0x40000003, 0xC00000B7, 0, 0xFFFFFFFF):  # i386 (int 0x80), aarch64, none
        assert MACHINES[platform].run(seccomp_data(nr, arch, args)) == ENOSYS


@pytest.mark.parametrize("platform", bpf.PLATFORMS)
@given(nr=st.integers(0, 0xFFFFFFFE), args=ARGUMENTS)
def test_x32_is_refused_and_what_is_unknown_reaches_the_sentry(
    platform: str, nr: int, args: tuple[int, ...]
) -> None:
    machine = MACHINES[platform]
    assert machine.run(seccomp_data(nr | 0x40000000, X86_64, args)) == (
        ENOSYS if nr | 0x40000000 != 0xFFFFFFFF else bpf.RET_ALLOW
    )
    if not nr & 0x40000000 and by_number(nr) is None:
        assert machine.run(seccomp_data(nr, X86_64, args)) == UNKNOWN[platform]


@pytest.mark.parametrize("platform", bpf.PLATFORMS)
def test_a_skipped_call_keeps_its_result(platform: str) -> None:
    assert MACHINES[platform].run(seccomp_data(-1, X86_64)) == bpf.RET_ALLOW


@pytest.mark.parametrize("platform", bpf.PLATFORMS)
def test_native_calls_are_decided_without_arguments(platform: str) -> None:
    """Else they would not be in the kernel's bitmap, and every one of them would run the program."""
    machine = MACHINES[platform]
    for row in TABLE:
        if row.default is Class.NATIVE and not row.refuse_when:
            machine.run(seccomp_data(row.nr, X86_64))
            assert set(machine.loaded) == {bpf.OFFSET_NR, bpf.OFFSET_ARCH}, row.name


@pytest.mark.parametrize("platform", bpf.PLATFORMS)
def test_programs_are_short(platform: str) -> None:
    machine = MACHINES[platform]
    assert len(machine.code) < 400
    steps = []
    for nr in range(480):
        machine.run(seccomp_data(nr, X86_64))
        steps.append(machine.steps)
    assert max(steps) <= 20


def call(name: str, platform: str = "seccomp", *args: int) -> int:
    row = by_name(name)
    assert row is not None
    return MACHINES[platform].run(seccomp_data(row.nr, X86_64, args))


def test_what_the_contract_of_the_classes_says() -> None:
    allow, notify, stop, wrap = bpf.RET_ALLOW, bpf.RET_USER_NOTIF, bpf.RET_TRACE | 1, bpf.RET_TRACE | 2
    eperm = bpf.RET_ERRNO | errno.EPERM
    assert (
        call("read")
        == call("timerfd_create")
        == call("mount")
        == call("select")
        == call("mq_notify")
        == allow
    )
    assert call("clock_gettime") == call("timerfd_settime") == call("getpgrp") == call("rt_sigreturn") == notify
    assert call("clock_gettime", "ptrace") == bpf.RET_TRACE | 3
    assert call("wait4") == call("clone3") == call("vfork") == call("pause") == stop
    assert (
        call("clone", "seccomp", 0x003D0F00) == call("clone", "seccomp", 0x01200011) == allow
    )  # pthread, fork
    for flag in (0x2000, 0x4000, 0x800000, 0x20000, 0x2000000, 0x4000000, 0x10000000, 0x40000000):
        assert call("clone", "seccomp", 0x11 | flag) == stop
    assert call("clone", "seccomp", 0x4000 << 32) == allow  # the kernel looks at the low half only
    assert call("rt_sigsuspend") == wrap
    for name, at in (("ppoll", 3), ("pselect6", 5), ("epoll_pwait", 4), ("epoll_pwait2", 4)):
        assert call(name) == call(name, "seccomp", *[8 if i != at else 0 for i in range(6)]) == allow
        for pointer in (8, 1 << 32, 0x7FFF_0000_0000):
            assert call(name, "seccomp", *[pointer if i == at else 0 for i in range(6)]) == wrap
    for option, wanted in (
        (1, notify),
        (36, notify),
        (22, notify),
        (35, eperm),
        (29, allow),
        (15, allow),
        (0, allow),
    ):
        assert call("prctl", "seccomp", option) == call("prctl", "seccomp", option | 1 << 32) == wanted
    for request, wanted in (
        (0x540E, wrap), (0x5410, wrap), (0x5422, wrap), (0x540F, notify), (0x5412, notify), (0x5429, notify),
        (0x5401, allow), (0x5413, allow), (0x541B, allow), (0x80045430, allow), (0, allow),
    ):  # fmt: skip
        assert call("ioctl", "seccomp", 0, request) == call("ioctl", "seccomp", 0, request | 1 << 32) == wanted
    assert call("ioctl", "ptrace", 0, 0x540F) == bpf.RET_TRACE | 3 and call("ioctl", "ptrace", 0, 0x5410) == wrap
    for resource in range(16):
        wanted = notify if resource in (0, 11) else allow
        assert call("prlimit64", "seccomp", 0, resource) == call("setrlimit", "seccomp", resource) == wanted
        assert call("getrlimit", "seccomp", resource) == wanted
    for name in ("unshare", "setns", "bpf", "reboot", "swapon", "kexec_load", "init_module"):
        assert call(name) == call(name, "ptrace") == eperm
    assert call("ptrace", "seccomp", 0) == notify  # refused by the sentry, which tells the user why
    assert call("io_uring_setup") == call("io_uring_register") == call("userfaultfd") == ENOSYS


CONDITIONS = st.lists(
    st.builds(
        Condition,
        arg=st.integers(0, 5),
        op=st.sampled_from(Op),
        mask=st.one_of(RAW, st.sampled_from([LOW_32, ALL_BITS, 1, 1 << 63, 0])),
        value=st.one_of(EDGES, RAW),
    ),
    max_size=40,
).map(tuple)


@given(
    kind=st.sampled_from(Class),
    when=CONDITIONS,
    cases=st.lists(st.tuples(CONDITIONS, st.sampled_from(Class)), max_size=3),
    refuse_when=CONDITIONS,
    args=ARGUMENTS,
    chosen=st.integers(0, 159),
    platform=st.sampled_from(bpf.PLATFORMS),
)
@settings(deadline=None)
def test_any_conditions(
    kind: Class,
    when: tuple[Condition, ...],
    cases: list[tuple[tuple[Condition, ...], Class]],
    refuse_when: tuple[Condition, ...],
    args: tuple[int, ...],
    chosen: int,
    platform: str,
) -> None:
    """Long lists too, so that jumps must be bridged; and arguments that fulfil one of the conditions."""
    others = tuple([Case(conditions, other) for conditions, other in cases])
    row = Syscall(
        7, "seven", "", kind, Support.FULL, "", when, others, Class.NATIVE, refuse_when, errno.EACCES
    )
    asked = [*when, *[condition for case in others for condition in case.when]]
    if asked:
        condition = asked[chosen % len(asked)]
        wanted = condition.value & condition.mask | ~condition.mask & args[condition.arg]
        args = tuple([wanted if i == condition.arg else a for i, a in enumerate(args)])
    machine = Machine(bpf.build([row], platform))
    assert machine.run(seccomp_data(7, X86_64, args)) == expected(row, args, platform)
    assert machine.run(seccomp_data(6, X86_64, args)) == UNKNOWN[platform]
    assert machine.run(seccomp_data(8, X86_64, args)) == UNKNOWN[platform]


def test_a_long_table_needs_bridged_jumps() -> None:
    """Every second number has another outcome, and each looks at an argument."""
    condition = (Condition(2, Op.EQUAL, ALL_BITS, 5 << 32 | 6),)
    rows = [
        Syscall(
            nr, f"call{nr}", "", Class.REFUSE, Support.FULL, "", condition if nr % 3 else (), errno=nr + 1
        )
        for nr in range(450)
    ]
    machine = Machine(bpf.build(rows, "seccomp"))
    assert JA in [code for code, *_ in machine.code]
    for args in ((0, 0, 5 << 32 | 6), (0, 0, 6), (0, 0, 5 << 32)):
        for row in rows:
            assert machine.run(seccomp_data(row.nr, X86_64, args)) == expected(
                row, (*args, 0, 0, 0), "seccomp"
            )


def test_a_class_of_another_profile_asks_no_arguments() -> None:
    row = Syscall(3, "three", "", Class.NATIVE, Support.LENT, profiles={"all": Class.NOTIFY})
    wait = Syscall(
        4,
        "four",
        "",
        Class.WRAP,
        Support.LENT,
        when=(Condition(0, Op.ANY_BITS, 1),),
        profiles={"all": Class.NOTIFY},
    )
    control, everything = (
        Machine(bpf.build([row, wait], "seccomp", profile)) for profile in ("control", "all")
    )
    assert control.run(seccomp_data(3, X86_64)) == control.run(seccomp_data(4, X86_64)) == bpf.RET_ALLOW
    assert control.run(seccomp_data(4, X86_64, (1,))) == bpf.RET_TRACE | bpf.TRACE_WRAP
    assert (
        everything.run(seccomp_data(3, X86_64))
        == everything.run(seccomp_data(4, X86_64))
        == bpf.RET_USER_NOTIF
    )


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="platform"):
        bpf.build(TABLE, "kvm")
    with pytest.raises(ValueError, match="two rows"):
        bpf.build([TABLE[0], TABLE[0]], "seccomp")
    many = tuple([Condition(n % 6, Op.EQUAL, ALL_BITS, n << 32 | n) for n in range(1200)])
    with pytest.raises(ValueError, match="instructions"):
        bpf.build([Syscall(0, "x", "", Class.NOTIFY, Support.FULL, "", many)], "seccomp")


# -- the kernel's own opinion


def in_child(work: Callable[[], int]) -> int:
    """Run a function in a forked child; its result is the exit status (0 to 255)."""
    child = os.fork()
    if not child:
        code = 255
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # a wrong filter can leave it waiting for ever
        try:
            code = int(work())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long


def install(program: bytes, flags: int = 0) -> int:
    """Install a program on this process: 0 or a listener, or -errno."""
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)), 16
    )
    if LIBC.prctl(38, 1, 0, 0, 0):
        return -ctypes.get_errno()
    result = LIBC.syscall(317, 1, flags, header)
    return -ctypes.get_errno() if result < 0 else int(result)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="seccomp")


def number_of(name: str) -> int:
    row = by_name(name)
    assert row is not None
    return row.nr


def errno_of(nr: int, *args: int) -> int:
    """The errno of a raw call, 0 when it succeeded."""
    ctypes.set_errno(0)
    longs = [ctypes.c_long(argument) for argument in args]
    return ctypes.get_errno() if LIBC.syscall(ctypes.c_long(nr), *longs) == -1 else 0


@on_linux
@pytest.mark.parametrize("platform", bpf.PLATFORMS)
def test_the_kernel_takes_the_program(platform: str) -> None:
    """Native calls work, refused ones have their errno. What is traced with no tracer there is ENOSYS
    (seccomp(2)), which tells it from a call that was let through."""

    def work() -> int:
        if install(bpf.build(TABLE, platform)):
            return 1
        checks = (
            errno_of(number_of("getpid")) == 0,
            errno_of(number_of("unshare"), 0) == errno.EPERM,
            errno_of(number_of("perf_event_open"), 0, 0, 0, 0, 0) == errno.EACCES,
            errno_of(number_of("io_uring_setup"), 0, 0) == errno.ENOSYS,
            errno_of(number_of("prctl"), 35, 0, 0, 0, 0) == errno.EPERM,
            errno_of(number_of("prctl"), 39, 0, 0, 0, 0) == 0,  # PR_GET_NO_NEW_PRIVS is native
            errno_of(number_of("wait4"), -1, 0, 1, 0) == errno.ENOSYS,  # native would be ECHILD
            errno_of(number_of("ppoll"), 0, 0, 1, 0, 0) == errno.EFAULT,  # native: a bad timeout
            errno_of(number_of("ppoll"), 0, 0, 1, 1, 0) == errno.ENOSYS,  # wrapped: a mask
            errno_of(number_of("getppid") | 0x40000000) == errno.ENOSYS,
            errno_of(-1) == errno.ENOSYS,
            errno_of(500) == errno.ENOSYS,
        )
        return 0 if all(checks) else 2 + checks.index(False)

    assert in_child(work) == 0


@on_linux
def test_owned_calls_reach_a_listener() -> None:
    """A thread of the child has the filter; the child itself answers."""
    request = bytearray(80)
    numbers: list[int] = []
    results: list[int] = []

    def guest(ready: threading.Event, listener: list[int]) -> None:
        listener.append(install(bpf.build(TABLE, "seccomp"), 8))
        ready.set()
        results.append(LIBC.syscall(number_of("getpgrp")))
        results.append(LIBC.syscall(number_of("getsid"), 0))

    def work() -> int:
        ready = threading.Event()
        listener: list[int] = []
        thread = threading.Thread(target=guest, args=(ready, listener), daemon=True)
        thread.start()
        ready.wait(5)
        if listener[0] < 0:
            return 77 if listener[0] == -errno.EBUSY else 1
        for value in (4711, 4712):
            request[:] = bytes(80)
            fcntl.ioctl(listener[0], 0xC0502100, request)
            ident, _, _, nr = struct.unpack_from("=QIIi", request)
            numbers.append(nr)
            fcntl.ioctl(listener[0], 0xC0182101, bytearray(struct.pack("=QqiI", ident, value, 0, 0)))
        thread.join(5)
        return 0 if (numbers, results) == ([number_of("getpgrp"), number_of("getsid")], [4711, 4712]) else 2

    status = in_child(work)
    if status == 77:
        pytest.skip("the machine has a listener already")
    assert status == 0
