/* Guests that kill each other with SIGKILL, in every order, and all at once. */
#include "common.h"

#include <pthread.h>
#include <sys/mman.h>

#define COUNT 24

static pid_t *ids; /* shared by all */

static void *pause_in_thread(void *argument)
{
    for (;;)
        pause();
    return argument;
}

static int busy(int way)
{
    pthread_t thread;
    struct gate gate;
    char byte;
    switch (way % 5) {
    case 0:
        for (;;)
            getppid();
    case 1:
        for (;;)
            sleep_ms(1);
    case 2:
        gate = gate_new();
        return (int)read(gate.ends[0], &byte, 1);
    case 3:
        pthread_create(&thread, NULL, pause_in_thread, NULL);
        pause_in_thread(NULL);
        return 0;
    default:
        for (;;) {
            pid_t child = fork();
            if (child == 0)
                _exit(0);
            if (child > 0)
                reap(child);
        }
    }
}

static pid_t busy_child(int way)
{
    pid_t child = fork_or_die();
    if (child == 0)
        _exit(busy(way));
    return child;
}

/* Never a group or everyone: natively that would end more than this program. */
static void end(pid_t id)
{
    if (id > 1)
        kill(id, SIGKILL);
}

static int reap_killed(int expected)
{
    int killed = 0, status;
    for (int i = 0; i < expected; i++)
        killed += waitpid(-1, &status, 0) > 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    return killed;
}

static void by_parent(void)
{
    for (int i = 0; i < COUNT; i++)
        ids[i] = busy_child(i);
    sleep_ms(50);
    for (int i = 0; i < COUNT; i++)
        end(ids[i]);
    say("killed: %d", reap_killed(COUNT));
    for (int i = 0; i < COUNT; i++)
        end(busy_child(i));
    say("killed at birth: %d", reap_killed(COUNT));
}

static void by_group(void)
{
    pid_t leader = 0;
    for (int i = 0; i < COUNT; i++) {
        pid_t child = fork_or_die();
        if (child == 0) {
            setpgid(0, leader);
            _exit(busy(i));
        }
        if (leader == 0)
            leader = child;
        setpgid(child, leader);
    }
    sleep_ms(50);
    if (leader > 1)
        kill(-leader, SIGKILL);
    say("killed: %d", reap_killed(COUNT));
}

/* Each waits for the word and then kills all others, itself last: most die in the middle of it. */
static void each_other(void)
{
    for (int round = 0; round < 3; round++) {
        struct gate start = gate_new();
        memset(ids, 0, COUNT * sizeof *ids);
        for (int i = 0; i < COUNT; i++) {
            pid_t child = fork_or_die();
            if (child == 0) {
                char byte;
                close(start.ends[1]);
                if (read(start.ends[0], &byte, 1) < 0)
                    _exit(1);
                for (int other = 1; other < COUNT; other++)
                    end(ids[(i + other) % COUNT]);
                kill(getpid(), SIGKILL);
                _exit(2);
            }
            ids[i] = child;
        }
        gate_free(start);
        say("round %d, killed: %d", round, reap_killed(COUNT));
    }
}

/* A chain: each kills its parent and goes on; the orphans end with their pipe. */
static void parents(void)
{
    struct gate report = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        for (int depth = 0; depth < 10; depth++) {
            pid_t parent = getpid();
            pid_t next = fork_or_die();
            if (next != 0) {
                pause();
                _exit(1);
            }
            end(parent);
            while (getppid() == parent)
                sleep_ms(1);
        }
        gate_open(report);
        _exit(0);
    }
    say("the first: %s", status_text(reap(child)));
    gate_wait(report);
    say("the last of ten came through");
    gate_free(report);
}

static void stopped(void)
{
    int status;
    for (int i = 0; i < 8; i++) {
        pid_t child = busy_child(i);
        kill(child, SIGSTOP);
        if (i % 2)
            waitpid(child, &status, WUNTRACED);
        end(child);
        ids[i] = child;
    }
    int killed = 0;
    for (int i = 0; i < 8; i++) {
        do
            waitpid(ids[i], &status, 0);
        while (WIFSTOPPED(status));
        killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    }
    say("killed: %d", killed);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"parent", by_parent}, {"group", by_group}, {"each-other", each_other}, {"parents", parents},
        {"stopped", stopped},
    };
    ids = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
