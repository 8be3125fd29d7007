/* Clocks, sleeps and timers. Times themselves are never printed: only whether they are right. What must not be
 * early is tested hard; what must not be late has one slow try in five excused. */
#include "common.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/times.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static volatile sig_atomic_t count, value_seen, overruns_seen, code_seen;

static void note(int signo)
{
    (void)signo;
    count++;
}

static void note_timer(int signo, siginfo_t *info, void *context)
{
    (void)signo;
    (void)context;
    count++;
    value_seen = info->si_value.sival_int;
    code_seen = info->si_code;
    overruns_seen += info->si_overrun;
}

static const struct {
    clockid_t id;
    const char *name;
} clocks[] = {
    {CLOCK_REALTIME, "REALTIME"}, {CLOCK_MONOTONIC, "MONOTONIC"}, {CLOCK_PROCESS_CPUTIME_ID, "PROCESS_CPUTIME"},
    {CLOCK_THREAD_CPUTIME_ID, "THREAD_CPUTIME"}, {CLOCK_MONOTONIC_RAW, "MONOTONIC_RAW"},
    {CLOCK_REALTIME_COARSE, "REALTIME_COARSE"}, {CLOCK_MONOTONIC_COARSE, "MONOTONIC_COARSE"},
    {CLOCK_BOOTTIME, "BOOTTIME"}, {CLOCK_TAI, "TAI"},
};

static void all_clocks(void)
{
    for (size_t i = 0; i < COUNT_OF(clocks); i++) {
        struct timespec resolution = {9, 9}, raw;
        clockid_t id = clocks[i].id;
        bool rising = true, alike = true;
        int64_t last = now_ns(id);
        for (int n = 0; n < 20000; n++) {
            int64_t now = now_ns(id);
            rising &= now >= last;
            last = now;
        }
        for (int n = 0; n < 100; n++) { /* the vDSO's answer lies between two of the kernel's */
            syscall(SYS_clock_gettime, id, &raw);
            int64_t first = raw.tv_sec * 1000000000LL + raw.tv_nsec, middle = now_ns(id);
            syscall(SYS_clock_gettime, id, &raw);
            alike &= first <= middle && middle <= raw.tv_sec * 1000000000LL + raw.tv_nsec;
        }
        int result = clock_getres(id, &resolution);
        int64_t start = now_ns(id);
        struct timespec pause = {0, 20 * MS};
        nanosleep(&pause, NULL);
        int64_t slept = now_ns(id) - start;
        say("%s: monotone %s, agrees with the call %s, resolution %s %ld.%09ld, advances in a sleep %s", clocks[i].name,
            yes(rising), yes(alike), outcome(result), (long)resolution.tv_sec, resolution.tv_nsec, yes(slept >= 10 * MS));
    }
    struct timespec now;
    say("clock 99: %s, -1: %s, of process 0: %s", outcome(clock_gettime(99, &now)), outcome(clock_gettime(-1, &now)),
        outcome(clock_gettime(-6, &now)));
    clockid_t mine;
    int result = clock_getcpuclockid(getpid(), &mine);
    int64_t near = now_ns(mine) - now_ns(CLOCK_PROCESS_CPUTIME_ID);
    say("this process's clock by its id: %s, alike %s", error_name(result), yes(near > -20 * MS && near < 20 * MS));
    result = pthread_getcpuclockid(pthread_self(), &mine);
    near = now_ns(mine) - now_ns(CLOCK_THREAD_CPUTIME_ID);
    say("this thread's: %s, alike %s", error_name(result), yes(near > -20 * MS && near < 20 * MS));
}

