"""A handler that does not end is reported with its stack, and nothing ticks while nothing runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guests import Running, compiled, python_file, until
from harness import alive, do, native, program, trapline_command

DRIVER = """
import os, signal, sys, time
from trapline.sentry.cli.main import main
from trapline.sentry.syscalls import registry, sys_itimer, sys_sleep

def sleeps(kernel, task, which, address):
    time.sleep(1.5)
    return 0

def spins(kernel, task, which, address):
    end = time.thread_time() + 1.5  # where others take the CPU, that is no time of the handler's
    while time.thread_time() < end:
        pass
    return 0

def reads(kernel, task, which, address):
    reader, writer = os.pipe()
    if os.fork() == 0:
        time.sleep(1.5)
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    return 0

async def later(kernel, task, which, address):
    await kernel.block(task, 1, kernel.keeper.now(1) + 2_000_000_000)
    return sleeps(kernel, task, which, address)

def stopped(kernel, task, which, address):
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.1)
    return 0

def short(kernel, task, which, address):
    time.sleep(0.1)
    return 0

registry.override("getitimer", {name})
sys.exit(main(["do", "--platform={platform}", *{flags!r}, "--", *{command!r}]))
"""
ONCE = ["/usr/bin/python3", "-c", "import signal; signal.getitimer(0); print('done')"]
MANY = ["/usr/bin/python3", "-c", "import signal\nfor _ in range(20): signal.getitimer(0)"]


def driver(tmp_path: Path, platform: str, name: str, *flags: str, command: list[str] = ONCE) -> list[str]:
    return python_file(tmp_path, DRIVER.format(name=name, platform=platform, flags=list(flags), command=command))


@pytest.mark.parametrize("name", ["sleeps", "spins", "reads", "later"])
def test_a_stuck_handler(platform: str, tmp_path: Path, name: str) -> None:
    """While it spins, and while it waits in the host; the program goes on afterwards."""
    log = tmp_path / "log"
    result = native(driver(tmp_path, platform, name, f"--log={log}", "--watchdog=0.4"))
    assert (result.status, result.stdout, result.stderr) == (0, b"done\n", b""), result
    text = log.read_text()
    first = text.partition("\n")[0]
    assert " warning the handler of getitimer(0x0, 0x7" in first and " of task 2 has been running for 0." in first, text
    assert f"in {'sleeps' if name == 'later' else name}\n" in text
    # What a call waits for before its step is no time of a handler's: 2 s, which would have been 1.6 and more.
    assert 1 <= text.count("has been running for") <= 2, text


def test_without_a_log(platform: str, tmp_path: Path) -> None:
    """One line for the user, who otherwise sees only that everything stands still."""
    result = native(driver(tmp_path, platform, "sleeps", "--watchdog=0.4"))
    assert (result.status, result.stdout) == (0, b"done\n"), result
    (line,) = result.stderr.decode().splitlines()
    assert line.startswith("trapline: the handler of getitimer(0x0, 0x7") and "--log FILE" in line
    assert native(driver(tmp_path, platform, "sleeps", "--watchdog=0")).stderr == b""


def test_many_short_ones(platform: str, tmp_path: Path) -> None:
    """2 s in handlers, but in none of them for long."""
    assert native(driver(tmp_path, platform, "short", "--watchdog=0.4", command=MANY)).stderr == b""


def test_a_stopped_sentry(platform: str, tmp_path: Path) -> None:
    """A sentry that is stopped within a handler for twice the limit, and goes on, was not stuck."""
    log = tmp_path / "log"
    line = driver(tmp_path, platform, "stopped", f"--log={log}", "--watchdog=0.8")
    with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it stops")
        time.sleep(1.6)  # not in place of an event: this is what must not count
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=60)[0] == b"done\n"
    assert log.read_text() == ""


def switches(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


@pytest.mark.parametrize("guest", ["read line", "sleep 60"])
def test_an_idle_sandbox(platform: str, guest: str) -> None:
    """The sentry's thread does not run at all, however short the limit."""
    with Running(platform, ["sh", "-c", f"echo ready; {guest}"], "--watchdog=0.1") as running:
        running.wait_for(b"ready\n")
        settled = 0.0
        last = -1
        while settled < 0.5:  # until what the start has to do is done
            now = switches(running.pid)
            settled = settled + 0.05 if now == last else 0.0
            last = now
            time.sleep(0.05)
        time.sleep(2)
        assert switches(running.pid) == last


def test_an_alarm_of_the_callers(platform: str) -> None:
    """`alarm 1; exec trapline`: there is one such timer a process, and it stays the caller's."""
    line = ["-c", "import os, signal, sys; signal.alarm(2); os.execv(sys.argv[1], sys.argv[1:])"]
    result = native([sys.executable, *line, *trapline_command("do", f"--platform={platform}", "sleep", "60")])
    assert result.status == 128 + signal.SIGALRM, result


def test_sigalrm_from_outside(platform: str) -> None:
    with Running(platform, [compiled("faults"), "sleeper"]) as running:
        running.wait_for(b"ready\n")
        os.kill(running.pid, signal.SIGALRM)
        until(lambda: not alive(running.pid), "it ends")
        assert running.process.wait() == -signal.SIGALRM


@pytest.mark.parametrize("value", ["0.01", "-1", "soon", "nan", "inf"])
def test_bad_limits(value: str) -> None:
    result = do("seccomp", [program("true")], f"--watchdog={value}")
    assert result.status == 2 and b"--watchdog takes seconds" in result.stderr, result
