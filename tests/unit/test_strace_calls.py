"""Whole calls, from registers and memory to a line. What is expected was taken from strace 6.1's own output."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strace_world import Traced, text

from trapline.sentry.strace.plan import Plan
from trapline.sentry.syscalls.table import TABLE
from trapline.sentry.syscalls.table_arguments import ARGUMENTS

AT_FDCWD = -100


@pytest.fixture
def t():
    return Traced()


def test_every_row_has_a_plan():
    for row in TABLE:
        Plan(row)
    assert set(ARGUMENTS) <= {row.name for row in TABLE}


def test_files(t):
    path = t.memory.put(b"/etc/passwd\0")
    assert t.call("openat", AT_FDCWD, path, 0o2000000, 0o666, result=3) == (
        'openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3'
    )
    assert t.call("openat", AT_FDCWD, path, 0o1102, 0o600, result=-13) == (
        'openat(AT_FDCWD, "/etc/passwd", O_RDWR|O_CREAT|O_TRUNC, 0600) = -1 EACCES (Permission denied)'
    )
    data = t.memory.put(b"hello\n" + b"x" * 40)
    assert t.call("read", 3, data, 100, result=46) == f'read(3, "hello\\n{"x" * 26}"..., 100) = 46'
    assert t.call("read", 3, data, 100, result=0) == 'read(3, "", 100) = 0'
    assert t.call("read", 3, data, 100, result=-9) == f"read(3, {data:#x}, 100) = -1 EBADF (Bad file descriptor)"
    assert t.call("write", 1, data, 6, result=6) == 'write(1, "hello\\n", 6) = 6'
    assert t.call("access", path, 0) == 'access("/etc/passwd", F_OK) = 0'
    assert t.call("access", path, 6) == 'access("/etc/passwd", R_OK|W_OK) = 0'
    assert t.call("umask", 0o22, result=0o77) == "umask(022) = 077"
    assert t.call("fcntl", 3, 1, 0, result=1) == "fcntl(3, F_GETFD) = 0x1 (flags FD_CLOEXEC)"
    assert t.call("fcntl", 3, 2, 1) == "fcntl(3, F_SETFD, FD_CLOEXEC) = 0"
    assert t.call("fcntl", 3, 3, 0, result=0o100002) == "fcntl(3, F_GETFL) = 0x8002 (flags O_RDWR|O_LARGEFILE)"
    assert t.call("mknod", path, 0o010600, 0) == 'mknod("/etc/passwd", S_IFIFO|0600) = 0'


def test_bad_pointers_are_numbers(t):
    assert t.call("stat", 8, 16, result=-14) == "stat(0x8, 0x10) = -1 EFAULT (Bad address)"
    assert t.call("write", 1, 8, 5, result=-14) == "write(1, 0x8, 5) = -1 EFAULT (Bad address)"
    assert t.call("nanosleep", 8, 0, result=-14) == "nanosleep(0x8, NULL) = -1 EFAULT (Bad address)"
    assert t.call("execve", 8, 8, 8, result=-14) == "execve(0x8, 0x8, 0x8) = -1 EFAULT (Bad address)"
    assert t.call("rt_sigaction", 10, 8, 0, 8, result=-14) == (
        "rt_sigaction(SIGUSR1, 0x8, NULL, 8) = -1 EFAULT (Bad address)"
    )


def test_a_string_without_an_end(t):
    path = t.memory.put(b"a" * 5000)
    assert t.call("chdir", path, result=-36).startswith(f'chdir("{"a" * 4096}"...) = -1 ENAMETOOLONG')


def test_execve(t):
    words = [t.memory.put(word + b"\0") for word in (b"sh", b"-c", b"x" * 40)]
    argv = t.memory.put(struct.pack("<4Q", *words, 0))
    envp = t.memory.put(struct.pack("<2Q", words[0], 0))
    path = t.memory.put(b"/bin/sh\0")
    assert t.call("execve", path, argv, envp) == (
        f'execve("/bin/sh", ["sh", "-c", "{"x" * 32}"...], {envp:#x} /* 1 var */) = 0'
    )


def test_memory(t):
    assert t.call("mmap", 0, 8192, 3, 0x22, -1, 0, result=0x7F0000000000) == (
        "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000"
    )
    assert t.call("mprotect", 4096, 4096, 0) == "mprotect(0x1000, 4096, PROT_NONE) = 0"
    assert t.call("brk", 0, result=0x555000) == "brk(NULL) = 0x555000"
    assert t.call("mremap", 4096, 1, 2, 1, 99, result=4096) == "mremap(0x1000, 1, 2, MREMAP_MAYMOVE) = 0x1000"


def test_waits(t):
    status = t.memory.put(struct.pack("<i", 0x300))
    assert t.call("wait4", -1, status, 0, 0, result=7) == (
        "wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 3}], 0, NULL) = 7"
    )
    assert t.call("wait4", -1, status, 1, 0, result=0) == f"wait4(-1, {status:#x}, WNOHANG, NULL) = 0"
    fds = t.memory.put(struct.pack("<ihhihh", 3, 1, 1, 4, 5, 0))
    assert t.call("poll", fds, 2, -1, result=1) == (
        "poll([{fd=3, events=POLLIN}, {fd=4, events=POLLIN|POLLOUT}], 2, -1) = 1 ([{fd=3, revents=POLLIN}])"
    )
    assert t.call("poll", fds, 1, 5, result=0) == "poll([{fd=3, events=POLLIN}], 1, 5) = 0 (Timeout)"
    readable = t.memory.put(struct.pack("<Q", 1 << 3))
    assert t.call("select", 4, readable, 0, 0, 0, result=1) == "select(4, [3], NULL, NULL, NULL) = 1 (in [3])"
    events = t.memory.put(struct.pack("<IQ", 1, 7))
    assert t.call("epoll_wait", 8, events, 4, 0, result=1) == (
        "epoll_wait(8, [{events=EPOLLIN, data={u32=7, u64=7}}], 4, 0) = 1"
    )


def test_clones(t):
    assert t.call("clone", 0x1200011, 0, 0, 0x500, 0, result=7) == (
        "clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x500) = 7"
    )
    tid = t.memory.put(struct.pack("<i", 12))
    args = t.memory.put(struct.pack("<8Q", 0x100100, 0, 0, tid, 0, 0x7000, 0x1000, 0))
    assert t.call("clone3", args, 64, result=12) == (
        f"clone3({{flags=CLONE_VM|CLONE_PARENT_SETTID, parent_tid={tid:#x}, exit_signal=0, stack=0x7000, "
        "stack_size=0x1000} => {parent_tid=[12]}, 64) = 12"
    )


def test_futexes(t):
    now = t.memory.put(struct.pack("<qq", 0, 5))
    assert t.call("futex", 64, 128, 2, now, result=-110) == (
        "futex(0x40, FUTEX_WAIT_PRIVATE, 2, {tv_sec=0, tv_nsec=5}) = -1 ETIMEDOUT (Connection timed out)"
    )
    assert t.call("futex", 64, 129, 1, result=1) == "futex(0x40, FUTEX_WAKE_PRIVATE, 1) = 1"
    assert t.call("futex", 64, 9 | 128 | 256, 0, 0, 0, 0xFFFFFFFF) == (
        "futex(0x40, FUTEX_WAIT_BITSET_PRIVATE|FUTEX_CLOCK_REALTIME, 0, NULL, FUTEX_BITSET_MATCH_ANY) = 0"
    )
    assert t.call("futex", 64, 4, 1, 2, 128, 1) == "futex(0x40, FUTEX_CMP_REQUEUE, 1, 2, 0x80, 1) = 0"


def test_signals_and_clocks(t):
    action = t.memory.put(struct.pack("<QQQQ", 0x1000, 0x14000000, 0x2000, 1 << 1))
    assert t.call("rt_sigaction", 17, action, 0, 8) == (
        "rt_sigaction(SIGCHLD, {sa_handler=0x1000, sa_mask=[INT], sa_flags=SA_RESTORER|SA_RESTART, "
        "sa_restorer=0x2000}, NULL, 8) = 0"
    )
    mask = t.memory.put(struct.pack("<Q", 1 << 16))
    assert t.call("rt_sigprocmask", 0, mask, 0, 8) == "rt_sigprocmask(SIG_BLOCK, [CHLD], NULL, 8) = 0"
    assert t.call("kill", -5, 9) == "kill(-5, SIGKILL) = 0"
    ten = t.memory.put(struct.pack("<qq", 0, 10))
    assert t.call("clock_nanosleep", 1, 1, ten, 0) == (
        "clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, {tv_sec=0, tv_nsec=10}, NULL) = 0"
    )
    assert t.call("nanosleep", ten, ten) == f"nanosleep({{tv_sec=0, tv_nsec=10}}, {ten:#x}) = 0"
    assert t.call("nanosleep", ten, ten, result=-4) == (
        "nanosleep({tv_sec=0, tv_nsec=10}, {tv_sec=0, tv_nsec=10}) = -1 EINTR (Interrupted system call)"
    )
    assert t.call("clock_gettime", ~5 << 3 | 6, 0, result=-14).startswith(
        "clock_gettime(MAKE_THREAD_CPUCLOCK(5, CPUCLOCK_SCHED), NULL) = -1"
    )
    assert t.call("rt_sigtimedwait", mask, 0, 0, 8, result=17) == (
        "rt_sigtimedwait([CHLD], NULL, NULL, 8) = 17 (SIGCHLD)"
    )


def test_sockets(t):
    address = t.memory.put(struct.pack("<H", 2) + struct.pack(">H4s8x", 80, bytes([127, 0, 0, 1])))
    shown = '{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}'
    assert t.call("socket", 2, 0o2000001, 6, result=3) == "socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_TCP) = 3"
    assert t.call("connect", 3, address, 16) == f"connect(3, {shown}, 16) = 0"
    one = t.memory.put(struct.pack("<i", 1))
    assert t.call("setsockopt", 3, 1, 2, one, 4) == "setsockopt(3, SOL_SOCKET, SO_REUSEADDR, [1], 4) = 0"
    size = t.memory.put(struct.pack("<i", 16))
    assert t.call("getsockname", 3, address, size) == f"getsockname(3, {shown}, [16]) = 0"
    data = t.memory.put(b"hello")
    vector = t.memory.put(struct.pack("<QQ", data, 5))
    message = t.memory.put(struct.pack("<QI4xQQQQi4x", 0, 0, vector, 1, 0, 0, 0))
    assert t.call("sendmsg", 3, message, 0x4000, result=5) == (
        'sendmsg(3, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="hello", iov_len=5}], msg_iovlen=1, '
        "msg_controllen=0, msg_flags=0}, MSG_NOSIGNAL) = 5"
    )


def test_unknown_numbers(t):
    t.tracer.entry(1, 500, (1, 2, 3, 4, 5, 6), t.memory)
    t.tracer.exit(1, -38)
    assert text(t.lines[-1]) == "syscall_0x1f4(0x1, 0x2, 0x3, 0x4, 0x5, 0x6) = -1 ENOSYS (Function not implemented)"


def test_descriptors_with_paths():
    t = Traced(paths=True)
    assert t.call("dup2", 3, 4, result=4) == "dup2(3<fd3>, 4<fd4>) = 4<fd4>"
    assert t.call("close", -1, result=-9) == "close(-1) = -1 EBADF (Bad file descriptor)"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(TABLE), st.lists(st.integers(0, (1 << 64) - 1), min_size=6, max_size=6),
       st.integers(-4200, 5000), st.binary(max_size=200))  # fmt: skip
def test_no_arguments_and_no_memory_break_it(row, raw, result, data):
    """Also where pointers are good and point at rubbish."""
    t = Traced()
    at = t.memory.put(data + bytes(1))
    raw = [at if number % 3 == 0 else number for number in raw]
    t.tracer.entry(1, row.nr, tuple(raw), t.memory)
    t.tracer.exit(1, result)
    assert t.lines[-1].endswith("\n")
    assert t.lines[-1].count("\n") == 1
    assert f"{row.name}(" in t.lines[-1]


def test_no_decoder_fails_quietly(monkeypatch):
    """A decoder that raises is replaced by a number for the user's sake; here it is an error."""
    from trapline.sentry.strace import plan

    def text_of(step, call):
        return step.show(call, call.args[step.at])

    monkeypatch.setattr(plan.Step, "text", text_of)
    for row in TABLE:
        for result in (0, 1, -14):
            for address in (0, 8, None):
                t = Traced()
                at = t.memory.put(bytes(range(64)) * 8) if address is None else address
                t.tracer.entry(1, row.nr, (at,) * 6, t.memory)
                t.tracer.exit(1, result)


