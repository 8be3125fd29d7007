"""The benchmark: what trapline costs against native runs and against a C tracer, with what it should cost.

Run by `make bench`, or `.venv/bin/python workloads/bench.py [--quick] [--rows NAME,...]`. Kinds of run take
turns within each round, and a ratio is the median of the rounds' ratios, so that a machine which gets slower
for a while slows both. Operations run with everything on one CPU (unless --unpinned): across two CPUs a
wake-up costs several times as much, natively too, and it is a matter of luck.

Two parts, since they tell different things: *owned* calls are answered by trapline, *lent* ones by the host.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import psutil

from trapline.sentry.cli.measured_run import measure

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / "workloads" / "bin"
PLATFORMS = ("seccomp", "ptrace")
WINDOW = 5.0  # seconds over which wake-ups are counted


@dataclass
class Row:
    """One figure: what it is, what it must and should be, and what was found."""

    name: str
    title: str
    part: str  # "owned", "lent" or "whole"
    must: float
    aim: float
    unit: str = "x"  # "x" for a ratio
    value: float | None = None  # what is judged
    other: float | None = None  # the same on the ptrace platform, where that is not the row itself
    base: str = ""  # what the ratio is to, and both in absolute terms
    failure: str = ""

    def verdict(self) -> str:
        """How the value stands to must and aim."""
        if self.value is None:
            return "FAILED"
        if self.value <= self.aim:
            return "aim met"
        return "met" if self.value <= self.must else "NOT MET"


ROWS = [
    Row("getitimer", "getitimer, seccomp, to a C ptrace tracer", "owned", 1.0, 0.7),
    Row("getitimer-ptrace", "getitimer, ptrace, to a C ptrace tracer", "owned", 2.2, 1.5),
    Row("read", "read 4 KiB", "lent", 1.1, 1.03),
    Row("mmap", "mmap + touch + munmap", "lent", 1.1, 1.03),
    Row("fault", "page fault", "lent", 1.1, 1.03),
    Row("futex", "futex ping-pong", "lent", 1.1, 1.03),
    Row("pipe", "pipe ping-pong", "lent", 1.1, 1.03),
    Row("poll", "poll", "lent", 1.1, 1.03),
    Row("clock", "clock_gettime by libc to the host's vDSO", "owned", 2.0, 1.2),
    Row("open", "open/read/close", "lent", 1.3, 1.05),
    Row("exec", "fork + exec /bin/true", "whole", 3, 1.8),
    Row("true", "do /bin/true, CPU to `import trio`", "whole", 2, 1.3),
    Row("timers", "threadcputimers, CPU less do /bin/true's", "whole", 0.08, 0.03, "s"),
    Row("wakeups", "sentry wake-ups in its 5 s", "whole", 10, 2, ""),
    Row("wakeups-1000", "the same, 1000 sleeping processes", "whole", 10, 2, ""),
    Row("memory", "sentry memory per sleeping process", "whole", 60, 25, "KB"),
]
OPERATIONS = {
    "getitimer": "getitimer", "clock": "clock-libc", "read": "read", "mmap": "mmap", "fault": "fault",
    "futex": "futex", "pipe": "pipe", "poll": "poll", "open": "open", "exec": "exec",
}  # fmt: skip


def do(kind: str, *command: str) -> list[str]:
    """The command line of a command on a platform; the command itself when natively."""
    if kind == "native":
        return list(command)
    return [sys.executable, "-P", "-m", "trapline", "do", f"--platform={kind}", "--", *command]


def progress(text: str) -> None:
    """One line on a terminal that says what is going on."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


