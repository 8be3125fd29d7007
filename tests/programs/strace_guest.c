/* What the tests of --strace look at: calls of many kinds, signals in the middle of calls, threads and ends. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static volatile int handled;

static void on_signal(int signo)
{
    (void)signo;
    handled++;
}

static void *block(void *unused)
{
    int fds[2];
    char byte;
    if (pipe(fds) == 0 && read(fds[0], &byte, 1) < 0)
        perror("read");
    return unused;
}

static void *nap(void *unused)
{
    struct timespec long_time = {100, 0};
    nanosleep(&long_time, NULL);
    return unused;
}

static void *execute(void *unused)
{
    usleep(20000);
    execl("/bin/true", "true", (char *)NULL);
    return unused;
}

/* Lent and owned calls with structures, flags, strings, errors and bad pointers, in a fixed order. */
static int many_calls(void)
{
    char text[64];
    struct stat st;
    int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC), fds[2];
    fcntl(fd, F_GETFD), fcntl(fd, F_GETFL), lseek(fd, 1, SEEK_SET);
    read(fd, text, 8), fstat(fd, &st), close(fd), open("/nowhere/\n", O_RDWR | O_CREAT, 0640), stat("/dev/null", &st);
    void *memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(memory, 4096, PROT_NONE), madvise(memory, 8192, MADV_DONTNEED), munmap(memory, 8192);
    pipe2(fds, O_NONBLOCK);
    struct pollfd both[2] = {{fds[0], POLLIN, 0}, {fds[1], POLLOUT, 0}};
    poll(both, 2, 0), poll(both, 1, 1);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fds[1], &set);
    select(fds[1] + 1, NULL, &set, NULL, NULL);
    sigset_t signals;
    sigemptyset(&signals), sigaddset(&signals, SIGINT);
    struct timespec none = {0, 0}, short_time = {0, 1000};
    ppoll(both, 1, &none, &signals), pselect(0, NULL, NULL, NULL, &none, &signals);
    int ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {EPOLLOUT, {.u64 = 7}}, found[2];
    epoll_ctl(ep, EPOLL_CTL_ADD, fds[1], &event), epoll_wait(ep, found, 2, 0), epoll_pwait(ep, found, 2, 0, &signals);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec spec = {{0, 0}, {100, 0}};
    timerfd_settime(timer, 0, &spec, NULL);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL), sigprocmask(SIG_BLOCK, &signals, NULL);
    kill(getpid(), SIGUSR1), raise(SIGINT), sigpending(&signals);
    siginfo_t info;
    syscall(SYS_rt_sigtimedwait, &signals, &info, &none, 8), syscall(SYS_rt_sigtimedwait, &signals, NULL, &none, 8);
    struct sigevent notice = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    int id;
    syscall(SYS_timer_create, CLOCK_MONOTONIC, &notice, &id);
    syscall(SYS_timer_settime, id, 0, &spec, NULL), syscall(SYS_timer_delete, id);
    nanosleep(&short_time, NULL), clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &short_time, NULL);
    struct itimerval period = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &period, NULL), getitimer(ITIMER_REAL, &period);
    struct rlimit limit;
    struct utsname name;
    getrlimit(RLIMIT_NOFILE, &limit), uname(&name), prctl(PR_SET_NAME, "guest"), getpriority(PRIO_PROCESS, 0);
    struct sockaddr_un address = {AF_UNIX, "/nowhere"};
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), pair[2], one = 1;
    connect(s, (void *)&address, sizeof address), setsockopt(s, SOL_SOCKET, SO_PASSCRED, &one, sizeof one);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair), send(pair[0], "hello", 5, MSG_NOSIGNAL), recv(pair[1], text, 64, 0);
    syscall(SYS_nanosleep, (void *)8, NULL), syscall(SYS_rt_sigaction, SIGUSR1, (void *)8, NULL, 8), syscall(500);
    int status, child = fork();
    if (!child)
        _exit(3);
    waitpid(child, &status, 0);
    child = vfork();
    if (!child)
        _exit(4);
    wait4(-1, &status, 0, NULL), wait4(-1, &status, WNOHANG, NULL);
    return 0;
}

