"""The named sets of calls of strace(1): `%file`, `%network` and the like.

Which calls take a path or a descriptor follows from their signatures; the rest is listed.
"""

from __future__ import annotations

from functools import cache

from trapline.sentry.strace.plan import DESCRIPTORS, DIRECTORIES, PATHS
from trapline.sentry.syscalls.table import FAMILIES, TABLE
from trapline.sentry.syscalls.table_types import Syscall

_LISTED = {
    "process": "clone fork vfork execve execveat exit exit_group wait4 waitid clone3 kill tkill tgkill "
    "rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal",
    "signal": "rt_sigaction rt_sigprocmask rt_sigreturn pause kill tkill tgkill rt_sigpending rt_sigtimedwait "
    "rt_sigqueueinfo rt_tgsigqueueinfo rt_sigsuspend sigaltstack signalfd signalfd4 pidfd_send_signal "
    "io_uring_enter",
    "clock": "gettimeofday settimeofday time adjtimex clock_gettime clock_settime clock_getres clock_adjtime",
    "ipc": "shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl",
    "creds": "getuid getgid geteuid getegid setuid setgid setreuid setregid getgroups setgroups setresuid "
    "getresuid setresgid getresgid setfsuid setfsgid capget capset prctl",
    "pure": "getpid getuid getgid geteuid getegid getppid getpgrp gettid",
    "stat": "stat",
    "lstat": "lstat",
    "fstat": "fstat newfstatat statx",
    "%stat": "stat lstat fstat newfstatat statx",
    "statfs": "statfs",
    "fstatfs": "fstatfs",
    "%statfs": "statfs fstatfs ustat",
}
_FILES_BESIDES = "getcwd mount umount2 utime utimes execve fsconfig"
_NOT_FILES = "fsopen memfd_create mq_open mq_unlink"
_DESCRIPTORS_BESIDES = (
    "open creat mmap pipe pipe2 select pselect6 poll ppoll eventfd eventfd2 epoll_create epoll_create1 "
    "inotify_init inotify_init1 timerfd_create signalfd4 memfd_create memfd_secret mq_open fanotify_init "
    "perf_event_open io_uring_setup fsopen pidfd_open landlock_create_ruleset userfaultfd open_by_handle_at "
    "process_madvise process_mrelease pidfd_send_signal"
)
_NETWORK_BESIDES = "sendfile getpmsg putpmsg"
_MEMORY_BESIDES = "shmat shmdt io_setup io_destroy io_uring_register"
_NOT_MEMORY = "memfd_create memfd_secret process_vm_readv process_vm_writev userfaultfd pkey_alloc pkey_free " \
    "modify_ldt process_madvise"  # fmt: skip

NAMES = (
    "file", "process", "network", "net", "signal", "desc", "memory", "clock", "ipc", "creds", "pure", "stat",
    "lstat", "fstat", "%stat", "statfs", "fstatfs", "%statfs",
)  # fmt: skip


def _takes(row: Syscall, names: frozenset[str]) -> bool:
    return any([parameter.name in names for parameter in row.parameters()])


def _family(name: str) -> set[str]:
    return {row.name for row in FAMILIES[name]}


@cache
def members(name: str) -> frozenset[str]:
    """The names of the calls of a set, without its `%`. KeyError."""
    if name in ("net", "network"):
        return frozenset(_family("sockets") | set(_NETWORK_BESIDES.split()))
    if name == "file":
        found = {row.name for row in TABLE if _takes(row, PATHS)}
        return frozenset(found - set(_NOT_FILES.split()) | set(_FILES_BESIDES.split()))
    if name == "desc":
        found = {row.name for row in TABLE if _takes(row, DESCRIPTORS | DIRECTORIES)}
        return frozenset(found - _family("sockets") | set(_DESCRIPTORS_BESIDES.split()))
    if name == "memory":
        return frozenset(_family("memory") - set(_NOT_MEMORY.split()) | set(_MEMORY_BESIDES.split()))
    return frozenset(_LISTED[name].split())
