/* Guests of test_wallclock.py: timerfds of a sandbox that moves its wall clock. */
#include "common.h"

#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

#define SECOND 1000000000LL
#define HOUR (3600 * SECOND)

static struct itimerspec at(int64_t when, int64_t interval)
{
    return (struct itimerspec){.it_value = {when / SECOND, when % SECOND}, .it_interval = {interval / SECOND, interval % SECOND}};
}

static void step(int64_t by)
{
    int64_t then = now_ns(CLOCK_REALTIME) + by;
    struct timespec value = {then / SECOND, then % SECOND};
    if (clock_settime(CLOCK_REALTIME, &value) != 0)
        say("clock_settime: %s", outcome(-1));
}

static int made(int flags, int64_t in, int64_t interval)
{
    int fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
    struct itimerspec setting = at(in + (flags & TFD_TIMER_ABSTIME ? now_ns(CLOCK_REALTIME) : 0), interval);
    if (timerfd_settime(fd, flags, &setting, NULL) != 0)
        say("timerfd_settime: %s", outcome(-1));
    return fd;
}

static int64_t left(int fd)
{
    struct itimerspec now;
    if (timerfd_gettime(fd, &now) != 0)
        return -1;
    return now.it_value.tv_sec * SECOND + now.it_value.tv_nsec;
}

static bool near(int64_t a, int64_t b)
{
    return llabs(a - b) < 5 * SECOND;
}

static const char *reads(int fd)
{
    static char text[2][48];
    static int turn;
    char *to = text[turn ^= 1];
    uint64_t ticks = 0;
    ssize_t size = read(fd, &ticks, sizeof ticks);
    if (size < 0)
        return error_name(errno);
    snprintf(to, 48, "%zd bytes, %lu", size, (unsigned long)ticks);
    return to;
}

static void say_reads(const char *what, int first, int second)
{
    const char *one = reads(first), *two = reads(second);
    say("%s: read %s, then %s", what, one, two);
}

static int ready(int fd)
{
    struct pollfd one = {fd, POLLIN, 0};
    return poll(&one, 1, 0);
}

static void following(void)
{
    int absolute = made(TFD_TIMER_ABSTIME, HOUR, 0), relative = made(0, HOUR, 0), often = made(TFD_TIMER_ABSTIME, HOUR, SECOND);
    int far = made(TFD_TIMER_ABSTIME, 5000000000 * SECOND, 0), copy = dup(absolute), monotonic = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec setting = {.it_value = {INT64_MAX, 0}};
    int ever = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
    timerfd_settime(ever, TFD_TIMER_ABSTIME, &setting, NULL);
    setting = at(now_ns(CLOCK_MONOTONIC) + HOUR, 0);
    timerfd_settime(monotonic, TFD_TIMER_ABSTIME, &setting, NULL);
    struct gate go = gate_new();
    pid_t child = fork_or_die(); /* has them too: they move once */
    if (child == 0) {
        gate_wait(go);
        _exit(0);
    }
    step(HOUR / 2);
    say("half an hour is left: %s, of the copy %s", yes(near(left(absolute), HOUR / 2)), yes(near(left(copy), HOUR / 2)));
    say("of the relative one an hour: %s, on MONOTONIC %s", yes(near(left(relative), HOUR)), yes(near(left(monotonic), HOUR)));
    say("of the periodic one: %s", yes(near(left(often), HOUR / 2)));
    say("of the one far away: %s", yes(near(left(far), 5000000000 * SECOND - HOUR / 2)));
    say("of the one for ever: %s", yes(left(ever) > 7000000000 * SECOND));
    step(-HOUR / 2);
    say("and back: %s", yes(near(left(absolute), HOUR)));
    say("nothing to read: %s", reads(absolute));
    int epoll = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN | EPOLLET}, got;
    epoll_ctl(epoll, EPOLL_CTL_ADD, absolute, &wanted);
    step(HOUR + 10 * SECOND);
    say("due by a step, epoll: %d", epoll_wait(epoll, &got, 1, 10000));
    say("due: %s", yes(ready(copy)));
    say_reads("due", absolute, copy);
    struct pollfd waiter = {often, POLLIN, 0};
    poll(&waiter, 1, 10000);
    uint64_t ticks = 0;
    if (read(often, &ticks, sizeof ticks) != sizeof ticks)
        say("read failed");
    say("periods that a step made: %s", yes(ticks >= 11 && ticks < 16));
    say("and it goes on: %s", yes(left(often) > 0 && left(often) <= SECOND));
    gate_open(go);
    reap(child);
}

