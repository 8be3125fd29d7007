/* How processes come to be and end: fork, vfork, clone, clone3, threads, trees, orphans, groups and sessions. */
#include "common.h"

#include <linux/futex.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#define STACK_SIZE (64 * 1024)

static void exit_codes(void)
{
    const int codes[] = {0, 1, 42, 127, 255, 256 + 3, -1};
    for (size_t i = 0; i < COUNT_OF(codes); i++) {
        pid_t child = fork_or_die();
        if (child == 0)
            _exit(codes[i]);
        say("_exit(%d): %s", codes[i], status_text(reap(child)));
    }
    const int signals[] = {SIGKILL, SIGTERM, SIGHUP, SIGRTMIN + 3};
    for (size_t i = 0; i < COUNT_OF(signals); i++) {
        pid_t child = fork_or_die();
        if (child == 0) {
            kill(getpid(), signals[i]);
            _exit(50);
        }
        say("kill(self): %s", status_text(reap(child)));
    }
}

static void forks(void)
{
    int copied = 1;
    pid_t parent = getpid(), child = fork_or_die();
    if (child == 0) {
        copied = 2;
        _exit(getppid() == parent && getpid() != parent && copied == 2 ? 7 : 8);
    }
    say("fork: %s, memory is a copy: %s", status_text(reap(child)), yes(copied == 1));
    say("child's id is this process's child: %s", yes(child > 0 && child != parent));
}

static void vforks(void)
{
    static volatile int shared;
    static int64_t start;
    start = now_ns(CLOCK_MONOTONIC);
    pid_t child = vfork();
    if (child == 0) {
        shared = 5;
        struct timespec pause = {0, 30 * MS};
        nanosleep(&pause, NULL);
        _exit(6);
    }
    bool held = now_ns(CLOCK_MONOTONIC) - start >= 30 * MS;
    say("vfork: memory shared: %s, parent held: %s, %s", yes(shared == 5), yes(held), status_text(reap(child)));

    child = vfork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", "exit 9", (char *)NULL);
        _exit(127);
    }
    say("vfork and exec: %s", status_text(reap(child)));
    child = vfork();
    if (child == 0) {
        execl("/nonexistent", "nonexistent", (char *)NULL);
        _exit(127);
    }
    say("vfork and failed exec: %s", status_text(reap(child)));
}

static int clone_child(void *argument)
{
    int *value = argument;
    *value += 1;
    return 11;
}

static int clone_chdir(void *argument)
{
    (void)argument;
    return chdir("/proc") < 0;
}

static int clone_close(void *argument)
{
    return close(*(int *)argument) < 0;
}

static int clone_parent_test(void *argument)
{
    return getppid() == *(pid_t *)argument ? 21 : 22;
}

static void clones(void)
{
    char *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *top = stack + STACK_SIZE;
    int value = 0, status;
    pid_t child = clone(clone_child, top, SIGCHLD, &value);
    status = reap(child);
    say("clone: %s, value %d", status_text(status), value);
    child = clone(clone_child, top, CLONE_VM | SIGCHLD, &value);
    status = reap(child);
    say("CLONE_VM: %s, value %d", status_text(status), value);
    child = clone(clone_child, top, CLONE_VM | CLONE_VFORK | SIGCHLD, &value);
    say("CLONE_VM|CLONE_VFORK: value %d, %s", value, status_text(reap(child)));

    pid_t parent_tid = 0, child_tid = -1;
    child = clone(clone_child, top, CLONE_VM | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID |
                  SIGCHLD, &value, &parent_tid, NULL, &child_tid);
    say("PARENT_SETTID: %s", yes(parent_tid == child));
    int left;
    while ((left = __atomic_load_n(&child_tid, __ATOMIC_ACQUIRE)) != 0)
        syscall(SYS_futex, &child_tid, FUTEX_WAIT, left, NULL, NULL, 0);
    say("CHILD_CLEARTID woke, %s", status_text(reap(child)));

    char before[256], after[256];
    if (getcwd(before, sizeof before) == NULL)
        return;
    child = clone(clone_chdir, top, CLONE_FS | SIGCHLD, NULL);
    status = reap(child);
    say("CLONE_FS: %s, directory %s", status_text(status), getcwd(after, sizeof after));
    if (chdir(before) < 0)
        say("chdir: %s", error_name(errno));
    struct gate gate = gate_new();
    child = clone(clone_close, top, CLONE_FILES | SIGCHLD, &gate.ends[1]);
    status = reap(child);
    say("CLONE_FILES: %s, descriptor: %s", status_text(status), outcome(fcntl(gate.ends[1], F_GETFD)));
    close(gate.ends[0]);

    child = clone(clone_child, top, 0, &value);
    int plain = waitpid(child, &status, 0) < 0 ? errno : 0;
    say("exit signal 0: wait %s, __WALL %s", error_name(plain), outcome(waitpid(child, &status, __WALL)));

    child = fork_or_die();
    pid_t self = getppid();
    if (child == 0) { /* CLONE_PARENT: a sibling, which only our parent can wait for */
        pid_t sibling = clone(clone_parent_test, top, CLONE_PARENT | SIGCHLD, &self);
        _exit(waitpid(sibling, NULL, 0) < 0 && errno == ECHILD ? 31 : 32);
    }
    int first = reap(child);
    say("CLONE_PARENT: child %s, sibling %s", status_text(first), status_text(reap(-1)));
    say("CLONE_SIGHAND without CLONE_VM: %s", outcome(clone(clone_child, top, CLONE_SIGHAND | SIGCHLD, &value)));
    say("CLONE_THREAD without CLONE_SIGHAND: %s", outcome(clone(clone_child, top, CLONE_THREAD | CLONE_VM, &value)));
    munmap(stack, STACK_SIZE);
}

