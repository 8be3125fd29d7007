/* Dispositions, handlers, masks and queues. Job control and default actions are in jobs.c, what a
 * handler sees and may change in its frame in frames.c. */
#include "common.h"

static volatile sig_atomic_t count, order[16], depth, deepest;
static siginfo_t last;

static void note(int signo)
{
    if (count < (int)COUNT_OF(order))
        order[count] = signo;
    count++;
}

static void keep(int signo, siginfo_t *info, void *context)
{
    (void)context;
    last = *info;
    note(signo);
}

static void install(int signo, void (*handler)(int), int flags, int masked)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    if (masked)
        sigaddset(&action.sa_mask, masked);
    sigaction(signo, &action, NULL);
}

static void install_info(int signo, int flags)
{
    struct sigaction action = {.sa_sigaction = keep, .sa_flags = SA_SIGINFO | flags};
    sigaction(signo, &action, NULL);
}

static void block(int how, int first, int second)
{
    sigset_t set = set_of(first, second);
    sigprocmask(how, &set, NULL);
}

static void handlers(void)
{
    count = 0;
    install(SIGUSR1, note, 0, 0);
    say("previous handler returned: %s", yes(signal(SIGUSR1, note) == note));
    raise(SIGUSR1);
    kill(getpid(), SIGUSR1);
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1);
    syscall(SYS_tkill, syscall(SYS_gettid), SIGUSR1);
    say("raise, kill, tgkill, tkill: %d", count);
    signal(SIGUSR1, SIG_IGN);
    raise(SIGUSR1);
    say("ignored: %d", count);
    install(SIGUSR1, note, SA_RESETHAND, 0);
    raise(SIGUSR1);
    struct sigaction action;
    sigaction(SIGUSR1, NULL, &action);
    say("SA_RESETHAND: %d, then default: %s", count, yes(action.sa_handler == SIG_DFL));
    install(SIGUSR1, note, SA_RESTART | SA_NODEFER, SIGUSR2);
    sigaction(SIGUSR1, NULL, &action);
    say("read back: flags %s, mask %d %d", yes((action.sa_flags & ~0x04000000) == (SA_RESTART | SA_NODEFER)),
        sigismember(&action.sa_mask, SIGUSR2), sigismember(&action.sa_mask, SIGUSR1));
    sigaddset(&action.sa_mask, SIGKILL);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR1, NULL, &action);
    say("SIGKILL in a mask: %d", sigismember(&action.sa_mask, SIGKILL));
    say("handler for SIGKILL: %s, SIGSTOP: %s", outcome(sigaction(SIGKILL, &action, NULL)),
        outcome(sigaction(SIGSTOP, &action, NULL)));
    say("signal 0: %s, 65: %s", outcome(syscall(SYS_rt_sigaction, 0, NULL, NULL, 8)),
        outcome(syscall(SYS_rt_sigaction, 65, NULL, NULL, 8)));
    say("wrong size of a set: %s", outcome(syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 4)));
    say("kill with 0: %s, with 65: %s", outcome(kill(getpid(), 0)), outcome(kill(getpid(), 65)));
    say("tgkill in another group: %s, of 0: %s", outcome(syscall(SYS_tgkill, getppid(), getpid(), 0)),
        outcome(syscall(SYS_tgkill, 0, 0, 0)));
    signal(SIGUSR1, SIG_DFL);
}

static void show(const char *what)
{
    say("%s: count %d, signal %d, code %d, own pid %s, own uid %s, value %d", what, count, last.si_signo, last.si_code,
        yes(last.si_pid == getpid()), yes(last.si_uid == getuid()), last.si_value.sival_int);
}

static void information(void)
{
    count = 0;
    install_info(SIGUSR1, 0);
    install_info(SIGRTMIN, 0);
    memset(&last, 0, sizeof last);
    kill(getpid(), SIGUSR1);
    show("kill");
    memset(&last, 0, sizeof last);
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1);
    show("tgkill");
    memset(&last, 0, sizeof last);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 4711});
    show("sigqueue");
    siginfo_t own = {.si_code = -77};
    own.si_value.sival_int = 99;
    own.si_pid = getpid();
    own.si_uid = getuid();
    memset(&last, 0, sizeof last);
    int result = (int)syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGRTMIN, &own);
    say("rt_tgsigqueueinfo: %s", outcome(result));
    show("with a code of its own");
    own.si_code = SI_USER;
    say("to another as kill's: %s", outcome(syscall(SYS_rt_sigqueueinfo, getppid(), SIGRTMIN, &own)));
    pid_t child = fork_or_die();
    if (child == 0)
        _exit(19);
    install_info(SIGCHLD, 0);
    reap(child);
    memset(&last, 0, sizeof last);
    child = fork_or_die();
    if (child == 0) {
        sleep_ms(20);
        _exit(20);
    }
    while (last.si_signo == 0)
        sleep_ms(1);
    say("SIGCHLD: code %s, status %d, its pid %s", yes(last.si_code == CLD_EXITED), last.si_status, yes(last.si_pid == child));
    reap(child);
    signal(SIGCHLD, SIG_DFL);
}

