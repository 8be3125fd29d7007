"""`make soak`: mixed load, kills and fuzzing for a long time, with nothing growing and nothing left behind.

    python workloads/soak.py [--minutes 30] [--kills 1000] [--fuzz 10] [--platform P] [--seed N]

The parts follow each other, on both platforms unless one is named: the load for `--minutes` (both platforms at
once), `--kills` in all, and the fuzzer for `--fuzz` minutes. 0 leaves a part out. The seed is printed and makes
everything but the host's scheduling repeatable. The exit status is 1 when anything was found.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import fuzz
import soak_kills
import soak_load

PLATFORMS = ("seccomp", "ptrace")


def natural(text: str) -> float:
    """A number from 0 on."""
    value = float(text)
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError("takes a number from 0 on")
    return value


def main(words: list[str]) -> int:
    """Run the parts; the exit status."""
    parser = argparse.ArgumentParser(prog="soak", description="Load, kills and fuzzing for a long time.")
    parser.add_argument("--minutes", type=natural, default=30, help="of mixed load. Default: 30")
    parser.add_argument("--kills", type=int, default=1000, help="of trapline, in all. Default: 1000")
    parser.add_argument("--fuzz", type=natural, default=10, metavar="MINUTES", help="of fuzzing. Default: 10")
    parser.add_argument("--platform", choices=PLATFORMS, help="only this one")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run. Default: the time")
    options = parser.parse_args(words)
    if options.kills < 0:
        parser.error("--kills takes a number from 0 on")
    if not (Path(__file__).parent / "bin" / "mixed_load").exists():
        parser.error("workloads/bin/mixed_load is not built: make workloads")
    platforms = [options.platform] if options.platform else list(PLATFORMS)
    seed = int(time.time()) if options.seed is None else options.seed
    show = sys.stderr.isatty()
    print(f"seed {seed}", flush=True)
    problems = []
    if options.minutes:
        problems += soak_load.run(platforms, options.minutes * 60, seed, show)
    for platform in platforms:
        count = options.kills // len(platforms)
        if count:
            problems += soak_kills.run(platform, count, seed, show)
    for platform in platforms:
        if options.fuzz:
            problems += fuzz.run(platform, options.fuzz * 60 / len(platforms), seed, show)
    for problem in problems:
        print(problem)
    print("nothing was found" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
