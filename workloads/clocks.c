/* What every clock answers to every call that takes one, and to bad input. Nothing here can set a clock: what would
 * is refused before anybody asks who is calling (see tests/workloads/wallclock.c for the rest). */
#include "common.h"

#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/timex.h>

#define BAD ((void *)8)
#define TFD_CLOCKS 12
#define CPU_CLOCK(id, kind) ((int)(~(unsigned)(id) << 3 | (kind)))

static const struct {
    int id;
    const char *name;
} clocks[] = {
    {CLOCK_REALTIME, "REALTIME"}, {CLOCK_MONOTONIC, "MONOTONIC"}, {CLOCK_PROCESS_CPUTIME_ID, "PROCESS_CPUTIME"},
    {CLOCK_THREAD_CPUTIME_ID, "THREAD_CPUTIME"}, {CLOCK_MONOTONIC_RAW, "MONOTONIC_RAW"},
    {CLOCK_REALTIME_COARSE, "REALTIME_COARSE"}, {CLOCK_MONOTONIC_COARSE, "MONOTONIC_COARSE"},
    {CLOCK_BOOTTIME, "BOOTTIME"}, {CLOCK_REALTIME_ALARM, "REALTIME_ALARM"}, {CLOCK_BOOTTIME_ALARM, "BOOTTIME_ALARM"},
    {10, "10"}, {CLOCK_TAI, "TAI"}, {12, "12"}, {15, "15"}, {16, "16"}, {99, "99"}, {INT32_MAX, "2^31-1"},
    {INT32_MIN, "-2^31"}, {-1, "-1"}, {-2, "own thread, SCHED"}, {-3, "own thread, VIRT"}, {-4, "own thread, PROF"},
    {-5, "descriptor -1"}, {-6, "own process, SCHED"}, {-7, "own process, VIRT"}, {-8, "own process, PROF"},
    {CPU_CLOCK(5000000, 2), "no process"}, {CPU_CLOCK(5000000, 6), "no thread"},
};

static long call_2(long nr, int clock, void *address)
{
    return syscall(nr, (long)clock, address);
}

static void reading(void)
{
    for (size_t i = 0; i < COUNT_OF(clocks); i++) {
        struct timespec now = {-7, -7}, resolution = {-7, -7};
        long got = call_2(SYS_clock_gettime, clocks[i].id, &now), error = errno;
        say("%s: %s, valid %s, by libc %s, bad pointer %s", clocks[i].name, got < 0 ? error_name((int)error) : "ok",
            yes(now.tv_sec >= 0 && now.tv_nsec >= 0 && now.tv_nsec < 1000000000), outcome(clock_gettime(clocks[i].id, &now)),
            outcome(call_2(SYS_clock_gettime, clocks[i].id, BAD)));
        got = call_2(SYS_clock_getres, clocks[i].id, &resolution), error = errno;
        say("  resolution %s %ld.%09ld, no pointer %s, bad pointer %s", got < 0 ? error_name((int)error) : "ok",
            (long)resolution.tv_sec, resolution.tv_nsec, outcome(call_2(SYS_clock_getres, clocks[i].id, NULL)),
            outcome(call_2(SYS_clock_getres, clocks[i].id, BAD)));
    }
}

/* Whether the host has a clock device that wakes it, on which the alarm clocks depend, is not ours to print. */
static bool depends_on_the_machine(int clock)
{
    return clock == CLOCK_REALTIME_ALARM || clock == CLOCK_BOOTTIME_ALARM;
}

