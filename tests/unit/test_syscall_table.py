"""The table: complete, consistent, and agreeing with the machine's own headers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from trapline.sentry.cli import syscalls as command
from trapline.sentry.cli.flags import UsageError
from trapline.sentry.syscalls import registry
from trapline.sentry.syscalls.table import FAMILIES, TABLE, by_name, by_number, family_of, name_of
from trapline.sentry.syscalls.table_types import (
    Class,
    Parameter,
    Support,
    Syscall,
    any_bits,
    equal,
    non_zero,
    one_of,
)

ROOT = Path(__file__).parents[2]
HEADERS = [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")]

# What the sentry serves in the profile `control`, by class; the calls marked so only for some arguments.
NOTIFY = """
    clock_gettime clock_getres clock_settime clock_adjtime adjtimex gettimeofday settimeofday time times
    getitimer setitimer alarm timer_create timer_settime timer_gettime
    timer_getoverrun timer_delete timerfd_settime timerfd_gettime kill tkill tgkill rt_sigqueueinfo
    rt_tgsigqueueinfo pidfd_send_signal signalfd signalfd4 rt_sigaction rt_sigprocmask rt_sigpending
    setpgid getpgid getpgrp sched_setaffinity setsid getsid seccomp prctl prlimit64 setrlimit getrlimit ptrace
    setuid setreuid setresuid rt_sigreturn
"""
STOP = "pause nanosleep clock_nanosleep rt_sigtimedwait wait4 waitid clone3 vfork clone"
WRAP = "ioctl rt_sigsuspend ppoll pselect6 epoll_pwait epoll_pwait2"
REFUSE = """
    unshare setns bpf perf_event_open kexec_load kexec_file_load init_module finit_module
    delete_module reboot swapon swapoff io_uring_setup io_uring_enter io_uring_register userfaultfd