static long clone3_call(struct clone_args *arguments, size_t size)
{
    return syscall(SYS_clone3, arguments, size);
}

static void clone3s(void)
{
    int pidfd = -1, status;
    pid_t parent_tid = 0;
    struct clone_args arguments = {
        .flags = CLONE_PIDFD | CLONE_PARENT_SETTID, .pidfd = (uintptr_t)&pidfd,
        .parent_tid = (uintptr_t)&parent_tid, .exit_signal = SIGCHLD,
    };
    pid_t child = (pid_t)clone3_call(&arguments, sizeof arguments);
    if (child == 0)
        _exit(13);
    say("clone3: %s, PARENT_SETTID %s", outcome(child), yes(parent_tid == child));
    struct pollfd waiter = {pidfd, POLLIN, 0};
    say("pidfd is readable: %d, close on exec: %s", poll(&waiter, 1, 5000), yes(fcntl(pidfd, F_GETFD) == FD_CLOEXEC));
    siginfo_t info = {0};
    int result = waitid((idtype_t)3 /* P_PIDFD */, (id_t)pidfd, &info, WEXITED);
    say("waitid by pidfd: %s, status %d, its own pid %s", outcome(result), info.si_status, yes(info.si_pid == child));
    close(pidfd);

    struct clone_args plain = {.exit_signal = SIGCHLD};
    child = (pid_t)clone3_call(&plain, CLONE_ARGS_SIZE_VER0);
    if (child == 0)
        _exit(14);
    say("clone3, first version's size: %s", status_text(reap(child)));
    struct clone_args silent = {0};
    child = (pid_t)clone3_call(&silent, sizeof silent);
    if (child == 0)
        _exit(15);
    result = waitpid(child, &status, 0) < 0 ? errno : 0;
    say("clone3 without exit signal: wait %s, __WCLONE %s", error_name(result), outcome(waitpid(child, &status, __WCLONE)));
    say("clone3 of a short size: %s", outcome(clone3_call(&plain, 8)));
    struct clone_args wrong = {.flags = SIGCHLD};
    say("clone3 with a signal in flags: %s", outcome(clone3_call(&wrong, sizeof wrong)));
    struct clone_args stack = {.exit_signal = SIGCHLD, .stack_size = 4096};
    say("clone3 with a stack's size alone: %s", outcome(clone3_call(&stack, sizeof stack)));
    struct { struct clone_args known; uint64_t unknown; } longer = {.known = plain, .unknown = 1};
    say("clone3 with unknown fields set: %s", outcome(clone3_call(&longer.known, sizeof longer)));
}

static pthread_barrier_t barrier;
static pid_t tids[8];

static void *thread_body(void *argument)
{
    long index = (long)argument;
    tids[index] = (pid_t)syscall(SYS_gettid);
    pthread_barrier_wait(&barrier);
    return (void *)(index * index);
}

static void threads(void)
{
    pthread_t handles[COUNT_OF(tids)];
    long sum = 0;
    bool distinct = true;
    pthread_barrier_init(&barrier, NULL, COUNT_OF(tids));
    for (size_t i = 0; i < COUNT_OF(tids); i++)
        pthread_create(&handles[i], NULL, thread_body, (void *)i);
    for (size_t i = 0; i < COUNT_OF(tids); i++) {
        void *result;
        pthread_join(handles[i], &result);
        sum += (long)result;
    }
    for (size_t i = 0; i < COUNT_OF(tids); i++)
        for (size_t j = 0; j < i; j++)
            distinct &= tids[i] != tids[j] && tids[i] != getpid();
    say("threads: sum %ld, ids distinct: %s", sum, yes(distinct));
}

static int grow(int depth)
{
    int total = 1;
    if (depth == 0)
        return total;
    for (int i = 0; i < 3; i++) {
        pid_t child = fork_or_die();
        if (child == 0)
            _exit(grow(depth - 1));
    }
    int status;
    while (waitpid(-1, &status, 0) > 0)
        total += WEXITSTATUS(status);
    return total;
}

