/* /proc/PID/status of oneself and of children in every state that a call can put them into: masks, dispositions, parent,
 * group and session, as the calls say it. (SigPnd and ShdPnd, and the letter of a stopped one, are the host's: see
 * docs/limits.md.) */
#include "common.h"

#include <poll.h>
#include <pthread.h>
#include <sys/prctl.h>

static char text[8192];

static const char *field(pid_t pid, pid_t tid, const char *name)
{
    static char value[16][128];
    static int turn;
    char path[64], *found = value[turn++ % 16];
    snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    close(fd);
    text[length > 0 ? length : 0] = '\0';
    char *line = strstr(text, name);
    if (line == NULL || length <= 0)
        return "none";
    snprintf(found, 128, "%s", line + strlen(name));
    found[strcspn(found, "\n")] = '\0';
    return found + strspn(found, "\t ");
}

/* The id in the innermost namespace, where there are several columns. */
static long last_id(pid_t pid, const char *name)
{
    const char *value = field(pid, pid, name), *tab = strrchr(value, '\t');
    return strtol(tab ? tab + 1 : value, NULL, 10);
}

static void show(const char *what, pid_t pid, pid_t tid)
{
    say("%s: blocked %s, ignored %s, caught %s", what, field(pid, tid, "\nSigBlk:"), field(pid, tid, "\nSigIgn:"),
        field(pid, tid, "\nSigCgt:"));
    say("  parent %s, group %s, session %s, process %s, itself %s, threads %s",
        yes(last_id(pid, "\nPPid:") == (pid == getpid() ? getppid() : getpid())),
        yes(last_id(pid, "\nNSpgid:") == getpgid(pid)), yes(last_id(pid, "\nNSsid:") == getsid(pid)),
        yes(last_id(pid, "\nTgid:") == pid), yes(last_id(pid, "\nNSpid:") == pid), field(pid, pid, "\nThreads:"));
}

static void on_signal(int signo)
{
    (void)signo;
}

static void prepare(void)
{
    sigset_t blocked = set_of(SIGUSR1, SIGRTMIN + 4);
    signal(SIGUSR1, on_signal);
    signal(SIGRTMIN + 4, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGHUP, SIG_IGN);
    signal(SIGTTOU, SIG_IGN);
    sigprocmask(SIG_SETMASK, &blocked, NULL);
}

static void itself(void)
{
    show("at first", getpid(), getpid());
    prepare();
    show("prepared", getpid(), getpid());
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    show("all blocked", getpid(), getpid());
    for (int signo = 1; signo < 65; signo++)
        signal(signo, on_signal);
    show("all caught", getpid(), getpid());
    for (int signo = 1; signo < 65; signo++)
        signal(signo, SIG_IGN);
    show("all ignored", getpid(), getpid());
    pid_t child = fork_or_die();
    if (child == 0) {
        setpgid(0, 0);
        say("own group: %s", yes(last_id(getpid(), "\nNSpgid:") == getpid()));
        if (fork_or_die() == 0) {
            setsid();
            say("own session: %s", yes(last_id(getpid(), "\nNSsid:") == getpid() && last_id(getpid(), "\nNSpgid:") == getpid()));
            _exit(0);
        }
        _exit(reap(-1));
    }
    reap(child);
    for (int signo = 1; signo < 65; signo++)
        signal(signo, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

enum state { SLEEPS, PAUSES, SUSPENDS, TIMED_WAITS, POLLS, WAITS, READS, STATES };

static struct gate gate;

static void *go_into(void *argument)
{
    sigset_t other = set_of(SIGUSR2, SIGTERM), waited = set_of(SIGUSR1, SIGUSR2);
    struct timespec long_time = {1000, 0};
    struct pollfd fd = {gate.ends[0], POLLIN, 0};
    char byte;
    switch ((enum state)(long)argument) {
    case SLEEPS: nanosleep(&long_time, NULL); break;
    case PAUSES: pause(); break;
    case SUSPENDS: sigsuspend(&other); break;
    case TIMED_WAITS: sigtimedwait(&waited, NULL, &long_time); break;
    case POLLS: ppoll(&fd, 1, &long_time, &other); break;
    case WAITS: waitid(P_ALL, 0, NULL, WEXITED); break;
    default: (void)!read(gate.ends[0], &byte, 1); break;
    }
    return NULL;
}

/* Waits until a thread sleeps in a call with this mask. Without end: a mask that never comes fails by the time limit. */
static void until_blocked(pid_t pid, pid_t tid, const char *mask)
{
    while (strcmp(field(pid, tid, "\nSigBlk:"), mask) != 0 || field(pid, tid, "\nState:")[0] != 'S')
        sleep_ms(1);
}

static void children(void)
{
    static const char *const names[] = {"sleeping", "in pause", "in sigsuspend", "in sigtimedwait", "in ppoll", "in waitid", "in read"};
    static const char *const masks[] = {
        "0000002000000200", "0000002000000200", "0000000000004800", "0000002000000000", "0000000000004800",
        "0000002000000200", "0000002000000200",
    };
    gate = gate_new();
    for (long state = 0; state < STATES; state++) {
        pid_t child = fork_or_die();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            prepare();
            if (state == WAITS && fork_or_die() == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                for (;;)
                    pause();
            }
            go_into((void *)state);
            _exit(1);
        }
        until_blocked(child, child, masks[state]);
        show(names[state], child, child);
        setpgid(child, child);
        kill(child, SIGSTOP);
        int status;
        waitpid(child, &status, WUNTRACED);
        show("  stopped", child, child);
        kill(child, SIGKILL);
        siginfo_t info;
        waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
        show("  dead", child, child);
        say("  %c", field(child, child, "\nState:")[0]);
        reap(child);
        say("  gone: %s", field(child, child, "\nState:"));
    }
    gate_free(gate);
}

static volatile pid_t thread_id;

static void *with_a_mask(void *argument)
{
    sigset_t mask = set_of(SIGINT, SIGQUIT);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    thread_id = (pid_t)syscall(SYS_gettid);
    return go_into(argument);
}

static void threads(void)
{
    pthread_t thread;
    gate = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        for (long state = 0; state < WAITS; state++) {
            static const char *const masks[] = {
                "0000000000000006", "0000000000000006", "0000000000004800", "0000000000000006", "0000000000004800",
            };
            thread_id = 0;
            pthread_create(&thread, NULL, with_a_mask, (void *)state);
            while (thread_id == 0)
                sleep_ms(1);
            until_blocked(getpid(), thread_id, masks[state]);
            say("thread %ld: blocked %s, of the process %s", state, field(getpid(), thread_id, "\nSigBlk:"),
                field(getpid(), getpid(), "\nSigBlk:"));
        }
        _exit(0);
    }
    say("threads: %s", status_text(reap(child)));
    gate_free(gate);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {{"itself", itself}, {"children", children}, {"threads", threads}};
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
