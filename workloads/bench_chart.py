"""The benchmark's chart: one SVG, no fonts of its own, readable on light and on dark.

A row is an operation, a mark a kind of run, the place its cost in times native on a logarithmic scale. The
owned and the lent part stand apart: they compare different things (see docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from bench_report import PARTS, middle
from bench_rows import OPERATIONS

WIDTH, LEFT, RIGHT = 860, 300, 28
ROW, TOP = 21, 78
#: Marks: a shape and a style class for each kind; seccomp's is the only filled one, and fits into ptrace's.
MARKS = {
    "seccomp": "circle",
    "ptrace": "square",
    "tracer": "bar",
    "strace": "cross",
    "proot": "plus",
    "uml": "diamond",
}
RUNSC = "triangle"
STYLE = """
  .ground { fill: #ffffff } text { fill: #24292f; font: 12px system-ui, sans-serif }
  .title { font-size: 15px; font-weight: 600 } .part { font-weight: 600 } .quiet { fill: #57606a }
  .grid { stroke: #d0d7de; stroke-width: 1 } .one { stroke: #24292f; stroke-width: 1.5 }
  .mark { stroke-width: 1.8; fill: none } .span { stroke: #d8dee4; stroke-width: 5; stroke-linecap: round }
  .seccomp { stroke: #0550ae; fill: #0550ae } .ptrace { stroke: #218bff }
  .tracer { stroke: #57606a } .strace { stroke: #8250df } .proot { stroke: #1a7f37 }
  .uml { stroke: #bf3989 } .runsc { stroke: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 } text { fill: #e6edf3 } .quiet { fill: #8d96a0 }
    .grid { stroke: #30363d } .one { stroke: #e6edf3 } .span { stroke: #21262d }
    .seccomp { stroke: #79c0ff; fill: #79c0ff } .ptrace { stroke: #388bfd }
    .tracer { stroke: #8d96a0 } .strace { stroke: #bc8cff } .proot { stroke: #56d364 }
    .uml { stroke: #f778ba } .runsc { stroke: #ffa657 }
  }
"""


def style_of(kind: str) -> tuple[str, str]:
    """Shape and class of a kind of run."""
    if kind.startswith("runsc"):
        return ("inverted" if kind.endswith("systrap") else RUNSC), "runsc"
    return MARKS.get(kind, "cross"), kind


def mark(shape: str, style: str, x: float, y: float) -> str:
    """One mark, about 9 pixels wide."""
    if shape == "circle":
        return f'<circle class="mark {style}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    points = {
        "square": "M-6,-6H6V6H-6Z",
        "diamond": "M0,-5L5,0L0,5L-5,0Z",
        "triangle": "M0,-5L5,4H-5Z",
        "inverted": "M0,5L5,-4H-5Z",
        "cross": "M-4,-4L4,4M-4,4L4,-4",
        "plus": "M-5,0H5M0,-5V5",
        "bar": "M0,-6V6",
    }[shape]
    return f'<path class="mark {style}" transform="translate({x:.1f},{y:.1f})" d="{points}"/>'


def chart(result: Mapping[str, Any]) -> str:
    """The SVG of a benchmark's result."""
    kinds = [k for k in result["kinds"] if k != "native" and result["samples"].get(k)]
    found: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for operation in OPERATIONS:
        native = middle(result, "native", operation.name)
        if not operation.unit or not native:
            continue
        values = {k: middle(result, k, operation.name) for k in kinds}
        ratios = {k: v / native for k, v in values.items() if v}
        if ratios:
            found.setdefault(operation.part, []).append((operation.title, ratios))
    every = [v for rows in found.values() for _, ratios in rows for v in ratios.values()]
    low = math.log10(min([*every, 0.5])) - 0.08
    high = math.log10(max([*every, 10])) + 0.08
    height = TOP + sum(ROW * (len(rows) + 1) + 22 for rows in found.values()) + 10

    def across(ratio: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(ratio) - low) / (high - low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-label="Cost of each operation in times native">',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>',
        '<text class="title" x="16" y="25">What each operation costs, in times native (less is better)</text>',
    ]
    x = 16.0
    for kind in kinds:
        title = escape(result["kinds"][kind]["title"])
        out += [mark(*style_of(kind), x + 5, 46), f'<text x="{x + 15:.0f}" y="50">{title}</text>']
        x += 30 + 6.6 * len(title)
    y = float(TOP)
    for part, rows in found.items():
        bottom = y + ROW * (len(rows) + 1)
        meaning = f'<tspan class="quiet" dx="8">{PARTS[part]}</tspan>'
        out.append(f'<text class="part" x="16" y="{y + 9:.0f}">{part}{meaning}</text>')
        for exponent in range(math.floor(low), math.ceil(high)):
            for times in (1, 2, 5):
                ratio = times * 10.0**exponent
                if not low <= math.log10(ratio) <= high:
                    continue
                at = across(ratio)
                style = "one" if ratio == 1 else "grid"
                if times == 1:
                    out.append(f'<path class="{style}" d="M{at:.1f},{y + 16:.0f}V{bottom:.0f}"/>')
                if times == 1 or (high - low) < 4:
                    out.append(
                        f'<text class="quiet" x="{at:.1f}" y="{bottom + 13:.0f}" text-anchor="middle">{ratio:g}</text>'
                    )
        for number, (title, ratios) in enumerate(rows):
            middle_y = y + ROW * (number + 1) + 4
            out.append(f'<text x="{LEFT - 12}" y="{middle_y + 4:.0f}" text-anchor="end">{escape(title)}</text>')
            ends = across(min(ratios.values())), across(max(ratios.values()))
            out.append(f'<path class="span" d="M{ends[0]:.1f},{middle_y:.1f}H{ends[1] + 0.1:.1f}"/>')
            # trapline's last, so that they lie on top
            order = sorted(ratios, key=lambda kind: (kind in ("seccomp", "ptrace"), kind == "seccomp"))
            out += [mark(*style_of(kind), across(ratios[kind]), middle_y) for kind in order]
        y = bottom + 22
    out.append("</svg>")
    return "\n".join(out) + "\n"
