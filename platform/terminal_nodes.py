"""What /dev of a sandbox shows of terminals: its own devpts, and in it the caller's terminal under its own name.

The sandbox's devpts numbers its terminals from 0, as the host's does, so a name and a device number that the caller's
terminal has may be given out again inside; ttyname(3) and ps(1) would then take one for the other. So the number
is reserved: all lower ones are opened too, the one wanted is kept, and the host's node is mounted over it.
Sources: devpts.rst of the kernel's documentation, pts(4), ttyname(3), ioctl_tty(2).
"""

from __future__ import annotations

import fcntl
import os
import resource
import struct
import termios
from typing import TYPE_CHECKING

from trapline.platform.setup_calls import MS_BIND, mount

if TYPE_CHECKING:
    from trapline.platform.caller_terminal import CallerTerminal
    from trapline.platform.mounts import Plan

TIOCGPTN, TIOCSPTLCK = 0x80045430, 0x40045431  # asm-generic/ioctls.h
_SPARE = 32  # descriptors that the set-up itself needs
_PTS = "/dev/pts/"
DEFAULT_SIZE = (24, 80, 0, 0)  # rows and columns where nobody says


def window_size(terminal: CallerTerminal | None) -> tuple[int, int, int, int]:
    """The caller's window as struct winsize has it, or a usual one."""
    if terminal is not None:
        try:
            raw = fcntl.ioctl(terminal.fd, termios.TIOCGWINSZ, bytes(8))
        except OSError:
            return DEFAULT_SIZE
        rows, columns, width, height = struct.unpack("4H", raw)
        if rows and columns:
            return rows, columns, width, height
    return DEFAULT_SIZE


def show(plan: Plan, dev: str) -> None:
    """Once the sandbox's devpts is mounted at `dev`/pts, and before the host's /dev is out of reach."""
    if plan.own_terminal:
        make_own(plan, dev)
        _show_at(plan, f"{dev}/pts/0", f"{dev}/console", "/dev/console")
        return
    name = plan.terminal
    if not name:
        return
    # Programs that were told of /dev/console, as of a container's, find it there.
    _show_at(plan, name, dev + "/console", "/dev/console")
    if name.startswith(_PTS):
        if name[len(_PTS) :].isdecimal() and not _reserve(plan, dev, int(name[len(_PTS) :])):
            return
    elif not name.startswith("/dev/") or os.path.lexists(dev + name[4:]):
        return
    _show_at(plan, name, dev + name[4:], name)
    plan.terminal_shown = name


def _show_at(plan: Plan, source: str, target: str, name: str) -> None:
    """Bind a terminal's node; what it is bound over is made if there is nothing."""
    try:
        if not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
        mount(source, target, None, MS_BIND)
    except OSError as error:
        plan.notes.append(f"{source} is not shown as {name}: {error.strerror}")


def _open_master(dev: str) -> tuple[int, int]:
    """(descriptor, number) of a new terminal of the sandbox's devpts."""
    master = os.open(dev + "/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    (number,) = struct.unpack("I", fcntl.ioctl(master, TIOCGPTN, bytes(4)))
    return master, number


def _reserve(plan: Plan, dev: str, wanted: int) -> bool:
    """Keep a number from being given out, for as long as `plan.terminals` is open. False, and a note, if it cannot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []
    try:
        if wanted + _SPARE > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted + _SPARE, hard), hard))
        while True:
            master, number = _open_master(dev)
            opened.append(master)
            if number >= wanted:
                break
        if number == wanted:
            plan.terminals.append(opened.pop())
            return True
        reason = "its number is not free"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    finally:
        for master in opened:
            os.close(master)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    plan.notes.append(f"the terminal has no name but /dev/console: {_PTS}{wanted} cannot be kept: {reason}")
    return False


def make_own(plan: Plan, dev: str) -> None:
    """The terminal of `-t`: the first of the sandbox's, so /dev/pts/0. Its master, then its slave, which stays open
    with the sentry: a session that closes its terminal for a moment would else look like the end."""
    master, number = _open_master(dev)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    slave = os.open(f"{dev}/pts/{number}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if plan.window is not None:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", *plan.window))
    plan.terminals += [master, slave]
    plan.terminal_shown = f"{_PTS}{number}"


def enter(plan: Plan) -> None:
    """In the first guest, in its root, with the caller's descriptors: let its standard descriptors be terminals that
    have a name here. Never fails: what cannot be opened stays as it was."""
    if plan.own_terminal:
        os.setsid()
        terminal = os.open(plan.terminal_shown, os.O_RDWR)  # without a controlling terminal: it becomes that
        for fd in (0, 1, 2):
            os.dup2(terminal, fd)
        if terminal > 2:
            os.close(terminal)
        return
    if plan.terminal_shown:
        _reopen(plan)


def _reopen(plan: Plan) -> None:
    """What was opened on the host has a path outside of the guest's root, which ttyname(3) does not find. Descriptors
    that look like one open file of the caller's become one again: flags that a program sets on one show on all."""
    try:
        like = os.stat(plan.terminal_shown)
    except OSError:
        return
    opened: dict[int, int] = {}
    for fd in (0, 1, 2):
        try:
            found = os.fstat(fd)
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        except OSError:
            continue  # closed by the caller
        if (found.st_rdev, found.st_ino, found.st_dev) != (like.st_rdev, like.st_ino, like.st_dev):
            continue
        if flags & os.O_PATH:
            continue
        if flags not in opened:
            keep = os.O_ACCMODE | os.O_NONBLOCK | os.O_APPEND
            try:
                opened[flags] = os.open(plan.terminal_shown, flags & keep | os.O_NOCTTY | os.O_CLOEXEC)
            except OSError as error:
                # Another user's terminal, after su(1); or one that is opened exclusively.
                plan.notes.append(f"{plan.terminal_shown} cannot be opened, so it has no name: {error.strerror}")
                break
        os.dup2(opened[flags], fd)
    for handle in opened.values():
        os.close(handle)
