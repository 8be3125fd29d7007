"""What this host offers, asked when first needed and only as far as needed.

`Features(without).sync_wake_up` and so on: a feature switched off by `--without` counts as absent, so that
tests run the forms for older kernels on a new one. `trapline doctor` prints all of it.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from collections.abc import Callable, Iterable

import msgspec

from trapline.platform import setup_calls as calls
from trapline.platform.capabilities import privileged

_SECCOMP_GET_ACTION_AVAIL, _RET_USER_NOTIF, _RET_TRACE = 2, 0x7FC00000, 0x7FF00000
_FILTER_NEW_LISTENER, _NO_NEW_PRIVS = 8, 38
_NOTIF_SEND, _NOTIF_ADDFD, _NOTIF_SET_FLAGS = 0xC0182101, 0x40182103, 0x40082104
_PAGEMAP_SCAN = 0xC0606610
_PTRACE_SEIZE = 0x4206
_SYS_PTRACE, _SYS_PERF_EVENT_OPEN, _SYS_PROCESS_VM_READV, _SYS_SECCOMP = 101, 298, 310, 317
_SYS_PIDFD_GETFD = 438

Answer = tuple[bool, str]  # whether it is there, and why not (or something worth saying)


class Feature(msgspec.Struct, frozen=True):
    """One thing that a host may offer."""

    name: str  # what --without takes
    purpose: str
    instead: str  # the form used in its place; empty: none, it is needed
    advice: str  # what would bring it, one line
    probe: Callable[[], Answer]
    thorough: Callable[[], Answer] | None = None  # a dearer probe that `doctor` can afford


def release() -> tuple[int, int]:
    """The kernel's version, first two numbers (uname(2))."""
    parts = os.uname().release.split(".")
    try:
        return int(parts[0]), int("".join(c for c in parts[1] if c.isdigit()))
    except (ValueError, IndexError):
        return 0, 0


def _since(major: int, minor: int) -> Callable[[], Answer]:
    return lambda: (release() >= (major, minor), f"kernel {major}.{minor} or later")


