"""C workloads: what they print natively is what they must print under trapline."""

import subprocess

import pytest
from harness import do, same, workload

DETERMINISTIC = (
    "processes",
    "waits",
    "exec",
    "frames",
    "jobs",
    "orphans",
    "signals",
    "siginfo",
    "hostmade",
    "signalfd",
    "timing",
    "clocks",
    "badptr",
    "pidreuse",
    "procstatus",
    "threads_exit",
    "killall",
    "never_eintr",
    "contested",
    "affinity",
    "clone3",
    "group_stops",
    "terminals",
    "job_control",
    "line_discipline",
    "saved_children",
    "saved_descriptors",
    "saved_signals",
    "saved_terminals",
    "saved_threads",
    "saved_timers",
)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_prints_what_it_prints_natively(platform, name):
    same(platform, [workload(name)])


#: The sections of cputime that need seconds of CPU time, for limits that are whole seconds. That the signals come at
#: all, and when, is in test_cpu_time.py too.
SLOW = ["spin", "limit", "exceeded"]


@pytest.mark.parametrize(
    "sections", [["two", "woken", "which", "asleep", "other", "told", "agreement"], pytest.param(SLOW, marks=pytest.mark.long)]
)
def test_cpu_time(platform, sections):
    same(platform, [workload("cputime"), *sections])


@pytest.mark.parametrize(
    "sections", [["processes", "wild", "files", "queue", "values"], pytest.param(["cpu"], marks=pytest.mark.long)]
)
def test_limits(platform, sections):
    same(platform, [workload("limits"), *sections])


@pytest.mark.parametrize(
    "sections",
    [
        ["processes"],
        ["signals"],
        # How its own vDSO or call is asked, and its own idea of timers; how long a sleep takes is the kernel's.
        ["timing", "clocks", "agreement", "timerfd"],
        pytest.param(["timing", "sleeps", "itimers", "timers"], marks=pytest.mark.long),
    ],
    ids="-".join,
)
@pytest.mark.parametrize("form", ["static", "musl"])
def test_other_libc(platform, sections, form):
    same(platform, [workload(f"{sections[0]}-{form}"), *sections[1:]])


def test_refusals(platform):
    """Here the host is no oracle: the workload prints what it got, and this is what is promised."""
    result = do(platform, [workload("refused")])
    assert result.status == 0, result
    lines = dict(line.split(": ", 1) for line in result.stdout.decode().splitlines() if ": " in line)
    assert lines, result


def test_threadcputimers_exits_zero(platform):
    assert do(platform, [workload("threadcputimers"), "1"]).status == 0


@pytest.mark.parametrize("signo", [1, 9, 11, 15])
def test_status_of_a_killed_guest(platform, signo):
    assert do(platform, ["sh", "-c", f"kill -{signo} $$"]).status == 128 + signo


def test_streams(platform):
    done = subprocess.run(
        [__import__("sys").executable, "-m", "trapline", "do", f"--platform={platform}", "cat"],
        input=b"through\n",
        capture_output=True,
        timeout=30,
    )
    assert done.stdout == b"through\n"
    assert done.stderr == b""
