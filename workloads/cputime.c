/* CPU time: its clocks and timers, RLIMIT_CPU, and what all the ways of asking for it say. The figures themselves are
 * never printed, only whether they are within bounds that hold on a loaded machine: CPU time is compared with CPU time.
 * `cputime spin verbose` prints the figures, for the benchmark. */
#include "common.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/times.h>

#define RLIM(soft, hard) (&(struct rlimit){soft, hard})

static bool verbose;
static volatile sig_atomic_t count, overruns, code, elsewhere;
static volatile int64_t seen_at;
static _Thread_local bool is_spinner;

static void note(int signo, siginfo_t *info, void *context)
{
    (void)signo;
    (void)context;
    count++;
    code = info->si_code;
    elsewhere += !is_spinner;
    if (info->si_code == SI_TIMER)
        overruns += info->si_overrun;
    seen_at = now_ns(CLOCK_PROCESS_CPUTIME_ID);
}

static void listen_for(int signo)
{
    struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(signo, &action, NULL);
    count = overruns = code = elsewhere = 0;
    seen_at = 0;
}

/* Computes without any call until a signal came. */
static void spin_until_signal(void)
{
    while (count == 0)
        ;
}

static void become_ordinary(void)
{
    uid_t other = spare_uid();
    if (getuid() == 0 && (setgid(other) < 0 || setuid(other) < 0))
        exit(94);
}

static int64_t of_timeval(struct timeval value)
{
    return value.tv_sec * 1000000000LL + value.tv_usec * 1000LL;
}

static int64_t of_usage(const struct rusage *usage)
{
    return of_timeval(usage->ru_utime) + of_timeval(usage->ru_stime);
}

static bool within(int64_t value, int64_t low, int64_t high)
{
    return low <= value && value <= high;
}

/* Linux measures ITIMER_VIRTUAL, ITIMER_PROF and RLIMIT_CPU in whole ticks, each charged to whoever runs when it comes:
 * on a loaded machine that is half off in either direction, natively. */
static bool sampled(int64_t value, int64_t due)
{
    return within(value, due * 4 / 10, due * 25 / 10 + 60 * MS);
}

/* What a child leaves for its parent. */
struct report {
    int64_t first, second;
    long number;
};

static volatile struct report *report_new(void)
{
    volatile struct report *report = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (report == MAP_FAILED)
        exit(93);
    return report;
}

/* A thread with a timer of 10 ms on its clock, for two seconds of it. */
static void spin(void)
{
    struct itimerspec ten = {{0, 10 * MS}, {0, 10 * MS}}, off = {0};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    timer_t timer;
    listen_for(SIGRTMIN);
    timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
    int64_t start = now_ns(CLOCK_THREAD_CPUTIME_ID);
    timer_settime(timer, 0, &ten, NULL);
    burn_ms(2000);
    int64_t used = now_ns(CLOCK_THREAD_CPUTIME_ID) - start;
    timer_settime(timer, 0, &off, NULL);
    timer_delete(timer);
    if (verbose)
        say("%.3f ms of CPU: %d signals, %d overruns, %d expirations", (double)used / 1e6, count, overruns, count + overruns);
    say("10 ms in 2 s of a thread's CPU: as often as it was %s", yes(within(count + overruns, used / (10 * MS) - 2, used / (10 * MS) + 2)));
}

static void *spinner(void *until)
{
    is_spinner = true;
    while (now_ns(CLOCK_MONOTONIC) < *(const int64_t *)until)
        for (volatile int i = 0; i < 100000; i++)
            ;
    return NULL;
}

