"""Requests on terminals that concern whose they are and who is in the foreground (ioctl_tty(2), tcsetpgrp(3)).

All else of ioctl(2) is the host's. What changes something the host executes after it was found right here, and the
kernel's record follows once that succeeded: a master that is closed in between leaves both as they were. The group's
number is read here first and by the host again, so a thread that changes it in between sets them at odds; only its own
session suffers, until the next tcsetpgrp.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from functools import partial

from trapline.sentry.kernel import family, signal_send, tty
from trapline.sentry.kernel.block import Interrupted, Outcome, Restart
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.signals import SI_KERNEL, SIG_IGN, SIGTTOU, bit
from trapline.sentry.kernel.state import TTY, SigInfo, Task
from trapline.sentry.kernel.tty import Terminal
from trapline.sentry.syscalls.table_files import TIOCGPGRP, TIOCGSID, TIOCNOTTY, TIOCSCTTY, TIOCSPGRP, TIOCSTI

CAP_SYS_ADMIN = 21


async def request(kernel: Kernel, task: Task, fd: int, command: int, argument: int) -> int:
    """One request. EBADF; ENOTTY where it is no terminal; EIO once hung up."""
    serve = _SERVED.get(command)
    if serve is None:
        return await kernel.execute()
    try:
        terminal = kernel.platform.terminal(task.tid, fd)
    except OSError as error:
        if error.errno == errno.EIO and command == TIOCSPGRP:
            raise OSError(errno.ENOTTY, "hung up") from None  # Linux hung_up_tty_ioctl
        raise
    tty.resolve(kernel, kernel.group(task), terminal)
    return await serve(kernel, task, terminal, argument)


def _asked(kernel: Kernel, task: Task, terminal: Terminal) -> TTY | None:
    """The session and foreground of a terminal, as TIOCGPGRP and TIOCGSID tell them: at a master everybody may ask, at
    the other end only those whose controlling terminal it is (ENOTTY)."""
    if terminal.master:
        return tty.of_master(kernel, terminal)
    found = tty.of_group(kernel, kernel.group(task), terminal.number)
    if found is None or found.number != terminal.number:
        raise OSError(errno.ENOTTY, "not the caller's terminal")
    return found


async def _get_foreground(kernel: Kernel, task: Task, terminal: Terminal, address: int) -> int:
    """TIOCGPGRP. ENOTTY, EFAULT."""
    found = _asked(kernel, task, terminal)
    kernel.memory(task).write(address, struct.pack("<i", found.foreground if found is not None else 0))
    return 0


async def _get_session(kernel: Kernel, task: Task, terminal: Terminal, address: int) -> int:
    """TIOCGSID. ENOTTY, also at the master of a terminal that is no session's; EFAULT."""
    found = _asked(kernel, task, terminal)
    if found is None:
        raise OSError(errno.ENOTTY, "no session")
    kernel.memory(task).write(address, struct.pack("<i", found.sid))
    return 0


async def _simulate_input(kernel: Kernel, task: Task, terminal: Terminal, address: int) -> int:
    """TIOCSTI: EIO, as where dev.tty.legacy_tiocsti is 0, for everybody without CAP_SYS_ADMIN, which no guest has."""
    raise OSError(errno.EIO, "TIOCSTI is off")


async def _is_turn(kernel: Kernel, task: Task, number: int) -> bool:
    """Whether nobody else's change of this terminal is being executed; else wait for that, and all is to be asked anew.

    What goes wrong otherwise: of two that the host executes at once nobody tells which came last.
    """
    waiting = kernel.changing_ttys.get(number)
    if waiting is None:
        return True
    waiting.append(task.tid)
    outcome = await kernel.block(task, queue="terminal")
    if outcome is Outcome.INTERRUPTED:
        if task.tid in waiting:
            waiting.remove(task.tid)
        raise Interrupted(Restart.NOINTR)
    return False


async def _change(kernel: Kernel, number: int, record: Callable[[], None]) -> int:
    """Have the host execute the call, and record what it changed. The next ones have their turn after that."""
    waiting = kernel.changing_ttys[number] = []
    try:
        result = await kernel.execute()
        if result == 0:
            record()
        return result
    finally:
        del kernel.changing_ttys[number]
        for tid in waiting:
            task = kernel.state.tasks.get(tid)
            if task is not None:
                kernel.resume(task, Outcome.WOKEN)


