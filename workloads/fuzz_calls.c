/* Random owned calls with random arguments; workloads/fuzz.py drives it.
 *
 * `fuzz_calls single SEED CASES [ONE]` runs sequences of calls, each in a process of its own that has a living and
 * a dead child, and prints every result: natively and under trapline the same is to come. Nothing in it depends on
 * a time or an id. With ONE only that case is run.
 *
 * `fuzz_calls chaos SEED MS` makes processes and threads that do the same to each other all at once, while memory
 * changes its protection. Only inside of a sandbox, since nobody is spared. */
#include "common.h"
#include "fuzz_calls.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#define MOST 10 /* calls in a case */

static int64_t issue(const struct call *call, const int64_t *a)
{
    return syscall(call->nr, a[0], a[1], a[2], a[3], a[4], a[5]) == -1 ? -errno : 0;
}

static void drop_privileges(void)
{
    if (getuid() == 0) {
        uid_t uid = spare_uid();
        struct rlimit few = {48, 48};
        if (chaos)
            setrlimit(RLIMIT_NPROC, &few);
        if (setresuid(uid, uid, uid) < 0)
            _exit(93);
    }
}

/* The descriptors of the table: pidfds of the living child, of oneself and of the zombie, a file, a timer, an epoll. */
static void make_descriptors(void)
{
    const int made[] = {(int)syscall(SYS_pidfd_open, live_child, 0), (int)syscall(SYS_pidfd_open, getpid(), 0),
                        (int)syscall(SYS_pidfd_open, zombie_child, 0), open("/dev/null", O_RDWR),
                        timerfd_create(CLOCK_MONOTONIC, 0), epoll_create1(0)};
    int copies[COUNT_OF(made)];
    for (size_t i = 0; i < COUNT_OF(made); i++)
        copies[i] = fcntl(made[i], F_DUPFD, 50);
    for (size_t i = 0; i < COUNT_OF(made); i++)
        dup2(copies[i], 10 + (int)i);
}

static void make_children(void)
{
    struct gate ready = gate_new();
    pid_t parent = getpid();
    live_child = fork_or_die();
    if (live_child == 0) {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (getppid() != parent)
            _exit(0);
        gate_open(ready);
        for (;;)
            pause();
    }
    gate_wait(ready);
    gate_free(ready);
    zombie_child = fork_or_die();
    if (zombie_child == 0)
        _exit(7);
    siginfo_t info;
    waitid(P_PID, (id_t)zombie_child, &info, WEXITED | WNOWAIT);
}

static const char *value_text(int64_t value, bool is_id)
{
    static char texts[6][40];
    static int turn;
    char *text = texts[turn++ % 6];
    const struct { int64_t value; const char *name; } known[] = {
        {getpid(), "self"}, {-getpid(), "-self"}, {live_child, "live"}, {zombie_child, "zombie"},
        {getpid() | 0x700000000, "self+high"},
    };
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (is_id && value == known[i].value)
            return known[i].name;
    if (value >= (int64_t)ARENA && value < (int64_t)ARENA + 8 * 4096)
        snprintf(text, sizeof texts[0], "arena+%#lx", value - (int64_t)ARENA);
    else if (value < 0 && value > -4096 * 1024)
        snprintf(text, sizeof texts[0], "%ld", value);
    else if (value < -0x3000000 && value > -0x400000000) /* a CPU clock of somebody: it has an id in it */
        snprintf(text, sizeof texts[0], "big negative");
    else
        snprintf(text, sizeof texts[0], "%#lx", value);
    return text;
}

static void play(uint64_t seed)
{
    random_state = mixed(seed);
    setsid();
    drop_privileges(); /* first, or the children are another user's, whom PR_SET_PDEATHSIG may not kill */
    make_children();
    make_descriptors();
    make_arena();
    for (int i = 2 + (int)below(MOST - 2); i--;) {
        const struct call *call;
        do
            call = &calls[below(COUNT_OF(calls))];
        while (call->chaos);
        int64_t a[6];
        char text[64];
        draw_arguments(call, a);
        long result = syscall(call->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
        if (result < 0)
            snprintf(text, sizeof text, "%s", error_name(errno));
        else
            snprintf(text, sizeof text, "%s", call->exact ? value_text(result, result > 1) : "ok");
        char line[300];
        int length = snprintf(line, sizeof line, "  %s(", call->name);
        for (int j = 0; j < 5; j++) {
            bool clock = call->kinds[j] == CLOCK && a[j] < -20; /* somebody's CPU clock has an id in it */
            length += snprintf(line + length, sizeof line - (size_t)length, "%s%s", j ? ", " : "",
                               clock ? "clock" : value_text(a[j], call->kinds[j] == PID));
        }
        say("%s) = %s", line, text);
    }
    _exit(0);
}

static int singles(uint64_t seed, long cases, long only)
{
    sigset_t child, old;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &old);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    random_state = mixed(seed);
    for (long i = 0; i < cases; i++) {
        uint64_t own = chance();
        if (only >= 0 && i != only)
            continue;
        say("case %ld", i);
        pid_t player = fork_or_die();
        if (player == 0) {
            sigprocmask(SIG_SETMASK, &old, NULL);
            play(own);
        }
        int status;
        bool blocked = false;
        int64_t end = now_ns(CLOCK_MONOTONIC) + 3000 * MS;
        pid_t got;
        while ((got = waitpid(player, &status, WNOHANG | WUNTRACED)) == 0) {
            struct timespec more = {0, 100 * MS};
            if (now_ns(CLOCK_MONOTONIC) > end) {
                blocked = true;
                break;
            }
            sigtimedwait(&child, NULL, &more);
        }
        say("  %s", blocked ? "blocked" : status_text(status));
        if (blocked || WIFSTOPPED(status)) {
            kill(player, SIGKILL);
            waitpid(player, NULL, 0);
        }
        end = now_ns(CLOCK_MONOTONIC) + 3000 * MS;
        /* What it left is ours now, and ends by PR_SET_PDEATHSIG (which it may have been told not to send). */
        while ((got = waitpid(-1, NULL, WNOHANG)) >= 0)
            if (got == 0) {
                struct timespec more = {0, 100 * MS};
                sigtimedwait(&child, NULL, &more);
                if (now_ns(CLOCK_MONOTONIC) > end)
                    return say("case %ld leaves a process", i), 1;
            }
    }
    return 0;
}

