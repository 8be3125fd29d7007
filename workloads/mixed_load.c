/* A mixed load that checks itself: `mixed_load SECONDS [SEED [WORKERS]]`.
 *
 * The first process keeps some workers going, each of which plays one scenario (mixed_load_parts.h), and expects
 * every one to exit with 0. A scenario checks each wait status, counts each signal and compares each byte, so that
 * a wake-up, a signal or a zombie that gets lost is a failure or a hang, and both are found. After each round
 * nothing is left but the first process: it says so by getpgid(QUIET), which natively is only ESRCH.
 *
 * `mixed_load once SCENARIO SEED` repeats one. `mixed_load tree` makes processes and threads of all kinds, puts
 * the terminal into raw mode and ends by itself after some milliseconds. */
#include "common.h"
#include "mixed_load_parts.h"

#include <termios.h>

#define QUIET 0x7ffffffe
#define ROUND 60 /* scenarios */
#define MOST_WORKERS 32

static const struct {
    const char *name;
    void (*play)(void);
} scenarios[] = {
    {"storm", storm},       {"queue", queue},         {"pingpong", pingpong}, {"kills", kills},
    {"pipeline", pipeline}, {"threads", threads},     {"timers", timers},     {"stops", stops},
    {"exec", executes},     {"spawn", spawns},        {"groups", groups},     {"orphans", orphans},
    {"sigchld", sigchld},   {"exitgroup", exitgroup}, {"nowait", nowait},     {"restart", restart},
    {"thread_exec", thread_exec},
};

static void worker(size_t scenario, uint64_t seed)
{
    scenario_name = scenarios[scenario].name;
    scenario_seed = random_state = seed;
    scenarios[scenario].play();
    _exit(0);
}

static int rounds(int64_t seconds, uint64_t seed, int workers)
{
    int64_t end = now_ns(CLOCK_MONOTONIC) + seconds * 1000 * MS;
    uint64_t jobs = 0, adopted = 0;
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    random_state = seed;
    for (long round = 1; round == 1 || now_ns(CLOCK_MONOTONIC) < end; round++) {
        pid_t running[MOST_WORKERS] = {0};
        int count = 0, started = 0;
        for (;;) {
            if (count < workers && started < ROUND) {
                /* Each scenario in turn, so that every round has all; the order of their ends is chance. */
                uint64_t job_seed = chance() | 1;
                pid_t child = fork_or_die();
                if (child == 0)
                    worker(jobs % COUNT_OF(scenarios), job_seed);
                for (int i = 0; i < workers; i++)
                    if (!running[i]) {
                        running[i] = child;
                        break;
                    }
                count++, started++, jobs++;
                continue;
            }
            int status;
            pid_t got = waitpid(-1, &status, 0);
            if (got < 0 && errno == EINTR)
                continue;
            if (got < 0) {
                if (errno != ECHILD || count) {
                    say("FAILED: wait: %s with %d workers", error_name(errno), count);
                    return 1;
                }
                break;
            }
            bool known = false;
            for (int i = 0; i < workers; i++)
                if (running[i] == got) {
                    running[i] = 0, count--, known = true;
                    if (status) {
                        say("FAILED: a worker %s", status_text(status));
                        return 1;
                    }
                }
            if (!known) {
                adopted++;
                if (status && status != SIGKILL) {
                    say("FAILED: an orphan %s", status_text(status));
                    return 1;
                }
            }
        }
        syscall(SYS_getpgid, QUIET);
        say("round %ld: %lu scenarios, %lu orphans", round, jobs, adopted);
    }
    return 0;
}

static int tree(void)
{
    struct termios raw, before;
    bool terminal = tcgetattr(0, &before) == 0;
    if (terminal) {
        raw = before;
        cfmakeraw(&raw);
        signal(SIGTTOU, SIG_IGN);
        tcsetattr(0, TCSANOW, &raw);
    }
    say("ready");
    for (int i = 0; i < 3; i++) {
        if (fork_or_die())
            continue;
        if (i == 0)
            setsid();
        if (i == 1)
            setpgid(0, 0);
        start_waiting_threads(2);
        if (fork_or_die() == 0)
            pause();
        signal(SIGTERM, SIG_IGN);
        pause();
    }
    struct itimerval often = {{0, 1000}, {0, 1000}};
    signal(SIGALRM, SIG_IGN);
    setitimer(ITIMER_REAL, &often, NULL);
    sleep_ms(30);
    if (terminal)
        tcsetattr(0, TCSANOW, &before);
    return 0;
}

int main(int argc, char **argv)
{
    static char path[4096]; /* /proc/self/exe would be gone with a leader that ended before its threads */
    if (readlink("/proc/self/exe", path, sizeof path - 1) > 0)
        self_path = path;
    if (argc == 3 && strcmp(argv[1], "exit") == 0)
        return atoi(argv[2]);
    if (argc == 2 && strcmp(argv[1], "tree") == 0)
        return tree();
    if (argc == 4 && strcmp(argv[1], "once") == 0) {
        for (size_t i = 0; i < COUNT_OF(scenarios); i++)
            if (strcmp(argv[2], scenarios[i].name) == 0)
                worker(i, strtoull(argv[3], NULL, 0));
        say("no such scenario");
        return 2;
    }
    int64_t seconds = argc > 1 ? atoll(argv[1]) : 1;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    int workers = argc > 3 ? atoi(argv[3]) : 4;
    if (workers < 1 || workers > MOST_WORKERS)
        workers = 4;
    return rounds(seconds, seed | 1, workers);
}
