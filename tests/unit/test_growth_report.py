"""Verdicts on growth, and that the pages show docs/growth.json."""

from __future__ import annotations

import json
import sys
import xml.dom.minidom
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workloads"))
try:
    import growth_report
finally:
    sys.path.remove(str(ROOT / "workloads"))


def cost(at_10: float, at_100: float, at_1000: float) -> dict[str, float]:
    return {"10": at_10, "100": at_100, "1000": at_1000}


@pytest.mark.parametrize(
    ("found", "native", "verdict"),
    [
        (cost(100, 101, 99), None, "flat"),
        (cost(100, 95, 110), None, "flat"),
        (cost(100, 200, 300), None, "at most log"),
        (cost(100, 190, 1000), None, "GROWS"),  # linear
        (cost(1000, 1090, 1990), None, "GROWS"),  # linear with a large constant
        (cost(100, 400, 1600), None, "GROWS"),  # a power
        (cost(50, 59, 150), cost(2, 10, 90), "host"),
        (cost(50, 59, 350), cost(2, 10, 90), "GROWS"),
    ],
)
def test_verdicts(found: dict[str, float], native: dict[str, float] | None, verdict: str) -> None:
    assert growth_report.verdict(found, native) == verdict


def test_pages_show_the_published_figures() -> None:
    docs = ROOT / "docs"
    result = json.loads((docs / "growth.json").read_text())
    assert (docs / "growth.md").read_text() == growth_report.page(result), "run `make growth`"
    plot = growth_report.plot(result)
    assert (docs / "growth.svg").read_text() == plot
    assert xml.dom.minidom.parseString(plot).documentElement.tagName == "svg"
    assert not result["failures"]
