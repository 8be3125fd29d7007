/* Checkpoints with timers armed and sleeps under way, on each clock. What a restore takes passes on all clocks but
 * those of CPU time, so nothing that is printed depends on how long it took. */
#include "saved_common.h"

#include <pthread.h>
#include <sys/time.h>
#include <sys/timerfd.h>

static volatile sig_atomic_t count;

static void note(int signo)
{
    (void)signo;
    count++;
}

/* Until a handler has run so often; the signals are blocked while it is looked at. */
static void await_count(int signo, int wanted)
{
    sigset_t set = set_of(signo, 0), old;
    sigprocmask(SIG_BLOCK, &set, &old);
    while (count < wanted)
        sigsuspend(&old);
    sigprocmask(SIG_SETMASK, &old, NULL);
}

static int64_t in_ns(struct timespec value)
{
    return value.tv_sec * 1000000000LL + value.tv_nsec;
}

static void interval_timers(void)
{
    struct itimerval now, once = {.it_value = {0, 150000}}, far = {{7, 0}, {1000, 0}};
    count = 0;
    install(SIGALRM, note, SA_RESTART);
    setitimer(ITIMER_REAL, &once, NULL);
    checkpoint_marker();
    await_count(SIGALRM, 1);
    getitimer(ITIMER_REAL, &now);
    say("once: %d, then off %s", count, yes(now.it_value.tv_sec == 0 && now.it_value.tv_usec == 0));
    setitimer(ITIMER_REAL, &far, NULL);
    checkpoint_marker();
    getitimer(ITIMER_REAL, &now);
    say("far: most is left %s, interval %d", yes(now.it_value.tv_sec > 900 && now.it_value.tv_sec < 1000),
        (int)now.it_interval.tv_sec);
    say("alarm: what was left %s", yes(alarm(0) > 900));
    count = 0;
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 20000}, {0, 20000}}, NULL);
    await_count(SIGALRM, 2);
    checkpoint_marker();
    int before = count;
    await_count(SIGALRM, before + 3);
    say("again and again: yes");
    setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
}

static const struct {
    const char *name;
    clockid_t clock;
} clocks[] = {
    {"REALTIME", CLOCK_REALTIME}, {"MONOTONIC", CLOCK_MONOTONIC}, {"BOOTTIME", CLOCK_BOOTTIME},
};

static void posix_timers(void)
{
    timer_t timers[COUNT_OF(clocks)][4];
    struct itimerspec found;
    sigset_t set = set_of(SIGRTMIN, 0);
    siginfo_t info;
    block(SIG_BLOCK, SIGRTMIN, 0);
    for (size_t i = 0; i < COUNT_OF(clocks); i++)
        for (int kind = 0; kind < 4; kind++) {
            struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
            struct itimerspec setting = {.it_value = {0, 100 * MS}};
            event.sigev_value.sival_int = (int)i * 10 + kind;
            if (kind == 1) { /* at a time */
                clock_gettime(clocks[i].clock, &setting.it_value);
                setting.it_value.tv_sec++;
            } else if (kind == 2) { /* far away, with a period; it says nothing */
                event.sigev_notify = SIGEV_NONE;
                setting = (struct itimerspec){{5, 0}, {1000, 0}};
            } else if (kind == 3) { /* made, and never set */
                setting = (struct itimerspec){0};
            }
            timer_create(clocks[i].clock, &event, &timers[i][kind]);
            timer_settime(timers[i][kind], kind == 1 ? TIMER_ABSTIME : 0, &setting, NULL);
        }
    timer_delete(timers[0][3]);
    checkpoint_marker();
    bool came[COUNT_OF(clocks) * 10] = {0};
    for (size_t i = 0; i < 2 * COUNT_OF(clocks); i++) {
        sigwaitinfo(&set, &info);
        if (info.si_code == SI_TIMER && info.si_overrun == 0)
            came[info.si_value.sival_int] = true;
    }
    for (size_t i = 0; i < COUNT_OF(clocks); i++) {
        say("%s: relative %s, absolute %s", clocks[i].name, yes(came[i * 10]), yes(came[i * 10 + 1]));
        timer_gettime(timers[i][0], &found);
        say("  expired: off %s", yes(in_ns(found.it_value) == 0));
        timer_gettime(timers[i][2], &found);
        say("  silent: most is left %s, period %d", yes(found.it_value.tv_sec > 900 && found.it_value.tv_sec < 1000),
            (int)found.it_interval.tv_sec);
        const char *never = i ? outcome(timer_gettime(timers[i][3], &found)) : "deleted";
        say("  never set: %s, off %s", never, yes(i == 0 || in_ns(found.it_value) == 0));
        for (int kind = 0; kind < (i ? 4 : 3); kind++)
            timer_delete(timers[i][kind]);
    }
    block(SIG_SETMASK, 0, 0);
}

