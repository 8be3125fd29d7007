/* Bad pointers to every call that trapline owns: each must answer as the host does (mostly EFAULT), and what is
 * read-only must stay unwritten. Pages are zero, so a readable bad page is a harmless argument. */
#include "common.h"

#include <linux/sched.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#define PAGE 4096L

enum bad { NULL_POINTER, UNMAPPED, KERNEL, NON_CANONICAL, PROTECTED, READ_ONLY, CROSSING, LAST_BYTE, BAD_COUNT };

static const char *const bad_names[] = {"null", "unmapped", "kernel", "non-canonical", "protected", "read-only",
                                        "crossing", "last-byte"};
static long bad[BAD_COUNT];
static char *read_only;

#define BAD (-0x7777L)           /* stands for the pointer under test */
#define NO_READ_ONLY 1           /* readable zeros would change something */
#define NO_NULL 2                /* NULL would wait, or would be right and change something */

static struct timespec zero_time;
static struct itimerspec far_time = {.it_value = {1000, 0}}, no_setting;
static struct itimerval no_interval, scratch_interval;
static siginfo_t scratch_info;
static sigset_t no_signals;
static int timer = -1, timer_fd, pidfd, epoll_fd;
static struct epoll_event scratch_event;
static char scratch[256];

#define P(x) ((long)&(x))

