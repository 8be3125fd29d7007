"""The load part of the soak: mixed_load under one sandbox for some minutes, and what the sentry holds meanwhile.

What counts as growth, after a warm-up of a fifth of the time:

* kernel state: at a quiet moment there is one task and nothing else, exactly;
* descriptors, and objects that the collector knows: as many at the end as after the warm-up. Objects may differ
  by OBJECTS, what a cache or a half-used pool of the interpreter holds;
* memory: at most MEMORY_KIB more, one arena of CPython's allocator and its fragmentation. At 200 scenarios a
  second for 30 minutes that is 3 bytes for each, less than any object that could be forgotten.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import psutil
from leftovers import Leftovers

HERE = Path(__file__).resolve().parent
OBJECTS = 64
MEMORY_KIB = 1024
SILENCE = 120  # seconds without a finished round: something hangs
QUIET = {"tasks": 1, "groups": 1, "tracees": 1, "tracees by tid": 1}


class Load:
    """One platform's run."""

    def __init__(self, platform: str, seconds: float, seed: int, workers: int = 4) -> None:
        self.platform = platform
        self.leftovers = Leftovers()
        self.samples = Path(self.leftovers._own) / "samples"
        self.problems: list[str] = []
        self.last = "starting"
        self.command = [str(HERE / "bin" / "mixed_load"), str(round(seconds)), str(seed), str(workers)]
        flags = [f"--platform={platform}", f"--state-dir={self.leftovers.state}"]
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(HERE / "soak_sentry.py"), str(self.samples), "do", *flags, "--", *self.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": self.leftovers.temporary, "SOAK_SECONDS": str(min(5.0, seconds / 40))},
        )
        self.heard = time.monotonic()
        self.ended = 0.0
        self.summary = ""

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def read(self) -> bool:
        """Take what the load said; False at its end."""
        part = os.read(self.output.fileno(), 65536)
        for line in part.decode(errors="replace").splitlines():
            if line.startswith("round "):
                self.last = line
                if not self.leftovers.namespaces:
                    self.leftovers.note_namespaces(self.process.pid)
            else:
                self.problems.append(line)
        self.heard = time.monotonic()
        self.ended = time.time()
        return bool(part)

    def give_up(self) -> None:
        """It hangs: say in which state everybody is, and end it."""
        self.problems.append(f"no round finished within {SILENCE} s; the last was: {self.last}")
        for process in psutil.Process(self.process.pid).children(recursive=True):
            for thread in sorted(Path(f"/proc/{process.pid}/task").glob("*")):
                try:
                    lines = (thread / "status").read_text().splitlines()
                    facts = [line for line in lines if line.split(":")[0] in ("State", "NSpid", "PPid", "SigBlk")]
                    wait, call = ((thread / name).read_text().strip() for name in ("wchan", "syscall"))
                    text = " ".join(" ".join(facts).split())
                    self.problems.append(f"  {process.name()} {text}: {wait}, {call}")
                except OSError:
                    continue
        self.process.kill()

    def finish(self) -> list[str]:
        """After the end: every problem, one line each."""
        status = self.process.wait()
        self.output.close()
        if status:
            self.problems.append(f"status {status}")
        self.leftovers.all_gone(5)
        self.problems += [f"left behind: {thing}" for thing in self.leftovers.left(ended=self.ended)]
        try:
            text = self.samples.read_text(encoding="ascii")
        except OSError:
            text = ""
        self.problems += judge([json.loads(line) for line in text.splitlines()])
        self.summary = describe([json.loads(line) for line in text.splitlines()])
        self.leftovers.close()
        return self.problems


def middle(values: list[float]) -> float:
    """The median."""
    return sorted(values)[len(values) // 2]


def after_warm_up(samples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(the first, the last quarter of what follows the warm-up)."""
    steady = samples[len(samples) // 5 :]
    part = max(1, len(steady) // 4)
    return steady[:part], steady[-part:]


def judge(samples: list[dict[str, Any]]) -> list[str]:
    """What grew."""
    problems = []
    if len(samples) < 5:
        return [f"only {len(samples)} quiet moments were seen: nothing can be said about growth"]
    for sample in samples:
        for name, count in sample["kernel"].items():
            if count != QUIET.get(name, 0):
                problems.append(f"quiet, but {count} {name}")
    first, last = after_warm_up(samples)
    for name, bound, unit in (
        ("descriptors", 0, ""), ("objects", OBJECTS, ""), ("pss", MEMORY_KIB, " KiB"), ("rss", MEMORY_KIB, " KiB"),
    ):  # fmt: skip
        before, after = (middle([sample[name] for sample in part]) for part in (first, last))
        if after - before > bound:
            problems.append(f"{name} grew from {before}{unit} to {after}{unit}; {bound}{unit} is the bound")
    return sorted(set(problems))


def slope(samples: list[dict[str, Any]], name: str) -> float:
    """Growth an hour after the warm-up, by least squares."""
    steady = samples[len(samples) // 5 :]
    times = [sample["time"] for sample in steady]
    values = [sample[name] for sample in steady]
    mean_time, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - mean_time) ** 2 for t in times)
    both = zip(times, values, strict=True)
    return 3600 * sum((t - mean_time) * (v - mean) for t, v in both) / spread if spread else 0.0


def describe(samples: list[dict[str, Any]]) -> str:
    """One line of figures."""
    if len(samples) < 5:
        return ""
    first, last = after_warm_up(samples)
    parts = []
    for name in ("pss", "rss", "objects", "descriptors"):
        before, after = (middle([sample[name] for sample in part]) for part in (first, last))
        parts.append(f"{name} {before} -> {after} ({slope(samples, name):+.0f} an hour)")
    return f"{len(samples)} quiet moments, {samples[-1]['calls']} owned calls; " + ", ".join(parts)


def run(platforms: list[str], seconds: float, seed: int, show: bool) -> list[str]:
    """Load every platform at the same time; the problems. `show`: progress, on the terminal."""
    loads = [Load(platform, seconds, seed) for platform in platforms]
    waiting = selectors.DefaultSelector()
    for load in loads:
        waiting.register(load.output, selectors.EVENT_READ, load)
    while waiting.get_map():
        for key, _ in waiting.select(1):
            if not key.data.read():
                waiting.unregister(key.fileobj)
        for load in loads:
            if time.monotonic() - load.heard > SILENCE and load.process.poll() is None:
                load.heard = time.monotonic()
                load.give_up()
        if show:
            sys.stderr.write("\r\x1b[K" + "   ".join(f"{load.platform}: {load.last}" for load in loads))
            sys.stderr.flush()
    if show:
        sys.stderr.write("\r\x1b[K")
    problems = []
    for load in loads:
        found = load.finish()
        print(f"load, {load.platform}: {load.last}; {load.summary}", flush=True)
        problems += [f"load, {load.platform}: {problem}" for problem in found]
    return problems