def _child(task: Callable[[], None]) -> Answer:
    """Try something in a forked child; what it raises is the reason."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            task()
            os.write(writer, b"+")
        except BaseException as error:
            os.write(writer, (getattr(error, "strerror", None) or str(error) or "failed").encode()[:500])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return answer == b"+", "" if answer == b"+" else answer.decode(errors="replace")


def _action(action: int) -> Callable[[], Answer]:
    def probe() -> Answer:
        value = struct.pack("I", action)
        try:
            calls.syscall("seccomp", _SYS_SECCOMP, _SECCOMP_GET_ACTION_AVAIL, 0, value)
            return True, ""
        except OSError as error:
            return False, error.strerror or ""

    return probe


def _listener(request: int, argument: bytes) -> Callable[[], Answer]:
    """Whether a seccomp listener knows a request: an id that is not there is ENOENT only if it does."""

    def ask() -> None:
        import ctypes
        import fcntl

        program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
        header = struct.pack("HxxxxxxQ", 1, ctypes.addressof(program))
        calls.prctl(_NO_NEW_PRIVS, 1)
        listener = calls.syscall("seccomp", _SYS_SECCOMP, 1, _FILTER_NEW_LISTENER, header)
        try:
            if request == _NOTIF_SET_FLAGS:  # takes its argument by value
                if calls.libc.ioctl(listener, ctypes.c_ulong(request), ctypes.c_ulong(1)):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            else:
                fcntl.ioctl(listener, request, bytearray(argument))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    return lambda: _child(ask)


def _vdso() -> Answer:
    from trapline.platform.vdso_image import host_vdso

    try:
        host_vdso()
    except OSError as error:
        return False, str(error)
    return True, ""


def _time_namespace() -> Answer:
    return os.path.exists("/proc/self/ns/time"), "CONFIG_TIME_NS"


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    calls.unshare(calls.CLONE_NEWUSER | calls.CLONE_NEWNS | calls.CLONE_NEWPID)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    calls.mount("none", "/", None, calls.MS_REC | calls.MS_PRIVATE)
    calls.mount("probe", "/tmp", "tmpfs")


def _overlay_in_user_namespace() -> None:
    _enter_user_namespace()
    for name in ("lower", "upper", "work", "root"):
        os.mkdir("/tmp/" + name)
    options = "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work,userxattr"
    calls.mount("probe", "/tmp/root", "overlay", 0, options)


def _user_namespace() -> Answer:
    ok, why = _child(_enter_user_namespace)
    if not ok:
        for path, bad in (
            ("kernel/unprivileged_userns_clone", "0"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1"),
            ("user/max_user_namespaces", "0"),
        ):
            if read_sysctl(path) == bad:
                return False, f"sysctl {path.replace('/', '.')}={bad}"
    return ok, why


def read_sysctl(name: str) -> str:
    """A sysctl by its path below /proc/sys; empty if there is none."""
    try:
        with open("/proc/sys/" + name, "rb") as file:
            return file.read().strip().decode()
    except OSError:
        return ""


def _overlay() -> Answer:
    if not privileged():
        return _child(_overlay_in_user_namespace)
    with open("/proc/filesystems", "rb") as file:
        if b"\toverlay\n" in file.read():
            return True, ""
    # A module is loaded when it is first mounted.
    there = os.path.isdir(f"/lib/modules/{os.uname().release}/kernel/fs/overlayfs")
    return there, "" if there else "CONFIG_OVERLAY_FS"


def _pidfd_getfd() -> Answer:
    try:
        calls.syscall("pidfd_getfd", _SYS_PIDFD_GETFD, -1, 0, 0)
    except OSError as error:
        return error.errno == errno.EBADF, error.strerror or ""
    return True, ""


def _process_vm() -> Answer:
    try:
        calls.syscall("process_vm_readv", _SYS_PROCESS_VM_READV, os.getpid(), 0, 0, 0, 0, 0)
    except OSError as error:
        return False, error.strerror or ""
    return True, ""


def _perf_event() -> Answer:
    # perf_event_attr: PERF_TYPE_SOFTWARE, 64 bytes, PERF_COUNT_SW_TASK_CLOCK; not of kernel or hypervisor
    attributes = struct.pack("IIQQQQQ", 1, 64, 1, 0, 0, 0, 1 | 1 << 5 | 1 << 6).ljust(64, b"\0")
    try:
        os.close(calls.syscall("perf_event_open", _SYS_PERF_EVENT_OPEN, attributes, 0, -1, -1, 8))
    except OSError as error:
        level = read_sysctl("kernel/perf_event_paranoid")
        return False, f"{error.strerror} (kernel.perf_event_paranoid={level})"
    return True, ""


def _pagemap_scan() -> Answer:
    import fcntl

    try:
        with open("/proc/self/pagemap", "rb", 0) as file:
            fcntl.ioctl(file, _PAGEMAP_SCAN, bytearray(struct.pack("12Q", 96, *[0] * 11)))
    except OSError as error:
        return False, "kernel 6.7 or later" if error.errno == errno.ENOTTY else error.strerror or ""
    return True, ""


def _ptrace() -> Answer:
    pid = os.fork()
    if pid == 0:
        try:
            signal.pause()
        finally:
            os._exit(0)
    try:
        calls.syscall("ptrace", _SYS_PTRACE, _PTRACE_SEIZE, pid, 0, 0)
        return True, ""
    except OSError as error:
        scope = read_sysctl("kernel/yama/ptrace_scope")
        return False, (error.strerror or "") + (f" (kernel.yama.ptrace_scope={scope})" if scope else "")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _cgroup_freezer() -> Answer:
    mount_point = ""
    with open("/proc/self/mountinfo", encoding=None, errors="surrogateescape") as lines:
        for line in lines:
            if " - cgroup2 " in line:
                mount_point = line.split(" ")[4]
    if not mount_point:
        return False, "no cgroup2 mounted"
    own = ""
    with open("/proc/self/cgroup", encoding=None, errors="surrogateescape") as lines:
        for line in lines:
            if line.startswith("0::"):
                own = line[3:].strip()
    path = mount_point + own.rstrip("/")
    return os.access(path, os.W_OK), f"{path} is not ours to write"


def _userfaultfd() -> Answer:
    from trapline.platform import userfaultfd

    try:
        made = userfaultfd.Userfaultfd(calls.syscall("userfaultfd", userfaultfd.SYS_USERFAULTFD, userfaultfd.FLAGS))
    except OSError as error:
        return False, error.strerror or ""
    try:
        made.begin()
    except OSError as error:
        return False, f"{error.strerror}, messages of forks need CAP_SYS_PTRACE"
    finally:
        made.close()
    return True, ""


_ADDFD = struct.pack("QIIII", 0xFFFFFFFFFFFFFFFF, 0, 2, 0, 0)
_ADDFD_SEND = struct.pack("QIIII", 0xFFFFFFFFFFFFFFFF, 2, 2, 0, 0)
_CONTINUE = struct.pack("QqiI", 0xFFFFFFFFFFFFFFFF, 0, 0, 1)

FEATURES: dict[str, Feature] = {
    f.name: f
    for f in (
        Feature("ptrace", "stops, signals, tracing", "", "set sysctl kernel.yama.ptrace_scope=1", _ptrace),
        Feature(
            "process_vm",
            "arguments in guest memory",
            "",
            "a kernel with CONFIG_CROSS_MEMORY_ATTACH",
            _process_vm,
        ),
        Feature(
            "seccomp_trace",
            "sorting calls by a filter",
            "",
            "a kernel with CONFIG_SECCOMP_FILTER",
            _action(_RET_TRACE),
        ),
        Feature(
            "seccomp_notify",
            "answering calls by notification",
            "--platform ptrace, slower",
            "kernel 5.0 or later",
            _action(_RET_USER_NOTIF),
        ),
        Feature(
            "continue_flag",
            "recording a call and letting the host do it",
            "--platform ptrace",
            "kernel 5.5 or later",
            _since(5, 5),
            _listener(_NOTIF_SEND, _CONTINUE),
        ),
        Feature(
            "addfd",
            "giving guests descriptors",
            "--platform ptrace, which injects calls for it",
            "kernel 5.9 or later",
            _since(5, 9),
            _listener(_NOTIF_ADDFD, _ADDFD),
        ),
        Feature(
            "addfd_send",
            "giving a descriptor and ending the call at once",
            "--platform ptrace, which injects calls for it",
            "kernel 5.14 or later",
            _since(5, 14),
            _listener(_NOTIF_ADDFD, _ADDFD_SEND),
        ),
        Feature(
            "sync_wake_up",
            "keeping sentry and guest on one CPU for a call",
            "nothing: a call may wake its guest on the other CPU, which is slower",
            "kernel 6.6 or later",
            _since(6, 6),
            _listener(_NOTIF_SET_FLAGS, b""),
        ),
        Feature(
            "wait_killable_recv",
            "answers to calls that no signal can make the host drop",
            "a signal in the moment of an answer may have the call made twice",
            "kernel 6.17 or later",
            # Since 5.19, but until 6.17 a quick answer could still be dropped (Linux seccomp_do_user_notification).
            _since(6, 17),
        ),
        Feature(
            "pidns_ioctl",
            "the sandbox's ids of new tasks by one call",
            "reading /proc/PID/status, 20 us for each fork",
            "kernel 6.11 or later",
            _since(6, 11),
        ),
        Feature(
            "vdso",
            "clocks that guests read without a call",
            "real calls",
            "a kernel whose vDSO has the usual layout",
            _vdso,
        ),
        Feature(
            "time_namespace",
            "native deadlines on the sandbox's clocks",
            "the host's MONOTONIC and BOOTTIME",
            "kernel 5.6 or later with CONFIG_TIME_NS",
            _time_namespace,
        ),
        Feature(
            "user_namespace",
            "sandboxes of ordinary users",
            "root only",
            "allow user namespaces by the sysctl named",
            _user_namespace,
        ),
        Feature(
            "overlay",
            "writes that stay in memory",
            "--overlay none, or a read-only root",
            "kernel 5.11 or later with CONFIG_OVERLAY_FS",
            _overlay,
        ),
        Feature(
            "pidfd_getfd",
            "looking at a guest's descriptors",
            "/proc/PID/fdinfo alone",
            "kernel 5.6 or later",
            _pidfd_getfd,
        ),
        Feature(
            "perf_event",
            "CPU timers right within 0.05 ms",
            "POSIX CPU timers of the host, 1 to 3 ms late",
            "set sysctl kernel.perf_event_paranoid=2",
            _perf_event,
        ),
        Feature(
            "pagemap_scan",
            "checkpoints of what changed",
            "checkpoints of all memory",
            "kernel 6.7 or later",
            _pagemap_scan,
        ),
        Feature(
            "userfaultfd",
            "restoring memory in the background",
            "loading all memory first",
            "restore as root, on kernel 4.11 or later",
            _userfaultfd,
        ),
        Feature(
            "cgroup_freezer",
            "freezing all guests at once",
            "stopping them one by one",
            "delegate a cgroup2 directory (systemd-run --user --scope)",
            _cgroup_freezer,
        ),
    )
}


class Features:
    """Answers, each asked for once. Any name of FEATURES is an attribute: True when there and allowed."""

    def __init__(self, without: Iterable[str] = ()) -> None:
        self.without = frozenset(without)
        self._answers: dict[str, Answer] = {}

    def answer(self, name: str, thorough: bool = False) -> Answer:
        """(there, what was seen). KeyError for a name that is none."""
        feature = FEATURES[name]
        if name in self.without:
            return False, "switched off"
        if name not in self._answers:
            probe = feature.thorough if thorough and feature.thorough else feature.probe
            try:
                self._answers[name] = probe()
            except OSError as error:
                self._answers[name] = (False, str(error))
        return self._answers[name]

    def __getattr__(self, name: str) -> bool:
        if name not in FEATURES:
            raise AttributeError(name)
        return self.answer(name)[0]
