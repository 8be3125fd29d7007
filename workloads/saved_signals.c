/* Checkpoints in the midst of signals: in handlers, with signals pending and queued, while peers wait for some. */
#include "saved_common.h"

#include <setjmp.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <ucontext.h>

static volatile sig_atomic_t count;
static struct gate ready, go;

static void note(int signo)
{
    (void)signo;
    count++;
}

/* -- in a handler */
static volatile int at_markers;

static bool on_alternate_stack(void)
{
    stack_t now;
    sigaltstack(NULL, &now);
    return now.ss_flags == SS_ONSTACK;
}

static void innermost(int signo)
{
    char kept[256];
    memset(kept, signo, sizeof kept);
    checkpoint_marker();
    at_markers++;
    bool same = true;
    for (size_t i = 0; i < sizeof kept; i++)
        same &= kept[i] == (char)signo;
    say("innermost: alternate stack %s, its locals %s", yes(on_alternate_stack()), yes(same));
    say("blocked: USR1 %s USR2 %s WINCH %s", yes(is_blocked(SIGUSR1)), yes(is_blocked(SIGUSR2)),
        yes(is_blocked(SIGWINCH)));
}

static void outer(int signo, siginfo_t *info, void *context)
{
    ucontext_t *frame = context;
    raise(SIGUSR2);
    say("outer: signal %d, value %d, code %d, it was masked before: %d", signo, info->si_value.sival_int, info->si_code,
        sigismember(&frame->uc_sigmask, SIGWINCH));
    sigaddset(&frame->uc_sigmask, SIGHUP); /* the frame is what counts at the return */
}

static void handler(void)
{
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536}, none = {.ss_flags = SS_DISABLE}, now;
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_sigaction = outer, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGRTMIN, &action, NULL);
    struct sigaction inner = {.sa_handler = innermost, .sa_flags = SA_ONSTACK | SA_RESETHAND};
    sigaddset(&inner.sa_mask, SIGWINCH);
    sigaddset(&inner.sa_mask, SIGUSR1);
    sigaction(SIGUSR2, &inner, NULL);
    at_markers = 0;
    double before = 1.5;
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 77});
    say("after both: %d, a double %g", at_markers, before * 2);
    say("blocked: USR1 %s USR2 %s WINCH %s HUP %s RTMIN %s", yes(is_blocked(SIGUSR1)), yes(is_blocked(SIGUSR2)),
        yes(is_blocked(SIGWINCH)), yes(is_blocked(SIGHUP)), yes(is_blocked(SIGRTMIN)));
    sigaction(SIGUSR2, NULL, &inner);
    say("SA_RESETHAND: default %s", yes(inner.sa_handler == SIG_DFL));
    sigaltstack(NULL, &now);
    bool same = now.ss_sp == stack.ss_sp && now.ss_size == stack.ss_size;
    say("alternate stack: same %s, in use %s", yes(same), yes(now.ss_flags != 0));
    sigaltstack(&none, NULL);
    free(stack.ss_sp);
    block(SIG_SETMASK, 0, 0);
}

static sigjmp_buf back;

static void leaves(int signo)
{
    (void)signo;
    checkpoint_marker();
    siglongjmp(back, 7);
}

static void left_by_a_jump(void)
{
    install(SIGUSR1, leaves, 0);
    int value = sigsetjmp(back, 1);
    if (value == 0)
        raise(SIGUSR1);
    say("back with %d, blocked %s", value, yes(is_blocked(SIGUSR1)));
}

/* -- calls whose interruption is under way: the handler runs, and then they say EINTR, or begin again */
static void mark_first(int signo)
{
    (void)signo;
    if (count++ == 0)
        checkpoint_marker();
}

static int reads(void)
{
    char byte;
    gate_open(ready);
    long result = read(go.ends[0], &byte, 1);
    say("  read: %s %ld, handled %s", outcome(result), result, yes(count > 0));
    return 1;
}

