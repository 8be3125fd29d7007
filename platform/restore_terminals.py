"""Pseudoterminals made again under their numbers, with their settings and what they held. See restore_files.py.

devpts gives out the lowest number that is free, so all lower ones are opened too, and closed again where nobody wants
them. """

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from typing import TYPE_CHECKING

from trapline.platform import descriptor_calls as calls
from trapline.platform import terminal_queues as queues
from trapline.sentry.state.files import Terminal, TerminalMaster, TerminalSlave

if TYPE_CHECKING:
    from trapline.platform.restore_files import Pool

_TIOCGPTN, _TIOCSPTLCK = 0x80045430, 0x40045431
_PTMX = "/dev/ptmx"
_ACCESS = os.O_ACCMODE | os.O_NONBLOCK


def open_terminals(pool: Pool) -> None:
    """All of them, with both sides. OSError."""
    masters = _open_masters(pool)
    for key, record in pool.image.terminals.items():
        if record.own:
            _open_own(pool, key, record)
        elif record.number < 0:
            _open_hung_up(pool, key)
        else:
            _open(pool, key, record, masters[record.number])
    for kind in (TerminalMaster, TerminalSlave):
        for key, file in pool.of_kind(kind):
            pool.set_flags(key, file)


def _open_master() -> tuple[int, int]:
    made = os.open(_PTMX, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    return made, struct.unpack("i", fcntl.ioctl(made, _TIOCGPTN, bytes(4)))[0]


def _open_masters(pool: Pool) -> dict[int, int]:
    wanted = {r.number for r in pool.image.terminals.values() if not r.own and r.number >= 0}
    found: dict[int, int] = {}
    others: list[int] = []
    try:
        while wanted - set(found):
            made, number = _open_master()
            if number in wanted:
                found[number] = made
                continue
            others.append(made)
            if number > max(wanted):
                missing = min(wanted - set(found))
                raise OSError(errno.EBUSY, f"the terminal number {missing} is not free", _PTMX)
    finally:
        for made in others:
            os.close(made)
    return found


def _of(pool: Pool, kind: type[TerminalMaster] | type[TerminalSlave], terminal: int) -> list[int]:
    return [
        key
        for key, file in pool.image.files.items()
        if isinstance(file, TerminalMaster | TerminalSlave) and isinstance(file, kind) and file.terminal == terminal
    ]


def _open(pool: Pool, number: int, record: Terminal, master: int) -> None:
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    path = f"/dev/pts/{record.number}"
    try:
        os.chown(path, record.uid, record.gid)
    except OSError:
        pass  # an id that does not exist here
    os.chmod(path, record.mode)
    slaves = _of(pool, TerminalSlave, number)
    for key in slaves:
        flags = pool.image.files[key].flags
        wanted = flags & _ACCESS | os.O_NOCTTY
        # What the C library opens by the master is not marked as opened by a path.
        by_path = flags & calls.O_LARGEFILE
        pool.put(key, os.open(path, wanted) if by_path else fcntl.ioctl(master, queues.TIOCGPTPEER, wanted))
    fcntl.ioctl(master, queues.TCSETS2, record.settings)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", *record.window))
    if slaves or record.closed:
        slave = queues.open_slave(master)
        try:
            queues.put_input(master, slave, record.input)
            queues.put_output(master, slave, record.output)
            if record.exclusive:
                fcntl.ioctl(slave, termios.TIOCEXCL)
        finally:
            os.close(slave)
    if record.packet:
        fcntl.ioctl(master, queues.TIOCPKT, struct.pack("i", 1))
    if record.locked:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 1))
    for key in _of(pool, TerminalMaster, number):
        pool.put(key, master)


def _open_hung_up(pool: Pool, number: int) -> None:
    """One whose master is closed."""
    master, _ = _open_master()
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    for key in _of(pool, TerminalSlave, number):
        wanted = pool.image.files[key].flags & _ACCESS | os.O_NOCTTY
        os.fchmod(pool.put(key, fcntl.ioctl(master, queues.TIOCGPTPEER, wanted)), pool.image.terminals[number].mode)
    os.close(master)


def _open_own(pool: Pool, number: int, record: Terminal) -> None:
    """The terminal of the sandbox's own, whose master is trapline's."""
    path = pool.terminal or f"/dev/pts/{record.number}"
    for key in _of(pool, TerminalSlave, number):
        try:
            made = os.open(path, pool.image.files[key].flags & _ACCESS | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            pool.notes.append("there is no terminal in the place of the one that the sandbox had: it is /dev/null")
            made = os.open("/dev/null", pool.image.files[key].flags & os.O_ACCMODE | os.O_CLOEXEC)
        else:
            fcntl.ioctl(made, queues.TCSETS2, record.settings)
        pool.put(key, made)
