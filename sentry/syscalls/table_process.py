"""Rows of the syscall table: processes, threads, ids, credentials, limits and scheduling."""

from __future__ import annotations

from errno import EPERM

from trapline.sentry.syscalls.table_types import (
    LOW_32,
    Support,
    any_bits,
    missing,
    native,
    notify,
    one_of,
    refuse,
    stop,
)

# linux/sched.h. CLONE_NEWTIME (0x80) is of clone3 only: in clone those bits are the exit signal.
_CLONE_PTRACE, _CLONE_VFORK, _CLONE_UNTRACED = 0x2000, 0x4000, 0x800000
_NAMESPACES = 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
_CLONE_FLAGS = (_CLONE_PTRACE | _CLONE_VFORK | _CLONE_UNTRACED | _NAMESPACES) & LOW_32

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_MM, _PR_SET_CHILD_SUBREAPER = 1, 2, 22, 35, 36
_RLIMIT_CPU, _RLIMIT_SIGPENDING = 0, 11

_WALL = "a deadline on CLOCK_REALTIME is on the host's wall clock"
_SEEN = "the sentry sees the event"
_LIMITS = "RLIMIT_CPU and RLIMIT_SIGPENDING; the others are the host's"

ROWS = (
    native(24, "sched_yield"),
    native(39, "getpid"),
    stop(
        56,
        "clone",
        "unsigned long clone_flags, unsigned long newsp, int *parent_tidptr, int *child_tidptr, "
        "unsigned long tls",
        "stops for CLONE_VFORK, CLONE_UNTRACED, CLONE_PTRACE and namespaces (refused); else native",
        when=any_bits(0, _CLONE_FLAGS),
    ),
    native(57, "fork", "", _SEEN),
    stop(58, "vfork"),
    native(59, "execve", "const char *filename, const char *const *argv, const char *const *envp", _SEEN),
    native(60, "exit", "int error_code", _SEEN),
    stop(61, "wait4", "pid_t upid, int *stat_addr, int options, struct rusage *ru"),
    notify(
        97,
        "getrlimit",
        "unsigned int resource, struct rlimit *rlim",
        _LIMITS,
        Support.PARTIAL,
        when=one_of(0, _RLIMIT_CPU, _RLIMIT_SIGPENDING),
    ),
    native(98, "getrusage", "int who, struct rusage *ru"),
    notify(
        101,
        "ptrace",
        "long request, long pid, unsigned long addr, unsigned long data",
        "EPERM: the sentry traces, and a task has one tracer; said once on standard error",
        Support.REFUSED,
    ),
    native(102, "getuid"),
    native(104, "getgid"),
    notify(105, "setuid", "uid_t uid"),
    native(106, "setgid", "gid_t gid"),
    native(107, "geteuid"),
    native(108, "getegid"),
    notify(109, "setpgid", "pid_t pid, pid_t pgid"),
    native(110, "getppid"),
    notify(111, "getpgrp"),
    notify(112, "setsid"),
    notify(113, "setreuid", "uid_t ruid, uid_t euid"),
    native(114, "setregid", "gid_t rgid, gid_t egid"),
    native(115, "getgroups", "int gidsetsize, gid_t *grouplist"),
    native(116, "setgroups", "int gidsetsize, gid_t *grouplist"),
    notify(117, "setresuid", "uid_t ruid, uid_t euid, uid_t suid"),
    native(118, "getresuid", "uid_t *ruidp, uid_t *euidp, uid_t *suidp"),
    native(119, "setresgid", "gid_t rgid, gid_t egid, gid_t sgid"),
    native(120, "getresgid", "gid_t *rgidp, gid_t *egidp, gid_t *sgidp"),
    notify(121, "getpgid", "pid_t pid"),
    native(122, "setfsuid", "uid_t uid"),
    native(123, "setfsgid", "gid_t gid"),
    notify(124, "getsid", "pid_t pid"),
    native(125, "capget", "struct __user_cap_header_struct *header, struct __user_cap_data_struct *dataptr"),
    native(126, "capset", "struct __user_cap_header_struct *header, struct __user_cap_data_struct *data"),
    native(135, "personality", "unsigned int personality"),
    native(140, "getpriority", "int which, int who"),
    native(141, "setpriority", "int which, int who, int niceval"),
    native(142, "sched_setparam", "pid_t pid, struct sched_param *param"),
    native(143, "sched_getparam", "pid_t pid, struct sched_param *param"),
    native(144, "sched_setscheduler", "pid_t pid, int policy, struct sched_param *param"),
    native(145, "sched_getscheduler", "pid_t pid"),
    native(146, "sched_get_priority_max", "int policy"),
    native(147, "sched_get_priority_min", "int policy"),
    native(148, "sched_rr_get_interval", "pid_t pid, struct timespec *interval"),
    notify(
        157,
        "prctl",
        "int option, unsigned long arg2, unsigned long arg3, unsigned long arg4, unsigned long arg5",
        "PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER and PR_SET_SECCOMP; PR_SET_MM is EPERM; else native",
        when=one_of(0, _PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER),
        refuse_when=one_of(0, _PR_SET_MM),
        errno=EPERM,
    ),
    native(158, "arch_prctl", "int option, unsigned long arg2"),
    notify(
        160,
        "setrlimit",
        "unsigned int resource, struct rlimit *rlim",
        _LIMITS,
        Support.PARTIAL,
        when=one_of(0, _RLIMIT_CPU, _RLIMIT_SIGPENDING),
    ),
    native(186, "gettid"),
    native(
        202,
        "futex",
        "u32 *uaddr, int op, u32 val, const struct timespec *utime, u32 *uaddr2, u32 val3",
        _WALL,
    ),
    notify(
        203,
        "sched_setaffinity",
        "pid_t pid, unsigned int len, unsigned long *user_mask_ptr",
        "within the CPUs of --cpus; without it executed by the host",
    ),
    native(204, "sched_getaffinity", "pid_t pid, unsigned int len, unsigned long *user_mask_ptr"),
    missing(205, "set_thread_area", "struct user_desc *u_info", "32-bit only"),
    missing(211, "get_thread_area", "struct user_desc *u_info", "32-bit only"),
    native(218, "set_tid_address", "int *tidptr"),
    native(219, "restart_syscall", "", "the host restarts its own calls"),
    native(231, "exit_group", "int error_code", _SEEN),
    stop(247, "waitid", "int which, pid_t upid, siginfo_t *infop, int options, struct rusage *ru"),
    native(251, "ioprio_set", "int which, int who, int ioprio"),
    native(252, "ioprio_get", "int which, int who"),
    refuse(272, "unshare", "unsigned long unshare_flags", EPERM, "no nested namespaces"),
    native(273, "set_robust_list", "struct robust_list_head *head, size_t len"),
    native(274, "get_robust_list", "int pid, struct robust_list_head **head_ptr, size_t *len_ptr"),
    notify(
        302,
        "prlimit64",
        "pid_t pid, unsigned int resource, const struct rlimit64 *new_rlim, struct rlimit64 *old_rlim",
        _LIMITS,
        Support.PARTIAL,
        when=one_of(1, _RLIMIT_CPU, _RLIMIT_SIGPENDING),
    ),
    refuse(308, "setns", "int fd, int flags", EPERM, "no nested namespaces"),
    native(309, "getcpu", "unsigned int *cpup, unsigned int *nodep, struct getcpu_cache *unused"),
    native(312, "kcmp", "pid_t pid1, pid_t pid2, int type, unsigned long idx1, unsigned long idx2"),
    native(314, "sched_setattr", "pid_t pid, struct sched_attr *uattr, unsigned int flags"),
    native(
        315, "sched_getattr", "pid_t pid, struct sched_attr *uattr, unsigned int usize, unsigned int flags"
    ),
    notify(
        317,
        "seccomp",
        "unsigned int op, unsigned int flags, void *uargs",
        "the guest's filter goes on top of the sandbox's; no NEW_LISTENER",
        Support.PARTIAL,
    ),
    native(
        322,
        "execveat",
        "int dfd, const char *filename, const char *const *argv, const char *const *envp, int flags",
        _SEEN,
    ),
    native(324, "membarrier", "int cmd, unsigned int flags, int cpu_id"),
    native(334, "rseq", "struct rseq *rseq, u32 rseq_len, int flags, u32 sig"),
    native(434, "pidfd_open", "pid_t pid, unsigned int flags"),
    stop(435, "clone3", "struct clone_args *uargs, size_t size", "becomes clone; namespaces are refused"),
    native(438, "pidfd_getfd", "int pidfd, int fd, unsigned int flags"),
    native(448, "process_mrelease", "int pidfd, unsigned int flags"),
    native(
        449,
        "futex_waitv",
        "struct futex_waitv *waiters, unsigned int nr_futexes, unsigned int flags, struct timespec *timeout, "
        "clockid_t clockid",
        _WALL,
    ),
    native(454, "futex_wake", "void *uaddr, unsigned long mask, int nr, unsigned int flags"),
    native(
        455,
        "futex_wait",
        "void *uaddr, unsigned long val, unsigned long mask, unsigned int flags, struct timespec *timeout, "
        "clockid_t clockid",
        _WALL,
    ),
    native(
        456, "futex_requeue", "struct futex_waitv *waiters, unsigned int flags, int nr_wake, int nr_requeue"
    ),
)
