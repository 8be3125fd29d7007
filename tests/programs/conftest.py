"""Which of the tests of checkpoints are in `make test`, and sandboxes with a state directory of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from boxes import Boxes

#: Each program is saved in both forms, and on both platforms; all four together take too long.
QUICK = {("seccomp", "restored"), ("ptrace", "resumed")}
#: Those that take longest, in one of them only, or in none.
LONGER = (
    "test_python", "test_go", "test_sqlite_in_a_transaction", "test_node", "test_200_threads",
)  # fmt: skip
LONGEST = ("test_gcc_and_make", "test_200_processes")
#: All that these do differently for the platforms is tested elsewhere.
ON_ONE_PLATFORM = (
    "test_checkpoint_sandboxes.py", "test_checkpoint_jobs.py", "test_checkpoint_errors.py", "test_checkpoint_forged.py",
    "test_checkpoint_surroundings.py", "test_podman.py", "test_version_control.py", "test_large_files.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and not _is_quick(item):
            item.add_marker(pytest.mark.long)


def _is_quick(item: pytest.Function) -> bool:
    if not hasattr(item, "callspec"):
        return True
    if item.path.name in ON_ONE_PLATFORM:
        return bool(item.callspec.params.get("platform", "seccomp") == "seccomp")
    if "anyones" in item.callspec.params:
        # Of both kinds of user on both platforms, one each.
        return (item.callspec.params["anyones"] == "root") == (item.callspec.params["platform"] == "seccomp")
    if item.path.name != "test_checkpoint_programs.py":
        return True
    chosen = item.callspec.params.get("platform"), item.callspec.params.get("form")
    name = item.originalname
    return chosen in QUICK and name not in LONGEST and (name not in LONGER or chosen[0] == "seccomp")


@pytest.fixture
def boxes(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxes]:
    """The directory that they share with the host is the test's own, and the current one."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    found = Boxes(platform, tmp_path)
    yield found
    found.close()
