"""Core files of the sentry's own: gdb opens them, and waits tell of them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
from guests import compiled
from harness import do, native

CLD_KILLED, CLD_DUMPED = 2, 3


def only(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


@pytest.fixture
def cores(tmp_path: Path) -> Path:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("core files are forbidden here (ulimit -H -c is 0)")
    directory = tmp_path / "cores"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("how", ["segv", "abort", "quit"])
def test_gdb_opens_it(platform: str, cores: Path, how: str) -> None:
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    program = compiled("crash")
    result = do(platform, [program, "crash", how], f"--core-dir={cores}")
    number = {"segv": signal.SIGSEGV, "abort": signal.SIGABRT, "quit": signal.SIGQUIT}[how]
    core = only(cores)
    assert result.status == 128 + number and result.stderr == f"trapline: core file {core}\n".encode(), result
    assert core.name.startswith("core.test-crash.") and core.stat().st_mode & 0o777 == 0o600
    assert core.stat().st_blocks * 512 < 64 << 20 < core.stat().st_size, "what was never touched is a hole"
    asked = ["thread apply all backtrace", "print (int)marker"]
    asked += ["x/s *(char **)&written + 70000", "x/s *(char **)&untouched + (1L << 35)"]
    words = [word for line in asked for word in ("-ex", line)]
    shown = native(["gdb", "-batch", "-nx", *words, program, str(core)]).stdout.decode()
    assert f"Program terminated with signal {number.name}" in shown, shown
    for text in ("crash_here", "waiting_thread", "sleeping_thread", "$1 = 4711", '"written text"', '"far out"'):
        assert text in shown, (text, shown)


def test_waits_tell_of_it(platform: str, cores: Path) -> None:
    program = compiled("crash")
    result = do(platform, [program, "parent", "segv"], f"--core-dir={cores}")
    assert result.stdout == f"waitpid: signal 11, core yes\nwaitid: code {CLD_DUMPED}, status 11\n".encode()
    assert len(list(cores.iterdir())) == 2
    result = do(platform, [program, "parent", "term"], f"--core-dir={cores}")
    assert result.stdout == f"waitpid: signal 15, core no\nwaitid: code {CLD_KILLED}, status 15\n".encode()


def test_the_limit_holds(platform: str, cores: Path) -> None:
    program = compiled("crash")
    result = do(platform, ["sh", "-c", f"ulimit -c 0; {program} crash segv"], f"--core-dir={cores}")
    assert (result.status, os.listdir(cores)) == (139, []), result
    result = do(platform, ["sh", "-c", f"ulimit -c 16; {program} crash segv"], f"--core-dir={cores}")
    assert result.status == 139 and only(cores).stat().st_size == 16 * 512


def test_a_directory_that_is_none(platform: str, tmp_path: Path) -> None:
    result = do(platform, ["true"], f"--core-dir={tmp_path / 'none'}")
    (line,) = result.stderr.decode().splitlines()
    assert result.status == 2 and "--core-dir" in line and "directory that exists" in line
