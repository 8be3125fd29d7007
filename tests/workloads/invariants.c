/* Guests of test_invariants.py: each section holds tasks in calls while the test does something to them from
 * the host. What is printed is either the same as natively or says that a promise was kept. */
#include "common.h"

#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#define LIMIT 40

struct job {
    const char *name;
    void (*run)(char *line);
    int signo; /* what ends it, once the test has said so; 0: it ends by itself */
};

static char (*lines)[160];
static volatile sig_atomic_t handled;
static bool dying_child;

static void handler(int signo)
{
    (void)signo;
    handled++;
}

static void catch_signal(int signo, int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(signo, &action, NULL);
}

/* Whether a process sleeps: in a call, or, on the ptrace platform, parked. Three times, since an owned call
 * that is answered at once sleeps for a moment as well. */
static void wait_until_asleep(pid_t pid)
{
    int seen = 0;
    while (seen < 3) {
        char path[64], text[512];
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        int fd = open(path, O_RDONLY);
        ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        close(fd);
        if (size <= 0)
            return;
        text[size] = 0;
        char *state = strrchr(text, ')');
        seen = state != NULL && state[2] == 'S' ? seen + 1 : 0;
        usleep(4000);
    }
}

static pid_t start(const struct job *job, char *line)
{
    struct gate gate = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* While the job waits a child of its dies: of all signals that nobody handles the commonest. */
        if (dying_child && fork() == 0) {
            sleep_ms(120);
            _exit(0);
        }
        gate_open(gate);
        job->run(line);
        _exit(0);
    }
    gate_wait(gate);
    gate_free(gate);
    return child;
}

static void wait_for_test(void)
{
    char byte;
    say("ready");
    while (read(0, &byte, 1) < 0 && errno == EINTR)
        ;
}

static void run_jobs(const struct job *jobs, size_t count)
{
    pid_t children[LIMIT];
    lines = mmap(NULL, LIMIT * sizeof *lines, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < count; i++)
        children[i] = start(&jobs[i], lines[i]);
    for (size_t i = 0; i < count; i++)
        wait_until_asleep(children[i]);
    wait_for_test();
    for (size_t i = 0; i < count; i++)
        if (jobs[i].signo)
            kill(children[i], jobs[i].signo);
    for (size_t i = 0; i < count; i++) {
        int status = reap(children[i]);
        say("%s: %s%s%s", jobs[i].name, lines[i], status ? " " : "", status ? status_text(status) : "");
    }
}

/* --- freeze: calls that are held by a cgroup's freezer again and again for most of a second --- */

/* A second's wait that began anew at the last thaw would last for nearly two. */
static const char *a_second(int64_t since)
{
    static char text[48];
    int64_t passed = (now_ns(CLOCK_MONOTONIC) - since) / MS;
    if (passed >= 999 && passed < 1450)
        return "after its second";
    snprintf(text, sizeof text, "after %ld ms", (long)passed);
    return text;
}

static void frozen_nanosleep(char *line)
{
    struct timespec second = {1, 0};
    int64_t since = now_ns(CLOCK_MONOTONIC);
    const char *result = outcome(nanosleep(&second, NULL));
    sprintf(line, "%s %s", result, a_second(since));
}

static void frozen_clock_nanosleep(char *line)
{
    struct timespec second = {1, 0};
    int64_t since = now_ns(CLOCK_MONOTONIC);
    const char *result = error_name(clock_nanosleep(CLOCK_REALTIME, 0, &second, NULL));
    sprintf(line, "%s %s", result, a_second(since));
}

static void frozen_sigtimedwait_timeout(char *line)
{
    struct timespec second = {1, 0};
    sigset_t set = set_of(SIGUSR2, 0);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int64_t since = now_ns(CLOCK_MONOTONIC);
    const char *result = outcome(sigtimedwait(&set, NULL, &second));
    sprintf(line, "%s %s", result, a_second(since));
}

static void frozen_pause(char *line)
{
    catch_signal(SIGUSR1, SA_RESTART);
    const char *result = outcome(pause());
    sprintf(line, "%s, handlers run %d", result, (int)handled);
}

static void frozen_sigwaitinfo(char *line)
{
    sigset_t set = set_of(SIGUSR2, 0);
    siginfo_t info;
    sigprocmask(SIG_BLOCK, &set, NULL);
    int signo = sigwaitinfo(&set, &info);
    sprintf(line, "signal %d of its parent %s", signo, yes(info.si_pid == getppid()));
}

