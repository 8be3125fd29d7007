/* Guests of test_wallclock.py, which move their sandbox's wall clock: run under trapline only. Every line says
 * whether something is as on Linux after its clock was set. */
#include "common.h"

#include <linux/futex.h>
#include <mqueue.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/timex.h>

#define SECOND 1000000000LL
#define HOUR (3600 * SECOND)

static struct timespec spec(int64_t time)
{
    return (struct timespec){time / SECOND, time % SECOND};
}

static int64_t by_call(clockid_t clock)
{
    struct timespec value = {0, 0};
    syscall(SYS_clock_gettime, clock, &value);
    return value.tv_sec * SECOND + value.tv_nsec;
}

static void step(int64_t by)
{
    struct timespec then = spec(now_ns(CLOCK_REALTIME) + by);
    if (clock_settime(CLOCK_REALTIME, &then) != 0)
        say("clock_settime: %s", outcome(-1));
}

static bool near(int64_t a, int64_t b)
{
    return llabs(a - b) < 5 * SECOND; /* against hours: whatever the machine does in between */
}

/* ---- reading */

static void reading(void)
{
    int64_t real = now_ns(CLOCK_REALTIME), monotonic = now_ns(CLOCK_MONOTONIC), tai = now_ns(CLOCK_TAI) - real;
    bool fast = true, between = true;
    struct timeval day, raw;
    struct timezone zone = {-60, 1}, got = {5, 5}, wrong = {901, 0};
    say("settimeofday of a zone: %s", outcome(syscall(SYS_settimeofday, NULL, &zone)));
    gettimeofday(&day, &got); /* by the vDSO, whose clocks are still the host's as they are */
    say("the zone: %d %d", got.tz_minuteswest, got.tz_dsttime);
    say("a wrong zone: %s", outcome(syscall(SYS_settimeofday, NULL, &wrong)));
    for (int i = 0; i < 100; i++) {
        struct timespec then = spec(real + HOUR + i * SECOND);
        clock_settime(CLOCK_REALTIME, &then);
        int64_t first = now_ns(CLOCK_REALTIME); /* by the vDSO, as the first thing after the call */
        int64_t exact = then.tv_sec * SECOND + then.tv_nsec;
        fast &= first >= exact && near(first, exact);
        int64_t before = by_call(CLOCK_REALTIME), middle = now_ns(CLOCK_REALTIME), after = by_call(CLOCK_REALTIME);
        between &= before <= middle && middle <= after;
    }
    int64_t now = now_ns(CLOCK_REALTIME);
    gettimeofday(&day, NULL);
    syscall(SYS_gettimeofday, &raw, NULL);
    say("the vDSO follows at once: %s", yes(fast));
    say("the vDSO lies between two calls: %s", yes(between));
    say("gettimeofday: %s", yes(near(day.tv_sec * SECOND, now) && near(raw.tv_sec * SECOND, now)));
    say("time: %s", yes(near(time(NULL) * SECOND, now) && near(syscall(SYS_time, NULL) * SECOND, now)));
    say("coarse: %s", yes(near(now_ns(CLOCK_REALTIME_COARSE), now) && near(by_call(CLOCK_REALTIME_COARSE), now)));
    say("TAI: %s", yes(near(now_ns(CLOCK_TAI) - tai, now) && near(by_call(CLOCK_TAI) - tai, now)));
    say("MONOTONIC stays: %s", yes(near(now_ns(CLOCK_MONOTONIC), monotonic) && near(by_call(CLOCK_MONOTONIC), monotonic)));
    say("BOOTTIME stays: %s", yes(near(now_ns(CLOCK_BOOTTIME), monotonic)));
    struct timespec early = {0, 1}, late = {8277292036, 0};
    say("before the start of MONOTONIC: %s", outcome(clock_settime(CLOCK_REALTIME, &early)));
    say("too late: %s", outcome(clock_settime(CLOCK_REALTIME, &late)));
    fflush(NULL);
    if (fork_or_die() == 0) {
        say("another process: %s", yes(near(now_ns(CLOCK_REALTIME), now)));
        execl("/proc/self/exe", "wallclock", "look", NULL);
        _exit(99);
    }
    reap(-1);
}

