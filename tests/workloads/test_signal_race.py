"""No signal is lost between a look and a wait: two processes that signal each other in turn."""

from __future__ import annotations

from guests import compiled
from harness import same

ROUNDS = 600


def test_none_is_lost(platform: str) -> None:
    same(platform, [compiled("signal_race"), str(ROUNDS)])
