"""Tables, verdicts and the plot of how cost grows with the number of processes, threads and timers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from bench_report import place
from bench_rows import number

AXES = ("processes", "threads", "timers")
COUNTS = (10, 100, 1000)
KINDS = ("native", "seccomp", "ptrace")
TITLES = {
    "getitimer": "getitimer",
    "clock": "clock_gettime, raw call",
    "setitimer": "setitimer",
    "nanosleep": "nanosleep 1 ns",
    "timer": "timer create+set+delete",
    "signal": "signal to self, to the thread",
    "signal-process": "signal to self, to the process",
    "kill": "kill of the last process",
    "kill-group": "kill of a group of one",
    "setpgid": "setpgid",
    "setsid": "setsid, the first call of a child",
    "fork": "fork",
    "exit": "exit, until it can be waited for",
    "wait": "wait for any child",
    "life": "fork, exit and wait together",
    "wait-none": "wait, WNOHANG: none ended",
    "thread": "thread create + join",
}
#: By how much a figure may differ by chance.
NOISE = 0.2


def verdict(found: Mapping[str, float], native: Mapping[str, float] | None) -> str:
    """How a cost grows from 10 over 100 to 1000.

    O(log n) adds as much from 100 to 1000 as from 10 to 100; O(n) adds ten times that. "host": what is added
    beyond that is no more than what the same adds natively.
    """
    low, middle, high = (found[str(count)] for count in COUNTS)
    added, before = high - middle, middle - low
    if high <= min(low, middle) * (1 + NOISE):
        return "flat"
    if added <= max(3 * before, NOISE * middle):
        return "at most log"
    if native is not None and added <= 1.5 * (native["1000"] - native["100"]) + NOISE * middle:
        return "host"
    return "GROWS"


def rows(result: Mapping[str, Any], axis: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, title, medians by kind) of the operations that were measured whole."""
    found = result["medians"].get(axis, {})
    whole = {
        name: {kind: by_count for kind, by_count in found[name].items() if len(by_count) == len(COUNTS)}
        for name in TITLES
        if name in found
    }
    return [(name, TITLES[name], kinds) for name, kinds in whole.items() if kinds]


def verdicts(result: Mapping[str, Any]) -> dict[tuple[str, str, str], str]:
    """By axis, operation and kind."""
    return {
        (axis, name, kind): verdict(by_count, kinds.get("native") if kind != "native" else None)
        for axis in AXES
        for name, _, kinds in rows(result, axis)
        for kind, by_count in kinds.items()
    }


def text(result: Mapping[str, Any]) -> str:
    """For a terminal."""
    lines = []
    for axis in AXES:
        if axis not in result["medians"]:
            continue
        head = "".join(f"{kind + ' at 10':>16}{'100':>8}{'1000':>8}  {'':<11}" for kind in KINDS)
        lines.append(f"{axis + ', ns':<34}{head}".rstrip())
        for _, title, kinds in rows(result, axis):
            cells = []
            for kind in KINDS:
                if kind not in kinds:
                    cells.append(f"{'-':>16}{'-':>8}{'-':>8}  {'':<11}")
                    continue
                a, b, c = (number(kinds[kind][str(count)]) for count in COUNTS)
                judged = verdict(kinds[kind], kinds.get("native") if kind != "native" else None)
                cells.append(f"{a:>16}{b:>8}{c:>8}  {judged:<11}")
            lines.append(f"  {title:<32}{''.join(cells)}".rstrip())
        for kind, per_item in memory_per_item(result, axis).items():
            lines.append(f"  sentry memory, {kind}: {per_item:.2f} KiB for each of the {axis}")
    lines += [f"failed: {failure}" for failure in result["failures"]]
    return "\n".join(lines)


def memory_per_item(result: Mapping[str, Any], axis: str) -> dict[str, float]:
    """KiB of the sentry for each process, thread or timer, by kind: the slope from 10 to 1000."""
    found = result["medians"].get(axis, {}).get("memory", {})
    return {kind: (c["1000"] - c["10"]) / 990 for kind, c in found.items() if len(c) == len(COUNTS)}


