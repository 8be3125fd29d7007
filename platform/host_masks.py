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
from trapline.platform import stop_calls
from trapline.platform.tracee import Tracee
from trapline.sentry.kernel.signal_lend import lent
from trapline.sentry.kernel.signals import DEFAULT_STOP, SIGCHLD, SIGCONT, SIGRTMAX, UNMASKABLE, bit, pack_siginfo
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from trapline.platform.engine import Engine

#: Signals that do something when they are sent, whoever takes them.
_NO_POKES = DEFAULT_STOP | UNMASKABLE | bit(SIGCONT)


def pending(e: Engine, t: Tracee) -> int:
    """What the host holds back for a thread and its process, without pokes and without SIGCHLD, of which the kernel
    sends its own. Gone."""
    text = _status(t)
    own = _set(text, b"SigPnd:") & ~t.poked
    shared = _set(text, b"ShdPnd:") & ~e.poked_groups.get(t.host_group, 0)
    return (own | shared) & ~bit(SIGCHLD)


def blocked(t: Tracee) -> int:
    """What a thread blocks, but for what we have opened in its mask. Gone."""
    assert t.task is not None
    opened = t.opened | (bit(t.lend_by) if t.lend_by else 0)
    return _set(_status(t), b"SigBlk:") | t.task.mask & opened


def _status(t: Tracee) -> bytes:
    try:
        fd = os.open(f"/proc/{t.host}/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise Gone(t.tid) from None
    try:
        return os.read(fd, 8192)
    except OSError:
        raise Gone(t.tid) from None
    finally:
        os.close(fd)


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


def _mask(t: Tracee) -> int:
    """The mask that the host has once the call in flight, ppoll perhaps, was interrupted."""
    assert t.task is not None
    return t.task.saved_mask if t.task.saved_mask >= 0 else t.task.mask


def ask_to_lend(e: Engine, t: Tracee, signo: int, shared: bool) -> None:
    """Bring a thread to hand a signal over: to an event stop first, where its mask can be opened for a poke."""
    t.lending.append((signo, shared))
    e.lenders[t.host_group] = t
    if not t.listening:
        pt.call(pt.PTRACE_INTERRUPT, t.host)


def open_to_lend(e: Engine, t: Tracee) -> None:
    """At an event stop of a thread that is to hand signals over: poke it, by a signal for which nobody has a signalfd
    (it would be read there, cookie and all), and which the mask lets through now."""
    assert t.task is not None
    watched = e.kernel.group(t.task).watched | _NO_POKES
    t.lend_by = next((signo for signo in range(SIGRTMAX, 0, -1) if not watched & bit(signo)), 0)
    if not t.lend_by:
        t.lending.clear()  # signalfds of every signal there is: what is held is read no sooner than it is unblocked
        return
    pt.set_sigmask(t.host, _mask(t) & ~bit(t.lend_by) & ~t.opened)
    if t.lending[0][1]:
        e.poke_group(t, t.lend_by)
    else:
        e.poke(t.tid, t.lend_by)


def lend_here(e: Engine, t: Tracee, signo: int) -> bool:
    """At the stop of a poke: hand a signal over if this is the poke for that.

    A thread that goes on with a signal that it blocks has it queued by the host again, for itself or its process as the
    poke came, with the siginfo that it has then, whatever that claims (Linux ptrace_signal). Nobody outside could queue
    kill's siginfo with the sender's id. A poke to the process may have come to another thread than the one that was
    chosen, which does as well.
    """
    chosen = e.lenders.get(t.host_group)
    if chosen is None or not chosen.lending or signo != chosen.lend_by:
        return False
    assert t.task is not None
    chosen.lend_by = 0
    wanted, _ = chosen.lending.pop(0)
    mask = _mask(t)
    if t is chosen:
        pt.set_sigmask(t.host, mask & ~t.opened)
    if t is not chosen or chosen.lending:
        pt.call(pt.PTRACE_INTERRUPT, chosen.host)  # there its mask is made right, and the next one has its turn
    info = lent(e.kernel, t.task, wanted) if mask & bit(wanted) else None
    if info is None:
        return False
    pt.set_siginfo(t.host, pack_siginfo(info))
    if t.task.call is None:
        e.regs.load(t.host)
        stop_calls.hide_interruption(e, t)
    e.resume(t, wanted)
    return True


def event_stop(e: Engine, t: Tracee) -> None:
    """At an event stop: what there is to hand over, or the mask as it was before that."""
    if t.lending:
        open_to_lend(e, t)
    elif e.lenders.get(t.host_group) is t:
        del e.lenders[t.host_group]
        pt.set_sigmask(t.host, _mask(t) & ~t.opened)
