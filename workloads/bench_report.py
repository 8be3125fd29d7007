"""Tables of a benchmark's result, and the pages that show it.

`make bench-docs` turns bench.json, which `make bench` wrote, into docs/benchmarks.json (the same), .md and
.svg, and into README's table: everything that is shown comes from one file, and tests/unit checks that it does.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bench_rows import OPERATIONS, WHOLE, number, spread

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- made by `make bench-docs` from docs/benchmarks.json -->"
END = "<!-- end of the benchmark -->"
PARTS = {
    "owned": "answered by trapline's own kernel",
    "lent": "served by the host kernel alone",
}
Result = Mapping[str, Any]


def middle(result: Result, kind: str, row: str) -> float | None:
    """The median of a row in one kind of run."""
    found = result["samples"].get(kind, {}).get(row)
    return median(found) if found else None


def kinds_of(result: Result) -> list[str]:
    """The kinds of run in the order of the columns, those that gave figures."""
    return [kind for kind in result["kinds"] if result["samples"].get(kind)]


def cell(result: Result, kind: str, operation: Any) -> str:
    """A row's figure as a ratio to the native one; a count as it is."""
    value, native = middle(result, kind, operation.name), middle(result, "native", operation.name)
    if value is None:
        lost = result["failures"].get(kind, {})
        return "failed" if lost.keys() & {operation.name, operation.name.partition("-")[0], ""} else "-"
    if not operation.unit:
        return f"{value:.0f}"
    if kind == "native" or not native:
        return number(value)
    return number(value / native)


def text_tables(result: Result) -> str:
    """For a terminal."""
    kinds = kinds_of(result)
    short = {"native": "native ns", "runsc-ptrace": "runsc-pt", "runsc-systrap": "runsc-sys"}
    lines = [f"{'':<42}" + "".join(f"{short.get(kind, kind):>10}" for kind in kinds)]
    for part, meaning in PARTS.items():
        rows = [o for o in OPERATIONS if o.part == part and any(middle(result, k, o.name) for k in kinds)]
        if rows:
            lines.append(f"{part}: {meaning}; times native")
        lines += [f"  {o.title:<40}" + "".join(f"{cell(result, kind, o):>10}" for kind in kinds) for o in rows]
    whole = [row for row in WHOLE if any(middle(result, kind, row) for kind in kinds)]
    if whole:
        lines.append("whole runs")
    for row in whole:
        title, unit = WHOLE[row]
        lines.append(f"  {title + ', ' + unit:<40}" + "".join(f"{_whole(result, k, row):>10}" for k in kinds))
    lines += ["", f"{'asked (at most)':<46}{'trapline':>9}{'must':>7}{'aim':>6}  {'':<9}{'ptrace':>7}  medians"]
    for figure in result["figures"]:
        value = "-" if figure["value"] is None else number(figure["value"])
        other = "" if figure["other"] is None else number(figure["other"])
        name = f"  {figure['title']}{', ' + figure['unit'] if figure['unit'] not in ('x', '') else ''}"
        lines.append(
            f"{name:<46}{value:>9}{figure['must']:>7.3g}{figure['aim']:>6.3g}  {figure['verdict']:<9}{other:>7}  "
            f"{figure['note']}".rstrip()
        )
    lines += [f"not compared: {name}: {why}" for name, why in result["absent"].items()]
    for kind, rows in result["failures"].items():
        lines += [f"failed: {kind}{', ' + row if row else ''}: {why}" for row, why in rows.items()]
    return "\n".join(lines)


def _whole(result: Result, kind: str, row: str) -> str:
    value = middle(result, kind, row)
    if value is None:
        return "failed" if row in result["failures"].get(kind, {}) else "-"
    return number(value * 1e3 if WHOLE[row][1] == "ms" else value)


