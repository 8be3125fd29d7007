"""Making a sandbox's namespaces and its first processes.

    root:            sentry ── init (pid 1, a stub) ── first guest (pid 2)
    ordinary user:   sentry ── helper (ends at once) ── init ── first guest
    `run`:           the first guest is pid 1 itself, no stub

Pid 1 builds the mounts, forks the first guest and turns into the stub of init_stub.py; the sentry stays
outside of all namespaces. As root it unshares those of its children alone (pid and time), forks, and goes
back: that saves a fork, 2 ms of CPU time here. An ordinary user's sentry would have to enter the user
namespace, so a helper unshares; the sentry is a subreaper, and pid 1 becomes its child when the helper
ends. All that may go wrong comes back as one line over a socket.

Sources: namespaces(7), user_namespaces(7), time_namespaces(7), pid_namespaces(7), unix(7) (SCM_CREDENTIALS).
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NoReturn

from trapline.platform import mounts
from trapline.platform import setup_calls as calls
from trapline.platform.caller_terminal import SHARED, CallerTerminal
from trapline.platform.capabilities import privileged
from trapline.platform.first_processes import FAILED, Clocks, First, GuestMain, SetupError, explain
from trapline.platform.terminal_nodes import window_size
from trapline.sentry.options import DoOptions

if TYPE_CHECKING:
    from trapline.platform.restore_own_files import SavedFiles

__all__ = [
    "FAILED",
    "GuestMain",
    "Sandbox",
    "Setup",
    "SetupError",
    "create",
    "inheritable_descriptors",
    "start",
]


class Sandbox:
    """A sandbox whose first guest stands in `guest_main`. Ids are the host's unless named otherwise."""

    __slots__ = (
        "_report", "boottime_base", "channel", "cpus", "directory", "guest_pid", "ignored", "init_pid", "init_pidfd",
        "is_init", "monotonic_base", "notes", "own_group", "own_time", "root", "stage", "terminals",
    )  # fmt: skip

    def __init__(self, channel: socket.socket, report: socket.socket) -> None:
        self.channel = channel  # to guest_main's socket: SOCK_SEQPACKET, sender's credentials are on
        self._report = report  # open as long as we live: how pid 1 knows, until it has become the stub
        self.init_pid = 0  # our child: wait for it once all guests are reaped, or it cannot end
        self.init_pidfd = -1
        self.guest_pid = 0  # child of init, or init itself
        self.is_init = False
        self.directory = "/"  # in which the first guest starts
        self.monotonic_base = 0  # host CLOCK_MONOTONIC when the sandbox's was 0, ns, exact (0: not own_time)
        self.boottime_base = 0
        self.own_time = False  # has a time namespace
        self.ignored: set[int] = set()  # signals that the guest starts with as ignored, as its caller had
        self.notes: list[str] = []  # what came out differently than one may expect, one line each
        self.cpus: list[int] = []  # those that guests are held to; empty: to none
        self.own_group = SHARED  # how the first guest's process group was made (caller_terminal.py)
        self.stage = -1  # a descriptor of where its upper layers are (own_layers.py)
        self.root = -1  # and of its root
        self.terminals: list[int] = []  # of the sandbox's own terminal: master, slave; or what reserves a number

    def kill(self) -> None:
        """SIGKILL to pid 1, and so by the kernel to all in the sandbox. Not waited for; never an error."""
        try:
            signal.pidfd_send_signal(self.init_pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Close the descriptors. Does not end the sandbox."""
        self.channel.close()
        self._report.close()
        for handle in self.terminals:
            os.close(handle)
        self.terminals = []
        for handle in (self.stage, self.root):
            if handle >= 0:
                os.close(handle)
        self.stage = self.root = -1
        if self.init_pidfd >= 0:
            os.close(self.init_pidfd)
            self.init_pidfd = -1


class Setup:
    """A set-up under way. The sentry can do something else (import what it needs) before `wait`."""

    def __init__(self, report: socket.socket, channel: socket.socket, plan: mounts.Plan, directory: str) -> None:
        self._helper = 0
        self._report = report
        self._sandbox = Sandbox(channel, report)
        self._sandbox.cpus = plan.cpus
        self._sandbox.own_group = plan.own_group
        self._sandbox.ignored = _ignored()
        self._sandbox.is_init = plan.is_init
        self._sandbox.directory = directory

    def wait(self) -> Sandbox:
        """Until the first guest stands in `guest_main`. SetupError, after which nothing is left."""
        try:
            return self._wait()
        except BaseException:
            self._abandon()
            raise

    def _wait(self) -> Sandbox:
        box = self._sandbox
        poller = select.poll()
        poller.register(box.channel, select.POLLIN)
        if self._helper:
            poller.register(self._report, select.POLLIN)
        while box.guest_pid == 0 or box.init_pidfd < 0:
            for fd, _ in poller.poll():
                if fd == self._report.fileno():
                    self._hear_report()
                    if box.init_pidfd >= 0:
                        poller.unregister(self._report)
                else:
                    self._hear_guest()
        return box

    def adopt(self, init: int, clocks: Clocks) -> None:
        """Pid 1 is our child from here on: its number cannot pass to another process."""
        box = self._sandbox
        box.init_pid = init
        box.init_pidfd = os.pidfd_open(init)
        box.monotonic_base, box.boottime_base, box.own_time = clocks.monotonic, clocks.boottime, clocks.own
        try:
            self._report.send(b"p")
        except OSError:
            pass  # it failed, and its error follows

    def help_by(self, helper: int) -> None:
        """Pid 1 is still to come from this child of ours."""
        self._helper = helper

    def _recv_report(self) -> bytes:
        try:
            return self._report.recv(65536)
        except ConnectionResetError:
            return self._report.recv(65536)  # it ended with our word unread; its own comes after that news

    def _hear_report(self) -> None:
        message = self._recv_report()
        if message[:1] == b"H":  # the helper's last word
            base, boot, own, init = map(int, message[1:].split(b"\n"))
            os.waitpid(self._helper, 0)
            self._helper = 0
            self.adopt(init, Clocks(base, boot, bool(own)))
            return
        # Pid 1 may have failed before the helper's word of it came: hear that too, or it stays unreaped.
        text = message[1:].decode(errors="replace") or "a process that sets up the sandbox died"
        while self._helper and message:
            message = self._recv_report()
            if message[:1] == b"H":
                self._sandbox.init_pid = int(message.split(b"\n")[3])
                break
        raise SetupError(text)

    def _hear_guest(self) -> None:
        # One message at most can be there: the guest waits for an answer after it.
        message, ancillary, _, _ = self._sandbox.channel.recvmsg(65536, 128, socket.MSG_CMSG_CLOEXEC)
        if message[:1] == b"E":
            raise SetupError(message[1:].decode(errors="replace"))
        if message[:1] != b"G":
            self._error_of_init()
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                self._sandbox.guest_pid = struct.unpack("3i", data[:12])[0]
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                handles = list(array.array("i", data[: len(data) - len(data) % 4]))
                self._sandbox.stage, self._sandbox.root, *self._sandbox.terminals = handles
        self._sandbox.notes += [n for n in message[1:].decode(errors="surrogateescape").split("\n") if n]

    def _error_of_init(self) -> NoReturn:
        """The guest's socket closed before its first word: pid 1 says why, if it is not dead too."""
        while True:
            self._hear_report()

    def _abandon(self) -> None:
        box = self._sandbox
        for pid in (self._helper, box.init_pid):
            if pid:  # in this order: pid 1 is ours once the helper is gone
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:
                    pass
        box.close()


def inheritable_descriptors() -> list[int]:
    """Those above standard error that came from the caller and that a shell would pass on (`<(...)`, make's).

    Python opens nothing without close-on-exec, so nothing of the sentry's is among them.
    """
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            continue  # the listing's own
    return found


def create(options: DoOptions, guest_main: GuestMain, stage: str) -> Sandbox:
    """`start` and `wait` in one."""
    return start(options, guest_main, stage).wait()


def start(
    options: DoOptions,
    guest_main: GuestMain,
    stage: str,
    *,
    terminal: CallerTerminal | None = None,
    hostname: str = "",
    zero: tuple[int, int] | None = None,
    keep: Iterable[int] = (),
    is_init: bool = False,
    saved: SavedFiles | None = None,
    prepare: Callable[[], None] | None = None,
    keep_capabilities: bool = False,
    own_group: bool = True,
) -> Setup:
    """Fork the helper and return at once.

    `guest_main(channel)` runs in the first guest: in its namespaces, root and working directory, with the
    caller's ids, environment, umask, limits, session, signal mask and ignored signals, with
    capabilities dropped. Its process group is the caller's or its own, see `CallerTerminal.group_of_guest`, with
    `own_group` false the caller's; with `options.tty` it leads a session on a terminal of the sandbox's own. With
    `is_init` it is pid 1, as in a container, and leads a session; else that is a stub. With `keep_capabilities` it has
    all of its user namespace's. It must not return: it waits on the channel (the end of the channel means that the
    sentry is gone) and executes something. `stage` is an empty directory of the host for the sandbox's own tmpfs.
    `keep` are further descriptors that guest_main needs, `terminal` is the caller's. The sandbox's clocks begin now,
    or were 0 when the host's MONOTONIC and BOOTTIME were as `zero` says, ns. `saved` are own files of a checkpoint that
    it gets back; `prepare` is called in pid 1 before anything is mounted, and may raise what is then a SetupError.

    Call it while the process has one thread, and before changing how signals are handled: the guest gets
    what is in force now. SetupError when the working directory is gone or no process can be made.
    """
    share_host = options.rootfs is None
    try:
        directory = options.cwd or (os.getcwd() if share_host else "/")
    except FileNotFoundError:
        raise SetupError("the current directory does not exist any more") from None
    plan = mounts.Plan(
        stage=stage,
        source=options.rootfs or "/",
        overlay=options.overlay != "none",
        volumes=options.volumes,
        terminal=terminal.name if terminal is not None else "",
        privileged=privileged(),
    )
    plan.is_init = is_init
    plan.checkpoint_files = options.checkpoint_dir is not None
    if any((options.mounts, options.devices, options.masked, options.read_only, options.read_only_root)):
        plan.bundle = options
    if options.tty:
        plan.own_terminal, plan.window = True, window_size(terminal)
    elif terminal is not None and own_group:
        plan.own_group = terminal.group_of_guest()
    if options.cpus:
        from trapline.platform.application_cpus import application_cpus  # few need it

        plan.cpus = application_cpus(options.cpus)
    real = os.path.realpath(directory)
    if share_host and plan.overlay and os.path.isdir(real) and mounts.is_shared(real):
        plan.shared = real
    calls.prctl(calls.PR_SET_CHILD_SUBREAPER, 1)
    kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
    report, report_inside = socket.socketpair(socket.AF_UNIX, kind)
    channel, channel_inside = socket.socketpair(socket.AF_UNIX, kind)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    first = First(options, guest_main, plan, directory, report_inside, channel_inside)
    first.hostname = hostname or options.hostname
    first.zero = zero
    first.keeps_capabilities = keep_capabilities
    first.keep = [0, 1, 2, report_inside.fileno(), channel_inside.fileno(), *inheritable_descriptors(), *keep]
    if saved is not None:
        plan.saved = saved
        first.keep.append(saved.handle)
    if prepare is not None:
        first.prepare = prepare
    first.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    setup = Setup(report, channel, plan, directory)
    try:
        if plan.privileged:
            setup.adopt(*first.fork_init())
        else:
            helper = os.fork()
            if helper == 0:
                first.helper()
            setup.help_by(helper)
    except BaseException as error:
        report.close()
        channel.close()
        if isinstance(error, OSError):
            raise SetupError(explain(error)) from None
        raise
    finally:
        report_inside.close()
        channel_inside.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, first.mask)
    return setup


def _ignored() -> set[int]:
    """Signals that a program started by our caller would find ignored."""
    # Python itself ignores these two, whatever they were; programs are given the default as shells give it.
    own = {signal.SIGPIPE, signal.SIGXFSZ}
    # Asked of the host, since Python hides the two numbers that the C library keeps for itself.
    with open("/proc/self/status", "rb") as file:
        ignored = int(file.read().partition(b"\nSigIgn:")[2].split(None, 1)[0], 16)
    return {number for number in range(1, 65) if ignored >> (number - 1) & 1 and number not in own}