static int polls(void)
{
    struct pollfd waiter = {-1, POLLIN, 0};
    gate_open(ready);
    say("  poll: %s", outcome(poll(&waiter, 1, -1)));
    return 2;
}

static int sleeps(void)
{
    struct timespec left = {0}, request = {1000, 0};
    gate_open(ready);
    long result = nanosleep(&request, &left);
    say("  nanosleep: %s, most is left %s", outcome(result), yes(left.tv_sec > 900 && left.tv_sec < 1000));
    return 3;
}

static int suspends(void)
{
    sigset_t empty = set_of(0, 0);
    block(SIG_BLOCK, SIGUSR1, SIGHUP);
    gate_open(ready);
    long result = sigsuspend(&empty);
    say("  sigsuspend: %s, blocked again %s", outcome(result), yes(is_blocked(SIGUSR1) && is_blocked(SIGHUP)));
    return 4;
}

static int pauses(void)
{
    gate_open(ready);
    say("  pause: %s", outcome(pause()));
    return 5;
}

static int waits_for_a_child(void)
{
    pid_t child = fork_or_die();
    if (child == 0)
        for (;;)
            pause();
    gate_open(ready);
    int status;
    say("  wait4: %s", outcome(waitpid(child, &status, 0)));
    kill(child, SIGKILL);
    return reap(child) == SIGKILL ? 6 : 0;
}

static int waits_for_a_signal(void)
{
    siginfo_t info;
    sigset_t set = set_of(SIGUSR2, 0);
    block(SIG_BLOCK, SIGUSR2, 0);
    gate_open(ready);
    say("  sigwaitinfo: %s", outcome(syscall(SYS_rt_sigtimedwait, &set, &info, NULL, 8)));
    return 7;
}

static void interrupted(void)
{
    int (*const calls[])(void) = {polls, sleeps, suspends, pauses, waits_for_a_child, waits_for_a_signal};
    for (size_t i = 0; i < COUNT_OF(calls); i++) {
        int status;
        ready = gate_new();
        count = 0;
        install(SIGUSR1, mark_first, 0);
        pid_t child = child_of(calls[i]);
        gate_wait(ready);
        do {
            let_them_wait();
            kill(child, SIGUSR1); /* again, should it have come before the call had begun */
        } while (waitpid(child, &status, WNOHANG) == 0);
        say("%s", status_text(status));
        gate_free(ready);
    }
}

static void restarted(void)
{
    ready = gate_new();
    go = gate_new();
    count = 0;
    install(SIGUSR1, mark_first, SA_RESTART);
    pid_t child = child_of(reads);
    gate_wait(ready);
    let_them_wait();
    kill(child, SIGUSR1);
    let_them_wait();
    gate_open(go);
    say("%s", status_text(reap(child)));
    gate_free(ready);
    gate_free(go);
}

/* -- peers that wait for signals while another makes the marker call */
static int suspends_for_one(void)
{
    sigset_t empty = set_of(SIGUSR2, 0);
    gate_open(ready);
    long first = sigsuspend(&empty);
    say("  sigsuspend: %s, handled %d, blocked again %s", outcome(first), count, yes(is_blocked(SIGUSR1)));
    return 0;
}

static int takes_one(void)
{
    siginfo_t info = {0};
    sigset_t set = set_of(SIGUSR1, SIGRTMIN + 3);
    struct timespec long_time = {1000, 0};
    gate_open(ready);
    int got = sigtimedwait(&set, &info, &long_time);
    bool right = got == SIGUSR1 && info.si_pid == getppid();
    say("  sigtimedwait: the parent's USR1 %s, code %d", yes(right), info.si_code);
    return 0;
}

static int waits_in_vain(void)
{
    sigset_t set = set_of(SIGRTMIN + 3, 0);
    struct timespec little = {0, 150 * MS};
    gate_open(ready);
    return sigtimedwait(&set, NULL, &little) < 0 && errno == EAGAIN ? 11 : 12; /* it is done at some time or other */
}

