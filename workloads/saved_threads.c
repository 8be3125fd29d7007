/* Checkpoints of processes with several threads: blocked in calls of every kind, stopping, dying, sharing. */
#include "saved_common.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/socket.h>

#ifndef SYS_rseq
#define SYS_rseq 334
#endif

static struct gate ready, go;

/* -- blocked, until the main thread that made the marker call lets them go */
static int word, queue, semaphores, listener, epoll, event;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t inherits;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static struct sockaddr_storage place;

/* A wait that begins again after an interruption compares again, and says EAGAIN where the word has changed. */
static const char *woken(long result)
{
    return result < 0 && errno == EAGAIN ? "ok" : outcome(result);
}

static const char *in_futex(void)
{
    return woken(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0));
}

static const char *in_futex_with_a_time(void)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 1000;
    return woken(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &until, NULL, 1));
}

static const char *in_futex_in_vain(void)
{
    struct timespec little = {0, 100 * MS};
    static int own;
    return outcome(syscall(SYS_futex, &own, FUTEX_WAIT_PRIVATE, 0, &little, NULL, 0));
}

static const char *in_read(void)
{
    char byte;
    return outcome(read(go.ends[0], &byte, 1));
}

static const char *in_poll(void)
{
    struct pollfd waiter = {event, POLLIN, 0};
    return yes(poll(&waiter, 1, -1) == 1 && waiter.revents == POLLIN);
}

static const char *in_poll_in_vain(void)
{
    struct pollfd waiter = {-1, POLLIN, 0};
    return yes(poll(&waiter, 1, 100) == 0);
}

static const char *in_epoll(void)
{
    struct epoll_event found;
    return yes(epoll_wait(epoll, &found, 1, -1) == 1 && found.data.u64 == 4711);
}

static const char *in_nanosleep(void)
{
    struct timespec little = {0, 100 * MS};
    return outcome(nanosleep(&little, NULL));
}

static const char *in_absolute_sleep(void)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100 * MS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    return error_name(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &until, NULL));
}

static const char *in_sigwait(void)
{
    siginfo_t info;
    sigset_t set = set_of(SIGUSR2, 0);
    return yes(sigwaitinfo(&set, &info) == SIGUSR2 && info.si_pid == getpid());
}

static const char *in_condition(void)
{
    pthread_mutex_lock(&mutex);
    while (word == 0)
        pthread_cond_wait(&condition, &mutex);
    pthread_mutex_unlock(&mutex);
    return "ok";
}

static const char *in_inheriting_mutex(void)
{
    int error = pthread_mutex_lock(&inherits);
    if (error == 0)
        pthread_mutex_unlock(&inherits);
    return error_name(error);
}

static const char *in_barrier(void)
{
    int result = pthread_barrier_wait(&barrier);
    return yes(result == 0 || result == PTHREAD_BARRIER_SERIAL_THREAD);
}

static const char *in_msgrcv(void)
{
    struct { long type; char text[8]; } message;
    return yes(msgrcv(queue, &message, sizeof message.text, 3, 0) == 2 && message.text[0] == 'm');
}

static const char *in_semop(void)
{
    struct sembuf down = {0, -1, 0};
    return outcome(semop(semaphores, &down, 1));
}

