"""`make fuzz`: random owned calls with random arguments from guest code (fuzz_calls.c), and what came of it.

    python workloads/fuzz.py [--minutes 10] [--platform P] [--seed N] [--only CASES|chaos]

Two kinds of run, in turn. *single*: sequences of calls whose every result must be what it is natively; the first
case that differs is shown with the command that repeats it. *chaos*: processes and threads that do this to each
other all at once; the sentry must neither have an exception nor hang nor leave anything behind.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from leftovers import Leftovers

PROGRAM = str(Path(__file__).resolve().parent / "bin" / "fuzz_calls")
CASES = 150
CHAOS_MS = 4000
HANG = 120  # seconds
PLATFORMS = ("seccomp", "ptrace")


def guest(platform: str, arguments: list[str], leftovers: Leftovers) -> tuple[str, list[str]]:
    """Run the program in a sandbox: (its output, what was wrong)."""
    log = leftovers.state + ".log"
    flags = [f"--platform={platform}", f"--state-dir={leftovers.state}", f"--log={log}"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "trapline", "do", *flags, "--", PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": leftovers.temporary},
    )
    problems = []
    try:
        output, errors = process.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        problems.append(f"it did not end within {HANG} s")
    if process.returncode:
        problems.append(f"status {process.returncode}: {output.splitlines()[-1:]}")
    if "trapline" in errors or "Traceback" in errors:  # what else is there is a guest's libc, which has its reasons
        problems += ["on standard error:", *["  " + line for line in errors.splitlines()[-12:]]]
    if os.path.exists(log):
        text = Path(log).read_text(errors="replace")
        os.unlink(log)
        if "Traceback" in text:
            problems += ["in the log:", *["  " + line for line in text.splitlines()[-12:]]]
    leftovers.all_gone(5)
    problems += [f"left behind: {thing}" for thing in leftovers.left()]
    return output, problems


def cases(output: str) -> list[list[str]]:
    """The lines of each case."""
    found: list[list[str]] = []
    for line in output.splitlines():
        if line.startswith("case "):
            found.append([])
        if found:
            found[-1].append(line)
    return found


def single(platform: str, seed: int, leftovers: Leftovers, count: int = CASES) -> list[str]:
    """Compare sequences of calls with native ones; the problems."""
    arguments = ["single", str(seed), str(count)]
    native = subprocess.run(
        [PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG
    )
    output, problems = guest(platform, arguments, leftovers)
    expected, actual = cases(native.stdout), cases(output)
    for number, (theirs, ours) in enumerate(zip(expected, actual, strict=False)):
        if theirs != ours:
            at = next((i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), -1)
            problems += [f"case {number} differs:", *theirs[:at]]
            problems += [f"  native:   {theirs[at]}", f"  trapline: {ours[at]}"]
            problems.append(f"  repeat it: {PROGRAM} {' '.join(arguments)} {number}, natively and in trapline do")
            break
    else:
        if len(actual) != len(expected):
            problems.append(f"{len(actual)} of {len(expected)} cases were run")
    return problems


def chaos(platform: str, seed: int, leftovers: Leftovers, milliseconds: int = CHAOS_MS) -> list[str]:
    """Everybody against everybody; the problems."""
    return guest(platform, ["chaos", str(seed), str(milliseconds)], leftovers)[1]


def run(platform: str, seconds: float, seed: int, show: bool, only: str = "") -> list[str]:
    """Both kinds in turn until the time is over; the problems. One of each is run in any case."""
    leftovers = Leftovers()
    end = time.monotonic() + seconds
    problems: list[str] = []
    rounds = 0
    while not rounds or time.monotonic() < end:
        for kind, what in (("cases", single), ("chaos", chaos)):
            if only not in ("", kind):
                continue
            found = what(platform, seed + rounds, leftovers)
            if found:
                again = f"workloads/fuzz.py --minutes 0 --platform {platform} --only {kind} --seed {seed + rounds}"
                problems += [f"fuzz, {platform}, {kind}, seed {seed + rounds}: python {again}", *found]
        rounds += 1
        if show:
            sys.stderr.write(f"\r\x1b[K{platform}: {rounds} rounds of fuzzing, {len(problems)} lines of problems")
            sys.stderr.flush()
    if show:
        sys.stderr.write("\r\x1b[K")
    leftovers.close()
    print(f"fuzz, {platform}: {rounds} rounds from seed {seed}, {len(problems)} lines of problems", flush=True)
    return problems


def main(words: list[str]) -> int:
    """Run it; the exit status: 1 when anything was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Random owned calls with random arguments.")
    parser.add_argument("--minutes", type=float, default=10, help="in all. Default: 10; 0: one round")
    parser.add_argument("--platform", choices=PLATFORMS, help="only this one")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run. Default: the time")
    parser.add_argument("--only", choices=("cases", "chaos"), default="", help="only this kind of run")
    options = parser.parse_args(words)
    if not 0 <= options.minutes < 1e6:
        parser.error("--minutes takes a number from 0 on")
    if not os.path.exists(PROGRAM):
        parser.error("workloads/bin/fuzz_calls is not built: make workloads")
    platforms = [options.platform] if options.platform else list(PLATFORMS)
    seed = int(time.time()) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    problems = []
    for platform in platforms:
        seconds = options.minutes * 60 / len(platforms)
        problems += run(platform, seconds, seed, sys.stderr.isatty(), options.only)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
