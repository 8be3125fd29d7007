"""`trapline do`: from options to an exit status."""

from __future__ import annotations

import os
import resource
import signal
from typing import TYPE_CHECKING, Protocol

from trapline.platform import caller_terminal, control_socket, features, guardian, guest_start, namespaces, state_dir
from trapline.platform.caller_terminal import CallerTerminal
from trapline.platform.first_processes import explain
from trapline.sentry.log import say
from trapline.sentry.options import ContainerOptions, DoOptions

if TYPE_CHECKING:
    import socket

    from trapline.platform.container import Container
    from trapline.platform.own_terminal import OwnTerminal
    from trapline.platform.session import Session

FAILED = 125


def run_sandbox(options: DoOptions, beginning: Beginning | None = None) -> int:
    """Run a command in a sandbox of its own; the exit status as a shell gives it (128+N for signal N). With `beginning`
    SetupError and StateDirError where it cannot be.

    Where there is a terminal it does not return for a command that died of a signal, but dies of the same.
    """
    try:
        path = state_dir.prepare(options.state_dir)
    except state_dir.StateDirError as error:
        if beginning is not None:
            raise
        return _fail(str(error))
    state_dir.remove_stale(path)
    terminal = caller_terminal.find()
    watcher: guardian.Guardian | None = None
    entry = own = None
    try:
        watcher = start_guardian(path, terminal)
        own = own_terminal(options, terminal)
        entry = state_dir.create(path, options.command, options.platform)
        status, killed = run_in(options, entry, watcher, terminal, own, beginning=beginning)
    except (state_dir.StateDirError, namespaces.SetupError) as error:
        if beginning is not None:
            raise  # another verb's, which has its own words and status
        return _fail(str(error))
    finally:
        if own is not None:
            own.close()
        if entry is not None:
            entry.remove()
        if watcher is not None:
            watcher.finish()
    if killed and terminal is not None:
        _end_by(killed)
    return status


def start_guardian(path: str, terminal: CallerTerminal | None) -> guardian.Guardian:
    """SetupError."""
    try:
        return guardian.start(path, terminal)
    except OSError as error:
        raise namespaces.SetupError(f"no process can be made: {explain(error)}") from None


def own_terminal(options: DoOptions, terminal: CallerTerminal | None) -> OwnTerminal | None:
    """What `options.tty` asks for, before the sandbox is made. SetupError."""
    if not options.tty:
        return None
    from trapline.platform.own_terminal import OwnTerminal

    try:
        return OwnTerminal(options, terminal)
    except OSError as error:
        flag = "--console-socket" if error.filename == options.console_socket else "--record"
        raise namespaces.SetupError(f"{flag} {error.filename}: {error.strerror}") from None


def _end_by(number: int) -> None:
    """Die of the signal that the command died of. A shell then says to its user what it says natively, and the loop of
    a script ends with ^C, which it does only when what it waits for died of that."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
    except ValueError:
        return  # one that Python hides (32, 33)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)


class Beginning(Protocol):
    """How a sandbox begins: with a program, or where an image left off (restore.py)."""

    @property
    def on_callers_terminal(self) -> bool:
        """Whether its processes may be a job of the caller's shell, on the caller's terminal, also where it has a
        name."""

    def start(self, entry: state_dir.Entry, terminal: CallerTerminal | None) -> namespaces.Setup:
        """Fork its first processes. SetupError."""

    def session(self, sandbox: namespaces.Sandbox, terminal: CallerTerminal | None, own: OwnTerminal | None) -> Session:
        """Once its first guest stands before what it is to be. SetupError."""


class NewSandbox:
    """It begins with a program."""

    on_callers_terminal = False  # where it has a name, it leads a session

    def __init__(self, options: DoOptions, container: Container | None) -> None:
        self._options = options
        self._container = container
        self._launch = guest_start.Launch(options, bool(features.Features(options.without).wait_killable_recv))

    def start(self, entry: state_dir.Entry, terminal: CallerTerminal | None) -> namespaces.Setup:
        options, container = self._options, self._container
        is_init = container is not None
        guest_main = self._launch.main(options.command, look=container is not None and container.options.created)
        return namespaces.start(
            options, guest_main, entry.stage, terminal=terminal, hostname=options.hostname, is_init=is_init
        )

    def session(self, sandbox: namespaces.Sandbox, terminal: CallerTerminal | None, own: OwnTerminal | None) -> Session:
        from trapline.platform.session import Session

        return Session(self._options, sandbox, features, terminal, own, self._launch)


def run_in(
    options: DoOptions,
    entry: state_dir.Entry,
    watcher: guardian.Guardian,
    terminal: CallerTerminal | None,
    own: OwnTerminal | None,
    container: Container | None = None,
    beginning: Beginning | None = None,
) -> tuple[int, int]:
    """(exit status, the signal that the command died of or 0). SetupError. With `container` the command is pid 1."""
    beginning = beginning or NewSandbox(options, container)
    setup = beginning.start(entry, terminal)
    # The set-up needs some milliseconds of another process's: import what we need meanwhile.
    from trapline.platform import session as _  # noqa: F401

    listener = _listen(entry, required=container is not None)
    sandbox = setup.wait()
    session: Session | None = None
    try:
        try:
            entry.record_init(sandbox.init_pid)
            watcher.watch(sandbox.init_pidfd, entry.path)
            session = beginning.session(sandbox, terminal, own)
        except OSError as error:
            raise namespaces.SetupError(f"the sandbox cannot be made: {explain(error)}") from None
        if listener is not None:
            session.listen(listener)
        if container is not None:
            container.made(session)
        return session.run(), session.killed_by
    finally:
        if listener is not None:
            listener.close()
        sandbox.kill()
        if session is not None:
            session.reap_all()
        else:
            _reap(sandbox.init_pid)
        sandbox.close()


def _listen(entry: state_dir.Entry, required: bool) -> socket.socket | None:
    try:
        return control_socket.listen(entry.path)
    except OSError as error:
        if required:
            raise namespaces.SetupError(f"the control socket cannot be made: {error.strerror}") from None
        return None  # a state directory on a file system without sockets: nobody can ask it anything


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


def run_container(options: ContainerOptions) -> int:
    """See container.py."""
    from trapline.platform import container

    return container.run_container(options)


def _fail(text: str) -> int:
    say(f"trapline: {text}")
    return FAILED


