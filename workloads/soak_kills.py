"""The kill part of the soak: trapline is killed by SIGKILL at random moments, and nothing may be left.

Each time `trapline do` starts a tree of processes, as a shell would: in a process group of its own, in the
foreground of a terminal (which the tree puts into raw mode). The moment is drawn evenly from before Python has
read its first file to some milliseconds after the orderly end. Then, within PATIENCE: every process is gone, the
terminal is as it was, and no mount, temporary file or state is left.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import signal
import sys
import termios
import time
from pathlib import Path
from typing import Any

from leftovers import Leftovers

HERE = Path(__file__).resolve().parent
PATIENCE = 5.0  # seconds; the guardian needs some milliseconds


def command(platform: str, leftovers: Leftovers) -> list[str]:
    """What is killed."""
    flags = [f"--platform={platform}", f"--state-dir={leftovers.state}"]
    return [sys.executable, "-P", "-m", "trapline", "do", *flags, "--", str(HERE / "bin" / "mixed_load"), "tree"]


def start(line: list[str], temporary: str) -> int:
    """Start a command in the foreground of our terminal; its id."""
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            os.tcsetpgrp(0, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            os.execve(line[0], line, {**os.environ, "TMPDIR": temporary})
        finally:
            os._exit(126)
    try:
        os.setpgid(child, child)
    except OSError:
        pass  # it was faster
    return child


def wait_until(child: int, end: float) -> int | None:
    """Wait for a child's end until then; its wait status."""
    handle = os.pidfd_open(child)
    try:
        import select

        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(max(0.0, end - time.monotonic()) * 1000):
            return None
        return os.waitpid(child, 0)[1]
    finally:
        os.close(handle)


def one(platform: str, leftovers: Leftovers, settings: list[Any], delay: float | None) -> tuple[list[str], float]:
    """Kill one after `delay` s (None: let it end); (what is wrong, how long it ran)."""
    begun = time.monotonic()
    child = start(command(platform, leftovers), leftovers.temporary)
    status = wait_until(child, begun + (60 if delay is None else delay))
    lasted = time.monotonic() - begun
    problems = []
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if delay is None:
            problems.append("it does not end")
    elif status:
        problems.append(f"wait status {status:#x} without being killed")
    if not leftovers.all_gone(PATIENCE):
        problems.append("processes are left")
    problems += leftovers.left()
    if termios.tcgetattr(0) != settings:
        problems.append("the terminal's settings are not what they were")
        termios.tcsetattr(0, termios.TCSANOW, settings)
    return problems, lasted


def attempts(platform: str, count: int, seed: int, report: int) -> None:
    """In a process with a terminal of its own: `count` kills; a line of JSON for each goes to `report`."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    leftovers = Leftovers()
    settings = termios.tcgetattr(0)
    chance = random.Random(f"{platform} {seed}")
    lasts = [one(platform, leftovers, settings, None) for _ in range(3)]
    whole = sorted(lasted for _, lasted in lasts)[1]
    early = [problem for problems, _ in lasts for problem in problems]
    os.write(report, json.dumps(["whole", whole, early]).encode() + b"\n")
    for _ in range(count):
        delay = chance.uniform(0, whole * 1.1)
        problems, _ = one(platform, leftovers, settings, delay)
        os.write(report, json.dumps(["kill", delay, problems]).encode() + b"\n")
    leftovers.close()


def run(platform: str, count: int, seed: int, show: bool) -> list[str]:
    """Kill `count` traplines; the problems. `show`: progress, on the terminal."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    child, master = pty.fork()
    if child == 0:
        try:
            os.close(read_end)
            fcntl.fcntl(write_end, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
            attempts(platform, count, seed, write_end)
            os._exit(0)
        except BaseException as error:
            os.write(write_end, json.dumps(["failed", 0, [repr(error)]]).encode() + b"\n")
        finally:
            os._exit(1)
    os.close(write_end)
    problems, done, whole = _collect(read_end, master, count, platform, show)
    os.close(read_end)
    os.close(master)
    os.waitpid(child, 0)
    if done != count:
        problems.append(f"only {done} of {count} were done")
    print(f"kills, {platform}: {done} at moments of 0 to {whole * 1.1:.2f} s, {len(problems)} problems", flush=True)
    return [f"kills, {platform}, seed {seed}: {problem}" for problem in problems]


def _collect(report: int, master: int, count: int, platform: str, show: bool) -> tuple[list[str], int, float]:
    """Read the reports, and the terminal that nobody looks at."""
    import select

    problems: list[str] = []
    done, whole, rest = 0, 0.0, b""
    poller = select.poll()
    poller.register(report, select.POLLIN)
    poller.register(master, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            try:
                part = os.read(fd, 65536)
            except OSError:
                part = b""  # the terminal's last user has gone
            if fd == master:
                if not part:
                    poller.unregister(master)
                continue
            if not part:
                return problems, done, whole
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                kind, moment, found = json.loads(line)
                done += kind == "kill"
                whole = moment if kind == "whole" else whole
                where = f"after {moment:.4f} s" if kind == "kill" else "not killed" if kind == "whole" else kind
                problems += [f"{where}: {problem}" for problem in found]
            if show:
                sys.stderr.write(f"\r\x1b[K{platform}: {done} of {count} killed, {len(problems)} problems")
                sys.stderr.write("\r\x1b[K" if done == count else "")
                sys.stderr.flush()
