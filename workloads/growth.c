/* What operations cost beside N sleeping processes, threads or armed timers.
 *
 * usage: growth processes|threads|timers N hold           prints "ready" and sleeps
 *        growth processes|threads|timers N OP[,OP...]     prints, for each: OP median NS (see --list)
 *        growth --list
 * The processes are children of the one that measures, the threads and timers its own: the worst case of each
 * walk over what a process has. */
#include "common.h"

#include <pthread.h>
#include <sys/time.h>

#define TIMES 41

static void must(bool condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "growth: %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

/* --- what stands around */

static struct gate release;

static void *sleep_in_a_thread(void *unused)
{
    gate_wait(release);
    return unused;
}

/* The bystanders hold no end to write to: they end with the one who does, also when that is killed. */
static pid_t bystander(void)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        close(release.ends[1]);
        gate_wait(release);
        _exit(0);
    }
    return child;
}

static pid_t last_bystander;

static void populate(const char *axis, long count)
{
    release = gate_new();
    for (long i = 0; i < count; i++) {
        if (strcmp(axis, "processes") == 0) {
            last_bystander = bystander();
        } else if (strcmp(axis, "threads") == 0) {
            pthread_attr_t small;
            pthread_t thread;
            pthread_attr_init(&small);
            pthread_attr_setstacksize(&small, 65536);
            errno = pthread_create(&thread, &small, sleep_in_a_thread, NULL);
            must(errno == 0, "pthread_create");
        } else {
            struct sigevent event = {.sigev_notify = SIGEV_NONE};
            struct itimerspec far = {.it_value = {1000 + i, 0}};
            timer_t timer;
            must(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
            must(timer_settime(timer, 0, &far, NULL) == 0, "timer_settime");
        }
    }
    if (last_bystander == 0)
        last_bystander = bystander(); /* one to send to */
}

/* --- operations: each gives the nanoseconds of one */

static int64_t since(int64_t start)
{
    return now_ns(CLOCK_MONOTONIC) - start;
}

/* Per call, of so many in a row: for what is much shorter than the clock is exact. */
#define REPEATED(count, call, what)                  \
    int64_t start = now_ns(CLOCK_MONOTONIC);         \
    for (int i = 0; i < (count); i++)                \
        must((call) == 0, what);                     \
    return since(start) / (count)

static int64_t op_getitimer(void)
{
    struct itimerval value;
    REPEATED(20, getitimer(ITIMER_REAL, &value), "getitimer");
}

static int64_t op_clock(void)
{
    struct timespec value;
    REPEATED(20, syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &value), "clock_gettime");
}

static int64_t op_setitimer(void)
{
    const struct itimerval far = {{0, 0}, {500, 0}};
    REPEATED(20, setitimer(ITIMER_REAL, &far, NULL), "setitimer");
}

static int64_t op_nanosleep(void)
{
    const struct timespec one = {0, 1};
    REPEATED(5, nanosleep(&one, NULL), "nanosleep");
}

static int64_t op_timer(void)
{
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    struct itimerspec far = {.it_value = {700, 0}};
    timer_t timer;
    int64_t start = now_ns(CLOCK_MONOTONIC);
    must(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
    must(timer_settime(timer, 0, &far, NULL) == 0, "timer_settime");
    must(timer_delete(timer) == 0, "timer_delete");
    return since(start);
}

static volatile sig_atomic_t handled;

static void on_signal(int signo)
{
    (void)signo;
    handled++;
}

static int64_t op_signal(void)
{
    sig_atomic_t before = handled;
    int64_t start = now_ns(CLOCK_MONOTONIC);
    must(raise(SIGUSR1) == 0 && handled == before + 1, "signal to this thread");
    return since(start);
}

/* To the process: which of its threads takes it is to be found. */
static int64_t op_signal_process(void)
{
    sig_atomic_t before = handled;
    int64_t start = now_ns(CLOCK_MONOTONIC);
    must(kill(getpid(), SIGUSR1) == 0, "kill");
    while (handled == before)
        ;
    return since(start);
}

static int64_t op_kill(void)
{
    REPEATED(20, kill(last_bystander, SIGWINCH), "kill");
}

/* A group of one process among all the others. */
static int64_t op_kill_group(void)
{
    static pid_t alone;
    if (alone == 0) {
        alone = bystander();
        must(setpgid(alone, alone) == 0, "setpgid");
    }
    REPEATED(20, kill(-alone, 0), "kill a group");
}

static int64_t op_setpgid(void)
{
    static pid_t leader, other;
    if (leader == 0) {
        leader = bystander();
        other = bystander();
        must(setpgid(leader, leader) == 0, "setpgid");
    }
    int64_t start = now_ns(CLOCK_MONOTONIC);
    must(setpgid(other, leader) == 0, "setpgid to another's group");
    must(setpgid(other, other) == 0, "setpgid to its own");
    return since(start) / 2;
}

static int64_t op_setsid(void)
{
    int64_t took = -1;
    struct gate answer = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        int64_t start = now_ns(CLOCK_MONOTONIC);
        pid_t session = setsid();
        took = session < 0 ? -1 : since(start);
        _exit(write(answer.ends[1], &took, sizeof took) != sizeof took);
    }
    must(read(answer.ends[0], &took, sizeof took) == sizeof took && took >= 0, "setsid");
    must(reap(child) == 0, "child");
    gate_free(answer);
    return took;
}

