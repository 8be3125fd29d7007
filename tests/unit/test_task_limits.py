"""Limits as /proc shows them are those that getrlimit(2) says."""

from __future__ import annotations

import resource

from trapline.platform.task_limits import read_limits


def test_our_own() -> None:
    with open("/proc/self/limits", encoding="ascii") as file:
        found = read_limits(file.read())
    assert found == {number: resource.getrlimit(number) for number in range(16)}