def page(result: Mapping[str, Any]) -> str:
    """docs/growth.md."""
    lines = [
        "# How cost grows", "",
        f"<!-- made by `make growth` -->{place(result)}; everything of a run on one CPU, the least of "
        f"{result['rounds']} rounds' medians (what else runs on the machine only adds).", "",
        "What an operation costs beside 10, 100 and 1000 sleeping processes (children of the one that measures),",
        "sleeping threads of its own, or armed timers of its own, in ns. `make growth` repeats it.", "",
        "![Cost at 100 and at 1000, in times the cost at 10](growth.svg)", "",
        "Verdicts, from what 100 to 1000 adds: *flat*, within 20 %; *at most log*, no more than three times what 10",
        "to 100 adds (O(log n) adds the same, O(n) ten times as much); *host*, more, but natively the same is added;",
        "**GROWS**, more than O(log n).",
        "",
    ]  # fmt: skip
    for axis in AXES:
        lines += [
            f"## Beside {axis}", "",
            "| ns at 10 / 100 / 1000 | native | | seccomp | | ptrace | |",
            "|---|---:|---|---:|---|---:|---|",
        ]  # fmt: skip
        for _, title, kinds in rows(result, axis):
            cells = []
            for kind in KINDS:
                if kind not in kinds:
                    cells += ["-", ""]
                    continue
                judged = verdict(kinds[kind], kinds.get("native") if kind != "native" else None)
                cells.append(" / ".join(number(kinds[kind][str(count)]) for count in COUNTS))
                cells.append(f"**{judged}**" if judged == "GROWS" else judged)
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        per_item = memory_per_item(result, axis)
        lines += ["", "The sentry's memory for each of them: "
                  + ", ".join(f"{kib:.2f} KiB on {kind}" for kind, kib in per_item.items()) + ".", ""]  # fmt: skip
    lines += [
        "## What grows, and why", "",
        "- Natively a wait for any child looks at every child until it finds a zombie (kernel/exit.c), and a fork",
        "  copies a mapping for each thread's stack, which the exit takes down.",
        "- The host's `wait4(-1)` is also how the sentry takes ptrace stops, and there it looks at every tracee: the",
        "  native row *none ended* is one such look. As the SIGCHLDs of several stops merge into one, it is",
        "  repeated until it finds nothing. With many threads in one process, the rusage that it gives is summed",
        "  over all of them too (perf: as much again). It shows in all that needs stops: signals that are",
        "  delivered, births and deaths, and on the ptrace platform every owned call.",
        "- In the sentry itself, children with something to report, members of a process group, children of a",
        "  thread and threads with a queued signal are found by indexes that are plain data in its state",
        "  (sentry/kernel/family.py), timers by a heap. kill(-1) and kill of a group cost O(members). Before these",
        "  indexes 1000 processes cost, on seccomp and with the figure at 10: `wait` 350 µs (66), `setpgid` 27 (11),",
        "  `kill` of a group of one 52 (34), of a process 96 (58), and with 1000 threads a timer's life 92 (46).",
    ]  # fmt: skip
    lines += [f"- Failed: {failure}" for failure in result["failures"]]
    return "\n".join(lines) + "\n"


STYLE = """
  .ground { fill: #ffffff } text { fill: #24292f; font: 12px system-ui, sans-serif }
  .title { font-size: 15px; font-weight: 600 } .quiet { fill: #57606a }
  .grid { stroke: #d0d7de; stroke-width: 1; fill: none }
  .line { fill: none; stroke-width: 2 } .native { stroke: #57606a; stroke-dasharray: 2 3 }
  .seccomp { stroke: #0550ae } .ptrace { stroke: #bc4c00; stroke-dasharray: 7 3 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 } text { fill: #e6edf3 } .quiet { fill: #8d96a0 } .grid { stroke: #30363d }
    .native { stroke: #8d96a0 } .seccomp { stroke: #79c0ff } .ptrace { stroke: #ffa657 }
  }
"""


def plot(result: Mapping[str, Any]) -> str:
    """docs/growth.svg: a small panel for each operation and axis, cost in times the cost at 10, both scales
    logarithmic. The thin line is O(log n)."""
    names = [name for name in TITLES if any(name in result["medians"].get(axis, {}) for axis in AXES)]
    left, top, width, height, gap = 215, 92, 190, 40, 12
    full_width = left + len(AXES) * (width + gap) + 16
    full_height = top + len(names) * (height + gap) + 10
    every = [
        by_count[str(count)] / by_count["10"]
        for axis in AXES
        for _, _, kinds in rows(result, axis)
        for by_count in kinds.values()
        for count in COUNTS
    ]
    high = math.log10(max([*every, 4.0])) * 1.05
    low = math.log10(min([*every, 0.8]))

    def at(panel_x: float, panel_y: float, index: int, times: float) -> str:
        y = panel_y + height - height * (math.log10(times) - low) / (high - low)
        return f"{panel_x + 8 + (width - 16) * index / 2:.1f},{y:.1f}"

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full_width} {full_height}" width="{full_width}" '
        f'height="{full_height}" role="img" aria-label="Growth of cost from 10 to 1000">',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{full_width}" height="{full_height}" rx="6"/>',
        '<text class="title" x="16" y="25">Cost beside 10, 100 and 1000, in times that beside 10</text>',
    ]
    x = 16
    for kind in KINDS:
        out.append(f'<path class="line {kind}" d="M{x},46H{x + 28}"/><text x="{x + 34}" y="50">{kind}</text>')
        x += 110
    out.append(f'<path class="grid" d="M{x},46H{x + 28}"/><text class="quiet" x="{x + 34}" y="50">O(log n)</text>')
    for column, axis in enumerate(AXES):
        center = left + column * (width + gap) + width / 2
        out.append(f'<text x="{center:.0f}" y="80" text-anchor="middle">{axis}</text>')
    for row, name in enumerate(names):
        panel_y = top + row * (height + gap)
        base = panel_y + height / 2 + 4
        out.append(f'<text x="{left - 12}" y="{base:.0f}" text-anchor="end">{escape(TITLES[name])}</text>')
        for column, axis in enumerate(AXES):
            panel_x = left + column * (width + gap)
            log_n = " ".join(at(panel_x, panel_y, i, i + 1) for i in range(3))
            out.append(f'<path class="grid" d="M{panel_x},{panel_y + height}H{panel_x + width}"/>')
            out.append(f'<polyline class="grid" points="{log_n}"/>')
            kinds = next((k for n, _, k in rows(result, axis) if n == name), {})
            for kind in KINDS:
                if kind in kinds:
                    points = [kinds[kind][str(count)] / kinds[kind]["10"] for count in COUNTS]
                    line = " ".join(at(panel_x, panel_y, i, times) for i, times in enumerate(points))
                    out.append(f'<polyline class="line {kind}" points="{line}"/>')
            most = max((k["1000"] / k["10"] for k in kinds.values()), default=0)
            if most >= 1.5:
                out.append(f'<text class="quiet" x="{panel_x + 8}" y="{panel_y + 11}">{number(most)}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
