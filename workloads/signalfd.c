/* signalfd(2): what it reads, when it is readable, and who else may take the signal first. */
#include "common.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static volatile sig_atomic_t count;

static void note(int signo)
{
    (void)signo;
    count++;
}

static void block(int how, int first, int second)
{
    sigset_t set = set_of(first, second);
    pthread_sigmask(how, &set, NULL);
}

static int open_for(int first, int second)
{
    sigset_t set = set_of(first, second);
    return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static const char *next(int fd)
{
    static char text[120];
    struct signalfd_siginfo info;
    ssize_t got = read(fd, &info, sizeof info);
    if (got < 0)
        return error_name(errno);
    snprintf(text, sizeof text, "signal %u, code %d, own pid %s, uid %s, value %d", info.ssi_signo, info.ssi_code,
             yes((pid_t)info.ssi_pid == getpid()), yes(info.ssi_uid == getuid()), info.ssi_int);
    return text;
}

static int readable(int fd, int ms)
{
    struct pollfd waiter = {fd, POLLIN, 0};
    return poll(&waiter, 1, ms);
}

static int take(int signo)
{
    sigset_t set = set_of(signo, 0);
    struct timespec zero = {0, 0};
    return sigtimedwait(&set, NULL, &zero);
}

static bool is_pending(int signo)
{
    sigset_t set;
    sigpending(&set);
    return sigismember(&set, signo);
}

static void own(void)
{
    block(SIG_BLOCK, SIGUSR1, SIGRTMIN);
    int fd = open_for(SIGUSR1, SIGRTMIN);
    int ready = readable(fd, 0);
    say("nothing: readable %d, %s", ready, next(fd));
    kill(getpid(), SIGUSR1);
    say("kill: readable %d", readable(fd, 1000));
    say("pending %d", is_pending(SIGUSR1));
    say("%s", next(fd));
    say("then: readable %d, pending %d", readable(fd, 0), is_pending(SIGUSR1));
    raise(SIGUSR1);
    ready = readable(fd, 1000);
    say("raise: readable %d: %s", ready, next(fd));
    for (int i = 0; i < 3; i++)
        sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = i});
    struct signalfd_siginfo several[4];
    ssize_t got = readable(fd, 1000) == 1 ? read(fd, several, sizeof several) : -1;
    say("three at once: %s, in order %s", yes(got == 3 * sizeof several[0]), yes(several[0].ssi_int == 0 && several[2].ssi_int == 2));
    kill(getpid(), SIGUSR1);
    int got_by_wait = take(SIGUSR1) == SIGUSR1;
    ready = readable(fd, 0);
    say("sigwait takes it: %d, readable %d, %s", got_by_wait, ready, next(fd));
    kill(getpid(), SIGUSR1);
    signal(SIGUSR1, note);
    block(SIG_UNBLOCK, SIGUSR1, 0);
    say("a handler takes it: %d, readable %d", count, readable(fd, 0));
    block(SIG_BLOCK, SIGUSR1, 0);
    kill(getpid(), SIGUSR1);
    signal(SIGUSR1, SIG_IGN);
    say("ignored: readable %d", readable(fd, 0));
    signal(SIGUSR1, SIG_DFL);
    say("too small: %s", outcome(read(fd, several, 100)));
    close(fd);
    kill(getpid(), SIGUSR1);
    fd = open_for(SIGUSR1, 0);
    ready = readable(fd, 1000);
    say("pending before it was made: readable %d: %s", ready, next(fd));
    sigset_t other = set_of(SIGUSR2, 0);
    block(SIG_BLOCK, SIGUSR2, 0);
    kill(getpid(), SIGUSR2);
    say("of no interest: %d", readable(fd, 0));
    say("changed: %s", yes(signalfd(fd, &other, 0) == fd));
    ready = readable(fd, 1000);
    say("of interest now: %d: %s", ready, next(fd));
    close(fd);
    block(SIG_UNBLOCK, SIGUSR1, SIGRTMIN);
    block(SIG_UNBLOCK, SIGUSR2, 0);
}

