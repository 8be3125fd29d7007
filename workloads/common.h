/* What the workloads share. They are oracles: the same program run natively and under trapline must print the
 * same, so nothing here prints a pid, an address or a time. Output goes straight to descriptor 1: a buffer
 * would be printed twice after fork. */
#ifndef COMMON_H
#define COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define MS 1000000LL

__attribute__((format(printf, 1, 2))) static inline void say(const char *format, ...)
{
    char line[4096];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2)
        length = (int)sizeof line - 2;
    line[length++] = '\n';
    if (write(1, line, (size_t)length) < 0)
        _exit(99);
}

static inline const char *error_name(int error)
{
    static const struct { int error; const char *name; } names[] = {
        {0, "ok"}, {EPERM, "EPERM"}, {ENOENT, "ENOENT"}, {ESRCH, "ESRCH"}, {EINTR, "EINTR"}, {EIO, "EIO"},
        {E2BIG, "E2BIG"}, {ENOEXEC, "ENOEXEC"}, {EBADF, "EBADF"}, {ECHILD, "ECHILD"}, {EAGAIN, "EAGAIN"},
        {ENOMEM, "ENOMEM"}, {EACCES, "EACCES"}, {EFAULT, "EFAULT"}, {EBUSY, "EBUSY"}, {EEXIST, "EEXIST"},
        {ENOTDIR, "ENOTDIR"}, {EISDIR, "EISDIR"}, {EINVAL, "EINVAL"}, {EMFILE, "EMFILE"}, {EFBIG, "EFBIG"},
        {EPIPE, "EPIPE"}, {ENAMETOOLONG, "ENAMETOOLONG"}, {ENOSYS, "ENOSYS"}, {ELOOP, "ELOOP"},
        {ETIMEDOUT, "ETIMEDOUT"}, {EOWNERDEAD, "EOWNERDEAD"}, {ENOTSUP, "EOPNOTSUPP"}, {ENOTTY, "ENOTTY"},
        {EOVERFLOW, "EOVERFLOW"}, {ECANCELED, "ECANCELED"}, {ERANGE, "ERANGE"},
    };
    static char unknown[24];
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (names[i].error == error)
            return names[i].name;
    snprintf(unknown, sizeof unknown, "errno %d", error);
    return unknown;
}

/* "ok" when a call returned something other than -1, else its error's name. */
static inline const char *outcome(long result)
{
    return result == -1 ? error_name(errno) : "ok";
}

/* Here a checkpoint is taken, where `trapline do` was told so (--checkpoint-at-marker): before the call returns, and for
 * the second time in what is restored. There is no such call (sentry/syscalls/sys_marker.py); errno stays as it was. */
static inline void checkpoint_marker(void)
{
    int error = errno;
    syscall(1023);
    errno = error;
}

static inline const char *yes(bool value)
{
    return value ? "yes" : "no";
}

/* A set of one signal or two; 0 for none. */
static inline sigset_t set_of(int first, int second)
{
    sigset_t set;
    sigemptyset(&set);
    if (first)
        sigaddset(&set, first);
    if (second)
        sigaddset(&set, second);
    return set;
}

/* A wait status in words. Two results may be live at once. */
static inline const char *status_text(int status)
{
    static char texts[2][48];
    static int turn;
    char *text = texts[turn ^= 1];
    if (WIFEXITED(status))
        snprintf(text, 48, "exited %d", WEXITSTATUS(status));
    else if (WIFSIGNALED(status))
        snprintf(text, 48, "killed %d%s", WTERMSIG(status), WCOREDUMP(status) ? " core" : "");
    else if (WIFSTOPPED(status))
        snprintf(text, 48, "stopped %d", WSTOPSIG(status));
    else if (WIFCONTINUED(status))
        snprintf(text, 48, "continued");
    else
        snprintf(text, 48, "status %#x", (unsigned)status);
    return text;
}

static inline int64_t now_ns(clockid_t clock)
{
    struct timespec value;
    if (clock_gettime(clock, &value) < 0)
        return -1;
    return (int64_t)value.tv_sec * 1000000000 + value.tv_nsec;
}

/* Sleeps the whole time, whatever signals come. */
static inline void sleep_ms(long milliseconds)
{
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

/* Computes for this much CPU time. The clock is asked only about every millisecond: asking is system time. */
static inline void burn_ms(long milliseconds)
{
    int64_t end = now_ns(CLOCK_THREAD_CPUTIME_ID) + milliseconds * MS;
    while (now_ns(CLOCK_THREAD_CPUTIME_ID) < end)
        for (volatile int i = 0; i < 500000; i++)
            ;
}

/* Waits for one child and gives its status; -1 when there is none. */
static inline int reap(pid_t child)
{
    int status;
    pid_t got;
    while ((got = waitpid(child, &status, 0)) < 0 && errno == EINTR)
        ;
    return got < 0 ? -1 : status;
}

static inline pid_t fork_or_die(void)
{
    pid_t child = fork();
    if (child < 0) {
        say("fork: %s", error_name(errno));
        exit(98);
    }
    return child;
}

/* One byte through a pipe: how parent and child wait for each other. */
struct gate {
    int ends[2];
};

static inline struct gate gate_new(void)
{
    struct gate gate;
    if (pipe2(gate.ends, O_CLOEXEC) < 0)
        exit(97);
    return gate;
}

static inline void gate_open(struct gate gate)
{
    if (write(gate.ends[1], "x", 1) != 1)
        _exit(96);
}

static inline void gate_wait(struct gate gate)
{
    char byte;
    while (read(gate.ends[0], &byte, 1) < 0 && errno == EINTR)
        ;
}

static inline void gate_free(struct gate gate)
{
    close(gate.ends[0]);
    close(gate.ends[1]);
}

/* A user id that nobody else uses, so that limits and kill(-1) touch only this program's own processes. */
static inline uid_t spare_uid(void)
{
    uint32_t number = 0;
    if (getrandom(&number, sizeof number, 0) != sizeof number)
        exit(95);
    return 0x100000u + (number & 0xffffffu);
}

/* Programs are tables of sections: all are run, or those named on the command line. */
struct section {
    const char *name;
    void (*run)(void);
};

static inline int run_sections(int argc, char **argv, const struct section *sections, size_t count)
{
    struct rlimit none = {0, 0};
    sigset_t empty;
    setrlimit(RLIMIT_CORE, &none); /* or whether a core was dumped would depend on who runs this */
    for (int signo = 1; signo < 32; signo++)
        signal(signo, SIG_DFL);
    sigemptyset(&empty);
    sigprocmask(SIG_SETMASK, &empty, NULL);
    for (size_t i = 0; i < count; i++) {
        bool wanted = argc < 2;
        for (int a = 1; a < argc; a++)
            wanted |= strcmp(argv[a], sections[i].name) == 0;
        if (wanted) {
            say("== %s", sections[i].name);
            sections[i].run();
        }
    }
    return 0;
}

#endif
