"""The benchmark: what trapline costs against native runs, a C tracer and the peers that are installed.

Run by `make bench`. Kinds of run take turns within each round, and a ratio is the median of the rounds'
ratios, so that a machine which gets slower for a while slows all. Everything of a run is on one CPU (unless
--unpinned): there, time that passes is the CPU time of guest and sentry together, and across two CPUs a
wake-up costs several times as much, natively too, and is a matter of luck.

Rows, parts and limits are in bench_rows.py; the kinds of run in bench_kinds.py; whole runs in bench_whole.py,
checkpoints in bench_checkpoints.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import bench_checkpoints
import bench_rows
import bench_whole
import psutil
from bench_kinds import PEERS, PLATFORMS, ROOT, Kind, Peers, own_kinds, run_operations
from bench_report import text_tables

from trapline.sentry.cli.measured_run import NotMeasured

SCHEMA = 2
#: Rows of whole runs that --rows takes, beside the operations.
WHOLE = ("true", "timers", "wakeups", "armed", "sleepers", "checkpoints")


@dataclass
class Bench:
    """The options, and the figures as they come in."""

    options: argparse.Namespace
    kinds: list[Kind]
    cpus: set[int]
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # kind -> row -> per round
    failures: dict[str, dict[str, str]] = field(default_factory=dict)  # kind -> row ("": all) -> last words
    skews: dict[str, list[float]] = field(default_factory=dict)
    busy: dict[str, list[float]] = field(default_factory=dict)  # kind -> CPU time to elapsed time, per round

    def add(self, kind: str, row: str, figure: float) -> None:
        """One more figure."""
        self.samples.setdefault(kind, {}).setdefault(row, []).append(figure)

    def operations_round(self, number: int, names: list[str]) -> None:
        """All wanted operations once, in each kind of run."""
        for kind in self.kinds:
            failed = self.failures.setdefault(kind.name, {})
            left = [n for n in names if n not in failed and (kind.operations is None or n in kind.operations)]
            while left and "" not in failed:
                progress(f"operations, round {number} of {self.options.rounds}, {kind.title}")
                run = run_operations(kind, left, 3, self.cpus)
                for row, ns in run.ns.items():
                    self.add(kind.name, row, ns)
                    if row == "interval-deviation":
                        self.add(kind.name, "interval-us", ns / 1000)
                self.skews.setdefault(kind.name, []).extend(run.skews)
                if run.failure is None:
                    self.busy.setdefault(kind.name, []).append(run.cpu / run.elapsed)
                    break
                where, why = run.failure
                failed[where] = why
                # What comes after the operation that failed is tried without it.
                left = left[left.index(where) + 1 :] if where in left else []

    def whole(self, kind: str, row: str, body: Callable[[], None]) -> None:
        """One measurement of a whole run; what goes wrong is its row's failure, and the others go on."""
        failed = self.failures.setdefault(kind, {})
        if row in failed or "" in failed:
            return
        try:
            body()
        except (bench_whole.Failed, NotMeasured, OSError, psutil.Error) as error:
            failed[row] = str(error) or type(error).__name__

    def whole_rounds(self, rows: set[str]) -> None:
        """The rows of whole runs, their kinds in turn too."""
        quick = self.options.quick
        ours = [kind for kind in self.kinds if kind.name != "tracer"]
        if "true" in rows:
            for number in range(4 if quick else 15):
                progress(f"/bin/true, round {number + 1}")
                self.whole("import-trio", "true-cpu", lambda: bench_whole.import_trio(self.cpus, self.add))
                for kind in ours:
                    if kind.name != "uml" or number < 5:  # it boots for 2 s
                        self.whole(kind.name, "true-cpu", lambda k=kind: bench_whole.true(k, self.cpus, self.add))
        if "timers" in rows:
            for number in range(1 if quick else 3):
                for kind in ours:
                    progress(f"threadcputimers, round {number + 1}, {kind.title}")
                    self.whole(
                        kind.name,
                        "timers-cpu",
                        lambda k=kind: bench_whole.timers(k, self.options.duration, self.cpus, self.add),
                    )
        count = 200 if quick else 1000
        for platform in PLATFORMS:
            if "wakeups" in rows:
                progress(f"wake-ups, {platform}")
                self.whole(platform, "wakeups", lambda p=platform: bench_whole.wakeups(p, self.add))
            if "armed" in rows:
                progress(f"100,000 armed timers, {platform}")
                self.whole(platform, "armed", lambda p=platform: bench_whole.armed(p, self.add))
            if "sleepers" in rows:
                progress(f"{count} sleeping processes, {platform}")
                self.whole(platform, "memory", lambda p=platform: bench_whole.sleepers(p, count, self.add))

    def checkpoint_rounds(self) -> None:
        """Saves and restores, the kinds in turn."""
        quick = self.options.quick
        with bench_checkpoints.place(128 if quick else bench_rows.SAVED_MIB) as where:
            self.images = {"mib": where.mib, "where": where.where}
            bodies = [(kind, *each) for kind in self.kinds for each in bench_checkpoints.bodies(kind, where)]
            for number in range(1 if quick else 5):
                for kind, row, body in bodies:
                    progress(f"checkpoints, round {number + 1}, {kind.title}, {row}")
                    self.whole(kind.name, row, lambda b=body: b(self.add))

    def result(self, started: float, absent: dict[str, str]) -> dict[str, Any]:
        """Everything, as it is written to bench.json."""
        skews = {kind: median(found) for kind, found in self.skews.items() if found}
        for kind, skew in skews.items():
            if abs(skew - 1) > 0.05:  # its clock does not run as ours: what it measured was in its own time
                for row, found in self.samples[kind].items():
                    if row in bench_rows.BY_NAME and bench_rows.BY_NAME[row].unit == "ns":
                        found[:] = [value * skew for value in found]
        result: dict[str, Any] = {
            "schema": SCHEMA,
            "date": datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": round(time.time() - started),
            "options": {
                "quick": self.options.quick,
                "pinned": not self.options.unpinned,
                "rounds": self.options.rounds,
                "duration": self.options.duration,
            },
            "machine": machine(),
            "images": self.images,
            "kinds": {kind.name: {"title": kind.title, "version": kind.version} for kind in self.kinds},
            "absent": absent,
            "failures": {kind: rows for kind, rows in self.failures.items() if rows},
            "clock_skew": {kind: round(skew, 4) for kind, skew in skews.items()},
            "busy": {kind: round(median(found), 3) for kind, found in self.busy.items()},
            "samples": self.samples,
        }
        result["figures"] = bench_rows.as_data(bench_rows.figures(result))
        return result