/* A child's three moments. Each is timed in the parent: the fork, from its release to its being a zombie, and
 * taking the zombie, by a wait that any child could answer. */
#define WHOLE 3

static int64_t child_moment(int wanted)
{
    int64_t times[3], start;
    siginfo_t information;
    struct gate gate = gate_new();
    start = now_ns(CLOCK_MONOTONIC);
    pid_t child = fork_or_die();
    if (child == 0) {
        close(gate.ends[1]);
        gate_wait(gate);
        _exit(0);
    }
    times[0] = since(start);
    start = now_ns(CLOCK_MONOTONIC);
    gate_open(gate);
    must(waitid(P_PID, (id_t)child, &information, WEXITED | WNOWAIT) == 0, "waitid");
    times[1] = since(start);
    start = now_ns(CLOCK_MONOTONIC);
    must(waitpid(-1, NULL, 0) == child, "waitpid");
    times[2] = since(start);
    gate_free(gate);
    return wanted == WHOLE ? times[0] + times[1] + times[2] : times[wanted];
}

/* All three: what a child does before it waits for its gate falls into the first or the second, as the host
 * lets the one or the other run first. */
static int64_t op_life(void)
{
    return child_moment(WHOLE);
}

static int64_t op_wait_none(void)
{
    REPEATED(20, waitpid(-1, NULL, WNOHANG), "waitpid");
}

static int64_t op_fork(void)
{
    return child_moment(0);
}

static int64_t op_exit(void)
{
    return child_moment(1);
}

static int64_t op_wait(void)
{
    return child_moment(2);
}

static void *nothing(void *unused)
{
    return unused;
}

static int64_t op_thread(void)
{
    pthread_t thread;
    int64_t start = now_ns(CLOCK_MONOTONIC);
    errno = pthread_create(&thread, NULL, nothing, NULL);
    must(errno == 0 && pthread_join(thread, NULL) == 0, "thread");
    return since(start);
}

static const struct operation {
    const char *name;
    int64_t (*run)(void);
} operations[] = {
    {"getitimer", op_getitimer}, {"clock", op_clock}, {"setitimer", op_setitimer}, {"nanosleep", op_nanosleep},
    {"timer", op_timer}, {"signal", op_signal}, {"signal-process", op_signal_process}, {"kill", op_kill},
    {"kill-group", op_kill_group}, {"setpgid", op_setpgid}, {"setsid", op_setsid}, {"fork", op_fork},
    {"exit", op_exit}, {"wait", op_wait}, {"life", op_life}, {"wait-none", op_wait_none}, {"thread", op_thread},
};

static int by_size(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static void measure(const char *name)
{
    int64_t times[TIMES];
    for (size_t i = 0; i < COUNT_OF(operations); i++)
        if (strcmp(operations[i].name, name) == 0) {
            for (int warm = 0; warm < 5; warm++)
                operations[i].run();
            for (int turn = 0; turn < TIMES; turn++)
                times[turn] = operations[i].run();
            qsort(times, TIMES, sizeof times[0], by_size);
            say("%s median %lld", name, (long long)times[TIMES / 2]);
            return;
        }
    fprintf(stderr, "growth: no operation %s (see --list)\n", name);
    exit(2);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (size_t i = 0; i < COUNT_OF(operations); i++)
            say("%s", operations[i].name);
        return 0;
    }
    long count = argc == 4 ? strtol(argv[2], NULL, 10) : 0;
    bool known = argc == 4 && (strcmp(argv[1], "processes") == 0 || strcmp(argv[1], "threads") == 0 ||
                               strcmp(argv[1], "timers") == 0);
    if (!known || count < 0 || count > 100000) {
        fprintf(stderr, "usage: growth --list | growth processes|threads|timers N hold|OP[,OP...]\n");
        return 2;
    }
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    populate(argv[1], count);
    say("ready");
    if (strcmp(argv[3], "hold") == 0)
        sleep_ms(600000);
    else
        for (char *name = strtok(argv[3], ","); name != NULL; name = strtok(NULL, ","))
            measure(name);
    return 0; /* whereupon the bystanders read the end of file */
}