static void sleeping(void)
{
    struct timespec zero = {0, 0}, negative = {-1, 0}, large = {0, 1000000000}, below = {0, -1}, least = {INT64_MIN, 0};
    struct timespec *const bad[] = {&negative, &large, &below, &least, NULL, BAD};
    for (size_t i = 0; i < COUNT_OF(clocks); i++) {
        char text[256] = "";
        if (depends_on_the_machine(clocks[i].id))
            continue;
        for (int flags = 0; flags < 4; flags++) { /* unknown flags are let pass */
            long result = syscall(SYS_clock_nanosleep, (long)clocks[i].id, flags, &zero, NULL);
            snprintf(text + strlen(text), sizeof text - strlen(text), " %s", outcome(result));
        }
        for (size_t b = 0; b < COUNT_OF(bad); b++) {
            long result = syscall(SYS_clock_nanosleep, (long)clocks[i].id, TIMER_ABSTIME, bad[b], BAD);
            snprintf(text + strlen(text), sizeof text - strlen(text), " %s", outcome(result));
        }
        say("%s:%s", clocks[i].name, text);
    }
    for (size_t b = 0; b < COUNT_OF(bad); b++)
        say("nanosleep %zu: %s", b, outcome(syscall(SYS_nanosleep, bad[b], BAD)));
}

static void ring(int signo)
{
    (void)signo;
}

/* Times that no clock reaches: the sleep lasts until a signal comes. */
static void for_ever(void)
{
    const struct timespec ends[] = {{INT64_MAX, 999999999}, {INT64_MAX, 0}, {9223372036, 854775807}, {9223372037, 0}, {9000000000, 0}};
    const int ids[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI};
    struct sigaction action = {.sa_handler = ring};
    struct itimerval soon = {.it_value = {0, 3000}, .it_interval = {0, 3000}}, off = {0};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &soon, NULL);
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        for (size_t e = 0; e < COUNT_OF(ends); e++)
            for (int flags = 0; flags < 2; flags++) {
                struct timespec rest = {-7, -7};
                long result = syscall(SYS_clock_nanosleep, (long)ids[i], flags, &ends[e], &rest);
                say("%zu, %zu, flags %d: %s, rest written %s, a long time %s", i, e, flags, outcome(result),
                    yes(rest.tv_sec != -7), yes(rest.tv_sec > 8000000000));
            }
    setitimer(ITIMER_REAL, &off, NULL);
}

static void settings(void)
{
    struct timespec negative = {-1, 0}, large = {0, 1000000000}, below = {0, -1}, late = {8277292036, 0}, most = {INT64_MAX, 0};
    struct timespec *const bad[] = {&negative, &large, &below, &late, &most, NULL, BAD};
    const char *const what[] = {"negative", "1e9 ns", "-1 ns", "too late", "the last", "no pointer", "bad pointer"};
    for (size_t i = 0; i < COUNT_OF(clocks); i++) {
        char text[256] = "";
        for (size_t b = 0; b < COUNT_OF(bad); b++)
            snprintf(text + strlen(text), sizeof text - strlen(text), " %s", outcome(call_2(SYS_clock_settime, clocks[i].id, bad[b])));
        say("clock_settime %s:%s", clocks[i].name, text);
        if (clocks[i].id != CLOCK_REALTIME) { /* what could be set in no case, whatever is in it */
            struct timex none = {.modes = ADJ_SETOFFSET};
            say("clock_adjtime: %s, bad pointer %s", outcome(call_2(SYS_clock_adjtime, clocks[i].id, &none)),
                outcome(call_2(SYS_clock_adjtime, clocks[i].id, BAD)));
        }
    }
    for (size_t b = 0; b < COUNT_OF(bad); b++) {
        if (bad[b] == NULL)
            continue; /* that sets nothing, and is for root */
        struct timeval value = {0, 0};
        void *address = BAD;
        if (bad[b] != BAD) {
            value = (struct timeval){bad[b]->tv_sec, bad[b]->tv_nsec == 1000000000 ? 1000000 : bad[b]->tv_nsec};
            address = &value;
        }
        say("settimeofday %s: %s, with a bad zone %s", what[b], outcome(syscall(SYS_settimeofday, address, NULL)),
            outcome(syscall(SYS_settimeofday, address, BAD)));
    }
}

