"""`trapline run` and `create`: a sandbox with a name, whose program is its pid 1, and which may outlive its caller.

A detached one is a process in a session of its own, forked before anything else is made. Whoever asked for it waits at
a pipe for one word: that the program was executed (or waits to be), or why not. Standard descriptors: `run -d` has none
of the caller's, and what it writes goes to output.log of its directory; a created one has the caller's, as the OCI
runtime specification has it, and its sentry gives them up once they are the program's.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, NoReturn

from trapline.platform import caller_terminal, early_imports, run, state_dir
from trapline.platform.first_processes import SetupError, explain
from trapline.sentry.log import say
from trapline.sentry.options import ContainerOptions

if TYPE_CHECKING:
    from trapline.platform.own_terminal import OwnTerminal
    from trapline.platform.session import Session

_LOG = "output.log"
_STARTED = b"R"


def run_container(options: ContainerOptions, beginning: run.Beginning | None = None) -> int:
    """The program's exit status; of a detached one 0. StateDirError and SetupError where it cannot be made."""
    path = state_dir.prepare(options.sandbox.state_dir)
    state_dir.remove_stale(path)
    if not options.detach:
        return Container(options, path, beginning=beginning).run()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(reader)
        _detached(options, path, writer, beginning)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, "rb") as file:
        answer = file.read()
    if answer != _STARTED:
        raise SetupError(answer[1:].decode(errors="surrogateescape") or "the process that makes the sandbox was killed")
    return 0


def _detached(options: ContainerOptions, path: str, writer: int, beginning: run.Beginning | None) -> NoReturn:
    status = run.FAILED
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        status = Container(options, path, writer, beginning).run()
    except (state_dir.StateDirError, SetupError) as error:
        _tell(writer, b"E" + str(error).encode(errors="surrogateescape"))
    except BaseException as error:
        _tell(writer, f"E{type(error).__name__}: {error}".encode(errors="surrogateescape"))
        raise
    finally:
        os._exit(status)


def _tell(writer: int, word: bytes) -> None:
    try:
        os.write(writer, word)
        os.close(writer)
    except OSError:
        pass  # nobody waits any more, or was told already


class Container:
    """One named sandbox. `writer`: where whoever waits for its start is told, -1 for nobody."""

    def __init__(
        self, options: ContainerOptions, path: str, writer: int = -1, beginning: run.Beginning | None = None
    ) -> None:
        self.options = options
        self._beginning = beginning
        self._path = path
        self._writer = writer
        self._log = -1
        self._was_started = False
        self._heard = False
        self._session: Session | None = None

    def run(self) -> int:
        """Make it and serve it to its end; the exit status. StateDirError, SetupError."""
        options = self.options
        sandbox = options.sandbox
        # A detached one has no terminal, and one in a session of its own has nothing to do with the caller's but copy.
        wanted = sandbox.tty or (self._beginning is not None and self._beginning.on_callers_terminal)
        terminal = caller_terminal.find() if wanted and not options.detach else None
        watcher = run.start_guardian(self._path, terminal)
        entry: state_dir.Entry | None = None
        own: OwnTerminal | None = None
        status = -1
        try:
            if sandbox.console_socket is not None or not options.detach:
                own = run.own_terminal(sandbox, terminal)
            entry = state_dir.create(
                self._path, sandbox.command, sandbox.platform, name=options.id, bundle=options.bundle
            )
            entry.info.annotations = options.annotations
            if options.detach:
                self._open_log(entry.path)
            status = run.run_in(sandbox, entry, watcher, terminal, own, self, self._beginning)[0]
            if not self._was_started:
                self._ended_at_once()
            return status
        finally:
            if own is not None:
                own.close()
            if entry is not None and (status < 0 or not self._was_started):
                entry.remove()
            elif entry is not None:
                try:
                    entry.finish(status)
                except OSError as error:
                    say(f"trapline: the end of {options.id} cannot be written down: {error.strerror}")
            watcher.finish()

    def _open_log(self, directory: str) -> None:
        try:
            self._log = os.open(f"{directory}/{_LOG}", os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SetupError(f"the log cannot be written: {explain(error)}") from None
        if not self.options.created:
            self._take_standard()

    def _take_standard(self) -> None:
        """From here on what we say goes to the log."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.close(null)
        for fd in (1, 2):
            os.dup2(self._log, fd)

    # -- called by run_in
    def made(self, session: Session) -> None:
        """The sandbox is there, and its first guest stands before its program. SetupError."""
        from trapline.platform.exec_guest import Door

        self._session = session
        sandbox = session.sandbox
        session.door = Door(sandbox.init_pid)
        session.held = self.options.created
        if self.options.detach:
            if self.options.sandbox.tty and self.options.sandbox.console_socket is None:
                session.take_console(self._log)
            if self.options.created:
                self._take_standard()  # others have ours, by which a checkpoint knows them (capture_files.py)
            os.chdir("/")  # not to keep a file system busy
        session.pump.at_leisure(early_imports.steps())
        session.pump.add(sandbox.channel.fileno(), self._hear, self._hear)
        session.hear_first = self._hear
        if self.options.created:
            self._started()

    def _hear(self) -> None:
        """The channel's end: the program is being executed. Or a word on why not. Called once more at the end: that of
        the first guest may have been served before this."""
        session = self._session
        assert session is not None
        if self._heard:
            return
        self._heard = True
        session.pump.remove(session.sandbox.channel.fileno())
        try:
            message = session.sandbox.channel.recv(4096, socket.MSG_DONTWAIT)
        except OSError:
            message = b""
        if message[:1] == b"X":
            session.failure = message[1:].decode(errors="surrogateescape").partition(" ")[2]
            if self._writer >= 0:
                _tell(self._writer, b"E" + session.failure.encode(errors="surrogateescape"))
        elif not self._was_started:
            self._started()
        session.on_executed()

    def _ended_at_once(self) -> None:
        """It ended before anything was heard of its start, which is: it could not execute its program, or it did, and
        was quick."""
        assert self._session is not None
        why = self._session.failure or self._session.error
        if not why:
            self._started()
        elif self._writer >= 0:
            _tell(self._writer, b"E" + why.encode(errors="surrogateescape"))

    def _started(self) -> None:
        writer, self._writer, self._was_started = self._writer, -1, True
        self._write_pid_file()
        if writer >= 0:
            _tell(writer, _STARTED)

    def _write_pid_file(self) -> None:
        path = self.options.pid_file
        if path is None:
            return
        directory, _, name = path.rpartition("/")
        temporary = f"{directory}/.{name}"
        try:
            # Whoever waits for it to appear finds it complete.
            with open(temporary, "w") as file:
                file.write(str(os.getpid()))
            os.rename(temporary, path)
        except OSError as error:
            raise SetupError(f"--pid-file {path}: {error.strerror}") from None