/* Two threads on one CPU cannot use more than there is, and a timer on their clock says the same. */
static void two_on_one(void)
{
    struct itimerspec ten = {{0, 10 * MS}, {0, 10 * MS}}, off = {0};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    cpu_set_t before, one;
    pthread_t threads[2];
    timer_t timer;
    sched_getaffinity(0, sizeof before, &before);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &before)) {
            CPU_SET(cpu, &one);
            break;
        }
    sched_setaffinity(0, sizeof one, &one);
    listen_for(SIGRTMIN);
    timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer);
    int64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID), wall = now_ns(CLOCK_MONOTONIC), until = wall + 1000 * MS;
    timer_settime(timer, 0, &ten, NULL);
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, spinner, &until);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    wall = now_ns(CLOCK_MONOTONIC) - wall;
    timer_settime(timer, 0, &off, NULL);
    timer_delete(timer);
    if (verbose)
        say("%.3f ms of CPU in %.3f ms, %d expirations", (double)cpu / 1e6, (double)wall / 1e6, count + overruns);
    say("not more CPU than time: %s", yes(cpu <= wall + 10 * MS));
    say("as many expirations: %s", yes(within(count + overruns, cpu / (10 * MS) * 9 / 10 - 2, cpu / (10 * MS) + 1)));
    sched_setaffinity(0, sizeof before, &before);
}

/* Woken by the host alone, and then computing with no call. */
static struct gate the_gate;
static uint32_t the_futex;

static void *woken_by_pipe(void *argument)
{
    is_spinner = true;
    gate_wait(the_gate);
    spin_until_signal();
    return argument;
}

static void *woken_by_futex(void *argument)
{
    is_spinner = true;
    while (__atomic_load_n(&the_futex, __ATOMIC_SEQ_CST) == 0)
        syscall(SYS_futex, &the_futex, 0 /* FUTEX_WAIT */, 0, NULL, NULL, 0);
    spin_until_signal();
    return argument;
}

enum alarm_kind { ALARM_VIRTUAL, ALARM_PROF, ALARM_TIMER, ALARM_LIMIT, ALARM_KINDS };
static const char *const alarm_names[] = {"ITIMER_VIRTUAL", "ITIMER_PROF", "a timer", "RLIMIT_CPU"};

static void woken_and_computing(void)
{
    for (int way = 0; way < 2; way++)
        for (int kind = 0; kind < ALARM_KINDS; kind++) {
            pid_t child = fork_or_die();
            if (child == 0) {
                const int signals[] = {SIGVTALRM, SIGPROF, SIGRTMIN, SIGXCPU};
                const int codes[] = {SI_KERNEL, SI_KERNEL, SI_TIMER, SI_KERNEL};
                struct itimerval fifty = {.it_value = {0, 50000}};
                struct itimerspec also = {.it_value = {0, 50 * MS}};
                struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
                pthread_t thread;
                timer_t timer;
                int64_t due = 50 * MS;
                the_gate = gate_new();
                the_futex = 0;
                listen_for(signals[kind]);
                pthread_create(&thread, NULL, way ? woken_by_futex : woken_by_pipe, NULL);
                sleep_ms(20);
                int64_t start = now_ns(CLOCK_PROCESS_CPUTIME_ID);
                if (kind == ALARM_TIMER) {
                    timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer);
                    timer_settime(timer, 0, &also, NULL);
                } else if (kind == ALARM_LIMIT) {
                    setrlimit(RLIMIT_CPU, RLIM(1, RLIM_INFINITY));
                    due = 1000 * MS - start;
                } else {
                    setitimer(kind == ALARM_PROF ? ITIMER_PROF : ITIMER_VIRTUAL, &fifty, NULL);
                }
                sleep_ms(50);
                bool quiet = count == 0;
                __atomic_store_n(&the_futex, 1, __ATOMIC_SEQ_CST);
                syscall(SYS_futex, &the_futex, 1 /* FUTEX_WAKE */, 1, NULL, NULL, 0);
                gate_open(the_gate);
                pthread_join(thread, NULL);
                int64_t took = seen_at - start;
                if (verbose)
                    say("%s: %.3f ms", alarm_names[kind], (double)took / 1e6);
                say("%s after a %s: none before %s, on time %s, in the thread that runs %s, code %s", alarm_names[kind],
                    way ? "futex" : "pipe", yes(quiet), yes(kind == ALARM_TIMER ? within(took, due - 1 * MS, due + 60 * MS) : sampled(took, due)),
                    yes(elsewhere == 0), yes(code == codes[kind]));
                _exit(0);
            }
            reap(child);
        }
}