static void look(void)
{
    say("years from 1970: %ld", (long)(now_ns(CLOCK_REALTIME) / (SECOND * 31556952)));
}

static void users(void)
{
    struct timespec then = spec(now_ns(CLOCK_REALTIME));
    struct timex reading = {0}, change = {.modes = ADJ_SETOFFSET, .time = {60, 0}}, bad = {.modes = ADJ_TICK, .tick = 5};
    say("root: %s", outcome(clock_settime(CLOCK_REALTIME, &then)));
    fflush(NULL);
    if (fork_or_die() == 0) {
        if (setresuid(65534, 65534, 65534) != 0)
            _exit(99);
        say("another user, clock_settime: %s", outcome(clock_settime(CLOCK_REALTIME, &then)));
        say("another user, stime by settimeofday: %s", outcome(syscall(SYS_settimeofday, NULL, NULL)));
        say("another user, reading: %s", outcome(adjtimex(&reading)));
        say("another user, changing: %s", outcome(adjtimex(&change)));
        say("another user, a wrong tick: %s", outcome(adjtimex(&bad)));
        then.tv_nsec = SECOND;
        say("another user, a wrong time: %s", outcome(clock_settime(CLOCK_REALTIME, &then)));
        _exit(0);
    }
    reap(-1);
    if (fork_or_die() == 0) {
        if (setresuid(0, 65534, 0) != 0)
            _exit(99);
        say("root by its real id only: %s", outcome(clock_settime(CLOCK_REALTIME, &then)));
        _exit(0);
    }
    reap(-1);
    if (fork_or_die() == 0) {
        struct { uint32_t version; int pid; } header = {0x20080522, 0};
        struct { uint32_t effective, permitted, inheritable; } none[2] = {0};
        if (syscall(SYS_capset, &header, none) != 0)
            _exit(99);
        say("root without capabilities: %s", outcome(clock_settime(CLOCK_REALTIME, &then)));
        _exit(0);
    }
    reap(-1);
}

static void adjusting(void)
{
    struct timex t = {0};
    int64_t before = now_ns(CLOCK_REALTIME), tai = now_ns(CLOCK_TAI) - before;
    t = (struct timex){.modes = ADJ_SETOFFSET | ADJ_NANO, .time = {-3600, 999999999}};
    int state = adjtimex(&t);
    say("an hour back: %s, unsynchronised %s", yes(near(now_ns(CLOCK_REALTIME), before - HOUR)), yes(state == TIME_ERROR));
    say("told: status %s, in ns %s", yes(t.status & STA_UNSYNC), yes(t.status & STA_NANO));
    t = (struct timex){.modes = ADJ_SETOFFSET, .time = {0, -1}};
    say("a negative fraction: %s", outcome(adjtimex(&t)));
    t = (struct timex){.modes = ADJ_SETOFFSET, .time = {0, 1000000}};
    say("a fraction of a second: %s", outcome(adjtimex(&t)));
    t = (struct timex){.modes = ADJ_SETOFFSET, .time = {-(1LL << 40), 0}};
    say("before all time: %s", outcome(adjtimex(&t)));
    t = (struct timex){.modes = ADJ_STATUS | ADJ_MAXERROR | ADJ_ESTERROR | ADJ_TIMECONST, .status = 0, .maxerror = 1000,
                       .esterror = 20, .constant = 3};
    state = adjtimex(&t);
    say("synchronised: state %d, status %d, esterror %ld, constant %ld, maxerror %s", state, t.status, t.esterror, t.constant,
        yes(t.maxerror >= 1000 && t.maxerror < 100000));
    t = (struct timex){.modes = ADJ_TAI, .constant = 37};
    adjtimex(&t);
    int64_t moved = now_ns(CLOCK_TAI) - now_ns(CLOCK_REALTIME);
    say("TAI: %d, %s, by a call %s", t.tai, yes(near(moved, 37 * SECOND)),
        yes(near(by_call(CLOCK_TAI) - by_call(CLOCK_REALTIME), 37 * SECOND) && tai < 37 * SECOND));
    t = (struct timex){.modes = ADJ_FREQUENCY, .freq = 1 << 20};
    say("frequency: %s", outcome(adjtimex(&t)));
    t = (struct timex){.modes = ADJ_FREQUENCY, .freq = 1LL << 62};
    say("a frequency of nothing: %s", outcome(adjtimex(&t)));
    t = (struct timex){.modes = ADJ_TICK, .tick = 20000};
    say("tick: %s", outcome(adjtimex(&t)));
    t = (struct timex){.modes = ADJ_OFFSET_SINGLESHOT, .offset = 1000};
    say("adjtime: %s", outcome(adjtimex(&t)));
    t = (struct timex){.modes = ADJ_OFFSET_SS_READ};
    say("what is left of it: %s, %ld", outcome(adjtimex(&t)), t.offset);
    t = (struct timex){.modes = 0x8000};
    say("singleshot of nothing: %s", outcome(adjtimex(&t)));
    say("a bad pointer: %s", outcome(syscall(SYS_adjtimex, 8L)));
    say("of MONOTONIC: %s, of 99: %s", outcome(clock_adjtime(CLOCK_MONOTONIC, &t)), outcome(clock_adjtime(99, &t)));
}

