"""Terminals: the one place that knows whose a terminal is and which process group is in its foreground.

The host's terminal layer moves the bytes and does what depends on who reads (SIGTTIN, SIGTTOU, the keys' signals), by
its own record of sessions and foreground groups, which is the mirror of this one: a request that changes it is decided
here, and executed by the host after that (syscalls/sys_tty.py).

One thing happens without a trap: a session leader that has no terminal and opens one without O_NOCTTY acquires it
(Linux tty_open_proc_set_tty). It is *adopted* here when it next matters. Nothing is lost by that: the foreground group
is then the leader's own, which has the session's id and cannot be another, until somebody asks for another one, here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.sentry.kernel.signals import INIT, SIGHUP, bit
from trapline.sentry.kernel.state import TTY, ThreadGroup
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from trapline.sentry.kernel.kernel import Kernel

#: Added to the device number of a terminal from outside of the sandbox: its devpts counts from 0, too.
OUTSIDE = 1 << 32
DEVICE = OUTSIDE - 1


class Terminal:
    """What the platform found a descriptor to be."""

    __slots__ = ("alias", "master", "number", "readable", "session")

    def __init__(
        self, number: int, master: bool = False, readable: bool = True, session: int = -1, alias: bool = False
    ) -> None:
        self.number = number  # TTY.number
        self.master = master  # the other end of a pseudo-terminal; `number` is its slave's
        self.readable = readable  # it was opened for reading
        #: Of a master: its session's leader as the host has it, 0 for none; -1 where that was not asked.
        self.session = session
        self.alias = alias  # opened as /dev/tty, which does not tell whether the terminal is from outside


# -- for the platform


def attach_host_terminal(kernel: Kernel, group: ThreadGroup, number: int, foreground: int) -> None:
    """A process starts on a terminal from outside, of this device number (TIOCGDEV): its session's from now on, which
    may be 0, that of trapline's caller. `foreground`: the process group in front, 0 for one of outside."""
    _give(kernel, group, number | OUTSIDE, foreground)


def foreground_moved(kernel: Kernel, number: int, pgid: int) -> None:
    """The platform itself has moved the foreground of a terminal from outside (device number); 0: outside."""
    tty = kernel.state.ttys.get(number | OUTSIDE)
    if tty is not None:
        tty.foreground = pgid


def moved(kernel: Kernel, tty: TTY, number: int) -> None:
    """A terminal from outside is another one from now on, of this device number: after a restore."""
    state = kernel.state
    del state.ttys[tty.number]
    for group in state.groups.values():
        if group.tty == tty.number:
            group.tty = number | OUTSIDE
    tty.number = number | OUTSIDE
    state.ttys[tty.number] = tty


def foreground(kernel: Kernel, number: int) -> int:
    """The process group in the foreground of a terminal from outside (device number); 0 for one of outside, or none."""
    tty = kernel.state.ttys.get(number | OUTSIDE)
    return 0 if tty is None else tty.foreground


# -- whose a terminal is


def of_group(kernel: Kernel, group: ThreadGroup, asked: int = 0) -> TTY | None:
    """The controlling terminal of a process (Linux signal->tty); None for none.

    What was acquired without a trap is adopted, and what was hung up unheard is given up. `asked`: the number of the
    terminal that it is asked for, by which it is known whether the device number is that of one from outside.
    """
    known = kernel.state.ttys.get(group.tty) if group.tty else None
    if known is not None and not known.doubted and not _may_be_deaf(kernel, group):
        return known
    device = _device(kernel, group)
    if known is not None:
        if known.number & DEVICE == device:
            return known
        lost(kernel, group)
    if not device:
        return None
    number = device if group.sid else device | OUTSIDE  # sessions of outside have terminals of outside
    if asked & DEVICE == device:
        number = asked
    tty = kernel.state.ttys.get(number)
    if tty is not None and tty.sid == group.sid:
        group.tty = number
        return tty
    return _give(kernel, group, number, group.sid)


def of_master(kernel: Kernel, terminal: Terminal) -> TTY | None:
    """Whose a pseudo-terminal is, asked at its master, which anybody may hold."""
    tty = kernel.state.ttys.get(terminal.number)
    if terminal.session < 0 or (tty is not None and tty.sid == terminal.session):
        return tty
    if tty is not None:
        forget(kernel, tty)
    leader = kernel.state.groups.get(terminal.session)
    return of_group(kernel, leader, terminal.number) if leader is not None else None