static void frozen_sigsuspend(char *line)
{
    sigset_t set = set_of(SIGUSR1, 0), none = set_of(0, 0), now;
    catch_signal(SIGUSR1, 0);
    sigprocmask(SIG_BLOCK, &set, NULL);
    const char *result = outcome(sigsuspend(&none));
    sigprocmask(SIG_BLOCK, NULL, &now);
    sprintf(line, "%s, handlers run %d, blocked again %s", result, (int)handled, yes(sigismember(&now, SIGUSR1)));
}

static void wait_for_child(char *line, bool by_waitid)
{
    sigset_t set = set_of(SIGUSR1, 0);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pid_t child = fork_or_die();
    if (child == 0) {
        int signo;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        sigwait(&set, &signo);
        _exit(7);
    }
    pid_t sender = fork_or_die();
    if (sender == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        sleep_ms(1000);
        kill(child, SIGUSR1);
        _exit(0);
    }
    int status = 0;
    long got;
    if (by_waitid) {
        siginfo_t info = {0};
        got = waitid(P_PID, (id_t)child, &info, WEXITED) == 0 ? info.si_pid : -1;
        status = info.si_status << 8;
    } else {
        got = waitpid(child, &status, 0);
    }
    const char *result = got == child ? "its child" : outcome(got);
    sprintf(line, "%s, %s, sender %s", result, status_text(status), status_text(reap(sender)));
}

static void frozen_wait4(char *line)
{
    wait_for_child(line, false);
}

static void frozen_waitid(char *line)
{
    wait_for_child(line, true);
}

static void freeze(void)
{
    static const struct job jobs[] = {
        {"nanosleep", frozen_nanosleep, 0},
        {"clock_nanosleep", frozen_clock_nanosleep, 0},
        {"sigtimedwait", frozen_sigtimedwait_timeout, 0},
        {"pause", frozen_pause, SIGUSR1},
        {"sigwaitinfo", frozen_sigwaitinfo, SIGUSR2},
        {"sigsuspend", frozen_sigsuspend, SIGUSR1},
        {"wait4", frozen_wait4, 0},
        {"waitid", frozen_waitid, 0},
    };
    run_jobs(jobs, COUNT_OF(jobs));
}

/* --- queue: real-time signals sent without a pause; a call that was answered twice would send one twice --- */

static void queue(void)
{
    sigset_t set = set_of(SIGRTMIN, 0);
    int acknowledge[2];
    sigprocmask(SIG_BLOCK, &set, NULL);
    fcntl(0, F_SETFL, O_NONBLOCK);
    if (pipe(acknowledge) < 0)
        exit(1);
    pid_t parent = getpid();
    pid_t child = fork_or_die();
    if (child == 0) {
        char byte;
        int value = 0;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        do {
            for (int i = 0; i < 64; i++)
                sigqueue(parent, SIGRTMIN, (union sigval){.sival_int = value++});
        } while (read(acknowledge[0], &byte, 1) == 1 && byte == '+');
        _exit(0);
    }
    say("ready");
    char byte;
    int wrong = 0, expected = 0;
    bool more = true;
    while (more) {
        for (int i = 0; i < 64; i++) {
            siginfo_t info;
            if (sigwaitinfo(&set, &info) != SIGRTMIN)
                i--;
            else if (info.si_value.sival_int != expected++)
                wrong++;
        }
        more = read(0, &byte, 1) < 0 && errno == EAGAIN;
        if (write(acknowledge[1], more ? "+" : "-", 1) != 1)
            exit(1);
    }
    reap(child);
    struct timespec now = {0, 0};
    siginfo_t extra;
    const char *left = sigtimedwait(&set, &extra, &now) < 0 ? "none" : "some";
    say("out of order %d, left over %s, enough %s", wrong, left, yes(expected >= 128));
}

/* --- interrupt: calls that are woken by signals which nobody handles --- */

static struct timespec third = {0, 300000000};

static void in_epoll_wait(char *line)
{
    struct epoll_event event;
    int fd = epoll_create1(0);
    strcpy(line, outcome(epoll_wait(fd, &event, 1, 300)));
}

static void in_epoll_pwait(char *line)
{
    struct epoll_event event;
    sigset_t set = set_of(SIGUSR2, 0);
    int fd = epoll_create1(0);
    strcpy(line, outcome(epoll_pwait(fd, &event, 1, 300, &set)));
}

