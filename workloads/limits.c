/* Running into limits: processes, descriptors, memory, file size, CPU time, queued signals. Limits that count a
 * user's things over the whole machine are tried as a user that nobody else is. */
#include "common.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>

static bool become_nobody_else(void)
{
    uid_t other = spare_uid();
    return getuid() == 0 && setgid(other) == 0 && setuid(other) == 0;
}

static void set_limit(int which, rlim_t soft, rlim_t hard)
{
    struct rlimit limit = {soft, hard};
    if (setrlimit((__rlimit_resource_t)which, &limit) < 0)
        say("setrlimit: %s", error_name(errno));
}

static void *nothing(void *argument)
{
    return argument;
}

/* Forks until it is refused, never more than 300 times; then all end and all are reaped. */
static void fork_bomb(void)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        struct gate gate = gate_new();
        int made = 0, reaped = 0, error = 0, status;
        bool clean = true;
        become_nobody_else();
        set_limit(RLIMIT_NPROC, 40, 40);
        while (made < 300) {
            pid_t next = fork();
            if (next < 0) {
                error = errno;
                break;
            }
            if (next == 0) {
                char byte;
                close(gate.ends[1]);
                _exit(read(gate.ends[0], &byte, 1) == 0 ? 5 : 6);
            }
            made++;
        }
        pthread_t thread;
        int refused = pthread_create(&thread, NULL, nothing, NULL);
        close(gate.ends[1]);
        while (waitpid(-1, &status, 0) > 0) {
            reaped++;
            clean &= WIFEXITED(status) && WEXITSTATUS(status) == 5;
        }
        say("EAGAIN came: %s, a thread: %s", yes(error == EAGAIN), error_name(refused));
        say("all were reaped: %s, each as it should be: %s", yes(made == reaped), yes(clean));
        pid_t again = fork();
        if (again == 0)
            _exit(0);
        say("then there is room again: %s", outcome(again));
        reap(again);
        _exit(0);
    }
    say("%s", status_text(reap(child)));
}

/* Each process forks two for some levels, up to the limit: nobody counts them, the group ends them. */
static void wild_bomb(void)
{
    struct gate gate = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        setpgid(0, 0);
        become_nobody_else();
        set_limit(RLIMIT_NPROC, 40, 40);
        for (int level = 0; level < 8; level++)
            if (fork() >= 0 && fork() >= 0)
                continue;
        sleep_ms(60000);
        _exit(0);
    }
    close(gate.ends[1]);
    sleep_ms(200);
    checkpoint_marker(); /* with forty processes of another user */
    kill(-child, SIGKILL);
    say("%s", status_text(reap(child)));
    char byte;
    say("every process has ended: %zd", read(gate.ends[0], &byte, 1));
    close(gate.ends[0]);
}

static void in_child(const char *what, void (*body)(void))
{
    pid_t child = fork_or_die();
    if (child == 0) {
        body();
        _exit(0);
    }
    say("%s: %s", what, status_text(reap(child)));
}

static void descriptors(void)
{
    int made = 0;
    set_limit(RLIMIT_NOFILE, 32, 64);
    while (made < 100 && dup(0) >= 0)
        made++;
    say("dup: %s", error_name(errno));
    say("dup2 beyond: %s", outcome(dup2(0, 32)));
}