static void masks(void)
{
    sigset_t pending, old;
    count = 0;
    for (int signo = SIGRTMIN; signo < SIGRTMIN + 3; signo++)
        install(signo, note, 0, 0);
    install(SIGUSR1, note, 0, 0);
    install(SIGUSR2, note, 0, 0);
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &old);
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    say("SIGKILL and SIGSTOP cannot be blocked: %d %d", sigismember(&now, SIGKILL), sigismember(&now, SIGSTOP));
    for (int i = 0; i < 3; i++) {
        sigqueue(getpid(), SIGRTMIN + 2 - i, (union sigval){.sival_int = i});
        sigqueue(getpid(), SIGRTMIN + 2 - i, (union sigval){.sival_int = i});
        kill(getpid(), SIGUSR2);
        kill(getpid(), SIGUSR1);
    }
    sigpending(&pending);
    say("pending: %d %d %d %d", sigismember(&pending, SIGUSR1), sigismember(&pending, SIGUSR2),
        sigismember(&pending, SIGRTMIN), sigismember(&pending, SIGHUP));
    say("none delivered: %d", count);
    sigprocmask(SIG_SETMASK, &old, NULL);
    say("then %d; standard ones once, real-time ones each time", count);
    block(SIG_BLOCK, SIGUSR1, 0);
    kill(getpid(), SIGUSR1);
    signal(SIGUSR1, SIG_IGN); /* drops what is pending */
    sigpending(&pending);
    say("ignoring drops a pending signal: %d", sigismember(&pending, SIGUSR1));
    install(SIGUSR1, note, 0, 0);
    block(SIG_UNBLOCK, SIGUSR1, 0);
    say("still %d", count);
    say("sigprocmask 9: %s", outcome(sigprocmask(9, &old, NULL)));
    block(SIG_BLOCK, SIGUSR1, 0);
    raise(SIGUSR1);
    pid_t child = fork_or_die();
    if (child == 0) {
        sigpending(&pending);
        sigprocmask(SIG_BLOCK, NULL, &now);
        _exit(sigismember(&pending, SIGUSR1) * 2 + sigismember(&now, SIGUSR1));
    }
    say("a child has the mask, not the pending: %s", status_text(reap(child)));
    block(SIG_UNBLOCK, SIGUSR1, 0);
}

static void nest(int signo)
{
    note(signo);
    depth++;
    if (depth > deepest)
        deepest = depth;
    if (count < 4)
        raise(signo);
    depth--;
}

static void nest_other(int signo)
{
    note(signo);
    raise(SIGUSR2);
    note(0);
}

static void nesting(void)
{
    count = deepest = 0;
    install(SIGUSR1, nest, 0, 0);
    raise(SIGUSR1);
    say("a handler's own signal waits: %d times, deepest %d", count, deepest);
    count = deepest = 0;
    install(SIGUSR1, nest, SA_NODEFER, 0);
    raise(SIGUSR1);
    say("SA_NODEFER: %d times, deepest %d", count, deepest);
    install(SIGUSR2, note, 0, 0);
    count = 0;
    install(SIGUSR1, nest_other, 0, 0);
    raise(SIGUSR1);
    say("another within: %d, in the middle %s", count, yes(order[1] == SIGUSR2));
    count = 0;
    install(SIGUSR1, nest_other, 0, SIGUSR2);
    raise(SIGUSR1);
    say("sa_mask holds it back: %d, at the end %s", count, yes(order[2] == SIGUSR2));
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    say("mask restored: %d %d", sigismember(&now, SIGUSR1), sigismember(&now, SIGUSR2));
}

/* Sends SIGUSR1 to this process every 30 ms until it is ended: the first may come before the wait that it is to
 * interrupt has begun. */
static pid_t sender(void)
{
    pid_t parent = getpid(), child = fork_or_die();
    if (child == 0) {
        signal(SIGUSR1, SIG_DFL);
        for (;;) {
            sleep_ms(30);
            kill(parent, SIGUSR1);
        }
    }
    return child;
}

static void end_of(pid_t child)
{
    kill(child, SIGKILL);
    reap(child);
}

/* Sends SIGUSR1 once, after 30 ms, and a byte to `then` after 60. */
static pid_t sender_once(int then)
{
    pid_t parent = getpid(), child = fork_or_die();
    if (child == 0) {
        sleep_ms(30);
        kill(parent, SIGUSR1);
        sleep_ms(30);
        _exit(then >= 0 && write(then, "x", 1) != 1);
    }
    return child;
}

