/* Stop and continue of whole thread groups, whoever sends it and whatever their threads do: waits for it (WUNTRACED,
 * WCONTINUED, WNOWAIT), threads that come and go meanwhile, exec by a thread, a leader that has ended. */
#include "common.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>

enum { WORKERS = 4 };

/* What a child and its threads share with who watches them. */
static struct shared {
    volatile long ticks[WORKERS];
    volatile int ready, made, handled, returned[8], errors[8];
    volatile pid_t tids[WORKERS];
    int word;
} *shared;

static struct gate gate;

static void *tick(void *argument)
{
    size_t which = (size_t)argument;
    shared->tids[which] = (pid_t)syscall(SYS_gettid);
    for (;;) {
        shared->ticks[which]++;
        if (which % 2)
            usleep(500);
    }
    return NULL;
}

static void wait_until(volatile int *value, int at_least)
{
    while (*value < at_least)
        sleep_ms(1);
}

static bool all_tick(void)
{
    long before[WORKERS];
    for (int i = 0; i < WORKERS; i++)
        before[i] = shared->ticks[i];
    for (int i = 0; i < WORKERS; i++)
        while (shared->ticks[i] == before[i])
            sleep_ms(1);
    return true;
}

static bool none_ticks(void)
{
    long before[WORKERS];
    bool still = true;
    for (int i = 0; i < WORKERS; i++)
        before[i] = shared->ticks[i];
    sleep_ms(20);
    for (int i = 0; i < WORKERS; i++)
        still &= shared->ticks[i] == before[i];
    return still;
}

static void fresh(void)
{
    if (shared)
        munmap(shared, sizeof *shared);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void start_workers(void)
{
    for (size_t i = 0; i < WORKERS; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, tick, (void *)i);
    }
}

/* A child in a group of its own (not orphaned, so that SIGTSTP stops it) with busy threads. */
static pid_t busy_child(void *(*also)(void *), void *argument)
{
    fresh();
    pid_t child = fork_or_die();
    if (child == 0) {
        pthread_t thread;
        setpgid(0, 0);
        start_workers();
        all_tick();
        if (also)
            pthread_create(&thread, NULL, also, argument);
        shared->ready = 1;
        for (;;)
            pause();
    }
    setpgid(child, child);
    wait_until(&shared->ready, 1);
    return child;
}

static void stopped_and_on(const char *what, pid_t child)
{
    int status = 0;
    waitpid(child, &status, WUNTRACED);
    say("%s: %s, all still %s", what, status_text(status), yes(none_ticks()));
    say("  once: %d", waitpid(child, &status, WUNTRACED | WNOHANG));
    kill(child, SIGCONT);
    waitpid(child, &status, WCONTINUED);
    say("  then: %s, all run %s", status_text(status), yes(all_tick()));
    say("  once: %d", waitpid(child, &status, WCONTINUED | WUNTRACED | WNOHANG));
}

static void end(pid_t child)
{
    kill(child, SIGKILL);
    say("  killed: %s", status_text(reap(child)));
}

static void *stop_self(void *argument)
{
    const int signals[] = {SIGSTOP, SIGTSTP, SIGTTIN};
    for (size_t i = 0; i < COUNT_OF(signals); i++) {
        gate_wait(*(struct gate *)argument);
        syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), signals[i]);
    }
    gate_wait(*(struct gate *)argument);
    kill(getpid(), SIGSTOP);
    return NULL;
}

