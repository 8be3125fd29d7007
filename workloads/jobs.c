/* Signals between processes: default actions, groups, stops and continues, SIGCHLD, SIGPIPE, threads. */
#include "common.h"

#include <pthread.h>

static volatile sig_atomic_t count, last_code, last_status;

static void note(int signo)
{
    (void)signo;
    count++;
}

static void note_child(int signo, siginfo_t *info, void *context)
{
    (void)signo;
    (void)context;
    last_code = info->si_code;
    last_status = info->si_status;
    count++;
}

static pid_t sleeper(pid_t group)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        if (group >= 0)
            setpgid(0, group);
        for (;;)
            pause();
    }
    if (group >= 0)
        setpgid(child, group);
    return child;
}

static void default_actions(void)
{
    for (int signo = 1; signo <= 31; signo++) {
        if (signo == SIGSTOP || signo == SIGTSTP || signo == SIGTTIN || signo == SIGTTOU)
            continue;
        pid_t child = fork_or_die();
        if (child == 0) {
            signal(signo, SIG_DFL);
            raise(signo);
            _exit(0);
        }
        say("default of %d: %s", signo, status_text(reap(child)));
    }
    for (int signo = SIGRTMIN; signo <= SIGRTMAX; signo += 15) {
        pid_t child = fork_or_die();
        if (child == 0) {
            raise(signo);
            _exit(0);
        }
        say("default of a real-time one: %s", yes(WTERMSIG(reap(child)) == signo));
    }
    const int stops[] = {SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU};
    for (size_t i = 0; i < COUNT_OF(stops); i++) {
        int status;
        pid_t child = sleeper(0);
        kill(child, stops[i]);
        waitpid(child, &status, WUNTRACED);
        say("default of %d: %s", stops[i], status_text(status));
        kill(child, SIGKILL);
        reap(child);
    }
    pid_t child = fork_or_die();
    if (child == 0) {
        abort();
    }
    say("abort: %s", status_text(reap(child)));
    child = fork_or_die();
    if (child == 0) {
        setsid(); /* an orphaned group: terminal stops have no effect */
        raise(SIGTSTP);
        raise(SIGTTOU);
        _exit(9);
    }
    say("terminal stops in an orphaned group: %s", status_text(reap(child)));
}

static void stop_and_continue(void)
{
    int status;
    struct gate progress = gate_new();
    sigset_t blocked, old;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCONT);
    signal(SIGCONT, note);
    sigprocmask(SIG_BLOCK, &blocked, &old);
    pid_t child = fork_or_die();
    if (child == 0)
        for (;;) {
            sigsuspend(&old);
            gate_open(progress);
        }
    sigprocmask(SIG_SETMASK, &old, NULL);
    signal(SIGCONT, SIG_DFL);
    for (int round = 0; round < 5; round++) {
        kill(child, SIGSTOP);
        waitpid(child, &status, WUNTRACED);
        kill(child, SIGCONT);
        gate_wait(progress);
    }
    say("five stops, five handlers of SIGCONT");
    waitpid(child, &status, WCONTINUED | WNOHANG);
    struct pollfd waiter = {progress.ends[0], POLLIN, 0};
    kill(child, SIGSTOP);
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    say("two stops at once: reported again %d", waitpid(child, &status, WUNTRACED | WNOHANG));
    say("while stopped nothing runs: %d", poll(&waiter, 1, 30));
    kill(child, SIGCONT);
    gate_wait(progress);
    kill(child, SIGKILL);
    reap(child);

    child = fork_or_die(); /* a sleep goes on across a stop */
    if (child == 0) {
        struct timespec pause = {0, 100 * MS};
        int64_t start = now_ns(CLOCK_MONOTONIC);
        int result = nanosleep(&pause, NULL);
        int64_t took = now_ns(CLOCK_MONOTONIC) - start;
        _exit(result == 0 && took >= 100 * MS && took < 400 * MS ? 0 : 1);
    }
    sleep_ms(20);
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    kill(child, SIGCONT);
    say("sleep across a stop: %s", status_text(reap(child)));

    child = fork_or_die(); /* a stop that is pending goes when SIGCONT comes, and the other way round */
    if (child == 0) {
        sigset_t set, pending;
        sigemptyset(&set);
        sigaddset(&set, SIGTSTP);
        sigaddset(&set, SIGCONT);
        sigprocmask(SIG_BLOCK, &set, NULL);
        raise(SIGTSTP);
        raise(SIGCONT);
        sigpending(&pending);
        int first = sigismember(&pending, SIGTSTP) * 2 + sigismember(&pending, SIGCONT);
        raise(SIGTSTP);
        sigpending(&pending);
        _exit(first * 4 + sigismember(&pending, SIGTSTP) * 2 + sigismember(&pending, SIGCONT));
    }
    say("stop and continue pending: %s", status_text(reap(child)));
}