static void *riot(void *seed)
{
    random_state ^= (uint64_t)seed; /* shared by the threads: their order is chance anyway */
    for (;;) {
        const struct call *call = &calls[below(COUNT_OF(calls))];
        int64_t a[6];
        unsigned what = below(40);
        if (what == 0)
            mprotect(ARENA + PAGE * (1 + below(2)), PAGE, below(2) ? PROT_READ | PROT_WRITE : PROT_READ);
        if (what == 0 || what == 1) /* the arguments are written to these */
            mprotect(ARENA + PAGE, 2 * PAGE, PROT_READ | PROT_WRITE);
        if (what == 2 && fork() == 0 && below(2))
            _exit((int)below(256));
        if (what == 3 && below(4) == 0)
            return NULL;
        if (what == 4 && below(8) == 0)
            _exit((int)below(256));
        if (call->nr == SYS_vfork) {
            if (vfork() == 0)
                _exit(1);
            continue;
        }
        draw_arguments(call, a);
        issue(call, a);
    }
}

static void rioter(uint64_t seed)
{
    pthread_t thread;
    random_state = mixed(seed);
    setsid();
    drop_privileges();
    make_children();
    make_descriptors();
    make_arena();
    for (int signo = 1; signo < 32; signo++)
        if (below(2))
            signal(signo, below(3) ? nothing : SIG_IGN);
    for (uint64_t i = below(4); i--;)
        pthread_create(&thread, NULL, riot, (void *)(i * 77));
    riot(NULL);
    pthread_exit(NULL);
}

static bool in_a_sandbox(void)
{
    char name[32] = "";
    int fd = open("/proc/1/comm", O_RDONLY);
    return fd >= 0 && read(fd, name, sizeof name - 1) > 0 && strcmp(name, "trapline-init\n") == 0;
}

static int riots(uint64_t seed, int64_t milliseconds)
{
    enum { COUNT = 4 };
    pid_t all[COUNT] = {0};
    long made = 0;
    int64_t end = now_ns(CLOCK_MONOTONIC) + milliseconds * MS;
    chaos = true;
    if (!in_a_sandbox()) {
        say("only inside of a sandbox");
        return 2;
    }
    shield = getuid() ? getpid() : 0;
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    random_state = mixed(seed);
    while (now_ns(CLOCK_MONOTONIC) < end) {
        int i = (int)below(COUNT);
        if (all[i])
            kill(all[i], below(2) ? SIGKILL : (int)below(65));
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        if (!all[i] || kill(all[i], 0) < 0) {
            uint64_t own = chance();
            all[i] = fork_or_die();
            if (all[i] == 0)
                rioter(own);
            made++;
        }
        sleep_ms(1 + (long)below(30));
    }
    /* Until nobody is left: a process that is just being forked is missed by the first. */
    for (;;) {
        pid_t got = waitpid(-1, NULL, WNOHANG);
        if (got < 0)
            break;
        if (got == 0) {
            kill(-1, SIGKILL);
            sleep_ms(1);
        }
    }
    say("%ld processes", made);
    return 0;
}

int main(int argc, char **argv)
{
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    if (argc >= 4 && strcmp(argv[1], "single") == 0)
        return singles(strtoull(argv[2], NULL, 0), atol(argv[3]), argc > 4 ? atol(argv[4]) : -1);
    if (argc == 4 && strcmp(argv[1], "chaos") == 0)
        return riots(strtoull(argv[2], NULL, 0), atol(argv[3])) == 0 ? 0 : 2;
    say("usage: fuzz_calls single SEED CASES [ONE] | chaos SEED MS");
    return 2;
}
