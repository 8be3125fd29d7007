"""Values as strace writes them. What is expected was taken from strace 6.1's own output."""

import struct

import pytest

from trapline.sentry.strace import names, names_files, names_memory, names_net, names_process, structs, text
from trapline.sentry.strace.kinds_net import address
from trapline.sentry.strace.kinds_signal import siginfo


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", '""'),
        (b"plain", '"plain"'),
        (b'a"b\\c', r'"a\"b\\c"'),
        (b"\t\n\v\f\r", r'"\t\n\v\f\r"'),
        (b"\0\0x", r'"\0\0x"'),
        (b"\x001", r'"\0001"'),  # three digits, or it would be another byte
        (b"\x1b[0m\x7f\xc3", r'"\33[0m\177\303"'),
        (b"\x07\x079", r'"\7\0079"'),
        (b"x" * 32, f'"{"x" * 32}"'),
        (b"x" * 33, f'"{"x" * 32}"...'),
    ],
)
def test_quote(data, shown):
    assert text.quote(data) == shown


def test_quote_all_bytes_can_be_read_back():
    import ast

    for first in range(256):
        for second in (b"", b"7", b"a", b'"'):
            data = bytes([first]) + second
            assert ast.literal_eval("b" + text.quote(data)) == data


def test_quote_limits():
    assert text.quote(b"x" * 40, None) == f'"{"x" * 40}"'
    assert text.quote(b"x", 32, True) == '"x"...'
    assert text.quote_hex(b"\x00\xff") == r'"\x00\xff"'


def test_names():
    assert names.flags("prot", 3) == "PROT_READ|PROT_WRITE"
    assert names.flags("prot", 0) == "PROT_NONE"
    assert names.flags("prot", 0x1001) == "PROT_READ|0x1000"
    assert names.flags("prot", 0x1000) == "0x1000 /* PROT_??? */"
    assert names.flags("msg", 0) == "0"
    assert names.one("whence", 2) == "SEEK_END"
    assert names.one("fcntl", 999) == "0x3e7 /* F_??? */"
    assert names.one("sicode", 0xFFFFFFFA) == "SI_TKILL"
    with pytest.raises(KeyError):
        names.group("nonsense")


def test_every_group_is_well_formed():
    seen = set()
    for module in (names_files, names_memory, names_net, names_process):
        for group in module.GROUPS:
            assert group not in seen, f"{group} stands twice"
            seen.add(group)
            values = [value for value, _ in names.group(group)]
            assert values
            assert all(0 <= value < 1 << 34 for value in values)


def test_numbers():
    assert [text.octal(n) for n in (0, 7, 0o44, 0o644, 0o4755)] == ["000", "007", "044", "0644", "04755"]
    assert text.mode(0o100644) == "S_IFREG|0644"
    assert text.mode(0o041777) == "S_IFDIR|S_ISVTX|0777"
    assert text.mode(0o104755) == "S_IFREG|S_ISUID|0755"
    assert text.device(0x103) == "makedev(0x1, 0x3)"
    assert (text.pointer(0), text.pointer(0x7F00)) == ("NULL", "0x7f00")
    assert structs.limit(8192 * 1024) == "8192*1024"
    assert structs.limit(1024) == "1024"
    assert structs.limit((1 << 64) - 1) == "RLIM_INFINITY"
    assert structs.open_flags(0) == "O_RDONLY"
    assert structs.open_flags(0o2102) == "O_RDWR|O_CREAT|O_APPEND"


def test_signals():
    assert [text.signal_name(n) for n in (1, 9, 31, 32, 33, 64, 65)] == [
        "SIGHUP", "SIGKILL", "SIGSYS", "SIGRTMIN", "SIGRT_1", "SIGRT_32", "65",
    ]  # fmt: skip
    assert text.signal_set(0) == "[]"
    assert text.signal_set(1 << 1 | 1 << 16) == "[INT CHLD]"
    assert text.signal_set(~(1 << 31 | 1 << 32) & (1 << 64) - 1) == "~[RTMIN RT_1]"
    assert text.signal_set((1 << 64) - 1) == "~[]"


