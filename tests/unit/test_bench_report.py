"""The benchmark's figures and pages: what is shown is what docs/benchmarks.json holds."""

from __future__ import annotations

import json
import sys
import xml.dom.minidom
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workloads"))
try:
    import bench
    import bench_chart
    import bench_report
    import bench_rows
finally:
    sys.path.remove(str(ROOT / "workloads"))


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    result = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    assert result["schema"] == bench.SCHEMA
    return result


def test_readme_shows_the_published_figures(published: dict[str, Any]) -> None:
    text = (ROOT / "README.md").read_text()
    assert bench_report.with_part(text, bench_report.readme_part(published)) == text, "run `make bench-docs`"


def test_page_and_chart_show_the_published_figures(published: dict[str, Any]) -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text() == bench_report.page(published)
    assert (ROOT / "docs" / "benchmarks.svg").read_text() == bench_chart.chart(published)


def test_verdicts_follow_from_the_published_samples(published: dict[str, Any]) -> None:
    assert bench_rows.as_data(bench_rows.figures(published)) == published["figures"]


def test_chart_is_one_image_that_needs_nothing_else(published: dict[str, Any]) -> None:
    text = bench_chart.chart(published)
    image = xml.dom.minidom.parseString(text).documentElement
    assert image.tagName == "svg"
    assert "prefers-color-scheme: dark" in text
    assert "url(" not in text and "href" not in text and "@import" not in text
    names = {node.firstChild.data for node in image.getElementsByTagName("text") if node.firstChild.nodeType == 3}
    for operation in bench_rows.OPERATIONS:
        if operation.unit and published["samples"]["native"].get(operation.name):
            assert operation.title in names


def test_readme_without_the_part_is_refused() -> None:
    with pytest.raises(ValueError):
        bench_report.with_part("no marks", "x")


def result(**samples: dict[str, list[float]]) -> dict[str, Any]:
    return {"samples": {name.replace("_", "-"): rows for name, rows in samples.items()}, "failures": {}}


def asked(name: str) -> bench_rows.Asked:
    return next(a for a in bench_rows.ASKED if a.name == name)


def found(name: str, data: dict[str, Any]) -> bench_rows.Figure:
    return bench_rows.judge(asked(name), data["samples"], data["failures"])


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # The machine was ten times slower in the last round, for both.
    data = result(native={"read": [100, 100, 1000]}, seccomp={"read": [104, 106, 1050]})
    figure = found("read", data)
    assert figure.value == pytest.approx(1.05)
    assert figure.verdict == "met"


@pytest.mark.parametrize(("ns", "verdict"), [(103, "aim met"), (110, "met"), (111, "NOT MET")])
def test_verdicts(ns: float, verdict: str) -> None:
    assert found("read", result(native={"read": [100]}, seccomp={"read": [ns]})).verdict == verdict


def test_the_best_platform_of_runsc_is_compared() -> None:
    data = result(seccomp={"exec": [300]}, runsc_ptrace={"exec": [1000]}, runsc_systrap={"exec": [500]})
    assert found("exec/runsc", data).value == pytest.approx(0.6)
    assert found("exec/runsc", data).verdict == "NOT MET"


def test_without_the_peer_there_is_no_verdict() -> None:
    assert found("exec/runsc", result(seccomp={"exec": [300]})).verdict == "no peer"


def test_a_row_that_failed_says_so() -> None:
    data = result(native={"read": [100]}, seccomp={})
    data["failures"] = {"seccomp": {"read": "status 1: pread"}}
    figure = found("read", data)
    assert (figure.verdict, figure.note) == ("FAILED", "status 1: pread")


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=20))
def test_spread_is_in_order_and_within(values: list[float]) -> None:
    low, mid, high = bench_rows.spread(values)
    assert min(values) <= low <= mid * (1 + 1e-9) and mid <= high * (1 + 1e-9) and high <= max(values)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.994, "0.99"), (9.5, "9.50"), (23.46, "23.5"), (186, "186"), (9999, "9999"), (14832, "14.8k"), (2.4e6, "2400k"),
     (1.26e7, "12.6M")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert bench_rows.number(value) == text


@pytest.mark.parametrize(
    "words",
    [["--rows=nothing"], ["--peers=bochs"], ["--rounds=0"], ["--rounds=x"], ["--duration=-1"], ["--duration=nan"],
     ["--json=/nowhere/x"], ["--format=xml"], ["--quik"], ["extra"]],
)  # fmt: skip
def test_wrong_options_get_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.parse(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("bench: ") and err.count("\n") == 1


def test_every_asked_figure_has_a_row_that_is_measured() -> None:
    rows = {operation.name for operation in bench_rows.OPERATIONS} | set(bench_rows.WHOLE)
    rows |= {"timers-less-true", "wakeups", "wakeups-many", "memory", "interval-us"}
    rows |= {"wakeups-10000", "wakeups-asleep", "wakeups-armed", "armed"} | bench_rows.CHECKPOINTS
    assert {a.row for a in bench_rows.ASKED} <= rows


def _of_checkpoints(mib: int) -> list[bench_rows.Figure]:
    samples = {
        "seccomp": {"save": [0.6, 0.4], "restore-background": [0.1, 0.2], "pause": [30.0, 40.0]},
        "runsc-ptrace": {"save": [0.5, 0.5], "restore-background": [0.5, 0.5]},
    }
    return bench_rows.figures({"samples": samples, "failures": {}, "images": {"mib": mib}})


def test_checkpoints_are_compared_to_runsc_round_by_round() -> None:
    found = {figure.name: figure for figure in _of_checkpoints(bench_rows.SAVED_MIB)}
    assert found["save/runsc"].value == pytest.approx(1.0) and found["save/runsc"].verdict == "NOT MET"
    assert found["background/runsc"].value == pytest.approx(0.3) and found["background/runsc"].verdict == "met"
    assert found["pause"].value == 35 and found["pause"].verdict == "met"


def test_checkpoints_of_another_size_than_was_asked_for_are_not_judged() -> None:
    assert _of_checkpoints(128) == []
