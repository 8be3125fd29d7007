/* How the threads of a process end: leaders first, all at once, killed, by thousands. */
#include "common.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

static void *exit_group_later(void *argument)
{
    sleep_ms(30);
    _exit((int)(long)argument);
}

static void *exit_group_when_told(void *argument)
{
    gate_wait(*(struct gate *)argument);
    _exit(7);
}

static void *thread_exit_later(void *argument)
{
    sleep_ms(30);
    syscall(SYS_exit, (long)argument);
    return NULL;
}

static void *block_in_read(void *argument)
{
    char byte;
    struct gate *gate = argument;
    if (read(gate->ends[0], &byte, 1) == 1)
        _exit(70);
    return NULL;
}

static void *block_in_sleep(void *argument)
{
    sleep_ms(100000);
    return argument;
}

static void *block_in_pause(void *argument)
{
    for (;;)
        pause();
    return argument;
}

static void *block_in_wait(void *argument)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigwaitinfo(&set, NULL);
    return argument;
}

static void *block_in_futex(void *argument)
{
    static int word;
    while (__atomic_load_n(&word, __ATOMIC_ACQUIRE) == 0)
        syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    return argument;
}

static void *spin(void *argument)
{
    for (volatile long i = 0;; i++)
        ;
    return argument;
}

/* One thread of each way to be busy or blocked. */
static void start_all(struct gate *gate)
{
    void *(*const bodies[])(void *) = {block_in_read, block_in_sleep, block_in_pause, block_in_wait, block_in_futex, spin};
    for (int i = 0; i < 12; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, bodies[(size_t)i % COUNT_OF(bodies)], gate);
    }
    sleep_ms(30);
}

static void leaders(void)
{
    struct gate gate = gate_new();
    pthread_t thread;
    int status;
    pid_t child = fork_or_die();
    if (child == 0) {
        pthread_create(&thread, NULL, exit_group_when_told, &gate);
        pthread_exit(NULL);
    }
    sleep_ms(10);
    checkpoint_marker();
    say("the leader has ended, a thread lives: wait %d", waitpid(child, &status, WNOHANG));
    gate_open(gate);
    say("the thread's exit_group(7): %s", status_text(reap(child)));
    child = fork_or_die();
    if (child == 0) {
        pthread_create(&thread, NULL, thread_exit_later, (void *)9);
        syscall(SYS_exit, 5);
    }
    say("leader exit(5), last thread exit(9): %s", status_text(reap(child)));
    child = fork_or_die();
    if (child == 0) {
        pthread_create(&thread, NULL, block_in_pause, NULL);
        syscall(SYS_exit, 5);
    }
    sleep_ms(30);
    say("a process without its leader can be signalled: %s", outcome(kill(child, SIGTERM)));
    say("and dies of it: %s", status_text(reap(child)));
    child = fork_or_die();
    if (child == 0) {
        pthread_create(&thread, NULL, block_in_pause, NULL);
        syscall(SYS_exit, 5);
    }
    sleep_ms(30);
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    say("it can be stopped: %s", status_text(status));
    kill(child, SIGKILL);
    say("and killed: %s", status_text(reap(child)));
}

static void all_at_once(void)
{
    struct gate gate = gate_new();
    pthread_t thread;
    pid_t child = fork_or_die();
    if (child == 0) {
        start_all(&gate);
        _exit(11);
    }
    say("exit_group by the leader: %s", status_text(reap(child)));
    child = fork_or_die();
    if (child == 0) {
        start_all(&gate);
        pthread_create(&thread, NULL, exit_group_later, (void *)12);
        block_in_pause(NULL);
    }
    say("exit_group by a thread: %s", status_text(reap(child)));
    child = fork_or_die();
    if (child == 0) {
        for (int i = 0; i < 8; i++)
            pthread_create(&thread, NULL, exit_group_later, (void *)13);
        block_in_pause(NULL);
    }
    say("exit_group by eight at once: %s", status_text(reap(child)));
    const int signals[] = {SIGKILL, SIGTERM};
    for (size_t i = 0; i < COUNT_OF(signals); i++) {
        child = fork_or_die();
        if (child == 0) {
            start_all(&gate);
            block_in_pause(NULL);
        }
        sleep_ms(50);
        kill(child, signals[i]);
        say("killed from outside: %s", status_text(reap(child)));
    }
    child = fork_or_die();
    if (child == 0) {
        start_all(&gate);
        pthread_create(&thread, NULL, block_in_pause, NULL);
        pthread_kill(thread, SIGKILL);
        block_in_pause(NULL);
    }
    say("a thread killed: %s", status_text(reap(child)));
    child = fork_or_die();
    if (child == 0) {
        start_all(&gate);
        execl("/bin/sh", "sh", "-c", "exit 14", (char *)NULL);
    }
    say("exec over all of them: %s", status_text(reap(child)));
    gate_free(gate);
}

