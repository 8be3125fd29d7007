/* What one operation costs. Each is run in several rounds of COUNT; the figure is the median of the rounds'
 * time per operation, with the mean beside it.
 *
 * usage: ops --list
 *        ops NAME[,NAME...] [COUNT [ROUNDS]]     COUNT 0 or absent: the operation's own
 * prints, for each: NAME median NS mean NS */
#include "common.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>

#define FILE_SIZE (64 * 4096)

static void must(bool condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "ops: %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

/* --- calls that trapline owns */

static void op_getitimer(long count)
{
    struct itimerval value;
    while (count-- > 0)
        must(getitimer(ITIMER_REAL, &value) == 0, "getitimer");
}

static void pin(void)
{
    cpu_set_t allowed, one;
    CPU_ZERO(&one);
    must(sched_getaffinity(0, sizeof allowed, &allowed) == 0, "sched_getaffinity");
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed)) {
            CPU_SET(cpu, &one);
            break;
        }
    must(sched_setaffinity(0, sizeof one, &one) == 0, "sched_setaffinity");
}

static void op_clock_raw(long count)
{
    struct timespec value;
    while (count-- > 0)
        must(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &value) == 0, "clock_gettime");
}

static void op_nanosleep(long count)
{
    const struct timespec one = {0, 1};
    while (count-- > 0)
        must(nanosleep(&one, NULL) == 0, "nanosleep");
}

static void op_timer(long count)
{
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    struct itimerspec setting = {.it_value = {100, 0}};
    while (count-- > 0) {
        timer_t timer;
        must(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
        must(timer_settime(timer, 0, &setting, NULL) == 0, "timer_settime");
        must(timer_delete(timer) == 0, "timer_delete");
    }
}

static volatile sig_atomic_t handled;

static void on_signal(int signo)
{
    (void)signo;
    handled++;
}

static void op_signal(long count)
{
    struct sigaction action = {.sa_handler = on_signal};
    must(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
    pid_t self = getpid();
    while (count-- > 0) {
        sig_atomic_t before = handled;
        must(kill(self, SIGUSR1) == 0 && handled == before + 1, "signal to self");
    }
}

/* --- calls that the host serves */

static void op_getppid(long count)
{
    while (count-- > 0)
        syscall(SYS_getppid);
}

static void op_clock_libc(long count)
{
    struct timespec value;
    while (count-- > 0)
        must(clock_gettime(CLOCK_MONOTONIC, &value) == 0, "clock_gettime");
}

static char file_name[64];

static int make_file(void)
{
    static char block[4096];
    /* In the current directory, which a sandbox shares: the calls are measured, not the overlay of its root. */
    snprintf(file_name, sizeof file_name, "ops-XXXXXX");
    int fd = mkstemp(file_name);
    must(fd >= 0, "mkstemp");
    memset(block, 'x', sizeof block);
    for (int i = 0; i < FILE_SIZE / 4096; i++)
        must(write(fd, block, sizeof block) == sizeof block, "write");
    return fd;
}

static void op_read(long count)
{
    static char block[4096];
    int fd = make_file();
    for (long i = 0; i < count; i++)
        must(pread(fd, block, sizeof block, i % (FILE_SIZE / 4096) * 4096) == sizeof block, "pread");
    close(fd);
    unlink(file_name);
}

static void op_open(long count)
{
    char byte;
    close(make_file());
    while (count-- > 0) {
        int fd = open(file_name, O_RDONLY);
        must(fd >= 0 && read(fd, &byte, 1) == 1 && close(fd) == 0, "open, read, close");
    }
    unlink(file_name);
}

static void op_stat(long count)
{
    struct stat information;
    while (count-- > 0)
        must(stat("/etc/passwd", &information) == 0, "stat");
}

static void op_mmap(long count)
{
    const size_t size = 16 * 4096;
    while (count-- > 0) {
        char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        must(memory != MAP_FAILED, "mmap");
        for (size_t i = 0; i < size; i += 4096)
            memory[i] = 1;
        must(munmap(memory, size) == 0, "munmap");
    }
}

static void op_fault(long count)
{
    size_t size = (size_t)count * 4096;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED, "mmap");
    madvise(memory, size, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < size; i += 4096)
        memory[i] = 1;
    munmap(memory, size);
}

static void futex_pass(int *word, int expected)
{
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != expected)
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, !expected, NULL, NULL, 0);
    __atomic_store_n(word, !expected, __ATOMIC_RELEASE);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

struct futex_game {
    int word;
    long count;
};

