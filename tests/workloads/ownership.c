/* Guests of test_ownership.py: they look at what only a kernel of its own can make different. */
#include "common.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/timex.h>

static void nothing(int signo)
{
    (void)signo;
}

/* Each argument of the program is NUMBER:A:B:C:D:E:F, a call that is made three times. */
static void make(char *text)
{
    long values[7] = {0};
    for (int i = 0; i < 7 && text != NULL; i++) {
        values[i] = strtol(text, &text, 0);
        text = *text == ':' ? text + 1 : NULL;
    }
    for (int i = 0; i < 3; i++)
        syscall(values[0], values[1], values[2], values[3], values[4], values[5], values[6]);
}

/* What cannot be made by syscall(): a return from a handler, a vfork, a pause that ends. */
static void make_others(void)
{
    struct itimerval soon = {.it_value = {0, 10000}};
    sigset_t alarm_only, before;
    signal(SIGALRM, nothing);
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    for (int i = 0; i < 3; i++) {
        if (vfork() == 0)
            _exit(0);
        setitimer(ITIMER_REAL, &soon, NULL);
        syscall(SYS_pause);
    }
    sigprocmask(SIG_BLOCK, &alarm_only, &before);
}

/* A moment on the host's clock, which shows in the times of files, between two readings of the guest's. */
struct moment {
    int64_t before, host, after;
};

static struct moment here(void)
{
    static int file = -1;
    struct stat status;
    struct moment now = {.before = now_ns(CLOCK_MONOTONIC)};
    if (file < 0)
        file = memfd_create("moment", 0);
    if (futimens(file, NULL) != 0 || fstat(file, &status) != 0)
        exit(97);
    now.host = status.st_mtim.tv_sec * 1000000000LL + status.st_mtim.tv_nsec;
    now.after = now_ns(CLOCK_MONOTONIC);
    return now;
}

/* The least and the most that it can have taken by the guest's clock, and what it took by the host's, us. */
static void took(const char *what, struct moment since)
{
    struct moment now = here();
    say("%s %ld %ld %ld", what, (long)((now.before - since.after) / 1000), (long)((now.after - since.before) / 1000),
        (long)((now.host - since.host) / 1000));
}

static const struct { const char *name; clockid_t id; } timed[] = {
    {"REALTIME", CLOCK_REALTIME}, {"MONOTONIC", CLOCK_MONOTONIC}, {"BOOTTIME", CLOCK_BOOTTIME}, {"TAI", CLOCK_TAI},
};

static struct timespec later(clockid_t clock, int64_t span)
{
    int64_t then = now_ns(clock) + span;
    return (struct timespec){then / 1000000000, then % 1000000000};
}

static void took_on(const char *what, size_t clock, struct moment since)
{
    char text[64];
    snprintf(text, sizeof text, "%s(%s)", what, timed[clock].name);
    took(text, since);
}

static void await_expirations(int fd, uint64_t wanted)
{
    for (uint64_t all = 0, some; all < wanted; all += some)
        if (read(fd, &some, sizeof some) != sizeof some)
            exit(98);
}

