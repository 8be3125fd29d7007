"""Rows of the syscall table: signals, and the waits that change the signal mask."""

from __future__ import annotations

from trapline.sentry.syscalls.table_types import native, non_zero, notify, stop, wrap

_ONLY_WITH_MASK = "native without a mask"

ROWS = (
    notify(
        13, "rt_sigaction", "int sig, const struct sigaction *act, struct sigaction *oact, size_t sigsetsize"
    ),
    notify(14, "rt_sigprocmask", "int how, sigset_t *nset, sigset_t *oset, size_t sigsetsize"),
    notify(15, "rt_sigreturn"),
    # A stop, not a notification: parked tasks wait in it. The kernel filters a number that was changed at a
    # stop once more, and lets a trace pass then, but would notify.
    stop(34, "pause"),
    notify(62, "kill", "pid_t pid, int sig"),
    notify(127, "rt_sigpending", "sigset_t *uset, size_t sigsetsize"),
    stop(
        128,
        "rt_sigtimedwait",
        "const sigset_t *uthese, siginfo_t *uinfo, const struct timespec *uts, size_t sigsetsize",
    ),
    notify(129, "rt_sigqueueinfo", "pid_t pid, int sig, siginfo_t *uinfo"),
    wrap(130, "rt_sigsuspend", "sigset_t *unewset, size_t sigsetsize"),
    native(131, "sigaltstack", "const stack_t *uss, stack_t *uoss", "the host writes the frames"),
    notify(200, "tkill", "pid_t tid, int sig"),
    notify(234, "tgkill", "pid_t tgid, pid_t tid, int sig"),
    wrap(
        270,
        "pselect6",
        "int n, fd_set *inp, fd_set *outp, fd_set *exp, struct timespec *tsp, void *sig",
        _ONLY_WITH_MASK,
        when=non_zero(5),
    ),
    wrap(
        271,
        "ppoll",
        "struct pollfd *ufds, unsigned int nfds, struct timespec *tsp, const sigset_t *sigmask, "
        "size_t sigsetsize",
        _ONLY_WITH_MASK,
        when=non_zero(3),
    ),
    wrap(
        281,
        "epoll_pwait",
        "int epfd, struct epoll_event *events, int maxevents, int timeout, const sigset_t *sigmask, "
        "size_t sigsetsize",
        _ONLY_WITH_MASK,
        when=non_zero(4),
    ),
    notify(282, "signalfd", "int ufd, sigset_t *user_mask, size_t sizemask"),
    notify(289, "signalfd4", "int ufd, sigset_t *user_mask, size_t sizemask, int flags"),
    notify(297, "rt_tgsigqueueinfo", "pid_t tgid, pid_t tid, int sig, siginfo_t *uinfo"),
    notify(424, "pidfd_send_signal", "int pidfd, int sig, siginfo_t *info, unsigned int flags"),
    wrap(
        441,
        "epoll_pwait2",
        "int epfd, struct epoll_event *events, int maxevents, const struct timespec *timeout, "
        "const sigset_t *sigmask, size_t sigsetsize",
        _ONLY_WITH_MASK,
        when=non_zero(4),
    ),
)
