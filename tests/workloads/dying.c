/* Processes that sleep, stand in a job-control stop, or have threads, killed and continued all the time, until the
 * standard input ends: a save finds some of them dying whenever it comes. Prints what waitpid(2) said that was wrong. */
#include "common.h"

#include <pthread.h>

enum { SLEEPS, STOPPED, ENDS_WITH_THREADS, KINDS, CHILDREN = 2 * KINDS };

static void *sleeper(void *unused)
{
    for (;;)
        pause();
    return unused;
}

static void child(int kind)
{
    pthread_t thread;
    if (kind == STOPPED)
        raise(SIGSTOP);
    for (int i = 0; kind == ENDS_WITH_THREADS && i < 4; i++)
        pthread_create(&thread, NULL, sleeper, NULL);
    if (kind == ENDS_WITH_THREADS) {
        usleep(500);
        _exit(0);
    }
    for (;;)
        pause();
}

int main(void)
{
    struct pollfd input = {0, POLLIN, 0};
    puts("begun");
    fflush(stdout);
    for (int round = 0; poll(&input, 1, 0) == 0; round++) {
        pid_t children[CHILDREN];
        for (int i = 0; i < CHILDREN; i++) {
            children[i] = fork();
            if (children[i] == 0)
                child(i % KINDS);
        }
        usleep(800);
        for (int i = 0; i < CHILDREN; i++)
            if (i % KINDS == STOPPED && round % 2)
                kill(children[i], SIGCONT);
        for (int i = 0; i < CHILDREN; i++)
            kill(children[i], SIGKILL);
        for (int i = 0; i < CHILDREN; i++) {
            int status = -1;
            pid_t pid = waitpid(children[i], &status, 0);
            bool ended = i % KINDS == ENDS_WITH_THREADS && status == 0;
            if (pid != children[i] || (status != SIGKILL && !ended))
                say("child %d: %d, status %#x", i, pid == children[i], status);
        }
    }
    say("all as it should be");
    return 0;
}
