/* wait4 and waitid: which child, which event, what is left afterwards, and what they say of resources. */
#include "common.h"

#include <pthread.h>
#include <sched.h>
#include <sys/times.h>

static pid_t child_that_exits(int code)
{
    pid_t child = fork_or_die();
    if (child == 0)
        _exit(code);
    return child;
}

static pid_t child_that_stays(void)
{
    pid_t child = fork_or_die();
    if (child == 0)
        for (;;)
            pause();
    return child;
}

static void end(pid_t child)
{
    kill(child, SIGKILL);
    kill(child, SIGCONT);
    waitpid(child, NULL, __WALL);
}

static const char *code_name(int code)
{
    switch (code) {
    case CLD_EXITED: return "CLD_EXITED";
    case CLD_KILLED: return "CLD_KILLED";
    case CLD_DUMPED: return "CLD_DUMPED";
    case CLD_STOPPED: return "CLD_STOPPED";
    case CLD_CONTINUED: return "CLD_CONTINUED";
    case 0: return "none";
    default: return "other";
    }
}

static void show(const char *what, idtype_t type, id_t id, int options, pid_t expected)
{
    siginfo_t info;
    memset(&info, 0, sizeof info);
    int result = waitid(type, id, &info, options);
    say("%s: %s %s status %d, signal %s, right pid %s, right uid %s", what, outcome(result), code_name(info.si_code),
        info.si_status, yes(info.si_signo == SIGCHLD), yes(info.si_pid == expected), yes(info.si_uid == getuid()));
}

static void nohang(void)
{
    int status = 77;
    pid_t child = child_that_stays();
    say("WNOHANG of a running child: %d, status untouched %s", waitpid(child, &status, WNOHANG), yes(status == 77));
    siginfo_t info;
    memset(&info, 0x55, sizeof info);
    int result = waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG);
    say("waitid WNOHANG: %s, pid %d, signo %d", outcome(result), info.si_pid, info.si_signo);
    end(child);
    say("no children: %s, WNOHANG %s", outcome(waitpid(-1, NULL, 0)), outcome(waitpid(-1, NULL, WNOHANG)));
}

static void nowait(void)
{
    pid_t child = child_that_exits(5);
    show("WNOWAIT", P_PID, (id_t)child, WEXITED | WNOWAIT, child);
    show("WNOWAIT again", P_ALL, 0, WEXITED | WNOWAIT, child);
    say("the zombie can be signalled: %s", outcome(kill(child, 0)));
    show("WEXITED", P_PID, (id_t)child, WEXITED, child);
    say("gone: %s, kill: %s", outcome(waitpid(child, NULL, 0)), outcome(kill(child, 0)));
    child = child_that_stays();
    kill(child, SIGTERM);
    show("killed", P_PID, (id_t)child, WEXITED, child);
}

static void stops(void)
{
    int status = 0;
    pid_t child = child_that_stays();
    setpgid(child, child); /* a group of its own under us is not orphaned, so SIGTSTP stops it */
    kill(child, SIGSTOP);
    say("WUNTRACED: %s", waitpid(child, &status, WUNTRACED) == child ? status_text(status) : "wrong");
    say("once only: %d", waitpid(child, &status, WUNTRACED | WNOHANG));
    kill(child, SIGCONT);
    say("WCONTINUED: %s", waitpid(child, &status, WCONTINUED) == child ? status_text(status) : "wrong");
    say("once only: %d", waitpid(child, &status, WCONTINUED | WNOHANG));
    kill(child, SIGTSTP);
    show("WSTOPPED|WNOWAIT", P_PID, (id_t)child, WSTOPPED | WNOWAIT, child);
    show("WSTOPPED", P_PID, (id_t)child, WSTOPPED, child);
    kill(child, SIGCONT);
    show("WCONTINUED", P_PID, (id_t)child, WCONTINUED, child);
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    kill(child, SIGTERM); /* held back until it continues */
    sleep_ms(20);
    say("SIGTERM while stopped: %d", waitpid(child, &status, WNOHANG));
    kill(child, SIGCONT);
    say("then: %s", status_text(reap(child)));
    child = child_that_stays();
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    kill(child, SIGKILL);
    say("SIGKILL while stopped: %s", status_text(reap(child)));
}

