"""Which of the real programs are saved in `make test`, and sandboxes with a state directory of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from boxes import Boxes

#: Each program is saved in both forms, and on both platforms; all four together take too long.
QUICK = {("seccomp", "restored"), ("ptrace", "resumed")}
#: Programs that one of the two is enough for, and files in which little concerns the platform.
ONCE = {"test_python", "test_gcc_and_make", "test_sqlite_in_a_transaction"}
ONE_PLATFORM = {"test_checkpoint_errors.py", "test_checkpoint_forged.py"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_checkpoint_programs.py" and isinstance(item, pytest.Function):
            chosen = item.callspec.params
            form = chosen.get("platform"), chosen.get("form")
            if form not in QUICK or (form == ("ptrace", "resumed") and item.originalname in ONCE):
                item.add_marker(pytest.mark.long)
        elif item.path.name in ONE_PLATFORM and item.callspec.params["platform"] == "ptrace":
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
