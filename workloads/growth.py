"""Cost against 10, 100 and 1000 processes, threads and armed timers: natively and on both platforms.

Run by `make growth`; writes docs/growth.json, .md and .svg. Runs take turns, everything is on one CPU, and a
figure is the least of the rounds' medians that workloads/growth.c found: what else runs on the machine only
adds to it, and would be taken for growth. Native runs are there since the host's
own cost grows in places, which a guest's then does too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import growth_report
import psutil
from bench import machine, one_cpu, progress, write
from bench_kinds import BIN, ROOT, do, last_line
from bench_whole import Failed, Sandbox
from growth_report import AXES, COUNTS, KINDS

LIMIT = 240  # seconds for one run


def operations() -> list[str]:
    """The operations of workloads/growth.c."""
    done = subprocess.run([str(BIN / "growth"), "--list"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def command_of(kind: str, *words: str) -> list[str]:
    """workloads/growth.c in a kind of run."""
    command = [str(BIN / "growth"), *words]
    return command if kind == "native" else do(kind, *command)


def costs(kind: str, axis: str, count: int, names: list[str]) -> dict[str, float]:
    """Nanoseconds of each operation beside so many. Failed."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, one_cpu())
    try:
        process = subprocess.Popen(
            command_of(kind, axis, str(count), ",".join(names)),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        os.sched_setaffinity(0, allowed)
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise Failed(f"no end after {LIMIT} s") from None
    if process.returncode:
        raise Failed(f"status {process.returncode}: {last_line(err)}")
    lines = [line.split() for line in out.splitlines()]
    return {words[0]: float(words[2]) for words in lines if len(words) == 3 and words[1] == "median"}


def memory(kind: str, axis: str, count: int) -> float:
    """KiB that the sentry has resident beside so many. Failed."""
    with Sandbox(command_of(kind, axis, str(count), "hold")) as sandbox:
        sandbox.wait_for("ready")
        time.sleep(0.5)
        return sandbox.resident() / 1024


class Growth:
    """The figures as they come in."""

    def __init__(self) -> None:
        self.samples: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}
        self.failures: list[str] = []

    def add(self, axis: str, name: str, kind: str, count: int, figure: float) -> None:
        """One more figure."""
        by_kind = self.samples.setdefault(axis, {}).setdefault(name, {})
        by_kind.setdefault(kind, {}).setdefault(str(count), []).append(figure)

    def guarded(self, what: str, body: Callable[[], None]) -> None:
        """What goes wrong is said at the end, and the others go on."""
        progress(what)
        try:
            body()
        except (Failed, OSError, psutil.Error) as error:
            self.failures.append(f"{what}: {error}")

    def one_run(self, kind: str, axis: str, count: int, names: list[str]) -> None:
        """All operations beside so many, once."""
        for name, ns in costs(kind, axis, count, names).items():
            self.add(axis, name, kind, count, ns)

    def one_memory(self, kind: str, axis: str, count: int) -> None:
        """The sentry's memory beside so many."""
        self.add(axis, "memory", kind, count, memory(kind, axis, count))


class Parser(argparse.ArgumentParser):
    """argparse with one line for what is wrong."""

    def error(self, message: str) -> NoReturn:
        print(f"growth: {message} (see --help)", file=sys.stderr)
        sys.exit(2)


def main() -> int:
    """Measure, print, write the pages. 1 when something could not be measured."""
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (5)")
    parser.add_argument("--axis", choices=AXES, help="only this one; the pages are not written then")
    options = parser.parse_args()
    if not 1 <= options.rounds <= 100:
        parser.error(f"--rounds: {options.rounds} is not from 1 to 100")
    names, growth, started = operations(), Growth(), time.time()
    axes = [options.axis] if options.axis else list(AXES)
    for turn in range(options.rounds):
        for axis in axes:
            for count in COUNTS:
                for kind in KINDS:
                    what = f"round {turn + 1}: {count} {axis}, {kind}"
                    growth.guarded(what, lambda k=kind, a=axis, c=count: growth.one_run(k, a, c, names))
    for axis in axes:
        for count in COUNTS:
            for kind in KINDS[1:]:
                what = f"memory of {count} {axis}, {kind}"
                growth.guarded(what, lambda k=kind, a=axis, c=count: growth.one_memory(k, a, c))
    progress("")
    result: dict[str, Any] = {
        "schema": 1,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started),
        "rounds": options.rounds,
        "machine": machine(),
        "medians": {  # the least of the rounds'
            axis: {
                name: {kind: {count: min(found) for count, found in c.items()} for kind, c in kinds.items()}
                for name, kinds in rows.items()
            }
            for axis, rows in growth.samples.items()
        },
        "failures": growth.failures,
    }
    print(growth_report.text(result))
    if not options.axis:
        docs = Path(ROOT) / "docs"
        write(result, docs / "growth.json")
        result = json.loads((docs / "growth.json").read_text())
        (docs / "growth.md").write_text(growth_report.page(result))
        (docs / "growth.svg").write_text(growth_report.plot(result))
    return 1 if growth.failures else 0


if __name__ == "__main__":
    sys.exit(main())