async def _check_change(kernel: Kernel, task: Task, number: int) -> None:
    """A process in the background wants to change its terminal: SIGTTOU to its group, which stops it unless somebody
    handles that (Linux tty_check_change). ENOTTY for an orphaned group, as tcsetpgrp has it; Interrupted.

    Whoever blocks or ignores SIGTTOU, as every shell does, goes on. Else the call ends with ERESTARTSYS: after the
    stop, or a handler with SA_RESTART, or at once where another thread took the signal, it begins anew.
    """
    while True:
        group = kernel.group(task)
        found = tty.of_group(kernel, group, number)
        if found is None or found.number != number or found.foreground == group.pgid:
            return
        if task.mask & bit(SIGTTOU) or signal_send.action_of(group, SIGTTOU).handler == SIG_IGN:
            return
        if tty.is_orphaned(kernel, group.pgid):
            raise OSError(errno.ENOTTY, "orphaned process group")
        for member in family.members(kernel.state, group.pgid):
            if member.threads:
                signal_send.send(kernel, member, SigInfo(signo=SIGTTOU, code=SI_KERNEL))
        if await kernel.after_signals() is Outcome.INTERRUPTED:
            raise Interrupted(Restart.SYS)


def _new_foreground(kernel: Kernel, task: Task, terminal: Terminal, address: int) -> int:
    """The group that TIOCSPGRP names (Linux tiocspgrp): EFAULT, EINVAL, ENOTTY, ESRCH, EPERM in that order."""
    (pgid,) = struct.unpack("<i", kernel.memory(task).read(address, 4))
    if pgid < 0:
        raise OSError(errno.EINVAL, "negative group")
    group = kernel.group(task)
    found = tty.of_group(kernel, group, terminal.number)
    if found is None or found.number != terminal.number or found.sid != group.sid:
        raise OSError(errno.ENOTTY, "not the caller's terminal")
    session = tty.session_of_group(kernel, pgid)
    if session == -2:
        raise OSError(errno.ESRCH, "no such group")
    if session != group.sid:
        raise OSError(errno.EPERM, "group of another session")
    return int(pgid)


async def _set_foreground(kernel: Kernel, task: Task, terminal: Terminal, address: int) -> int:
    """TIOCSPGRP, after the check of who is in the background."""
    while True:
        await _check_change(kernel, task, terminal.number)
        pgid = _new_foreground(kernel, task, terminal, address)
        if await _is_turn(kernel, task, terminal.number):
            break

    def record() -> None:
        found = kernel.state.ttys.get(terminal.number)
        if found is not None:
            found.foreground = pgid

    return await _change(kernel, terminal.number, record)


def _may_acquire(kernel: Kernel, task: Task, terminal: Terminal, argument: int) -> bool:
    """TIOCSCTTY (Linux tiocsctty). EPERM for who leads no session, has a terminal already, asks for another session's
    (but with the argument 1 and CAP_SYS_ADMIN, which steals it), or opened it for writing only. False where it is the
    caller's already, which is no error."""
    group = kernel.group(task)
    leads = group.sid == group.tgid
    own = tty.of_group(kernel, group, terminal.number)
    if leads and own is not None and own.number == terminal.number:
        return False
    if not leads or own is not None:
        raise OSError(errno.EPERM, "no session leader, or one that has a terminal")
    other = tty.of_master(kernel, terminal)
    if other is not None and not tty.is_held(kernel, other):
        tty.forget(kernel, other)
        other = None
    if other is not None and not (argument == 1 and _is_admin(kernel, task)):
        raise OSError(errno.EPERM, "another session's")
    if not terminal.readable and not _is_admin(kernel, task):
        raise OSError(errno.EPERM, "not open for reading")
    return True


async def _acquire(kernel: Kernel, task: Task, terminal: Terminal, argument: int) -> int:
    """TIOCSCTTY."""
    while _may_acquire(kernel, task, terminal, argument):
        if await _is_turn(kernel, task, terminal.number):
            group = kernel.group(task)
            return await _change(kernel, terminal.number, partial(tty.acquired, kernel, group, terminal.number))
    return 0


def _is_admin(kernel: Kernel, task: Task) -> bool:
    return bool(kernel.platform.credentials(task.tid)[1] >> CAP_SYS_ADMIN & 1)


async def _give_up(kernel: Kernel, task: Task, terminal: Terminal, argument: int) -> int:
    """TIOCNOTTY: the caller's own terminal (ENOTTY), for the leader that of its whole session.

    The host tells the foreground group of that, by SIGHUP and SIGCONT; they become the kernel's at their stops.
    """
    while True:
        group = kernel.group(task)
        found = tty.of_group(kernel, group, terminal.number)
        if terminal.master or found is None or found.number != terminal.number:
            raise OSError(errno.ENOTTY, "not the caller's terminal")
        if await _is_turn(kernel, task, terminal.number):
            return await _change(kernel, terminal.number, partial(tty.lost, kernel, group))


_SERVED = {
    TIOCSCTTY: _acquire,
    TIOCNOTTY: _give_up,
    TIOCGPGRP: _get_foreground,
    TIOCSPGRP: _set_foreground,
    TIOCGSID: _get_session,
    TIOCSTI: _simulate_input,
}
