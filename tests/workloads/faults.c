/* Guests of test_faults.py. */
#include "common.h"

#include <sys/mman.h>
#include <sys/prctl.h>

/* Every process forks until there is no more: then one ends them all. */
static void bomb(void)
{
    enum { MOST = 120 };
    volatile int *counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = fork_or_die();
    if (child == 0) {
        struct rlimit limit = {MOST, MOST};
        setpgid(0, 0);
        if (geteuid() == 0 && setresuid(spare_uid(), -1, -1) == 0) {
            /* The real id is what is counted; the saved ones go as well. */
            uid_t id = getuid();
            if (setresuid(id, id, id) < 0)
                _exit(1);
        }
        setrlimit(RLIMIT_NPROC, &limit);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pid_t first = getpid();
        for (;;) {
            pid_t made = fork();
            if (made == 0) {
                __atomic_add_fetch(&counts[0], 1, __ATOMIC_RELAXED);
            } else if (made < 0) {
                if (errno != EAGAIN)
                    __atomic_add_fetch(&counts[1], 1, __ATOMIC_RELAXED);
                __atomic_add_fetch(&counts[2], 1, __ATOMIC_RELAXED);
                break;
            }
        }
        if (getpid() != first)
            for (;;)
                pause();
        while (counts[2] < counts[0] + 1)
            sleep_ms(1);
        kill(0, SIGKILL);
        for (;;)
            pause();
    }
    int status = reap(child);
    say("the bomb: %s", status_text(status));
    say("many: %s", yes(counts[0] >= MOST / 2 && counts[0] < MOST));
    say("other errors: %d", counts[1]);
    /* Orphans of the killed ones go to init; there is room again. */
    int made = 0;
    for (int i = 0; i < 20; i++) {
        pid_t again = fork();
        if (again == 0)
            _exit(0);
        made += again > 0 && reap(again) == 0;
    }
    say("afterwards: %d", made);
}

/* A crowd in every state: blocked in owned and lent calls, forking, computing. */
static void crowd(void)
{
    for (int i = 0; i < 4; i++) {
        if (fork_or_die() == 0) {
            struct timespec long_time = {100, 0};
            if (i == 0)
                nanosleep(&long_time, NULL);
            if (i == 1)
                pause();
            if (i == 2)
                for (;;) {
                    pid_t child = fork();
                    if (child == 0)
                        _exit(0);
                    waitpid(child, NULL, 0);
                }
            setsid();
            signal(SIGHUP, SIG_IGN);
            signal(SIGTERM, SIG_IGN);
            poll(NULL, 0, 100000);
            _exit(0);
        }
    }
    say("ready");
    pause();
}

/* One of two children makes the call that the test has made fail; the other goes on. */
static void crash(void)
{
    pid_t good = fork_or_die();
    if (good == 0) {
        sleep_ms(200);
        _exit(kill(getpid(), 0) == 0 ? 3 : 4);
    }
    pid_t bad = fork_or_die();
    if (bad == 0) {
        char buffer[64];
        syscall(SYS_getitimer, 0, buffer);
        _exit(0);
    }
    const char *text = status_text(reap(bad));
    say("bad: %s", text);
    say("good: %s", status_text(reap(good)));
}

static void caught(int signo)
{
    say("caught %d", signo);
    _exit(40 + signo);
}

static void catcher(void)
{
    signal(SIGINT, caught);
    signal(SIGTERM, caught);
    say("ready");
    for (;;)
        pause();
}

static void sleeper(void)
{
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    say("ready");
    sleep_ms(60000);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"bomb", bomb}, {"crowd", crowd}, {"crash", crash}, {"catcher", catcher}, {"sleeper", sleeper},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