static void agreement(void)
{
    struct timeval day;
    int64_t before = now_ns(CLOCK_REALTIME);
    gettimeofday(&day, NULL);
    int64_t after = now_ns(CLOCK_REALTIME), micro = day.tv_sec * 1000000000LL + day.tv_usec * 1000LL;
    say("gettimeofday between two clock_gettime: %s", yes(before / 1000 * 1000 <= micro && micro <= after));
    time_t seconds = time(NULL), coarse = now_ns(CLOCK_REALTIME) / 1000000000;
    say("time: %s, raw: %s", yes(coarse - seconds >= 0 && coarse - seconds <= 1),
        yes(labs(syscall(SYS_time, NULL) - seconds) <= 1));
    struct timeval raw;
    long result = syscall(SYS_gettimeofday, &raw, NULL);
    say("raw gettimeofday: %s, %s", outcome(result), yes(labs(raw.tv_sec - seconds) <= 1));
    int64_t real = now_ns(CLOCK_REALTIME), lag = real - now_ns(CLOCK_REALTIME_COARSE);
    say("coarse is not far behind: %s", yes(lag > -1 * MS && lag < 100 * MS));
    burn_ms(20);
    int64_t process = now_ns(CLOCK_PROCESS_CPUTIME_ID), thread = now_ns(CLOCK_THREAD_CPUTIME_ID);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    int64_t used = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000LL +
                   (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000LL;
    say("cpu: process near thread %s, near rusage %s", yes(process >= thread - 20 * MS && process - thread < 20 * MS),
        yes(llabs(used - process) < 30 * MS));
    int64_t cpu = now_ns(CLOCK_THREAD_CPUTIME_ID);
    sleep_ms(50);
    say("asleep it stands still: %s", yes(now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu < 20 * MS));
}

enum kind { NANOSLEEP, RELATIVE, ABSOLUTE, REALTIME_ABSOLUTE, BOOT, SELECT, POLL, USLEEP };

static int64_t one_sleep(enum kind kind, int64_t length)
{
    struct timespec time = {length / 1000000000, length % 1000000000};
    struct timeval interval = {length / 1000000000, length % 1000000000 / 1000};
    clockid_t clock = kind == REALTIME_ABSOLUTE ? CLOCK_REALTIME : CLOCK_MONOTONIC;
    int64_t start = now_ns(clock), until = start + length;
    if (kind == ABSOLUTE || kind == REALTIME_ABSOLUTE)
        time = (struct timespec){until / 1000000000, until % 1000000000};
    switch (kind) {
    case NANOSLEEP: nanosleep(&time, NULL); break;
    case RELATIVE: clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL); break;
    case BOOT: clock_nanosleep(CLOCK_BOOTTIME, 0, &time, NULL); break;
    case ABSOLUTE:
    case REALTIME_ABSOLUTE: clock_nanosleep(clock, TIMER_ABSTIME, &time, NULL); break;
    case SELECT: select(0, NULL, NULL, NULL, &interval); break;
    case POLL: poll(NULL, 0, (int)(length / MS)); break;
    case USLEEP: usleep((useconds_t)(length / 1000)); break;
    }
    return now_ns(clock) - start;
}

static void sleeps(void)
{
    const char *const names[] = {"nanosleep", "clock_nanosleep", "absolute", "absolute, REALTIME", "BOOTTIME", "select",
                                 "poll", "usleep"};
    const int64_t lengths[] = {1 * MS, 10 * MS, 50 * MS};
    for (size_t kind = 0; kind < COUNT_OF(names); kind++) {
        bool early = false;
        int late = 0;
        for (int round = 0; round < 5; round++)
            for (size_t i = 0; i < COUNT_OF(lengths); i++) {
                int64_t took = one_sleep((enum kind)kind, lengths[i]);
                early |= took < lengths[i];
                late += took > lengths[i] + 30 * MS;
            }
        say("%s: early %s, late %s", names[kind], yes(early), yes(late > 3));
    }
    struct timespec wrong = {0, 1000000000}, negative = {-1, 0}, zero = {0, 0};
    say("nanosleep of 1e9 ns: %s, of -1 s: %s, of 0: %s", outcome(nanosleep(&wrong, NULL)),
        outcome(nanosleep(&negative, NULL)), outcome(nanosleep(&zero, NULL)));
    say("absolute time that has gone: %s", error_name(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &zero, NULL)));
    say("clock_nanosleep on THREAD_CPUTIME: %s, on 99: %s",
        error_name(clock_nanosleep(CLOCK_THREAD_CPUTIME_ID, 0, &zero, NULL)), error_name(clock_nanosleep(99, 0, &zero, NULL)));
}

