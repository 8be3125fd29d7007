"""The reader that the tests judge logs by takes strace's own lines, and no others."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from strace_reader import parse

GOOD = """\
11505 1795493576.325362 execve("/bin/sh", ["sh", "-c", "exit 3"], 0x7ffd39add738 /* 38 vars */) = 0 <0.000393>
11505 1795493576.326457 access("/etc/ld.so.preload", R_OK) = -1 ENOENT (No such file or directory) <0.000009>
11505 1795493576.856746 read(3,  <unfinished ...>
12180 1795493576.857084 brk(NULL)       = 0x561e2e4d7000 <0.000024>
11505 1795493576.857100 <... read resumed>"= ) = 5", 50000) = 7 <0.000053>
11505 1795493576.857200 wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 3}], 0, NULL) = 12180 <0.001707>
11505 1795493576.859136 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=12180} ---
11505 1795493576.860000 pause()         = ? ERESTARTNOHAND (To be restarted if no handler) <0.009984>
11505 1795493576.860100 select(4, [3], NULL, NULL, NULL) = 1 (in [3]) <0.000010>
11505 1795493576.860200 kill(1, 0 /* OWNED */) = 0 <0.000010>
12180 1795493576.860250 exit_group(0)   = ?
12180 1795493576.860300 +++ exited with 0 +++
11505 1795493576.860400 pause( <unfinished ...>) = ?
11505 1795493576.860500 +++ killed by SIGKILL +++
"""


def test_takes_what_strace_writes():
    entries = parse(GOOD)
    assert [e.name for e in entries if e.name] == (
        ["execve", "access", "brk", "read", "wait4", "pause", "select", "kill", "exit_group", "pause"]
    )
    read = next(e for e in entries if e.name == "read")
    assert (read.args, read.result, read.duration) == ('3, "= ) = 5", 50000', "7", 0.000053)
    assert [e.mark for e in entries if e.mark] == ["OWNED"]


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "1 1795493576.3 getpid() = 1",
        "1 1795493576.325362 getpid() = 1 OWNED",
        "1 1795493576.325362 getpid() = 1 <0.000001> OWNED",
        "1 1795493576.325362 getpid()",
        "1 1795493576.325362 <... read resumed>) = 1",
        "1 1795493576.325362 read(0,  <unfinished ...>",
        "1 1795493576.325362 read(0,  <unfinished ...>\n1 1795493576.325363 <... write resumed>) = 1",
        "1 1795493576.325362 read(0,  <unfinished ...>\n1 1795493576.325363 getpid() = 1",
        "1 1795493576.325362 read(0,  <unfinished ...>\n1 1795493576.325363 +++ exited with 0 +++",
        "1 1795493576.325362 --- SIGCHLD ---",
    ],
)
def test_refuses_the_rest(line):
    with pytest.raises(ValueError):
        parse(line + "\n")


def test_refuses_half_a_line():
    with pytest.raises(ValueError, match="no end"):
        parse("1 1795493576.325362 getpid() = 1")