static void unread(void)
{
    /* Three periods and more are waiting to be read when the clock is set: they are not lost. */
    int fd = made(TFD_TIMER_ABSTIME, 10 * MS, 10 * SECOND);
    struct pollfd waiter = {fd, POLLIN, 0};
    poll(&waiter, 1, 10000);
    step(30 * SECOND);
    uint64_t ticks = 0;
    if (read(fd, &ticks, sizeof ticks) != sizeof ticks)
        say("read failed");
    say("periods with those before: %s", yes(ticks == 4));
    int once = made(TFD_TIMER_ABSTIME, 10 * MS, 0);
    waiter.fd = once;
    poll(&waiter, 1, 10000);
    step(30 * SECOND);
    say_reads("expired once", once, once);
}

struct reader {
    int fd;
    int error;
    ssize_t size;
    bool vector;
    pthread_t thread;
    volatile pid_t tid;
};

static void *blocked(void *argument)
{
    struct reader *r = argument;
    uint64_t ticks;
    struct iovec part = {&ticks, sizeof ticks};
    r->tid = (pid_t)syscall(SYS_gettid);
    r->size = r->vector ? readv(r->fd, &part, 1) : read(r->fd, &ticks, sizeof ticks);
    r->error = errno;
    return NULL;
}

static void *polling(void *argument)
{
    struct reader *r = argument;
    struct pollfd one = {r->fd, POLLIN, 0};
    r->tid = (pid_t)syscall(SYS_gettid);
    r->size = poll(&one, 1, 30000);
    return NULL;
}

static void *in_epoll(void *argument)
{
    struct reader *r = argument;
    int epoll = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN}, got;
    epoll_ctl(epoll, EPOLL_CTL_ADD, r->fd, &wanted);
    r->tid = (pid_t)syscall(SYS_gettid);
    r->size = epoll_wait(epoll, &got, 1, 30000);
    r->error = r->size < 0 ? errno : 0;
    return NULL;
}

static void start(struct reader *r, void *(*how)(void *), bool vector)
{
    const int both = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET;
    *r = (struct reader){.fd = made(both, HOUR, 0), .vector = vector};
    if (how == blocked)
        fcntl(r->fd, F_SETFL, 0);
    pthread_create(&r->thread, NULL, how, r);
    char path[64], text[512], *end = NULL;
    do {
        sched_yield();
        snprintf(path, sizeof path, "/proc/self/task/%d/stat", r->tid);
        int fd = open(path, O_RDONLY);
        ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        close(fd);
        text[size > 0 ? size : 0] = 0;
        end = strrchr(text, ')');
    } while (r->tid == 0 || end == NULL || end[2] != 'S');
}

static void cancelled(void)
{
    const int both = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET;
    for (int round = 0; round < 2; round++) { /* the second time its tasks are seen at every call already */
        struct reader readers[4];
        start(&readers[0], blocked, false);
        start(&readers[1], blocked, true);
        start(&readers[2], polling, false);
        start(&readers[3], in_epoll, false);
        int plain = made(both, HOUR, 0), off = made(both, HOUR, 0), reset = made(both, HOUR, 0), shared = made(both, HOUR, 0);
        int without = made(TFD_TIMER_ABSTIME, HOUR, 0), relative = made(0, HOUR, 0);
        struct itimerspec none = {0}, again = at(now_ns(CLOCK_REALTIME) + HOUR, 0);
        timerfd_settime(off, both, &none, NULL);
        pid_t child = fork_or_die();
        if (child == 0) {
            struct pollfd one = {shared, POLLIN, 0};
            poll(&one, 1, 30000);
            say_reads("in a child", shared, shared);
            _exit(0);
        }
        step(60 * SECOND);
        reap(child);
        for (int i = 0; i < 4; i++)
            pthread_join(readers[i].thread, NULL);
        say("blocked in read: %zd %s", readers[0].size, error_name(readers[0].error));
        say("blocked in readv: %zd %s", readers[1].size, error_name(readers[1].error));
        say("in poll: %zd, %s", readers[2].size, reads(readers[2].fd));
        say("in epoll: %zd %s", readers[3].size, error_name(readers[3].error));
        say_reads("then", readers[3].fd, readers[3].fd);
        say("gettime before reading: %s", yes(near(left(plain), HOUR - 60 * SECOND)));
        say("readable %d", ready(plain));
        say_reads("then", plain, plain);
        say("and readable %d", ready(plain));
        say("and it is set as before: %s", yes(near(left(plain), HOUR - 60 * SECOND)));
        say("disarmed: readable %d", ready(off));
        say_reads("disarmed", off, off);
        say("disarmed still: %ld", (long)left(off));
        int result = timerfd_settime(reset, both, &again, NULL);
        say("set again: %s", outcome(result));
        say_reads("set again", reset, reset);
        say("without the flag: readable %d", ready(without));
        say("relative: readable %d", ready(relative));
        say("shared: %s", reads(shared));
        int moved = made(both, HOUR, 0);
        step(SECOND);
        step(-SECOND);
        say_reads("two steps, one answer", moved, moved);
        say("moved by both: %s", yes(near(left(moved), HOUR)));
        for (size_t i = 0; i < COUNT_OF(readers); i++)
            close(readers[i].fd);
        const int all[] = {plain, off, reset, shared, without, relative, moved};
        for (size_t i = 0; i < COUNT_OF(all); i++)
            close(all[i]);
    }
}