/* ---- waiting: each waiter is a thread that tells how it ended and how long it took */

enum how { SLEEP, SLEEP_RELATIVE, CONDITION, SEMAPHORE, QUEUE_GET, QUEUE_PUT, FUTEX_SHARED, WAITV, LOCK_PI, HOWS };

static const char *const names[] = {"clock_nanosleep", "relative clock_nanosleep", "pthread_cond_timedwait",
                                    "sem_timedwait", "mq_timedreceive", "mq_timedsend", "futex, read-only deadline",
                                    "futex_waitv", "futex_lock_pi"};

struct waiter {
    enum how how;
    struct timespec until;
    int error;
    int64_t took, end; /* on MONOTONIC, and on REALTIME */
    pthread_t thread;
    volatile bool ended;
    volatile pid_t tid;
    mqd_t queue;
};

static uint32_t word, pi_word;
static sem_t semaphore;

static void *wait_one(void *argument)
{
    struct waiter *w = argument;
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    struct { uint64_t value, address; uint32_t flags, reserved; } vector = {0, (uintptr_t)&word, 2, 0};
    char message[8] = "x";
    long result = 0;
    int64_t start = now_ns(CLOCK_MONOTONIC);
    w->tid = (pid_t)syscall(SYS_gettid);
    switch (w->how) {
    case SLEEP: errno = clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &w->until, NULL); break;
    case SLEEP_RELATIVE: errno = clock_nanosleep(CLOCK_REALTIME, 0, &w->until, NULL); break;
    case CONDITION:
        pthread_mutex_lock(&mutex);
        errno = pthread_cond_timedwait(&condition, &mutex, &w->until);
        break;
    case SEMAPHORE: result = sem_timedwait(&semaphore, &w->until); break;
    case QUEUE_GET: result = mq_timedreceive(w->queue, message, sizeof message, NULL, &w->until); break;
    case QUEUE_PUT: result = mq_timedsend(w->queue, message, sizeof message, 0, &w->until); break;
    case FUTEX_SHARED: {
        struct timespec *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *page = w->until;
        mprotect(page, 4096, PROT_READ);
        result = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, page, NULL, ~0);
        break;
    }
    case WAITV: result = syscall(449, &vector, 1, 0, &w->until, CLOCK_REALTIME); break;
    case LOCK_PI: result = syscall(SYS_futex, &pi_word, FUTEX_LOCK_PI, 0, &w->until, NULL, 0); break;
    case HOWS: break;
    }
    (void)result;
    w->error = errno;
    w->took = now_ns(CLOCK_MONOTONIC) - start;
    w->end = now_ns(CLOCK_REALTIME);
    w->ended = true;
    return NULL;
}

