/* clone3: what clone cannot say. CLONE_CLEAR_SIGHAND (posix_spawn of glibc 2.38 uses it), with and without vfork's
 * wait; a pidfd and the parent's copy of the id at once; a cgroup; what is refused. */
#include "common.h"

#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>

#ifndef CLONE_CLEAR_SIGHAND
#define CLONE_CLEAR_SIGHAND 0x100000000ULL
#endif
#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

struct arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

static volatile sig_atomic_t count;

static void on_signal(int signo)
{
    (void)signo;
    count++;
}

/* In line: a child that shares the memory and the stack must not return from the function that made it. */
static inline __attribute__((always_inline)) long clone3_of(struct arguments *arguments, size_t size)
{
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"((long)SYS_clone3), "D"(arguments), "S"(size)
                     : "rcx", "r11", "memory");
    return result;
}

static const char *made(long result)
{
    return result < 0 ? error_name((int)-result) : "ok";
}

/* Which dispositions a process has, as its kernel says and as /proc does. */
static void tell(const char *who)
{
    int handlers = 0, ignored = 0;
    for (int signo = 1; signo <= 64; signo++) {
        struct { void *handler; unsigned long flags, restorer, mask; } old = {0};
        if (signo != SIGKILL && signo != SIGSTOP && syscall(SYS_rt_sigaction, signo, NULL, &old, 8) == 0) {
            ignored += old.handler == (void *)SIG_IGN;
            handlers += old.handler != (void *)SIG_IGN && old.handler != (void *)SIG_DFL;
        }
    }
    char text[4096];
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    text[length > 0 ? length : 0] = '\0';
    const char *in = strstr(text, "SigIgn:"), *caught = strstr(text, "SigCgt:");
    say("  %s: %d handlers, %d ignored, %.23s, %.23s", who, handlers, ignored, in ? in : "-", caught ? caught : "-");
}

static void prepare(void)
{
    signal(SIGUSR1, on_signal);
    signal(SIGRTMIN + 3, on_signal);
    signal(SIGCHLD, on_signal);
    signal(SIGUSR2, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
}

static void clear(void)
{
    prepare();
    tell("parent");
    for (int with = 0; with < 2; with++) {
        struct arguments arguments = {.flags = with ? CLONE_CLEAR_SIGHAND : 0, .exit_signal = SIGCHLD};
        long child = clone3_of(&arguments, sizeof arguments);
        if (child == 0) {
            tell(with ? "child, cleared" : "child");
            raise(SIGUSR2);
            raise(SIGUSR1);
            _exit(3);
        }
        say("clone3: %s, then %s", made(child), status_text(reap((pid_t)child)));
    }
    struct arguments arguments = {.flags = CLONE_CLEAR_SIGHAND, .exit_signal = SIGCHLD};
    long child = clone3_of(&arguments, sizeof arguments);
    if (child == 0) { /* what it sets itself is its own */
        signal(SIGUSR1, on_signal);
        count = 0;
        raise(SIGUSR1);
        pid_t grandchild = fork_or_die();
        if (grandchild == 0) {
            raise(SIGUSR1);
            _exit(20 + count);
        }
        say("  a handler of its own ran %d times, its child %s", count, status_text(reap(grandchild)));
        tell("its own");
        _exit(0);
    }
    say("its own handlers: %s", status_text(reap((pid_t)child)));
    count = 0;
    raise(SIGUSR1);
    say("the parent's are as they were: %d", count);
    tell("parent");
    for (int signo = 1; signo < 65; signo++)
        signal(signo, SIG_DFL);
    child = clone3_of(&arguments, sizeof arguments);
    if (child == 0)
        _exit(4);
    say("with nothing to clear: %s", status_text(reap((pid_t)child)));
}

static pthread_t waiting;
static struct gate sent;

static void *kill_later(void *argument)
{
    sleep_ms(30);
    pthread_kill(waiting, (int)(long)argument);
    gate_open(sent);
    return NULL;
}

static void vforks(void)
{
    static volatile int shared;
    prepare();
    struct arguments arguments = {.flags = CLONE_CLEAR_SIGHAND | CLONE_VM | CLONE_VFORK, .exit_signal = SIGCHLD};
    long child = clone3_of(&arguments, sizeof arguments);
    if (child == 0) {
        shared = 1;
        sleep_ms(30);
        shared = 2;
        _exit(5);
    }
    say("the parent waited, and shares memory: %d, %s", shared, status_text(reap((pid_t)child)));
    child = clone3_of(&arguments, sizeof arguments);
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", "kill -USR1 $$; echo not reached", (char *)NULL);
        _exit(6);
    }
    say("executes a program, to which nothing is handled: %s", status_text(reap((pid_t)child)));
    tell("parent");
    /* The waiting parent cannot be interrupted, but it can be killed. */
    const int signals[] = {SIGKILL, SIGUSR1};
    for (size_t i = 0; i < COUNT_OF(signals); i++) {
        struct gate gate = gate_new();
        pid_t parent = fork_or_die();
        if (parent == 0) {
            pthread_t thread;
            waiting = pthread_self();
            sent = gate_new();
            signal(SIGCHLD, SIG_DFL);
            pthread_create(&thread, NULL, kill_later, (void *)(long)signals[i]);
            arguments.flags = CLONE_CLEAR_SIGHAND | CLONE_VFORK;
            count = 0;
            child = clone3_of(&arguments, sizeof arguments);
            if (child == 0) {
                close(sent.ends[1]);
                gate_wait(sent); /* or the parent is dead, and with it the other end */
                gate_open(gate);
                _exit(7);
            }
            _exit(count == 1 && reap((pid_t)child) == 7 << 8 ? 8 : 9);
        }
        say("signal %d while it waits: %s", signals[i], status_text(reap(parent)));
        gate_wait(gate);
        gate_free(gate);
    }
}