def _header(result: Result, kinds: list[str], first: str) -> list[str]:
    titles = [result["kinds"][kind]["title"] for kind in kinds]
    return [f"| {first} | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(kinds)]


def operations_table(result: Result, part: str, kinds: list[str]) -> list[str]:
    """Markdown: native in ns, the others as ratios."""
    lines = _header(result, kinds, f"*{part}*: {PARTS[part]}")
    for operation in OPERATIONS:
        if operation.part == part and any(middle(result, kind, operation.name) for kind in kinds):
            cells = [cell(result, kind, operation) for kind in kinds]
            cells = [f"{c} ns" if k == "native" and operation.unit else c for k, c in zip(kinds, cells, strict=True)]
            lines.append(f"| {operation.title} | " + " | ".join(cells) + " |")
    return lines


def whole_table(result: Result) -> list[str]:
    """Markdown: whole runs, in ms and s."""
    kinds = [kind for kind in kinds_of(result) if any(middle(result, kind, row) for row in WHOLE)]
    lines = _header(result, kinds, "whole runs")
    for row, (title, unit) in WHOLE.items():
        if not any(middle(result, kind, row) for kind in kinds):
            continue
        lines.append(f"| {title}, {unit} | " + " | ".join(_whole(result, kind, row) for kind in kinds) + " |")
    return lines


def figures_table(result: Result) -> list[str]:
    """Markdown: what was asked for, and what was found."""
    lines = [
        "| asked: at most | must | aim | seccomp | quartiles | ptrace | |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for figure in result["figures"]:
        unit = {"x": "", "": ""}.get(figure["unit"], f", {figure['unit']}")
        low, high = figure["low"], figure["high"]
        lines.append(
            f"| {figure['title']}{unit} | {figure['must']:.3g} | {figure['aim']:.3g} "
            f"| {'-' if figure['value'] is None else number(figure['value'])} "
            f"| {'-' if low is None else f'{number(low)} - {number(high)}'} "
            f"| {'' if figure['other'] is None else number(figure['other'])} | {figure['verdict']} |"
        )
    return lines


def spread_table(result: Result) -> list[str]:
    """Markdown: medians and quartiles in ns of every operation."""
    kinds = kinds_of(result)
    lines = _header(result, kinds, "ns")
    for operation in OPERATIONS:
        cells = []
        for kind in kinds:
            found = result["samples"].get(kind, {}).get(operation.name)
            if not found:
                cells.append("-")
                continue
            low, mid, high = (f"{v:.0f}" if not operation.unit else number(v) for v in spread(found))
            cells.append(f"{mid} ({low} - {high})")
        lines.append(f"| {operation.title} | " + " | ".join(cells) + " |")
    return lines


def _images(result: Result) -> list[str]:
    """How checkpoints were measured."""
    images = result.get("images")
    if not images:
        return []
    return [
        f"Checkpoints: of a program with {images['mib']} MiB that cannot be compressed; images are {images['where']},",
        "uncompressed, not synchronised, on all CPUs. Time is from the exec of the command to its end, for a restore",
        "to the first line that the program prints. A pause is the longest time between two readings of the clock in a",
        "loop of the program's.",
        "",
    ]


def place(result: Result) -> str:
    """One sentence: when, and on what."""
    found = result["machine"]
    return (
        f"{result['date'][:10]}, {found['system']}, kernel {found['kernel']}, {found['cpus']} CPUs "
        f"({found['processor']}), {found['memory_gib']} GiB"
    )


def readme_part(result: Result) -> str:
    """What README shows, between its two marks."""
    options = result["options"]
    kinds = [kind for kind in kinds_of(result) if kind != "tracer"]
    how = "everything of a run on one CPU" if options["pinned"] else "on all CPUs"
    lines = [
        BEGIN,
        f"{place(result)}; {how}; medians of {options['rounds']} interleaved rounds, as times native.",
        "Trust the ratios, not the nanoseconds. Left of 1 is faster than native.",
        "",
        "![What each operation costs, in times native](docs/benchmarks.svg)",
        "",
        *operations_table(result, "owned", kinds), "",
        *operations_table(result, "lent", kinds), "",
        *whole_table(result), "",
        "`make bench` repeats it (`BENCHFLAGS=--quick` without the peers). [docs/benchmarks.md](docs/benchmarks.md)"
        " has the spread,", "what each row means, and what was asked for.",
        END,
    ]  # fmt: skip
    return "\n".join(lines)


def page(result: Result) -> str:
    """docs/benchmarks.md."""
    options = result["options"]
    kinds = kinds_of(result)
    lines = [
        "# Benchmarks", "",
        f"<!-- made by `make bench-docs` from benchmarks.json -->{place(result)}.", "",
        f"{options['rounds']} rounds{' (--quick)' if options['quick'] else ''}, "
        f"{'everything of a run on one CPU' if options['pinned'] else 'on all CPUs'}, "
        f"{result['seconds'] / 60:.0f} minutes; load average {result['machine']['load']:.1f} at the end.", "",
        "![What each operation costs, in times native](benchmarks.svg)", "",
        "## How to repeat it", "",
        "    make bench                        # all, with the peers that are installed; writes bench.json",
        "    make bench BENCHFLAGS=--quick     # two minutes, no peers",
        "    make bench BENCHFLAGS=--unpinned  # on all CPUs",
        "    make bench-docs                   # this page, its chart and README's table from bench.json", "",
        "On Debian the peers are `apt-get install strace proot runsc user-mode-linux`; what is missing is left out.",
        "",
        "## How to read it", "",
        "- Each operation times itself from inside, so the start of what it runs under is not in it. As the clock",
        "  in there may be an emulated one, it is compared with a clock outside (`clock_skew` in the JSON file).",
        "- A round runs every kind once, in turn: native, trapline, tracer, peers. A round's figure is the median of",
        "  three runs of at least 25 ms; what is shown is the median over the rounds, with the quartiles below. The",
        "  asked ratios are medians of the rounds' ratios.",
        "- With everything on one CPU, the time that passes is the CPU time of guest, sentry and host together.",
        "- *Owned* operations are decided in trapline's Python; fork and exec are then executed by the host.",
        "  *Lent* ones are not seen by trapline at all: what they cost beyond 1 is the host's seccomp filter. The",
        "  peers serve all of them (strace and proot stop at them), so the lent part compares two designs, not two",
        "  implementations of one: a guest of trapline talks to the host kernel there.",
        "- The C tracer (workloads/tracer.c) is the floor of ptrace: it stops at these calls and does nothing.",
        "",
        *operations_table(result, "owned", kinds), "",
        *operations_table(result, "lent", kinds), "",
        *whole_table(result), "",
        "CPU time of a whole run is that of every process it waited for. UML's is with its boot. threadcputimers"
        f" arms 1000 timers of 10 ms on its own CPU time and sleeps for {options['duration']:g} s.", "",
        "## What was asked for", "",
        "Ratios are to native where nothing else is said. *ptrace* is the same on the ptrace platform.", "",
        *figures_table(result), "",
        *_images(result),
        "## Spread", "", "Median (lower quartile - upper quartile) over the rounds.", "",
        *spread_table(result), "",
        "## What each row is", "",
        *(f"- **{o.title}**: {o.meaning}" for o in OPERATIONS), "",
        "## Versions", "",
        *(f"- {found['title']}: {found['version']}" for found in result["kinds"].values()),
        *(f"- {name}: {why}" for name, why in result["absent"].items()),
    ]  # fmt: skip
    for kind, rows in result["failures"].items():
        lines += [f"- {kind}, {row or 'all'}: failed: {why}" for row, why in rows.items()]
    return "\n".join(lines) + "\n"


def with_part(text: str, part: str) -> str:
    """README with its benchmark part replaced. ValueError where the marks are not there once."""
    found = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if len(found.findall(text)) != 1:
        raise ValueError(f"README.md has no part between {BEGIN} and {END}")
    return found.sub(lambda _: part, text)


def main() -> int:
    """Write the pages. 2 where bench.json is not there or not complete."""
    from bench import write
    from bench_chart import chart
    from bench_rows import as_data, figures

    source = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench.json"
    try:
        result = json.loads(source.read_text())
    except (OSError, ValueError) as error:
        print(f"bench_report: {source}: {error}: `make bench` writes it", file=sys.stderr)
        return 2
    if result.get("schema") != 2 or "native" not in result["samples"]:
        print(f"bench_report: {source} is not of a whole `make bench`", file=sys.stderr)
        return 2
    result["figures"] = as_data(figures(result))  # what is asked may have changed since
    docs = ROOT / "docs"
    readme = with_part((ROOT / "README.md").read_text(), readme_part(result))
    write(result, docs / "benchmarks.json")
    (docs / "benchmarks.md").write_text(page(result))
    (docs / "benchmarks.svg").write_text(chart(result))
    (ROOT / "README.md").write_text(readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