def test_wait_status():
    assert text.wait_status(0x300) == "{WIFEXITED(s) && WEXITSTATUS(s) == 3}"
    assert text.wait_status(9) == "{WIFSIGNALED(s) && WTERMSIG(s) == SIGKILL}"
    assert text.wait_status(0x8B) == "{WIFSIGNALED(s) && WTERMSIG(s) == SIGSEGV && WCOREDUMP(s)}"
    assert text.wait_status(0x137F) == "{WIFSTOPPED(s) && WSTOPSIG(s) == SIGSTOP}"
    assert text.wait_status(0xFFFF) == "{WIFCONTINUED(s)}"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timespec", 16), ("itimerspec", 32), ("stat", 144), ("statfs", 120), ("rusage", 144), ("sysinfo", 112),
        ("flock", 32), ("timex", 208), ("stack", 24), ("winsize", 8), ("tms", 32), ("rlimit", 16), ("sembuf", 6),
    ],
)  # fmt: skip
def test_sizes_are_those_of_c(name, size):
    assert structs.size_of(name) == size


def test_structures():
    assert structs.show("itimerspec", struct.pack("<4q", 0, 0, 1, 5)) == (
        "{it_interval={tv_sec=0, tv_nsec=0}, it_value={tv_sec=1, tv_nsec=5}}"
    )
    stat = bytearray(144)
    struct.pack_into("<I", stat, 24, 0o100640)
    struct.pack_into("<q", stat, 48, 100)
    assert structs.show("stat", bytes(stat)) == "{st_mode=S_IFREG|0640, st_size=100, ...}"
    struct.pack_into("<I", stat, 24, 0o020666)
    struct.pack_into("<Q", stat, 40, 0x103)
    assert structs.show("stat", bytes(stat)) == "{st_mode=S_IFCHR|0666, st_rdev=makedev(0x1, 0x3), ...}"
    assert structs.show("stack", struct.pack("<QiQ", 0, 2, 0).ljust(24, b"\0")) == (
        "{ss_sp=NULL, ss_flags=SS_DISABLE, ss_size=0}"
    )


def _info(signo, code, fields):
    return (struct.pack("<iiii", signo, 0, code, 0) + fields).ljust(128, b"\0")


def test_siginfo():
    child = struct.pack("<iIi4xqq", 7, 0, 3, 0, 0)
    assert siginfo(_info(17, 1, child)) == (
        "{si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=7, si_uid=0, si_status=3, si_utime=0, si_stime=0}"
    )
    killed = struct.pack("<iIi4xqq", 7, 0, 9, 0, 0)
    assert "si_code=CLD_KILLED, si_pid=7, si_uid=0, si_status=SIGKILL" in siginfo(_info(17, 2, killed))
    assert siginfo(_info(10, 0, struct.pack("<iI", 5, 6))) == (
        "{si_signo=SIGUSR1, si_code=SI_USER, si_pid=5, si_uid=6}"
    )
    assert siginfo(_info(10, -1, struct.pack("<iIQ", 5, 6, 42))) == (
        "{si_signo=SIGUSR1, si_code=SI_QUEUE, si_pid=5, si_uid=6, si_int=42, si_ptr=0x2a}"
    )
    assert siginfo(_info(14, 0x80, b"")) == "{si_signo=SIGALRM, si_code=SI_KERNEL}"
    assert siginfo(_info(11, 1, struct.pack("<Q", 16))) == (
        "{si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=0x10}"
    )
    timer = struct.pack("<iiQ", 0, 2, 7)
    assert siginfo(_info(14, -2, timer)) == (
        "{si_signo=SIGALRM, si_code=SI_TIMER, si_timerid=0, si_overrun=2, si_int=7, si_ptr=0x7}"
    )


def test_addresses():
    inet = struct.pack("<H", 2) + struct.pack(">H4s8x", 80, bytes([127, 0, 0, 1]))
    assert address(inet) == '{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}'
    inet6 = struct.pack("<H", 10) + struct.pack(">HI", 99, 0) + bytes(15) + b"\1" + bytes(4)
    assert 'inet_pton(AF_INET6, "::1", &sin6_addr), sin6_scope_id=0}' in address(inet6)
    mapped = struct.pack("<H", 10) + struct.pack(">HI", 9, 0) + bytes(10) + b"\xff\xff\1\2\3\4" + bytes(4)
    assert '"::ffff:1.2.3.4"' in address(mapped)
    assert address(struct.pack("<H", 1) + b"/tmp/s\0rest") == '{sa_family=AF_UNIX, sun_path="/tmp/s"}'
    assert address(struct.pack("<H", 1) + b"\0abstract") == '{sa_family=AF_UNIX, sun_path=@"abstract"}'
    assert address(struct.pack("<HxxII", 16, 0, 1)) == "{sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000001}"
