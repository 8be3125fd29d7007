"""What the benchmark measures, in which part it belongs, and what each figure must and should be.

*Owned* operations are decided by trapline's own kernel (those that the host then executes, such as fork, too);
*lent* ones are served by the host alone. They tell different things and are never averaged together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

Samples = Mapping[str, Mapping[str, Sequence[float]]]  # kind -> row -> one figure per round


@dataclass(frozen=True)
class Operation:
    """A row: its name in workloads/ops.c, and what it is called."""

    name: str
    title: str
    part: str  # "owned", "lent"
    meaning: str
    unit: str = "ns"  # "ns" per operation, or "" for a count


OPERATIONS = [
    Operation("getitimer", "getitimer", "owned", "The cheapest owned call that writes to memory."),
    Operation("clock-libc", "clock_gettime MONOTONIC, libc", "owned",
              "By the vDSO, where there is one; last in its run, as some peers' needs seconds to settle."),
    Operation("clock-raw", "clock_gettime MONOTONIC, raw call", "owned", "The same as a real system call."),
    Operation("clock-thread", "clock_gettime THREAD_CPUTIME, raw call", "owned", "A CPU clock."),
    Operation("nanosleep", "nanosleep 1 ns", "owned", "Natively most of it is the timer slack of 50 µs."),
    Operation("timer", "timer create+set+delete, MONOTONIC", "owned", "Three calls, never expiring."),
    Operation("timer-cpu", "timer create+set+delete, THREAD_CPUTIME", "owned", "The same on a CPU clock."),
    Operation("interval-count", "interval timer 1 ms: deliveries in 2 s", "owned",
              "setitimer ITIMER_REAL and a handler: 2000 would be all.", ""),
    Operation("interval-deviation", "interval timer 1 ms: median deviation", "owned",
              "How far from 1 ms two deliveries are apart."),
    Operation("spin", "10 ms CPU timer: expirations in 2 s of CPU", "owned",
              "Of the thread's own CPU time, with overruns, while it computes and makes hardly a call.", ""),
    Operation("signal", "signal to self, handler", "owned", "kill, the handler, and the return from it."),
    Operation("tcsetpgrp", "tcsetpgrp", "owned", "As a shell does for every job; executed by the host, at two stops."),
    Operation("fork", "fork + exit + wait", "owned", "Decided by the sentry, executed by the host."),
    Operation("exec", "fork + exec /bin/true", "owned", "With exit and wait; /bin/true is dynamically linked."),
    Operation("getppid", "getppid", "lent", "A call that does next to nothing."),
    Operation("read", "read, per 4 KiB", "lent", "pread of a cached host file in a shared directory."),
    Operation("open", "open/read/close of a host file", "lent", "In a directory that the sandbox shares."),
    Operation("open-root", "open/read/close in the root's overlay", "lent", "/etc/passwd."),
    Operation("stat", "stat of a host file", "lent", "In a directory that the sandbox shares."),
    Operation("mmap", "mmap, touch 16 pages, munmap", "lent", "Private and anonymous."),
    Operation("fault", "page fault", "lent", "The first touch of an anonymous page of 4 KiB."),
    Operation("futex", "futex ping-pong", "lent", "Two threads, a round trip."),
    Operation("pipe", "pipe ping-pong", "lent", "Two processes, a round trip of one byte."),
    Operation("poll", "poll of one ready descriptor", "lent", "Of a pipe."),
    Operation("pty", "pty echo", "lent", "A byte written to the master, echoed, and read by both ends."),
    Operation("pty-bulk", "pty raw throughput, per 64 KiB", "lent",
              "One process prints, another one reads at the master."),
    Operation("tcp", "TCP loopback ping-pong", "lent", "Two processes, a round trip of one byte."),
    Operation("tcp-bulk", "TCP loopback bulk, per 64 KiB", "lent", "One direction, to the last byte read."),
]  # fmt: skip
BY_NAME = {operation.name: operation for operation in OPERATIONS}
#: In ops.c, what gives two rows is one name; and the order in which they are run.
RUN_NAMES = {"interval-count": "interval", "interval-deviation": "interval"}
RUN_LAST = ("clock-libc",)

#: Rows of whole runs: name, title, unit.
WHOLE = {
    "true-wall": ("/bin/true: elapsed", "ms"),
    "true-cpu": ("/bin/true: CPU", "ms"),
    "timers-cpu": ("threadcputimers: CPU", "s"),
    "save": ("checkpoint", "s"),
    "restore": ("restore", "s"),
    "restore-background": ("restore --background", "s"),
}
#: Rows of checkpoints, and MiB of memory that their limits are for.
CHECKPOINTS = {"save", "restore", "restore-background", "pause", "pause-told", "save-incremental"}
SAVED_MIB = 1024


@dataclass(frozen=True)
class Asked:
    """A figure with a limit: the cost of a row in one kind of run to that in another, or alone."""

    name: str
    title: str
    must: float
    aim: float
    row: str
    base: str = "native"  # a kind; "runsc": the best of its platforms; "": the row's figure itself
    kind: str = "seccomp"
    unit: str = "x"
    off: float = 0.0  # not 0: what counts is how far the figure is from this

    def other(self) -> str:
        """The kind of run shown beside it."""
        return "ptrace" if self.kind == "seccomp" else ""


ASKED = [
    Asked("getitimer/runsc", "getitimer to runsc's ptrace platform", 1 / 1.5, 0.5, "getitimer", "runsc-ptrace"),
    Asked("clock/runsc", "clock_gettime, raw, to runsc's ptrace", 1 / 1.5, 0.5, "clock-raw", "runsc-ptrace"),
    Asked("exec/runsc", "fork + exec to runsc's best platform", 0.5, 0.3, "exec", "runsc"),
    Asked("signal/runsc", "signal to self to runsc's ptrace", 1.5, 1.0, "signal", "runsc-ptrace"),
    Asked("timer/runsc", "timer create+set+delete to runsc's ptrace", 0.8, 0.5, "timer", "runsc-ptrace"),
    Asked("timers/runsc", "threadcputimers, CPU, to runsc's best", 0.25, 0.16, "timers-cpu", "runsc"),
    Asked("getitimer", "getitimer to a C ptrace tracer", 1.0, 0.7, "getitimer", "tracer"),
    Asked("getitimer-ptrace", "getitimer, ptrace, to a C ptrace tracer", 2.2, 1.5, "getitimer", "tracer", "ptrace"),
    Asked("clock", "clock_gettime by libc", 2.0, 1.2, "clock-libc"),
    Asked("read", "read 4 KiB", 1.1, 1.03, "read"),
    Asked("mmap", "mmap + touch + munmap", 1.1, 1.03, "mmap"),
    Asked("fault", "page fault", 1.1, 1.03, "fault"),
    Asked("futex", "futex ping-pong", 1.1, 1.03, "futex"),
    Asked("pipe", "pipe ping-pong", 1.1, 1.03, "pipe"),
    Asked("poll", "poll", 1.1, 1.03, "poll"),
    Asked("pty", "pty echo", 1.3, 1.1, "pty"),
    Asked("pty-bulk", "pty raw throughput", 1.3, 1.1, "pty-bulk"),
    Asked("open", "open/read/close", 1.3, 1.05, "open"),
    Asked("fork", "fork + exit + wait", 3, 2, "fork"),
    Asked("exec", "fork + exec /bin/true", 3, 1.8, "exec"),
    Asked("true", "do /bin/true, CPU to `import trio`", 2, 1.3, "true-cpu", "import-trio"),
    Asked("timer-cpu/runsc", "the same on a CPU clock", 0.75, 0.5, "timer-cpu", "runsc-ptrace"),
    Asked("timers-total", "threadcputimers, CPU", 0.22, 0.18, "timers-cpu", "", unit="s"),
    Asked("timers", "threadcputimers, CPU less do /bin/true's", 0.04, 0.03, "timers-less-true", "", unit="s"),
    Asked("wakeups", "sentry wake-ups in its 5 s", 5, 0, "wakeups", "", unit=""),
    Asked("wakeups-10000", "the same with 10,000 timers", 5, 0, "wakeups-10000", "", unit=""),
    Asked("wakeups-asleep", "the same while 100 others sleep", 5, 0, "wakeups-asleep", "", unit=""),
    Asked("wakeups-armed", "wake-ups in 5 s with 100,000 armed timers", 0, 0, "wakeups-armed", "", unit=""),
    Asked("armed", "setting one of 100,000 timers to one of 1,000", 1.67, 1.2, "armed", "", unit="x"),
    Asked("interval", "1 ms interval timer: missing of 2,000 in 2 s", 30, 21, "interval-count", "", unit="", off=2000),
    Asked("deviation", "its median deviation, us", 60, 30, "interval-us", "", unit=""),
    Asked("spin", "10 ms CPU timer in 2 s of CPU: off 200 by", 2, 1, "spin", "", unit="", off=200),
    Asked("wakeups-many", "the same, many sleeping processes", 10, 2, "wakeups-many", "", unit=""),
    Asked("save/runsc", "checkpoint of 1 GiB to runsc's best", 0.9, 0.6, "save", "runsc"),
    Asked("restore/runsc", "restore of 1 GiB to runsc's best", 0.9, 0.9, "restore", "runsc"),
    Asked("background/runsc", "--background to runsc's whole restore", 0.35, 0.2, "restore-background", "runsc"),
    Asked("pause", "--leave-running, 1 GiB: the guest's pause", 60, 20, "pause", "", unit="ms"),
    Asked("pause-told", "the same as the result tells it", 60, 20, "pause-told", "", unit="ms"),
    Asked("incremental", "incremental save, 16 MiB of 1 GiB written", 100, 100, "save-incremental", "", unit="ms"),
    Asked("memory", "sentry memory per sleeping process", 60, 25, "memory", "", unit="KB"),
]  # fmt: skip


@dataclass
class Figure:
    """What was found of an asked figure."""

    name: str
    title: str
    must: float
    aim: float
    unit: str
    value: float | None
    low: float | None  # lower and upper quartile over the rounds
    high: float | None
    other: float | None  # on the ptrace platform
    note: str
    verdict: str


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, median(values), high


def ratios(samples: Samples, row: str, kind: str, base: str) -> list[float]:
    """A row's figure in one kind of run to that in another, round by round: a machine that gets slower for a
    while slows both. `base` "" is one."""
    ours = samples.get(kind, {}).get(row, [])
    if not base:
        return list(ours)
    if base == "import-trio":
        theirs: Sequence[float] = samples.get(base, {}).get("true-cpu", [])
    else:
        theirs = samples.get(base, {}).get(row, [])
    return [a / b for a, b in zip(ours, theirs, strict=False) if b]


def best_runsc(samples: Samples, row: str) -> str:
    """The platform of runsc on which a row costs least; a name that no kind has where there is none."""
    found = [kind for kind in samples if kind.startswith("runsc-") and samples[kind].get(row)]
    return min(found, key=lambda kind: median(samples[kind][row]), default="runsc")


def judge(asked: Asked, samples: Samples, failures: Mapping[str, Mapping[str, str]]) -> Figure:
    """Find an asked figure in the samples."""
    base = best_runsc(samples, asked.row) if asked.base == "runsc" else asked.base
    found = ratios(samples, asked.row, asked.kind, base)
    other = ratios(samples, asked.row, asked.other(), base) if asked.other() else []
    if asked.off:
        found, other = [abs(v - asked.off) for v in found], [abs(v - asked.off) for v in other]
    low, value, high = spread(found) if found else (None, None, None)
    failed = next((f for k in (asked.kind, base) for r, f in failures.get(k, {}).items() if r in (asked.row, "")), "")
    if value is None:
        verdict = "FAILED" if failed or not base.startswith("runsc") else "no peer"
        note = failed
    else:
        verdict = "aim met" if value <= asked.aim else "met" if value <= asked.must else "NOT MET"
        note = _absolute(asked, samples, base)
    return Figure(
        asked.name, asked.title, asked.must, asked.aim, asked.unit, value, low, high,
        median(other) if other else None, note, verdict,
    )  # fmt: skip


def _absolute(asked: Asked, samples: Samples, base: str) -> str:
    if not base:
        return ""
    row = "true-cpu" if base == "import-trio" else asked.row
    ours, theirs = median(samples[asked.kind][asked.row]), median(samples[base][row])
    if asked.row == "true-cpu":
        return f"{ours * 1e3:.0f} to {theirs * 1e3:.0f} ms"
    if asked.row in WHOLE:
        return f"{ours:.3g} to {theirs:.3g} s"
    return f"{number(ours)} to {number(theirs)} ns"


def figures(result: Mapping[str, Any]) -> list[Figure]:
    """All asked figures whose row was wanted."""
    samples = result["samples"]
    rows = {row for kind in samples.values() for row in kind}
    rows |= {row for kind in result["failures"].values() for row in kind}
    if result.get("images", {}).get("mib", SAVED_MIB) != SAVED_MIB:
        rows -= CHECKPOINTS  # limits are for that size
    wanted = [asked for asked in ASKED if asked.row in rows]
    return [judge(asked, samples, result["failures"]) for asked in wanted]


def as_data(found: list[Figure]) -> list[dict[str, Any]]:
    """Figures for JSON."""
    return [asdict(figure) for figure in found]


def number(value: float) -> str:
    """Three digits or so, with k and M."""
    for size, suffix in ((1e7, "M"), (1e4, "k")):
        if value >= size:
            scaled = value / (size / 10)
            return f"{scaled:.0f}{suffix}" if scaled >= 100 else f"{scaled:.1f}{suffix}"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