static void tree(void)
{
    say("three levels of three: %d processes", grow(3));
}

/* A grandchild reports through `report` once its parent has ended; its parent returns 'gone'. */
static void wait_for_new_parent(pid_t old)
{
    for (int i = 0; i < 2000 && getppid() == old; i++)
        sleep_ms(1);
}

static void orphan(void)
{
    struct gate report = gate_new();
    pid_t self = getpid(), child = fork_or_die();
    if (child == 0) {
        pid_t parent = getpid();
        if (fork_or_die() == 0) {
            wait_for_new_parent(parent);
            gate_open(report);
            _exit(getppid() == self);
        }
        _exit(3);
    }
    say("parent %s", status_text(reap(child)));
    gate_wait(report);
    say("orphan has a new parent; wait by the grandparent: %s", outcome(waitpid(-1, NULL, 0)));
    gate_free(report);
}

static void subreaper(void)
{
    int value = -1;
    struct gate report = gate_new();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_GET_CHILD_SUBREAPER, &value);
    pid_t self = getpid(), child = fork_or_die();
    if (child == 0) {
        int inherited = -1;
        prctl(PR_GET_CHILD_SUBREAPER, &inherited);
        pid_t parent = getpid();
        if (fork_or_die() == 0) {
            wait_for_new_parent(parent);
            gate_open(report);
            _exit(getppid() == self ? 4 : 5);
        }
        _exit(inherited);
    }
    say("subreaper %d, child's own %s", value, status_text(reap(child)));
    gate_wait(report);
    say("adopted orphan %s", status_text(reap(-1)));
    prctl(PR_SET_CHILD_SUBREAPER, 0);
    gate_free(report);
}

static struct gate death_report;

static void on_parent_death(int signo)
{
    char byte = (char)signo;
    if (write(death_report.ends[1], &byte, 1) != 1)
        _exit(1);
    _exit(0);
}

static void parent_death(void)
{
    struct gate ready = gate_new();
    death_report = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        if (fork_or_die() == 0) {
            int value = -1, inherited = -1;
            signal(SIGUSR1, on_parent_death);
            prctl(PR_SET_PDEATHSIG, SIGUSR1);
            prctl(PR_GET_PDEATHSIG, &value);
            pid_t third = fork_or_die();
            if (third == 0) {
                prctl(PR_GET_PDEATHSIG, &inherited);
                _exit(inherited);
            }
            say("PDEATHSIG %s, a child's own: %s", yes(value == SIGUSR1), status_text(reap(third)));
            gate_open(ready);
            sleep_ms(10000);
            _exit(1);
        }
        gate_wait(ready);
        _exit(0);
    }
    reap(child);
    char byte = 0;
    ssize_t got = read(death_report.ends[0], &byte, 1);
    say("signal at the parent's death: %zd, %s", got, yes(byte == SIGUSR1));
    say("PDEATHSIG 999: %s", outcome(prctl(PR_SET_PDEATHSIG, 999)));
    gate_free(ready);
    gate_free(death_report);
}

static void groups(void)
{
    struct gate go = gate_new(), execed = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        gate_wait(go);
        if (getpgrp() != getpid() || setpgid(0, 0) < 0)
            _exit(1);
        say("setsid by a group's leader: %s", outcome(setsid()));
        pid_t second = fork_or_die();
        if (second == 0) {
            pid_t session = setsid();
            _exit(session == getpid() && getsid(0) == session && getpgid(0) == session ? 0 : 1);
        }
        say("setsid by another: %s", status_text(reap(second)));
        dup2(execed.ends[0], 0);
        execl("/bin/sh", "sh", "-c", "read line", (char *)NULL);
        _exit(127);
    }
    say("setpgid of a child: %s", outcome(setpgid(child, child)));
    say("getpgid of it: %s, session as ours: %s", yes(getpgid(child) == child), yes(getsid(child) == getsid(0)));
    gate_open(go);
    close(go.ends[0]);
    for (int i = 0; i < 2000 && setpgid(child, child) == 0; i++)
        sleep_ms(1);
    say("setpgid of a child after its exec: %s", outcome(setpgid(child, child)));
    gate_open(execed);
    close(execed.ends[1]);
    reap(child);
    say("getpgid of nobody: %s", outcome(getpgid(child)));
    say("setpgid of nobody: %s", outcome(setpgid(child, 0)));
    say("setpgid to nobody's group: %s", outcome(setpgid(0, child)));
    say("setpgid -1: %s, getsid -1: %s", outcome(setpgid(0, -1)), outcome(getsid(-1)));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"exit", exit_codes}, {"fork", forks}, {"vfork", vforks}, {"clone", clones}, {"clone3", clone3s},
        {"threads", threads}, {"tree", tree}, {"orphan", orphan}, {"subreaper", subreaper},
        {"pdeathsig", parent_death}, {"groups", groups},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