/* Sleeps `milliseconds`, however many handlers run meanwhile. */
static void wait_ms(long milliseconds)
{
    int64_t until = now_ns(CLOCK_MONOTONIC) + milliseconds * MS;
    struct timespec end = {until / 1000000000, until % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) == EINTR)
        ;
}

/* Whether a timer of 10 ms that was set between `before` and `after` came as often as until a moment between
 * `end` and now, but for `lost`: however long the machine kept us from running in between. */
static bool in_step(long came, int64_t before, int64_t after, int64_t end, long lost)
{
    return came >= (end - after) / (10 * MS) - lost && came <= (now_ns(CLOCK_MONOTONIC) - before) / (10 * MS);
}

static bool within(long value, long low, long high)
{
    return value >= low && value <= high;
}

static void interval_timers(void)
{
    struct itimerval off = {0}, ten = {.it_interval = {0, 10000}, .it_value = {0, 10000}}, old;
    signal(SIGALRM, note);
    count = 0;
    int64_t before = now_ns(CLOCK_MONOTONIC);
    setitimer(ITIMER_REAL, &ten, NULL);
    wait_ms(305);
    getitimer(ITIMER_REAL, &old);
    say("running: rest %s, interval %ld", yes(old.it_value.tv_sec == 0 && old.it_value.tv_usec <= 10000), old.it_interval.tv_usec);
    setitimer(ITIMER_REAL, &off, &old);
    say("10 ms for 305 ms: %s, old interval %ld", yes(within(count, 15, (now_ns(CLOCK_MONOTONIC) - before) / (10 * MS))), old.it_interval.tv_usec);
    count = 0;
    wait_ms(40);
    getitimer(ITIMER_REAL, &old);
    say("off: %d, rest %ld", count, old.it_value.tv_usec);
    struct itimerval once = {.it_value = {0, 15000}};
    setitimer(ITIMER_REAL, &once, NULL);
    wait_ms(60);
    say("once: %d", count);
    const struct { int which, signo; const char *name; } cpu[] = {{ITIMER_VIRTUAL, SIGVTALRM, "ITIMER_VIRTUAL"},
                                                                    {ITIMER_PROF, SIGPROF, "ITIMER_PROF"}};
    for (size_t i = 0; i < COUNT_OF(cpu); i++) {
        count = 0;
        signal(cpu[i].signo, note);
        setitimer(cpu[i].which, &ten, NULL);
        wait_ms(60);
        int asleep = count;
        burn_ms(200);
        setitimer(cpu[i].which, &off, NULL);
        say("%s: asleep %s, busy %s", cpu[i].name, yes(asleep == 0), yes(within(count, 2, 21)));
    }
    struct itimerval wrong = {.it_value = {0, 1000000}};
    say("1000000 us: %s, which 3: %s", outcome(setitimer(ITIMER_REAL, &wrong, NULL)), outcome(getitimer(3, &old)));
    count = 0;
    unsigned first = alarm(100), second = alarm(1);
    say("alarm: %u, second one returns %u", first, second);
    int64_t start = now_ns(CLOCK_MONOTONIC);
    while (count == 0)
        wait_ms(10);
    say("after a second: %s, then %u", yes(now_ns(CLOCK_MONOTONIC) - start >= 990 * MS), alarm(0));
    setitimer(ITIMER_REAL, &once, NULL);
    pid_t child = fork_or_die();
    if (child == 0) {
        getitimer(ITIMER_REAL, &old);
        _exit(old.it_value.tv_usec != 0);
    }
    say("a child has none: %s", status_text(reap(child)));
    setitimer(ITIMER_REAL, &off, NULL);
}

static void *bystander(void *argument)
{
    (void)argument;
    wait_ms(150);
    return NULL;
}

