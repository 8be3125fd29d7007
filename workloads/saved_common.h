/* What the workloads saved_*.c share: each section brings about one situation and makes a marker call in it, so that
 * a checkpoint is taken just there (tests/workloads/test_save_loop.py). What is printed after it tells whether all is
 * still as it was. */
#ifndef SAVED_COMMON_H
#define SAVED_COMMON_H

#include "common.h"

/* Peers that are to wait have announced that they are about to; this is for the rest of the way. Nothing that is
 * printed depends on their having arrived: it makes likely that the checkpoint finds them waiting. */
static inline void let_them_wait(void)
{
    sleep_ms(20);
}

/* A child that runs a function and ends with what that returns. */
static inline pid_t child_of(int (*body)(void))
{
    pid_t child = fork_or_die();
    if (child == 0)
        _exit(body());
    return child;
}

static inline void install(int signo, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(signo, &action, NULL);
}

static inline void block(int how, int first, int second)
{
    sigset_t set = set_of(first, second);
    sigprocmask(how, &set, NULL);
}

static inline bool is_blocked(int signo)
{
    sigset_t set;
    sigprocmask(SIG_BLOCK, NULL, &set);
    return sigismember(&set, signo);
}

static inline bool is_pending(int signo)
{
    sigset_t set;
    sigpending(&set);
    return sigismember(&set, signo);
}

#endif
