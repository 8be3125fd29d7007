"""ioctl(2), of which the sentry owns requests on terminals. What serves them is loaded when the first one comes: most
programs make none, and it would be a fiftieth of what a short one costs."""

from __future__ import annotations

from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.state import Task
from trapline.sentry.syscalls.registry import handler


@handler("ioctl")
async def ioctl(kernel: Kernel, task: Task, fd: int, command: int, argument: int) -> int:
    """The requests that the filter sends here: see sys_tty.py."""
    from trapline.sentry.syscalls import sys_tty

    return await sys_tty.request(kernel, task, fd, command, argument)