static void senders(void)
{
    const char *names[] = {"SIGSTOP of a thread to itself", "SIGTSTP", "SIGTTIN", "kill of its own process"};
    gate = gate_new();
    pid_t child = busy_child(stop_self, &gate);
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        gate_open(gate);
        stopped_and_on(names[i], child);
    }
    syscall(SYS_tgkill, child, shared->tids[2], SIGSTOP);
    stopped_and_on("to a thread, from outside", child);
    kill(child, SIGSTOP);
    syscall(SYS_tgkill, child, shared->tids[0], SIGTSTP);
    syscall(SYS_tgkill, child, shared->tids[1], SIGSTOP);
    int status;
    waitpid(child, &status, WUNTRACED);
    say("three at once: stopped %s, all still %s", yes(WIFSTOPPED(status)), yes(none_ticks()));
    kill(child, SIGCONT);
    waitpid(child, &status, WCONTINUED);
    say("  one continue is enough: %s", yes(all_tick()));
    syscall(SYS_tgkill, child, shared->tids[3], SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    syscall(SYS_tgkill, child, shared->tids[1], SIGCONT); /* continues all of them */
    waitpid(child, &status, WCONTINUED);
    say("SIGCONT to one thread: %s, all run %s", status_text(status), yes(all_tick()));
    end(child);
    child = busy_child(NULL, NULL);
    syscall(SYS_tgkill, child, shared->tids[3], SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    end(child);
    gate_free(gate);
}

static void show(const char *what, pid_t child, int options)
{
    siginfo_t info;
    memset(&info, 0, sizeof info);
    int result = waitid(P_PGID, (id_t)child, &info, options);
    say("%s: %s, code %d, status %d", what, outcome(result), info.si_pid == child ? info.si_code : -1, info.si_status);
}

static void waits(void)
{
    pid_t child = busy_child(NULL, NULL);
    kill(child, SIGTSTP);
    show("stop, left", child, WSTOPPED | WNOWAIT);
    show("stop, left", child, WSTOPPED | WCONTINUED | WEXITED | WNOWAIT);
    show("continue, none", child, WCONTINUED | WNOHANG);
    show("stop, taken", child, WSTOPPED);
    show("stop, none", child, WSTOPPED | WNOHANG);
    kill(child, SIGCONT);
    show("continue, left", child, WCONTINUED | WNOWAIT);
    show("continue, taken", child, WCONTINUED);
    show("continue, none", child, WCONTINUED | WNOHANG);
    kill(child, SIGSTOP);
    show("stop, left", child, WSTOPPED | WNOWAIT);
    kill(child, SIGCONT);
    all_tick();
    show("a stop that is over", child, WSTOPPED | WNOHANG);
    show("its continue, left", child, WCONTINUED | WNOWAIT | WNOHANG);
    kill(child, SIGSTOP);
    show("stop again, left", child, WSTOPPED | WNOWAIT);
    show("the continue before it", child, WCONTINUED | WNOHANG);
    kill(child, SIGTERM); /* waits for the continue */
    sleep_ms(20);
    show("SIGTERM while stopped", child, WEXITED | WNOHANG);
    kill(child, SIGCONT);
    show("then", child, WEXITED);
    signal(SIGCHLD, SIG_IGN);
    child = busy_child(NULL, NULL);
    kill(child, SIGSTOP);
    show("children ignored: stop", child, WSTOPPED);
    kill(child, SIGKILL);
    show("its end", child, WEXITED);
    signal(SIGCHLD, SIG_DFL);
}

static void *come_and_go(void *argument)
{
    pthread_t thread;
    for (;;) {
        if (pthread_create(&thread, NULL, (void *(*)(void *))(uintptr_t)getpid, NULL) == 0)
            pthread_join(thread, NULL);
        shared->made++;
    }
    return argument;
}

static void coming_threads(void)
{
    int status, good = 0;
    pid_t child = busy_child(come_and_go, NULL);
    for (int round = 0; round < 40; round++) {
        int before = shared->made;
        wait_until(&shared->made, before + 1 + round % 3);
        kill(child, round % 4 ? SIGSTOP : SIGTSTP);
        waitpid(child, &status, WUNTRACED);
        before = shared->made;
        bool still = none_ticks() && shared->made == before;
        kill(child, SIGCONT);
        waitpid(child, &status, WCONTINUED);
        good += still && WIFCONTINUED(status);
    }
    say("stops while threads come and go: %d of 40 whole", good);
    end(child);
}

static void *exec_when_told(void *argument)
{
    gate_wait(*(struct gate *)argument);
    execl("/bin/sh", "sh", "-c", "exit 14", (char *)NULL);
    _exit(99);
}

static void execs(void)
{
    int status;
    gate = gate_new();
    pid_t child = busy_child(exec_when_told, &gate);
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    gate_open(gate);
    say("exec by a thread, stopped before it: all still %s, wait %d", yes(none_ticks()), waitpid(child, &status, WNOHANG));
    kill(child, SIGCONT);
    say("  continued: %s", status_text(reap(child)));
    int good = 0;
    for (int round = 0; round < 20; round++) {
        child = busy_child(exec_when_told, &gate);
        gate_open(gate);
        for (int spin = 0; spin < round * 2000; spin++)
            __asm__ volatile("");
        kill(child, SIGSTOP); /* before, in or after the exec, or after its end */
        while (waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status))
            kill(child, SIGCONT);
        good += WIFEXITED(status) && WEXITSTATUS(status) == 14;
    }
    say("stops around an exec by a thread: %d of 20 end as they should", good);
    gate_free(gate);
}

