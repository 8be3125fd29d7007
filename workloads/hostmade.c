/* Signals that come from descriptors and terminals rather than from kill: taken by handlers, and by those who block them
 * and wait (sigwait), poll (sigpending) or drain (sigtimedwait with no timeout). */
#include "common.h"

#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>

static volatile sig_atomic_t count;
static siginfo_t last;

static void keep(int signo, siginfo_t *info, void *context)
{
    (void)signo, (void)context;
    last = *info;
    count++;
}

static void install(int signo, int flags)
{
    struct sigaction action = {.sa_sigaction = keep, .sa_flags = SA_SIGINFO | flags};
    sigaction(signo, &action, NULL);
}

static void block(int how, int signo)
{
    sigset_t set = set_of(signo, 0);
    pthread_sigmask(how, &set, NULL);
}

static bool is_pending(int signo)
{
    sigset_t set;
    sigpending(&set);
    return sigismember(&set, signo);
}

static bool is_blocked(int signo)
{
    sigset_t set;
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    return sigismember(&set, signo);
}

/* sigtimedwait for one signal: its code, or an error's name. */
static const char *take(int signo, long ms)
{
    static char text[48];
    sigset_t set = set_of(signo, 0);
    struct timespec timeout = {ms / 1000, ms % 1000 * MS};
    siginfo_t info = {0};
    int got = sigtimedwait(&set, &info, ms < 0 ? NULL : &timeout);
    if (got < 0)
        return error_name(errno);
    snprintf(text, sizeof text, "signal %d, code %d", got, info.si_code);
    return text;
}

/* What libraries do that must not let SIGPIPE out: block, write, drain, unblock. */
static void drain(void)
{
    int ends[2];
    if (pipe(ends) < 0)
        exit(93);
    close(ends[0]);
    count = 0;
    install(SIGPIPE, 0);
    for (int i = 0; i < 3; i++) {
        block(SIG_BLOCK, SIGPIPE);
        say("write: %s", outcome(write(ends[1], "x", 1)));
        say("pending %s", yes(is_pending(SIGPIPE)));
        say("drained: %s", take(SIGPIPE, 0));
        say("pending %s, blocked %s", yes(is_pending(SIGPIPE)), yes(is_blocked(SIGPIPE)));
        say("again: %s", take(SIGPIPE, 0));
        block(SIG_UNBLOCK, SIGPIPE);
        say("handled: %d", count);
    }
    block(SIG_BLOCK, SIGPIPE);
    long result = write(ends[1], "x", 1);
    kill(getpid(), SIGPIPE); /* one to the thread, one to the process: both are there */
    say("with a timeout: %s: %s", outcome(result), take(SIGPIPE, 1000));
    say("the other: %s", take(SIGPIPE, 1000));
    say("no more: %s", take(SIGPIPE, 10));
    result = write(ends[1], "x", 1);
    block(SIG_UNBLOCK, SIGPIPE);
    say("unblocked: %s, handled %d", outcome(result), count);
    block(SIG_BLOCK, SIGPIPE);
    result = write(ends[1], "x", 1);
    signal(SIGPIPE, SIG_IGN);
    say("ignoring drops it: %s, pending %s: %s", outcome(result), yes(is_pending(SIGPIPE)), take(SIGPIPE, 0));
    signal(SIGPIPE, SIG_DFL);
    result = write(ends[1], "x", 1);
    say("not inherited: %s", outcome(result));
    pid_t child = fork_or_die();
    if (child == 0)
        _exit(is_pending(SIGPIPE));
    say("%s", status_text(reap(child)));
    say("its own: %s", take(SIGPIPE, 0));
    block(SIG_UNBLOCK, SIGPIPE);
    close(ends[1]);
}

struct ask {
    int signo;
    long ms;
    struct gate ready;
    char got[48];
};

static void *ask_in_thread(void *argument)
{
    struct ask *ask = argument;
    gate_open(ask->ready);
    strcpy(ask->got, take(ask->signo, ask->ms));
    return NULL;
}