static void child_signals(void)
{
    int status;
    struct sigaction action = {.sa_sigaction = note_child, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaction(SIGCHLD, &action, NULL);
    sigprocmask(SIG_BLOCK, &set, &old);
    pid_t child = sleeper(0);
    const struct { int signo; int options; int code; const char *what; } events[] = {
        {SIGSTOP, WSTOPPED, CLD_STOPPED, "stop"}, {SIGCONT, WCONTINUED, CLD_CONTINUED, "continue"},
        {SIGTERM, WEXITED, CLD_KILLED, "kill"},
    };
    for (size_t i = 0; i < COUNT_OF(events); i++) {
        siginfo_t info;
        count = 0;
        kill(child, events[i].signo);
        sigsuspend(&old);
        say("%s: signals %d, code %s, status %d", events[i].what, count, yes(last_code == events[i].code), last_status);
        waitid(P_PID, (id_t)child, &info, events[i].options);
    }
    action.sa_flags |= SA_NOCLDSTOP;
    sigaction(SIGCHLD, &action, NULL);
    count = 0;
    child = sleeper(0);
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    kill(child, SIGCONT);
    waitpid(child, &status, WCONTINUED);
    sigprocmask(SIG_SETMASK, &old, NULL);
    say("SA_NOCLDSTOP: %d", count);
    kill(child, SIGKILL);
    reap(child);
    say("killed all the same: %d", count);
    signal(SIGCHLD, SIG_DFL);
}

static void groups(void)
{
    pid_t leader = sleeper(0), others[3];
    int killed = 0;
    for (size_t i = 0; i < COUNT_OF(others); i++)
        others[i] = sleeper(leader);
    say("kill -group with 0: %s", outcome(kill(-leader, 0)));
    kill(-leader, SIGUSR1);
    for (int i = 0; i < 4; i++)
        killed += WTERMSIG(reap(-1)) == SIGUSR1;
    say("all of the group: %d", killed);
    say("the group is gone: %s", outcome(kill(-leader, 0)));
    pid_t child = fork_or_die();
    if (child == 0) {
        setpgid(0, 0);
        signal(SIGUSR1, note);
        for (int i = 0; i < 3; i++)
            sleeper(-1);
        kill(0, SIGUSR1);
        int ended = 0, status;
        while (ended < 3 && waitpid(-1, &status, 0) > 0)
            ended++; /* the handler is inherited, so they only wake: end them */
        _exit(ended);
    }
    sleep_ms(50);
    kill(-child, SIGTERM);
    say("kill 0 with a handler, then SIGTERM to the group: %s", status_text(reap(child)));
}

/* Only as a user of its own: natively kill(-1) of root would end the machine. */
static void everyone(void)
{
    uid_t other = spare_uid();
    pid_t child = fork_or_die();
    if (child == 0) {
        if (getuid() != 0 || setgid(other) < 0 || setuid(other) < 0 || getuid() != other) {
            say("all of them: yes"); /* cannot be tried without a user of its own */
            _exit(0);
        }
        pid_t one = sleeper(0), two = sleeper(-1);
        setsid();
        signal(SIGTERM, SIG_IGN);
        say("kill of another user's: %s", outcome(kill(getppid(), SIGTERM)));
        int result = kill(-1, SIGUSR2);
        bool both = WTERMSIG(reap(one)) == SIGUSR2 && WTERMSIG(reap(two)) == SIGUSR2;
        say("all of them: %s", yes(result == 0 && both));
        say("nobody left: %s", outcome(kill(-1, SIGUSR2)));
        _exit(0);
    }
    say("and not the sender: %s", status_text(reap(child)));
}

static void broken_pipes(void)
{
    struct gate gate = gate_new();
    close(gate.ends[0]);
    pid_t child = fork_or_die();
    if (child == 0)
        _exit(write(gate.ends[1], "x", 1) < 0 ? 1 : 0);
    say("SIGPIPE: %s", status_text(reap(child)));
    signal(SIGPIPE, SIG_IGN);
    say("ignored: %s", outcome(write(gate.ends[1], "x", 1)));
    count = 0;
    signal(SIGPIPE, note);
    long result = write(gate.ends[1], "x", 1);
    say("handled: %s, %d", outcome(result), count);
    signal(SIGPIPE, SIG_DFL);
    close(gate.ends[1]);
}

static volatile pid_t handling_thread;

static void note_thread(int signo)
{
    (void)signo;
    handling_thread = (pid_t)syscall(SYS_gettid);
    count++;
}

struct worker {
    pthread_t handle;
    volatile pid_t tid;
    volatile bool stop;
    bool blocks;
};

static void *work(void *argument)
{
    struct worker *worker = argument;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    if (worker->blocks)
        pthread_sigmask(SIG_BLOCK, &set, NULL);
    worker->tid = (pid_t)syscall(SYS_gettid);
    while (!worker->stop)
        sleep_ms(1);
    return NULL;
}

static void threads(void)
{
    struct worker open = {.blocks = false}, closed = {.blocks = true};
    sigset_t set, pending;
    struct sigaction action = {.sa_handler = note_thread};
    sigaction(SIGUSR1, &action, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_create(&open.handle, NULL, work, &open);
    pthread_create(&closed.handle, NULL, work, &closed);
    while (!open.tid || !closed.tid)
        sleep_ms(1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    count = 0;
    kill(getpid(), SIGUSR1);
    while (count < 1)
        sleep_ms(1);
    say("to the process: a thread that does not block it: %s", yes(handling_thread == open.tid));
    pthread_kill(open.handle, SIGUSR1);
    while (count < 2)
        sleep_ms(1);
    say("to a thread: that one: %s", yes(handling_thread == open.tid));
    pthread_kill(closed.handle, SIGUSR1);
    sleep_ms(20);
    sigpending(&pending);
    say("to one that blocks it: not taken %s, nor pending here %d", yes(count == 2), sigismember(&pending, SIGUSR1));
    open.stop = true;
    pthread_join(open.handle, NULL);
    kill(getpid(), SIGUSR1);
    sigpending(&pending);
    say("all block it: pending %d", sigismember(&pending, SIGUSR1));
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    say("taken by the first that unblocks: %s", yes(count == 3 && handling_thread == getpid()));
    closed.stop = true;
    pthread_join(closed.handle, NULL);
    say("a thread's pending signal goes with it: %d", count);
    pid_t child = fork_or_die();
    if (child == 0) {
        struct worker worker = {.blocks = true};
        pthread_create(&worker.handle, NULL, work, &worker);
        while (!worker.tid)
            sleep_ms(1);
        pthread_kill(worker.handle, SIGTERM);
        sleep_ms(5000);
        _exit(0);
    }
    say("a default action takes the whole process: %s", status_text(reap(child)));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"defaults", default_actions}, {"stops", stop_and_continue}, {"sigchld", child_signals}, {"groups", groups},
        {"everyone", everyone}, {"sigpipe", broken_pipes}, {"threads", threads},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