/* The state of the clock is the host's until the sandbox moves its own. */
static void adjtimex_reads(void)
{
    struct timex first = {0}, again = {.modes = ADJ_OFFSET_SS_READ}, wrong = {.modes = 0x8000};
    int64_t before = now_ns(CLOCK_REALTIME);
    int state = adjtimex(&first);
    int64_t after = now_ns(CLOCK_REALTIME), told = first.time.tv_sec * 1000000000LL + first.time.tv_usec * (first.status & STA_NANO ? 1 : 1000);
    say("state %d, status %#x, frequency %ld, tick %ld, tolerance %ld, precision %ld, constant %ld, TAI %d", state,
        (unsigned)first.status, first.freq, first.tick, first.tolerance, first.precision, first.constant, first.tai);
    say("time between two readings: %s, clock_adjtime alike: %s", yes(before / 1000 * 1000 <= told && told <= after),
        yes(clock_adjtime(CLOCK_REALTIME, &first) == state));
    say("singleshot: %s, of nothing: %s", outcome(adjtimex(&again)), outcome(adjtimex(&wrong)));
    say("TAI by its clock: %s", yes(llabs(now_ns(CLOCK_TAI) - now_ns(CLOCK_REALTIME) - first.tai * 1000000000LL) < 500 * MS));
}

static void timer_descriptors(void)
{
    struct itimerspec good = {.it_value = {1000, 0}}, wrong = {.it_value = {0, 1000000000}}, negative = {.it_interval = {-1, 0}}, old;
    uint64_t ticks;
    for (int clock = -1; clock < TFD_CLOCKS; clock++) {
        if (depends_on_the_machine(clock))
            continue; /* and on CAP_WAKE_ALARM, which nobody has in a container */
        int fd = timerfd_create(clock, TFD_NONBLOCK);
        say("timerfd of clock %d: %s", clock, outcome(fd));
        if (fd < 0)
            continue;
        for (int flags = 0; flags < 6; flags++)
            say("flags %d: %s, wrong time %s, negative %s", flags, outcome(timerfd_settime(fd, flags, &good, NULL)),
                outcome(timerfd_settime(fd, flags, &wrong, NULL)), outcome(timerfd_settime(fd, flags, &negative, NULL)));
        say("bad pointers: %s, %s, %s", outcome(timerfd_settime(fd, 0, BAD, NULL)), outcome(timerfd_settime(fd, 0, &good, BAD)),
            outcome(timerfd_gettime(fd, BAD)));
        timerfd_gettime(fd, &old);
        say("set all the same: %s", yes(old.it_value.tv_sec >= 900));
        good.it_value = (struct timespec){INT64_MAX, 999999999};
        say("the end of time: %s, %s, nothing to read: %s", outcome(timerfd_settime(fd, 0, &good, NULL)),
            outcome(timerfd_settime(fd, TFD_TIMER_ABSTIME, &good, NULL)), outcome(read(fd, &ticks, sizeof ticks)));
        good.it_value = (struct timespec){0, 1};
        timerfd_settime(fd, TFD_TIMER_ABSTIME, &good, NULL);
        poll(&(struct pollfd){fd, POLLIN, 0}, 1, 1000);
        say("long ago: %s, %lu", outcome(read(fd, &ticks, sizeof ticks)), (unsigned long)ticks);
        good.it_value = (struct timespec){1000, 0};
        close(fd);
    }
    say("flags 1: %s, closed: %s", outcome(timerfd_create(CLOCK_MONOTONIC, 1)), outcome(timerfd_settime(999, 0, &good, NULL)));
}

static void slack(void)
{
    say("default: %d", prctl(PR_GET_TIMERSLACK));
    say("set: %d, get: %d", prctl(PR_SET_TIMERSLACK, 123456L), prctl(PR_GET_TIMERSLACK));
    prctl(PR_SET_TIMERSLACK, 123456L);
    fflush(NULL);
    if (fork_or_die() == 0) {
        say("in a child: %d", prctl(PR_GET_TIMERSLACK));
        prctl(PR_SET_TIMERSLACK, 5L);
        prctl(PR_SET_TIMERSLACK, 0L);
        say("the child's default: %d", prctl(PR_GET_TIMERSLACK));
        _exit(0);
    }
    reap(-1);
    prctl(PR_SET_TIMERSLACK, 0L);
    say("the default again: %d", prctl(PR_GET_TIMERSLACK));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"reading", reading}, {"sleeping", sleeping}, {"for-ever", for_ever}, {"settings", settings},
        {"adjtimex", adjtimex_reads}, {"timerfd", timer_descriptors}, {"slack", slack},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