/* Whether a thread sleeps in the kernel: what its waiter waits for has begun. */
static bool asleep(pid_t tid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    int fd = open(path, O_RDONLY);
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0)
        return false;
    text[size] = 0;
    char *end = strrchr(text, ')');
    return end != NULL && end[2] == 'S';
}

static void begin(struct waiter *w, enum how how, int64_t in)
{
    *w = (struct waiter){.how = how};
    w->until = spec(how == SLEEP_RELATIVE ? in : now_ns(CLOCK_REALTIME) + in);
    if (how == QUEUE_GET || how == QUEUE_PUT) {
        struct mq_attr one = {.mq_maxmsg = 1, .mq_msgsize = 8};
        char name[32];
        snprintf(name, sizeof name, "/wallclock%d", how);
        w->queue = mq_open(name, O_CREAT | O_RDWR, 0600, &one);
        mq_unlink(name);
        if (how == QUEUE_PUT)
            mq_send(w->queue, "full", 4, 0);
    }
    pthread_create(&w->thread, NULL, wait_one, w);
    while (w->tid == 0 || (!w->ended && !asleep(w->tid)))
        sched_yield();
}

static void waiting(void)
{
    struct waiter all[HOWS], back[HOWS];
    sem_init(&semaphore, 0, 0);
    pi_word = (uint32_t)getpid(); /* the main thread holds it */
    for (int how = 0; how < HOWS; how++)
        begin(&all[how], (enum how)how, how == SLEEP_RELATIVE ? 400 * MS : HOUR);
    step(2 * HOUR); /* all but the relative one are due now */
    for (int how = 0; how < HOWS; how++) {
        pthread_join(all[how].thread, NULL);
        bool right = how == SLEEP_RELATIVE ? all[how].took >= 400 * MS : all[how].took < HOUR;
        say("due by a step, %s: %s, %s", names[how], error_name(all[how].error), yes(right));
    }
    for (int how = 0; how < HOWS; how++) { /* begun after the step */
        begin(&all[how], (enum how)how, 150 * MS);
        pthread_join(all[how].thread, NULL);
        bool early = how == SLEEP_RELATIVE ? all[how].took < 150 * MS : all[how].end < all[how].until.tv_sec * SECOND + all[how].until.tv_nsec;
        say("after a step, %s: %s, early %s", names[how], error_name(all[how].error), yes(early));
    }
    for (int how = 0; how < HOWS; how++)
        begin(&back[how], (enum how)how, how == SLEEP_RELATIVE ? 50 * MS : 2 * SECOND);
    step(-HOUR);
    sleep_ms(2300);
    for (int how = 0; how < HOWS; how++)
        say("put back, %s: ended %s", names[how], yes(back[how].ended));
    step(HOUR);
    for (int how = 0; how < HOWS; how++)
        pthread_join(back[how].thread, NULL);
    say("and forward: all have ended");
}

/* ---- handlers */

static void nothing(int signo)
{
    (void)signo;
}

/* A call by hand, after which the registers of its arguments must be what they were. */
static long call_whole(long nr, long a, long b, long c, long d, long e, long f, bool *kept)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result = nr, di = a, si = b, dx = c;
    __asm__ volatile("syscall" : "+a"(result), "+D"(di), "+S"(si), "+d"(dx), "+r"(r10), "+r"(r8), "+r"(r9) : : "rcx", "r11", "memory");
    *kept = di == a && si == b && dx == c && r10 == d && r8 == e && r9 == f;
    return result;
}