static const char *in_accept(void)
{
    return outcome(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
}

static const char *in_wait(void)
{
    siginfo_t info = {0};
    long result = waitid(P_ALL, 0, &info, WEXITED);
    return result == 0 && info.si_status == 6 ? "ok" : outcome(result);
}

static const char *in_spin(void)
{
    while (__atomic_load_n(&word, __ATOMIC_ACQUIRE) == 0)
        ;
    return "ok";
}

static const struct way {
    const char *name;
    const char *(*wait)(void);
} ways[] = {
    {"futex", in_futex}, {"futex until", in_futex_with_a_time}, {"futex in vain", in_futex_in_vain}, {"read", in_read},
    {"poll", in_poll}, {"poll in vain", in_poll_in_vain}, {"epoll", in_epoll}, {"nanosleep", in_nanosleep},
    {"absolute sleep", in_absolute_sleep}, {"sigwaitinfo", in_sigwait}, {"condition", in_condition},
    {"inheriting mutex", in_inheriting_mutex}, {"barrier", in_barrier}, {"msgrcv", in_msgrcv}, {"semop", in_semop},
    {"accept", in_accept}, {"waitid", in_wait}, {"spin", in_spin},
};

/* What is of a thread alone. */
static struct own {
    pthread_t thread;
    pid_t tid;
    const char *result, *same;
} own[COUNT_OF(ways)];
static __thread int local;

static void *waits(void *argument)
{
    size_t which = (size_t)argument;
    struct own *mine = &own[which];
    char name[16], found[17] = "";
    stack_t stack = {.ss_sp = malloc(16384), .ss_size = 16384}, now;
    block(SIG_SETMASK, SIGUSR2, which % 2 ? SIGHUP : 0);
    snprintf(name, sizeof name, "way-%zu", which);
    prctl(PR_SET_NAME, name);
    prctl(PR_SET_TIMERSLACK, 70000 + which);
    sigaltstack(&stack, NULL);
    local = (int)which;
    mine->tid = (pid_t)syscall(SYS_gettid);
    gate_open(ready);
    mine->result = ways[which].wait();
    prctl(PR_GET_NAME, found);
    sigaltstack(NULL, &now);
    mine->same = yes(strcmp(found, name) == 0 && local == (int)which && mine->tid == syscall(SYS_gettid) &&
                     now.ss_sp == stack.ss_sp && is_blocked(SIGHUP) == (which % 2 == 1) &&
                     prctl(PR_GET_TIMERSLACK) == 70000 + (int)which && pthread_self() == mine->thread);
    return NULL;
}

static void blocked(void)
{
    struct sembuf up = {0, 1, 0};
    struct { long type; char text[8]; } message = {3, "m"};
    struct epoll_event interest = {EPOLLIN, {.u64 = 4711}};
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&inherits, &attributes);
    pthread_mutex_lock(&inherits);
    pthread_barrier_init(&barrier, NULL, 2);
    block(SIG_SETMASK, SIGUSR2, 0);
    ready = gate_new();
    go = gate_new();
    queue = msgget(IPC_PRIVATE, 0600);
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    event = eventfd(0, EFD_CLOEXEC);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(epoll, EPOLL_CTL_ADD, event, &interest);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length = sizeof(sa_family_t);
    place.ss_family = AF_UNIX;
    bind(listener, (struct sockaddr *)&place, length); /* a name that the kernel chooses */
    length = sizeof place;
    getsockname(listener, (struct sockaddr *)&place, &length);
    listen(listener, 1);
    pid_t child = fork_or_die();
    if (child == 0) {
        char byte;
        _exit(read(event, &byte, 1) < 0 ? 6 : 5); /* too small: EINVAL at once, so it is a zombie soon */
    }
    waitid(P_PID, (id_t)child, &(siginfo_t){0}, WEXITED | WNOWAIT);
    pid_t later = fork_or_die();
    if (later == 0) {
        gate_wait(go);
        _exit(6);
    }
    reap(child);
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        pthread_create(&own[i].thread, NULL, waits, (void *)i);
        gate_wait(ready);
    }
    let_them_wait();
    checkpoint_marker();
    word = 1;
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 100, NULL, NULL, 0);
    eventfd_write(event, 1);
    for (size_t i = 0; i < COUNT_OF(ways); i++)
        if (ways[i].wait == in_sigwait)
            syscall(SYS_tgkill, getpid(), own[i].tid, SIGUSR2);
    gate_open(go);
    gate_open(go);
    pthread_mutex_lock(&mutex);
    pthread_cond_broadcast(&condition);
    pthread_mutex_unlock(&mutex);
    pthread_mutex_unlock(&inherits);
    pthread_barrier_wait(&barrier);
    semop(semaphores, &up, 1);
    msgsnd(queue, &message, 2, 0);
    int client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    say("connect: %s", outcome(connect(client, (struct sockaddr *)&place, length)));
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        pthread_join(own[i].thread, NULL);
        say("%s: %s, the thread's own as before: %s", ways[i].name, own[i].result, own[i].same);
    }
    msgctl(queue, IPC_RMID, NULL);
    semctl(semaphores, 0, IPC_RMID);
    close(client), close(listener), close(epoll), close(event);
    gate_free(ready), gate_free(go);
    block(SIG_SETMASK, 0, 0);
    word = 0;
}

