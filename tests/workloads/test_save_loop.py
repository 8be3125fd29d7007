"""The save loop over the workloads: saved and resumed, or killed and restored, over and over, they print what they print
natively.

A seed decides when; it is in the message of each failure, and TRAPLINE_SAVE_SEED=N repeats it. Without `-m long` only a
few workloads that a seed draws are tried.
"""

from __future__ import annotations

import difflib
import functools
import random
import re
import sys
import time
from pathlib import Path

import pytest
from harness import BIN, Result, is_root, native, workload

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from save_loop import NOBODY, SaveLoop, seed_of_tests

SEED = seed_of_tests()
#: Commands, and how long a run of each may go on until the next save, in s: the shorter the run is, the less.
COMMANDS = {
    ("affinity",): 0.05, ("badptr",): 0.1, ("clocks",): 0.1, ("clone3",): 0.1, ("contested",): 0.3, ("exec",): 0.1, ("frames",): 0.2,
    ("group_stops",): 0.3, ("hostmade",): 0.1, ("job_control",): 0.3, ("jobs",): 0.1, ("killall",): 0.1,
    ("limits", "processes", "wild", "files", "queue", "values"): 0.1, ("line_discipline",): 0.3, ("never_eintr",): 0.2,
    ("orphans",): 0.1, ("pidreuse",): 0.2, ("processes",): 0.05, ("processes-static",): 0.05, ("procstatus",): 0.05,
    ("saved_children",): 0.1, ("saved_descriptors",): 0.1, ("saved_signals",): 0.1, ("saved_terminals",): 0.1,
    ("saved_threads",): 0.1, ("saved_timers",): 0.3,
    ("siginfo",): 0.2, ("signalfd",): 0.2, ("signals",): 0.2, ("signals-musl",): 0.2, ("signals-nopie",): 0.2,
    ("signals-static",): 0.2, ("terminals",): 0.3, ("threads_exit",): 0.2, ("threads_exit-musl-static",): 0.2,
    **{(name, "clocks", "agreement", "timerfd"): 0.2 for name in ("timing", "timing-musl", "timing-static")},
    ("timing", "sleeps", "itimers", "timers"): 0.4,
    ("waits",): 0.2, ("waits-musl",): 0.2,
}  # fmt: skip
MOST = 10  # saves in one run
#: A command that takes so long natively, s, is saved at least once: the first save comes in the first half of that.
LONG_ENOUGH = 0.3
#: Those of which `make test` draws. The others have lines of when something came, so they want a machine of their own,
#: or take long.
STEADY = (
    "affinity", "badptr", "clone3", "exec", "frames", "group_stops", "hostmade", "job_control", "killall", "orphans",
    "pidreuse", "processes", "processes-static", "saved_children", "saved_descriptors", "saved_signals",
    "saved_terminals", "saved_threads", "signals", "signals-musl", "signals-nopie", "signals-static", "terminals",
    "threads_exit", "threads_exit-musl-static", "waits", "waits-musl",
)  # fmt: skip
#: Programs of which not all lines can be the native ones after a restore: (program, how a line begins): why.
RUSAGE = "what getrusage(2) and its like say of a restored process counts from the restore (docs/limits.md)"
ZOMBIE = "a process that had ended shows no masks of signals in /proc any more (docs/limits.md)"
SUSPENDED = "one that was stopped in sigsuspend(2) shows the mask of before the call until it goes on (docs/limits.md)"
STOPPED_OUTPUT = "output that was stopped goes on with a restore (docs/limits.md)"
LATE = "a task comes later than it would have, by what the restore takes; the workload's own time limit says so"
EXCUSED = {
    ("jobs", "sleep across a stop"): LATE,
    ("timing", "10 ms for 305 ms"): LATE,  # so the signals of several periods become one
    ("timing", "SIGEV_THREAD_ID"): LATE,
    ("waits", "wait4: cpu"): RUSAGE,
    ("waits", "RUSAGE_"): RUSAGE,
    ("waits", "times: "): RUSAGE,
    ("waits", "waitid: ok, a grandchild's cpu"): RUSAGE,
    ("siginfo", "times as in rusage"): RUSAGE,
    ("siginfo", "time at the end"): RUSAGE,
    ("siginfo", "a grandchild's time: in rusage"): RUSAGE,
    ("timing", "cpu: process near thread"): RUSAGE,
    ("procstatus", "  dead: "): ZOMBIE,
    ("procstatus", "  stopped: blocked"): SUSPENDED,
    ("line_discipline", "  write: "): STOPPED_OUTPUT,
    ("line_discipline", "  the master sees "): STOPPED_OUTPUT,
}