/* One thread computes, the main thread waits: whose handler runs? */
static void which_thread(void)
{
    const struct { int which, signo; const char *name; } kinds[] = {
        {ITIMER_VIRTUAL, SIGVTALRM, "SIGVTALRM"}, {ITIMER_PROF, SIGPROF, "SIGPROF"}};
    struct itimerval ten = {{0, 10000}, {0, 10000}}, off = {0};
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        pthread_t thread;
        int64_t until = now_ns(CLOCK_MONOTONIC) + 300 * MS;
        listen_for(kinds[i].signo);
        setitimer(kinds[i].which, &ten, NULL);
        pthread_create(&thread, NULL, spinner, &until);
        pthread_join(thread, NULL);
        setitimer(kinds[i].which, &off, NULL);
        say("%s: came %s, in the thread that runs %s, code %s", kinds[i].name, yes(count >= 1), yes(elsewhere * 10 <= count),
            yes(code == SI_KERNEL));
    }
    timer_t timer;
    pthread_t thread;
    int64_t until = now_ns(CLOCK_MONOTONIC) + 300 * MS;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    listen_for(SIGRTMIN);
    timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer);
    timer_settime(timer, 0, &(struct itimerspec){{0, 10 * MS}, {0, 10 * MS}}, NULL);
    pthread_create(&thread, NULL, spinner, &until);
    pthread_join(thread, NULL);
    timer_delete(timer);
    say("a process's timer: came %s, in the thread that runs %s", yes(count >= 1), yes(elsewhere * 10 <= count));
}

/* Nothing comes once the process sleeps. */
static void asleep(void)
{
    struct itimerval ten = {{0, 10000}, {0, 10000}}, off = {0};
    int late = 0, came = 0;
    listen_for(SIGPROF);
    for (int round = 0; round < 5; round++) {
        setitimer(ITIMER_PROF, &ten, NULL);
        burn_ms(60);
        int64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
        int before = count;
        sleep_ms(60);
        late += count != before && now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu < 8 * MS;
        came += before;
        setitimer(ITIMER_PROF, &off, NULL);
    }
    say("while it runs: %s, while it sleeps: %s", yes(came >= 5), yes(late > 1));
}

/* A timer on the clock of another process. */
static void other_process(void)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    sigset_t wanted;
    clockid_t clock;
    timer_t timer;
    struct gate gate = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        gate_wait(gate);
        for (;;)
            ;
    }
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &wanted, NULL);
    say("its clock: %s", error_name(clock_getcpuclockid(child, &clock)));
    say("a timer on it: %s", outcome(timer_create(clock, &event, &timer)));
    int64_t start = now_ns(clock), own = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    timer_settime(timer, 0, &(struct itimerspec){.it_value = {0, 100 * MS}}, NULL);
    say("asleep, nothing: %s", outcome(sigtimedwait(&wanted, NULL, &(struct timespec){0, 30 * MS})));
    gate_open(gate);
    say("its signal: %s", yes(sigtimedwait(&wanted, NULL, &(struct timespec){50, 0}) == SIGRTMIN));
    say("not before it had used that: %s, and not I: %s", yes(now_ns(clock) - start >= 95 * MS),
        yes(now_ns(CLOCK_PROCESS_CPUTIME_ID) - own < 60 * MS));
    int result = timer_settime(timer, 0, &(struct itimerspec){.it_value = {0, 100 * MS}}, NULL);
    kill(child, SIGKILL);
    say("set: %s, %s", outcome(result), status_text(reap(child)));
    say("of a dead process: %s", outcome(timer_settime(timer, 0, &(struct itimerspec){.it_value = {0, 100 * MS}}, NULL)));
    timer_delete(timer);
    sigprocmask(SIG_UNBLOCK, &wanted, NULL);
    gate_free(gate);
}

/* -- the limit */
static volatile struct report *shared;

