/* Guests of test_ownership.py: they look at what only a kernel of its own can make different. */
#include "common.h"

#include <sys/time.h>
#include <sys/timerfd.h>

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

static void took(const char *what, int64_t since)
{
    say("%s %ld", what, (long)((now_ns(CLOCK_MONOTONIC) - since) / MS));
}

/* Waits of 0.2 s by every owned means, measured by the guest's own clock. */
static void waits(void)
{
    struct timespec fifth = {0, 200000000};
    struct itimerval interval = {.it_value = {0, 200000}};
    struct itimerspec setting = {.it_value = fifth};
    sigset_t set;
    timer_t timer;
    uint64_t expirations;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    say("begin");
    int64_t since = now_ns(CLOCK_MONOTONIC);
    nanosleep(&fifth, NULL);
    took("nanosleep", since);
    since = now_ns(CLOCK_MONOTONIC);
    setitimer(ITIMER_REAL, &interval, NULL);
    sigwaitinfo(&set, NULL);
    took("setitimer", since);
    since = now_ns(CLOCK_MONOTONIC);
    timer_create(CLOCK_REALTIME, NULL, &timer);
    timer_settime(timer, 0, &setting, NULL);
    sigwaitinfo(&set, NULL);
    took("timer_settime", since);
    since = now_ns(CLOCK_MONOTONIC);
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    timerfd_settime(fd, 0, &setting, NULL);
    if (read(fd, &expirations, sizeof expirations) != sizeof expirations)
        say("read failed");
    took("timerfd_settime", since);
    struct timespec before, after; /* by calls, where the others go by the vDSO */
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &before);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int64_t start = now_ns(CLOCK_MONOTONIC);
    sigtimedwait(&set, NULL, &fifth);
    took("sigtimedwait", start);
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &after);
    say("realtime %ld", (long)((after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / MS));
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
            result < 0 ? -1L : value.tv_sec * 1000L + value.tv_nsec / MS);
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
        {"waits", waits}, {"clocks", clocks}, {"set", set_clock}, {"answers", answers},
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