static void in_poll(char *line)
{
    strcpy(line, outcome(poll(NULL, 0, 300)));
}

static void in_ppoll(char *line)
{
    sigset_t set = set_of(SIGUSR2, 0);
    struct timespec timeout = third;
    strcpy(line, outcome(ppoll(NULL, 0, &timeout, &set)));
}

static void in_select(char *line)
{
    struct timeval timeout = {0, 300000};
    strcpy(line, outcome(select(0, NULL, NULL, NULL, &timeout)));
}

static void in_pselect(char *line)
{
    sigset_t set = set_of(SIGUSR2, 0);
    struct timespec timeout = third;
    strcpy(line, outcome(pselect(0, NULL, NULL, NULL, &timeout, &set)));
}

static void in_semtimedop(char *line)
{
    struct timespec timeout = third;
    struct sembuf wait = {0, -1, 0};
    int id = semget(IPC_PRIVATE, 1, 0600);
    const char *result = outcome(semtimedop(id, &wait, 1, &timeout));
    semctl(id, 0, IPC_RMID);
    strcpy(line, result);
}

static void in_msgrcv(char *line)
{
    char message[16];
    struct itimerval later = {.it_value = {0, 300000}};
    int id = msgget(IPC_PRIVATE, 0600);
    catch_signal(SIGALRM, 0);
    setitimer(ITIMER_REAL, &later, NULL);
    const char *result = outcome(msgrcv(id, message, 8, 0, 0));
    msgctl(id, IPC_RMID, NULL);
    sprintf(line, "%s, handlers run %d", result, (int)handled);
}

static void in_recv(char *line)
{
    int ends[2];
    char byte;
    struct timeval timeout = {0, 300000};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
        exit(1);
    setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    strcpy(line, outcome(recv(ends[0], &byte, 1, 0)));
}

static void in_socket_read(char *line)
{
    int ends[2];
    char byte;
    struct timeval timeout = {0, 300000};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
        exit(1);
    setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    strcpy(line, outcome(read(ends[0], &byte, 1)));
}

static void in_accept(char *line)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct timeval timeout = {0, 300000};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    bind(fd, (struct sockaddr *)&name, sizeof name.sun_family);
    listen(fd, 1);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    strcpy(line, outcome(accept(fd, NULL, NULL)));
}

static void in_pipe_read(char *line)
{
    int ends[2];
    char byte;
    struct itimerval later = {.it_value = {0, 300000}};
    if (pipe(ends) < 0)
        exit(1);
    catch_signal(SIGALRM, 0);
    setitimer(ITIMER_REAL, &later, NULL);
    const char *result = outcome(read(ends[0], &byte, 1));
    sprintf(line, "%s, handlers run %d", result, (int)handled);
}

static void in_futex(char *line)
{
    int word = 0;
    struct timespec timeout = third;
    strcpy(line, outcome(syscall(SYS_futex, &word, 0, 0, &timeout, NULL, 0)));
}

static void in_nanosleep(char *line)
{
    struct timespec timeout = third;
    strcpy(line, outcome(nanosleep(&timeout, NULL)));
}

static void in_sigtimedwait(char *line)
{
    sigset_t set = set_of(SIGUSR2, 0);
    struct timespec timeout = third;
    sigprocmask(SIG_BLOCK, &set, NULL);
    strcpy(line, outcome(sigtimedwait(&set, NULL, &timeout)));
}

static void in_wait4(char *line)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        sleep_ms(300);
        _exit(5);
    }
    int status = 0;
    const char *result = outcome(waitpid(child, &status, 0));
    sprintf(line, "%s, %s", result, status_text(status));
}

static void in_pause(char *line)
{
    struct itimerval later = {.it_value = {0, 300000}};
    catch_signal(SIGALRM, SA_RESTART);
    setitimer(ITIMER_REAL, &later, NULL);
    const char *result = outcome(pause());
    sprintf(line, "%s, handlers run %d", result, (int)handled);
}

static void in_io_getevents(char *line)
{
    unsigned long context = 0;
    char events[32];
    struct timespec timeout = third;
    if (syscall(SYS_io_setup, 1, &context) < 0) {
        strcpy(line, outcome(-1));
        return;
    }
    strcpy(line, outcome(syscall(SYS_io_getevents, context, 1, 1, events, &timeout)));
}