/* As test_ownership.py's WAITS: 0.1 s by every owned means, measured by the guest's own clock. */
static void waits(void)
{
    const int64_t tenth = 100 * MS;
    struct timespec span = {0, tenth}, until;
    struct itimerval once = {.it_value = {0, 100000}}, often = {{0, 50000}, {0, 50000}}, never = {0};
    struct itimerspec setting = {.it_value = span}, periodic = {{0, tenth / 2}, {0, tenth / 2}}, off = {0};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    sigset_t set, other;
    timer_t timer;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    sigemptyset(&other);
    sigaddset(&other, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sigprocmask(SIG_BLOCK, &other, NULL);
    struct moment since = here();
    nanosleep(&span, NULL);
    took("nanosleep", since);
    for (size_t i = 1; i < 3; i++) {
        since = here();
        clock_nanosleep(timed[i].id, 0, &span, NULL);
        took_on("clock_nanosleep", i, since);
    }
    for (size_t i = 0; i < 4; i++) {
        since = here();
        until = later(timed[i].id, tenth);
        clock_nanosleep(timed[i].id, TIMER_ABSTIME, &until, NULL);
        took_on("until", i, since);
    }
    since = here();
    setitimer(ITIMER_REAL, &once, NULL);
    sigwaitinfo(&set, NULL);
    took("setitimer", since);
    for (size_t i = 0; i < 6; i++) {
        size_t clock = i < 4 ? i : i == 4 ? 0 : 3;
        since = here();
        timer_create(timed[clock].id, &event, &timer);
        setting.it_value = i < 4 ? span : later(timed[clock].id, tenth);
        timer_settime(timer, i < 4 ? 0 : TIMER_ABSTIME, &setting, NULL);
        sigwaitinfo(&set, NULL);
        took_on(i < 4 ? "timer" : "timer_until", clock, since);
        timer_delete(timer);
    }
    for (size_t i = 0; i < 5; i++) {
        size_t clock = i < 3 ? i : i == 3 ? 0 : 2;
        since = here();
        int fd = timerfd_create(timed[clock].id, 0);
        setting.it_value = i < 3 ? span : later(timed[clock].id, tenth);
        timerfd_settime(fd, i < 3 ? 0 : TFD_TIMER_ABSTIME, &setting, NULL);
        await_expirations(fd, 1);
        took_on(i < 3 ? "timerfd" : "timerfd_until", clock, since);
        close(fd);
    }
    since = here();
    sigtimedwait(&other, NULL, &span);
    took("sigtimedwait", since);
    since = here();
    setitimer(ITIMER_REAL, &often, NULL);
    sigwaitinfo(&set, NULL);
    sigwaitinfo(&set, NULL);
    took("periods(setitimer)", since);
    setitimer(ITIMER_REAL, &never, NULL);
    since = here();
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &periodic, NULL);
    for (int periods = 0; periods < 2; periods += 1 + timer_getoverrun(timer))
        sigwaitinfo(&set, NULL);
    took("periods(timer)", since);
    timer_settime(timer, 0, &off, NULL);
    since = here();
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    timerfd_settime(fd, 0, &periodic, NULL);
    await_expirations(fd, 2);
    took("periods(timerfd)", since);
    since = here();
    alarm(1);
    sigwaitinfo(&set, NULL);
    took("alarm", since);
}

static int64_t call_ns(clockid_t clock)
{
    struct timespec value = {0, 0};
    return syscall(SYS_clock_gettime, clock, &value) < 0 ? -1 : value.tv_sec * 1000000000LL + value.tv_nsec;
}

enum teller { BY_VDSO, BY_CALL, DAY, DAY_CALL, SECONDS, SECONDS_CALL, ADJTIMEX, CLOCK_ADJTIME };

static int64_t told(enum teller by, clockid_t clock)
{
    struct timeval day;
    struct timex timex = {0};
    switch (by) {
    case BY_VDSO: return now_ns(clock);
    case BY_CALL: return call_ns(clock);
    case DAY: gettimeofday(&day, NULL); break;
    case DAY_CALL: syscall(SYS_gettimeofday, &day, NULL); break;
    case SECONDS: return time(NULL) * 1000000000LL;
    case SECONDS_CALL: return syscall(SYS_time, NULL) * 1000000000LL;
    case ADJTIMEX:
    case CLOCK_ADJTIME:
        if (by == ADJTIMEX)
            adjtimex(&timex);
        else
            clock_adjtime(CLOCK_REALTIME, &timex);
        return timex.time.tv_sec * 1000000000LL + timex.time.tv_usec * (timex.status & STA_NANO ? 1 : 1000);
    }
    return day.tv_sec * 1000000000LL + day.tv_usec * 1000LL;
}