static void posix_timers(void)
{
    struct sigaction action = {.sa_sigaction = note_timer, .sa_flags = SA_SIGINFO | SA_RESTART};
    struct itimerspec ten = {.it_interval = {0, 10 * MS}, .it_value = {0, 10 * MS}}, off = {0}, old;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    timer_t timer;
    sigset_t set, mask;
    sigaction(SIGRTMIN, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
    const struct { clockid_t clock; bool busy; const char *name; } kinds[] = {
        {CLOCK_MONOTONIC, false, "MONOTONIC"}, {CLOCK_REALTIME, false, "REALTIME"}, {CLOCK_BOOTTIME, false, "BOOTTIME"},
        {CLOCK_THREAD_CPUTIME_ID, true, "THREAD_CPUTIME"}, {CLOCK_PROCESS_CPUTIME_ID, true, "PROCESS_CPUTIME"}};
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        event.sigev_value.sival_int = 300 + (int)i;
        int result = timer_create(kinds[i].clock, &event, &timer);
        count = overruns_seen = 0;
        int64_t before = now_ns(CLOCK_MONOTONIC);
        timer_settime(timer, 0, &ten, NULL);
        int64_t after = now_ns(CLOCK_MONOTONIC);
        if (kinds[i].busy) {
            wait_ms(50);
            int asleep = count;
            burn_ms(200);
            say("%s: %s, asleep %s, busy %s, value %d, code %s", kinds[i].name, outcome(result), yes(asleep == 0),
                yes(within(count + overruns_seen, 4, 21)), value_seen, yes(code_seen == SI_TIMER));
        } else {
            wait_ms(205);
            int64_t end = now_ns(CLOCK_MONOTONIC);
            bool right = in_step(count + overruns_seen, before, after, end, 2);
            say("%s: %s, %s, value %d, code %s", kinds[i].name, outcome(result), yes(right),
                value_seen, yes(code_seen == SI_TIMER));
        }
        timer_gettime(timer, &old);
        say("rest %s, interval %ld", yes(old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 10 * MS), old.it_interval.tv_nsec);
        timer_settime(timer, 0, &off, NULL);
        timer_gettime(timer, &old);
        say("off: %ld, delete: %s, again: %s", old.it_value.tv_nsec, outcome(timer_delete(timer)),
            outcome(syscall(SYS_timer_delete, 9999)));
    }
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, &mask);
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    count = overruns_seen = 0;
    int64_t before = now_ns(CLOCK_MONOTONIC);
    timer_settime(timer, 0, &ten, NULL);
    int64_t after = now_ns(CLOCK_MONOTONIC);
    wait_ms(105);
    int64_t end = now_ns(CLOCK_MONOTONIC);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    bool right = in_step(count + overruns_seen, before, after, end, 2);
    int overrun = timer_getoverrun(timer);
    say("blocked for 105 ms: one signal with overruns %s, timer_getoverrun %s", yes(count >= 1 && right),
        yes(overrun >= 0 && overrun <= overruns_seen));
    timer_delete(timer);

    event = (struct sigevent){.sigev_notify = SIGEV_NONE};
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    int64_t until = now_ns(CLOCK_MONOTONIC) + 30 * MS;
    struct itimerspec absolute = {.it_value = {until / 1000000000, until % 1000000000}};
    count = 0;
    timer_settime(timer, TIMER_ABSTIME, &absolute, NULL);
    timer_gettime(timer, &old);
    bool ahead = old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 30 * MS;
    wait_ms(40);
    timer_gettime(timer, &old);
    say("SIGEV_NONE, absolute: rest %s, then %ld, signals %d", yes(ahead), old.it_value.tv_nsec, count);
    timer_delete(timer);
    timer_create(CLOCK_MONOTONIC, NULL, &timer);
    count = 0;
    timer_settime(timer, 0, &(struct itimerspec){.it_value = {0, 5 * MS}}, NULL);
    wait_ms(40);
    say("no sigevent: SIGALRM %d", count);
    timer_delete(timer);

    pthread_t thread;
    event = (struct sigevent){.sigev_notify = 4 /* SIGEV_THREAD_ID */, .sigev_signo = SIGRTMIN};
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    pthread_create(&thread, NULL, bystander, NULL);
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    count = 0;
    before = now_ns(CLOCK_MONOTONIC);
    timer_settime(timer, 0, &ten, NULL);
    pthread_join(thread, NULL);
    say("SIGEV_THREAD_ID: %s", yes(within(count, 5, (now_ns(CLOCK_MONOTONIC) - before) / (10 * MS))));
    pid_t child = fork_or_die();
    if (child == 0)
        _exit(timer_settime(timer, 0, &off, NULL) < 0 ? errno : 0);
    say("a child has none: %s", yes(WEXITSTATUS(reap(child)) == EINVAL));
    timer_delete(timer);
    event.sigev_signo = 70;
    say("signal 70: %s", outcome(timer_create(CLOCK_MONOTONIC, &event, &timer)));
    say("clock 99: %s", outcome(timer_create(99, NULL, &timer)));
}

