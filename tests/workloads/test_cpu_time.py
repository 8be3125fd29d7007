"""CPU clocks, their alarms and RLIMIT_CPU with real processes: how exact, and what it costs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Result, do, native, oracle, same, stats, trapline_command, workload

from trapline.platform import cpu_alarms, features, host_cpu_timers, task_clock_events
from trapline.platform.cpu_alarms import CpuAlarms

MS = 1_000_000
#: In ms of CPU time, that an alarm may be late where the sentry need not wait for a CPU.
LATE = 250


def do_and_its_waits(platform: str, command: list[str]) -> tuple[Result, float]:
    """`trapline do`, and how long (ms) the sentry was ready to run and had no CPU, while the guests went on computing.

    Its main thread's account (proc_pid_schedstat) is there until somebody waits for it.
    """
    pipe, line = subprocess.PIPE, trapline_command("do", f"--platform={platform}", "--", *command)
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None and process.stderr is not None
        hanging = threading.Timer(90, process.kill)
        hanging.start()
        out, err = process.stdout.read(), process.stderr.read()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        hanging.cancel()
        waited = int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1])
    return Result(process.returncode, out, err), waited / MS


def figures(text: bytes, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern + r" ([0-9.]+)(?: ms)?", text.decode())]


def exact() -> None:
    if not features.Features().perf_event:
        pytest.skip("perf events are forbidden: " + features.Features().answer("perf_event")[1])


def test_alarms_are_never_early_and_hardly_late(platform: str) -> None:
    """Natively these are a tick's precision; so the figures are asked for here, and are no oracle test. The sentry hears
    of an alarm as soon as it has a CPU: on a busy machine the guest may use that much more in between."""
    exact()
    result, waited = do_and_its_waits(platform, [workload("cputime"), "woken", "limit", "exceeded", "verbose"])
    late = LATE + waited
    text = result.stdout
    timers, profiles = figures(text, "a timer:"), figures(text, "ITIMER_PROF:")
    assert len(timers) == len(profiles) == 2, result
    assert all(50 <= took <= 50 + late for took in timers), result
    assert all(50 <= took <= 54 + late for took in profiles), result
    # setrlimit comes a little after the thread's own start; what it had used by then counts.
    assert all(950 <= took <= 1000 + late for took in figures(text, "RLIMIT_CPU:")), result
    (first,), (hard,) = figures(text, "\nSIGXCPU at"), figures(text, "ended at")
    assert 1000 <= first <= 1000 + late and 1995 <= hard <= 2000 + late, result
    inherited = figures(text, "inherited: SIGXCPU at")
    assert len(inherited) == 1 and 2000 <= inherited[0] <= 2000 + late, result
    for killed in figures(text, "killed by SIGXCPU at") + figures(text, "executed: killed at"):
        assert 995 <= killed <= 1000 + late, result


@pytest.mark.parametrize(
    "sections", [["woken"], pytest.param(["spin", "which", "asleep", "limit"], marks=pytest.mark.long)], ids="-".join
)
def test_where_perf_is_forbidden(platform: str, sections: list[str]) -> None:
    same(platform, [workload("cputime"), *sections], "--without=perf_event")


def test_on_one_cpu(platform: str) -> None:
    result = do(platform, [workload("cputime"), "two"], "--cpus=1")
    assert result.stdout == oracle(workload("cputime"), "two").stdout, result


def test_the_limit_that_trapline_was_started_under(platform: str) -> None:
    """It is told, and kept; and a soft one is the sentry's alone: one signal, not the host's as well."""
    command = " ".join(trapline_command("do", f"--platform={platform}", "--"))
    told = native(["bash", "-c", f"ulimit -St 70; ulimit -Ht 90; {command} bash -c 'ulimit -St; ulimit -Ht'"])
    assert told.stdout.split() == [b"70", b"90"], told
    script = "trap 'echo XCPU' XCPU; until [ $SECONDS -ge 100 ]; do :; done"
    kept = native(["bash", "-c", f"ulimit -St 2; ulimit -Ht 3; {command} bash -c \"{script}\""])
    assert kept.stdout.split() == [b"XCPU"] and kept.status == 128 + signal.SIGKILL, kept


def test_times_counts_from_the_sandbox_s_start(platform: str) -> None:
    start = time.monotonic()
    result = do(platform, ["python3", "-c", "import os; print(os.times().elapsed)"])
    assert 0 <= float(result.stdout) <= time.monotonic() - start, result


def test_a_guest_that_sleeps_costs_nothing(platform: str, tmp_path: Path) -> None:
    """10,000 timers on CPU clocks, and as many wake-ups of the sentry in a sleep of 2 s as in one of none."""
    waking = stats(platform, [workload("threadcputimers"), "2", "10000"], tmp_path)
    assert not {"posix", "itimer", "rlimit"} & set(waking["timers"]), waking  # type: ignore[call-overload]


# -- the alarms by themselves
@pytest.fixture
def sleepers() -> Iterator[list[int]]:
    found = [subprocess.Popen(["sleep", "1000"]) for _ in range(cpu_alarms.LIMIT + 20)]
    yield [process.pid for process in found]
    for process in found:
        process.kill()
        process.wait()


@pytest.fixture
def spinner() -> Iterator[int]:
    process = subprocess.Popen([workload("cputime"), "--spin"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that alarms come by, blocked."""
    numbers = [host_cpu_timers.SIGNAL, task_clock_events.SIGNAL, signal.SIGIO]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    yield numbers
    while signal.sigtimedwait(numbers, 0) is not None:
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def account(host: int) -> int:
    return int(Path(f"/proc/{host}/schedstat").read_text().split()[0])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.usefixtures("heard")
def test_descriptors_are_bounded_and_given_back(sleepers: list[int]) -> None:
    exact()
    before, alarms = descriptors(), CpuAlarms(account)
    for pid in sleepers:
        alarms.set(f"cpu:{pid}", pid, [pid], True, 10 * MS)
    assert before + cpu_alarms.LIMIT < descriptors() <= before + 2 * cpu_alarms.LIMIT
    for pid in sleepers[10:]:
        alarms.cancel(f"cpu:{pid}")
    assert descriptors() <= before + 2 * (10 + cpu_alarms.IDLE)
    for pid in sleepers:
        alarms.left(pid, pid)
    assert descriptors() == before
    for pid in sleepers:
        alarms.cancel(f"cpu:{pid}")


@pytest.mark.parametrize("events", [True, False])
def test_an_alarm_comes_once_the_time_is_used(spinner: int, heard: list[int], events: bool) -> None:
    if events:
        exact()
    alarms = CpuAlarms(account)
    alarms.events = events
    alarms.set("cpu:1", spinner, [spinner], True, 20 * MS)
    start = time.clock_gettime_ns(~spinner << 3 | 2)
    found = signal.sigtimedwait(heard, 30)
    assert found is not None
    used = time.clock_gettime_ns(~spinner << 3 | 2) - start
    assert used >= 10 * MS  # less what the account was behind at the start
    number, value = (task_clock_events.SIGNAL, next(iter(alarms._by_alarm))) if events else (found.si_signo, 1)
    assert found.si_signo == (number if events else host_cpu_timers.SIGNAL)
    assert alarms.rang(number, value) == [("cpu:1", spinner if events else 0)]
    assert signal.sigtimedwait(heard, 0.1) is None
    alarms.cancel("cpu:1")
    alarms.left(spinner, spinner)
