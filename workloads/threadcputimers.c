/* Many periodic timers on a CPU clock that hardly advances: 1000 timers of 10 ms on the thread's own CPU time
 * while the thread sleeps for 5 s. A kernel that polls its timers burns CPU here; one that lets a CPU timer
 * expire only when its clock is advanced does nothing at all.
 *
 * usage: threadcputimers [SECONDS [TIMERS]] */
#include <err.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 5;
    long timers = argc > 2 ? strtol(argv[2], NULL, 10) : 1000;
    const struct timespec period = {.tv_sec = 0, .tv_nsec = 10 * 1000 * 1000};
    const struct itimerspec setting = {.it_interval = period, .it_value = period};

    for (long i = 0; i < timers; i++) {
        struct sigevent event = {.sigev_notify = SIGEV_NONE};
        timer_t timer;
        if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) < 0)
            err(1, "timer_create, timer %ld", i);
        if (timer_settime(timer, 0, &setting, NULL) < 0)
            err(1, "timer_settime, timer %ld", i);
    }

    struct timespec end;
    if (clock_gettime(CLOCK_MONOTONIC, &end) < 0)
        err(1, "clock_gettime");
    end.tv_sec += (time_t)seconds;
    end.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    if (end.tv_nsec >= 1000000000) {
        end.tv_sec++;
        end.tv_nsec -= 1000000000;
    }
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) != 0)
        ;
    return 0;
}
