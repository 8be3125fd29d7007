/* The scenarios of mixed_load.c. Each runs in a process of its own, draws its numbers from `chance`, and either
 * returns with all of its children reaped or fails aloud. */
#ifndef MIXED_LOAD_PARTS_H
#define MIXED_LOAD_PARTS_H

#include <pthread.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/timerfd.h>

static const char *scenario_name = "?", *self_path;
static uint64_t scenario_seed, random_state = 1;
static volatile sig_atomic_t caught;

static uint64_t chance(void) /* xorshift64* */
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1DULL;
}

static int among(int low, int high)
{
    return low + (int)((chance() >> 33) % (uint64_t)(high - low + 1));
}

#define CHECK(condition, ...)                                                                                       \
    do {                                                                                                            \
        int check_errno = errno;                                                                                    \
        if (!(condition)) {                                                                                         \
            char check_text[200];                                                                                   \
            snprintf(check_text, sizeof check_text, __VA_ARGS__);                                                   \
            say("FAILED: %s seed %#lx line %d: %s (%s): %s", scenario_name, scenario_seed, __LINE__, #condition,    \
                error_name(check_errno), check_text);                                                               \
            _exit(1);                                                                                               \
        }                                                                                                           \
    } while (0)

static void expect_status(pid_t child, int wanted, const char *who)
{
    int status = reap(child);
    CHECK(status == wanted, "%s: %s, not %s", who, status_text(status), status_text(wanted));
}

static void expect_no_child(void)
{
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child is left");
}

static void count_signal(int signo)
{
    (void)signo;
    caught++;
}

static void count_value(int signo, siginfo_t *info, void *context)
{
    (void)signo, (void)info, (void)context;
    caught++;
}

static void catch(int signo, int flags)
{
    struct sigaction action = {.sa_flags = flags};
    if (flags & SA_SIGINFO)
        action.sa_sigaction = count_value;
    else
        action.sa_handler = count_signal;
    sigaction(signo, &action, NULL);
}

static sigset_t block(int signo)
{
    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, signo);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    sigdelset(&old, signo);
    return old; /* the mask that lets it in */
}

static sigset_t only(int signo)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signo);
    return set;
}

/* A tree of short-lived processes, reaped in the order of their ends. */
static void storm_below(int depth)
{
    int width = among(2, 4);
    pid_t children[4];
    for (int i = 0; i < width; i++) {
        random_state += 2;
        children[i] = fork_or_die();
        if (children[i] == 0) {
            if (depth > 1)
                storm_below(depth - 1);
            _exit(10 + i);
        }
    }
    for (int left = width; left; left--) {
        int status, i = 0;
        pid_t got = waitpid(-1, &status, 0);
        CHECK(got > 0, "%d children left", left);
        while (i < width && children[i] != got)
            i++;
        CHECK(i < width && status == (10 + i) << 8, "child %d: %s", i, status_text(status));
    }
    expect_no_child();
}

static void storm(void)
{
    storm_below(among(1, 3));
}

/* Real-time signals with values: none is lost, and they come in order. */
static void queue(void)
{
    int signo = SIGRTMIN + among(1, 5), count = among(5, 60);
    bool handler = chance() >> 40 & 1;
    sigset_t open = block(signo), set = only(signo);
    if (handler)
        catch(signo, SA_SIGINFO);
    pid_t parent = getpid(), child = fork_or_die();
    if (child == 0) {
        for (int i = 0; i < count; i++) {
            union sigval value = {.sival_int = i};
            CHECK(sigqueue(parent, signo, value) == 0, "signal %d", i);
        }
        _exit(0);
    }
    for (int i = 0; i < count; i++) {
        siginfo_t info;
        if (handler) {
            while (caught <= i)
                sigsuspend(&open);
            continue;
        }
        int got;
        while ((got = sigwaitinfo(&set, &info)) < 0 && errno == EINTR)
            ;
        CHECK(got == signo && info.si_value.sival_int == i && info.si_pid == child, "signal %d: %d", i, got);
    }
    CHECK(!handler || caught == count, "%d of %d", (int)caught, count);
    expect_status(child, 0, "sender");
}

/* Two processes in turn. */
static void pingpong(void)
{
    int count = among(5, 40);
    sigset_t open = block(SIGUSR1);
    catch(SIGUSR1, 0);
    pid_t parent = getpid(), child = fork_or_die();
    for (int i = 0; i < count; i++) {
        if (child)
            kill(child, SIGUSR1);
        while (caught <= i)
            sigsuspend(&open);
        if (!child)
            kill(parent, SIGUSR1);
    }
    if (!child)
        _exit(0);
    CHECK(caught == count, "%d of %d", (int)caught, count);
    expect_status(child, 0, "partner");
}