static int polls_with_a_mask(void)
{
    sigset_t empty = set_of(SIGUSR2, 0);
    gate_open(ready);
    long result = ppoll(NULL, 0, NULL, &empty);
    say("  ppoll: %s, handled %d, blocked again %s", outcome(result), count, yes(is_blocked(SIGUSR1)));
    return 0;
}

static int selects_with_a_mask(void)
{
    sigset_t empty = set_of(SIGUSR2, 0);
    gate_open(ready);
    long result = pselect(0, NULL, NULL, NULL, NULL, &empty);
    say("  pselect: %s, handled %d, blocked again %s", outcome(result), count, yes(is_blocked(SIGUSR1)));
    return 0;
}

static int epolls_with_a_mask(void)
{
    sigset_t empty = set_of(SIGUSR2, 0);
    struct epoll_event event;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    gate_open(ready);
    long result = epoll_pwait(epoll, &event, 1, -1, &empty);
    say("  epoll_pwait: %s, handled %d, blocked again %s", outcome(result), count, yes(is_blocked(SIGUSR1)));
    return 0;
}

static void peers(void)
{
    int (*const bodies[])(void) = {
        suspends_for_one, takes_one, waits_in_vain, polls_with_a_mask, selects_with_a_mask, epolls_with_a_mask,
    };
    pid_t children[COUNT_OF(bodies)];
    count = 0;
    install(SIGUSR1, note, 0);
    block(SIG_SETMASK, SIGUSR1, SIGRTMIN + 3);
    ready = gate_new();
    for (size_t i = 0; i < COUNT_OF(bodies); i++) {
        children[i] = child_of(bodies[i]);
        gate_wait(ready);
    }
    let_them_wait();
    checkpoint_marker();
    for (size_t i = 0; i < COUNT_OF(bodies); i++) {
        if (bodies[i] != waits_in_vain)
            kill(children[i], SIGUSR1);
        say("%s", status_text(reap(children[i])));
    }
    gate_free(ready);
    block(SIG_SETMASK, 0, 0);
}

/* -- pending */
/* Where real-time signals begin for programs is the C library's affair. */
static int number(int signo)
{
    return signo >= SIGRTMIN ? signo - SIGRTMIN + 100 : signo;
}

static void take(const char *who, sigset_t *set)
{
    siginfo_t info;
    struct timespec zero = {0, 0};
    int got;
    while ((got = sigtimedwait(set, &info, &zero)) > 0) {
        if (info.si_code == SI_QUEUE)
            say("  %s: %d, queued with %d", who, number(got), info.si_value.sival_int);
        else
            say("  %s: %d, code %d, own %s", who, number(got), info.si_code, yes(info.si_pid == getpid()));
    }
    say("  %s: then %s", who, outcome(got));
}

static void send_all(pid_t to)
{
    for (int i = 0; i < 3; i++) {
        kill(to, SIGUSR1);
        kill(to, SIGTERM);
        kill(to, SIGCONT);
        sigqueue(to, SIGRTMIN + 2, (union sigval){.sival_int = 20 + i});
        sigqueue(to, SIGRTMIN + 1, (union sigval){.sival_int = 10 + i});
    }
    sigqueue(to, SIGUSR2, (union sigval){.sival_int = 1});
    sigqueue(to, SIGUSR2, (union sigval){.sival_int = 2});
}

static int takes_all(void)
{
    sigset_t all;
    sigfillset(&all);
    gate_open(ready);
    gate_wait(go);
    take("child", &all);
    return 0;
}

static int dies_when_it_unblocks(void)
{
    gate_open(ready);
    gate_wait(go);
    block(SIG_SETMASK, 0, 0);
    return 50;
}

