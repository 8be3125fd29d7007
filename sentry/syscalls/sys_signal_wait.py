"""Waiting for signals: pause, sigsuspend, sigtimedwait, and the calls that wait with a mask of their own."""

from __future__ import annotations

import errno
import struct

from trapline.sentry.kernel import signal_send
from trapline.sentry.kernel.block import Interrupted, Outcome, Restart
from trapline.sentry.kernel.kernel import CLOCK_MONOTONIC, Kernel
from trapline.sentry.kernel.signal_deliver import take
from trapline.sentry.kernel.signals import SI_TIMER, SIGALRM, UNMASKABLE, pack_siginfo
from trapline.sentry.kernel.state import SigInfo, Task
from trapline.sentry.syscalls.registry import handler

#: Results that mean "interrupted": the mask comes back with the signal's delivery, not with the call.
INTERRUPTED = frozenset({-4, -512, -513, -514, -516})


_SURE = 10_000_000  # ns in which a signal that is pending on the host is at its stop


@handler("pause")
async def pause(kernel: Kernel, task: Task) -> int:
    """pause(2)."""
    while await kernel.block(task, queue="pause") is not Outcome.INTERRUPTED:
        pass
    raise Interrupted(Restart.NOHAND)


@handler("rt_sigtimedwait")
async def rt_sigtimedwait(kernel: Kernel, task: Task, wanted: int, info: int, timeout: int, size: int) -> int:
    """rt_sigtimedwait(2). EAGAIN on timeout, EINTR; `timeout` is relative, a null pointer waits for ever."""
    if size != 8:
        raise OSError(errno.EINVAL, "sigsetsize")
    memory = kernel.memory(task)
    (asked,) = struct.unpack("<Q", memory.read(wanted, 8))
    asked &= ~UNMASKABLE
    record = task.call
    assert record is not None
    if timeout and record.deadline < 0:
        seconds, nanoseconds = struct.unpack("<qq", memory.read(timeout, 16))
        if seconds < 0 or not 0 <= nanoseconds < 1_000_000_000:
            raise OSError(errno.EINVAL, "timeout")
        span = min(seconds * 1_000_000_000 + nanoseconds, 1 << 62)
        record.deadline = kernel.keeper.now(CLOCK_MONOTONIC) + span
    while True:
        found = _take(kernel, task, asked)
        if found is not None:
            if info:
                memory.write(info, pack_siginfo(found))
            return found.signo
        deadline = record.deadline
        now = kernel.keeper.now(CLOCK_MONOTONIC)
        coming = bool(kernel.platform.host_pending(task.tid) & asked)
        if coming and deadline >= 0:
            # It comes to a stop as soon as the mask lets it, whatever the timeout, unless another thread takes it in
            # this very moment.
            deadline = max(deadline, now + _SURE)
        if deadline < 0 or now < deadline:
            kernel.platform.open_mask(task.tid, asked)
        kernel.signal_waiters[task.tid] = asked
        outcome = await kernel.block(task, CLOCK_MONOTONIC, deadline, "sigtimedwait")
        kernel.signal_waiters.pop(task.tid, None)
        if outcome is Outcome.TIMED_OUT and not coming:
            raise OSError(errno.EAGAIN, "timeout")
        if outcome is Outcome.INTERRUPTED:
            raise Interrupted(Restart.EINTR)


def _take(kernel: Kernel, task: Task, asked: int) -> SigInfo | None:
    """Dequeue a pending signal of a set, the thread's own first."""
    group = kernel.group(task)
    found = take(task.pending, asked) or take(group.pending, asked)
    if found is not None and (found.code == SI_TIMER or found.signo == SIGALRM):
        kernel.timer_signal_delivered(group, found)
    return found


async def _with_mask(kernel: Kernel, task: Task, address: int, size: int) -> int:
    """Let the host execute the current call while the kernel's mask is the call's.

    Whatever was pending and is open now is poked before the call runs, so it is interrupted at once: there
    is no window between the new mask and the wait. A bad mask is left to the host, which knows what of the
    call's other arguments is wrong before it.
    """
    try:
        if size != 8:
            return await kernel.execute()
        (mask,) = struct.unpack("<Q", kernel.memory(task).read(address, 8))
    except OSError:
        return await kernel.execute()
    before = task.mask
    if task.saved_mask < 0:
        task.saved_mask = before
    task.mask = mask & ~UNMASKABLE
    signal_send.mask_changed(kernel, task, before)
    result = await kernel.execute()
    if result not in INTERRUPTED and task.saved_mask >= 0:
        temporary, task.mask, task.saved_mask = task.mask, task.saved_mask, -1
        signal_send.mask_changed(kernel, task, temporary)
    return result


@handler("rt_sigsuspend")
async def rt_sigsuspend(kernel: Kernel, task: Task, mask: int, size: int) -> int:
    """sigsuspend(2)."""
    return await _with_mask(kernel, task, mask, size)


@handler("ppoll")
async def ppoll(kernel: Kernel, task: Task, fds: int, count: int, timeout: int, mask: int, size: int) -> int:
    """ppoll(2) with a mask; without one it is the host's alone."""
    return await _with_mask(kernel, task, mask, size)


@handler("pselect6")
async def pselect6(
    kernel: Kernel, task: Task, n: int, rd: int, wr: int, ex: int, timeout: int, packed: int
) -> int:
    """pselect(2): the sixth argument points to the mask's address and size."""
    try:
        address, size = struct.unpack("<QQ", kernel.memory(task).read(packed, 16))
    except OSError:
        return await kernel.execute()
    if not address:
        return await kernel.execute()
    return await _with_mask(kernel, task, address, size)


@handler("epoll_pwait")
async def epoll_pwait(
    kernel: Kernel, task: Task, fd: int, events: int, count: int, timeout: int, mask: int, size: int
) -> int:
    """epoll_pwait(2) with a mask."""
    return await _with_mask(kernel, task, mask, size)


@handler("epoll_pwait2")
async def epoll_pwait2(
    kernel: Kernel, task: Task, fd: int, events: int, count: int, timeout: int, mask: int, size: int
) -> int:
    """epoll_pwait2(2) with a mask."""
    return await _with_mask(kernel, task, mask, size)