/* A thread waits for what its process gets from a terminal. */
static void terminal(void)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0)
        exit(92);
    char name[64];
    snprintf(name, sizeof name, "%s", ptsname(master));
    struct gate ready = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        count = 0;
        setsid();
        int slave = open(name, O_RDWR);
        ioctl(slave, TIOCSCTTY, 0);
        install(SIGINT, 0);
        block(SIG_BLOCK, SIGINT);
        block(SIG_BLOCK, SIGQUIT);
        block(SIG_BLOCK, SIGWINCH);
        checkpoint_marker();
        gate_open(ready);
        say("sigwait: %s", take(SIGINT, -1));
        gate_open(ready);
        say("with a timeout: %s", take(SIGQUIT, 5000));
        struct ask ask = {.signo = SIGINT, .ms = -1, .ready = ready};
        pthread_t thread;
        pthread_create(&thread, NULL, ask_in_thread, &ask);
        pthread_join(thread, NULL);
        say("a thread's: %s", ask.got);
        install(SIGWINCH, 0);
        gate_open(ready);
        say("window: %s", take(SIGWINCH, 5000));
        gate_open(ready);
        while (!is_pending(SIGINT) || !is_pending(SIGQUIT))
            sleep_ms(1);
        say("both are pending");
        say("handled none: %d", count);
        block(SIG_UNBLOCK, SIGINT);
        say("unblocked: %d, code %d", count, last.si_code);
        block(SIG_UNBLOCK, SIGQUIT);
        _exit(1);
    }
    const char *keys[] = {"\3", "\34", "\3"};
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        gate_wait(ready);
        sleep_ms(30); /* mostly it waits by then; if it does not, the signal is pending when it begins to */
        if (write(master, keys[i], 1) != 1)
            exit(91);
    }
    gate_wait(ready);
    struct winsize size = {.ws_row = 33, .ws_col = 44};
    ioctl(master, TIOCSWINSZ, &size);
    gate_wait(ready);
    if (write(master, "\3\34", 2) != 2)
        exit(90);
    say("its end: %s", status_text(reap(child)));
    close(master);
    gate_free(ready);
}

static void show(const char *what, int fd)
{
    say("%s: count %d, signal %d, code %d, band %#lx, descriptor %s", what, count, last.si_signo, last.si_code,
        last.si_code > 0 && last.si_code < 128 ? (unsigned long)last.si_band : 0UL,
        yes(last.si_code > 0 && last.si_code < 128 && last.si_fd == fd));
}

static void descriptors(void)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        exit(89);
    char byte;
    count = 0;
    install(SIGIO, 0);
    install(SIGRTMIN + 3, 0);
    say("owner: %d, signal %d", fcntl(pair[0], F_GETOWN), fcntl(pair[0], F_GETSIG));
    say("nobody's: %s, 65: %s", outcome(fcntl(pair[0], F_SETOWN, 0x3fffffff)), outcome(fcntl(pair[0], F_SETSIG, 65)));
    say("set: %s %s", outcome(fcntl(pair[0], F_SETOWN, getpid())), outcome(fcntl(pair[0], F_SETFL, O_ASYNC)));
    if (write(pair[1], "x", 1) != 1 || read(pair[0], &byte, 1) != 1)
        exit(88);
    show("SIGIO", pair[0]);
    say("owner is this one: %s", yes(fcntl(pair[0], F_GETOWN) == getpid()));
    count = 0;
    say("F_SETSIG: %s", outcome(fcntl(pair[0], F_SETSIG, SIGRTMIN + 3)));
    if (write(pair[1], "x", 1) != 1 || read(pair[0], &byte, 1) != 1)
        exit(87);
    show("real-time", pair[0]);
    block(SIG_BLOCK, SIGRTMIN + 3);
    for (int i = 0; i < 3; i++)
        if (write(pair[1], "x", 1) != 1)
            exit(86);
    say("blocked: pending %d", is_pending(SIGRTMIN + 3));
    for (int i = 0; i < 3; i++)
        say("taken: %s", take(SIGRTMIN + 3, 1000));
    say("pending %d: %s", is_pending(SIGRTMIN + 3), take(SIGRTMIN + 3, 0));
    count = 0;
    for (int i = 0; i < 3; i++)
        if (write(pair[1], "x", 1) != 1)
            exit(85);
    block(SIG_UNBLOCK, SIGRTMIN + 3);
    say("unblocked: %d", count);
    /* To a thread, and to a process group. */
    struct f_owner_ex owner = {F_OWNER_TID, (pid_t)syscall(SYS_gettid)};
    count = 0;
    say("to a thread: %s", outcome(fcntl(pair[0], F_SETOWN_EX, &owner)));
    if (write(pair[1], "x", 1) != 1)
        exit(84);
    show("to a thread", pair[0]);
    struct gate ready = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        setpgid(0, 0);
        block(SIG_BLOCK, SIGRTMIN + 3);
        gate_open(ready);
        say("to a group: %s", take(SIGRTMIN + 3, 5000));
        _exit(0);
    }
    setpgid(child, child);
    gate_wait(ready);
    say("F_SETOWN of a group: %s", outcome(fcntl(pair[0], F_SETOWN, -child)));
    if (write(pair[1], "x", 1) != 1)
        exit(83);
    say("%s", status_text(reap(child)));
    fcntl(pair[0], F_SETSIG, 0);
    fcntl(pair[0], F_SETOWN, getpid());
    count = 0;
    signal(SIGURG, SIG_DFL);
    close(pair[1]);
    show("end of the stream", pair[0]);
    close(pair[0]);
    gate_free(ready);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"drain", drain}, {"terminal", terminal}, {"descriptors", descriptors},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