static void interrupted(void)
{
    struct { uint64_t value, address; uint32_t flags, reserved; } vector = {0, (uintptr_t)&word, 2, 0};
    struct sigaction action = {.sa_handler = nothing};
    struct itimerval soon = {.it_value = {0, 30000}};
    struct mq_attr one = {.mq_maxmsg = 1, .mq_msgsize = 8};
    char message[8];
    mqd_t queue = mq_open("/wallclock", O_CREAT | O_RDWR, 0600, &one);
    mq_unlink("/wallclock");
    step(HOUR);
    for (int restart = 0; restart < 2; restart++) {
        const char *with = restart ? ", SA_RESTART" : "";
        action.sa_flags = restart ? SA_RESTART : 0;
        sigaction(SIGALRM, &action, NULL);
        for (int i = 0; i < 3; i++) {
            if (restart && i > 0)
                continue; /* these would wait on */
            struct timespec until = spec(now_ns(CLOCK_REALTIME) + HOUR), before = until;
            bool kept = false;
            long result = 0;
            setitimer(ITIMER_REAL, &soon, NULL);
            if (i == 0)
                result = call_whole(SYS_futex, (long)&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, (long)&until, 0, -1, &kept);
            else if (i == 1)
                result = call_whole(449, (long)&vector, 1, 0, (long)&until, CLOCK_REALTIME, 7, &kept);
            else
                result = call_whole(SYS_mq_timedreceive, queue, (long)message, sizeof message, 0, (long)&until, 7, &kept);
            kept &= memcmp(&before, &until, sizeof until) == 0;
            say("%s%s: %s, registers as before %s", i == 0 ? "futex" : i == 1 ? "futex_waitv" : "mq_timedreceive", with,
                error_name((int)-result), yes(kept));
        }
    }
    /* What is not an absolute wait on REALTIME is left alone. */
    action.sa_flags = 0;
    sigaction(SIGALRM, &action, NULL);
    struct timespec hour = {3600, 0}, monotonic = spec(now_ns(CLOCK_MONOTONIC) + HOUR);
    bool kept = false;
    setitimer(ITIMER_REAL, &soon, NULL);
    long result = call_whole(SYS_futex, (long)&word, FUTEX_WAIT, 0, (long)&hour, 0, 0, &kept);
    say("relative futex: %s, registers as before %s", error_name((int)-result), yes(kept));
    setitimer(ITIMER_REAL, &soon, NULL);
    result = call_whole(SYS_futex, (long)&word, FUTEX_WAIT_BITSET, 0, (long)&monotonic, 0, -1, &kept);
    say("MONOTONIC futex: %s, registers as before %s", error_name((int)-result), yes(kept));
}

/* ---- timers */

static volatile sig_atomic_t rang;

static void ring(int signo)
{
    (void)signo;
    rang++;
}

static void timers(void)
{
    timer_t absolute, relative;
    struct itimerspec setting = {.it_value = spec(now_ns(CLOCK_REALTIME) + HOUR)}, left;
    signal(SIGALRM, ring);
    timer_create(CLOCK_REALTIME, NULL, &absolute);
    timer_create(CLOCK_REALTIME, NULL, &relative);
    timer_settime(absolute, TIMER_ABSTIME, &setting, NULL);
    setting.it_value = spec(HOUR);
    timer_settime(relative, 0, &setting, NULL);
    step(HOUR / 2);
    timer_gettime(absolute, &left);
    say("half an hour is left: %s", yes(near(left.it_value.tv_sec * SECOND, HOUR / 2)));
    timer_gettime(relative, &left);
    say("of the relative one an hour: %s", yes(near(left.it_value.tv_sec * SECOND, HOUR)));
    say("rang %d", rang);
    step(HOUR);
    while (rang == 0)
        pause();
    timer_gettime(relative, &left);
    say("rang %d, of the relative one an hour: %s", rang, yes(near(left.it_value.tv_sec * SECOND, HOUR)));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"reading", reading}, {"look", look}, {"users", users}, {"adjusting", adjusting}, {"waiting", waiting},
        {"interrupted", interrupted}, {"timers", timers},
    };
    if (argc > 2 && strcmp(argv[1], "moved") == 0) { /* and then another program */
        step(HOUR);
        execv(argv[2], argv + 2);
    }
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