static void memory(void)
{
    set_limit(RLIMIT_AS, 64 << 20, 64 << 20);
    say("mmap: %s", mmap(NULL, 128 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? error_name(errno) : "ok");
}

static void file_size(void)
{
    char block[100] = "";
    FILE *file = tmpfile();
    struct rlimit before;
    getrlimit(RLIMIT_FSIZE, &before);
    set_limit(RLIMIT_FSIZE, 150, before.rlim_max);
    ssize_t first = write(fileno(file), block, sizeof block);
    ssize_t second = write(fileno(file), block, sizeof block);
    signal(SIGXFSZ, SIG_IGN);
    const char *ignored = outcome(write(fileno(file), block, sizeof block));
    signal(SIGXFSZ, SIG_DFL);
    setrlimit(RLIMIT_FSIZE, &before); /* stdout may be a file that is longer */
    say("write: %zd, %zd, ignored: %s", first, second, ignored);
    set_limit(RLIMIT_FSIZE, 150, before.rlim_max);
    if (write(fileno(file), block, sizeof block) < 0)
        _exit(1);
}

static void cpu_time(void)
{
    set_limit(RLIMIT_CPU, 1, 60);
    burn_ms(5000);
}

static volatile sig_atomic_t warnings;

static void on_warning(int signo)
{
    (void)signo;
    if (++warnings == 1)
        say("SIGXCPU after a second: %s", yes(now_ns(CLOCK_PROCESS_CPUTIME_ID) > 900 * MS));
}

static void cpu_time_hard(void)
{
    signal(SIGXCPU, on_warning);
    set_limit(RLIMIT_CPU, 1, 2);
    burn_ms(5000);
}

static void cpu_time_idle(void)
{
    set_limit(RLIMIT_CPU, 1, 1);
    sleep_ms(1300);
}

static void queued_signals(void)
{
    int queued = 0;
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    bool alone = become_nobody_else();
    set_limit(RLIMIT_SIGPENDING, 5, 5);
    while (queued < 100 && sigqueue(getpid(), SIGRTMIN, (union sigval){0}) == 0)
        queued++;
    say("sigqueue: %s, after five: %s", error_name(errno), yes(!alone || queued == 5));
    say("kill all the same: %s", outcome(kill(getpid(), SIGUSR1)));
    timer_t timer;
    say("timer_create: %s", outcome(timer_create(CLOCK_MONOTONIC, NULL, &timer)));
    int taken = 0;
    struct timespec zero = {0, 0};
    sigdelset(&set, SIGUSR1);
    while (sigtimedwait(&set, NULL, &zero) == SIGRTMIN)
        taken++;
    say("taken as many as queued: %s", yes(taken == queued));
    say("then there is room again: %s", outcome(sigqueue(getpid(), SIGRTMIN, (union sigval){0})));
}

static void values(void)
{
    const struct { int which; const char *name; } limits[] = {
        {RLIMIT_CPU, "CPU"}, {RLIMIT_SIGPENDING, "SIGPENDING"}, {RLIMIT_NOFILE, "NOFILE"}, {RLIMIT_LOCKS, "LOCKS"}};
    become_nobody_else();
    for (size_t i = 0; i < COUNT_OF(limits); i++) {
        struct rlimit now, old;
        __rlimit_resource_t which = (__rlimit_resource_t)limits[i].which;
        set_limit(limits[i].which, 10, 20);
        getrlimit(which, &now);
        say("%s: %lu %lu", limits[i].name, (unsigned long)now.rlim_cur, (unsigned long)now.rlim_max);
        struct rlimit higher = {10, 30}, crossed = {20, 10}, lower = {5, 20};
        say("raising the hard one: %s, soft above hard: %s", outcome(setrlimit(which, &higher)), outcome(setrlimit(which, &crossed)));
        int result = prlimit(0, which, &lower, &old);
        getrlimit(which, &now);
        say("prlimit: %s, old %lu, new %lu", outcome(result), (unsigned long)old.rlim_cur, (unsigned long)now.rlim_cur);
    }
    struct rlimit now;
    pid_t child = fork_or_die();
    if (child == 0) {
        getrlimit(RLIMIT_CPU, &now);
        _exit((int)now.rlim_cur);
    }
    say("a child inherits: %s", status_text(reap(child)));
    say("another's, by id: %s", outcome(prlimit(getppid(), RLIMIT_CPU, NULL, &now)));
    say("of nobody: %s, resource 99: %s", outcome(prlimit(child, RLIMIT_CPU, NULL, &now)),
        outcome(getrlimit((__rlimit_resource_t)99, &now)));
}

static void files_and_memory(void)
{
    in_child("descriptors", descriptors);
    in_child("address space", memory);
    in_child("file size", file_size);
}

static void cpu(void)
{
    in_child("soft", cpu_time);
    in_child("hard", cpu_time_hard);
    in_child("asleep", cpu_time_idle);
}

static void queue(void)
{
    in_child("queue", queued_signals);
}

static void reading(void)
{
    in_child("values", values);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"processes", fork_bomb}, {"wild", wild_bomb}, {"files", files_and_memory}, {"cpu", cpu},
        {"queue", queue}, {"values", reading},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
