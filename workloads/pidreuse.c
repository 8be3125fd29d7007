/* Ids come back only when nothing uses them: not while a zombie, a process group or a session bears them. Many
 * short processes are made, and where the system lets us choose the next id it is forced to come back.
 *
 * usage: pidreuse [PROCESSES] */
#include "common.h"

#include <linux/sched.h>
#include <pthread.h>

static int wanted = 2000;

/* Asks for the next process to get this id, in one of two ways; either may be forbidden. */
static pid_t fork_with_id(pid_t id)
{
    pid_t set_tid[1] = {id};
    struct clone_args arguments = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)set_tid, .set_tid_size = 1};
    pid_t child = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (child >= 0)
        return child;
    int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        char text[16];
        int length = snprintf(text, sizeof text, "%d", id - 1);
        if (write(fd, text, (size_t)length) < 0)
            errno = EPERM;
        close(fd);
    }
    return fork_or_die();
}

static void many(void)
{
    int right = 0;
    pid_t zombie = fork_or_die();
    if (zombie == 0)
        _exit(200);
    pid_t leader = fork_or_die();
    if (leader == 0) { /* ends, but its group and its session live on in its child */
        setsid();
        if (fork_or_die() == 0) {
            sleep_ms(100000);
            _exit(0);
        }
        _exit(0);
    }
    reap(leader);
    bool apart = true;
    for (int i = 0; i < wanted; i++) {
        pid_t child = fork_or_die();
        if (child == 0)
            _exit(i % 251);
        apart &= child != zombie && child != leader;
        int status = reap(child);
        right += WIFEXITED(status) && WEXITSTATUS(status) == i % 251;
    }
    say("every status is its own: %s", yes(right == wanted));
    say("ids in use were not given out: %s", yes(apart));
    say("the zombie: %s", status_text(reap(zombie)));
    say("the group of a dead leader: %s", outcome(kill(-leader, SIGKILL)));
}

static void forced(void)
{
    int right = 0, zombies = 0;
    pid_t id = fork_or_die();
    if (id == 0)
        _exit(0);
    reap(id);
    for (int i = 0; i < 20; i++) { /* the same id again and again, where that can be had */
        pid_t child = fork_with_id(id);
        if (child == 0)
            _exit(i);
        right += WEXITSTATUS(reap(child)) == i;
        zombies += kill(child, 0) == 0;
    }
    say("the same id, each with its own status: %s, then gone: %s", yes(right == 20), yes(zombies == 0));
    right = 0;
    for (int i = 0; i < 10; i++) { /* stops, signals and groups of an earlier bearer are not its own */
        int status;
        pid_t child = fork_with_id(id);
        if (child == 0) {
            sigset_t pending;
            sigpending(&pending);
            if (getpgrp() == getpid() || sigismember(&pending, SIGUSR1))
                _exit(1);
            setpgid(0, 0);
            sigset_t set;
            sigemptyset(&set);
            sigaddset(&set, SIGUSR1);
            sigprocmask(SIG_BLOCK, &set, NULL);
            raise(SIGUSR1);
            raise(SIGSTOP);
            _exit(0);
        }
        waitpid(child, &status, WUNTRACED);
        bool stopped = WIFSTOPPED(status);
        kill(child, SIGKILL);
        status = reap(child);
        right += stopped && WIFSIGNALED(status) && waitpid(child, &status, WNOHANG | WCONTINUED | WUNTRACED) < 0;
    }
    say("nothing is left over from an earlier bearer: %s", yes(right == 10));
}

static void *nothing(void *argument)
{
    return argument;
}

static void with_threads(void)
{
    int right = 0;
    for (int i = 0; i < wanted / 10; i++) {
        pthread_t thread;
        void *result = NULL;
        pthread_create(&thread, NULL, nothing, (void *)(long)(i + 1));
        pid_t child = fork_or_die();
        if (child == 0)
            _exit(i % 251);
        pthread_join(thread, &result);
        right += WEXITSTATUS(reap(child)) == i % 251 && result == (void *)(long)(i + 1);
    }
    say("threads and processes in turn: %s", yes(right == wanted / 10));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {{"many", many}, {"forced", forced}, {"threads", with_threads}};
    if (argc > 1)
        wanted = atoi(argv[1]);
    return run_sections(1, argv, sections, COUNT_OF(sections));
}