def resolve(kernel: Kernel, group: ThreadGroup, terminal: Terminal) -> None:
    """Of a terminal that was opened as /dev/tty: it is most likely the caller's own, so that tells where it is from."""
    if terminal.alias:
        own = of_group(kernel, group)
        if own is not None and own.number & DEVICE == terminal.number & DEVICE:
            terminal.number = own.number


def _device(kernel: Kernel, group: ThreadGroup) -> int:
    """The device number of the terminal that the host has for a process; 0 for none, as for one that has ended.

    What goes wrong otherwise: who asks about another process that is gone gets no answer.
    """
    try:
        return kernel.platform.controlling_terminal(group.tgid)
    except Gone:
        return 0


def _may_be_deaf(kernel: Kernel, group: ThreadGroup) -> bool:
    """A hangup is heard of by the SIGHUP that the host sends to the session's leader: not where that blocks it."""
    leader = kernel.state.groups.get(group.sid)
    return leader is not None and all([task.mask & bit(SIGHUP) for task in leader.threads.values()])


def is_held(kernel: Kernel, tty: TTY) -> bool:
    """Whether the session that is noted still has its terminal: its leader may have ended, or lost it, and nobody told
    yet. Of a session of outside nobody tells."""
    leader = kernel.state.groups.get(tty.sid)
    if not tty.sid:
        return True
    if leader is None or not leader.threads:
        return False
    return _device(kernel, leader) == tty.number & DEVICE


# -- changes


def acquired(kernel: Kernel, group: ThreadGroup, number: int) -> None:
    """A session leader made this its controlling terminal (TIOCSCTTY), be it another session's until now."""
    _give(kernel, group, number, group.pgid)


def _give(kernel: Kernel, group: ThreadGroup, number: int, pgid: int) -> TTY:
    before = kernel.state.ttys.get(number)
    if before is not None:
        forget(kernel, before)
    tty = kernel.state.ttys[number] = TTY(number, group.sid, pgid)
    group.tty = number
    return tty


def forget(kernel: Kernel, tty: TTY) -> None:
    """No session's any more: its leader gave it up or ended, it was hung up, or it was stolen (session_clear_tty)."""
    kernel.state.ttys.pop(tty.number, None)
    for group in kernel.state.groups.values():
        if group.tty == tty.number:
            group.tty = 0


def lost(kernel: Kernel, group: ThreadGroup) -> None:
    """A process has no controlling terminal any more (TIOCNOTTY, a hangup); if it leads the session, nobody of it."""
    tty = kernel.state.ttys.get(group.tty)
    group.tty = 0
    if tty is not None and group.tgid == tty.sid:
        forget(kernel, tty)


def hung_up(kernel: Kernel, group: ThreadGroup) -> None:
    """The host sent SIGHUP to a process. It does so for a hangup, and to orphaned groups too: look which it was.

    Where the leader ends, Linux disassociate_ctty tells the foreground group, then takes the terminal from the whole
    session, and only after that the leader's end is heard of: until then the others' is asked for, too.
    """
    tty = kernel.state.ttys.get(group.tty) if group.tty else None
    if tty is None:
        return
    tty.doubted = True
    if _device(kernel, group) != tty.number & DEVICE:
        lost(kernel, group)


# -- who may


def is_orphaned(kernel: Kernel, pgid: int) -> bool:
    """Whether no member of a process group has a parent in another group of the same session: nobody would continue it
    when it stops (Linux will_become_orphaned_pgrp). The sandbox's init is of the caller's group and session, 0, or of
    a session of its own."""
    groups = kernel.state.groups
    for tgid in kernel.state.process_groups.get(pgid, ()):
        member = groups[tgid]
        if member.exit_status >= 0:
            continue
        parent = groups.get(member.ppid)
        parent_pgid, parent_sid = (parent.pgid, parent.sid) if parent is not None else (0, kernel.state.init_sid)
        if parent_pgid != pgid and parent_sid == member.sid:
            return False
    return True


def session_of_group(kernel: Kernel, pgid: int) -> int:
    """The session of a process group, or of the process of this id where no group has it (Linux session_of_pgrp); -1
    where an id of this number is only a session's, -2 where there is none at all."""
    state = kernel.state
    if pgid == 0:
        return -2  # how processes of outside show: no id of the sandbox
    for tgid in state.process_groups.get(pgid, ()):
        return state.groups[tgid].sid
    thread = state.tasks.get(pgid)
    group = state.groups.get(pgid if thread is None else thread.tgid)
    if group is not None:
        return group.sid
    if pgid == INIT:
        return state.init_sid
    return -1 if any([group.sid == pgid for group in state.groups.values()]) else -2
