"""All handlers, loaded into one dictionary by number."""

from __future__ import annotations

import importlib

from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.syscalls import registry

FAMILIES = (
    "sys_signal",
    "sys_signal_wait",
    "sys_pidfd",
    "sys_signalfd",
    "sys_wait",
    "sys_process",
    "sys_affinity",
    "sys_limits",
    "sys_times",
    "sys_time",
    "sys_adjtimex",
    "sys_sleep",
    "sys_itimer",
    "sys_posix_timer",
    "sys_timerfd",
    "sys_ioctl",
)


def load(kernel: Kernel) -> dict[int, registry.Bound]:
    """Import every family and let it hook itself into the kernel where it has hooks."""
    for family in FAMILIES:
        module = importlib.import_module(f"trapline.sentry.syscalls.{family}")
        attach = getattr(module, "attach", None)
        if attach is not None:
            attach(kernel)
    return registry.handlers

