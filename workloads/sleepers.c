/* N processes that all sleep: what a sentry keeps per process, and whether it wakes for nothing.
 * Prints "ready" once all are there.
 *
 * usage: sleepers N SECONDS */
#include "common.h"

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: sleepers N SECONDS\n");
        return 2;
    }
    long count = strtol(argv[1], NULL, 10);
    long milliseconds = (long)(strtod(argv[2], NULL) * 1000);
    struct gate release = gate_new(); /* its end of file lets them go: one wake, no signals */
    for (long i = 0; i < count; i++) {
        pid_t child = fork_or_die();
        if (child == 0) {
            char byte;
            close(release.ends[1]);
            sleep_ms(milliseconds);
            _exit(read(release.ends[0], &byte, 1) == 0 ? 0 : 1);
        }
    }
    say("ready");
    sleep_ms(milliseconds);
    close(release.ends[1]);
    long failed = 0;
    for (long i = 0; i < count; i++)
        failed += reap(-1) != 0;
    say("failed %ld", failed);
    return failed != 0;
}
