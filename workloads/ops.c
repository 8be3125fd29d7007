/* What one operation costs. Each is run in several rounds; the figure is the median of the rounds' time per
 * operation, with the mean beside it. It is measured by the program itself, so that the start of whatever the
 * program runs under is not in it; whoever starts it can compare ELAPSED, which is from "begin" to the figure,
 * with a clock outside, since the clock in here may be an emulated one.
 *
 * usage: ops --list
 *        ops NAME[,NAME...] [COUNT [ROUNDS]]
 * COUNT 0 or absent: as many as take 25 ms, found by trying (an operation costs from 20 ns to 20 ms, depending
 * on what serves it). prints, for each: "begin NAME", then "NAME median NS mean NS elapsed NS" */
#include "common.h"

#include <arpa/inet.h>
#include <linux/futex.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <termios.h>

#define ROUND_NS (25 * MS)
#define CHUNK 65536

static void must(bool condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "ops: %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

/* What is timed is from begin() to finish(), where an operation has something to set up or to clear away (a
 * second process costs more than thousands of its messages), else all of it. */
static int64_t begun, finished;

static void begin(void)
{
    begun = now_ns(CLOCK_MONOTONIC);
}

static void finish(void)
{
    finished = now_ns(CLOCK_MONOTONIC);
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

static void clock_raw(clockid_t clock, long count)
{
    struct timespec value;
    while (count-- > 0)
        must(syscall(SYS_clock_gettime, clock, &value) == 0, "clock_gettime");
}

static void op_clock_raw(long count)
{
    clock_raw(CLOCK_MONOTONIC, count);
}

static void op_clock_thread(long count)
{
    clock_raw(CLOCK_THREAD_CPUTIME_ID, count);
}

static void op_nanosleep(long count)
{
    const struct timespec one = {0, 1};
    while (count-- > 0)
        must(nanosleep(&one, NULL) == 0, "nanosleep");
}

static void timer_life(clockid_t clock, long count)
{
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    struct itimerspec setting = {.it_value = {100, 0}};
    while (count-- > 0) {
        timer_t timer;
        must(timer_create(clock, &event, &timer) == 0, "timer_create");
        must(timer_settime(timer, 0, &setting, NULL) == 0, "timer_settime");
        must(timer_delete(timer) == 0, "timer_delete");
    }
}

static void op_timer(long count)
{
    timer_life(CLOCK_MONOTONIC, count);
}

static void op_timer_cpu(long count)
{
    timer_life(CLOCK_THREAD_CPUTIME_ID, count);
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

/* A file of the host: this program itself, in a directory that a sandbox shares. The calls are measured, not
 * the overlay of a root; op_open_root is the one that goes through that. */
static const char *program;

static void op_read(long count)
{
    static char block[4096];
    struct stat information;
    int fd = open(program, O_RDONLY);
    must(fd >= 0 && fstat(fd, &information) == 0, "open");
    long blocks = information.st_size / 4096;
    begin();
    for (long i = 0; i < count; i++)
        must(pread(fd, block, sizeof block, i % blocks * 4096) == sizeof block, "pread");
    finish();
    close(fd);
}

static void open_read_close(const char *path, long count)
{
    char byte;
    while (count-- > 0) {
        int fd = open(path, O_RDONLY);
        must(fd >= 0 && read(fd, &byte, 1) == 1 && close(fd) == 0, "open, read, close");
    }
}

static void op_open(long count)
{
    open_read_close(program, count);
}

static void op_open_root(long count)
{
    open_read_close("/etc/passwd", count);
}

static void op_stat(long count)
{
    struct stat information;
    while (count-- > 0)
        must(stat(program, &information) == 0, "stat");
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
    begin();
    for (size_t i = 0; i < size; i += 4096)
        memory[i] = 1;
    finish();
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
    for (long i = 0; i <= game->count; i++)
        futex_pass(&game->word, 1);
    return NULL;
}

static void op_futex(long count)
{
    struct futex_game game = {0, count};
    pthread_t partner;
    must(pthread_create(&partner, NULL, futex_partner, &game) == 0, "pthread_create");
    futex_pass(&game.word, 0); /* it is there */
    begin();
    for (long i = 0; i < count; i++)
        futex_pass(&game.word, 0);
    finish();
    pthread_join(partner, NULL);
}

static void op_pipe(long count)
{
    struct gate there = gate_new(), back = gate_new();
    pid_t partner = fork_or_die();
    if (partner == 0) {
        for (long i = 0; i <= count; i++) {
            gate_wait(there);
            gate_open(back);
        }
        _exit(0);
    }
    for (long i = 0; i <= count; i++) {
        if (i == 1)
            begin(); /* now that the partner runs */
        gate_open(there);
        gate_wait(back);
    }
    finish();
    must(reap(partner) == 0, "partner");
    gate_free(there);
    gate_free(back);
}

static void op_poll(long count)
{
    struct gate gate = gate_new();
    gate_open(gate);
    struct pollfd ready = {gate.ends[0], POLLIN, 0};
    begin();
    while (count-- > 0)
        must(poll(&ready, 1, -1) == 1, "poll");
    finish();
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

/* Both ends of a raw terminal: master and slave. */
static void raw_terminal(int ends[2], tcflag_t also)
{
    struct termios settings;
    ends[0] = posix_openpt(O_RDWR | O_NOCTTY);
    must(ends[0] >= 0 && grantpt(ends[0]) == 0 && unlockpt(ends[0]) == 0, "posix_openpt");
    ends[1] = open(ptsname(ends[0]), O_RDWR | O_NOCTTY);
    must(ends[1] >= 0 && tcgetattr(ends[1], &settings) == 0, "terminal");
    cfmakeraw(&settings);
    settings.c_lflag |= also;
    must(tcsetattr(ends[1], TCSANOW, &settings) == 0, "tcsetattr");
}

/* What a program prints, to the last byte: its terminal's master is read by another process. */
static void op_pty_bulk(long count)
{
    static char chunk[CHUNK];
    struct gate ready = gate_new(), go = gate_new();
    int ends[2];
    raw_terminal(ends, 0);
    pid_t child = fork_or_die();
    if (child == 0) {
        gate_open(ready);
        gate_wait(go);
        for (long left = count; left-- > 0;)
            for (size_t done = 0; done < CHUNK;) {
                ssize_t put = write(ends[1], chunk + done, CHUNK - done);
                must(put > 0, "write to the terminal");
                done += (size_t)put;
            }
        _exit(0);
    }
    gate_wait(ready);
    begin();
    gate_open(go);
    for (int64_t left = (int64_t)count * CHUNK; left > 0;) {
        ssize_t got = read(ends[0], chunk, CHUNK);
        must(got > 0, "read of the terminal");
        left -= got;
    }
    finish();
    reap(child);
    close(ends[0]);
    close(ends[1]);
    gate_free(ready);
    gate_free(go);
}

/* The leader of a session sets the foreground group of its terminal, as a shell does for every job. */
static void op_tcsetpgrp(long count)
{
    struct gate times = gate_new();
    int64_t found[2];
    pid_t child = fork_or_die();
    if (child == 0) {
        int ends[2];
        must(setsid() > 0, "setsid");
        raw_terminal(ends, 0);
        must(ioctl(ends[1], TIOCSCTTY, 0) == 0, "TIOCSCTTY");
        begin();
        while (count-- > 0)
            must(tcsetpgrp(ends[1], getpid()) == 0, "tcsetpgrp");
        finish();
        found[0] = begun, found[1] = finished;
        must(write(times.ends[1], found, sizeof found) == sizeof found, "times");
        _exit(0);
    }
    must(read(times.ends[0], found, sizeof found) == sizeof found, "times");
    begun = found[0], finished = found[1];
    reap(child);
    gate_free(times);
}

/* A byte to a terminal that echoes it, and back: the line discipline, no second process. */
static void op_pty(long count)
{
    char byte = 'x';
    int ends[2];
    raw_terminal(ends, ECHO);
    int master = ends[0], slave = ends[1];
    begin();
    while (count-- > 0) {
        must(write(master, &byte, 1) == 1 && read(master, &byte, 1) == 1, "echo");
        must(read(slave, &byte, 1) == 1, "what was typed"); /* or its queue fills up */
    }
    finish();
    close(slave);
    close(master);
}

/* Both ends of a connection over the loopback, which a kernel that has just been booted has not brought up. */
static void tcp_pair(int ends[2])
{
    struct ifreq loopback = {.ifr_name = "lo"};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    const int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    must(listener >= 0, "socket");
    if (ioctl(listener, SIOCGIFFLAGS, &loopback) == 0 && !(loopback.ifr_flags & IFF_UP)) {
        loopback.ifr_flags |= IFF_UP;
        must(ioctl(listener, SIOCSIFFLAGS, &loopback) == 0, "loopback up");
    }
    must(bind(listener, (struct sockaddr *)&address, length) == 0 && listen(listener, 1) == 0, "listen");
    must(getsockname(listener, (struct sockaddr *)&address, &length) == 0, "getsockname");
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    must(connect(ends[0], (struct sockaddr *)&address, length) == 0, "connect");
    must((ends[1] = accept(listener, NULL, NULL)) >= 0, "accept");
    for (int i = 0; i < 2; i++)
        must(setsockopt(ends[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "TCP_NODELAY");
    close(listener);
}

static void op_tcp(long count)
{
    int ends[2];
    char byte = 'x';
    tcp_pair(ends);
    pid_t partner = fork_or_die();
    if (partner == 0) {
        for (long i = 0; i <= count; i++)
            must(read(ends[1], &byte, 1) == 1 && write(ends[1], &byte, 1) == 1, "partner");
        _exit(0);
    }
    for (long i = 0; i <= count; i++) {
        if (i == 1)
            begin();
        must(write(ends[0], &byte, 1) == 1 && read(ends[0], &byte, 1) == 1, "ping");
    }
    finish();
    must(reap(partner) == 0, "partner");
    close(ends[0]);
    close(ends[1]);
}

static void op_tcp_bulk(long count)
{
    static char chunk[CHUNK];
    int ends[2];
    tcp_pair(ends);
    pid_t partner = fork_or_die();
    if (partner == 0) {
        must(write(ends[1], "r", 1) == 1, "partner");
        for (long left = count * CHUNK; left > 0;) {
            ssize_t got = read(ends[1], chunk, sizeof chunk);
            must(got > 0, "partner");
            left -= got;
        }
        must(write(ends[1], "e", 1) == 1, "partner");
        _exit(0);
    }
    must(read(ends[0], chunk, 1) == 1, "ready");
    begin();
    for (long left = count * CHUNK; left > 0;) {
        ssize_t sent = write(ends[0], chunk, left < CHUNK ? (size_t)left : CHUNK);
        must(sent > 0, "write");
        left -= sent;
    }
    must(read(ends[0], chunk, 1) == 1, "the last byte has arrived");
    finish();
    must(reap(partner) == 0, "partner");
    close(ends[0]);
    close(ends[1]);
}

static const struct operation {
    const char *name;
    void (*run)(long count);
    long most; /* per round; 0: any number */
    bool pinned;
} operations[] = {
    {"getppid", op_getppid, 0, false}, {"getitimer", op_getitimer, 0, false},
    {"getitimer-1cpu", op_getitimer, 0, true}, {"clock-raw", op_clock_raw, 0, false},
    {"clock-thread", op_clock_thread, 0, false}, {"nanosleep", op_nanosleep, 0, false},
    {"timer", op_timer, 0, false}, {"timer-cpu", op_timer_cpu, 0, false},
    {"signal", op_signal, 0, false}, {"mmap", op_mmap, 0, false},
    {"fault", op_fault, 16000, false}, {"futex", op_futex, 0, false},
    {"pipe", op_pipe, 0, false}, {"poll", op_poll, 0, false},
    {"fork", op_fork, 0, false}, {"exec", op_exec, 0, false},
    {"open", op_open, 0, false}, {"open-root", op_open_root, 0, false},
    {"stat", op_stat, 0, false}, {"read", op_read, 0, false},
    {"pty", op_pty, 0, false}, {"pty-bulk", op_pty_bulk, 0, false},
    {"tcsetpgrp", op_tcsetpgrp, 0, false}, {"tcp", op_tcp, 0, false},
    {"tcp-bulk", op_tcp_bulk, 0, false}, {"clock-libc", op_clock_libc, 0, false},
};

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

#include "ops_pace.h"

/* Nanoseconds of so many operations. */
static int64_t timed(const struct operation *operation, long count)
{
    finished = 0;
    begin();
    operation->run(count);
    if (finished == 0)
        finish();
    return finished - begun;
}

/* As many operations as fill a round, found by a few shorter tries, which also warm up what is used. */
static long find_count(const struct operation *operation)
{
    long most = operation->most ? operation->most : 10000000;
    for (long count = 1;;) {
        int64_t took = timed(operation, count);
        if (took >= ROUND_NS / 4 || count >= most) {
            double wanted = (double)count * (double)ROUND_NS / (double)(took ? took : 1);
            return wanted < 1 ? 1 : wanted < (double)most ? (long)wanted : most;
        }
        count = count * (took < ROUND_NS / 64 ? 8 : 3);
        if (count > most)
            count = most;
    }
}

static void measure(const struct operation *operation, long count, int rounds)
{
    cpu_set_t before;
    double times[1000], sum = 0;
    say("begin %s", operation->name);
    int64_t start = now_ns(CLOCK_MONOTONIC);
    sched_getaffinity(0, sizeof before, &before);
    if (operation->pinned)
        pin();
    if (count == 0)
        count = find_count(operation);
    else
        operation->run(count / 10 + 1); /* caches, page tables, a CPU that is awake */
    for (int round = 0; round < rounds; round++) {
        times[round] = (double)timed(operation, count) / (double)count;
        sum += times[round];
    }
    sched_setaffinity(0, sizeof before, &before);
    qsort(times, (size_t)rounds, sizeof times[0], by_size);
    double median = (times[rounds / 2] + times[(rounds - 1) / 2]) / 2;
    say("%s median %.1f mean %.1f elapsed %lld", operation->name, median, sum / rounds,
        (long long)(now_ns(CLOCK_MONOTONIC) - start));
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (size_t i = 0; i < COUNT_OF(operations); i++)
            say("%s", operations[i].name);
        say("interval");
        say("spin");
        return 0;
    }
    long count = argc > 2 ? strtol(argv[2], NULL, 10) : 0;
    int rounds = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 7;
    if (argc < 2 || argc > 4 || rounds < 1 || rounds > 1000 || count < 0) {
        fprintf(stderr, "usage: ops --list | ops NAME[,NAME...] [COUNT [ROUNDS]]\n");
        return 2;
    }
    program = argv[0];
    for (char *name = strtok(argv[1], ","); name != NULL; name = strtok(NULL, ",")) {
        const struct operation *found = NULL;
        for (size_t i = 0; i < COUNT_OF(operations); i++)
            if (strcmp(operations[i].name, name) == 0)
                found = &operations[i];
        if (strcmp(name, "interval") == 0) {
            measure_interval(count ? count : 2000);
        } else if (strcmp(name, "spin") == 0) {
            measure_spin(count ? count : 2000);
        } else if (found != NULL) {
            measure(found, count, rounds);
        } else {
            fprintf(stderr, "ops: no operation %s (see --list)\n", name);
            return 2;
        }
    }
    return 0;
}