static void descriptors(void)
{
    const clockid_t ids[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME};
    struct itimerspec ten = {.it_interval = {0, 10 * MS}, .it_value = {0, 10 * MS}}, off = {0}, old;
    uint64_t ticks = 0;
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        int fd = timerfd_create(ids[i], TFD_NONBLOCK | TFD_CLOEXEC);
        say("nothing yet: %s", outcome(read(fd, &ticks, sizeof ticks)));
        int64_t before = now_ns(CLOCK_MONOTONIC);
        timerfd_settime(fd, 0, &ten, NULL);
        /* A timer that is saved and restored comes a few microseconds later each time, which must not take a tick away. */
        int64_t after = now_ns(CLOCK_MONOTONIC) + MS;
        wait_ms(105);
        int64_t end = now_ns(CLOCK_MONOTONIC);
        ssize_t size = read(fd, &ticks, sizeof ticks);
        say("after 105 ms: %zd bytes, as many ticks as it took %s", size, yes(in_step((long)ticks, before, after, end, 0)));
        struct pollfd waiter = {fd, POLLIN, 0};
        int ready = poll(&waiter, 1, 1000);
        say("poll: %d, readable %s", ready, yes(waiter.revents == POLLIN));
        int epoll = epoll_create1(0);
        struct epoll_event wanted = {.events = EPOLLIN}, got;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted);
        say("epoll: %d", epoll_wait(epoll, &got, 1, 1000));
        timerfd_gettime(fd, &old);
        say("rest %s, interval %ld", yes(old.it_value.tv_nsec <= 10 * MS), old.it_interval.tv_nsec);
        timerfd_settime(fd, 0, &off, &old);
        timerfd_gettime(fd, &old);
        say("off: %ld, and what was due is gone: %s", old.it_value.tv_nsec, outcome(read(fd, &ticks, sizeof ticks)));
        fcntl(fd, F_SETFL, 0);
        int64_t until = now_ns(ids[i]) + 30 * MS;
        struct itimerspec absolute = {.it_value = {until / 1000000000, until % 1000000000}};
        timerfd_settime(fd, TFD_TIMER_ABSTIME, &absolute, NULL);
        size = read(fd, &ticks, sizeof ticks);
        say("absolute, blocking: %zd bytes, %d tick, not early %s", size, (int)ticks, yes(now_ns(ids[i]) >= until));
        close(epoll);
        close(fd);
    }
    int fd = open("/dev/null", O_RDONLY);
    say("not a timerfd: %s, closed: %s", outcome(timerfd_gettime(fd, &old)), outcome(timerfd_gettime(999, &old)));
    say("timerfd on clock 99: %s", outcome(timerfd_create(99, 0)));
    close(fd);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"clocks", all_clocks}, {"agreement", agreement}, {"sleeps", sleeps}, {"itimers", interval_timers},
        {"timers", posix_timers}, {"timerfd", descriptors},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
