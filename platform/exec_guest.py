"""One more process for a running sandbox, made from outside: the host's side of `trapline exec`.

    sentry ── entrant (enters the namespaces, ends at once) ── guest, which the sentry then has as its child

A pid and a time namespace are entered by children only, so there are two forks. Nothing of the sentry's gets in but
standard descriptors that somebody gave for it: the rest is closed before anything is entered. The guest becomes who
it is to be, installs the sandbox's filter, whose listener is its own (a filter has one), and waits for the sentry to
trace it, as the sandbox's first guest does. What goes wrong comes back as one line over a socket.

Sources: setns(2), pid_namespaces(7) (a child whose parent is outside), user_namespaces(7), pty(7).
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
import termios
from typing import NoReturn

from trapline.platform import guest_identity, mounts, terminal_nodes
from trapline.platform import setup_calls as calls
from trapline.platform.first_processes import GuestMain, default_signals, enter_directory, fail
from trapline.sentry.control.interface import ExecSpec
from trapline.sentry.options import User

#: (name in /proc/PID/ns, flag) in the order of entering: the user namespace gives the right to the others.
_NAMESPACES = (
    ("user", calls.CLONE_NEWUSER),
    ("pid", calls.CLONE_NEWPID),
    ("time", calls.CLONE_NEWTIME),
    ("ipc", calls.CLONE_NEWIPC),
    ("uts", calls.CLONE_NEWUTS),
    ("net", calls.CLONE_NEWNET),
    ("mnt", calls.CLONE_NEWNS),
)


class Door:
    """The way into a sandbox's namespaces: descriptors of those that are not ours. OSError."""

    __slots__ = ("handles", "in_user")

    def __init__(self, init: int) -> None:
        self.handles: list[tuple[int, int]] = []
        self.in_user = False  # inside a user namespace of the sandbox's own
        for name, flag in _NAMESPACES:
            try:
                handle = os.open(f"/proc/{init}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if os.path.exists(f"/proc/self/ns/{name}"):
                    self.close()
                    raise
                continue  # a kernel without it
            if os.path.samestat(os.fstat(handle), os.stat(f"/proc/self/ns/{name}")):
                os.close(handle)
            else:
                self.handles.append((handle, flag))
                self.in_user = self.in_user or name == "user"

    def enter(self) -> None:
        """OSError."""
        for handle, flag in self.handles:
            calls.setns(handle, flag)

    def close(self) -> None:
        """Give the descriptors back."""
        for handle, _ in self.handles:
            os.close(handle)
        self.handles = []


class Entrant:
    """What runs in the two processes. Never returns there, nor raises."""

    def __init__(self, spec: ExecSpec, user: User | None, directory: str, door: Door, guest_main: GuestMain) -> None:
        self.spec = spec
        self.user = user
        self.directory = directory
        self.door = door
        self.guest_main = guest_main
        self.cpus: list[int] = []
        self.ignored: set[int] = set()  # signals that the sentry ignores since its caller did

    def fork(self, channel: socket.socket, stdio: list[int]) -> int:
        """Start it; the entrant's id. Call it while the process has one thread. OSError."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._enter(channel, stdio)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _enter(self, channel: socket.socket, stdio: list[int]) -> NoReturn:
        try:
            gc.disable()  # a collection would touch, and so copy, every page that we share with the sentry
            signal.set_wakeup_fd(-1)  # trio's
            channel = self._keep(channel, stdio)
            if not self.door.in_user:
                # Guests of the same user could reach into this copy of the sentry by /proc. (An ordinary user's sentry
                # would not be allowed to trace it then.)
                calls.prctl(calls.PR_SET_DUMPABLE, 0)
            self.door.enter()
            if os.fork() == 0:
                self._guest(channel)
            os._exit(0)
        except BaseException as error:
            fail(channel, error)

    def _keep(self, channel: socket.socket, stdio: list[int]) -> socket.socket:
        """Standard descriptors at their places, and all else closed but what is still needed."""
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in stdio]
        for place, fd in enumerate(moved):
            os.dup2(fd, place)
        if not moved:
            null = os.open(os.devnull, os.O_RDWR)
            for place in (0, 1, 2):
                os.dup2(null, place)
        calls.close_all_but([0, 1, 2, channel.fileno(), *[handle for handle, _ in self.door.handles]])
        return channel

    def _guest(self, channel: socket.socket) -> NoReturn:
        try:
            self.door.close()
            terminals = self._terminal() if self.spec.terminal else []
            if not terminals:
                os.setsid()
            if self.cpus:
                os.sched_setaffinity(0, self.cpus)
            default_signals()
            for number in self.ignored & {int(s) for s in signal.valid_signals()}:
                signal.signal(number, signal.SIG_DFL)
            guest_identity.take(self.user, self.spec.rlimits, self.spec.capabilities)
            enter_directory(self.directory)  # as who it is
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            socket.send_fds(channel, [b"G"], terminals)
            for handle in terminals:
                os.close(handle)
            self.guest_main(channel)
        except BaseException as error:
            fail(channel, error)

    def _terminal(self) -> list[int]:
        """A terminal of the sandbox's own, which becomes ours: its master and slave."""
        plan = mounts.Plan(stage="")
        plan.own_terminal = True
        rows, columns = self.spec.size
        plan.window = (rows, columns, 0, 0) if rows or columns else None
        terminal_nodes.make_own(plan, "/dev")
        if self.user is not None:
            os.chown(plan.terminals[1], self.user.uid, -1)
        terminal_nodes.enter(plan)
        return plan.terminals


def set_size(slave: int, rows: int, columns: int) -> None:
    """TIOCSWINSZ on either side of a terminal. OSError."""
    import struct

    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
