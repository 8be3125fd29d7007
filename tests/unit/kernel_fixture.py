"""A kernel with a first task, on the fake platform."""

from __future__ import annotations

import msgspec
from fake_platform import FakePlatform

from trapline.sentry.kernel import task_clone
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.state import KernelState, Task
from trapline.sentry.syscalls import handlers, table
from trapline.sentry.syscalls.dispatch import Dispatcher


class World:
    """Kernel, dispatcher, platform; `root` is task 2."""

    def __init__(self) -> None:
        self.platform = FakePlatform()
        state = KernelState()
        state.clock.monotonic_base = self.platform.monotonic
        self.kernel = Kernel(self.platform, state)
        self.dispatcher = Dispatcher(self.kernel, handlers.load(self.kernel))
        self.root = task_clone.first_task(self.kernel, 2, ppid=1, pgid=2, sid=2, mask=0)

    def call(self, task: Task, name: str, *args: int) -> object:
        """Enter a call by name, as a platform does."""
        row = table.by_name(name)
        assert row is not None
        full = tuple(a & (1 << 64) - 1 for a in (*args, 0, 0, 0, 0, 0, 0)[:6])
        return self.dispatcher.enter(task, row.nr, full)  # type: ignore[arg-type]

    def fork(self, task: Task, tid: int, flags: int = 0) -> Task:
        return task_clone.new_task(self.kernel, task, tid, flags)

    def advance(self, nanoseconds: int) -> None:
        """Let host time pass and the alarms ring."""
        self.platform.monotonic += nanoseconds
        self.platform.realtime += nanoseconds
        self.kernel.timers_expired()

    def check_plain(self) -> None:
        """The state survives msgspec and is equal."""
        raw = msgspec.msgpack.encode(self.kernel.state)
        assert msgspec.msgpack.decode(raw, type=KernelState) == self.kernel.state