static void *wait_somehow(void *kind)
{
    struct timespec long_time = {1000, 0};
    sigset_t set = only(SIGUSR2);
    int ends[2];
    switch ((long)kind % 4) {
    case 0: pause(); break;
    case 1: nanosleep(&long_time, NULL); break;
    case 2: sigwaitinfo(&set, NULL); break;
    case 3:
        if (pipe(ends) == 0 && read(ends[0], &set, 1) < 0)
            break;
    }
    return NULL;
}

static void start_waiting_threads(int count)
{
    for (long i = 0; i < count; i++) {
        pthread_t thread;
        int error = pthread_create(&thread, NULL, wait_somehow, (void *)i);
        CHECK(error == 0, "thread: %d", error);
    }
}

/* SIGKILL to processes in every kind of state. */
static void kills(void)
{
    pid_t children[6];
    int count = among(2, 6), first = among(0, 5);
    for (int i = 0; i < count; i++) {
        children[i] = fork_or_die();
        if (children[i])
            continue;
        pid_t self = getpid(), grandchild;
        switch ((first + i) % 6) {
        case 0:
            for (;;)
                ;
        case 1:
            grandchild = fork_or_die();
            if (grandchild == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
                if (getppid() != self)
                    _exit(0);
                pause();
            }
            reap(grandchild);
            break;
        default:
            start_waiting_threads((first + i) % 3);
            wait_somehow((void *)(long)(first + i));
        }
        _exit(3);
    }
    if (among(0, 1))
        usleep((unsigned)among(0, 3000));
    for (int i = 0; i < count; i++)
        CHECK(kill(children[i], SIGKILL) == 0, "child %d", i);
    for (int i = count; i--;)
        expect_status(children[i], SIGKILL, "killed");
    expect_no_child();
}

/* Bytes through processes, each of which adds one. */
static void pipeline(void)
{
    enum { SIZE = 20000 };
    static unsigned char bytes[SIZE];
    int stages = among(2, 5), input = -1;
    pid_t children[6];
    for (int stage = 0; stage <= stages; stage++) {
        int ends[2];
        CHECK(pipe(ends) == 0, "pipe");
        children[stage] = fork_or_die();
        if (children[stage] == 0) {
            ssize_t got;
            close(ends[0]);
            if (stage == 0)
                for (size_t done = 0; done < SIZE; done += (size_t)got)
                    CHECK((got = write(ends[1], bytes + done, SIZE - done)) > 0, "source");
            while (stage && (got = read(input, bytes, SIZE)) > 0) {
                for (ssize_t i = 0; i < got; i++)
                    bytes[i]++;
                CHECK(write(ends[1], bytes, (size_t)got) == got, "stage %d", stage);
            }
            _exit(stage);
        }
        close(ends[1]);
        if (input >= 0)
            close(input);
        input = ends[0];
    }
    size_t total = 0;
    for (ssize_t got; (got = read(input, bytes, SIZE)) > 0; total += (size_t)got)
        for (ssize_t i = 0; i < got; i++)
            CHECK(bytes[i] == stages, "byte %d", bytes[i]);
    close(input);
    CHECK(total == SIZE, "%zu bytes", total);
    for (int stage = 0; stage <= stages; stage++)
        expect_status(children[stage], stage << 8, "stage");
}

struct burst {
    pthread_t target;
    int signo, count;
};

static void *send_burst(void *argument)
{
    struct burst *burst = argument;
    union sigval value = {0};
    for (int i = 0; i < burst->count; i++)
        if (pthread_sigqueue(burst->target, burst->signo, value))
            return (void *)1;
    return NULL;
}

/* Short-lived threads, each of which sends the first one a few signals. */
static void threads(void)
{
    struct burst burst = {pthread_self(), SIGRTMIN + 2, among(1, 4)};
    sigset_t open = block(burst.signo);
    int sent = 0;
    catch(burst.signo, SA_SIGINFO);
    for (int turn = among(1, 4); turn--;) {
        pthread_t all[8];
        int count = among(1, 8);
        for (int i = 0; i < count; i++)
            CHECK(pthread_create(&all[i], NULL, send_burst, &burst) == 0, "thread %d", i);
        for (int i = 0; i < count; i++) {
            void *result;
            CHECK(pthread_join(all[i], &result) == 0 && !result, "thread %d", i);
        }
        sent += count * burst.count;
        while (caught < sent)
            sigsuspend(&open);
    }
    CHECK(caught == sent, "%d of %d", (int)caught, sent);
}