static struct call {
    const char *name;
    long number;
    long arguments[6];
    int flags;
    int *late; /* a number known at run time, for the first argument */
} calls[] = {
    {"clock_gettime", SYS_clock_gettime, {CLOCK_MONOTONIC, BAD}, 0, 0},
    {"clock_gettime cpu", SYS_clock_gettime, {CLOCK_THREAD_CPUTIME_ID, BAD}, 0, 0},
    {"clock_gettime 99", SYS_clock_gettime, {99, BAD}, 0, 0},
    {"clock_getres", SYS_clock_getres, {CLOCK_MONOTONIC, BAD}, 0, 0},
    {"clock_settime", SYS_clock_settime, {CLOCK_REALTIME, BAD}, NO_READ_ONLY, 0},
    {"clock_settime monotonic", SYS_clock_settime, {CLOCK_MONOTONIC, BAD}, NO_READ_ONLY, 0},
    {"clock_adjtime", SYS_clock_adjtime, {CLOCK_REALTIME, BAD}, 0, 0},
    {"adjtimex", SYS_adjtimex, {BAD}, 0, 0},
    {"gettimeofday", SYS_gettimeofday, {BAD, 0}, 0, 0},
    {"gettimeofday zone", SYS_gettimeofday, {P(scratch), BAD}, 0, 0},
    {"settimeofday", SYS_settimeofday, {BAD, 0}, NO_READ_ONLY | NO_NULL, 0},
    {"time", SYS_time, {BAD}, NO_NULL, 0},
    {"nanosleep", SYS_nanosleep, {BAD, 0}, 0, 0},
    {"nanosleep rest", SYS_nanosleep, {P(zero_time), BAD}, 0, 0},
    {"clock_nanosleep", SYS_clock_nanosleep, {CLOCK_MONOTONIC, 0, BAD, 0}, 0, 0},
    {"clock_nanosleep absolute", SYS_clock_nanosleep, {CLOCK_REALTIME, TIMER_ABSTIME, BAD, 0}, 0, 0},
    {"getitimer", SYS_getitimer, {ITIMER_REAL, BAD}, 0, 0},
    {"setitimer", SYS_setitimer, {ITIMER_REAL, BAD, 0}, 0, 0},
    {"setitimer old", SYS_setitimer, {ITIMER_REAL, P(no_interval), BAD}, 0, 0},
    {"timer_create event", SYS_timer_create, {CLOCK_MONOTONIC, BAD, P(scratch)}, NO_NULL, 0},
    {"timer_create id", SYS_timer_create, {CLOCK_MONOTONIC, 0, BAD}, 0, 0},
    {"timer_settime", SYS_timer_settime, {0, 0, BAD, 0}, 0, &timer},
    {"timer_settime old", SYS_timer_settime, {0, 0, P(far_time), BAD}, 0, &timer},
    {"timer_gettime", SYS_timer_gettime, {0, BAD}, 0, &timer},
    {"timerfd_settime", SYS_timerfd_settime, {0, 0, BAD, 0}, 0, &timer_fd},
    {"timerfd_settime old", SYS_timerfd_settime, {0, 0, P(no_setting), BAD}, 0, &timer_fd},
    {"timerfd_gettime", SYS_timerfd_gettime, {0, BAD}, 0, &timer_fd},
    {"timerfd_gettime fd -1", SYS_timerfd_gettime, {-1, BAD}, 0, 0},
    {"rt_sigaction", SYS_rt_sigaction, {SIGUSR1, BAD, 0, 8}, 0, 0},
    {"rt_sigaction old", SYS_rt_sigaction, {SIGUSR1, 0, BAD, 8}, 0, 0},
    {"rt_sigaction SIGKILL", SYS_rt_sigaction, {SIGKILL, BAD, 0, 8}, 0, 0},
    {"rt_sigprocmask", SYS_rt_sigprocmask, {SIG_BLOCK, BAD, 0, 8}, 0, 0},
    {"rt_sigprocmask old", SYS_rt_sigprocmask, {SIG_BLOCK, P(no_signals), BAD, 8}, 0, 0},
    {"rt_sigpending", SYS_rt_sigpending, {BAD, 8}, 0, 0},
    {"rt_sigtimedwait", SYS_rt_sigtimedwait, {BAD, P(scratch_info), P(zero_time), 8}, 0, 0},
    {"rt_sigtimedwait time", SYS_rt_sigtimedwait, {P(no_signals), P(scratch_info), BAD, 8}, NO_NULL, 0},
    {"rt_sigsuspend", SYS_rt_sigsuspend, {BAD, 8}, NO_READ_ONLY, 0},
    {"rt_sigqueueinfo", SYS_rt_sigqueueinfo, {0, 0, BAD}, NO_READ_ONLY, 0},
    {"rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo, {1, 1, 0, BAD}, NO_READ_ONLY, 0},
    {"pidfd_send_signal", SYS_pidfd_send_signal, {0, 0, BAD, 0}, NO_READ_ONLY, &pidfd},
    {"ppoll time", SYS_ppoll, {0, 0, BAD, 0, 8}, NO_NULL, 0},
    {"ppoll mask", SYS_ppoll, {0, 0, P(zero_time), BAD, 8}, 0, 0},
    {"ppoll mask, size 4", SYS_ppoll, {0, 0, P(zero_time), BAD, 4}, 0, 0},
    {"pselect6 mask", SYS_pselect6, {0, 0, 0, 0, P(zero_time), BAD}, 0, 0},
    {"epoll_pwait mask", SYS_epoll_pwait, {0, P(scratch_event), 1, 0, BAD, 8}, 0, &epoll_fd},
    {"epoll_pwait2 mask", SYS_epoll_pwait2, {0, P(scratch_event), 1, P(zero_time), BAD, 8}, 0, &epoll_fd},
    {"wait4, no children", SYS_wait4, {-1, BAD, 0, 0}, 0, 0},
    {"waitid, no children", SYS_waitid, {P_ALL, 0, BAD, WEXITED, 0}, 0, 0},
    {"clone3", SYS_clone3, {BAD, CLONE_ARGS_SIZE_VER0}, NO_READ_ONLY, 0},
    {"prctl PR_GET_PDEATHSIG", SYS_prctl, {PR_GET_PDEATHSIG, BAD}, 0, 0},
    {"prctl PR_GET_CHILD_SUBREAPER", SYS_prctl, {PR_GET_CHILD_SUBREAPER, BAD}, 0, 0},
    {"getrlimit", SYS_getrlimit, {RLIMIT_CPU, BAD}, 0, 0},
    {"setrlimit", SYS_setrlimit, {RLIMIT_CPU, BAD}, NO_READ_ONLY, 0},
    {"prlimit64 new", SYS_prlimit64, {0, RLIMIT_SIGPENDING, BAD, 0}, NO_READ_ONLY, 0},
    {"prlimit64 old", SYS_prlimit64, {0, RLIMIT_CPU, 0, BAD}, 0, 0},
    {"sigaltstack", SYS_sigaltstack, {0, BAD}, 0, 0},
    {"times", SYS_times, {BAD}, NO_NULL, 0},
    {"getrusage", SYS_getrusage, {RUSAGE_SELF, BAD}, 0, 0},
};

static void try(const struct call *call, enum bad kind, char *line, size_t size)
{
    long values[6];
    size_t used = strlen(line);
    for (int i = 0; i < 6; i++)
        values[i] = call->arguments[i] == BAD ? bad[kind] : call->arguments[i];
    if (call->late != NULL)
        values[0] = *call->late;
    if (call->number == SYS_rt_sigqueueinfo)
        values[0] = getpid();
    long result = syscall(call->number, values[0], values[1], values[2], values[3], values[4], values[5]);
    snprintf(line + used, size - used, " %s=%s", bad_names[kind], outcome(result));
}

static void every_call(void)
{
    for (size_t i = 0; i < COUNT_OF(calls); i++) {
        char line[512];
        snprintf(line, sizeof line, "%s:", calls[i].name);
        for (int kind = 0; kind < BAD_COUNT; kind++)
            if (!(kind == READ_ONLY && calls[i].flags & NO_READ_ONLY) && !(kind == NULL_POINTER && calls[i].flags & NO_NULL))
                try(&calls[i], (enum bad)kind, line, sizeof line);
        say("%s", line);
    }
    bool untouched = true;
    for (long i = 0; i < PAGE; i++)
        untouched &= read_only[i] == 0;
    say("the read-only page is unwritten: %s", yes(untouched));
}

/* A wait whose result cannot be stored has taken the child all the same. */
static void waits(void)
{
    for (int kind = UNMAPPED; kind < BAD_COUNT; kind++) {
        for (int call = 0; call < 3; call++) {
            const char *const names[] = {"wait4 status", "wait4 rusage", "waitid"};
            int status = 0;
            pid_t child = fork_or_die();
            if (child == 0)
                _exit(3);
            long result = call == 0   ? syscall(SYS_wait4, child, bad[kind], 0, 0)
                          : call == 1 ? syscall(SYS_wait4, child, &status, 0, bad[kind])
                                      : syscall(SYS_waitid, P_PID, child, bad[kind], WEXITED, 0);
            const char *first = outcome(result);
            say("%s %s: %s, then %s", names[call], bad_names[kind], first, outcome(waitpid(child, &status, 0)));
        }
    }
}

static void handler(int signo)
{
    (void)signo;
}

/* Results that are stored late: the rest of an interrupted sleep, a caught signal's information. */
static void late(void)
{
    struct sigaction action = {.sa_handler = handler};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigaction(SIGALRM, &action, NULL);
    for (int kind = NULL_POINTER; kind < BAD_COUNT; kind++) {
        struct itimerval soon = {.it_value = {0, 20000}};
        struct timespec second = {1, 0};
        setitimer(ITIMER_REAL, &soon, NULL);
        say("interrupted nanosleep %s: %s", bad_names[kind], outcome(syscall(SYS_nanosleep, &second, bad[kind])));
        sigprocmask(SIG_BLOCK, &set, NULL);
        raise(SIGUSR2);
        long result = syscall(SYS_rt_sigtimedwait, &set, bad[kind], &second, 8);
        const char *first = outcome(result);
        second = (struct timespec){0, 0};
        result = syscall(SYS_rt_sigtimedwait, &set, NULL, &second, 8);
        say("sigtimedwait %s: %s, then %s", bad_names[kind], first, outcome(result));
        sigprocmask(SIG_UNBLOCK, &set, NULL);
    }
}

static void half_done(void)
{
    long bad_address = bad[UNMAPPED];
    struct itimerspec now;
    struct itimerval interval = {.it_value = {500, 0}};
    syscall(SYS_setitimer, ITIMER_REAL, &interval, bad_address);
    getitimer(ITIMER_REAL, &scratch_interval);
    say("setitimer with a bad old: set all the same %s", yes(scratch_interval.it_value.tv_sec > 400));
    setitimer(ITIMER_REAL, &no_interval, NULL);
    syscall(SYS_timer_settime, timer, 0, &no_setting, 0);
    syscall(SYS_timer_settime, timer, 0, &far_time, bad_address);
    syscall(SYS_timer_gettime, timer, &now);
    say("timer_settime with a bad old: set all the same %s", yes(now.it_value.tv_sec > 900));
    syscall(SYS_timerfd_settime, timer_fd, 0, &far_time, bad_address);
    syscall(SYS_timerfd_gettime, timer_fd, &now);
    say("timerfd_settime with a bad old: set all the same %s", yes(now.it_value.tv_sec > 900));
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, bad_address, 8);
    sigprocmask(SIG_SETMASK, &no_signals, &old);
    say("rt_sigprocmask with a bad old: set all the same %s", yes(sigismember(&old, SIGUSR2)));
    struct { void (*handler)(int); long flags, restorer, mask; } action = {SIG_IGN, 0, 0, 0};
    struct sigaction seen;
    syscall(SYS_rt_sigaction, SIGUSR2, &action, bad_address, 8);
    sigaction(SIGUSR2, NULL, &seen);
    say("rt_sigaction with a bad old: set all the same %s", yes(seen.sa_handler == SIG_IGN));
    signal(SIGUSR2, SIG_DFL);
    long zero = syscall(SYS_timer_create, CLOCK_MONOTONIC, 0, bad_address);
    say("timer_create with a bad id: %s", outcome(zero));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"calls", every_call}, {"waits", waits}, {"late", late}, {"half", half_done},
    };
    char *area = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    read_only = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(area + PAGE, PAGE, PROT_NONE);
    munmap(area + 3 * PAGE, PAGE);
    bad[UNMAPPED] = 0x1000;
    bad[KERNEL] = (long)0xffff888000000000;
    bad[NON_CANONICAL] = (long)0x0000800000001000;
    bad[PROTECTED] = (long)area + PAGE;
    bad[READ_ONLY] = (long)read_only;
    bad[CROSSING] = (long)area + PAGE - 2;
    bad[LAST_BYTE] = (long)area + 3 * PAGE - 1;
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &(struct sigevent){.sigev_notify = SIGEV_NONE}, &timer) < 0)
        return 1;
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    epoll_fd = epoll_create1(0);
    pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