static void pending(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    ready = gate_new();
    go = gate_new();
    pid_t takes = child_of(takes_all), dies = child_of(dies_when_it_unblocks);
    gate_wait(ready);
    gate_wait(ready);
    send_all(takes);
    sigqueue(dies, SIGTERM, (union sigval){.sival_int = 1});
    send_all(getpid());
    raise(SIGUSR1); /* of the thread's own, beside that of the process */
    syscall(SYS_tgkill, getpid(), getpid(), SIGRTMIN + 1);
    checkpoint_marker();
    say("pending: USR1 %s USR2 %s HUP %s RTMIN+1 %s RTMIN %s", yes(is_pending(SIGUSR1)), yes(is_pending(SIGUSR2)),
        yes(is_pending(SIGHUP)), yes(is_pending(SIGRTMIN + 1)), yes(is_pending(SIGRTMIN)));
    gate_open(go);
    gate_open(go);
    int last = reap(dies);
    say("taken: %s", status_text(reap(takes)));
    say("by default: %s", status_text(last));
    sigdelset(&all, SIGCHLD);
    take("parent", &all);
    gate_free(ready);
    gate_free(go);
    block(SIG_SETMASK, 0, 0);
}

/* A handler for what is pending runs after the unblocking, lowest number first, thread's before the process's. */
static int order[16];

static void write_down(int signo)
{
    if (count < (int)COUNT_OF(order))
        order[count++] = signo;
}

static void delivered_later(void)
{
    count = 0;
    block(SIG_SETMASK, SIGUSR1, SIGRTMIN);
    block(SIG_BLOCK, SIGUSR2, SIGTSTP);
    install(SIGUSR1, write_down, 0);
    install(SIGUSR2, SIG_IGN, 0);
    install(SIGRTMIN, write_down, 0);
    install(SIGTSTP, write_down, 0);
    kill(getpid(), SIGRTMIN);
    kill(getpid(), SIGRTMIN);
    kill(getpid(), SIGTSTP);
    kill(getpid(), SIGUSR2);
    kill(getpid(), SIGUSR1);
    checkpoint_marker();
    say("ignored and blocked, pending: %s", yes(is_pending(SIGUSR2)));
    install(SIGUSR2, write_down, 0);
    block(SIG_SETMASK, 0, 0);
    for (int i = 0; i < count; i++)
        say("  handled: %d", number(order[i]));
    install(SIGTSTP, SIG_DFL, 0);
}

static void descriptors(void)
{
    sigset_t set = set_of(SIGUSR1, SIGRTMIN), other = set_of(SIGUSR2, 0);
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    int one = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), two = signalfd(-1, &other, SFD_NONBLOCK);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 5});
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 6});
    kill(getpid(), SIGUSR1);
    checkpoint_marker();
    struct pollfd waiters[] = {{one, POLLIN, 0}, {two, POLLIN, 0}};
    int found = poll(waiters, 2, 0);
    say("ready: %d, %d %d", found, waiters[0].revents, waiters[1].revents);
    struct signalfd_siginfo info[4];
    ssize_t size = read(one, info, sizeof info);
    for (ssize_t i = 0; i < size / (ssize_t)sizeof *info; i++)
        say("  %d, value %d, own %s", number((int)info[i].ssi_signo), (int)info[i].ssi_int,
            yes((pid_t)info[i].ssi_pid == getpid()));
    say("nothing else: %s, %s", outcome(read(one, info, sizeof info)), outcome(read(two, info, sizeof info)));
    kill(getpid(), SIGUSR2);
    say("the other: %s", yes(read(two, info, sizeof info) == sizeof *info && info[0].ssi_signo == SIGUSR2));
    close(one);
    close(two);
    block(SIG_SETMASK, 0, 0);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"handler", handler}, {"jump", left_by_a_jump}, {"interrupted", interrupted}, {"restarted", restarted},
        {"peers", peers}, {"pending", pending}, {"delivered-later", delivered_later}, {"descriptors", descriptors},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
