/* Many armed timers of one kernel: what setting one of them costs, and whether it wakes for nothing.
 *
 * So many timers are armed for an hour ahead, by several processes, since one may have only as many as it may
 * have pending signals (RLIMIT_SIGPENDING). The first then sets one of its own again and again, prints what that
 * cost, "ready", and all sleep.
 *
 * usage: armed TIMERS SECONDS */
#include "common.h"

enum { EACH = 50000, SETS = 2000, ROUNDS = 5 };

static timer_t armed(int64_t ahead)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    struct itimerspec setting = {.it_value = {3600 + ahead / 1000, ahead % 1000 * MS}};
    timer_t timer;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0 || timer_settime(timer, 0, &setting, NULL) < 0) {
        perror("armed");
        exit(1);
    }
    return timer;
}

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: armed TIMERS SECONDS\n");
        return 2;
    }
    long count = strtol(argv[1], NULL, 10), milliseconds = (long)(strtod(argv[2], NULL) * 1000);
    struct gate there = gate_new(), release = gate_new();
    long others = (count - 1) / EACH;
    for (long i = 0; i < others; i++) {
        if (fork_or_die() == 0) {
            char byte;
            close(release.ends[1]);
            for (long n = 0; n < EACH; n++)
                armed(n * 7919 % 3000000);
            gate_open(there);
            _exit(read(release.ends[0], &byte, 1) == 0 ? 0 : 1);
        }
    }
    timer_t mine = armed(0);
    for (long n = 1; n < count - others * EACH; n++)
        armed(n * 7919 % 3000000);
    for (long i = 0; i < others; i++)
        gate_wait(there);
    double times[ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        int64_t start = now_ns(CLOCK_MONOTONIC);
        for (long n = 0; n < SETS; n++) {
            struct itimerspec setting = {.it_value = {3600 + n * 31 % 3000, 0}};
            timer_settime(mine, 0, &setting, NULL);
        }
        times[round] = (double)(now_ns(CLOCK_MONOTONIC) - start) / SETS;
    }
    qsort(times, ROUNDS, sizeof times[0], by_size);
    say("ready %.1f", times[ROUNDS / 2]);
    sleep_ms(milliseconds);
    close(release.ends[1]);
    long failed = 0;
    for (long i = 0; i < others; i++)
        failed += reap(-1) != 0;
    return failed != 0;
}
