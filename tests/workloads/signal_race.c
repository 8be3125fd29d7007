/* Two processes signal each other in turn, so many times, around each way to wait. Each signal says that the other
 * may go on, so one that is lost is a hang, and one too many shows in the count.
 *
 * usage: signal_race ROUNDS [KIND...] */
#include "common.h"

#include <linux/futex.h>
#include <setjmp.h>
#include <sys/prctl.h>

static volatile int came;
static int pipe_ends[2];
static sigjmp_buf back;
static volatile sig_atomic_t jumping;
static sigset_t open_mask;

static void on_signal(int signo)
{
    (void)signo;
    came++;
    if (jumping) {
        jumping = 0;
        siglongjmp(back, 1);
    }
}

static void on_signal_write(int signo)
{
    (void)signo;
    came++;
    if (write(pipe_ends[1], "x", 1) != 1)
        _exit(90);
}

static void on_signal_wake(int signo)
{
    (void)signo;
    __atomic_add_fetch(&came, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &came, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Should the parent end early: now, too, if it has ended before this. */
static void end_with(pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(95);
}

static void until_sigsuspend(int wanted)
{
    while (came < wanted)
        sigsuspend(&open_mask);
}

/* The signal is blocked outside: it comes inside, before the wait or in it, and the handler jumps out of both. */
static void jump_out(int wanted, void (*wait_somehow)(void))
{
    sigset_t blocked;
    if (sigsetjmp(back, 1) == 0) {
        jumping = 1;
        sigprocmask(SIG_SETMASK, &open_mask, &blocked);
        for (;;)
            wait_somehow();
    }
    if (came != wanted)
        _exit(91);
}

static void a_pause(void)
{
    pause();
}

static void a_sleep(void)
{
    struct timespec long_time = {1000, 0};
    nanosleep(&long_time, &long_time);
}

static void a_timed_wait(void)
{
    sigset_t other;
    struct timespec long_time = {1000, 0};
    sigemptyset(&other);
    sigaddset(&other, SIGUSR2);
    sigtimedwait(&other, NULL, &long_time);
}

static pid_t sleeper;

static void a_wait4(void)
{
    waitpid(sleeper, NULL, 0);
}

/* A child that never ends by itself. It is made while the signal is blocked, since the handler must not jump out of
 * fork(), and ended by end_sleeper: whatever is left would hold the reader of our output. */
static void begin_sleeper(void)
{
    pid_t parent = getpid();
    if ((sleeper = fork_or_die()) == 0) {
        end_with(parent);
        for (;;)
            sleep_ms(1000000);
    }
}

static void end_sleeper(void)
{
    kill(sleeper, SIGKILL);
    reap(sleeper);
}

static void until_pause(int wanted)
{
    jump_out(wanted, a_pause);
}

static void until_sleep(int wanted)
{
    jump_out(wanted, a_sleep);
}

static void until_timed_wait(int wanted)
{
    jump_out(wanted, a_timed_wait);
}

static void until_wait4(int wanted)
{
    jump_out(wanted, a_wait4);
}

static void until_read(int wanted)
{
    char byte;
    while (read(pipe_ends[0], &byte, 1) < 0)
        if (errno != EINTR)
            _exit(92);
    if (came != wanted)
        _exit(93);
}

static void until_futex(int wanted)
{
    int seen;
    while ((seen = __atomic_load_n(&came, __ATOMIC_SEQ_CST)) < wanted)
        syscall(SYS_futex, &came, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static const struct kind {
    const char *name;
    void (*handler)(int);
    void (*until)(int wanted);
    int flags;
    bool blocked; /* outside of the wait */
} kinds[] = {
    {"sigsuspend", on_signal, until_sigsuspend, 0, true},
    {"pause", on_signal, until_pause, 0, true},
    {"nanosleep", on_signal, until_sleep, 0, true},
    {"sigtimedwait", on_signal, until_timed_wait, 0, true},
    {"wait4", on_signal, until_wait4, SA_RESTART, true},
    {"read", on_signal_write, until_read, 0, false},
    {"read, restarted", on_signal_write, until_read, SA_RESTART, false},
    {"futex", on_signal_wake, until_futex, 0, false},
};

static int play(const struct kind *kind, pid_t other, int rounds, bool first)
{
    if (kind->until == until_wait4)
        begin_sleeper();
    for (int i = 1; i <= rounds; i++) {
        if (!first || i > 1)
            kind->until(first ? i - 1 : i);
        kill(other, SIGUSR1);
    }
    if (first)
        kind->until(rounds);
    if (kind->until == until_wait4)
        end_sleeper();
    return came == rounds ? 0 : 1;
}

static int both(const struct kind *kind, int rounds)
{
    struct sigaction action = {.sa_handler = kind->handler, .sa_flags = kind->flags};
    sigset_t blocked, before;
    came = 0;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    open_mask = before;
    sigaction(SIGUSR1, &action, NULL);
    pid_t parent = getpid(), child = fork_or_die();
    if (child == 0)
        end_with(parent);
    if (pipe(pipe_ends) < 0) /* each its own */
        exit(94);
    if (!kind->blocked)
        sigprocmask(SIG_SETMASK, &before, NULL);
    if (child == 0)
        _exit(play(kind, parent, rounds, false));
    int ours = play(kind, child, rounds, true), theirs = reap(child);
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    say("%s: %s %s", kind->name, ours == 0 ? "all came" : "NOT ALL CAME", status_text(theirs));
    return ours;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 1000, failed = 0;
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        bool wanted = argc < 3;
        for (int n = 2; n < argc; n++)
            wanted |= strcmp(argv[n], kinds[i].name) == 0;
        if (wanted)
            failed |= both(&kinds[i], rounds);
    }
    return failed;
}
