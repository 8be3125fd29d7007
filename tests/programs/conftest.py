"""Which of the real programs are saved in `make test`, and sandboxes with a state directory of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from boxes import Boxes

#: Each program is saved in both forms, and on both platforms; all four together take too long.
QUICK = {("seccomp", "restored"), ("ptrace", "resumed")}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_checkpoint_programs.py" and isinstance(item, pytest.Function):
            chosen = item.callspec.params
            if (chosen.get("platform"), chosen.get("form")) not in QUICK:
                item.add_marker(pytest.mark.long)


@pytest.fixture
def boxes(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxes]:
    """The directory that they share with the host is the test's own, and the current one."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    found = Boxes(platform, tmp_path)
    yield found
    found.close()