def machine() -> dict[str, Any]:
    """What the figures were found on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        release = Path("/etc/os-release").read_text().splitlines()
        system = next((line.partition("=")[2].strip('"') for line in release if line.startswith("PRETTY_NAME=")), "")
    except OSError:
        model, system = "", ""
    return {
        "processor": model,
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": os.uname().release,
        "system": system,
        "load": os.getloadavg()[0],
    }


def progress(text: str) -> None:
    """One line on a terminal that says what is going on; "" removes it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def one_cpu() -> set[int]:
    """The CPU that everything is pinned to: the last allowed one, since interrupts tend to go to the first."""
    return {max(os.sched_getaffinity(0))}


class Parser(argparse.ArgumentParser):
    """argparse with one line for what is wrong."""

    def error(self, message: str) -> NoReturn:
        print(f"bench: {message} (see --help)", file=sys.stderr)
        sys.exit(2)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options. SystemExit(2) after one line for what is wrong."""
    names = list(dict.fromkeys(bench_rows.RUN_NAMES.get(o.name, o.name) for o in bench_rows.OPERATIONS))
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, and no peers")
    parser.add_argument("--rows", metavar="NAME,...", help=f"only these: {', '.join((*names, *WHOLE))}")
    parser.add_argument("--peers", metavar="NAME,...", help=f"all, none, or some of {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of the operations (7; quick: 2)")
    parser.add_argument("--duration", type=float, metavar="S", help="of threadcputimers (5; quick: 2)")
    parser.add_argument("--unpinned", action="store_true", help="let runs use all CPUs")
    parser.add_argument("--json", metavar="FILE", default=str(ROOT / "bench.json"), help="where to write it")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="what to print")
    options = parser.parse_args(arguments)
    options.rows = [*names, *WHOLE] if options.rows is None else options.rows.split(",")
    unknown = [name for name in options.rows if name not in (*names, *WHOLE)]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}")
    peers = options.peers or ("none" if options.quick else "all")
    options.peers = {"all": list(PEERS), "none": []}.get(peers, peers.split(","))
    unknown = [name for name in options.peers if name not in PEERS]
    if unknown:
        parser.error(f"no peer {', '.join(unknown)}")
    if options.rounds is None:
        options.rounds = 2 if options.quick else 7
    if options.duration is None:
        options.duration = 2.0 if options.quick else 5.0
    if not 1 <= options.rounds <= 1000:
        parser.error(f"--rounds: {options.rounds} is not from 1 to 1000")
    if not 0 < options.duration <= 60:
        parser.error(f"--duration: {options.duration:g} is not from 0 to 60 s")
    if not Path(options.json).absolute().parent.is_dir():
        parser.error(f"--json: no directory {Path(options.json).absolute().parent}")
    return options


def write(result: dict[str, Any], path: Path) -> None:
    """The result as JSON, the samples of a row on one line."""
    import re

    text = json.dumps(result, indent=1)
    text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    path.write_text(text + "\n")


def main() -> int:
    """Measure, print, write bench.json. 1 when something of trapline's could not be measured."""
    options = parse()
    started = time.time()
    with Peers() as peers:
        kinds = own_kinds() + peers.find(options.peers, progress)
        cpus = os.sched_getaffinity(0) if options.unpinned else one_cpu()
        bench = Bench(options, kinds, cpus)
        names = [name for name in options.rows if name not in WHOLE]
        names.sort(key=lambda name: name in bench_rows.RUN_LAST)
        for number in range(options.rounds if names else 0):
            bench.operations_round(number + 1, names)
        bench.whole_rounds(set(options.rows) & set(WHOLE))
        if "checkpoints" in options.rows:
            bench.checkpoint_rounds()
    progress("")
    result = bench.result(started, peers.absent)
    write(result, Path(options.json))
    print(json.dumps(result) if options.format == "json" else text_tables(result))
    own = {kind.name for kind in kinds if not kind.peer} | {"import-trio"}
    return 1 if own & set(result["failures"]) else 0


if __name__ == "__main__":
    sys.exit(main())
