"""Tables of text: columns as wide as what stands in them, and numbers for people."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), width: int = 0) -> str:
    """Aligned lines with a heading; the columns named in `right` stand to the right, as numbers do.

    The last column is cut off where a line would be longer than `width`; 0: never.
    """
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = []
    for line in lines:
        cells = [c.rjust(w) if h in right else c.ljust(w) for c, w, h in zip(line, widths, head, strict=True)]
        full = "  ".join(cells).rstrip()
        text.append(full[:width] if width else full)
    return "\n".join(text) + "\n"


def duration(seconds: float) -> str:
    """`4.21`, `1:07`, `2:03:04`, `3-04:05:06`: seconds, then with minutes, hours, days, as ps(1) has it."""
    if seconds < 60:
        return f"{seconds:.2f}"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}:{rest:02}"
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{rest:02}"
    return f"{days}-{clock:0>8}" if days else clock


def size(number: int) -> str:
    """Bytes with a binary unit, three digits or so: `812K`, `1.4M`, `23M`."""
    value = float(number)
    for unit in ("B", "K", "M", "G", "T"):
        if value < 1000 or unit == "T":
            break
        value /= 1024
    return f"{value:.1f}{unit}" if value < 10 and unit not in ("B", "K") else f"{value:.0f}{unit}"


def printable(words: Sequence[str]) -> str:
    """A command in one line: what could act on a terminal or end the line is shown as `?`."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(words))


def terminal_width() -> int:
    """Columns of the terminal that standard output is; 0 when it is none."""
    import os
    import sys

    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 0
    except (OSError, ValueError):
        return 0