/* Whether all that tells the time goes on by as much as MONOTONIC in the same while, to a coarse tick or a second. */
static void together(void)
{
    static const struct { const char *name; enum teller by; clockid_t clock; long coarse; } all[] = {
        {"REALTIME", BY_VDSO, CLOCK_REALTIME, 0}, {"REALTIME, call", BY_CALL, CLOCK_REALTIME, 0},
        {"MONOTONIC", BY_VDSO, CLOCK_MONOTONIC, 0}, {"MONOTONIC, call", BY_CALL, CLOCK_MONOTONIC, 0},
        {"RAW", BY_VDSO, CLOCK_MONOTONIC_RAW, 2}, {"RAW, call", BY_CALL, CLOCK_MONOTONIC_RAW, 2},
        {"REALTIME_COARSE", BY_VDSO, CLOCK_REALTIME_COARSE, 25}, {"REALTIME_COARSE, call", BY_CALL, CLOCK_REALTIME_COARSE, 25},
        {"MONOTONIC_COARSE", BY_VDSO, CLOCK_MONOTONIC_COARSE, 25}, {"MONOTONIC_COARSE, call", BY_CALL, CLOCK_MONOTONIC_COARSE, 25},
        {"BOOTTIME", BY_VDSO, CLOCK_BOOTTIME, 0}, {"BOOTTIME, call", BY_CALL, CLOCK_BOOTTIME, 0},
        {"TAI", BY_VDSO, CLOCK_TAI, 0}, {"TAI, call", BY_CALL, CLOCK_TAI, 0},
        {"gettimeofday", DAY, 0, 1}, {"gettimeofday, call", DAY_CALL, 0, 1},
        {"time", SECONDS, 0, 1000}, {"time, call", SECONDS_CALL, 0, 1000},
        {"adjtimex", ADJTIMEX, 0, 1}, {"clock_adjtime", CLOCK_ADJTIME, 0, 1},
    };
    int64_t before[COUNT_OF(all)][2], first[COUNT_OF(all)];
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        before[i][0] = now_ns(CLOCK_MONOTONIC);
        first[i] = told(all[i].by, all[i].clock);
        before[i][1] = now_ns(CLOCK_MONOTONIC);
    }
    sleep_ms(2500); /* at half or twice the speed `time` would be off by more than a second */
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        int64_t low = now_ns(CLOCK_MONOTONIC) - before[i][1], passed = told(all[i].by, all[i].clock) - first[i];
        int64_t high = now_ns(CLOCK_MONOTONIC) - before[i][0], slack = all[i].coarse * MS;
        say("%s: %s", all[i].name, yes(low - slack <= passed && passed <= high + slack));
    }
}

static void clocks(void)
{
    static const struct { const char *name; clockid_t id; } all[] = {
        {"realtime", CLOCK_REALTIME}, {"monotonic", CLOCK_MONOTONIC}, {"raw", CLOCK_MONOTONIC_RAW},
        {"coarse", CLOCK_MONOTONIC_COARSE}, {"boottime", CLOCK_BOOTTIME},
    };
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        struct timespec value = {0, 0};
        long result = syscall(SYS_clock_gettime, all[i].id, &value);
        say("%s: %ld %ld", all[i].name, (long)(now_ns(all[i].id) / MS),
            result < 0 ? -1L : (long)(value.tv_sec * 1000 + value.tv_nsec / MS));
    }
}

/* Moves REALTIME by a day, and looks at it in another process. */
static void set_clock(void)
{
    int64_t before = now_ns(CLOCK_REALTIME);
    struct timespec tomorrow = {(time_t)(before / 1000000000) + 86400, 0};
    say("clock_settime: %s", outcome(clock_settime(CLOCK_REALTIME, &tomorrow)));
    fflush(NULL);
    pid_t child = fork_or_die();
    if (child == 0) {
        long moved = (long)((now_ns(CLOCK_REALTIME) - before) / 1000000000);
        say("moved a day: %s", yes(moved >= 86390 && moved <= 86410));
        say("not moved: %s", yes(moved >= 0 && moved <= 10));
        _exit(0);
    }
    reap(child);
    struct timeval now;
    gettimeofday(&now, NULL);
    say("gettimeofday agrees: %s", yes(llabs(now.tv_sec - now_ns(CLOCK_REALTIME) / 1000000000) < 5));
    say("settimeofday: %s", outcome(syscall(SYS_settimeofday, &now, NULL)));
}

static void answers(void)
{
    struct itimerval interval = {0};
    struct timespec now = {0};
    getitimer(ITIMER_REAL, &interval);
    say("getitimer: %ld", (long)interval.it_value.tv_sec);
    say("kill: %s", outcome(kill(getpid(), 0)));
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    say("clock_gettime: %ld", (long)now.tv_sec);
    say("getppid: %ld", (long)syscall(SYS_getppid));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"waits", waits}, {"together", together}, {"clocks", clocks}, {"set", set_clock}, {"answers", answers},
    };
    if (argc > 1 && strcmp(argv[1], "make") == 0) {
        for (int i = 2; i < argc; i++)
            make(argv[i]);
        if (argc > 2)
            make_others();
        return 0;
    }
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