/* One signal is pending, whatever expires meanwhile: that is counted. */
static void overruns(void)
{
    timer_t timer;
    siginfo_t info;
    sigset_t set = set_of(SIGRTMIN, 0);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value = {.sival_int = 8}};
    block(SIG_BLOCK, SIGRTMIN, 0);
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &(struct itimerspec){{0, 5 * MS}, {0, 5 * MS}}, NULL);
    sleep_ms(40);
    checkpoint_marker();
    sigwaitinfo(&set, &info);
    say("overrun: %s, by timer_getoverrun too %s, value %d", yes(info.si_overrun >= 5),
        yes(timer_getoverrun(timer) == info.si_overrun), info.si_value.sival_int);
    timer_settime(timer, 0, &(struct itimerspec){0}, NULL);
    checkpoint_marker();
    struct timespec zero = {0, 0};
    while (sigtimedwait(&set, &info, &zero) == SIGRTMIN)
        ;
    say("off: no more: %s", error_name(errno));
    timer_delete(timer);
    block(SIG_SETMASK, 0, 0);
}

static void *with_a_timer(void *argument)
{
    timer_t timer;
    sigset_t set = set_of(SIGRTMIN + 1, 0);
    siginfo_t info = {0};
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 1};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &(struct itimerspec){.it_value = {0, 100 * MS}}, NULL);
    gate_open(*(struct gate *)argument);
    int got = sigwaitinfo(&set, &info);
    say("SIGEV_THREAD_ID: its thread gets it %s", yes(got == SIGRTMIN + 1 && info.si_code == SI_TIMER));
    timer_delete(timer);
    return NULL;
}

static void of_a_thread(void)
{
    struct gate ready = gate_new();
    pthread_t thread;
    block(SIG_BLOCK, SIGRTMIN + 1, 0);
    pthread_create(&thread, NULL, with_a_timer, &ready);
    gate_wait(ready);
    checkpoint_marker();
    pthread_join(thread, NULL);
    gate_free(ready);
    block(SIG_SETMASK, 0, 0);
}

/* -- CPU time */
static void *burns(void *argument)
{
    burn_ms(*(int *)argument);
    return NULL;
}

static void cpu_clocks(void)
{
    timer_t process, own;
    pthread_t thread;
    int some = 60;
    count = 0;
    install(SIGUSR1, note, 0);
    install(SIGUSR2, note, 0);
    install(SIGVTALRM, note, 0);
    install(SIGPROF, note, 0);
    pthread_create(&thread, NULL, burns, &some);
    pthread_join(thread, NULL); /* its time is the process's for good */
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &process);
    event.sigev_signo = SIGUSR2;
    timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &own);
    int64_t of_process = now_ns(CLOCK_PROCESS_CPUTIME_ID), of_thread = now_ns(CLOCK_THREAD_CPUTIME_ID);
    timer_settime(process, 0, &(struct itimerspec){.it_value = {0, 300 * MS}}, NULL);
    timer_settime(own, 0, &(struct itimerspec){.it_value = {0, 300 * MS}}, NULL);
    setitimer(ITIMER_VIRTUAL, &(struct itimerval){.it_value = {0, 300000}}, NULL);
    setitimer(ITIMER_PROF, &(struct itimerval){.it_value = {0, 300000}}, NULL);
    burn_ms(20);
    checkpoint_marker();
    int64_t more_process = now_ns(CLOCK_PROCESS_CPUTIME_ID) - of_process;
    int64_t more = now_ns(CLOCK_THREAD_CPUTIME_ID) - of_thread;
    say("clocks go on: process %s, thread %s", yes(more_process >= 20 * MS && more_process < 200 * MS),
        yes(more >= 20 * MS && more < 200 * MS));
    say("process and thread: the ended thread's time is told apart %s",
        yes(now_ns(CLOCK_PROCESS_CPUTIME_ID) - now_ns(CLOCK_THREAD_CPUTIME_ID) >= 55 * MS));
    struct itimerspec left;
    struct itimerval virtual_left;
    timer_gettime(process, &left);
    say("process: some is left %s", yes(in_ns(left.it_value) > 0 && in_ns(left.it_value) <= 285 * MS));
    timer_gettime(own, &left);
    say("thread: some is left %s", yes(in_ns(left.it_value) > 0 && in_ns(left.it_value) <= 285 * MS));
    getitimer(ITIMER_VIRTUAL, &virtual_left);
    say("virtual: some is left %s, none came %d", yes(virtual_left.it_value.tv_usec > 0), count);
    while (count < 4)
        burn_ms(10);
    more = now_ns(CLOCK_THREAD_CPUTIME_ID) - of_thread;
    say("all came, once: %d; not before their time %s", count, yes(more >= 290 * MS));
    timer_delete(process);
    timer_delete(own);
}