@functools.cache
def natively(words: tuple[str, ...]) -> tuple[Result, float]:
    """What a command does on the host, and how long it takes, s."""
    begin = time.monotonic()
    return native([workload(words[0]), *words[1:]]), time.monotonic() - begin


def comparable(name: str, output: bytes, restored: bool) -> list[str]:
    """The lines that must be the native ones: without those that are excused, and without whether a sleep was late, which
    it is where the sandbox was saved in it."""
    program = name.partition("-")[0]
    starts = tuple(start for owner, start in EXCUSED if owner == program) if restored else ()
    lines = re.sub(r"\blate (yes|no)\b", "late", output.decode(errors="replace")).splitlines()
    return [line for line in lines if not line.startswith(starts)]


def check(words: tuple[str, ...], loop: SaveLoop, result: Result) -> None:
    """Its output and status are the native ones; nobody complained."""
    expected, lasts = natively(words)
    wanted, got = (comparable(words[0], r.stdout, loop.kill) for r in (expected, result))
    story = f"TRAPLINE_SAVE_SEED={SEED}, {loop.saves} saves, status {result.status}, {result.stderr!r}"
    assert wanted == got, "\n".join([story, *difflib.unified_diff(wanted, got, "native", "here", "", "", 1, "")])
    assert (result.status, result.stderr) == (expected.status, expected.stderr), story
    assert loop.saves > 0 or lasts < LONG_ENOUGH, story


def at_random(platform: str, words: tuple[str, ...], kill: bool, user: int | None = None) -> None:
    """One command, saved at random times."""
    seed = f"{SEED} {platform} {' '.join(words)} {kill} {user}"
    loop = SaveLoop(platform, [workload(words[0]), *words[1:]], seed, kill=kill, user=user)
    check(words, loop, loop.at_random(MOST, COMMANDS[words], first=natively(words)[1] / 2))


forms = pytest.mark.parametrize("kill", [False, True], ids=["resumed", "restored"])


def at_markers(platform: str, words: tuple[str, ...], kill: bool) -> None:
    """One command, saved at each marker call of its own."""
    loop = SaveLoop(platform, [workload(words[0]), *words[1:]], SEED, kill=kill)
    check(words, loop, loop.at_markers())
    assert loop.saves > 0


@forms
def test_a_sample(platform: str, kill: bool) -> None:
    """One of the workloads, another with each seed; some as an ordinary user."""
    chance = random.Random(f"{SEED} {platform} {kill}")
    name = chance.choice([name for name in STEADY if (BIN / name).exists()])  # musl ones need their compiler
    user = NOBODY if is_root() and name in UNPRIVILEGED and chance.random() < 0.5 else None
    at_random(platform, (name,), kill, user)


@pytest.mark.parametrize("flags", [(), ("--without=time_namespace",), ("--clock-rate=2",)], ids=["", "host", "rate"])
def test_timerfds_keep_in_step(platform: str, flags: tuple[str, ...]) -> None:
    """Each tick of each clock's timerfd is counted once, whatever time namespace and rate the sandbox has."""
    words = ("timing", "timerfd")
    loop = SaveLoop(platform, [workload(words[0]), words[1]], f"{SEED} {platform} {flags}", kill=True, flags=flags)
    check(words, loop, loop.at_random(4, 0.1, first=natively(words)[1] / 2))


#: What prints to ordinary users what it prints to root.
UNPRIVILEGED = ("processes", "signals", "terminals", "job_control", "line_discipline")


#: Workloads that make marker calls.
MARKED = (
    ("hostmade", "terminal"), ("limits", "wild"), ("threads_exit", "leaders"), ("saved_children",), ("saved_descriptors",),
    ("saved_signals",), ("saved_terminals",), ("saved_threads",), ("saved_timers",),
)  # fmt: skip


@forms
def test_a_sample_at_markers(platform: str, kill: bool) -> None:
    for words in random.Random(f"{SEED} {platform} {kill}").sample(MARKED, 1 if kill else 2):
        at_markers(platform, words, kill)


@pytest.mark.long
@forms
@pytest.mark.parametrize("words", MARKED, ids="-".join)
def test_at_markers(platform: str, words: tuple[str, ...], kill: bool) -> None:
    at_markers(platform, words, kill)


@pytest.mark.long
@forms
@pytest.mark.parametrize("words", COMMANDS, ids="-".join)
def test_all(platform: str, words: tuple[str, ...], kill: bool) -> None:
    at_random(platform, words, kill)


@pytest.mark.long
@forms
@pytest.mark.parametrize("name", UNPRIVILEGED)
def test_as_an_ordinary_user(platform: str, name: str, kill: bool) -> None:
    if not is_root():
        pytest.skip("all of these tests are")
    at_random(platform, (name,), kill, NOBODY)
