"""Which of the real programs are saved in `make test`."""

from __future__ import annotations

import pytest

#: Each program is saved in both forms, and on both platforms; all four together take too long.
QUICK = {("seccomp", "restored"), ("ptrace", "resumed")}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_checkpoint_programs.py" and isinstance(item, pytest.Function):
            chosen = item.callspec.params
            if (chosen.get("platform"), chosen.get("form")) not in QUICK:
                item.add_marker(pytest.mark.long)