static void selection(void)
{
    int status;
    pid_t first = fork_or_die();
    if (first == 0) {
        setpgid(0, 0);
        pause();
        _exit(0);
    }
    setpgid(first, first);
    pid_t second = child_that_exits(2);
    say("pid 0, our group: right child %s", yes(waitpid(0, &status, 0) == second));
    kill(first, SIGTERM);
    say("our group is empty: %s", outcome(waitpid(0, &status, 0)));
    show("P_PGID", P_PGID, (id_t)first, WEXITED | WNOWAIT, first);
    pid_t got = waitpid(-first, &status, 0);
    say("-group: right child %s, %s", yes(got == first), status_text(status));
    say("-group, now empty: %s", outcome(waitpid(-first, &status, 0)));
    say("not our child: %s", outcome(waitpid(getpid(), &status, 0)));
    say("INT_MIN: %s", outcome(syscall(SYS_wait4, (pid_t)0x80000000, &status, 0, NULL)));
    say("unknown option: %s", outcome(waitpid(-1, &status, 0x100)));
    say("waitid without an event: %s", outcome(waitid(P_ALL, 0, NULL, WNOHANG)));
    say("waitid of type 9: %s", outcome(waitid((idtype_t)9, 0, NULL, WEXITED)));
    say("waitid of pid 0: %s", outcome(waitid(P_PID, 0, NULL, WEXITED)));
    say("waitid of a bad pidfd: %s", outcome(waitid((idtype_t)3, 999, NULL, WEXITED)));
    second = child_that_exits(8);
    say("waitid without a result: %s", outcome(waitid(P_PID, (id_t)second, NULL, WEXITED)));
}

static int clone_body(void *argument)
{
    (void)argument;
    return 12;
}

static void clones(void)
{
    static char stack[16384] __attribute__((aligned(16)));
    int status;
    signal(SIGUSR2, SIG_IGN); /* before the child, which may end at once */
    pid_t child = clone(clone_body, stack + sizeof stack, SIGUSR2, NULL);
    say("exit signal SIGUSR2: wait %s", outcome(waitpid(child, &status, 0)));
    say("__WCLONE: %s", waitpid(-1, &status, __WCLONE) == child ? status_text(status) : "wrong");
    child = child_that_exits(3);
    say("__WCLONE of a plain child: %s", outcome(waitpid(child, &status, __WCLONE)));
    say("__WALL of it: %s", waitpid(child, &status, __WALL) == child ? status_text(status) : "wrong");
    signal(SIGUSR2, SIG_DFL);
}

static void *wait_in_thread(void *argument)
{
    pid_t child = *(pid_t *)argument;
    int status = 0;
    say("__WNOTHREAD in another thread: %s", outcome(waitpid(child, &status, __WNOTHREAD)));
    say("without it: %s", waitpid(child, &status, 0) == child ? status_text(status) : "wrong");
    return NULL;
}

static void *fork_in_thread(void *argument)
{
    *(pid_t *)argument = child_that_exits(17);
    return NULL;
}

static void threads(void)
{
    pthread_t thread;
    pid_t child = child_that_exits(16);
    pthread_create(&thread, NULL, wait_in_thread, &child);
    pthread_join(thread, NULL);
    pthread_create(&thread, NULL, fork_in_thread, &child);
    pthread_join(thread, NULL);
    say("child of a thread that has ended: %s", status_text(reap(child)));
}

static void many(void)
{
    unsigned seen = 0;
    struct gate gate = gate_new();
    for (int i = 0; i < 30; i++)
        if (fork_or_die() == 0) {
            char byte;
            close(gate.ends[1]);
            _exit(read(gate.ends[0], &byte, 1) == 0 ? i : 99);
        }
    close(gate.ends[0]);
    close(gate.ends[1]);
    int status;
    while (waitpid(-1, &status, 0) > 0)
        seen |= 1u << WEXITSTATUS(status);
    say("thirty at once: %s", yes(seen == (1u << 30) - 1));
}