static void on_xcpu(int signo, siginfo_t *info, void *context)
{
    (void)signo;
    (void)context;
    struct rlimit limit;
    getrlimit(RLIMIT_CPU, &limit);
    if (shared->number++ == 0) {
        shared->first = now_ns(CLOCK_PROCESS_CPUTIME_ID);
        shared->second = (int64_t)limit.rlim_cur;
    }
    if (info->si_code != SI_KERNEL)
        shared->number += 100;
}

static int watched(pid_t child, struct rusage *usage)
{
    int status;
    while (wait4(child, &status, 0, usage) < 0 && errno == EINTR)
        ;
    return status;
}

static void catch_xcpu(void)
{
    struct sigaction action = {.sa_sigaction = on_xcpu, .sa_flags = SA_SIGINFO};
    sigaction(SIGXCPU, &action, NULL);
    shared->first = shared->second = shared->number = 0;
}

static void soft_and_hard(void)
{
    struct rusage usage;
    pid_t child = fork_or_die();
    if (child == 0) {
        catch_xcpu();
        setrlimit(RLIMIT_CPU, RLIM(1, 2));
        for (;;)
            ;
    }
    int status = watched(child, &usage);
    if (verbose)
        say("SIGXCPU at %.3f ms, ended at %.3f", (double)shared->first / 1e6, (double)of_usage(&usage) / 1e6);
    say("caught, then %s: signals %ld, on time %s, the soft limit is %lld, ended on time %s", status_text(status), shared->number,
        yes(sampled(shared->first, 1000 * MS)), (long long)shared->second, yes(sampled(of_usage(&usage), 2000 * MS)));
    child = fork_or_die();
    if (child == 0) {
        setrlimit(RLIMIT_CPU, RLIM(1, RLIM_INFINITY));
        for (;;)
            ;
    }
    status = watched(child, &usage);
    if (verbose)
        say("killed by SIGXCPU at %.3f ms", (double)of_usage(&usage) / 1e6);
    say("not caught: %s, on time %s", status_text(status), yes(sampled(of_usage(&usage), 1000 * MS)));
}

static void exceeded_and_inherited(void)
{
    struct rusage usage;
    pid_t child = fork_or_die();
    if (child == 0) {
        catch_xcpu();
        burn_ms(1300);
        int64_t start = now_ns(CLOCK_PROCESS_CPUTIME_ID);
        setrlimit(RLIMIT_CPU, RLIM(1, RLIM_INFINITY));
        while (shared->number == 0 && now_ns(CLOCK_PROCESS_CPUTIME_ID) - start < 500 * MS)
            ;
        if (verbose)
            say("exceeded: SIGXCPU after %.3f ms", (double)(shared->first - start) / 1e6);
        say("exceeded when it is set: a signal %s, soon %s, the soft limit is %lld", yes(shared->number >= 1),
            yes(shared->first - start < 100 * MS), (long long)shared->second);
        pid_t grandchild = fork_or_die();
        if (grandchild == 0) {
            struct rlimit limit;
            catch_xcpu();
            getrlimit(RLIMIT_CPU, &limit);
            while (shared->number == 0)
                ;
            _exit(limit.rlim_cur == 2 && limit.rlim_max == RLIM_INFINITY ? 7 : 8);
        }
        int ended = watched(grandchild, &usage); /* not among say's arguments: the others may be evaluated first */
        say("inherited by a fork, whose time begins at 0: %s, on time %s", status_text(ended),
            yes(sampled(shared->first, 2000 * MS)));
        _exit(0);
    }
    reap(child);
    if (verbose)
        say("inherited: SIGXCPU at %.3f ms", (double)shared->first / 1e6);
    child = fork_or_die();
    if (child == 0) {
        setrlimit(RLIMIT_CPU, RLIM(1, 5));
        execl("/proc/self/exe", "cputime", "--spin", NULL);
        _exit(92);
    }
    int status = watched(child, &usage);
    if (verbose)
        say("executed: killed at %.3f ms", (double)of_usage(&usage) / 1e6);
    say("kept over an exec: %s, on time %s", status_text(status), yes(sampled(of_usage(&usage), 1000 * MS)));
}