/* Sleeps and waits that a periodic signal interrupts: prints what this program itself saw. */
static int interrupted(int flags)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval period = {{0, 1500}, {0, 1500}};
    int slept = 0, cut = 0, full = 0, broken = 0, ep = epoll_create1(0);
    setitimer(ITIMER_REAL, &period, NULL);
    for (int i = 0; i < 40; i++) {
        struct timespec time = {0, 1000000};
        struct epoll_event event;
        syscall(SYS_nanosleep, &time, NULL) == 0 ? slept++ : cut++;
        epoll_wait(ep, &event, 1, 1) == 0 ? full++ : broken++;
    }
    memset(&period, 0, sizeof period);
    setitimer(ITIMER_REAL, &period, NULL);
    printf("%d %d %d %d %d\n", handled, slept, cut, full, broken);
    return 0;
}

/* A thread that executes a program, threads that their process takes along, kills, stops. */
static int ends(void)
{
    pthread_t thread;
    struct timespec time = {0, 60000000}, short_time = {0, 20000000};
    int status, child = fork();
    if (!child) {
        pthread_create(&thread, NULL, block, NULL);
        pthread_create(&thread, NULL, execute, NULL);
        pause();
    }
    waitpid(child, &status, 0);
    child = fork();
    if (!child) {
        pthread_create(&thread, NULL, nap, NULL);
        nanosleep(&short_time, NULL);
        exit(5);
    }
    waitpid(child, &status, 0);
    child = fork();
    if (!child) {
        pthread_create(&thread, NULL, block, NULL);
        nap(NULL);
    }
    nanosleep(&short_time, NULL), kill(child, SIGKILL), waitpid(child, &status, 0);
    child = fork();
    if (!child) {
        nanosleep(&time, NULL);
        _exit(6);
    }
    nanosleep(&short_time, NULL), kill(child, SIGSTOP), waitpid(child, &status, WUNTRACED);
    kill(child, SIGCONT), waitpid(child, &status, 0);
    child = fork();
    if (!child)
        raise(SIGTERM);
    waitpid(child, &status, 0);
    return 0;
}

/* Until its input ends: lent and owned calls in turn. */
static int forever(void)
{
    struct pollfd input = {0, POLLIN, 0};
    struct timespec time = {0, 2000000};
    puts("ready"), fflush(stdout);
    while (poll(&input, 1, 0) == 0) {
        nanosleep(&time, NULL);
        syscall(SYS_getppid);
    }
    puts("over");
    return 7;
}

/* Requests on a terminal; of those whose answer is the sentry's the errors too. */
static int terminal(void)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY), value = 0;
    struct winsize size = {1, 2, 3, 4};
    grantpt(master), unlockpt(master);
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    if (fork() == 0) {
        signal(SIGHUP, SIG_IGN);
        setsid();
        ioctl(slave, TIOCGPGRP, &value), ioctl(slave, TIOCSCTTY, 0), value = getpid(), ioctl(slave, TIOCSPGRP, &value);
        ioctl(slave, TIOCGPGRP, &value), ioctl(slave, TIOCGSID, &value), ioctl(slave, TIOCGPGRP, 8), ioctl(slave, TIOCSPGRP, 8);
        value = 1, ioctl(master, TIOCPKT, &value), value = 0, ioctl(master, TIOCPKT, &value);
        ioctl(slave, TIOCSWINSZ, &size), ioctl(slave, TIOCGWINSZ, &size), ioctl(slave, TIOCGEXCL, &value);
        ioctl(slave, TIOCEXCL), ioctl(slave, TIOCNXCL), ioctl(slave, TCFLSH, TCIFLUSH), ioctl(slave, TCFLSH, 7);
        ioctl(slave, TCXONC, TCOON), ioctl(slave, TCSBRK, 1), ioctl(slave, TIOCOUTQ, &value), ioctl(0, TIOCSTI, "x");
        ioctl(slave, 0x802C542A, 8), ioctl(slave, TIOCNOTTY), ioctl(slave, TIOCNOTTY);
        _exit(0);
    }
    wait(NULL);
    return 0;
}

int main(int count, char **words)
{
    const char *what = count > 1 ? words[1] : "";
    if (!strcmp(what, "calls"))
        return many_calls();
    if (!strcmp(what, "interrupted"))
        return interrupted(0);
    if (!strcmp(what, "restarted"))
        return interrupted(SA_RESTART);
    if (!strcmp(what, "terminal"))
        return terminal();
    if (!strcmp(what, "ends"))
        return ends();
    return strcmp(what, "forever") ? 2 : forever();
}
