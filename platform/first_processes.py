"""What runs in a sandbox's first processes until the first guest becomes its program (see namespaces.py)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import signal
import socket
import struct
from collections.abc import Callable
from time import CLOCK_BOOTTIME, CLOCK_MONOTONIC, clock_gettime_ns
from types import ModuleType
from typing import NoReturn

from trapline.platform import mounts, terminal_nodes
from trapline.platform import setup_calls as calls
from trapline.platform.caller_terminal import ORPHANED, SHARED
from trapline.platform.capabilities import drop_capabilities
from trapline.platform.init_stub import become_stub
from trapline.sentry.options import DoOptions

GuestMain = Callable[[socket.socket], NoReturn]

FAILED = 125  # exit status of these processes when set-up fails; `do` ends with it too
_SECOND = 1_000_000_000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


class SetupError(Exception):
    """The sandbox could not be made. Its text is one line for the user, without a full stop."""


class Clocks:
    """Host times at which the sandbox's clocks were 0, ns, exact; and whether it has its own."""

    __slots__ = ("boottime", "monotonic", "own")

    def __init__(self, monotonic: int = 0, boottime: int = 0, own: bool = False) -> None:
        self.monotonic = monotonic
        self.boottime = boottime
        self.own = own


class First:
    """What runs in the helper, in pid 1 and in the first guest before its `guest_main`."""

    def __init__(
        self,
        options: DoOptions,
        guest_main: GuestMain,
        plan: mounts.Plan,
        directory: str,
        report: socket.socket,
        channel: socket.socket,
    ) -> None:
        self.options = options
        self.guest_main = guest_main
        self.plan = plan
        self.directory = directory
        self.report = report
        self.channel = channel
        self.hostname = ""
        self.zero: tuple[int, int] | None = None
        #: In pid 1 with its namespaces, while its mounts are still the host's.
        self.prepare: Callable[[], None] = lambda: None
        self.keeps_capabilities = False  # of its namespaces: it is to make processes of anybody
        self.keep: list[int] = []
        self.mask: set[int | signal.Signals] = set()
        self.identity: ModuleType | None = None
        if options.user is not None or options.rlimits or options.capabilities is not None:
            # Now: in the guest's root there is nothing to be imported.
            from trapline.platform import guest_identity

            self.identity = guest_identity

    def fork_init(self) -> tuple[int, Clocks]:
        """As root, in the sentry: pid 1, with the pid and time namespaces that it starts in."""
        flags = calls.CLONE_NEWPID | self._time_flag()
        back = [(os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC), calls.CLONE_NEWPID)]
        if flags & calls.CLONE_NEWTIME:
            back.append((os.open("/proc/self/ns/time", os.O_RDONLY | os.O_CLOEXEC), calls.CLONE_NEWTIME))
        before = _offsets() if self._time_flag() else (0, 0)
        try:
            try:
                calls.unshare(flags)
            except OSError as error:
                raise SetupError(_why_no_namespaces(error, True)) from None
            clocks = self._set_clocks(before)
            init = os.fork()
            if init == 0:
                self.init(self._other_flags())
        finally:
            for handle, kind in back:
                calls.setns(handle, kind)
                os.close(handle)
        return init, clocks

    # Each of these three runs in its own process and never returns or raises.

    def helper(self) -> NoReturn:
        try:
            gc.disable()  # a collection would touch, and so copy, every page that we share with the sentry
            calls.close_all_but(self.keep)
            uid, gid = os.geteuid(), os.getegid()
            before = _offsets() if self._time_flag() else (0, 0)
            try:
                calls.unshare(
                    calls.CLONE_NEWUSER | calls.CLONE_NEWPID | self._time_flag() | self._other_flags()
                )
                # An ordinary user may map himself only, and groups without setgroups (user_namespaces(7)).
                _write("/proc/self/setgroups", b"deny")
                # The user of a bundle is who he then is inside.
                inside = self.options.user
                _write("/proc/self/uid_map", b"%d %d 1" % (uid if inside is None else inside.uid, uid))
                _write("/proc/self/gid_map", b"%d %d 1" % (gid if inside is None else inside.gid, gid))
            except OSError as error:
                raise SetupError(_why_no_namespaces(error, False)) from None
            clocks = self._set_clocks(before)
            init = os.fork()
            if init == 0:
                self.init(0)
            # Told last: the sentry reaps us at once.
            self.report.send(b"H%d\n%d\n%d\n%d" % (clocks.monotonic, clocks.boottime, clocks.own, init))
            os._exit(0)
        except BaseException as error:
            fail(self.report, error)

    def init(self, flags: int) -> NoReturn:
        try:
            gc.disable()
            calls.close_all_but(self.keep)
            if flags:
                self._die_with_sentry()  # our parent: what we do until we wait for its word may take long
                calls.unshare(flags)
            if self.options.network_path or self.options.sysctl:
                from trapline.platform import bundle_kernel

                bundle_kernel.prepare(self.options)
            self.prepare()
            mounts.build(self.plan)
            if self.options.user is not None:
                _make_directory(self.directory)
            if self.plan.cpus:
                os.sched_setaffinity(0, self.plan.cpus)
            if self.hostname:
                socket.sethostname(self.hostname)
            if name := os.fsencode(self.options.domainname):
                calls.syscall("setdomainname", 171, ctypes.c_char_p(name), len(name))
            if self.options.network == "none":
                loopback_up()
            if self.plan.is_init:
                self._follow()
                self.guest()
            if os.fork() == 0:
                self.guest()
            if self.plan.own_group == ORPHANED:
                os.setsid()  # a parent in the same session would make the guest's group one that keys can stop
            # The guest may run while we wait here for the helper's end: only then is the sentry our parent,
            # whose death we are to follow. The end of the socket means that it died already.
            calls.close_all_but([self.report.fileno()])
            self._follow()
            become_stub()
        except BaseException as error:
            fail(self.report, error)

    def _follow(self) -> None:
        """Once the sentry is our parent, die with it."""
        if self.report.recv(1) != b"p":
            os._exit(FAILED)
        self._die_with_sentry()

    def _die_with_sentry(self) -> None:
        """In a child of the sentry's that has no other end of the socket but its own."""
        calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            if not self.report.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK):
                os._exit(FAILED)  # it died before we asked to follow
        except BlockingIOError:
            pass

    def guest(self) -> NoReturn:
        try:
            self.report.close()
            if self.plan.is_init and not self.plan.own_terminal:
                os.setsid()
            elif self.plan.own_group != SHARED:
                os.setpgid(0, 0)
            if self.plan.own_terminal and self.options.user is not None:
                os.chown(self.plan.terminals[1], self.options.user.uid, -1)
            terminal_nodes.enter(self.plan)
            default_signals()
            enter_directory(self.directory)
            options = self.options
            if self.keeps_capabilities:
                pass
            elif self.identity is None:
                drop_capabilities()
            else:
                self.identity.take(options.user, options.rlimits, options.capabilities)
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
            notes = "\n".join(["G", *self.plan.notes]).encode(errors="surrogateescape")
            handles = self.plan.handles + self.plan.terminals
            socket.send_fds(self.channel, [notes], handles)
            for handle in handles:
                os.close(handle)
            self.guest_main(self.channel)
        except BaseException as error:
            fail(self.channel, error)

    def _time_flag(self) -> int:
        return calls.CLONE_NEWTIME if has_time_namespace(self.options) else 0

    def _other_flags(self) -> int:
        flags = calls.CLONE_NEWNS | calls.CLONE_NEWIPC | calls.CLONE_NEWUTS
        return flags | calls.CLONE_NEWNET if self.options.network == "none" else flags

    def _set_clocks(self, before: tuple[int, int]) -> Clocks:
        """In the process that unshared, before anything is in the new time namespace."""
        if not self._time_flag():
            return Clocks()
        # Offsets count from the clocks of the machine; we may be in a time namespace ourselves.
        base, boot = self.zero or (clock_gettime_ns(CLOCK_MONOTONIC), clock_gettime_ns(CLOCK_BOOTTIME))
        lines = b""
        for name, offset in ((b"monotonic", before[0] - base), (b"boottime", before[1] - boot)):
            lines += b"%s %d %d\n" % (name, offset // _SECOND, offset % _SECOND)
        _write("/proc/self/timens_offsets", lines)
        return Clocks(base, boot, True)


def has_time_namespace(options: DoOptions) -> bool:
    """Whether a sandbox gets one."""
    return "time_namespace" not in options.without and os.path.exists("/proc/self/ns/time")


def _make_directory(path: str) -> None:
    """A bundle's working directory is made where there is none, as other runtimes have it."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        pass  # the chdir that follows says why


def default_signals() -> None:
    """What Python ignores or catches is as a shell would have it for a program."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGCHLD):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def enter_directory(directory: str) -> None:
    """SetupError."""
    try:
        os.chdir(directory)
    except OSError as error:
        raise SetupError(f"working directory {directory}: {error.strerror}") from None


def fail(to: socket.socket, error: BaseException) -> NoReturn:
    """The last word of a process of the set-up: why there will be no guest."""
    try:
        text = explain(error) if isinstance(error, OSError) else str(error) or type(error).__name__
        to.send(b"E" + text.encode(errors="surrogateescape"))
    finally:
        os._exit(FAILED)


def _offsets() -> tuple[int, int]:
    """Offsets of CLOCK_MONOTONIC and CLOCK_BOOTTIME of our own time namespace, ns (time_namespaces(7))."""
    with open("/proc/self/timens_offsets", "rb") as file:
        found = {f[0]: int(f[1]) * _SECOND + int(f[2]) for f in (line.split() for line in file)}
    return found.get(b"monotonic", 0), found.get(b"boottime", 0)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def explain(error: OSError) -> str:
    text = error.strerror or str(error)
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return f"{name}: {text}" if name else text


def _sysctl(name: str) -> str:
    try:
        with open("/proc/sys/" + name, "rb") as file:
            return file.read().strip().decode()
    except OSError:
        return ""


def _why_no_namespaces(error: OSError, is_privileged: bool) -> str:
    if is_privileged:
        return f"namespaces are refused: {explain(error)}"
    if _sysctl("kernel/unprivileged_userns_clone") == "0":
        return "user namespaces are off: set sysctl kernel.unprivileged_userns_clone=1, or run as root"
    if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "user namespaces are restricted: set sysctl kernel.apparmor_restrict_unprivileged_userns=0, "
            "or run as root"
        )
    if error.errno in (errno.ENOSPC, errno.EUSERS):
        return "no more user namespaces are allowed: raise sysctl user.max_user_namespaces, or run as root"
    return f"user namespaces are not allowed here ({explain(error)}): run as root"


def loopback_up() -> None:
    """Set this network namespace's loopback interface up, which gives it its addresses (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = bytearray(struct.pack("16sh22x", b"lo", 0))
        fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("h", request, 16)
        struct.pack_into("h", request, 16, flags | _IFF_UP)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, request)