/* Every kind of timer and sleep: never early, none lost. */
static void timers(void)
{
    int signo = SIGRTMIN + 3, count = 0, wanted = among(2, 12);
    sigset_t set = only(signo);
    block(signo);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signo};
    timer_t timer;
    struct itimerspec often = {{0, MS}, {0, MS}};
    int64_t start = now_ns(CLOCK_MONOTONIC);
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "create");
    CHECK(timer_settime(timer, 0, &often, NULL) == 0, "settime");
    while (count < wanted) {
        siginfo_t info;
        CHECK(sigwaitinfo(&set, &info) == signo, "expiry %d", count);
        count += 1 + info.si_overrun;
        CHECK(now_ns(CLOCK_MONOTONIC) - start >= count * MS, "early: %d", count);
    }
    CHECK(timer_delete(timer) == 0, "delete");

    /* Again and again: the first may come before the sleep has begun. */
    struct itimerval alarms = {{0, 2000}, {0, 2000}}, off = {{0, 0}, {0, 0}};
    struct timespec left, second = {1000, 0}, until_then;
    catch(SIGALRM, 0);
    caught = 0;
    setitimer(ITIMER_REAL, &alarms, NULL);
    CHECK(nanosleep(&second, &left) == -1 && errno == EINTR, "not interrupted");
    setitimer(ITIMER_REAL, &off, NULL);
    CHECK(caught >= 1 && left.tv_sec >= 900 && left.tv_sec < 1000, "%d, %ld s left", (int)caught, (long)left.tv_sec);

    int64_t target = now_ns(CLOCK_MONOTONIC) + among(0, 3000000);
    until_then = (struct timespec){target / 1000000000, target % 1000000000};
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until_then, NULL) == 0, "sleep");
    CHECK(now_ns(CLOCK_MONOTONIC) >= target, "early");

    uint64_t expired = 0, part;
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    CHECK(timerfd_settime(fd, 0, &often, NULL) == 0, "timerfd");
    while (expired < 3 && read(fd, &part, sizeof part) == sizeof part)
        expired += part;
    CHECK(expired >= 3, "%lu", expired);
    close(fd);
    CHECK(sigtimedwait(&set, NULL, &often.it_value) == -1 && errno == EAGAIN, "a signal was left");
}

/* Stop and continue, and be told of each. */
static void stops(void)
{
    int kind = among(0, 3), status;
    pid_t child = fork_or_die();
    if (child == 0) {
        if (kind == 0)
            for (;;)
                ;
        start_waiting_threads(kind - 1);
        for (;;)
            wait_somehow((void *)(long)kind);
    }
    for (int i = among(1, 6); i--;) {
        CHECK(kill(child, SIGSTOP) == 0, "stop");
        CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP,
              "%s", status_text(status));
        CHECK(kill(child, SIGCONT) == 0, "continue");
        CHECK(waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status), "%s", status_text(status));
    }
    if (among(0, 1)) {
        kill(child, SIGSTOP);
        kill(child, SIGKILL);
        expect_status(child, SIGKILL, "killed in a stop");
    } else {
        kill(child, SIGTERM);
        expect_status(child, SIGTERM, "ended");
    }
}

static void execute_exit(int code)
{
    char text[12];
    snprintf(text, sizeof text, "%d", code);
    execl(self_path, "mixed_load", "exit", text, (char *)NULL);
    _exit(126);
}

static void executes(void)
{
    for (int i = among(1, 3); i--;) {
        pid_t child = fork_or_die();
        if (child == 0)
            execute_exit(20 + i);
        expect_status(child, (20 + i) << 8, "program");
    }
}

static void *execute_from_thread(void *code)
{
    execute_exit((int)(long)code);
    return NULL;
}

/* exec by a thread that is not the leader, while others wait. */
static void thread_exec(void)
{
    int code = among(30, 90);
    bool leader_ends = among(0, 1);
    pid_t child = fork_or_die();
    if (child == 0) {
        pthread_t thread;
        start_waiting_threads(among(0, 3));
        CHECK(pthread_create(&thread, NULL, execute_from_thread, (void *)(long)code) == 0, "thread");
        if (leader_ends)
            pthread_exit(NULL);
        for (;;)
            pause();
    }
    expect_status(child, code << 8, "program");
}