static void ignored(void)
{
    signal(SIGCHLD, SIG_IGN);
    pid_t child = child_that_exits(1);
    child_that_exits(2);
    say("SIGCHLD ignored, wait: %s", outcome(waitpid(-1, NULL, 0)));
    say("and gone: %s", outcome(kill(child, 0)));
    signal(SIGCHLD, SIG_DFL);
    struct sigaction action = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
    sigaction(SIGCHLD, &action, NULL);
    child_that_exits(1);
    say("SA_NOCLDWAIT, wait: %s", outcome(waitpid(-1, NULL, 0)));
    action.sa_flags = 0;
    sigaction(SIGCHLD, &action, NULL);
}

static int64_t used_ns(const struct rusage *usage)
{
    return ((int64_t)usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1000000000 +
           ((int64_t)usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) * 1000;
}

static void resources(void)
{
    struct rusage before, after, child_usage, self;
    struct tms times_before, times_after;
    int status;
    getrusage(RUSAGE_CHILDREN, &before);
    times(&times_before);
    pid_t child = fork_or_die();
    if (child == 0) {
        volatile char *memory = malloc(8 << 20);
        for (int i = 0; i < 8 << 20; i += 4096)
            memory[i] = 1;
        burn_ms(60);
        _exit(0);
    }
    wait4(child, &status, 0, &child_usage);
    getrusage(RUSAGE_CHILDREN, &after);
    times(&times_after);
    int64_t used = used_ns(&child_usage), grown = used_ns(&after) - used_ns(&before);
    say("wait4: cpu %s, memory %s", yes(used >= 50 * MS && used < 1000 * MS), yes(child_usage.ru_maxrss > 8000));
    say("RUSAGE_CHILDREN grew alike: %s", yes(grown >= used - 10 * MS && grown <= used + 10 * MS));
    say("times: %s", yes(times_after.tms_cutime + times_after.tms_cstime > times_before.tms_cutime + times_before.tms_cstime));

    child = fork_or_die();
    if (child == 0) {
        if (fork_or_die() == 0) {
            burn_ms(40);
            _exit(0);
        }
        reap(-1);
        _exit(0);
    }
    siginfo_t info;
    memset(&child_usage, 0, sizeof child_usage);
    long result = syscall(SYS_waitid, P_PID, child, &info, WEXITED, &child_usage);
    say("waitid: %s, a grandchild's cpu counts: %s", outcome(result), yes(used_ns(&child_usage) >= 30 * MS));
    getrusage(RUSAGE_SELF, &self);
    burn_ms(30);
    getrusage(RUSAGE_SELF, &after);
    say("RUSAGE_SELF grows: %s", yes(used_ns(&after) - used_ns(&self) >= 20 * MS));
    signal(SIGCHLD, SIG_IGN);
    getrusage(RUSAGE_CHILDREN, &before);
    child = fork_or_die();
    if (child == 0) {
        burn_ms(40);
        _exit(0);
    }
    waitpid(-1, NULL, 0);
    getrusage(RUSAGE_CHILDREN, &after);
    say("a child nobody waits for does not count: %s", yes(used_ns(&after) == used_ns(&before)));
    signal(SIGCHLD, SIG_DFL);
}

static void on_alarm(int signo)
{
    (void)signo;
}

static void interrupted(void)
{
    struct sigaction action = {.sa_handler = on_alarm};
    pid_t parent = getpid(), child = child_that_stays(), sender;
    sigaction(SIGUSR1, &action, NULL);
    if ((sender = fork_or_die()) == 0) {
        sleep_ms(30);
        kill(parent, SIGUSR1);
        _exit(0);
    }
    int status, error = waitpid(child, &status, 0) < 0 ? errno : 0;
    say("wait and a handler: %s", error_name(error));
    reap(sender);
    action.sa_flags = SA_RESTART;
    sigaction(SIGUSR1, &action, NULL);
    if ((sender = fork_or_die()) == 0) {
        sleep_ms(30);
        kill(parent, SIGUSR1);
        sleep_ms(30);
        kill(child, SIGTERM);
        _exit(0);
    }
    say("with SA_RESTART: %s", waitpid(child, &status, 0) == child ? status_text(status) : error_name(errno));
    reap(sender);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"nohang", nohang}, {"nowait", nowait}, {"stops", stops}, {"selection", selection}, {"clones", clones},
        {"threads", threads}, {"many", many}, {"ignored", ignored}, {"resources", resources},
        {"interrupted", interrupted},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