static void limits_told(void)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        struct rlimit limit = {9, 9}, old = {9, 9};
        become_ordinary();
        say("set: %s", outcome(setrlimit(RLIMIT_CPU, RLIM(100, 200))));
        int result = getrlimit(RLIMIT_CPU, &limit);
        say("get: %s, %lld %lld", outcome(result), (long long)limit.rlim_cur, (long long)limit.rlim_max);
        result = prlimit(0, RLIMIT_CPU, RLIM(50, 150), &old);
        say("prlimit: %s, old %lld %lld", outcome(result), (long long)old.rlim_cur, (long long)old.rlim_max);
        say("soft above hard: %s", outcome(setrlimit(RLIMIT_CPU, RLIM(300, 200))));
        say("hard raised: %s, infinite: %s", outcome(setrlimit(RLIMIT_CPU, RLIM(50, 151))),
            outcome(setrlimit(RLIMIT_CPU, RLIM(50, RLIM_INFINITY))));
        say("bad addresses: %s %s %s %s", outcome(syscall(SYS_setrlimit, RLIMIT_CPU, 1)), outcome(syscall(SYS_getrlimit, RLIMIT_CPU, 1)),
            outcome(syscall(SYS_prlimit64, 0, RLIMIT_CPU, 1, 0)), outcome(syscall(SYS_prlimit64, 0, RLIMIT_CPU, RLIM(40, 140), 1)));
        getrlimit(RLIMIT_CPU, &limit);
        say("after the last it is set: %lld %lld", (long long)limit.rlim_cur, (long long)limit.rlim_max);
        say("no such process: %s %s", outcome(prlimit(999999, RLIMIT_CPU, NULL, &old)), outcome(prlimit(-5, RLIMIT_CPU, NULL, &old)));
        struct gate gate = gate_new();
        pid_t grandchild = fork_or_die();
        if (grandchild == 0) {
            gate_wait(gate);
            getrlimit(RLIMIT_CPU, &limit);
            _exit(limit.rlim_cur == 30 && limit.rlim_max == 130 ? 3 : 4);
        }
        result = prlimit(grandchild, RLIMIT_CPU, RLIM(30, 130), &old);
        say("of a child: %s, old %lld %lld", outcome(result), (long long)old.rlim_cur, (long long)old.rlim_max);
        gate_open(gate);
        say("it has got it: %s", status_text(reap(grandchild)));
        say("of another user's: %s", outcome(prlimit(getppid(), RLIMIT_CPU, NULL, &old)));
        _exit(0);
    }
    reap(child);
}

/* -- agreement */
static int64_t stat_ticks(int field)
{
    char text[2048];
    int fd = open("/proc/self/stat", O_RDONLY);
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    text[size > 0 ? size : 0] = 0;
    char *at = strrchr(text, ')');
    for (int i = 2; at != NULL && i < field; i++)
        at = strchr(at + 1, ' ');
    return at == NULL ? -1 : strtoll(at, NULL, 10) * 10 * MS;
}

