/* What ops.c measures that is no time per operation: whether timers keep pace. Included by it alone. */

/* --- an interval timer's pace, which is no time per operation */

static int64_t deliveries[20000];
static volatile sig_atomic_t delivered;

static void on_alarm(int signo)
{
    (void)signo;
    if (delivered < (int)COUNT_OF(deliveries))
        deliveries[delivered++] = now_ns(CLOCK_MONOTONIC);
}

/* How many signals of a timer of 1 ms come in so many ms, and how far from 1 ms their distances are. */
static void measure_interval(long milliseconds)
{
    static double off[COUNT_OF(deliveries)];
    struct sigaction action = {.sa_handler = on_alarm}, before;
    const struct itimerval every = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    sigset_t blocked, open;
    say("begin interval");
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGALRM);
    sigprocmask(SIG_BLOCK, &blocked, &open);
    must(sigaction(SIGALRM, &action, &before) == 0, "sigaction");
    delivered = 0;
    int64_t start = now_ns(CLOCK_MONOTONIC), elapsed;
    must(setitimer(ITIMER_REAL, &every, NULL) == 0, "setitimer");
    while ((elapsed = now_ns(CLOCK_MONOTONIC) - start) < milliseconds * MS)
        sigsuspend(&open);
    setitimer(ITIMER_REAL, &never, NULL);
    signal(SIGALRM, SIG_IGN); /* drops one that is pending */
    sigaction(SIGALRM, &before, NULL);
    sigprocmask(SIG_SETMASK, &open, NULL);
    int count = 0;
    for (int i = 1; i < delivered; i++) {
        int64_t distance = deliveries[i] - deliveries[i - 1] - MS;
        off[count++] = (double)(distance < 0 ? -distance : distance);
    }
    must(count > 0, "an interval timer that never came twice");
    qsort(off, (size_t)count, sizeof off[0], by_size);
    /* per 2 s, whatever was asked for */
    say("interval-count median %.1f mean %.1f elapsed %lld", delivered * 2000.0 / (double)milliseconds,
        delivered * 2000.0 / (double)milliseconds, (long long)elapsed);
    say("interval-deviation median %.1f mean %.1f elapsed 0", off[count / 2], off[count / 2]);
}

static volatile sig_atomic_t expirations;

static void on_cpu_timer(int signo, siginfo_t *info, void *context)
{
    (void)signo;
    (void)context;
    expirations += 1 + info->si_overrun;
}

/* How often a timer of 10 ms on the thread's own CPU time comes while it computes for so many ms of it, calls
 * but rarely made: with overruns, one for each 10 ms. */
static void measure_spin(long milliseconds)
{
    struct sigaction action = {.sa_sigaction = on_cpu_timer, .sa_flags = SA_SIGINFO}, before;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1};
    const struct itimerspec ten = {{0, 10 * MS}, {0, 10 * MS}};
    timer_t timer;
    say("begin spin");
    must(sigaction(SIGRTMIN + 1, &action, &before) == 0, "sigaction");
    must(timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) == 0, "timer_create");
    expirations = 0;
    int64_t start = now_ns(CLOCK_MONOTONIC);
    must(timer_settime(timer, 0, &ten, NULL) == 0, "timer_settime");
    burn_ms(milliseconds);
    int64_t elapsed = now_ns(CLOCK_MONOTONIC) - start;
    timer_delete(timer);
    sigaction(SIGRTMIN + 1, &before, NULL);
    double counted = (double)expirations * 2000.0 / (double)milliseconds; /* per 2 s */
    say("spin median %.1f mean %.1f elapsed %lld", counted, counted, (long long)elapsed);
}