static const struct job waits[] = {
    {"epoll_wait", in_epoll_wait, 0},   {"epoll_pwait", in_epoll_pwait, 0}, {"poll", in_poll, 0},
    {"ppoll", in_ppoll, 0},             {"select", in_select, 0},           {"pselect", in_pselect, 0},
    {"semtimedop", in_semtimedop, 0},   {"msgrcv", in_msgrcv, 0},           {"recv", in_recv, 0},
    {"read of a socket", in_socket_read, 0}, {"accept", in_accept, 0},      {"read of a pipe", in_pipe_read, 0},
    {"futex", in_futex, 0},             {"nanosleep", in_nanosleep, 0},     {"sigtimedwait", in_sigtimedwait, 0},
    {"wait4", in_wait4, 0},             {"pause", in_pause, 0},             {"io_getevents", in_io_getevents, 0},
};

static void interrupt(bool stop)
{
    pid_t children[LIMIT];
    lines = mmap(NULL, LIMIT * sizeof *lines, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < COUNT_OF(waits); i++) {
        /* One after the other: each must still wait when it is disturbed. */
        children[i] = start(&waits[i], lines[i]);
        wait_until_asleep(children[i]);
        if (stop) {
            int status;
            kill(children[i], SIGSTOP);
            waitpid(children[i], &status, WUNTRACED);
            kill(children[i], SIGCONT);
        } else {
            kill(children[i], SIGWINCH);
            kill(children[i], SIGCHLD);
            sleep_ms(2);
            kill(children[i], SIGURG);
        }
    }
    for (size_t i = 0; i < COUNT_OF(waits); i++) {
        int status = reap(children[i]);
        say("%s: %s%s%s", waits[i].name, lines[i], status ? " " : "", status ? status_text(status) : "");
    }
}

static void ignored(void)
{
    dying_child = true;
    interrupt(false);
}

static void stopped(void)
{
    interrupt(true);
}

/* --- load: processes that do nothing but owned calls, for somebody who kills them --- */

static void in_owned_calls(unsigned turn)
{
    sigset_t set = set_of(SIGUSR2, 0);
    struct timespec moment = {0, 500000};
    struct itimerval interval;
    timer_t timer;
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (;;) {
        switch (turn++ % 8) {
        case 0: getitimer(ITIMER_REAL, &interval); break;
        case 1: nanosleep(&moment, NULL); break;
        case 2: kill(getpid(), SIGUSR2); break;
        case 3: sigtimedwait(&set, NULL, &moment); break;
        case 4: ppoll(NULL, 0, &moment, &set); break;
        case 5:
            if (timer_create(CLOCK_MONOTONIC, NULL, &timer) == 0)
                timer_delete(timer);
            break;
        case 6: {
            pid_t child = fork();
            if (child == 0)
                _exit(0);
            waitpid(child, NULL, 0);
            break;
        }
        case 7: getpgid(0); break;
        }
    }
}

static void load(void)
{
    enum { WORKERS = 8 };
    unsigned started = 0;
    int dead = 0, status;
    fcntl(0, F_SETFL, O_NONBLOCK);
    signal(SIGUSR2, SIG_IGN);
    for (int i = 0; i < WORKERS; i++)
        if (fork_or_die() == 0)
            in_owned_calls(started + (unsigned)i);
    say("ready");
    char byte;
    while (read(0, &byte, 1) < 0 && errno == EAGAIN) {
        pid_t child = waitpid(-1, &status, WNOHANG);
        if (child > 0) {
            dead++;
            if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
                say("a worker %s", status_text(status));
            if (fork_or_die() == 0)
                in_owned_calls(started++);
        } else {
            sleep_ms(1);
        }
    }
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
    while (waitpid(-1, &status, 0) > 0 || errno == EINTR)
        ;
    say("killed: %s", yes(dead > 0));
}

/* --- calls: lent and owned calls whose number is known --- */

static void calls(void)
{
    struct itimerval interval;
    for (int i = 0; i < 20; i++) {
        syscall(SYS_getppid);
        getitimer(ITIMER_REAL, &interval);
    }
    pid_t child = fork_or_die();
    if (child == 0) {
        for (int i = 0; i < 7; i++)
            syscall(SYS_getppid);
        _exit(0);
    }
    say("%s", status_text(reap(child)));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"freeze", freeze}, {"queue", queue}, {"ignored", ignored}, {"stopped", stopped},
        {"load", load},     {"calls", calls},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