"""
CONDITIONAL = "ioctl clone ppoll pselect6 epoll_pwait epoll_pwait2 prctl prlimit64 setrlimit getrlimit"


def names(kind: Class) -> set[str]:
    return {row.name for row in TABLE if row.default is kind}


def test_classes() -> None:
    assert names(Class.NOTIFY) == set(NOTIFY.split())
    assert names(Class.STOP) == set(STOP.split())
    assert names(Class.WRAP) == set(WRAP.split())
    assert names(Class.REFUSE) == set(REFUSE.split())
    assert {row.name for row in TABLE if row.when} == set(CONDITIONAL.split())
    assert {row.name for row in TABLE if row.refuse_when} == {"prctl"}


def test_numbers_are_complete() -> None:
    """0 to 336 and 424 to 469 (syscall_64.tbl of 6.18), each once."""
    numbers = [row.nr for row in TABLE]
    assert numbers == [*range(337), *range(424, 470)]
    assert len({row.name for row in TABLE}) == len(TABLE) == sum(map(len, FAMILIES.values()))
    for rows in FAMILIES.values():
        assert [row.nr for row in rows] == sorted([row.nr for row in rows])


def test_look_up() -> None:
    row = by_number(228)
    assert row is not None
    assert row is by_name("clock_gettime")
    assert by_number(400) is None
    assert by_number(-1) is None
    assert by_name("clock_gettim") is None
    assert (name_of(0), name_of(400)) == ("read", "syscall_400")
    assert family_of(row) == "time"
    with pytest.raises(KeyError):
        family_of(Syscall(1000, "new", "", Class.NATIVE, Support.LENT))


def test_names_match_the_headers() -> None:
    present = [path for path in HEADERS if path.exists()]
    if not present:
        pytest.skip("no kernel headers on this machine")
    found = re.findall(r"#define __NR_(\w+)\s+(\d+)", present[0].read_text())
    assert len(found) > 300
    for name, number in found:
        assert name_of(int(number)) == name or int(number) > TABLE[-1].nr


def test_signatures_parse() -> None:
    word = re.compile(r"(const )?((unsigned|struct|union) )?\w+( const)?( \*(const \*)?\*?)?")
    for row in TABLE:
        parameters = row.parameters()
        assert len(parameters) <= 6, row.name
        assert len({parameter.name for parameter in parameters}) == len(parameters), row.name
        for parameter in parameters:
            assert re.fullmatch(r"[a-z]\w*", parameter.name), row
            assert word.fullmatch(parameter.type), (row.name, parameter)
        assert ", ".join([f"{p.type}{'' if p.pointer else ' '}{p.name}" for p in parameters]) == row.signature
        registry.converter(row)
    execve = by_name("execve")
    assert execve is not None
    assert execve.parameters()[1] == Parameter("const char *const *", "argv")
    assert [parameter.pointer for parameter in execve.parameters()] == [True, True, True]


def test_rows_are_consistent() -> None:
    for row in TABLE:
        # The filter refuses, or the sentry does where it has something to say about it.
        assert row.default is not Class.REFUSE or row.support is Support.REFUSED, row.name
        assert row.support is not Support.REFUSED or row.default in (Class.REFUSE, Class.NOTIFY), row.name
        assert (row.default is Class.NONE) == (row.support is Support.NONE), row.name
        assert bool(row.errno) == (row.default is Class.REFUSE or bool(row.refuse_when)), row.name
        assert 0 <= row.errno < 4096
        if row.support in (Support.PARTIAL, Support.REFUSED, Support.NONE):
            assert row.note, f"{row.name}: a note must say what is missing"
        assert not row.owned() or row.support in (Support.FULL, Support.PARTIAL, Support.REFUSED), row.name
        assert not row.cases or row.when, row.name
        for condition in (*row.when, *row.refuse_when, *[c for case in row.cases for c in case.when]):
            assert condition.arg < len(row.parameters()), row.name
            assert not condition.value & ~condition.mask, row.name


def test_conditions() -> None:
    high = 1 << 40
    assert any_bits(0, 6)[0].holds((2,))
    assert not any_bits(0, 6)[0].holds((high | 1,))
    assert [c.holds((0, high | 7)) for c in one_of(1, 7, 8)] == [True, False]
    assert not equal(0, 7)[0].holds((high | 7,))
    assert equal(0, 7, 0xF)[0].holds((high | 7,))
    assert non_zero(0)[0].holds((high,))
    assert not non_zero(0)[0].holds((0,))


def test_decide() -> None:
    prctl, clone = by_name("prctl"), by_name("clone")
    assert prctl is not None
    assert clone is not None
    assert [prctl.decide((n, 0, 0, 0, 0, 0)) for n in (1, 35, 15)] == [
        Class.NOTIFY,
        Class.REFUSE,
        Class.NATIVE,
    ]
    assert [clone.decide((n, 0, 0, 0, 0, 0)) for n in (0x4111, 17)] == [Class.STOP, Class.NATIVE]
    other = Syscall(7, "poll", "", Class.NATIVE, Support.LENT, profiles={"all": Class.NOTIFY})
    assert (other.decide((0,) * 6), other.decide((0,) * 6, "all")) == (Class.NATIVE, Class.NOTIFY)
    assert (other.owned(), other.owned("all")) == (False, True)


def test_rows_are_plain_data() -> None:
    assert msgspec.json.decode(msgspec.json.encode(TABLE), type=tuple[Syscall, ...]) == TABLE


def test_import_is_cheap(tmp_path: Path) -> None:
    """The table is imported at every start: under 5 ms with compiled files (twice that is allowed here)."""
    code = (
        "import time, msgspec, enum, errno, trapline.sentry.syscalls\n"
        "start = time.process_time()\n"
        "import trapline.sentry.syscalls.table\n"
        "print(time.process_time() - start)"
    )
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    times = []
    for _ in range(4):
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        times.append(float(run.stdout))
    assert min(times[1:]) < 0.010


# -- the command


def test_document_is_up_to_date() -> None:
    """`trapline syscalls --format markdown > docs/syscalls.md` makes it."""
    assert (ROOT / "docs" / "syscalls.md").read_text() == command.markdown(TABLE)


def test_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["ppoll", "clock_gettime", "35", "reboot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["NR", "NAME"],
        ["35", "nanosleep"],
        ["169", "reboot"],
        ["228", "clock_gettime"],
        ["271", "ppoll"],
    ]
    assert "refuse EPERM" in lines[2]
    assert "wrap else native" in lines[4]
    assert (
        len(
            {
                line.index(word)
                for line, word in zip(lines[1:], ["full", "refused", "full", "full"], strict=True)
            }
        )
        == 1
    )
    assert command.run([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TABLE) + 1


def test_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["--format", "json", "--owned"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(f"{NOTIFY} {STOP} {WRAP}".split())
    assert rows["prctl"]["otherwise"] == "native"
    assert rows["prctl"]["errno"] == "EPERM"
    assert "cases" not in rows["prctl"]
    (case,) = rows["ioctl"]["cases"]
    assert (rows["ioctl"]["class"], case["class"], rows["ioctl"]["otherwise"]) == ("wrap", "notify", "native")
    assert [condition["value"] for condition in case["when"]] == [0x540F, 0x5429, 0x5412]
    assert rows["prctl"]["when"][0] == {
        "arg": 0,
        "name": "option",
        "op": "equal",
        "mask": 0xFFFFFFFF,
        "value": 1,
    }
    assert rows["kill"]["parameters"] == [{"type": "pid_t", "name": "pid"}, {"type": "int", "name": "sig"}]
    assert command.run(["--format", "json", "--owned", "read"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_command_prints_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["--format", "markdown", "read"]) == 0
    out = capsys.readouterr().out
    assert "| 0 | `read(int fd, void *buf, size_t count)` | native | lent |  |\n" in out
    assert "## Files" in out
    assert "## Time" not in out


def test_command_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["clock_gettim"]) == 2
    assert "clock_gettime" in capsys.readouterr().err
    assert command.run(["400"]) == 2
    with pytest.raises(UsageError, match="not 'xml'"):
        command.run(["--format", "xml"])
    assert command.run(["--help"]) == 0