/* -- a stop that has only begun */
static struct shared {
    volatile long ticks[6];
    volatile int ready;
} *shared;

static void *tick(void *argument)
{
    size_t which = (size_t)argument;
    for (;;) {
        shared->ticks[which]++;
        if (which % 3)
            usleep(300);
    }
    return NULL;
}

static bool all_tick(void)
{
    for (size_t i = 0; i < COUNT_OF(shared->ticks); i++)
        for (long before = shared->ticks[i]; shared->ticks[i] == before;)
            sleep_ms(1);
    return true;
}

static bool none_ticks(void)
{
    struct shared before = *shared;
    sleep_ms(20);
    return memcmp(&before, shared, sizeof before) == 0;
}

static void *does_nothing(void *argument)
{
    return argument;
}

static void *comes_and_goes(void *argument)
{
    while (!__atomic_load_n((bool *)argument, __ATOMIC_ACQUIRE)) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, does_nothing, NULL) == 0)
            pthread_join(thread, NULL);
    }
    return NULL;
}

static pid_t ticking(void)
{
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = fork_or_die();
    if (child == 0) {
        pthread_t thread;
        static bool never;
        for (size_t i = 0; i < COUNT_OF(shared->ticks); i++)
            pthread_create(&thread, NULL, tick, (void *)i);
        for (int i = 0; i < 3; i++) /* a stop finds threads that are just being born */
            pthread_create(&thread, NULL, comes_and_goes, &never);
        for (;;)
            pause();
    }
    all_tick();
    return child;
}

static void end_ticking(pid_t child)
{
    kill(child, SIGKILL);
    say("killed: %s", status_text(reap(child)));
    munmap(shared, sizeof *shared);
}

static void stopping(void)
{
    int status = 0;
    pid_t child = ticking();
    kill(child, SIGSTOP);
    checkpoint_marker();
    waitpid(child, &status, WUNTRACED);
    say("stopping: %s, all still %s", status_text(status), yes(none_ticks()));
    say("once: %d", waitpid(child, &status, WUNTRACED | WNOHANG));
    kill(child, SIGCONT);
    checkpoint_marker();
    waitpid(child, &status, WCONTINUED);
    say("continuing: %s, all run %s", status_text(status), yes(all_tick()));
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    checkpoint_marker();
    int again = waitpid(child, &status, WUNTRACED | WNOHANG);
    say("stopped, and reported: again %d, all still %s", again, yes(none_ticks()));
    kill(child, SIGTERM); /* waits until it goes on */
    checkpoint_marker();
    say("SIGTERM: %d", waitpid(child, &status, WNOHANG));
    kill(child, SIGCONT);
    say("then: %s", status_text(reap(child)));
    munmap(shared, sizeof *shared);
    child = ticking();
    kill(child, SIGSTOP);
    kill(child, SIGCONT);
    checkpoint_marker();
    say("on at once: all run %s", yes(all_tick()));
    end_ticking(child);
}

/* -- ends */
static void *marks_and_ends(void *argument)
{
    gate_wait(go); /* until the leader is about to end */
    let_them_wait();
    checkpoint_marker();
    say("the leader has ended, its thread is there: same process %s, kill %s", yes(getpid() == *(pid_t *)argument),
        outcome(kill(getpid(), 0)));
    _exit(17);
}

static void *pauses(void *argument)
{
    for (;;)
        pause();
    return argument;
}

