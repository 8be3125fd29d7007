"""A terminal of the sandbox's own for the first guest (`-t`, `--record`, `--console-socket`), and who has its master.

Its slave is /dev/pts/0 inside, made by the sandbox's set-up (terminal_nodes.py). The master goes to a relay, or to
whoever listens on the console socket, as runc(8) does it: one SCM_RIGHTS message on a unix stream socket.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from typing import NoReturn

from trapline.platform import setup_calls as calls
from trapline.platform.caller_terminal import CallerTerminal
from trapline.platform.recording import Recording
from trapline.platform.terminal_nodes import window_size
from trapline.sentry.log import say
from trapline.sentry.options import DoOptions

_SHOWN = (b"SHELL", b"TERM")  # of the environment
_NAME = b"/dev/ptmx"  # the message's text: the name of what is sent, which receivers expect and print


class OwnTerminal:
    """See the module. Made before the sandbox, so that a mistake shows before anything runs. OSError, whose filename
    says of which file."""

    def __init__(self, options: DoOptions, terminal: CallerTerminal | None) -> None:
        self.terminal = terminal
        self.pid = 0  # of the relay; 0: none, or it has ended
        self._options = options
        self._status = 0
        self.slave = -1
        self._console: socket.socket | None = None
        self._recording: Recording | None = None
        if options.console_socket is not None:
            self._console = _connect(options.console_socket)
        if options.record is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._recording = Recording(os.open(options.record, flags, 0o644), options.clock_rate, options.record_input)

    def start(self, terminals: list[int], timestamp: int) -> None:
        """The sandbox is made: take the descriptors of its terminal, master and slave. `timestamp`: its REALTIME, s.
        OSError."""
        master, self.slave = terminals
        terminals.clear()
        try:
            if self._console is not None:
                socket.send_fds(self._console, [_NAME], [master])
                self._console.close()
                return
            sentry = os.getpid()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                self.pid = os.fork()
                if self.pid == 0:
                    self._relay(master, timestamp, sentry)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        finally:
            os.close(master)

    def _relay(self, master: int, timestamp: int, sentry: int) -> NoReturn:
        gc.disable()
        status = 0
        try:
            from trapline.platform.terminal_relay import Relay

            recording = self._recording
            keep = [0, 1, 2, master, *([recording.fd] if recording is not None else [])]
            if self.terminal is not None:
                keep.append(self.terminal.fd)
            calls.close_all_but(keep)
            calls.set_name(b"trapline-tty")
            calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != sentry:
                os._exit(0)
            if recording is not None:
                rows, columns, _, _ = window_size(self.terminal)
                environment = self._options.environment(dict(os.environb))
                shown = {n.decode(): environment[n].decode(errors="replace") for n in _SHOWN if n in environment}
                recording.begin((rows, columns), timestamp, _as_typed(self._options.command), shown)
            Relay(master, self.terminal, recording).run()
            if recording is not None:
                recording.end()
                status = min(recording.error, 255)
        finally:
            os._exit(status)

    def ended(self, pid: int, status: int) -> bool:
        """A child of the sentry's was reaped: whether it was the relay."""
        if not self.pid or pid != self.pid:
            return False
        self.pid, self._status = 0, os.waitstatus_to_exitcode(status)
        return True

    def finish(self) -> None:
        """All guests are gone: wait until what they wrote has been passed on; the caller's terminal is as it was."""
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1
        if self.pid:
            try:
                self.ended(*os.waitpid(self.pid, 0))
            except ChildProcessError:
                self.pid = 0
        terminal = self.terminal
        if terminal is not None and (not terminal.controlling or terminal.foreground() == terminal.group):
            terminal.restore()
        if self._status > 0:
            say(f"trapline: --record {self._options.record}: {os.strerror(self._status)}; the rest is not in it")

    def close(self) -> None:
        """Give up what was made before the sandbox."""
        if self._console is not None:
            self._console.close()
        if self._recording is not None:
            os.close(self._recording.fd)


def _connect(path: str) -> socket.socket:
    console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        console.connect(path)
    except OSError as error:
        console.close()
        raise OSError(error.errno, error.strerror or str(error), path) from None
    return console


def _as_typed(command: list[str]) -> str:
    from shlex import join

    return join(command).encode(errors="replace").decode()
