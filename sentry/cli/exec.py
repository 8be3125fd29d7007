"""`trapline exec`: one more process in a running sandbox."""

from __future__ import annotations

import os
import select
import signal
import sys

from trapline.sentry.cli.flags import Flag, UsageError, VerbError
from trapline.sentry.cli.verb import Verb, as_runtimes_say, find, path

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from typing import Any

    from trapline.sentry.control.client import Client
    from trapline.sentry.control.records import Record

#: Passed on to the process where trapline gets them. TSTP and CONT stop trapline itself, as they stop any client.
FORWARDED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
)  # fmt: skip


def _setting(text: str) -> str:
    name, equals, _ = text.partition("=")
    if not name or not equals:
        raise ValueError("takes NAME=VALUE")
    return text


def _user(text: str) -> tuple[int, int]:
    uid, colon, gid = text.partition(":")
    if not uid.isdecimal() or (colon and not gid.isdecimal()) or int(uid) >= 1 << 32 or int(gid or 0) >= 1 << 32:
        raise ValueError("takes UID or UID:GID in numbers")
    return int(uid), int(gid) if colon else int(uid) and -1


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("takes an absolute path in the sandbox")
    return text


FLAGS = (
    Flag("--tty", help="Give it a terminal of its own.", short="-t"),
    Flag("--detach", help="Do not wait for it.", short="-d"),
    Flag("--cwd", "DIR", "Start in this directory of the sandbox.", parse=_absolute),
    Flag("--env", "NAME=VALUE", "Set a variable in addition.", parse=_setting, repeat=True, short="-e"),
    Flag("--user", "UID[:GID]", "Run as this user.", parse=_user, short="-u"),
    Flag("--cap", "CAPABILITY", "Let it have this capability, such as CAP_KILL, in place of the first's.", repeat=True),
    Flag("--process", "FILE", "Take all of this from an OCI process object.", parse=path, short="-p"),
    Flag("--pid-file", "FILE", "Write the id of a process on the host that ends as it ends.", parse=path),
    Flag("--internal-pid-file", "FILE", "Write its own id on the host.", parse=path),
    Flag("--console-socket", "SOCKET", "With a terminal: send the other side to this unix socket.", parse=path),
)


def _exec(values: dict[str, Any], words: list[str]) -> int:
    from trapline.sentry.control.client import ControlError, Gone
    from trapline.sentry.control.records import RecordError

    spec = _spec(values, words[1:])
    terminal = bool(spec.get("terminal"))
    if values["console_socket"] and not terminal:
        raise UsageError("--console-socket is for a process with a terminal: add --tty")
    if terminal and values["detach"] and not values["console_socket"]:
        raise UsageError("a detached process with a terminal needs --console-socket, or its terminal would be nobody's")
    record = find(values, words[0])
    try:
        with record.client() as client:
            if terminal:
                spec["size"] = _size()
                started = client.call("exec", spec=spec)
            else:
                started = client.call("exec", _standard(), spec=spec)
            return _follow(values, record, client, started, terminal)
    except Gone:
        raise VerbError(f"sandbox {record.id} is not running") from None
    except (ControlError, RecordError) as error:
        raise VerbError(as_runtimes_say(str(error))) from None


def _spec(values: dict[str, Any], command: list[str]) -> dict[str, Any]:
    if values["process"]:
        if command:
            raise UsageError("--process has a command of its own: leave yours out")
        return _spec_of_file(values)
    if not command:
        raise UsageError(f"there is no command: {VERBS[0].usage}")
    spec: dict[str, Any] = {"args": command, "terminal": bool(values["tty"])}
    if values["cwd"]:
        spec["cwd"] = values["cwd"]
    if values["env"]:
        spec["add_env"] = values["env"]
    if values["user"]:
        spec["uid"], spec["gid"] = values["user"]
    if values["cap"]:
        spec["capabilities"] = values["cap"]
    return spec


def _spec_of_file(values: dict[str, Any]) -> dict[str, Any]:
    from trapline.sentry.control import oci

    try:
        process = oci.load_process(values["process"])
        limits = oci.rlimits(process)
    except oci.OciError as error:
        raise VerbError(str(error)) from None
    capabilities = oci.capabilities(process) if process.capabilities is not None else None
    return {
        "args": process.args,
        "env": process.env,
        "cwd": process.cwd,
        "uid": process.user.uid,
        "gid": process.user.gid,
        "groups": process.user.additional_gids,
        "terminal": bool(values["tty"] or process.terminal),
        "rlimits": limits,
        "capabilities": capabilities,
    }


