"""Signals that one thread sets to be ignored, or no longer, while another one takes them: what the host made of it.

A disposition changes here first, then on the host (kernel.py, 6.), and the host looks at its own once more when a
thread goes on from a delivery stop (Linux get_signal). Where the kernel has a handler and the host by then, or still,
SIG_IGN, no handler runs: no frame, nothing added to the mask, no rt_sigreturn(2). What goes wrong otherwise: the kernel
has the signal as blocked by a handler that never returns, and the thread never takes it again (CPython's
test_stress_modifying_handlers).

So a signal whose disposition changed so while there were several threads is *contested* from then on, and what its
handler adds to a thread's mask is *unsure*. The host says what it is: exactly, at the thread's next call or stop; and
before that to whoever asks whether the thread takes the signal. That look may come before the handler's frame. The
kernel then has as open for a moment what is blocked: a poke waits until the handler is done, and the next exact look
gives the signal to another thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel import signal_send
from trapline.sentry.kernel.signals import SIG_DFL, SIG_IGN, UNMASKABLE, bit
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel
    from trapline.sentry.kernel.state import SigAction, Task, ThreadGroup

_ALL = (1 << 64) - 1 & ~UNMASKABLE
_NO_HANDLER = (SIG_DFL, SIG_IGN)


def disposition_changes(group: ThreadGroup, task: Task, signo: int, before: SigAction, handler: int) -> None:
    """A thread of several sets a disposition, which the host does not have yet."""
    if before.handler not in _NO_HANDLER and handler not in _NO_HANDLER:
        return
    group.contested |= bit(signo)
    if handler in _NO_HANDLER and before.handler not in _NO_HANDLER:
        # Who was just given to it may find it gone.
        added = (before.mask | bit(signo)) & ~UNMASKABLE
        for other in group.threads.values():
            if other is not task:
                other.unsure |= other.mask & added


def poke_again(kernel: Kernel, group: ThreadGroup, signo: int) -> None:
    """A process with threads no longer ignores a signal. One that a mask kept while it did (signal_send._waits_for) may
    have lost its poke, when the host came to ignore it: after the kernel did, and after the poke."""
    if any(info.signo == signo for info in group.pending):
        signal_send.notify(kernel, group, signo)
    for thread in signal_send.queueing(group):
        if any(info.signo == signo for info in thread.pending):
            signal_send.notify(kernel, group, signo, thread)


def handler_begins(task: Task, before: int, had_saved: bool) -> None:
    """A contested signal goes to its handler; `before`: the mask until then, a wait's own where it `had_saved` one."""
    task.unsure |= _ALL if had_saved else task.mask & ~before


def settle(kernel: Kernel, task: Task, at_stop: bool = True) -> None:
    """Ask the host what is unsure; `at_stop`: the thread is at a call or stop, so it is known from here on."""
    try:
        mask = kernel.platform.host_mask(task.tid)
    except Gone:
        return  # its end is on its way
    before, unsure = task.mask, task.unsure
    if at_stop:
        task.unsure = 0
    task.mask = before & ~unsure | mask & unsure
    if task.mask != before:
        signal_send.mask_changed(kernel, task, before)


def blocks(kernel: Kernel, task: Task, signals: int) -> int:
    """Which of a set a thread blocks."""
    if task.mask & task.unsure & signals:
        settle(kernel, task, at_stop=False)
    return task.mask & signals
