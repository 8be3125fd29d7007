"""A call that Linux does not have, by which a test says where it wants a checkpoint (`do --checkpoint-at-marker`).

It returns -ENOSYS, as it does natively: once the checkpoint has been made, and again in what is restored from it. A
signal whose handler is to run ends the wait earlier, and the checkpoint is made a little later.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.state import Task
from trapline.sentry.syscalls import registry
from trapline.sentry.syscalls.table_types import Class, Support, Syscall

#: No x86-64 kernel has it, nor do the numbers of x32 reach it.
NUMBER = 1023
_ROW = Syscall(NUMBER, "trapline_marker", "", Class.STOP, Support.FULL, "for tests")


def serve(ask: Callable[[int], None]) -> None:
    """From now on the call is there; `ask` is told the id of each task that makes it, which is to be woken."""

    async def marker(kernel: Kernel, task: Task) -> int:
        record = task.call
        assert record is not None
        if record.entered == 1:  # otherwise it was saved, and this is what came back
            ask(task.tid)
            await kernel.block(task, queue="marker")
        return -errno.ENOSYS

    registry.add(_ROW, marker)