@dataclass
class Bench:
    """The options, and the operations' times as they come in."""

    quick: bool
    pinned: bool
    times: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # kind -> operation -> ns
    failures: dict[str, str] = field(default_factory=dict)  # kind -> last words

    def one_cpu(self) -> set[int]:
        """The CPUs an operation may use."""
        allowed = os.sched_getaffinity(0)
        return {min(allowed)} if self.pinned else allowed

    # -- operations

    def run_operations(self, wanted: Iterable[str]) -> None:
        """Times of the wanted rows' operations, of each kind of run in turn."""
        names = [OPERATIONS[name] for name in wanted if name in OPERATIONS]
        plain = [name for name in names if name != "getitimer"]
        for number in range(2 if self.quick else 5):
            kinds: list[tuple[str, list[str]]] = []
            if plain:
                kinds.append(("native", plain))
            if "getitimer" in names:
                kinds.append(("tracer", ["getitimer"]))
            kinds += [(kind, names) for kind in PLATFORMS]
            for kind, operations in kinds:
                progress(f"operations, round {number + 1}, {kind}")
                self._run(kind, operations)

    def _run(self, kind: str, operations: list[str]) -> None:
        if kind in self.failures:
            return
        ops = [str(BIN / "ops"), ",".join(operations), "0", "3" if self.quick else "5"]
        command = [str(BIN / "tracer"), *ops] if kind == "tracer" else do(kind, *ops)
        status, out, err = self._output(command)
        if status != 0:
            self.failures[kind] = f"status {status}: {last_line(err)}"
        for line in out.splitlines():
            name, _, value, *_ = line.split()
            self.times.setdefault(kind, {}).setdefault(name, []).append(float(value))

    def _output(self, command: list[str]) -> tuple[int, str, str]:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.one_cpu())
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        finally:
            os.sched_setaffinity(0, allowed)
        try:
            out, err = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += "\nno end after 180 s"
        return process.returncode, out, err

    def ratio(self, row: Row, kind: str, base: str) -> float | None:
        """The median over the rounds of an operation's time on a platform to that of another kind of run."""
        name = OPERATIONS[row.name.removesuffix("-ptrace")]
        ours = self.times.get(kind, {}).get(name, [])
        theirs = self.times.get(base, {}).get(name, [])
        if not ours or not theirs:
            row.failure = self.failures.get(kind) or self.failures.get(base) or "no figures"
            return None
        found = [a / b for a, b in zip(ours, theirs, strict=False)]
        if not row.base:
            row.base = f"{number(median(ours))} to {number(median(theirs))} ns"
        return median(found)

    # -- whole runs

    def true(self, row: Row) -> None:
        """CPU time of a sandbox that does nothing, to that of importing what it needs."""
        trio = [sys.executable, "-c", "import trio"]
        samples: dict[str, list[float]] = {kind: [] for kind in ("trio", *PLATFORMS)}
        measure(trio)
        for turn in range(4 if self.quick else 15):
            progress(f"do /bin/true, round {turn + 1}")
            samples["trio"].append(measure(trio).cpu)
            for kind in PLATFORMS:
                samples[kind].append(cpu_of(do(kind, "/bin/true")))
        ratios = {
            kind: median(a / b for a, b in zip(samples[kind], samples["trio"], strict=True))
            for kind in PLATFORMS
        }
        row.value, row.other = ratios["seccomp"], ratios["ptrace"]
        row.base = f"{median(samples['seccomp']) * 1e3:.0f} to {median(samples['trio']) * 1e3:.0f} ms"

    def timers(self, row: Row) -> None:
        """CPU time of the timer workload's whole tree, less that of a sandbox that does nothing."""
        found = {}
        for kind in PLATFORMS:
            costs = []
            for turn in range(1 if self.quick else 3):
                progress(f"threadcputimers, {kind}, round {turn + 1}")
                idle = median(cpu_of(do(kind, "/bin/true")) for _ in range(4))
                costs.append(cpu_of(do(kind, str(BIN / "threadcputimers"))) - idle)
            found[kind] = median(costs)
        row.value, row.other = found["seccomp"], found["ptrace"]
        row.base = f"natively {cpu_of([str(BIN / 'threadcputimers')]):.3f} s"

    def wakeups(self, row: Row) -> None:
        """How often the sentry wakes while 1000 CPU timers are armed and nothing runs."""
        found = {}
        for kind in PLATFORMS:
            progress(f"wake-ups, {kind}")
            with Sandbox(do(kind, str(BIN / "threadcputimers"), "8")) as sandbox:
                time.sleep(2)
                found[kind] = float(sandbox.wakeups(WINDOW))
        row.value, row.other = found["seccomp"], found["ptrace"]

    def sleepers(self, wake_row: Row, memory_row: Row) -> None:
        """Wake-ups and memory of the sentry with many sleeping processes."""
        count = 200 if self.quick else 1000
        wake, memory = {}, {}
        for kind in PLATFORMS:
            resident = {}
            for processes in (0, count):
                progress(f"{processes} sleeping processes, {kind}")
                command = do(kind, str(BIN / "sleepers"), str(processes), "60")
                with Sandbox(command) as sandbox:
                    sandbox.wait_for("ready")
                    time.sleep(1)
                    if processes:
                        wake[kind] = float(sandbox.wakeups(WINDOW))
                    resident[processes] = sandbox.resident()
            memory[kind] = (resident[count] - resident[0]) / count / 1024
        if self.quick:
            wake_row.base = memory_row.base = f"{count} of them"
        wake_row.value, wake_row.other = wake["seccomp"], wake["ptrace"]
        memory_row.value, memory_row.other = memory["seccomp"], memory["ptrace"]


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

    def wait_for(self, word: str) -> None:
        """Until it prints a line."""
        assert self.process.stdout is not None and self.process.stderr is not None
        if self.process.stdout.readline().strip() != word:
            self.process.kill()
            raise RuntimeError(last_line(self.process.stderr.read()))

    def parts(self) -> list[psutil.Process]:
        """The processes that are trapline and not its guests: those of our pid namespace, and the first one
        of the sandbox's."""
        if self.process.poll() is not None:
            assert self.process.stderr is not None
            raise RuntimeError(last_line(self.process.stderr.read()) or "ended too early")
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


