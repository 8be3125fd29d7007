"""`trapline compare`: run a command natively and under trapline in turn, and set one against the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from trapline.sentry.cli import do
from trapline.sentry.cli.flags import HELP, Flag, UsageError, help_text, parse, walk
from trapline.sentry.cli.measured_run import Measured, NotMeasured, measure

USAGE = "trapline compare [FLAGS] [FLAGS OF do] [--] COMMAND [ARGUMENT...]"
SUMMARY = (
    "Run a command natively and under trapline in turn, and print the medians of what both cost, with "
    "ratios, and whether they wrote the same and ended alike. The exit status is 0 if they did, 1 if not, "
    "2 for a mistake in the flags. The command reads nothing: its standard input is /dev/null."
)
MORE = """
All flags of `trapline do` may be given too: they go to the emulated runs.
CPU time, memory and faults are those of the whole tree, the sandbox's own processes included.

examples:
  trapline compare -- python3 -c 'print(sum(range(10**6)))'
  trapline compare -n 20 --platform ptrace --json -- /bin/true
"""


def _runs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise ValueError("takes a number of runs from 1 on")
    return int(text)


FLAGS = (
    Flag("-n", "RUNS", "Runs of each kind. Default: 5.", default=5, parse=_runs),
    Flag("--json", help="Print JSON: medians, ratios, and every run."),
    Flag("--time-form", help="Print as time(1) does, one under the other."),
)


class Row(msgspec.Struct):
    """One measured thing: its key in JSON, its heading, how it is read and printed."""

    key: str
    title: str
    read: Callable[[Measured], float]
    unit: str


ROWS = (
    Row("elapsed", "elapsed", lambda m: m.elapsed, "s"),
    Row("user", "user", lambda m: m.user, "s"),
    Row("system", "system", lambda m: m.system, "s"),
    Row("cpu", "user + system", lambda m: m.cpu, "s"),
    Row("max_resident", "max. resident", lambda m: m.max_resident, "KiB"),
    Row("minor_faults", "minor faults", lambda m: m.minor_faults, ""),
    Row("major_faults", "major faults", lambda m: m.major_faults, ""),
    Row("voluntary", "switches, voluntary", lambda m: m.voluntary, ""),
    Row("involuntary", "switches, involuntary", lambda m: m.involuntary, ""),
)


class Side(msgspec.Struct):
    """All runs of one kind."""

    runs: list[Measured] = []

    def median(self, row: Row) -> float:
        """The median of a row over the runs."""
        return median([row.read(run) for run in self.runs])

    def statuses(self) -> list[int]:
        """The exit statuses that occurred."""
        return sorted({run.status for run in self.runs})


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle. The statistics module takes 20 ms to import."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def split(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """(our flags, flags of `do`, the command)."""
    own: list[str] = []
    others: list[str] = []
    names = {flag.name for flag in FLAGS} | set(HELP)
    pieces, command = walk((*FLAGS, *do.FLAGS), words)
    for piece in pieces:
        (own if piece[0].partition("=")[0] in names else others).extend(piece)
    return own, others, command


def run(words: list[str]) -> int:
    """Run the verb; the exit status. UsageError."""
    own, others, command = split(words)
    values, _ = parse(FLAGS, own)
    if values["help"]:
        sys.stdout.write(help_text(USAGE, SUMMARY, FLAGS, MORE))
        return 0
    parse(do.FLAGS, others)  # mistakes are found before anything runs
    if not command:
        raise UsageError(f"there is no command: {USAGE}")
    wanted = do.options([*others, "--", *command])
    platform = wanted.platform if wanted is not None else ""
    trapline = [sys.executable, "-P", "-m", "trapline", "do", *others, "--", *command]
    try:
        native, emulated = _measure_both(command, trapline, values["n"])
    except NotMeasured as error:
        print(f"trapline compare: {error}", file=sys.stderr)
        return 127
    verdict = _verdict(native, emulated)
    if values["json"]:
        print(_json(command, platform, native, emulated, verdict))
    elif values["time_form"]:
        print(time_form(native, emulated))
    else:
        print(_table(command, platform, native, emulated))
    agree = verdict["stdout"] != "differs" and verdict["status"] == "agrees"
    if not values["json"] and not (values["time_form"] and agree):
        print(_verdict_text(verdict, native, emulated))
    return 0 if agree else 1


def _measure_both(native: list[str], emulated: list[str], runs: int) -> tuple[Side, Side]:
    sides = Side(), Side()
    for number in range(runs):
        for side, command, name in zip(sides, (native, emulated), ("native", "trapline"), strict=True):
            _progress(f"run {number + 1} of {runs}, {name}")
            side.runs.append(measure(command))
    _progress("")
    return sides


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _verdict(native: Side, emulated: Side) -> dict[str, str]:
    """Whether output and exit status are the same: 'agrees', 'differs', or 'varies' when natively it does."""
    outputs = {run.stdout for run in native.runs}, {run.stdout for run in emulated.runs}
    stdout = "agrees" if outputs[0] == outputs[1] else "differs"
    if len(outputs[0]) > 1:
        stdout = "varies"
    status = "agrees" if native.statuses() == emulated.statuses() else "differs"
    return {"stdout": stdout, "status": status}


def _verdict_text(verdict: dict[str, str], native: Side, emulated: Side) -> str:
    meaning = {
        "agrees": "stdout agrees",
        "differs": "stdout DIFFERS",
        "varies": "stdout varies from run to run natively, so it tells nothing",
    }
    lines = [meaning[verdict["stdout"]]]
    theirs, ours = (", ".join(map(str, side.statuses())) for side in (native, emulated))
    if verdict["status"] == "agrees":
        lines.append(f"exit status agrees: {theirs}")
    else:
        lines.append(f"exit status DIFFERS: {theirs} natively, {ours} under trapline")
        said = emulated.runs[-1].stderr.decode(errors="replace").strip()
        lines += [f"  | {line}" for line in said.splitlines()[-10:]]
    return "\n".join(lines)


def _ratio(native: float, emulated: float) -> float | None:
    return emulated / native if native else None


def _ratio_text(native: float, emulated: float) -> str:
    ratio = _ratio(native, emulated)
    if ratio is None:
        return "1" if native == emulated else "-"
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}"


def _number(value: float, unit: str) -> str:
    return f"{value:.4f} {unit}" if unit == "s" else f"{value:.0f} {unit}".rstrip()


def _table(command: list[str], platform: str, native: Side, emulated: Side) -> str:
    runs = len(native.runs)
    head = f"{' '.join(command)}: {'medians of ' if runs > 1 else ''}{runs} run{'s' * (runs > 1)}"
    lines = [f"{head}, platform {platform}", ""]
    lines.append(f"{'':<22}{'native':>14}{'trapline':>14}{'ratio':>9}")
    for row in ROWS:
        left, right = native.median(row), emulated.median(row)
        numbers = f"{_number(left, row.unit):>14}{_number(right, row.unit):>14}{_ratio_text(left, right):>9}"
        lines.append(f"{row.title:<22}{numbers}")
    return "\n".join([*lines, ""])


def time_form(native: Side, emulated: Side) -> str:
    """Both in the form of time(1), each line of the one over that of the other, and the ratios."""
    pairs = zip(_time_lines(native), _time_lines(emulated), strict=True)
    lines = [line for left, right in pairs for line in (f"native    {left}", f"trapline  {right}")]
    ratios = []
    for row in ROWS:
        ratio = _ratio_text(native.median(row), emulated.median(row))
        if ratio != "-":
            ratios.append(f"{row.title} {ratio}")
    return "\n".join([*lines, "ratios    " + ", ".join(ratios[:5]), "          " + ", ".join(ratios[5:])])


def _time_lines(side: Side) -> list[str]:
    values = {row.key: side.median(row) for row in ROWS}
    minutes, seconds = divmod(values["elapsed"], 60)
    percent = 100 * values["cpu"] / values["elapsed"] if values["elapsed"] else 0
    blocks = [median([getattr(run, name) for run in side.runs]) for name in ("inputs", "outputs")]
    return [
        f"{values['user']:.2f}user {values['system']:.2f}system {minutes:.0f}:{seconds:05.2f}elapsed "
        f"{percent:.0f}%CPU (0avgtext+0avgdata {values['max_resident']:.0f}maxresident)k",
        f"{blocks[0]:.0f}inputs+{blocks[1]:.0f}outputs ({values['major_faults']:.0f}major+"
        f"{values['minor_faults']:.0f}minor)pagefaults 0swaps",
    ]


def _json(command: list[str], platform: str, native: Side, emulated: Side, verdict: dict[str, str]) -> str:
    def side(of: Side) -> dict[str, Any]:
        runs = [{**{r.key: r.read(run) for r in ROWS}, "status": run.status} for run in of.runs]
        medians = {row.key: of.median(row) for row in ROWS}
        return {"medians": medians, "statuses": of.statuses(), "runs": runs}

    whole = {
        "command": command,
        "platform": platform,
        "units": {row.key: row.unit for row in ROWS},
        "native": side(native),
        "trapline": side(emulated),
        "ratios": {row.key: _ratio(native.median(row), emulated.median(row)) for row in ROWS},
        **verdict,
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()