static void *add_one(void *argument)
{
    __atomic_add_fetch((int *)argument, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static void short_lived(void)
{
    int total = 0;
    pthread_t threads[16];
    for (int i = 0; i < 1000; i++) {
        if (pthread_create(&threads[0], NULL, add_one, &total) == 0)
            pthread_join(threads[0], NULL);
    }
    say("a thousand, one by one: %d", total);
    for (int i = 0; i < 50; i++) {
        for (size_t t = 0; t < COUNT_OF(threads); t++)
            pthread_create(&threads[t], NULL, add_one, &total);
        for (size_t t = 0; t < COUNT_OF(threads); t++)
            pthread_join(threads[t], NULL);
    }
    say("fifty times sixteen: %d", total);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (int i = 0; i < 200; i++)
        while (pthread_create(&threads[0], &attributes, add_one, &total) != 0)
            sleep_ms(1);
    while (__atomic_load_n(&total, __ATOMIC_SEQ_CST) < 2000)
        sleep_ms(1);
    say("two hundred detached: %d", total);
    pid_t child = fork_or_die();
    if (child == 0) {
        for (int i = 0; i < 50; i++)
            pthread_create(&threads[0], &attributes, add_one, &total);
        _exit(3); /* while some of them are being born */
    }
    say("exit in the midst of births: %s", status_text(reap(child)));
}

static volatile int cleared;

static int raw_thread(void *argument)
{
    (void)argument;
    syscall(SYS_exit, 0);
    return 0;
}

static pthread_mutex_t *robust;

static void *die_with_lock(void *argument)
{
    pthread_mutex_lock(robust);
    return argument;
}

static void traces(void)
{
    const size_t size = 65536;
    char *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cleared = -1;
    clone(raw_thread, stack + size, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
          CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID, NULL, NULL, NULL, &cleared);
    int word;
    while ((word = __atomic_load_n(&cleared, __ATOMIC_ACQUIRE)) != 0)
        syscall(SYS_futex, &cleared, FUTEX_WAIT, word, NULL, NULL, 0);
    say("CHILD_CLEARTID: cleared and woken");
    munmap(stack, size);

    pthread_t thread;
    pthread_mutexattr_t attributes;
    robust = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(robust, &attributes);
    pthread_create(&thread, NULL, die_with_lock, NULL);
    pthread_join(thread, NULL);
    say("robust mutex of a thread that ended: %s", error_name(pthread_mutex_lock(robust)));
    pthread_mutex_consistent(robust);
    pthread_mutex_unlock(robust);
    pid_t child = fork_or_die();
    if (child == 0) {
        pthread_mutex_lock(robust);
        kill(getpid(), SIGKILL);
    }
    reap(child);
    say("of a process that was killed: %s", error_name(pthread_mutex_lock(robust)));
    pid_t tid = (pid_t)syscall(SYS_gettid);
    say("tgkill of oneself with 0: %s, of a thread that has gone: %s", outcome(syscall(SYS_tgkill, getpid(), tid, 0)),
        outcome(syscall(SYS_tgkill, getpid(), child, 0)));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"leaders", leaders}, {"at-once", all_at_once}, {"short-lived", short_lived}, {"traces", traces},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
