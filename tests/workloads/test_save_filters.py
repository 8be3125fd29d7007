"""Programs with seccomp filters of their own, saved and restored: what they refuse is refused as natively."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness import is_root, oracle, workload

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from save_loop import NOBODY, SaveLoop

OTHERS = (("seccomp", False), ("ptrace", True))


@pytest.mark.parametrize(
    ("platform", "kill"),
    [("seccomp", True), ("ptrace", False), *[pytest.param(*p, marks=pytest.mark.long) for p in OTHERS]],
    ids=lambda value: {True: "restored", False: "resumed"}.get(value, value),
)
def test_filters_of_their_own(platform: str, kill: bool) -> None:
    if not is_root():
        pytest.skip("not root: the host gives no filters out")
    words = [workload("filtered")]
    loop = SaveLoop(platform, words, 0, kill=kill)
    result, expected = loop.at_markers(), oracle(*words)
    assert (result.stdout, result.stderr, result.status) == (expected.stdout, b"", 0), result
    assert loop.saves == 6


def test_an_ordinary_user_is_told(platform: str) -> None:
    """It goes on as it was."""
    words = [workload("filtered")]
    loop = SaveLoop(platform, words, 0, kill=True, user=NOBODY if is_root() else None)
    result, expected = loop.at_markers(), oracle(*words)
    assert (result.stdout, result.status) == (expected.stdout, 0), result
    assert b"has a seccomp filter of its own, which the host gives out to root only" in result.stderr