/* An event loop with children, timers and a signal from another process, as systemd's or glib's. */
static void event_loop(void)
{
    sigset_t set = set_of(SIGUSR1, SIGCHLD);
    sigaddset(&set, SIGALRM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), loop = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event);
    pid_t parent = getpid();
    pid_t child = fork_or_die();
    if (child == 0) {
        kill(parent, SIGUSR1);
        _exit(7);
    }
    alarm(1);
    bool seen_child = false, seen_user = false, seen_alarm = false;
    while (!seen_child || !seen_user || !seen_alarm) {
        if (epoll_wait(loop, &event, 1, 5000) != 1) {
            say("nothing came: %d %d %d", seen_child, seen_user, seen_alarm);
            break;
        }
        struct signalfd_siginfo info;
        while (read(fd, &info, sizeof info) == sizeof info) {
            if (info.ssi_signo == SIGUSR1)
                say("user's: code %d, the child's pid %s", info.ssi_code, yes((pid_t)info.ssi_pid == child)), seen_user = true;
            else if (info.ssi_signo == SIGCHLD)
                seen_child = info.ssi_code == CLD_EXITED && info.ssi_status == 7 && (pid_t)info.ssi_pid == child;
            else if (info.ssi_signo == SIGALRM)
                seen_alarm = true;
        }
    }
    say("child %d, alarm %d: %s", seen_child, seen_alarm, status_text(reap(child)));
    close(loop);
    close(fd);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static void timers(void)
{
    block(SIG_BLOCK, SIGRTMIN, 0);
    int fd = open_for(SIGRTMIN, 0);
    timer_t timer;
    struct sigevent how = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 42};
    timer_create(CLOCK_MONOTONIC, &how, &timer);
    struct itimerspec every = {{0, 5 * MS}, {0, 5 * MS}};
    timer_settime(timer, 0, &every, NULL);
    for (int i = 0; i < 3; i++) {
        int ready = readable(fd, 5000);
        struct signalfd_siginfo info = {0};
        if (ready == 1 && read(fd, &info, sizeof info) < 0)
            exit(88);
        say("timer: %d, code %d, value %d", ready, info.ssi_code, info.ssi_int);
    }
    timer_delete(timer);
    close(fd);
    while (take(SIGRTMIN) > 0)
        ;
    block(SIG_UNBLOCK, SIGRTMIN, 0);
}

static void *send_later(void *argument)
{
    sleep_ms(50);
    kill(getpid(), SIGUSR1);
    return argument;
}

static void waiting(void)
{
    block(SIG_BLOCK, SIGUSR1, 0);
    sigset_t set = set_of(SIGUSR1, 0);
    int fd = signalfd(-1, &set, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, send_later, NULL);
    say("a read that waits: %s", next(fd));
    pthread_join(thread, NULL);
    pid_t child = fork_or_die();
    if (child == 0) {
        /* Whose signals it reads is the reader's business. */
        kill(getpid(), SIGUSR1);
        say("in a child: %s", next(fd));
        _exit(0);
    }
    say("%s", status_text(reap(child)));
    close(fd);
    block(SIG_UNBLOCK, SIGUSR1, 0);
}

/* A thread serves a signalfd while every thread blocks everything; another process sends. */
static void *serve(void *argument)
{
    int fd = *(int *)argument, ordered = 0, users = 0, wrong = 0;
    while (ordered < 200) {
        struct pollfd waiter = {fd, POLLIN, 0};
        if (poll(&waiter, 1, 10000) != 1)
            break;
        struct signalfd_siginfo infos[8];
        ssize_t got = read(fd, infos, sizeof infos);
        for (ssize_t i = 0; i < got / (ssize_t)sizeof infos[0]; i++) {
            if (infos[i].ssi_signo == SIGUSR1)
                users++, wrong += infos[i].ssi_code != SI_USER || (pid_t)infos[i].ssi_pid == getpid();
            else
                wrong += infos[i].ssi_int != ordered++ || infos[i].ssi_code != SI_QUEUE;
        }
    }
    say("queued ones in order: %d, the other came: %s, wrong: %d", ordered, yes(users > 0), wrong);
    return NULL;
}

static void threads(void)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    sigset_t set = set_of(SIGUSR1, SIGRTMIN + 1);
    int fd = signalfd(-1, &set, SFD_CLOEXEC);
    pid_t parent = getpid(), child = fork_or_die();
    if (child == 0) {
        for (int i = 0; i < 200; i++) {
            kill(parent, SIGUSR1);
            while (sigqueue(parent, SIGRTMIN + 1, (union sigval){.sival_int = i}) < 0)
                sleep_ms(1);
        }
        _exit(0);
    }
    pthread_t thread;
    pthread_create(&thread, NULL, serve, &fd);
    pthread_join(thread, NULL);
    say("%s", status_text(reap(child)));
    close(fd);
    pid_t emptied = fork_or_die(); /* what is left pending is not inherited */
    if (emptied == 0) {
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        _exit(0);
    }
    say("%s", status_text(reap(emptied)));
    while (take(SIGUSR1) > 0)
        ;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"own", own}, {"event loop", event_loop}, {"timers", timers}, {"waiting", waiting},
        {"threads", threads},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