static void *leaderless(void *argument)
{
    (void)argument;
    sleep_ms(20);
    start_workers();
    all_tick();
    shared->ready = 1;
    gate_wait(gate);
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGSTOP);
    gate_wait(gate);
    _exit(21);
}

static void ended_leaders(void)
{
    int status;
    for (int ends = 0; ends < 3; ends++) {
        gate = gate_new();
        fresh();
        pid_t child = fork_or_die();
        if (child == 0) {
            pthread_t thread;
            setpgid(0, 0);
            pthread_create(&thread, NULL, leaderless, NULL);
            syscall(SYS_exit, 3);
        }
        setpgid(child, child);
        wait_until(&shared->ready, 1);
        say("without its leader: wait %d", waitpid(child, &status, WNOHANG | WUNTRACED));
        kill(child, SIGSTOP);
        stopped_and_on("SIGSTOP", child);
        gate_open(gate);
        stopped_and_on("a thread's own", child);
        kill(child, SIGTSTP);
        waitpid(child, &status, WUNTRACED);
        if (ends == 0) {
            end(child);
        } else if (ends == 1) {
            kill(child, SIGTERM);
            sleep_ms(10);
            say("  SIGTERM waits: %d", waitpid(child, &status, WNOHANG));
            kill(child, SIGCONT);
            say("  then: %s", status_text(reap(child)));
        } else {
            gate_open(gate);
            say("  still: %s", yes(none_ticks()));
            kill(child, SIGCONT);
            say("  its own end: %s", status_text(reap(child)));
        }
        gate_free(gate);
    }
}

static void on_signal(int signo)
{
    (void)signo;
    __atomic_add_fetch(&shared->handled, 1, __ATOMIC_SEQ_CST);
}

static void handlers(void)
{
    int status;
    sigset_t set, old;
    signal(SIGCONT, on_signal);
    signal(SIGUSR1, on_signal);
    pid_t child = busy_child(NULL, NULL);
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    kill(child, SIGUSR1);
    kill(child, SIGUSR1);
    syscall(SYS_tgkill, child, shared->tids[1], SIGUSR1);
    say("handlers while stopped: still %s, %d", yes(none_ticks()), shared->handled);
    kill(child, SIGCONT);
    wait_until(&shared->handled, 3);
    all_tick();
    say("after the continue: %d", shared->handled);
    end(child);
    sigemptyset(&set);
    sigaddset(&set, SIGCONT);
    sigprocmask(SIG_BLOCK, &set, &old);
    child = busy_child(NULL, NULL);
    sigprocmask(SIG_SETMASK, &old, NULL);
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    kill(child, SIGCONT);
    say("blocked by all: runs %s, handled %d", yes(all_tick()), shared->handled);
    end(child);
    signal(SIGCONT, SIG_DFL);
    signal(SIGUSR1, SIG_DFL);
}

