"""How far a long call is, told to the client that asked for it: notifications `progress` before its answer.

A client that takes nothing holds up nothing: what it has no room for is left out, and so is what comes too soon after
the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from trapline.sentry.control import rpc

INTERVAL = 0.1  # s between two of the same phase


class Progress:
    """Of one call. `offer` sends a line if the client has room for all of it, and says whether it had."""

    def __init__(self, identifier: Any, offer: Callable[[bytes], bool]) -> None:
        self._identifier = identifier
        self._offer = offer
        self._phase: str | None = None
        self._next = 0.0

    def report(self, done: int, total: int, phase: str) -> None:
        """interface.Report."""
        now = trio.current_time()
        if phase == self._phase and now < self._next and (done < total or not total):
            return
        params = {"id": self._identifier, "done": done, "total": total, "phase": phase}
        if self._offer(rpc.notice("progress", params)):
            self._phase, self._next = phase, now + INTERVAL
