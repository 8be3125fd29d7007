"""Bad input and faults: what cannot be executed, guests that destroy each other, a sentry that is killed, bugs."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from guests import Running, compiled, lines_of, mounts, orphans_come_here, python_file, until
from harness import do, native, same, trapline_command, workload

X86_64, AARCH64 = 62, 183


def elf(machine: int = X86_64, kind: int = 2, phoff: int = 64, phnum: int = 1, entry: int = 0x400000) -> bytes:
    """A 64-bit ELF file of one segment that exits with 7 (elf(5))."""
    code = b"\xb8\x3c\0\0\0\xbf\x07\0\0\0\x0f\x05"  # mov eax, exit; mov edi, 7; syscall
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, phoff, 0, 0, 64, 56, phnum, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 0x1000, 0x1000, 0x1000)
    return (header + segment).ljust(0x78, b"\0") + code


def program(directory: Path, data: bytes, mode: int = 0o755) -> str:
    file = directory / "program"
    file.write_bytes(data)
    file.chmod(mode)
    return str(file)


def good_elf() -> bytes:
    return elf(entry=0x400078)


@pytest.mark.parametrize(
    "data, mode, status, says",
    [
        (good_elf(), 0o755, 7, ""),
        (b"exit 5\n", 0o755, 5, ""),  # no interpreter line: the shell's
        (good_elf(), 0o644, 126, "Permission denied"),
        (b"#!/nonexistent/interpreter\n", 0o755, 127, "interpreter does not exist"),
        (b"#!\n", 0o755, 0, ""),  # empty interpreter line: a shell script that is empty
        (elf(machine=AARCH64, entry=0x400078), 0o755, 126, "not a program for this machine"),
        (b"\x7fELF", 0o755, 126, "not a program for this machine"),
        (good_elf()[:40], 0o755, 126, "not a program for this machine"),
        (elf(kind=9), 0o755, 126, "not a program for this machine"),
        (elf(phoff=1 << 40), 0o755, 126, ""),
        (elf(phnum=0), 0o755, 126, ""),
    ],
)  # fmt: skip
def test_what_cannot_be_executed(
    platform: str, tmp_path: Path, data: bytes, mode: int, status: int, says: str
) -> None:
    """The status is a shell's, and one line says why."""
    result = do(platform, [program(tmp_path, data, mode)])
    assert result.status == status, result
    assert says in result.stderr.decode()
    assert len(result.stderr.splitlines()) == (status >= 126), result


def test_an_entry_point_in_nowhere(platform: str, tmp_path: Path) -> None:
    """A malformed ELF that the host does start ends as it does natively."""
    file = program(tmp_path, elf(entry=0x10))
    assert do(platform, [file]).status == 128 + signal.SIGSEGV


def test_missing_programs_and_directories(platform: str, tmp_path: Path) -> None:
    result = do(platform, ["/nonexistent/program"])
    assert (result.status, result.stderr) == (127, b"trapline: /nonexistent/program: command not found\n")
    assert do(platform, ["no-such-program-in-the-path"]).status == 127
    result = do(platform, [str(tmp_path)])
    assert (result.status, len(result.stderr.splitlines())) == (126, 1), result


def test_bad_programs_within(platform: str, tmp_path: Path) -> None:
    """A guest that executes such files goes on as it does natively."""
    names = {"foreign": elf(machine=AARCH64), "short": b"\x7fELF", "phoff": elf(phoff=1 << 40), "good": good_elf()}
    for name, data in names.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o755)
    script = "import os\nfor n in %r:\n p=os.fork()\n if p==0:\n  try: os.execv(%r+'/'+n,[n])\n"
    script += "  except OSError as e: os._exit(e.errno)\n print(n, os.waitpid(p,0)[1])"
    same(platform, ["/usr/bin/python3", "-c", script % (sorted(names), str(tmp_path))], cwd=str(tmp_path))


EXPECTED = {
    **dict.fromkeys(
        ("io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "number 999", "number 999 again",
         "number -1", "number 0x12345678", "x32 getppid", "int 0x80"), "ENOSYS"),
    **dict.fromkeys(
        ("unshare user", "unshare pid", "unshare time", "setns", "ptrace TRACEME", "ptrace SEIZE", "bpf", "reboot",
         "init_module", "delete_module", "kexec_load", "swapon", "clone NEWPID", "clone NEWUSER",
         "clone3 NEWUSER", "prctl SET_MM"), "EPERM"),
    "perf_event_open": "EACCES",
    "seccomp NEW_LISTENER": "EBUSY",
}  # fmt: skip


def test_refused_calls(platform: str) -> None:
    """Each is refused with the error that is promised. Without a log only ptrace is worth a line."""
    result = do(platform, [workload("refused")])
    assert result.status == 0, result
    assert result.stderr.startswith(b"trapline: ptrace: ") and result.stderr.count(b"\n") == 1, result
    assert lines_of(result) == EXPECTED


@pytest.mark.parametrize("form", ["text", "json"])
def test_unknown_calls_are_named_in_the_log(platform: str, tmp_path: Path, form: str) -> None:
    """Once each, and the listener that a guest may not have is explained."""
    log = tmp_path / "log"
    result = do(platform, [workload("refused")], f"--log={log}", f"--log-format={form}")
    assert result.status == 0 and b"999" not in result.stderr, result
    text = log.read_text()
    if form == "json":
        text = "\n".join(json.loads(line)["message"] for line in text.splitlines())
    assert text.count("(999)") == 1 and "ENOSYS" in text
    assert "asks for a seccomp listener: refused" in text
    assert "Traceback" not in text