/* -- descriptors and sleeps */
static void timer_descriptors(void)
{
    uint64_t expirations = 0;
    struct itimerspec found, far = {{5, 0}, {1000, 0}};
    int periodic = timerfd_create(CLOCK_MONOTONIC, 0);
    int64_t start = now_ns(CLOCK_MONOTONIC);
    timerfd_settime(periodic, 0, &(struct itimerspec){{0, 10 * MS}, {0, 10 * MS}}, NULL);
    int expired = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    int waits = timerfd_create(CLOCK_REALTIME, 0);
    int distant = timerfd_create(CLOCK_BOOTTIME, 0), unset = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    timerfd_settime(expired, 0, &(struct itimerspec){.it_value = {0, 1 * MS}}, NULL);
    struct itimerspec at = {0};
    clock_gettime(CLOCK_REALTIME, &at.it_value);
    at.it_value.tv_sec += 1;
    timerfd_settime(waits, TFD_TIMER_ABSTIME, &at, NULL);
    timerfd_settime(distant, 0, &far, NULL);
    struct pollfd waiter = {expired, POLLIN, 0};
    poll(&waiter, 1, -1);
    checkpoint_marker();
    say("expired: %s", yes(read(expired, &expirations, 8) == 8 && expirations == 1));
    say("  once: %s", outcome(read(expired, &expirations, 8)));
    say("at a time: %s", yes(read(waits, &expirations, 8) == 8 && expirations == 1));
    timerfd_gettime(distant, &found);
    say("far: most is left %s, period %d", yes(found.it_value.tv_sec > 900 && found.it_value.tv_sec < 1000),
        (int)found.it_interval.tv_sec);
    say("never set: %s", outcome(read(unset, &expirations, 8)));
    bool read_all = read(periodic, &expirations, 8) == 8;
    int64_t periods = (now_ns(CLOCK_MONOTONIC) - start) / (10 * MS) - (int64_t)expirations;
    say("periods: as many as passed %s", yes(read_all && periods >= -3 && periods <= 6));
    close(periodic), close(expired), close(waits), close(distant), close(unset);
}

static int sleeps_on(clockid_t clock, bool absolute)
{
    struct timespec until, request = {0, 150 * MS};
    clock_gettime(clock, &until);
    int64_t end = in_ns(until) + 150 * MS;
    if (absolute)
        request = (struct timespec){end / 1000000000, end % 1000000000};
    int error = clock_nanosleep(clock, absolute ? TIMER_ABSTIME : 0, &request, NULL);
    return error == 0 && now_ns(clock) >= end ? 50 : 51;
}

static void sleeps(void)
{
    pid_t children[COUNT_OF(clocks)][2], stopped = fork_or_die();
    if (stopped == 0)
        _exit(sleeps_on(CLOCK_MONOTONIC, false));
    for (size_t i = 0; i < COUNT_OF(clocks); i++)
        for (int absolute = 0; absolute < 2; absolute++)
            if ((children[i][absolute] = fork_or_die()) == 0)
                _exit(sleeps_on(clocks[i].clock, absolute));
    let_them_wait();
    int status = 0;
    kill(stopped, SIGSTOP); /* a sleep goes on behind a stop, and so does this one, behind a checkpoint as well */
    waitpid(stopped, &status, WUNTRACED); /* it may have ended by now */
    checkpoint_marker();
    if (WIFSTOPPED(status)) {
        kill(stopped, SIGCONT);
        status = reap(stopped);
    }
    for (size_t i = 0; i < COUNT_OF(clocks); i++)
        for (int absolute = 0; absolute < 2; absolute++)
            say("%s, %s: %s", clocks[i].name, absolute ? "absolute" : "relative",
                status_text(reap(children[i][absolute])));
    say("stopped meanwhile: %s", status_text(status));
}

static void clocks_themselves(void)
{
    int64_t before[COUNT_OF(clocks)], apart = now_ns(CLOCK_REALTIME) - now_ns(CLOCK_MONOTONIC);
    for (size_t i = 0; i < COUNT_OF(clocks); i++)
        before[i] = now_ns(clocks[i].clock);
    checkpoint_marker();
    for (size_t i = 0; i < COUNT_OF(clocks); i++) {
        int64_t passed = now_ns(clocks[i].clock) - before[i];
        say("%s: goes on %s", clocks[i].name, yes(passed >= 0 && passed < 100000 * MS));
    }
    int64_t moved = now_ns(CLOCK_REALTIME) - now_ns(CLOCK_MONOTONIC) - apart;
    say("as far apart as before: %s", yes(moved > -1000 * MS && moved < 1000 * MS));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"interval", interval_timers}, {"timers", posix_timers}, {"overruns", overruns}, {"thread", of_a_thread},
        {"cpu", cpu_clocks}, {"descriptors", timer_descriptors}, {"sleeps", sleeps}, {"clocks", clocks_themselves},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
