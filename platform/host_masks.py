"""Signals that the host made and holds back because a mask blocks them: SIGPIPE, a terminal's keys, SIGIO.

The kernel hears of them at delivery stops only, of which a blocked signal has none. So whoever asks what is pending
looks at the host's queues too, and while a thread waits in rt_sigtimedwait its host mask lets through what it waits
for, as Linux does it itself (do_sigtimedwait): what comes then stops, becomes the kernel's and ends the wait. What goes
wrong otherwise: a program that blocks SIGINT and waits in sigwait for it never hears of the key.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trapline.platform import ptrace_calls as pt
from trapline.platform.tracee import Tracee
from trapline.sentry.kernel.signals import SIGCHLD, bit
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from trapline.platform.engine import Engine


def pending(e: Engine, t: Tracee) -> int:
    """What the host holds back for a thread and its process, without pokes and without SIGCHLD, of which the kernel
    sends its own. Gone."""
    try:
        fd = os.open(f"/proc/{t.host}/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise Gone(t.tid) from None
    try:
        text = os.read(fd, 8192)
    except OSError:
        raise Gone(t.tid) from None
    finally:
        os.close(fd)
    own = _set(text, b"SigPnd:") & ~t.poked
    shared = _set(text, b"ShdPnd:") & ~e.poked_groups.get(t.host_group, 0)
    return (own | shared) & ~bit(SIGCHLD)


def _set(text: bytes, name: bytes) -> int:
    return int(text.partition(b"\n" + name)[2].partition(b"\n")[0], 16)


def came(e: Engine, t: Tracee, signo: int) -> None:
    """A thread stopped for a signal: a poke of that number is in the host's queue no more, or had merged with it."""
    if t.poked & bit(signo):
        t.poked &= ~bit(signo)
    elif t.host_group in e.poked_groups:
        left = e.poked_groups[t.host_group] & ~bit(signo)
        if left:
            e.poked_groups[t.host_group] = left
        else:
            del e.poked_groups[t.host_group]


def open_for(t: Tracee, signals: int) -> None:
    """Let these through from now on. The thread stands at a stop, or its mask is so already."""
    assert t.task is not None
    if t.opened != signals and not t.listening:  # in a job-control stop: its end is the end of the wait (EINTR)
        pt.set_sigmask(t.host, t.task.mask & ~signals)
        t.opened = signals


def close(t: Tracee) -> int:
    """Make the host's mask the kernel's again; what was let through. Before a handler's mask is added to it, which the
    host does itself with the frame."""
    opened, t.opened = t.opened, 0
    if opened:
        assert t.task is not None
        pt.set_sigmask(t.host, t.task.mask)
    return opened