/* ---- steps while everything goes on: no call may return EINTR for one, nor wait for long */

static volatile bool over;
static int pipe_ends[2];

static void *many_epolls(void *faults)
{
    int epoll = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN}, got;
    epoll_ctl(epoll, EPOLL_CTL_ADD, pipe_ends[0], &wanted);
    while (!over)
        *(int *)faults += epoll_wait(epoll, &got, 1, 3) < 0;
    return NULL;
}

static void *many_semaphores(void *faults)
{
    sem_t semaphore;
    sem_init(&semaphore, 0, 0);
    while (!over) {
        int64_t then = now_ns(CLOCK_REALTIME) + 3 * MS;
        struct timespec until = {then / SECOND, then % SECOND};
        *(int *)faults += sem_timedwait(&semaphore, &until) == 0 || errno != ETIMEDOUT;
    }
    return NULL;
}

static void *many_reads(void *faults)
{
    int fds[2];
    char byte;
    if (pipe(fds) != 0)
        exit(98);
    pid_t child = fork_or_die();
    if (child == 0) {
        close(fds[0]);
        while (write(fds[1], "x", 1) == 1)
            sleep_ms(1);
        _exit(0);
    }
    close(fds[1]);
    signal(SIGPIPE, SIG_IGN);
    while (!over)
        *(int *)faults += read(fds[0], &byte, 1) != 1;
    kill(child, SIGKILL);
    reap(child);
    return NULL;
}

static void *many_timerfds(void *faults)
{
    const int both = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET;
    int fd = timerfd_create(CLOCK_REALTIME, 0), found = 0;
    while (!over) {
        struct itimerspec setting = at(now_ns(CLOCK_REALTIME) + 2 * HOUR, 0);
        uint64_t ticks;
        if (timerfd_settime(fd, both, &setting, NULL) == 0)
            *(int *)faults += read(fd, &ticks, sizeof ticks) >= 0 || errno != ECANCELED;
        else
            *(int *)faults += errno != ECANCELED;
        found++;
    }
    *(int *)faults += found < 5;
    return NULL;
}

static void *many_forks(void *faults)
{
    while (!over) {
        pid_t child = fork();
        if (child == 0)
            _exit(5);
        *(int *)faults += reap(child) != 5 << 8;
    }
    return NULL;
}

static void under_way(void)
{
    static const struct { const char *name; void *(*run)(void *); } all[] = {
        {"epoll_wait", many_epolls}, {"sem_timedwait", many_semaphores}, {"read", many_reads},
        {"cancelled timerfds", many_timerfds}, {"fork", many_forks},
    };
    pthread_t threads[COUNT_OF(all)];
    int faults[COUNT_OF(all)] = {0};
    sigset_t children, before;
    if (pipe(pipe_ends) != 0)
        exit(98);
    sigemptyset(&children); /* SIGCHLD is for the main thread: it is not to wake the others */
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, &before);
    for (size_t i = 0; i < COUNT_OF(all); i++)
        pthread_create(&threads[i], NULL, all[i].run, &faults[i]);
    sigprocmask(SIG_SETMASK, &before, NULL);
    for (int i = 0; i < 60; i++) {
        sleep_ms(5);
        step(SECOND);
    }
    over = true;
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        while (pthread_tryjoin_np(threads[i], NULL) != 0) {
            sleep_ms(5);
            step(SECOND); /* whoever has begun to wait is told */
        }
        say("%s: %d faults", all[i].name, faults[i]);
    }
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {{"following", following}, {"unread", unread}, {"cancelled", cancelled}, {"under-way", under_way}};
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
