"""A `trapline do` that writes down what its kernel and its process hold whenever the load says that it is quiet.

`soak_sentry.py SAMPLES ARGUMENTS...` runs `trapline ARGUMENTS...`. The load says so by getpgid(QUIET), answered
by the function below, which looks before it answers ESRCH as always. A line of JSON is added to SAMPLES for the
first such moment and then at most every SECONDS.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import sys
import time
from typing import Any

from trapline.sentry.cli.main import main
from trapline.sentry.syscalls import registry, sys_process

QUIET = 0x7FFFFFFE
SECONDS = float(os.environ.get("SOAK_SECONDS", "2"))


def memory() -> tuple[int, int]:
    """(RSS, PSS) of this process, KiB."""
    found = {}
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        for line in file.readlines()[1:]:
            name, value = line.split(":")
            found[name] = int(value.split()[0])
    return found["Rss"], found["Pss"]


def sample(kernel: Any) -> dict[str, Any]:
    """Sizes of everything that could grow. What a quiet kernel must have exactly is below `kernel`."""
    engine, dispatcher = kernel.platform, kernel.resume.__self__
    gc.collect()
    rss, pss = memory()
    state = kernel.state
    return {
        "time": time.monotonic(),
        "rss": rss,
        "pss": pss,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
        "calls": sum(state.counts.values()),
        "kernel": {
            "tasks": len(state.tasks),
            "groups": len(state.groups),
            "children": sum(len(group.children) for group in state.groups.values()),
            "pending": sum(len(group.pending) for group in state.groups.values()),
            "posix timers": sum(len(group.posix_timers) for group in state.groups.values()),
            "timers": len(state.timers),
            "waiters": len(kernel.waiters),
            "signal waiters": len(kernel.signal_waiters),
            "running calls": len(dispatcher.running),
            "results": len(dispatcher.results),
            "executing": len(dispatcher.executing),
            "crashes": len(dispatcher.crashes),
            "tracees": len(engine.tracees),
            "tracees by tid": len(engine.by_tid),
            "early": len(engine.early),
            "stillborn": len(engine.stillborn),
            "deferred": len(engine.deferred),
            "held back": len(engine.held_back),
        },
    }


def watch(path: str) -> None:
    """Answer getpgid from here on."""
    last = 0.0

    def getpgid(kernel: Any, task: Any, pid: int) -> int:
        nonlocal last
        if pid != QUIET:
            return sys_process.getpgid(kernel, task, pid)
        if not last or time.monotonic() - last >= SECONDS:
            line = json.dumps(sample(kernel))
            with open(path, "a", encoding="ascii") as file:
                file.write(line + "\n")
            last = time.monotonic()
        raise OSError(errno.ESRCH, "quiet")

    registry.override("getpgid", getpgid)


if __name__ == "__main__":
    watch(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
