/* One thread sets a signal to be ignored, to be caught, and to be ignored again, without a pause, while it is sent to
 * another one. What is ignored in between is chance; what must not be lost is what comes once it is caught for good. */
#include "common.h"

#include <pthread.h>

enum { CYCLES = 1000, MORE = 20 };

static volatile int caught, stop;
static pthread_t taker;

static void handler(int signo)
{
    (void)signo;
    __atomic_add_fetch(&caught, 1, __ATOMIC_SEQ_CST);
}

static void set(void (*function)(int))
{
    struct sigaction action = {.sa_handler = function, .sa_mask = set_of(SIGUSR2, 0)};
    sigaction(SIGUSR1, &action, NULL);
}

/* What the taker does meanwhile; each sends itself the signal, or is sent it. */
static void *sends_itself(void *unused)
{
    while (!stop)
        raise(SIGUSR1);
    return unused;
}

static void *computes(void *unused)
{
    while (!stop)
        ;
    return unused;
}

static void *suspends(void *unused)
{
    sigset_t blocked = set_of(SIGUSR1, 0), open = set_of(SIGUSR2, 0);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    while (!stop)
        sigsuspend(&open);
    return unused;
}

static void *sleeps(void *unused)
{
    while (!stop)
        usleep(300);
    return unused;
}

static void *sends_the_taker(void *unused)
{
    while (!stop)
        pthread_kill(taker, SIGUSR1);
    return unused;
}

/* The main thread blocks it, so whoever else takes it is the taker. */
static void *sends_the_process(void *unused)
{
    sigset_t set = set_of(SIGUSR1, 0);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    while (!stop)
        kill(getpid(), SIGUSR1);
    return unused;
}

static bool more(void)
{
    int64_t end = now_ns(CLOCK_MONOTONIC) + 60000 * MS;
    for (int before = caught; caught < before + MORE;)
        if (now_ns(CLOCK_MONOTONIC) > end)
            return false;
    return true;
}

static void contest(const char *what, void *(*takes)(void *), void *(*sends)(void *))
{
    pthread_t sender;
    sigset_t blocked = set_of(SIGUSR1, 0), before;
    stop = caught = 0;
    set(handler);
    pthread_create(&taker, NULL, takes, NULL);
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    if (sends)
        pthread_create(&sender, NULL, sends, NULL);
    for (int i = 0; i < CYCLES; i++) {
        set(SIG_IGN);
        set(handler);
    }
    bool first = more();
    for (int i = 0; i < CYCLES; i++) {
        set(handler);
        set(SIG_IGN);
    }
    set(handler);
    bool second = more();
    say("%s: caught for good %s, and once more %s", what, yes(first), yes(second));
    stop = 1;
    if (sends)
        pthread_join(sender, NULL);
    pthread_kill(taker, SIGUSR1); /* out of its wait */
    pthread_join(taker, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void own(void)
{
    contest("sent by itself", sends_itself, NULL);
}

static void others(void)
{
    contest("to a thread that computes", computes, sends_the_taker);
    contest("to a thread that sleeps", sleeps, sends_the_taker);
    contest("to a thread in sigsuspend", suspends, sends_the_taker);
}

static void process(void)
{
    contest("to a process whose thread computes", computes, sends_the_process);
    contest("to a process whose thread sleeps", sleeps, sends_the_process);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {{"own", own}, {"others", others}, {"process", process}};
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