static void *futex_partner(void *argument)
{
    struct futex_game *game = argument;
    for (long i = 0; i < game->count; i++)
        futex_pass(&game->word, 1);
    return NULL;
}

static void op_futex(long count)
{
    struct futex_game game = {0, count};
    pthread_t partner;
    must(pthread_create(&partner, NULL, futex_partner, &game) == 0, "pthread_create");
    for (long i = 0; i < count; i++)
        futex_pass(&game.word, 0);
    pthread_join(partner, NULL);
}

static void op_pipe(long count)
{
    struct gate there = gate_new(), back = gate_new();
    pid_t partner = fork_or_die();
    if (partner == 0) {
        for (long i = 0; i < count; i++) {
            gate_wait(there);
            gate_open(back);
        }
        _exit(0);
    }
    for (long i = 0; i < count; i++) {
        gate_open(there);
        gate_wait(back);
    }
    must(reap(partner) == 0, "partner");
    gate_free(there);
    gate_free(back);
}

static void op_poll(long count)
{
    struct gate gate = gate_new();
    gate_open(gate);
    struct pollfd ready = {gate.ends[0], POLLIN, 0};
    while (count-- > 0)
        must(poll(&ready, 1, -1) == 1, "poll");
    gate_free(gate);
}

static void op_fork(long count)
{
    while (count-- > 0) {
        pid_t child = fork_or_die();
        if (child == 0)
            _exit(0);
        must(reap(child) == 0, "child");
    }
}

static void op_exec(long count)
{
    while (count-- > 0) {
        pid_t child = fork_or_die();
        if (child == 0) {
            execl("/bin/true", "true", (char *)NULL);
            _exit(1);
        }
        must(reap(child) == 0, "/bin/true");
    }
}

static const struct operation {
    const char *name;
    void (*run)(long count);
    long count; /* per round, about 20-50 ms natively, less for what is slow when emulated */
    bool pinned;
} operations[] = {
    {"getitimer", op_getitimer, 10000, false}, {"getitimer-1cpu", op_getitimer, 10000, true},
    {"getppid", op_getppid, 100000, false}, {"clock-libc", op_clock_libc, 500000, false},
    {"clock-raw", op_clock_raw, 10000, false}, {"nanosleep", op_nanosleep, 300, false},
    {"timer", op_timer, 1500, false}, {"read", op_read, 50000, false},
    {"open", op_open, 8000, false}, {"stat", op_stat, 20000, false},
    {"mmap", op_mmap, 1500, false}, {"fault", op_fault, 8000, false},
    {"futex", op_futex, 5000, false}, {"pipe", op_pipe, 5000, false},
    {"poll", op_poll, 50000, false}, {"signal", op_signal, 2000, false},
    {"fork", op_fork, 100, false}, {"exec", op_exec, 30, false},
};

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void measure(const struct operation *operation, long count, int rounds)
{
    cpu_set_t before;
    double times[1000], sum = 0;
    sched_getaffinity(0, sizeof before, &before);
    if (operation->pinned)
        pin();
    operation->run(count / 10 + 1); /* caches, page tables, a CPU that is awake */
    for (int round = 0; round < rounds; round++) {
        int64_t start = now_ns(CLOCK_MONOTONIC);
        operation->run(count);
        times[round] = (double)(now_ns(CLOCK_MONOTONIC) - start) / (double)count;
        sum += times[round];
    }
    sched_setaffinity(0, sizeof before, &before);
    qsort(times, (size_t)rounds, sizeof times[0], by_size);
    double median = (times[rounds / 2] + times[(rounds - 1) / 2]) / 2;
    say("%s median %.1f mean %.1f", operation->name, median, sum / rounds);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (size_t i = 0; i < COUNT_OF(operations); i++)
            say("%s %ld", operations[i].name, operations[i].count);
        return 0;
    }
    long count = argc > 2 ? strtol(argv[2], NULL, 10) : 0;
    int rounds = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 7;
    if (argc < 2 || argc > 4 || rounds < 1 || rounds > 1000 || count < 0) {
        fprintf(stderr, "usage: ops --list | ops NAME[,NAME...] [COUNT [ROUNDS]]\n");
        return 2;
    }
    for (char *name = strtok(argv[1], ","); name != NULL; name = strtok(NULL, ",")) {
        const struct operation *found = NULL;
        for (size_t i = 0; i < COUNT_OF(operations); i++)
            if (strcmp(operations[i].name, name) == 0)
                found = &operations[i];
        if (found == NULL) {
            fprintf(stderr, "ops: no operation %s (see --list)\n", name);
            return 2;
        }
        measure(found, count ? count : found->count, rounds);
    }
    return 0;
}
