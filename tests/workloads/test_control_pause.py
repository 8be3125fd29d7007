"""Pausing a sandbox: no call sees it, whatever it waits for, and nothing runs meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from guests import Running, compiled, until
from harness import native, oracle

from trapline.sentry.control.client import Client, ControlError


def control(running: Running, state: Path) -> Client:
    """A connection to the sandbox of a `do`."""
    until(lambda: (state / str(running.pid) / "control.sock").exists(), "the control socket")
    return Client(str(state / str(running.pid)))


def test_no_call_sees_it(platform: str, tmp_path: Path) -> None:
    """Fifty processes in ten kinds of calls that wait, paused a hundred times."""
    program = compiled("pausing")
    expected = oracle("sh", "-c", f"echo | {program}").stdout
    with Running(platform, [program], f"--state-dir={tmp_path}") as running:
        running.wait_for(b"waiting\n")
        with control(running, tmp_path) as client:
            for _ in range(100):
                client.call("pause")
                client.call("resume")
        result = running.finish(b"\n")
    assert (result.status, result.stdout, result.stderr) == (0, expected, b"")
    assert b"EINTR" not in expected, expected


def test_nothing_runs_meanwhile(platform: str, tmp_path: Path) -> None:
    """Busy processes, some of which fork all the time, use no CPU while they are paused."""
    script = "(while :; do :; done) & (while :; do /bin/true; done) & echo on; wait"
    with Running(platform, ["sh", "-c", script], f"--state-dir={tmp_path}") as running:
        running.wait_for(b"on\n")
        with control(running, tmp_path) as client:
            for _ in range(5):
                client.call("pause")
                assert client.call("state")["status"] == "paused"
                before = [(p["pid"], p["cpu"]) for p in client.call("ps")]
                # As long as a busy process needs to use a tick, of another busy process on the same CPUs.
                native(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"])
                assert [(p["pid"], p["cpu"]) for p in client.call("ps")] == before
                with pytest.raises(ControlError, match="paused"):
                    client.call("pause")
                with pytest.raises(ControlError, match="paused"):
                    client.call("exec", (0, 1, 2), spec={"args": ["true"]})
                client.call("resume")
                until(lambda before=before: [(p["pid"], p["cpu"]) for p in client.call("ps")] != before, "life")
            with pytest.raises(ControlError, match="not paused"):
                client.call("resume")
            client.call("pause")
            client.call("kill", signal=signal.SIGKILL)
            assert running.process.wait(20) == 128 + signal.SIGKILL
    assert not os.listdir(tmp_path)


def test_a_stopped_process_stays_stopped(platform: str, tmp_path: Path) -> None:
    """A job-control stop outlives a pause, and a SIGCONT that comes in one takes effect after it."""
    script = "sleep 1000 & echo on; kill -STOP $!; wait $!; echo woken $?; kill -CONT $!; kill $!; wait $!; echo $?"
    with Running(platform, ["bash", "-c", "set -m; " + script], f"--state-dir={tmp_path}") as running:
        running.wait_for(b"woken 147\n")
        result = running.finish()
        assert result.stdout.endswith(b"143\n"), result
    with Running(platform, ["sh", "-c", "sleep 1000 & echo on; wait $!; echo $?"], f"--state-dir={tmp_path}") as running:
        running.wait_for(b"on\n")
        with control(running, tmp_path) as client:
            until(lambda: any(p["command"][0] == "sleep" for p in client.call("ps")), "the exec")
            sleeper = next(p["pid"] for p in client.call("ps") if p["command"][0] == "sleep")

            def state() -> str:
                return str(next(p["state"] for p in client.call("ps") if p["pid"] == sleeper))

            client.call("kill", signal=signal.SIGSTOP, pid=sleeper)
            until(lambda: state() == "T", "the stop")
            client.call("pause")
            assert state() == "T"
            client.call("resume")
            assert state() == "T"
            client.call("pause")
            client.call("kill", signal=signal.SIGCONT, pid=sleeper)
            client.call("kill", signal=signal.SIGTERM, pid=sleeper)
            assert psutil.pid_exists(running.pid)
            client.call("resume")
            assert running.finish().stdout.endswith(b"143\n")


def test_a_timer_that_expired_meanwhile_fires_afterwards(platform: str, tmp_path: Path) -> None:
    """Clocks go on, as in a frozen cgroup: once, and with the periods that were missed as overruns."""
    program = (
        "import signal, sys, time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.01)\n"
        "print('on', flush=True); sys.stdin.readline()\n"
        "print(signal.sigtimedwait([signal.SIGALRM], 20).si_signo, signal.sigtimedwait([signal.SIGALRM], 0))\n"
    )
    with Running(platform, ["python3", "-c", program], f"--state-dir={tmp_path}") as running:
        running.wait_for(b"on\n")
        with control(running, tmp_path) as client:
            client.call("pause")
            native(["sleep", "0.05"])
            client.call("resume")
        assert running.finish(b"\n").stdout.endswith(b"14 None\n")


FROZEN = """
import ctypes, os, select, signal, struct, sys, threading, time
libc = ctypes.CDLL(None)

def sleep(seconds):
    time.sleep(seconds)

def lock(seconds):
    held = threading.Lock()
    held.acquire()
    held.acquire(timeout=seconds)

def timerfd(seconds):
    fd = libc.timerfd_create(1, 0)
    libc.timerfd_settime(fd, 0, struct.pack("4q", 0, 0, int(seconds), int(seconds % 1 * 1e9)), None)
    os.dup(fd)
    os.read(fd, 8)

def itimer(seconds):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.sigwait([signal.SIGALRM])

children = {}
for function in (sleep, lock, timerfd, itimer):
    pid = os.fork()
    if pid == 0:
        clocks = time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_REALTIME
        os.write(1, b"ready\\n")
        os.read(0, 1)
        before = [time.clock_gettime(clock) for clock in clocks]
        os.write(1, b"on\\n")
        function(2)
        took = [time.clock_gettime(clock) - then for clock, then in zip(clocks, before)]
        again = time.monotonic()
        function(0.5)  # what begins afterwards takes as long as ever
        again = time.monotonic() - again
        # Not moved, it would end early; moved twice, at 4 s. The difference is the pause, however busy the machine is.
        ok = 1.99 <= took[0] < 3.9 and 1.99 <= took[1] < 3.9 and took[2] - took[0] > 1.8 and again >= 0.49
        os._exit(not ok and (print(function.__name__, took, again, flush=True) or 1))
    children[pid] = function.__name__
print(sorted((children[pid], status) for pid, status in (os.wait() for _ in range(4))))
"""


def test_clocks_stand_still_where_that_is_asked_for(platform: str, tmp_path: Path) -> None:
    """Sleeps, timers, timerfds and absolute futex waits of two seconds take two seconds of the sandbox's, though it was
    paused for two in between; and those after it do. They begin once the connection is there that pauses them."""
    with Running(platform, ["python3", "-c", FROZEN], f"--state-dir={tmp_path}") as running:
        running.wait_for(b"ready\n" * 4)
        with control(running, tmp_path) as client:
            assert running.process.stdin is not None
            running.process.stdin.write(b"....")
            running.process.stdin.flush()
            running.wait_for(b"on\non\non\non\n")
            client.call("pause", freeze_clocks=True)
            native(["sleep", "2"])
            client.call("resume")
        result = running.finish()
    expected = b"[('itimer', 0), ('lock', 0), ('sleep', 0), ('timerfd', 0)]\n"
    assert result.stdout.endswith(expected) and not result.stderr, result