static void ids(void)
{
    int pidfd = -1;
    pid_t tid = -1;
    struct arguments arguments = {
        .flags = CLONE_PIDFD | CLONE_PARENT_SETTID, .pidfd = (uintptr_t)&pidfd, .parent_tid = (uintptr_t)&tid,
        .exit_signal = SIGCHLD,
    };
    long child = clone3_of(&arguments, sizeof arguments);
    if (child == 0)
        _exit(10);
    siginfo_t info;
    memset(&info, 0, sizeof info);
    say("both: the id %s, the descriptor is open %s", yes(tid == child), yes(fcntl(pidfd, F_GETFD) == FD_CLOEXEC));
    say("wait by it: %s", outcome(waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED)));
    say("status %d, the same child %s", info.si_status, yes(info.si_pid == child));
    close(pidfd);
    tid = -1;
    arguments.flags |= CLONE_CLEAR_SIGHAND | CLONE_VFORK;
    arguments.parent_tid = 8; /* not there: nobody is told */
    child = clone3_of(&arguments, sizeof arguments);
    if (child == 0)
        _exit(11);
    say("a bad address for the id: %s, %s", made(child), status_text(reap((pid_t)child)));
    close(pidfd);
    arguments.pidfd = 8;
    child = clone3_of(&arguments, sizeof arguments);
    say("a bad address for the descriptor: %s", made(child));
}

static void refused(void)
{
    const struct { uint64_t flags; uint64_t signal; uint64_t cgroup; size_t size; const char *what; } tries[] = {
        {CLONE_CLEAR_SIGHAND | CLONE_SIGHAND | CLONE_VM, SIGCHLD, 0, 88, "clear and share"},
        {CLONE_CLEAR_SIGHAND, 65, 0, 88, "no signal"},
        {CLONE_CLEAR_SIGHAND | 1ULL << 40, SIGCHLD, 0, 88, "an unknown flag"},
        {CLONE_INTO_CGROUP, SIGCHLD, 9999, 88, "a closed cgroup"},
        {CLONE_INTO_CGROUP, SIGCHLD, 1ULL << 40, 88, "a descriptor out of range"},
        {CLONE_INTO_CGROUP, SIGCHLD, 0, 64, "a structure without cgroup"},
        {CLONE_CLEAR_SIGHAND, SIGCHLD, 0, 64, "the smallest structure"},
        {CLONE_CLEAR_SIGHAND, SIGCHLD, 0, 63, "too small a structure"},
    };
    for (size_t i = 0; i < COUNT_OF(tries); i++) {
        struct arguments arguments = {
            .flags = tries[i].flags, .exit_signal = tries[i].signal, .cgroup = tries[i].cgroup,
        };
        long child = clone3_of(&arguments, tries[i].size);
        if (child == 0)
            _exit(12);
        say("%s: %s", tries[i].what, made(child));
        if (child > 0)
            reap((pid_t)child);
    }
    /* Changing what is in the structure while it is used changes nothing of the child. */
    static struct arguments arguments = {.flags = CLONE_CLEAR_SIGHAND | CLONE_PIDFD, .exit_signal = SIGCHLD};
    int pidfd = 0;
    arguments.pidfd = (uintptr_t)&pidfd;
    long child = clone3_of(&arguments, sizeof arguments);
    if (child == 0) {
        arguments.flags = 0;
        _exit(13);
    }
    say("the structure is not written to: %s, %s", yes(arguments.flags == (CLONE_CLEAR_SIGHAND | CLONE_PIDFD)),
        status_text(reap((pid_t)child)));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {{"clear", clear}, {"vfork", vforks}, {"ids", ids}, {"refused", refused}};
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
