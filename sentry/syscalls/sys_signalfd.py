"""signalfd(2): the descriptor is the host's; the kernel notes which signals it may be asked for."""

from __future__ import annotations

import struct

from trapline.sentry.kernel import signal_lend
from trapline.sentry.kernel.block import Reply
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.signals import UNMASKABLE
from trapline.sentry.kernel.state import Task
from trapline.sentry.syscalls.registry import handler


@handler("signalfd4")
def signalfd4(kernel: Kernel, task: Task, fd: int, mask: int, size: int, flags: int) -> Reply:
    """signalfd4(2): made by the host, whose errors they are. What is pending of its signals goes to the host."""
    if size == 8:
        try:
            (signals,) = struct.unpack("<Q", kernel.memory(task).read(mask, 8))
        except OSError:
            return Reply.HOST
        kernel.group(task).watched |= signals & ~UNMASKABLE
        signal_lend.lend_pending(kernel, task, signals)
    return Reply.HOST


@handler("signalfd")
def signalfd(kernel: Kernel, task: Task, fd: int, mask: int, size: int) -> Reply:
    """signalfd(2): without flags."""
    return signalfd4(kernel, task, fd, mask, size, 0)
