"""The host's clocks, timers, CPU times, descriptors and credentials, as the Platform protocol asks for them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time
from typing import TYPE_CHECKING

from trapline.platform.cpu_alarms import CpuAlarms
from trapline.platform.task_ids import read_ids
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from trapline.platform.task_clock_events import TaskClock
    from trapline.platform.tracee import Tracee
    from trapline.sentry.kernel.tty import Terminal

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_timerfd_settime = _libc.timerfd_settime
_timerfd_settime.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_timerfd_gettime = _libc.timerfd_gettime
_timerfd_gettime.argtypes = [ctypes.c_int, ctypes.c_void_p]
_SYS_PIDFD_OPEN, _SYS_PIDFD_GETFD, _SYS_SCHED_GETAFFINITY = 434, 438, 204
_TIOCGDEV, _TIOCGSID, _F_GETFL = 0x80045432, 0x5429, 3
_PTMX, _DEV_TTY = os.makedev(5, 2), os.makedev(5, 0)
_PROC_SUPER_MAGIC = 0x9FA0  # linux/magic.h
_NS_GET_PID_IN_PIDNS = 0x8004B708  # linux/nsfs.h
TFD_ABSTIME, TFD_CANCEL_ON_SET = 1, 2
_NS = 1_000_000_000
_TIMEX_SIZE = 208
#: How often an account is read anew when a tick came in between; a tick is much longer than this takes.
_TRIES = 4
#: How many threads are looked at for one that runs.
_LOOKED_AT = 64
_spec = ctypes.create_string_buffer(32)
_spec_at = ctypes.addressof(_spec)


def _file_system(fd: int) -> int:
    """f_type of fstatfs(2), which the os module does not give."""
    found = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, found) < 0:
        raise _fail("fstatfs")
    return int(struct.unpack_from("<q", found)[0])


def _int_of(fd: int, request: int) -> int:
    """What an ioctl writes to the int that it is given. OSError."""
    value = ctypes.c_int()
    if _libc.ioctl(fd, request, ctypes.byref(value)) < 0:
        raise _fail("ioctl")
    return value.value


def _fail(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


class HostServices:
    """Base of the platforms: everything that needs no stop."""

    def __init__(self) -> None:
        self.alarms: dict[int, int] = {}  # clock id -> timerfd, made by `open_alarms`
        self.cpu_alarms = CpuAlarms(_thread_account)
        self.own_uid = os.getuid()
        self.init_host = 0  # the sandbox's init, which is no tracee
        #: CPU time, user and all, ns, that tasks had used before they were restored: by thread, and by process.
        self.earlier: dict[int, tuple[int, int]] = {}
        self.earlier_of_group: dict[int, tuple[int, int]] = {}
        #: The same of children that were waited for: user and system, µs, by process.
        self.earlier_of_children: dict[int, tuple[int, int]] = {}
        self._devpts = -1  # see _own_devpts
        self._tick = os.sysconf("SC_CLK_TCK")
        #: The sandbox's pid namespace where the host translates ids (Linux 6.11), else -1.
        self.pid_namespace = -1

    def find(self, tid: int) -> Tracee:
        raise NotImplementedError

    def thread_hosts(self, tgid: int) -> list[int]:
        """The host ids of a process's threads."""
        raise NotImplementedError

    def tid_of(self, host: int) -> int:
        """A thread's id in the sandbox; 0 when it is not known."""
        raise NotImplementedError

    # -- ids
    def open_pid_namespace(self) -> None:
        """Have the host translate ids, once `init_host` is set."""
        self.pid_namespace = os.open(f"/proc/{self.init_host}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def tid_inside(self, host: int) -> int:
        """The id in the sandbox of any of its tasks, a zombie too. Gone."""
        if self.pid_namespace < 0:
            return read_ids(host)[1]
        try:
            return fcntl.ioctl(self.pid_namespace, _NS_GET_PID_IN_PIDNS, host)
        except OSError:
            raise Gone(host) from None

    # -- clocks and timers
    def open_alarms(self) -> dict[int, int]:
        """One timerfd for MONOTONIC and one for REALTIME: the descriptors to poll, by clock id."""
        for clock_id in (1, 0):
            fd = _libc.timerfd_create(clock_id, os.O_NONBLOCK | os.O_CLOEXEC)
            if fd < 0:
                raise _fail("timerfd_create")
            self.alarms[clock_id] = fd
        return self.alarms

    def host_monotonic(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def host_realtime(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_REALTIME)

    def host_clock(self, clock_id: int) -> int:
        return time.clock_gettime_ns(clock_id)

    def host_clock_resolution(self, clock_id: int) -> int:
        return round(time.clock_getres(clock_id) * _NS)

    def host_adjtimex(self) -> tuple[int, bytes]:
        timex = ctypes.create_string_buffer(_TIMEX_SIZE)
        state = _libc.adjtimex(timex)
        if state < 0:
            raise _fail("adjtimex")
        return state, timex.raw

    def set_alarm(self, clock_id: int, when: int) -> None:
        """REALTIME's is cancelled by a step of the host's clock, so that deadlines are looked at anew."""
        if when < 0:
            seconds, nanoseconds = 0, 0
        else:
            seconds, nanoseconds = divmod(max(when, 1), _NS)
        struct.pack_into("<qqqq", _spec, 0, 0, 0, seconds, nanoseconds)
        flags = TFD_ABSTIME | (TFD_CANCEL_ON_SET if clock_id == 0 else 0)
        if _timerfd_settime(self.alarms[clock_id], flags, _spec_at, None) < 0:
            raise _fail("timerfd_settime")

    def timerfd_settime(self, fd: int, flags: int, value: int, interval: int) -> None:
        """Arm a guest's timerfd by a duplicate of it; ns on the host's clock. OSError."""
        struct.pack_into("<qqqq", _spec, 0, *divmod(interval, _NS), *divmod(value, _NS))
        if _timerfd_settime(fd, flags, _spec_at, None) < 0:
            raise _fail("timerfd_settime")

    def timerfd_gettime(self, fd: int) -> tuple[int, int]:
        """(remaining, interval) in host ns. OSError."""
        if _timerfd_gettime(fd, _spec_at) < 0:
            raise _fail("timerfd_gettime")
        i_s, i_n, v_s, v_n = struct.unpack("<qqqq", _spec.raw)
        return v_s * _NS + v_n, i_s * _NS + i_n

    # -- CPU time
    def thread_cpu_ns(self, tid: int) -> int:
        """The host's account of a running task is up to a tick behind; where there is an event, that is not."""
        t = self.find(tid)
        used = _thread_account(t.host)
        if self.earlier:
            before = self.earlier.get(tid, (0, 0))[0]
            clock = self.cpu_alarms.clocks(t.host_group).get(t.host)
            return before + (used if clock is None else clock.exact(used))
        clock = self.cpu_alarms.clocks(t.host_group).get(t.host)
        return used if clock is None else clock.exact(used)

    def group_cpu_ns(self, tgid: int) -> int:
        """The process CPU clock of another process: ~pid << 3 | 2 (CPUCLOCK_SCHED; Linux posix-timers).

        What it is behind for threads with an event is added: the threads' own accounts are part of it, so they
        are read before and after, until no tick came in between.
        """
        return self._group_cpu_ns(tgid) + self.earlier_of_group.get(tgid, (0, 0))[0]

    def _group_cpu_ns(self, tgid: int) -> int:
        host = self.find(tgid).host_group
        clocks = self.cpu_alarms.clocks(host)
        accounts = _accounts(clocks)
        for _ in range(_TRIES):
            try:
                total = time.clock_gettime_ns(~host << 3 | 2)
            except OSError:
                raise Gone(tgid) from None
            if not clocks:
                return total
            before, accounts = accounts, _accounts(clocks)
            if before == accounts:
                break
        return total + sum([clock.exact(accounts[host]) - accounts[host] for host, clock in clocks.items()])

    def thread_user_ns(self, tid: int) -> int:
        t = self.find(tid)
        total, user = self.earlier.get(tid, (0, 0))
        return user + self._user(f"/proc/{t.host_group}/task/{t.host}/stat", self.thread_cpu_ns(tid) - total)

    def group_user_ns(self, tgid: int) -> int:
        user = self.earlier_of_group.get(tgid, (0, 0))[1]
        return user + self._user(f"/proc/{self.find(tgid).host_group}/stat", self._group_cpu_ns(tgid))

    def _user(self, path: str, total: int) -> int:
        """User time, of which the host tells whole ticks only: the exact total, divided as it divides the ticks
        (Linux cputime_adjust), within the tick that it tells."""
        user, system = _times(path)[:2]
        tick = _NS // self._tick
        if not user + system:
            return min(total, tick - 1)
        return min(max(total * user // (user + system), user * tick), user * tick + tick - 1)

    def process_times(self, tgid: int) -> tuple[int, int, int, int]:
        user, system, children_user, children_system = _times(f"/proc/{self.find(tgid).host_group}/stat")
        if self.earlier_of_group:
            total, in_user = self.earlier_of_group.get(tgid, (0, 0))
            tick = _NS // self._tick
            user, system = user + in_user // tick, system + max(total - in_user, 0) // tick
            children = self.earlier_of_children.get(tgid, (0, 0))
            children_user += children[0] * 1000 // tick
            children_system += children[1] * 1000 // tick
        return user, system, children_user, children_system

    def account_of_ended(self, tgid: int, rusage: bytes) -> tuple[tuple[int, int], bytes]:
        """A process has: what the host's account of it lacks, user and system time in µs, and its rusage with that."""
        total, user = self.earlier_of_group.pop(tgid, (0, 0))
        children = self.earlier_of_children.pop(tgid, (0, 0))
        from trapline.sentry.syscalls import sys_rusage

        before = user // 1000 + children[0], max(total - user, 0) // 1000 + children[1]
        return before, sys_rusage.added(rusage, before)

    def waited_for(self, tgid: int, before: tuple[int, int]) -> None:
        known = self.earlier_of_children.get(tgid, (0, 0))
        self.earlier_of_children[tgid] = known[0] + before[0], known[1] + before[1]

    def earlier_usage(self, tid: int, who: int) -> tuple[int, int]:
        task = self.find(tid).task
        assert task is not None
        if who == -1:  # RUSAGE_CHILDREN
            return self.earlier_of_children.get(task.tgid, (0, 0))
        total, user = self.earlier.get(tid, (0, 0)) if who else self.earlier_of_group.get(task.tgid, (0, 0))
        return user // 1000, max(total - user, 0) // 1000

    def running_thread(self, tgid: int) -> int:
        """By /proc, of the first threads: after an alarm that does not say whose running it was."""
        host_group = self.find(tgid).host_group
        for host in self.thread_hosts(tgid)[:_LOOKED_AT]:
            try:
                state = _read(f"/proc/{host_group}/task/{host}/stat").rpartition(b")")[2].split()[0]
            except Gone:
                continue
            if state == b"R":
                return self.tid_of(host)
        return 0

    def set_cpu_alarm(self, key: str, tid: int, whole_group: bool, after: int) -> None:
        if after < 0:
            self.cpu_alarms.cancel(key)
            return
        t = self.find(tid)
        hosts = self.thread_hosts(tid) if whole_group else [t.host]
        try:
            self.cpu_alarms.set(key, t.host_group, hosts, whole_group, after)
        except OSError:
            raise Gone(tid) from None

    def pending_limit(self, tgid: int) -> int:
        # prlimit(2) on another user's process needs CAP_SYS_RESOURCE, which root in a container may lack.
        for line in _read(f"/proc/{self.find(tgid).host_group}/limits").splitlines():
            if line.startswith(b"Max pending signals"):
                soft = line.split()[3]
                return 1 << 62 if soft == b"unlimited" else int(soft)
        return 1 << 62

    def has_ended(self, tid: int) -> bool:
        t = self.find(tid)
        return _read(f"/proc/{t.host_group}/task/{t.host}/stat").rpartition(b")")[2].split()[0] == b"Z"

    # -- descriptors
    def descriptor(self, tid: int, fd: int) -> int:
        t = self.find(tid)
        # Of the thread itself (PIDFD_THREAD, Linux 6.9): a leader that has ended before its threads has none any more.
        pidfd = _syscall(_SYS_PIDFD_OPEN, t.host, os.O_EXCL) if t.host != t.host_group else -1
        if pidfd < 0:
            pidfd = _syscall(_SYS_PIDFD_OPEN, t.host_group, 0)
        if pidfd < 0:
            raise Gone(tid)
        try:
            found = _syscall(_SYS_PIDFD_GETFD, pidfd, ctypes.c_int(fd), 0)
            if found < 0:
                number = ctypes.get_errno()
                if number == errno.ESRCH:
                    raise Gone(tid)
                raise OSError(number, "pidfd_getfd")
            return int(found)
        finally:
            os.close(pidfd)

    def terminal(self, tid: int, fd: int) -> Terminal:
        """By a duplicate; the ioctls used here (ioctl_tty(2)) ask nothing of who makes them."""
        from trapline.sentry.kernel.tty import OUTSIDE, Terminal

        own = self.descriptor(tid, fd)
        try:
            number = _int_of(own, _TIOCGDEV)
            status = os.fstat(own)
            master, alias = status.st_rdev == _PTMX, status.st_rdev == _DEV_TTY
            if not alias and status.st_dev != self._own_devpts(tid):
                number |= OUTSIDE
            session = -1
            if master:
                try:
                    session = self.tid_of(_int_of(own, _TIOCGSID))
                except OSError:
                    session = 0
            readable = _libc.fcntl(own, _F_GETFL) & os.O_ACCMODE != os.O_WRONLY
        finally:
            os.close(own)
        return Terminal(number, master, readable, session, alias)

    def _own_devpts(self, tid: int) -> int:
        """The device number of the sandbox's devpts; -1 where this task sees none."""
        if self._devpts < 0:
            try:
                self._devpts = os.stat(f"/proc/{self.find(tid).host}/root/dev/pts").st_dev
            except OSError:
                return -1  # it has changed its root
        return self._devpts

    def controlling_terminal(self, tgid: int) -> int:
        return int(_read(f"/proc/{self.find(tgid).host_group}/stat").rpartition(b")")[2].split()[4]) & 0xFFFFFFFF

    def close_descriptor(self, fd: int) -> None:
        os.close(fd)

    def descriptor_info(self, tid: int, fd: int) -> str:
        t = self.find(tid)
        try:
            return _read(f"/proc/{t.host}/fdinfo/{fd}").decode()
        except Gone:
            raise OSError(errno.EBADF, "no such descriptor") from None

    def process_of_directory(self, tid: int, fd: int) -> int:
        """/proc/PID has the same files as /proc/PID/task/TID, and `task` besides."""
        own = self.descriptor(tid, fd)
        try:
            if _file_system(own) != _PROC_SUPER_MAGIC or not os.path.isdir(f"/proc/self/fd/{own}"):
                raise OSError(errno.EBADF, "not a directory of /proc")
            try:
                os.stat("task", dir_fd=own)
                status = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=own)
            except FileNotFoundError:
                # Of a process that is gone the directory is empty, which says nothing of what it was.
                gone = os.readlink(f"/proc/self/fd/{own}").removesuffix(" (deleted)").rpartition("/")[2].isdigit()
                raise OSError(errno.ESRCH if gone else errno.EBADF, "no process") from None
            try:
                text = os.read(status, 4096)
            finally:
                os.close(status)
        finally:
            os.close(own)
        return int(text.partition(b"\nNSpid:")[2].partition(b"\n")[0].split()[-1])

    # -- ids
    def credentials(self, tid: int) -> tuple[tuple[int, int, int], int]:
        """From /proc/PID/status. Ids are shown in the sentry's user namespace, which the sandbox's maps to
        its own by one range, so equality and root are judged alike."""
        real = effective = saved = capabilities = 0
        for line in _read(f"/proc/{self._host(tid)}/status").splitlines():
            if line.startswith(b"Uid:"):
                real, effective, saved = (int(x) for x in line.split()[1:4])
            elif line.startswith(b"CapEff:"):
                capabilities = int(line.split()[1], 16)
                break
        return (real, effective, saved), capabilities

    def group_ids(self, tid: int) -> tuple[int, int, int]:
        """Likewise, of groups."""
        for line in _read(f"/proc/{self.find(tid).host}/status").splitlines():
            if line.startswith(b"Gid:"):
                real, effective, saved = (int(x) for x in line.split()[1:4])
                return real, effective, saved
        raise Gone(tid)

    def permitted(self, tid: int) -> int:
        for line in _read(f"/proc/{self._host(tid)}/status").splitlines():
            if line.startswith(b"CapPrm:"):
                return int(line.split()[1], 16)
        return 0

    def _host(self, tid: int) -> int:
        return self.init_host if tid == 1 else self.find(tid).host

    # -- CPUs
    def cpu_mask_size(self) -> int:
        # The call itself, unlike libc's function, tells how long the kernel's masks are (sched_setaffinity(2)).
        return int(_syscall(_SYS_SCHED_GETAFFINITY, 0, 8192, ctypes.create_string_buffer(8192)))

    def set_affinity(self, tid: int, cpus: list[int]) -> None:
        try:
            os.sched_setaffinity(self._host(tid), cpus)
        except ProcessLookupError:
            raise Gone(tid) from None


def _thread_account(host: int) -> int:
    """Host ns of CPU of one thread. Gone."""
    return int(_read(f"/proc/{host}/schedstat").split()[0])


def _accounts(clocks: dict[int, TaskClock]) -> dict[int, int]:
    return {host: _thread_account(host) for host in clocks}


def _times(path: str) -> list[int]:
    """utime, stime, cutime, cstime of /proc/PID/stat, ticks. Gone."""
    return [int(field) for field in _read(path).rpartition(b")")[2].split()[11:15]]


def _read(path: str) -> bytes:
    """A small file of /proc. Gone when the task is."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise Gone(path) from None
    try:
        return os.read(fd, 8192)
    except OSError:
        raise Gone(path) from None
    finally:
        os.close(fd)