static void interruptions(void)
{
    char byte;
    for (int restart = 0; restart < 2; restart++) {
        install(SIGUSR1, note, restart ? SA_RESTART : 0, 0);
        const char *with = restart ? "restart" : "plain";
        struct gate gate = gate_new();
        struct timespec left, request = {10, 0};
        pid_t child;
        if (restart) {
            count = 0;
            child = sender_once(gate.ends[1]);
            long result = read(gate.ends[0], &byte, 1);
            say("%s read: %s, handled %d", with, outcome(result), count);
            reap(child);
        } else {
            child = sender();
            say("%s read: %s", with, outcome(read(gate.ends[0], &byte, 1)));
            end_of(child);
        }
        child = sender();
        int64_t start = now_ns(CLOCK_MONOTONIC);
        long result = nanosleep(&request, &left);
        int64_t slept = 10000 * MS - (left.tv_sec * 1000 * MS + left.tv_nsec), took = now_ns(CLOCK_MONOTONIC) - start;
        say("%s nanosleep: %s, rest is right %s", with, outcome(result), yes(slept > 0 && slept <= took && took - slept < 5000 * MS));
        end_of(child);
        child = sender();
        int error = clock_nanosleep(CLOCK_MONOTONIC, 0, &request, &left);
        say("%s clock_nanosleep: %s", with, error_name(error));
        end_of(child);
        child = sender();
        struct pollfd waiter = {-1, POLLIN, 0};
        say("%s poll: %s", with, outcome(poll(&waiter, 1, 10000)));
        end_of(child);
        child = sender();
        say("%s pause: %s", with, outcome(pause()));
        end_of(child);
        gate_free(gate);
    }
    signal(SIGUSR1, SIG_IGN);
    pid_t child = sender();
    struct timespec request = {0, 80 * MS};
    int64_t start = now_ns(CLOCK_MONOTONIC);
    int result = nanosleep(&request, NULL);
    say("ignored signals do not interrupt: %s, whole time %s", outcome(result), yes(now_ns(CLOCK_MONOTONIC) - start >= 80 * MS));
    end_of(child);
}

static void waiting(void)
{
    sigset_t set = set_of(SIGUSR1, SIGRTMIN), empty = set_of(0, 0), now;
    siginfo_t info = {0};
    struct timespec zero = {0, 0}, little = {0, 30 * MS};
    int signo = 0;
    count = 0;
    install(SIGUSR1, note, 0, 0);
    install(SIGUSR2, note, 0, 0);
    block(SIG_SETMASK, SIGUSR1, SIGRTMIN);
    say("sigtimedwait, nothing there: %s, %s", outcome(sigtimedwait(&set, &info, &zero)),
        outcome(sigtimedwait(&set, &info, &little)));
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 5});
    kill(getpid(), SIGUSR1);
    say("lowest number first: %s", yes(sigtimedwait(&set, &info, &zero) == SIGUSR1 && info.si_code == SI_USER));
    int got = sigwaitinfo(&set, &info);
    say("then the other: %s, value %d, code %s", yes(got == SIGRTMIN), info.si_value.sival_int, yes(info.si_code == SI_QUEUE));
    pid_t child = sender_once(-1);
    int error = sigwait(&set, &signo);
    say("sigwait: %s, %s, no handler ran: %d", error_name(error), yes(signo == SIGUSR1), count);
    reap(child);
    pid_t parent = getpid();
    if ((child = fork_or_die()) == 0) {
        sleep_ms(30);
        kill(parent, SIGUSR2);
        _exit(0);
    }
    got = (int)syscall(SYS_rt_sigtimedwait, &set, &info, NULL, 8); /* musl's function hides EINTR */
    say("another signal interrupts sigwaitinfo: %s, handled %d", outcome(got), count);
    reap(child);
    child = sender_once(-1);
    int result = sigsuspend(&empty);
    say("sigsuspend: %s, handled %d", outcome(result), count);
    sigprocmask(SIG_BLOCK, NULL, &now);
    say("mask restored: %d", sigismember(&now, SIGUSR1));
    reap(child);
    kill(getpid(), SIGUSR1);
    say("sigsuspend with one pending: %s", outcome(sigsuspend(&empty)));
    kill(getpid(), SIGUSR1);
    result = ppoll(NULL, 0, &little, &empty);
    say("ppoll with a mask: %s, handled %d", outcome(result), count);
    block(SIG_SETMASK, 0, 0);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"handlers", handlers}, {"siginfo", information}, {"masks", masks}, {"nesting", nesting},
        {"interruptions", interruptions}, {"waiting", waiting},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