static void spawns(void)
{
    char text[12];
    char *arguments[] = {"mixed_load", "exit", text, NULL};
    for (int i = among(1, 3); i--;) {
        pid_t child;
        snprintf(text, sizeof text, "%d", 40 + i);
        if (among(0, 1)) {
            CHECK(posix_spawn(&child, self_path, NULL, NULL, arguments, environ) == 0, "spawn");
        } else {
            child = vfork();
            if (child == 0) {
                execv(self_path, arguments);
                _exit(126);
            }
        }
        expect_status(child, (40 + i) << 8, "program");
    }
}

/* A process group that is ended at once, and waited for as one. */
static void groups(void)
{
    int count = among(2, 6);
    pid_t leader = 0;
    for (int i = 0; i < count; i++) {
        pid_t child = fork_or_die();
        if (child == 0) {
            setpgid(0, leader);
            wait_somehow((void *)(long)i);
            _exit(3);
        }
        leader = leader ? leader : child;
        CHECK(setpgid(child, leader) == 0 && getpgid(child) == leader, "member %d", i);
    }
    CHECK(kill(-leader, SIGTERM) == 0, "kill");
    for (int i = 0; i < count; i++) {
        int status;
        CHECK(waitpid(-leader, &status, 0) > 0 && status == SIGTERM, "%d: %s", i, status_text(status));
    }
    CHECK(waitpid(-leader, NULL, 0) == -1 && errno == ECHILD, "one too many");
}

/* What outlives its parent goes to the first process, which is the subreaper. */
static void orphans(void)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        CHECK(setsid() == getpid(), "session");
        for (int i = among(1, 3); i--;)
            if (fork_or_die() == 0) {
                sleep_ms(among(0, 3));
                _exit(0);
            }
        _exit(9);
    }
    expect_status(child, 9 << 8, "session leader");
}

/* Children end at any moment; SIGCHLD merges, but is never missing. */
static void sigchld(void)
{
    int count = among(2, 10), left = count;
    sigset_t open = block(SIGCHLD);
    catch(SIGCHLD, 0);
    for (int i = 0; i < count; i++) {
        random_state += 2;
        int delay = among(0, 2000);
        if (fork_or_die() == 0) {
            if (delay > 500)
                usleep((unsigned)delay);
            _exit(0);
        }
    }
    while (left) {
        sigsuspend(&open);
        for (int status; left && waitpid(-1, &status, WNOHANG) > 0; left--)
            CHECK(status == 0, "%s", status_text(status));
    }
    CHECK(caught >= 1 && caught <= count, "%d for %d", (int)caught, count);
    expect_no_child();
}

static void *end_process(void *code)
{
    exit((int)(long)code);
    return NULL;
}

/* The process ends while its threads wait; its leader perhaps before them. */
static void exitgroup(void)
{
    int code = among(1, 90);
    bool leader_first = among(0, 1);
    pid_t child = fork_or_die();
    if (child == 0) {
        pthread_t thread;
        start_waiting_threads(among(1, 5));
        if (leader_first) {
            CHECK(pthread_create(&thread, NULL, end_process, (void *)(long)code) == 0, "thread");
            pthread_exit(NULL);
        }
        _exit(code);
    }
    expect_status(child, code << 8, "process");
}

/* Looking at a zombie leaves it. */
static void nowait(void)
{
    int code = among(0, 120);
    pid_t child = fork_or_die();
    if (child == 0)
        _exit(code);
    for (int i = among(1, 3); i--;) {
        siginfo_t info = {0};
        CHECK(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT) == 0, "look");
        CHECK(info.si_pid == child && info.si_code == CLD_EXITED && info.si_status == code, "%d", info.si_status);
    }
    expect_status(child, code << 8, "zombie");
}

/* Reads and waits go on over a timer whose handler has SA_RESTART. */
static void restart(void)
{
    struct itimerval often = {{0, 500}, {0, 500}}, off = {{0, 0}, {0, 0}};
    int ends[2];
    char byte;
    catch(SIGALRM, SA_RESTART);
    CHECK(pipe(ends) == 0, "pipe");
    pid_t child = fork_or_die();
    if (child == 0) {
        for (int i = 0; i < 5; i++) {
            usleep(1000);
            CHECK(write(ends[1], "x", 1) == 1, "write");
        }
        usleep(2000);
        _exit(0);
    }
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 5; i++)
        CHECK(read(ends[0], &byte, 1) == 1, "byte %d", i);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "wait");
    setitimer(ITIMER_REAL, &off, NULL);
    CHECK(caught >= 1, "no alarm");
    close(ends[0]);
    close(ends[1]);
}

#endif