static void agreement(void)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        const clockid_t prof = (~0u << 3) | 0, virt = (~0u << 3) | 1, sched = (~0u << 3) | 2;
        struct sigevent silent = {.sigev_notify = SIGEV_NONE};
        struct itimerval hour = {.it_value = {3600, 0}}, left;
        struct itimerspec rest;
        struct rusage usage, thread;
        struct tms ticks;
        timer_t timer;
        int64_t start = now_ns(CLOCK_PROCESS_CPUTIME_ID);
        timer_create(CLOCK_PROCESS_CPUTIME_ID, &silent, &timer);
        timer_settime(timer, 0, &(struct itimerspec){.it_value = {3600, 0}}, NULL);
        setitimer(ITIMER_PROF, &hour, NULL);
        setitimer(ITIMER_VIRTUAL, &hour, NULL);
        for (int i = 0; i < 20; i++) {
            burn_ms(10);
            for (int n = 0; n < 300; n++)
                getppid();
        }
        const int64_t tick = 10 * MS, slack = 2 * tick; /* a tick, and what passes between the first question and the last */
        int64_t cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
        getrusage(RUSAGE_SELF, &usage);
        getrusage(RUSAGE_THREAD, &thread);
        times(&ticks);
        timer_gettime(timer, &rest);
        getitimer(ITIMER_PROF, &left);
        int64_t timer_used = 3600000 * MS - rest.it_value.tv_sec * 1000 * MS - rest.it_value.tv_nsec;
        int64_t prof_used = 3600000 * MS - of_timeval(left.it_value);
        getitimer(ITIMER_VIRTUAL, &left);
        int64_t virt_used = 3600000 * MS - of_timeval(left.it_value), user = of_timeval(usage.ru_utime);
        say("thread's clock %s, by its id %s, PROF %s, SCHED %s", yes(llabs(now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu) < slack),
            yes(llabs(now_ns(~(clockid_t)getpid() << 3 | 2) - cpu) < slack), yes(sampled(now_ns(prof), cpu)),
            yes(llabs(now_ns(sched) - cpu) < slack));
        say("getrusage %s, of the thread %s, times %s, /proc %s", yes(llabs(of_usage(&usage) - cpu) < slack),
            yes(llabs(of_usage(&thread) - cpu) < slack), yes(llabs((ticks.tms_utime + ticks.tms_stime) * tick - cpu) < slack + tick),
            yes(llabs(stat_ticks(14) + stat_ticks(15) - cpu) < slack + tick));
        say("a timer %s, ITIMER_PROF %s", yes(llabs(timer_used - (cpu - start)) < slack), yes(sampled(prof_used, cpu - start)));
        say("user time: VIRT %s, times %s, /proc %s, ITIMER_VIRTUAL %s", yes(sampled(now_ns(virt), user)),
            yes(llabs(ticks.tms_utime * tick - user) < slack), yes(llabs(stat_ticks(14) - user) < slack), yes(virt_used <= user + slack));
        _exit(0);
    }
    reap(child);
    struct tms before, after;
    struct rusage usage, children, earlier;
    times(&before);
    getrusage(RUSAGE_CHILDREN, &earlier);
    child = fork_or_die();
    if (child == 0) {
        burn_ms(150);
        say("a child's own: %s", yes(now_ns(CLOCK_PROCESS_CPUTIME_ID) >= 150 * MS));
        _exit(0);
    }
    watched(child, &usage);
    times(&after);
    getrusage(RUSAGE_CHILDREN, &children);
    int64_t by_wait = of_usage(&usage), by_usage = of_usage(&children) - of_usage(&earlier);
    int64_t by_times = (after.tms_cutime + after.tms_cstime - before.tms_cutime - before.tms_cstime) * 10 * MS;
    say("as a child: wait4 %s, getrusage %s, times %s", yes(by_wait >= 149 * MS), yes(llabs(by_usage - by_wait) < 10 * MS),
        yes(llabs(by_times - by_wait) < 25 * MS));
    clock_t start = times(&before);
    int64_t wall = now_ns(CLOCK_MONOTONIC);
    sleep_ms(200);
    clock_t end = times(NULL);
    wall = now_ns(CLOCK_MONOTONIC) - wall;
    say("times counts time: %s, bad address: %s", yes(llabs((end - start) * 10 * MS - wall) < 20 * MS || (end - start) * 10 * MS >= 190 * MS),
        outcome(syscall(SYS_times, 1)));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"spin", spin}, {"two", two_on_one}, {"woken", woken_and_computing}, {"which", which_thread}, {"asleep", asleep},
        {"other", other_process}, {"limit", soft_and_hard}, {"exceeded", exceeded_and_inherited}, {"told", limits_told},
        {"agreement", agreement},
    };
    if (argc > 1 && strcmp(argv[1], "--spin") == 0)
        for (;;)
            ;
    verbose = argc > 2 && strcmp(argv[argc - 1], "verbose") == 0;
    shared = report_new();
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
