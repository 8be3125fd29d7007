"""The rules that hold the platforms together, each tried by what would show that it is broken."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guests import Running, compiled, lines_of, python_file, until
from harness import do, native, workload

GETPPID = "110"
V1, V2 = Path("/sys/fs/cgroup/freezer"), Path("/sys/fs/cgroup/unified")


def _spin(turns: int) -> None:
    """Some time that is too short to sleep."""
    for _ in range(turns * 20):
        pass


class Freezer:
    """A cgroup that holds the guests' processes and nothing else."""

    def __init__(self, root: Path, version: int) -> None:
        self.path = root / f"trapline-test-{os.getpid()}"
        self.version = version
        self.path.mkdir()

    def take(self, running: Running) -> None:
        for guest in running.guests():
            (self.path / "cgroup.procs").write_text(str(guest.pid))
        assert (self.path / "cgroup.procs").read_text().split()

    def _set(self, frozen: bool) -> None:
        if self.version == 1:
            (self.path / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
        else:
            (self.path / "cgroup.freeze").write_text("1" if frozen else "0")

    def _is_frozen(self) -> bool:
        if self.version == 1:
            return (self.path / "freezer.state").read_text().strip() == "FROZEN"
        return "frozen 1" in (self.path / "cgroup.events").read_text()

    def freeze_and_thaw(self, hold: float) -> None:
        self._set(True)
        # A task that stands at a ptrace stop while the sentry serves it counts as frozen only later.
        until(self._is_frozen, "frozen")
        time.sleep(hold)
        self._set(False)

    def flutter(self, seconds: float) -> None:
        """Freeze and thaw without waiting for either, tens of times in a call's time."""
        end, turn = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            turn += 1
            self._set(True)
            _spin(turn % 50)
            self._set(False)
            _spin(turn % 37 * 5)

    def close(self) -> None:
        self._set(False)

        def removed() -> bool:
            try:
                self.path.rmdir()
            except OSError:
                return False
            return True

        until(removed, "the cgroup is empty")


@pytest.fixture(params=["v1", "v2"])
def freezer(request: pytest.FixtureRequest) -> Iterator[Callable[[Running], Freezer]]:
    """A function that puts the guests of a run into a cgroup of their own. It outlives the run."""
    version = 1 if request.param == "v1" else 2
    roots = [V1] if version == 1 else [V2, Path("/sys/fs/cgroup")]
    marks = ["tasks"] if version == 1 else ["cgroup.controllers"]
    root = next((r for r in roots if (r / marks[0]).exists()), None)
    if root is None or not os.access(root, os.W_OK) or os.geteuid():
        pytest.skip(f"no freezer of cgroup {request.param} that this user may write to")
    try:
        made = Freezer(root, version)
    except OSError as error:
        pytest.skip(f"no cgroup can be made in {root}: {error.strerror}")

    def take(running: Running) -> Freezer:
        made.take(running)
        return made

    yield take
    made.close()


def test_blocked_calls_go_on_after_a_freeze(platform: str, freezer: Callable[[Running], Freezer]) -> None:
    """The freezer cancels blocked notifications with no stop; the calls come again and are the same ones."""
    with Running(platform, [compiled("invariants"), "freeze"]) as running:
        running.wait_for(b"ready\n")
        cgroup = freezer(running)
        # The waits of a second began some 100 ms ago.
        for _ in range(7):
            cgroup.freeze_and_thaw(0.05)
            time.sleep(0.03)
        result = running.finish(b"\n")
    assert result.status == 0 and result.stderr == b"", result
    assert lines_of(result) == {
        "nanosleep": "ok after its second",
        "clock_nanosleep": "ok after its second",
        "sigtimedwait": "EAGAIN after its second",
        "pause": "EINTR, handlers run 1",
        "sigwaitinfo": "signal 12 of its parent yes",
        "sigsuspend": "EINTR, handlers run 1, blocked again yes",
        "wait4": "its child, exited 7, sender exited 0",
        "waitid": "its child, exited 7, sender exited 0",
    }


def test_a_frozen_call_takes_effect_once(
    platform: str, freezer: Callable[[Running], Freezer], tmp_path: Path
) -> None:
    """A call that was received is answered once, whatever freezes come: queued signals carry numbers, and one
    that was sent twice would show. (Kernels before 6.17 can drop an answer: docs/limits.md.)"""
    file = tmp_path / "stats.json"
    with Running(platform, [compiled("invariants"), "queue"], f"--stats-json={file}") as running:
        running.wait_for(b"ready\n")
        cgroup = freezer(running)
        for _ in range(25):
            cgroup.freeze_and_thaw(0)
            time.sleep(0.004)
        cgroup.flutter(2)
        result = running.finish(b"\n")
    assert result.status == 0 and result.stderr == b"", result
    assert b"out of order 0, left over none, enough yes" in result.stdout, result
    if platform == "seccomp":
        assert json.loads(file.read_text())["cancelled"] == 0, "an answer met a cancelled notification"


@pytest.mark.parametrize("how", ["ignored", "stopped"])
def test_no_interruption_leaks(platform: str, how: str) -> None:
    """Signals that nobody handles bring a thread to a stop, and no call may return EINTR for it. A stop and
    its end do make some calls return EINTR on Linux (signal(7)): no more and no fewer than natively."""
    command = [compiled("invariants"), how]
    expected, actual = native(command), do(platform, command)
    assert actual.stderr == b""
    assert lines_of(actual) == lines_of(expected)


def test_guests_that_vanish(platform: str) -> None:
    """Guests are killed from the outside at any moment of an owned call: nothing of the sentry's fails."""
    chance = random.Random(1)
    kills = 0
    with Running(platform, [compiled("invariants"), "load"]) as running:
        running.wait_for(b"ready\n")
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            victims = running.guests()[1:]  # the first one replaces the others
            for victim in chance.sample(victims, min(3, len(victims))):
                try:
                    os.kill(victim.pid, signal.SIGKILL)
                    kills += 1
                except ProcessLookupError:
                    continue
            time.sleep(chance.uniform(0, 0.01))
        result = running.finish(b"\n")
    assert kills > 30
    assert (result.status, result.stderr) == (0, b""), result
    assert result.stdout.endswith(b"ready\nkilled: yes\n"), result


def test_read_only_pages_stay_unwritten(platform: str) -> None:
    """Arguments go by process_vm_writev, which honours protections as /proc/PID/mem does not."""
    result = do(platform, [workload("badptr"), "calls"])
    assert result.status == 0 and result.stderr == b"", result
    assert lines_of(result)["the read-only page is unwritten"] == "yes"
    for name, value in lines_of(result).items():
        assert "errno" not in value and "ENOSYS" not in value, (name, value)


TRAP_ALL = """
import json
import sys
from trapline.platform import engine, stop_tasks
from trapline.sentry.cli.main import main

seen = {{}}
entered = {{}}
exec_event = stop_tasks.exec_event

def on_trap(t, entering):
    if entering:
        nr = kernel_engine.regs.load(t.host).orig_rax
        entered[t.host] = nr
        seen.setdefault(t.tid, {{}}).setdefault(nr, [0, 0])[0] += 1
    else:
        nr = entered.pop(t.host, -1)
        seen.setdefault(t.tid, {{}}).setdefault(nr, [0, 0])[1] += 1

def new_exec_event(e, t):
    global kernel_engine
    exec_event(e, t)
    kernel_engine = e
    e.on_trap = on_trap
    if {on}:
        e.set_trap_all(t.tid, True)

stop_tasks.exec_event = new_exec_event
status = main(["do", "--platform={platform}", "--stats-json={stats}", "--", {command!r}, "calls"])
with open({file!r}, "w") as f:
    json.dump(seen, f)
sys.exit(status)
"""


@pytest.mark.parametrize("on", [True, False])
def test_trap_all_sees_every_call(platform: str, tmp_path: Path, on: bool) -> None:
    """Lent calls of a running task and of its children stop at entry and exit; owned ones are still served."""
    file, counters = tmp_path / "seen", tmp_path / "stats"
    text = TRAP_ALL.format(
        on=on, platform=platform, stats=counters, command=compiled("invariants"), file=str(file)
    )
    result = native(python_file(tmp_path, text))
    assert (result.status, result.stdout, result.stderr) == (0, b"== calls\nexited 0\n", b""), result
    seen = json.loads(file.read_text())
    assert json.loads(counters.read_text())["calls"]["getitimer"] == 20
    if not on:
        assert seen == {}
        return
    parent, child = sorted(seen, key=int)
    assert seen[parent][GETPPID] == [20, 20] and seen[child][GETPPID] == [7, 7], seen
    assert seen[parent]["1"] == [2, 2], seen  # write
