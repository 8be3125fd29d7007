"""Rows of the syscall table: clocks, sleeps and timers (all owned)."""

from __future__ import annotations

from trapline.sentry.syscalls.table_types import Support, native, notify, stop

ROWS = (
    stop(35, "nanosleep", "struct timespec *rqtp, struct timespec *rmtp"),
    notify(36, "getitimer", "int which, struct itimerval *value"),
    notify(37, "alarm", "unsigned int seconds"),
    notify(38, "setitimer", "int which, struct itimerval *value, struct itimerval *ovalue"),
    notify(96, "gettimeofday", "struct timeval *tv, struct timezone *tz"),
    notify(100, "times", "struct tms *tbuf", "from the sandbox's start; the fields are the host's account"),
    notify(159, "adjtimex", "struct timex *txc_p", "of this sandbox only; steps, no slewing", Support.PARTIAL),
    notify(164, "settimeofday", "struct timeval *tv, struct timezone *tz", "of this sandbox only"),
    notify(201, "time", "time_t *tloc"),
    notify(
        222,
        "timer_create",
        "clockid_t which_clock, struct sigevent *timer_event_spec, timer_t *created_timer_id",
    ),
    notify(
        223,
        "timer_settime",
        "timer_t timer_id, int flags, const struct itimerspec *new_setting, struct itimerspec *old_setting",
    ),
    notify(224, "timer_gettime", "timer_t timer_id, struct itimerspec *setting"),
    notify(225, "timer_getoverrun", "timer_t timer_id"),
    notify(226, "timer_delete", "timer_t timer_id"),
    notify(227, "clock_settime", "clockid_t which_clock, const struct timespec *tp", "of this sandbox only"),
    notify(
        228,
        "clock_gettime",
        "clockid_t which_clock, struct timespec *tp",
        "served by the vDSO where it can be",
    ),
    notify(229, "clock_getres", "clockid_t which_clock, struct timespec *tp"),
    stop(
        230,
        "clock_nanosleep",
        "clockid_t which_clock, int flags, const struct timespec *rqtp, struct timespec *rmtp",
    ),
    native(
        283,
        "timerfd_create",
        "int clockid, int flags",
        "a timerfd of the host; its settings are the sentry's",
    ),
    notify(
        286, "timerfd_settime", "int ufd, int flags, const struct itimerspec *utmr, struct itimerspec *otmr"
    ),
    notify(287, "timerfd_gettime", "int ufd, struct itimerspec *otmr"),
    notify(
        305,
        "clock_adjtime",
        "clockid_t which_clock, struct timex *utx",
        "of this sandbox only; steps, no slewing",
        Support.PARTIAL,
    ),
)