static pthread_mutex_t *robust;

static void *dies_with_lock(void *argument)
{
    pthread_mutex_lock(robust);
    gate_open(ready);
    gate_wait(go);
    return argument;
}

static void ends(void)
{
    pthread_t thread;
    go = gate_new();
    ready = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        static pid_t self;
        self = getpid();
        pthread_create(&thread, NULL, pauses, NULL);
        pthread_create(&thread, NULL, marks_and_ends, &self);
        gate_open(go);
        syscall(SYS_exit, 3);
    }
    say("exit_group by the other: %s", status_text(reap(child)));

    pthread_mutexattr_t attributes;
    robust = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(robust, &attributes);
    child = fork_or_die();
    if (child == 0) {
        dies_with_lock(NULL);
        _exit(0);
    }
    gate_wait(ready);
    checkpoint_marker();
    say("it holds the robust mutex: %s", error_name(pthread_mutex_trylock(robust)));
    gate_open(go);
    reap(child);
    say("it has ended: %s", error_name(pthread_mutex_lock(robust)));
    pthread_mutex_consistent(robust);
    pthread_mutex_unlock(robust);
    pthread_create(&thread, NULL, dies_with_lock, NULL);
    gate_wait(ready);
    checkpoint_marker();
    gate_open(go);
    pthread_join(thread, NULL);
    say("a thread has: %s", error_name(pthread_mutex_lock(robust)));
    munmap(robust, 4096);
    gate_free(ready), gate_free(go);
}

/* -- in the midst of one another */
static void *marks(void *argument)
{
    pthread_barrier_wait(&barrier);
    checkpoint_marker();
    return argument;
}

static void together(void)
{
    pthread_t threads[4], other;
    static bool done;
    pthread_barrier_init(&barrier, NULL, COUNT_OF(threads));
    pthread_create(&other, NULL, comes_and_goes, &done);
    for (size_t i = 0; i < COUNT_OF(threads); i++)
        pthread_create(&threads[i], NULL, marks, NULL);
    for (size_t i = 0; i < COUNT_OF(threads); i++)
        pthread_join(threads[i], NULL);
    checkpoint_marker();
    __atomic_store_n(&done, true, __ATOMIC_RELEASE);
    pthread_join(other, NULL);
    say("four at once, while threads come and go: all went on");
}

static void *executes(void *argument)
{
    checkpoint_marker();
    execl("/bin/sh", "sh", "-c", "exit 14", (char *)NULL);
    return argument;
}

static void executing(void)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        pthread_t thread;
        for (int i = 0; i < 3; i++)
            pthread_create(&thread, NULL, pauses, NULL);
        pthread_create(&thread, NULL, executes, NULL);
        pthread_join(thread, NULL);
    }
    say("exec over all of them: %s", status_text(reap(child)));
}

/* -- what glibc has registered for a thread */
static void registrations(void)
{
    void *head = NULL, *again = NULL;
    size_t size = 0;
    syscall(SYS_get_robust_list, 0, &head, &size);
    char area[32] __attribute__((aligned(32))) = {0};
    /* Where there is one already, of another address: EINVAL; the same after the checkpoint. */
    long before = syscall(SYS_rseq, area, sizeof area, 0, 0x53053053);
    int first = before < 0 ? errno : 0;
    checkpoint_marker();
    syscall(SYS_get_robust_list, 0, &again, &size);
    if (first == 0) {
        say("robust list: %s, rseq: as before %s", yes(head == again && size == 24),
            yes(syscall(SYS_rseq, area, sizeof area, 1, 0x53053053) == 0));
    } else {
        long after = syscall(SYS_rseq, area, sizeof area, 0, 0x53053053);
        say("robust list: %s, rseq: as before %s", yes(head == again && size == 24), yes(after < 0 && errno == first));
    }
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"blocked", blocked}, {"stopping", stopping}, {"ends", ends}, {"together", together}, {"executing", executing},
        {"registrations", registrations},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