static void *waiting_call(void *argument)
{
    size_t which = (size_t)argument;
    struct timespec long_time = {1000, 0};
    struct pollfd fd = {gate.ends[0], POLLIN, 0};
    struct epoll_event event;
    sigset_t usr2;
    char byte;
    long result = 0;
    sigemptyset(&usr2);
    sigaddset(&usr2, SIGUSR2);
    int epoll = epoll_create1(0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, gate.ends[0], &event);
    __atomic_fetch_add(&shared->ready, 1, __ATOMIC_SEQ_CST); /* eight threads at once: one lost would be waited for, for ever */
    switch (which) {
    case 0: result = nanosleep(&long_time, NULL); break;
    case 1: result = sigtimedwait(&usr2, NULL, &long_time); break;
    case 2: result = syscall(SYS_futex, &shared->word, FUTEX_WAIT, 0, &long_time, NULL, 0); break;
    case 3: result = poll(&fd, 1, 1000000); break;
    case 4: result = ppoll(&fd, 1, &long_time, &usr2); break;
    case 5: result = read(gate.ends[0], &byte, 1); break;
    case 6: result = waitid(P_ALL, 0, NULL, WEXITED); break;
    default: result = pause(); break;
    }
    shared->errors[which] = result < 0 ? errno : 0;
    shared->returned[which] = 1;
    return NULL;
}

static void calls(void)
{
    static const char *const names[] = {"nanosleep", "sigtimedwait", "futex", "poll", "ppoll", "read", "waitid", "pause"};
    int status;
    gate = gate_new();
    fresh();
    pid_t child = fork_or_die();
    if (child == 0) {
        pthread_t thread;
        if (fork_or_die() == 0) { /* something to wait for */
            pid_t parent = getppid();
            while (getppid() == parent)
                sleep_ms(20);
            _exit(0);
        }
        for (size_t i = 0; i < COUNT_OF(names); i++)
            pthread_create(&thread, NULL, waiting_call, (void *)i);
        for (;;)
            pause();
    }
    wait_until(&shared->ready, COUNT_OF(names));
    sleep_ms(100);
    for (int round = 0; round < 3; round++) {
        kill(child, SIGSTOP);
        waitpid(child, &status, WUNTRACED);
        kill(child, SIGCONT);
        waitpid(child, &status, WCONTINUED);
        while (!shared->returned[1])
            sleep_ms(1);
    }
    for (size_t i = 0; i < COUNT_OF(names); i++)
        say("%s after stops: %s", names[i], shared->returned[i] ? error_name(shared->errors[i]) : "waits");
    end(child);
    gate_free(gate);
}

static void groups(void)
{
    int status, stopped = 0, continued = 0;
    pid_t first = busy_child(NULL, NULL);
    struct shared *of_first = shared;
    shared = NULL;
    pid_t second = busy_child(NULL, NULL);
    setpgid(second, first);
    kill(-first, SIGTSTP);
    for (int i = 0; i < 2; i++)
        stopped += waitpid(-first, &status, WUNTRACED) > 0 && WIFSTOPPED(status);
    kill(-first, SIGCONT);
    for (int i = 0; i < 2; i++)
        continued += waitpid(-first, &status, WCONTINUED) > 0 && WIFCONTINUED(status);
    say("two processes of a group: stopped %d, continued %d, run %s", stopped, continued, yes(all_tick()));
    kill(-first, SIGKILL);
    say("killed: %s, %s", status_text(reap(first)), status_text(reap(second)));
    munmap(of_first, sizeof *of_first);
}

static void *vfork_in_thread(void *argument)
{
    pid_t child = vfork();
    if (child == 0) {
        char byte;
        shared->made = 1;
        if (read(gate.ends[0], &byte, 1) < 0)
            _exit(1);
        _exit(0);
    }
    shared->made = 2;
    return argument;
}

static void vforks(void)
{
    int status = 0;
    gate = gate_new();
    pid_t child = busy_child(vfork_in_thread, NULL);
    wait_until(&shared->made, 1);
    kill(child, SIGSTOP);
    do
        sleep_ms(1);
    while (!none_ticks());
    say("a thread waits in vfork: the rest stops, reported %d", waitpid(child, &status, WUNTRACED | WNOHANG));
    gate_open(gate);
    waitpid(child, &status, WUNTRACED);
    say("its child has ended: %s, it goes no further %s", status_text(status), yes(shared->made == 1));
    kill(child, SIGCONT);
    wait_until(&shared->made, 2);
    say("then it goes on: %s", yes(all_tick()));
    end(child);
    gate_free(gate);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"senders", senders}, {"waits", waits}, {"coming", coming_threads}, {"execs", execs},
        {"leaders", ended_leaders}, {"handlers", handlers}, {"calls", calls}, {"groups", groups}, {"vforks", vforks},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
