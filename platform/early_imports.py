"""What the first client of a sandbox will need, imported before it comes.

A sandbox with a name lives to be asked things: trio and the parts of a checkpoint take 0.2 s to import, which whoever
asks first would wait for. They are imported while its guests want nothing (pump.py); one of `do` never does, whose
CPU time is compared with a native run's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

#: In this order, each by itself: while one is imported a guest's call waits, for 0.1 s at the most. Those of the
#: standard library and of others are what trio needs.
_STEPS = (
    "ssl",
    "attr",
    "trio",
    "trapline.sentry.control.server",
    "trapline.platform.control_target",
    "xxhash",
    "trapline.platform.checkpoint",
    "trapline.platform.checkpointing",
)


def steps() -> list[Callable[[], object]]:
    """One for each import."""
    return [partial(importlib.import_module, name) for name in _STEPS]
