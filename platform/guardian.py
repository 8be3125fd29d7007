"""A small process that outlives a killed sentry by a moment and clears up after it.

It holds one end of a socket and waits. The socket's end without a word means that the sentry died: then it
kills the sandbox's pid 1, gives the caller's terminal back its settings and foreground and removes the sandbox's
state: that which it was told of, and in the state directory whatever bears the sentry's id, since the sentry may
die while it writes that down (so the guardian is started before). It keeps no standard descriptor (a pipeline must
not wait for it), only the terminal. It stays in the caller's session, or it could not move the terminal's
foreground, but has a group of its own and blocks all signals: no ^C, hangup or kill of the caller's group ends it.
"""

from __future__ import annotations

import array
import gc
import os
import select
import signal
import socket
from typing import Any, NoReturn

from trapline.platform import setup_calls as calls
from trapline.platform.caller_terminal import CallerTerminal, edits_a_line, is_gone
from trapline.platform.state_dir import is_named, remove_of, remove_tree, start_time

_PATIENCE_MS = 2000  # for a killed sandbox to be gone


class Guardian:
    """The sentry's side."""

    __slots__ = ("_socket", "pid")

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid  # our child
        self._socket = sock

    def watch(self, init_pidfd: int, state_path: str) -> None:
        """Tell it what to kill and what to remove; -1 and "" for none. The last word counts."""
        handles = array.array("i", [init_pidfd] if init_pidfd >= 0 else [])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles)] if handles else []
        try:
            self._socket.sendmsg([b"W" + os.fsencode(state_path)], rights)
        except OSError:
            pass  # somebody killed it; the state directory's lock still tells

    def finish(self) -> None:
        """The orderly end: it has nothing to do, and is reaped."""
        try:
            self._socket.send(b"D")
        except OSError:
            pass
        self._socket.close()
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass


def start(directory: str = "", terminal: CallerTerminal | None = None) -> Guardian:
    """Fork the guardian: first, while the process is small, has one thread and holds nothing. OSError.

    `directory` is the state directory, prepared, in which entries will be made; "" for none.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    sentry = os.getpid()
    old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            gc.disable()  # a collection would touch, and so copy, every page that we share with the sentry
            try:
                _guard(its, terminal, sentry, directory)
            finally:
                os._exit(0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    its.close()
    return Guardian(pid, ours)


def _guard(sock: socket.socket, terminal: CallerTerminal | None, sentry: int, directory: str) -> NoReturn:
    calls.close_all_but([sock.fileno()] if terminal is None else [sock.fileno(), terminal.fd])
    os.setpgid(0, 0)
    os.chdir("/")  # not to keep a file system busy
    calls.set_name(b"trapline-guard")
    started = start_time(sentry)
    init = -1
    state = ""
    while True:
        message, ancillary, _, _ = sock.recvmsg(4200, 64)
        if message[:1] == b"D":
            os._exit(0)
        if message[:1] != b"W":
            break
        if init >= 0:
            os.close(init)
        init = -1
        state = os.fsdecode(message[1:])
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                init = array.array("i", data)[0]
    # What it is like before the caller, whom we mean to restore it for, has been told of the death.
    left = (terminal.read_settings(), terminal.foreground()) if terminal is not None else None
    if init >= 0:
        try:
            signal.pidfd_send_signal(init, signal.SIGKILL)
        except OSError:
            pass
        poller = select.poll()
        poller.register(init, select.POLLIN)
        poller.poll(_PATIENCE_MS)
    if terminal is not None and left is not None:
        _give_back(terminal, *left)  # not before all guests are gone
    if state and not is_named(state):
        remove_tree(state)
    if directory:
        remove_of(directory, sentry, started)
    os._exit(0)


def _give_back(terminal: CallerTerminal, settings: list[Any] | None, owner: int) -> None:
    """The terminal's settings and foreground, unless the caller's shell has them already.

    A shell that controls jobs takes the terminal at once. One that edits lines then sets it anew, and to set it after
    that would spoil the line; others (dash) leave it as it is. `settings` and `owner` are those that the terminal had
    when we heard of the sentry's death, which may be a moment after the shell did.
    """
    ours = owner in (terminal.group, -1) or is_gone(owner)
    taken = owner == terminal.caller and not edits_a_line(settings)
    if (ours or taken) and terminal.read_settings() == settings:
        terminal.restore()
    owner = terminal.foreground()
    if owner > 0 and is_gone(owner):
        terminal.give(terminal.group)
