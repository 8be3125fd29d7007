/* What the workloads about terminals share: a pseudo-terminal, sessions of their own, signals that came. */
#ifndef TERMINALS_COMMON_H
#define TERMINALS_COMMON_H
#include "common.h"

#include <linux/capability.h>
#include <sys/ioctl.h>
#include <termios.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif

struct pty {
    int master, slave;
    char name[64];
};

static inline void need(bool condition, const char *what)
{
    if (!condition) {
        say("%s: %s", what, error_name(errno));
        _exit(94);
    }
}

/* A new pseudo-terminal; nobody's, with its slave open. */
static inline struct pty pty_new(void)
{
    struct pty pty;
    pty.master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    need(pty.master >= 0 && grantpt(pty.master) == 0 && unlockpt(pty.master) == 0, "posix_openpt");
    need(ptsname_r(pty.master, pty.name, sizeof pty.name) == 0, "ptsname");
    pty.slave = open(pty.name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    need(pty.slave >= 0, "slave");
    return pty;
}

static inline void pty_close(struct pty pty)
{
    close(pty.slave);
    close(pty.master);
}

/* Runs a function in a process that leads a session of its own. */
static inline void in_session(void (*run)(struct pty), struct pty pty)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        setsid();
        run(pty);
        _exit(0);
    }
    int status = reap(child);
    if (status)
        say("the session's leader: %s", status_text(status));
}

/* The same, on a terminal that it has acquired. */
static inline void on_terminal(void (*run)(struct pty))
{
    struct pty pty = pty_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        setsid();
        need(ioctl(pty.slave, TIOCSCTTY, 0) == 0, "TIOCSCTTY");
        run(pty);
        _exit(0);
    }
    int status = reap(child);
    if (status)
        say("the session's leader: %s", status_text(status));
    pty_close(pty);
}

/* A group's id in words that are the same in every run. */
static inline const char *who(pid_t group)
{
    if (group == -1)
        return error_name(errno);
    if (group == 0)
        return "none"; /* also those from outside of a sandbox */
    return group == getpgrp() ? "own" : group == getsid(0) ? "session's" : "other";
}

static volatile sig_atomic_t came[65];

static inline void note_signal(int signo)
{
    came[signo]++;
}

static inline void catch(int signo, int flags)
{
    struct sigaction action = {.sa_handler = note_signal, .sa_flags = flags};
    sigaction(signo, &action, NULL);
}

/* What opening /dev/tty gives. */
static inline const char *dev_tty(void)
{
    int fd = open("/dev/tty", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == ENXIO ? "ENXIO" : error_name(errno);
    close(fd);
    return "ok";
}

/* Without CAP_SYS_ADMIN, which guests of trapline never have, the host decides as for them. */
static inline void drop_admin(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    need(syscall(SYS_capget, &header, data) == 0, "capget");
    data[0].effective &= ~(1u << CAP_SYS_ADMIN);
    data[0].permitted &= ~(1u << CAP_SYS_ADMIN);
    need(syscall(SYS_capset, &header, data) == 0, "capset");
}

/* Waits until a child has stopped (by which signal), or ended. */
static inline int stopped(pid_t child)
{
    int status;
    pid_t got;
    while ((got = waitpid(child, &status, WUNTRACED)) < 0 && errno == EINTR)
        ;
    return got < 0 ? -1 : status;
}

#endif