def cpu_of(command: list[str]) -> float:
    """CPU seconds of a command that must succeed. RuntimeError."""
    run = measure(command)
    if run.status != 0:
        raise RuntimeError(f"status {run.status}: {last_line(run.stderr.decode(errors='replace'))}")
    return run.cpu


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def number(value: float) -> str:
    """Three digits or so."""
    if value >= 100_000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def table(rows: list[Row]) -> str:
    """The rows for people."""
    lines = [f"{'':<42}{'trapline':>9}{'must':>7}{'aim':>6}  {'':<9}{'ptrace':>7}  medians"]
    for part, title in (
        ("owned", "owned: answered by trapline"),
        ("lent", "lent: served by the host, to native"),
        ("whole", "whole runs"),
    ):
        chosen = [row for row in rows if row.part == part]
        if chosen:
            lines.append(title)
        for row in chosen:
            unit = {"x": "", "": ""}.get(row.unit, f" {row.unit}")
            value = "-" if row.value is None else number(row.value)
            other = "" if row.other is None else number(row.other)
            name = f"  {row.title}{',' + unit if unit else ''}"
            lines.append(
                f"{name:<42}{value:>9}{row.must:>7g}{row.aim:>6g}  {row.verdict():<9}{other:>7}  "
                f"{row.failure or row.base}"
            )
    return "\n".join(lines)


def guarded(rows: list[Row], body: Callable[[], None]) -> None:
    """Run a measurement; what goes wrong is the rows' failure, and the others go on."""
    try:
        body()
    except (RuntimeError, OSError, psutil.Error) as error:
        for row in rows:
            row.failure = str(error) or type(error).__name__


def main() -> int:
    """Measure, print, write bench.json. 1 when something could not be measured."""
    parser = argparse.ArgumentParser(description="What trapline costs, against native runs and a C tracer.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, fewer sleeping processes")
    parser.add_argument("--rows", metavar="NAME,...", help="only these: " + ", ".join(r.name for r in ROWS))
    parser.add_argument("--unpinned", action="store_true", help="let operations use all CPUs")
    parser.add_argument("--json", metavar="FILE", default=str(ROOT / "bench.json"), help="where to write it")
    arguments = parser.parse_args()
    wanted = [row.name for row in ROWS] if arguments.rows is None else arguments.rows.split(",")
    unknown = set(wanted) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}")
    rows = {row.name: row for row in ROWS if row.name in wanted}

    bench = Bench(arguments.quick, not arguments.unpinned)
    bench.run_operations(dict.fromkeys(name.removesuffix("-ptrace") for name in rows))
    for row in rows.values():
        if row.name == "getitimer":
            row.value = bench.ratio(row, "seccomp", "tracer")
        elif row.name == "getitimer-ptrace":
            row.value = bench.ratio(row, "ptrace", "tracer")
        elif row.name in OPERATIONS:
            row.value, row.other = (bench.ratio(row, kind, "native") for kind in PLATFORMS)
    for name, body in (("true", bench.true), ("timers", bench.timers), ("wakeups", bench.wakeups)):
        if name in rows:
            guarded([rows[name]], lambda body=body, row=rows[name]: body(row))  # type: ignore[misc]
    if "wakeups-1000" in rows or "memory" in rows:
        pair = [rows.get(name) or Row(name, "", "", 0, 0) for name in ("wakeups-1000", "memory")]
        guarded(pair, lambda: bench.sleepers(*pair))
    progress("")

    print(table(list(rows.values())))
    result = {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "quick": arguments.quick,
        "pinned": bench.pinned,
        "rows": [{**asdict(row), "verdict": row.verdict()} for row in rows.values()],
        "operations_ns": {
            kind: {name: median(times) for name, times in found.items()}
            for kind, found in bench.times.items()
        },
    }
    Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")
    return 1 if any(row.value is None for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
