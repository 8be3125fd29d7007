"""What the host keeps of processes and threads is as it was behind a checkpoint, and in what is restored from it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness import is_root, oracle, workload

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

from save_loop import NOBODY, SaveLoop


@pytest.mark.parametrize("kill", [False, True], ids=["resumed", "restored"])
@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "ordinary user"])
def test_attributes(platform: str, kill: bool, user: int | None) -> None:
    if user is not None and not is_root():
        pytest.skip("all of these tests are")
    program = workload("saved_attributes")
    loop = SaveLoop(platform, [program], 0, kill=kill, user=user)
    result = loop.at_markers()
    expected = oracle(program)
    assert (result.stdout.decode().splitlines(), result.status) == (expected.stdout.decode().splitlines(), 0), result
    assert loop.saves == 2 and not result.stderr and b": not as" not in expected.stdout
