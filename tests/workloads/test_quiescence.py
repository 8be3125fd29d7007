"""A sandbox that is brought to rest again and again (platform/quiesce.py), dozens of times in each of these workloads,
goes on as if nothing had been: its output is the native one."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import oracle, workload

RUN = str(Path(__file__).parent / "quiesce_run.py")
QUICK = ["signals", "waits", "threads_exit", "group_stops", "siginfo", "signalfd", "pidreuse"]
ALL = ["processes", "contested", "clone3", "orphans", "killall", "exec", "never_eintr", "jobs", "timing"]


def check(platform: str, name: str) -> None:
    command = [workload(name)]
    seed = random.randrange(1 << 30)
    words = [sys.executable, "-P", RUN, str(seed), "do", f"--platform={platform}", "--", *command]
    result = subprocess.run(words, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    times = re.search(rb"at rest (\d+) times\n", result.stderr)
    assert times is not None, (seed, result.stderr[-2000:])
    assert int(times[1]) > 0, seed
    expected = oracle(*command)
    assert (result.returncode, result.stdout) == (expected.status, expected.stdout), (seed, result.stderr[-2000:])


@pytest.mark.parametrize("name", QUICK)
def test_nobody_sees_it(platform: str, name: str) -> None:
    check(platform, name)


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_nobody_sees_it_in_any_workload(platform: str, name: str) -> None:
    check(platform, name)