def test_guests_that_kill_each_other(platform: str) -> None:
    assert same(platform, [workload("killall")]).stderr == b""


def test_a_fork_bomb(platform: str) -> None:
    result = same(platform, [compiled("faults"), "bomb"])
    assert result.stderr == b""
    assert lines_of(result)["many"] == "yes"


def test_all_at_once_from_outside(platform: str) -> None:
    """Every guest is killed within one moment."""
    with Running(platform, [compiled("faults"), "crowd"]) as running:
        running.wait_for(b"ready\n")
        for guest in reversed(running.guests()):
            try:
                guest.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        result = running.finish()
    assert (result.status, result.stderr) == (137, b""), result


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_trapline_are_the_programs(platform: str, signo: signal.Signals) -> None:
    with Running(platform, [compiled("faults"), "catcher"]) as running:
        running.wait_for(b"ready\n")
        running.process.send_signal(signo)
        result = running.finish()
    assert result.status == 40 + signo and result.stderr == b"", result
    assert f"caught {signo}".encode() in result.stdout
    with orphans_come_here() as left, Running(platform, [compiled("faults"), "sleeper"]) as running:
        running.wait_for(b"ready\n")
        running.process.send_signal(signo)
        result = running.finish()
        assert result.status == 128 + signo and result.stderr == b"", result
        until(lambda: not left(), "everything is gone", 1)


def test_a_killed_trapline_leaves_nothing(platform: str, tmp_path: Path) -> None:
    """Ten moments on each platform, from before the sandbox exists until its guests run."""
    chance = random.Random(platform)
    flag = f"--state-dir={tmp_path}"
    before = mounts()
    for attempt in range(10):
        with orphans_come_here() as left:
            with Running(platform, [compiled("faults"), "crowd"], flag, start_new_session=True) as running:
                if attempt % 3 == 2:
                    running.wait_for(b"ready\n")
                    time.sleep(chance.uniform(0, 0.05))
                else:
                    time.sleep(chance.uniform(0.05, 0.4))
                running.process.kill()
                until(lambda: not left(), f"attempt {attempt}: no process is left", 1)
                if attempt % 3 == 2:
                    assert os.listdir(tmp_path) == []  # by the guardian; before that there may be none
            assert mounts() == before
    assert do(platform, ["true"], flag).status == 0
    assert os.listdir(tmp_path) == []


def test_the_next_command_removes_what_is_left(platform: str, tmp_path: Path) -> None:
    """The guardian is killed as well: its state stays, and the guests' init if the host let it."""
    flag = f"--state-dir={tmp_path}"
    with orphans_come_here() as left:
        with Running(platform, [compiled("faults"), "crowd"], flag) as running:
            running.wait_for(b"ready\n")
            family = [psutil.Process(running.pid), *psutil.Process(running.pid).children()]
            guardian = [p for p in family if p.name() == "trapline-guard"]
            assert len(guardian) == 1
            guardian[0].kill()
            running.process.kill()
        assert os.listdir(tmp_path) != []
        assert do(platform, ["true"], flag).status == 0
        assert os.listdir(tmp_path) == []
        until(lambda: not left(), "everything is gone", 1)


CRASH = """
import sys
from trapline.sentry.cli.main import main
from trapline.sentry.syscalls import registry, sys_itimer, sys_signal_wait, sys_sleep

def broken(kernel, task, which, address):
    raise ZeroDivisionError("made by the test")

async def broken_later(kernel, task, which, address):
    await kernel.block(task, 1, kernel.keeper.now(1) + 10_000_000)
    raise ZeroDivisionError("made by the test")

registry.override("getitimer", {name})
sys.exit(main(["do", "--platform={platform}", *{flags!r}, "--", {command!r}, "crash"]))
"""


@pytest.mark.parametrize("name", ["broken", "broken_later"])
def test_an_exception_in_a_handler(platform: str, tmp_path: Path, name: str) -> None:
    """It ends the guest that made the call and no other; the log has all of it, `do` says one line."""
    log = tmp_path / "log"
    flags = [f"--log={log}"]
    script = CRASH.format(name=name, platform=platform, flags=flags, command=compiled("faults"))
    result = native(python_file(tmp_path, script))
    assert lines_of(result) == {"bad": "killed 9", "good": "exited 3"}, result
    assert result.status == 0
    (line,) = result.stderr.decode().splitlines()
    assert line.startswith("trapline: exception in the handler of getitimer(0x0, 0x7"), line
    text = log.read_text()
    assert "ZeroDivisionError: made by the test" in text and "Traceback" in text
    assert "getitimer(0x0, 0x7" in text


def test_a_log_that_cannot_be_written(platform: str, tmp_path: Path) -> None:
    """One line; where it cannot be opened nothing is started, and a disk that is full ends no program."""
    result = do(platform, ["echo", "started"], "--log=/proc/nothing")
    assert (result.status, result.stdout) == (125, b""), result
    assert result.stderr == b"trapline: the log cannot be written: /proc/nothing: No such file or directory\n"
    result = do(platform, [workload("refused")], "--log=/dev/full")
    assert result.status == 0 and lines_of(result) == EXPECTED, result
    assert sorted(line.split(":")[1] for line in result.stderr.decode().splitlines()) == [
        " ptrace", " the log cannot be written any more",
    ]  # fmt: skip


def test_a_standard_error_that_takes_nothing(platform: str) -> None:
    """The status is still the program's."""
    with open("/dev/full", "wb") as full:
        line = trapline_command("do", f"--platform={platform}", "--stats", "--", "sh", "-c", "exit 3")
        assert subprocess.run(line, stderr=full, timeout=60).returncode == 3
