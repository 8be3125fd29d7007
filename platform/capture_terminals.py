"""Terminals: pseudoterminals of the sandbox's own devpts, and the caller's.

What a terminal holds unread is taken out and put back (terminal_queues.py). Where its master is trapline's own
(`-t`), that stays with it.

Sources: pty(7), ioctl_tty(2), devpts.rst of the kernel's documentation.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import termios
from typing import TYPE_CHECKING

from trapline.platform import terminal_queues as queues
from trapline.sentry.state.files import InheritedFile, Terminal, TerminalMaster, TerminalSlave

if TYPE_CHECKING:
    from trapline.platform.capture_files import Capture, Held

_TIOCGDEV, _TIOCGPTN, _TIOCGPTLCK, _TIOCGEXCL = 0x80045432, 0x80045430, 0x80045439, 0x80045440
_TIOCSPTLCK = 0x40045431
_PTMX, _DEV_TTY = os.makedev(5, 2), os.makedev(5, 0)
_FIRST_MAJOR, _LAST_MAJOR = 136, 143  # UNIX98_PTY_SLAVE_MAJOR


def describe(work: Capture, held: Held) -> None:
    """Make the record of one description, and of its terminal once all are known."""
    fd = held.descriptor
    own = _devpts(work)
    if held.status.st_rdev == _PTMX:
        number = _int(fd, _TIOCGPTN)
        work.found(held, TerminalMaster(terminal=number))
    else:
        device = _int(fd, _TIOCGDEV)
        number = (os.major(device) - _FIRST_MAJOR) * 256 + os.minor(device)
        slave = held.status.st_dev == own
        if held.status.st_rdev == _DEV_TTY and _FIRST_MAJOR <= os.major(device) <= _LAST_MAJOR:
            slave = _is_ours(work, number, own)
        if not slave:
            _outside(work, held, device)
            return
        work.found(held, TerminalSlave(terminal=number))
    if number not in work.result.terminals:
        work.result.terminals[number] = Terminal(number)
        work.later.append(lambda: _look(work, number))


def hung_up(work: Capture, held: Held) -> bool:
    """Whether it is a terminal whose master is closed; its record is made."""
    if not _FIRST_MAJOR <= os.major(held.status.st_rdev) <= _LAST_MAJOR:
        return False
    key = -held.key
    work.result.terminals[key] = Terminal(-1, mode=stat.S_IMODE(held.status.st_mode))
    work.found(held, TerminalSlave(terminal=key))
    return True


def _devpts(work: Capture) -> int:
    try:
        return os.stat(work.root + b"/dev/pts").st_dev
    except OSError:
        return -1


def _is_ours(work: Capture, number: int, own: int) -> bool:
    try:
        return os.stat(work.root + b"/dev/pts/%d" % number).st_dev == own
    except OSError:
        return False


def _int(fd: int, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0])


def _outside(work: Capture, held: Held, device: int) -> None:
    """The caller's, by another name or number of it."""
    for number, (handle, status) in work.inherited.items():
        if stat.S_ISCHR(status.st_mode) and os.isatty(handle) and _int(handle, _TIOCGDEV) == device:
            work.found(held, InheritedFile(number=number, reopened=True))
            return
    work.drop(held, f"{os.fsdecode(held.link)}, a terminal of the host's")


def _look(work: Capture, number: int) -> None:
    record = work.result.terminals[number]
    master = slave = -1
    for key, file in work.result.files.items():
        if isinstance(file, TerminalMaster) and file.terminal == number:
            master = work.held[key].descriptor
        elif isinstance(file, TerminalSlave) and file.terminal == number:
            slave = work.held[key].descriptor
    record.own = master < 0
    either = master if master >= 0 else slave
    record.settings = queues.settings_of(either)
    window = fcntl.ioctl(either, termios.TIOCGWINSZ, bytes(8))
    record.window = struct.unpack("4H", window)
    record.exclusive = slave >= 0 and bool(_int(slave, _TIOCGEXCL))
    try:
        status = os.stat(work.root + b"/dev/pts/%d" % number)
        record.mode, record.uid, record.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    except OSError:
        pass
    if master < 0:
        return
    record.packet = bool(_int(master, queues.TIOCGPKT))
    record.locked = bool(_int(master, _TIOCGPTLCK))
    poller = select.poll()
    poller.register(master, select.POLLIN)
    events = dict(poller.poll(0)).get(master, 0)
    record.closed = bool(events & select.POLLHUP)
    if slave < 0 and not record.closed:
        return  # it was never opened, and holds nothing
    _contents(record, master)


def _contents(record: Terminal, master: int) -> None:
    was_locked = record.locked
    if was_locked:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = queues.open_slave(master)
    try:
        with queues.without_packets(master):
            record.input = queues.take_input(slave)
            record.output = queues.take_output(master)
            queues.put_input(master, slave, record.input)
            queues.put_output(master, slave, record.output)
    finally:
        os.close(slave)
        if was_locked:
            fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 1))