def _standard() -> tuple[int, int, int]:
    """0, 1 and 2, with /dev/null for those that the caller closed."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    return 0, 1, 2


def _size() -> tuple[int, int]:
    for fd in (0, 1, 2):
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        return rows, columns
    return 0, 0


def _follow(values: dict[str, Any], record: Record, client: Client, started: dict[str, Any], terminal: bool) -> int:
    """It runs: hand over its terminal, write its ids, and wait for its end, if that is wanted."""
    pid = int(started["pid"])
    master = client.take_descriptor() if terminal else -1
    if master >= 0 and values["console_socket"]:
        _hand_over(master, values["console_socket"])
        master = -1
    if values["internal_pid_file"]:
        write_pid(values["internal_pid_file"], int(started["host_pid"]))
    if not values["detach"]:
        if values["pid_file"]:
            write_pid(values["pid_file"], os.getpid())
        if master >= 0:
            return _converse(record, client, pid, master)
        return _wait(record, client, pid)
    if values["pid_file"]:
        # Whoever waits for it (conmon, as the subreaper that our child comes to) gets its exit status from this one.
        waiter = os.fork()
        if waiter == 0:
            _become_waiter(record, client, pid)
        write_pid(values["pid_file"], waiter)
    return 0


def _become_waiter(record: Record, client: Client, pid: int) -> None:
    status = 255
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.setsid()
        os.chdir("/")  # not to keep a file system busy
        status = _wait(record, client, pid)
    finally:
        os._exit(status)


def _wait(record: Record, client: Client, pid: int) -> int:
    """Until it ends, and pass signals on meanwhile; its exit status."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for signo in FORWARDED:
        if signal.getsignal(signo) is not signal.SIG_IGN:
            signal.signal(signo, lambda *_: None)
    asked = client.begin("wait", pid=pid)
    while True:
        ready, _, _ = select.select([client.fileno(), read], [], [])
        if read in ready:
            for number in os.read(read, 64):
                forward(record, number, pid)
        if client.fileno() in ready:
            return int(client.finish(asked)["status"])


def forward(record: Record, signo: int, pid: int) -> None:
    """Send a signal to a process of the sandbox, if there still is one."""
    from trapline.sentry.control.client import ControlError
    from trapline.sentry.control.records import RecordError

    try:
        with record.client() as other:
            other.call("kill", signal=signo, pid=pid)
    except (ControlError, RecordError):
        pass  # it has just ended


def _converse(record: Record, client: Client, pid: int, master: int) -> int:
    """The caller's terminal in front of the process's, until that is closed."""
    from trapline.platform import caller_terminal
    from trapline.platform.terminal_relay import Relay

    terminal = caller_terminal.find()
    for signo in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signo, _leave)
    try:
        Relay(master, terminal, None).run()
    finally:
        if terminal is not None:
            terminal.restore()
    os.close(master)
    return int(client.call("wait", pid=pid)["status"])


def _leave(signo: int, _: Any) -> None:
    sys.exit(128 + signo)


def _hand_over(master: int, address: str) -> None:
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
            console.connect(address)
            socket.send_fds(console, [b"/dev/ptmx"], [master])
    except OSError as error:
        raise VerbError(f"--console-socket {address}: {error.strerror}") from None
    finally:
        os.close(master)


def write_pid(file: str, pid: int) -> None:
    """As a whole or not at all, since others wait for it. VerbError."""
    temporary = f"{os.path.dirname(file)}/.{os.path.basename(file)}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="ascii") as out:
            out.write(str(pid))
        os.rename(temporary, file)
    except OSError as error:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise VerbError(f"pid file {file}: {error.strerror}") from None


VERBS = (
    Verb(
        "exec",
        "[FLAGS] ID COMMAND [ARGUMENT...]",
        "Run one more process in a running sandbox. Environment, directory, user and capabilities are the first "
        "program's unless said otherwise. The exit status is the command's, 128 if the sandbox does not take it.",
        FLAGS,
        _exec,
        examples="  trapline exec box ps\n  trapline exec -t box sh\n  trapline exec -d --user 1000:1000 box make\n",
        command=True,
    ),
)
