"""Whole runs: what a sandbox costs to start, with timers that hardly tick, and with many sleeping processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil
from bench_kinds import BIN, PLATFORMS, Kind, cost_of, do, last_line

from trapline.sentry.cli.measured_run import Measured

WINDOW = 5.0  # seconds over which wake-ups are counted
Add = Callable[[str, str, float], None]  # kind, row, figure


class Failed(Exception):
    """A run that did not do what it should, with its last words."""


def run(command: list[str], cpus: set[int]) -> Measured:
    """What a command cost that must succeed. Failed, NotMeasured."""
    cost = cost_of(command, cpus)
    if cost.status != 0:
        raise Failed(f"status {cost.status}: {last_line(cost.stderr)}")
    return cost


def import_trio(cpus: set[int], add: Add) -> None:
    """CPU time of a Python that imports what the sentry stands on: the floor of its start."""
    add("import-trio", "true-cpu", run([sys.executable, "-c", "import trio"], cpus).cpu)


def true(kind: Kind, cpus: set[int], add: Add) -> None:
    """Elapsed and CPU time of a run that does nothing, s."""
    cost = run(kind.wrap(["/bin/true"]), cpus)
    add(kind.name, "true-wall", cost.elapsed)
    add(kind.name, "true-cpu", cost.cpu)


def timers(kind: Kind, duration: float, cpus: set[int], add: Add) -> None:
    """CPU time of the whole tree of the timer workload, s; for trapline also less a run that does nothing."""
    cost = run(kind.wrap([str(BIN / "threadcputimers"), f"{duration:g}"]), cpus)
    add(kind.name, "timers-cpu", cost.cpu)
    if kind.name in PLATFORMS:
        idle = median(run(kind.wrap(["/bin/true"]), cpus).cpu for _ in range(4))
        add(kind.name, "timers-less-true", cost.cpu - idle)


def wakeups(platform: str, add: Add) -> None:
    """How often the sentry wakes while CPU timers are armed and nothing runs: 1,000, 10,000, and 1,000 beside 100
    processes that sleep."""
    timers = str(BIN / "threadcputimers")
    beside = f"{BIN / 'sleepers'} 100 20 >/dev/null & {timers} 12"
    for row, settle, command in (
        ("wakeups", 2, [timers, "8"]),
        ("wakeups-10000", 4, [timers, "11", "10000"]),
        ("wakeups-asleep", 4, ["sh", "-c", beside]),
    ):
        with Sandbox(do(platform, *command)) as sandbox:
            time.sleep(settle)
            add(platform, row, float(sandbox.wakeups(WINDOW)))


def armed(platform: str, add: Add) -> None:
    """What setting one timer costs among 100,000 to among 1,000, and wake-ups with so many."""
    costs = {}
    for count in (1000, 100_000):
        with Sandbox(do(platform, str(BIN / "armed"), str(count), "60")) as sandbox:
            (costs[count],) = (float(word) for word in sandbox.wait_for("ready"))
            if count == 100_000:
                time.sleep(1)
                add(platform, "wakeups-armed", float(sandbox.wakeups(WINDOW)))
    add(platform, "armed", costs[100_000] / costs[1000])


def sleepers(platform: str, count: int, add: Add) -> None:
    """Wake-ups, and memory of the sentry per process in KB, with so many sleeping processes."""
    resident = {}
    for processes in (0, count):
        with Sandbox(do(platform, str(BIN / "sleepers"), str(processes), "60")) as sandbox:
            sandbox.wait_for("ready")
            time.sleep(1)
            if processes:
                add(platform, "wakeups-many", float(sandbox.wakeups(WINDOW)))
            resident[processes] = sandbox.resident()
    add(platform, "memory", (resident[count] - resident[0]) / count / 1024)


class Sandbox:
    """A running trapline, looked at from outside."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def wait_for(self, word: str) -> list[str]:
        """Until it prints a line that begins with this word: that line's other words. Failed."""
        assert self.process.stdout is not None and self.process.stderr is not None
        words = self.process.stdout.readline().split()
        if not words or words[0] != word:
            self.process.kill()
            raise Failed(last_line(self.process.stderr.read()) or f"printed {words}, not {word}")
        return words[1:]

    def parts(self) -> list[psutil.Process]:
        """The processes that are trapline and not its guests: those of our pid namespace, and the first one
        of the sandbox's. Failed."""
        if self.process.poll() is not None:
            assert self.process.stderr is not None
            raise Failed(last_line(self.process.stderr.read()) or "ended too early")
        whole = psutil.Process(self.process.pid)
        ours = os.readlink("/proc/self/ns/pid")
        found = [whole]
        for process in whole.children(recursive=True):
            try:
                in_ours = os.readlink(f"/proc/{process.pid}/ns/pid") == ours
                status = Path(f"/proc/{process.pid}/status").read_text()
                first_there = status.split("NSpid:")[1].splitlines()[0].split()[-1] == "1"
            except (OSError, IndexError):
                continue
            if in_ours or first_there:
                found.append(process)
        return found

    def switches(self) -> int:
        """Voluntary context switches so far of all its threads: each is a wait that ended."""
        total = 0
        for process in self.parts():
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                for line in (task / "status").read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches:"):
                        total += int(line.split()[1])
        return total

    def wakeups(self, seconds: float) -> int:
        """Wake-ups within so many seconds."""
        before = self.switches()
        time.sleep(seconds)
        return self.switches() - before

    def resident(self) -> int:
        """Bytes resident."""
        return sum(process.memory_info().rss for process in self.parts())
