"""The first guest's last steps before its program: the filter, the listener's way to the sentry, the exec.

Runs in the first guest. After the filter is in place every owned call of this process waits for the sentry,
so nothing happens here then but socket calls, the exec, and the exit.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from typing import TYPE_CHECKING, NoReturn

from trapline.platform import bpf
from trapline.platform import setup_calls as calls
from trapline.platform.first_processes import GuestMain
from trapline.platform.notifications import install_filter
from trapline.sentry.options import DoOptions
from trapline.sentry.syscalls import registry

if TYPE_CHECKING:
    from trapline.platform.checkpoint_marker import Marker

NOT_FOUND, NOT_EXECUTABLE = 127, 126


def candidates(program: str, path: str) -> list[str]:
    """Where a program may be, as execvp looks for it (exec(3))."""
    if "/" in program:
        return [program]
    return [os.path.join(d or ".", program) for d in path.split(":")]


class Launch:
    """How programs start in one sandbox: the first, and those that come from outside later."""

    def __init__(self, options: DoOptions, killable: bool) -> None:
        self.options = options
        self.notifications = options.platform == "seccomp"
        self.killable = killable
        self.marker: Marker | None = None
        if options.checkpoint_at_marker is not None:
            from trapline.platform.checkpoint_marker import Marker

            self.marker = Marker(options.checkpoint_at_marker)
        self.program = bpf.build(registry.effective_table(), options.platform)
        self.environment = options.environment(dict(os.environb))

    def main(
        self, command: list[str], environment: dict[bytes, bytes] | None = None, look: bool = False
    ) -> GuestMain:
        """`make` with what all have in common; `environment` None: that of the first."""
        own = self.environment if environment is None else environment
        cores = self.options.core_dir is not None
        return make(command, own, self.program, self.notifications, self.killable, cores, look)


def make(
    command: list[str],
    environment: dict[bytes, bytes],
    program: bytes,
    listener: bool,
    killable: bool = False,
    cores: bool = False,
    look: bool = False,
) -> GuestMain:
    """The function that becomes the guest's program. `program` is the filter, for `killable` see
    `install_filter`. With `cores` it may write core files as large as it may raise their limit to. With `look` a
    program that is not there is found before anything waits for it to be started."""

    def guest_main(channel: socket.socket) -> NoReturn:
        path = environment.get(b"PATH", b"/usr/local/bin:/usr/bin:/bin").decode(errors="surrogateescape")
        found = [c for c in candidates(command[0], path) if os.path.lexists(c)]
        if look and not any([os.path.isfile(c) and os.access(c, os.X_OK, effective_ids=True) for c in found]):
            text = os.strerror(errno.EACCES) if found else "command not found"
            channel.send(f"E{command[0]}: {text}".encode(errors="surrogateescape"))
            os._exit(125)
        if cores:
            hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
            resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        # The sentry's, which has read it. The hard limit stays: it is whoever started us that set it.
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
        fd = install_filter(program, listener, killable)
        if listener:
            socket.send_fds(channel, [b"L"], [fd])
            os.close(fd)
        else:
            channel.send(b"L")
        if channel.recv(1) != b"g":
            os._exit(125)
        if os.getpid() == 1:
            calls.prctl(calls.PR_SET_PDEATHSIG, 0)  # it is traced by now, and ends with its tracer
        status, text = _execute(command, found, environment)
        channel.send(f"X{status} {text}".encode(errors="surrogateescape"))
        os._exit(status)

    return guest_main


def _execute(command: list[str], found: list[str], environment: dict[bytes, bytes]) -> tuple[int, str]:
    last = 0
    for candidate in found:
        try:
            os.execve(candidate, command, environment)
        except OSError as error:
            last = error.errno or errno.EIO
        if last == errno.ENOEXEC and not _is_elf(candidate):
            # A script without an interpreter line is the shell's (exec(3)).
            try:
                os.execve("/bin/sh", ["sh", candidate, *command[1:]], environment)
            except OSError as error:
                last = error.errno or errno.EIO
    name = command[0]
    if not found or (last == errno.ENOENT and not any(os.path.lexists(c) for c in found)):
        return NOT_FOUND, f"{name}: command not found"
    if last == errno.ENOENT:
        return NOT_FOUND, f"{name}: its interpreter does not exist"
    if last == errno.ENOEXEC:
        return NOT_EXECUTABLE, f"{name}: not a program for this machine (x86-64 ELF or a script)"
    return NOT_EXECUTABLE, f"{name}: {os.strerror(last)}"


def _is_elf(path: str) -> bool:
    try:
        with open(path, "rb") as f:
            return f.read(4) == b"\x7fELF"
    except OSError:
        return False
