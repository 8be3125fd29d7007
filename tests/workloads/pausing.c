/* Fifty processes, each in a call that waits: five of each kind. At a line on standard input all are let go, and what
 * each call returned is printed. None may have been interrupted, whatever was done to the processes meanwhile. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { READ, FUTEX, POLL, EPOLL, SLEEP, SEMOP, WAIT, SIGWAIT, ACCEPT, RECV, KINDS };
enum { EACH = 5 };

static const char *const names[KINDS] = {
    "read", "futex", "poll", "epoll_wait", "nanosleep", "semop", "wait4", "sigtimedwait", "accept", "recv",
};

struct shared {
    int words[EACH];
    int results[KINDS][EACH], errors[KINDS][EACH];
};

static struct shared *shared;
static int pipes[KINDS][EACH][2], sockets[KINDS][EACH][2], semaphores;

static struct sockaddr_un address(int i, pid_t of, socklen_t *size)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    /* Abstract: nothing is left behind. */
    *size = offsetof(struct sockaddr_un, sun_path) + 1 +
            snprintf(a.sun_path + 1, sizeof a.sun_path - 1, "pausing-%d-%d", (int)of, i);
    return a;
}

static int waits(int kind, int i)
{
    char byte;
    switch (kind) {
    case READ:
        return read(pipes[kind][i][0], &byte, 1);
    case FUTEX:
        return syscall(SYS_futex, &shared->words[i], FUTEX_WAIT, 0, NULL, NULL, 0);
    case POLL: {
        struct pollfd p = {.fd = pipes[kind][i][0], .events = POLLIN};
        return poll(&p, 1, 600000);
    }
    case EPOLL: {
        int e = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN};
        epoll_ctl(e, EPOLL_CTL_ADD, pipes[kind][i][0], &event);
        return epoll_wait(e, &event, 1, 600000);
    }
    case SLEEP: {
        struct timespec span = {.tv_sec = 2};
        return nanosleep(&span, NULL);
    }
    case SEMOP: {
        struct sembuf down = {.sem_num = i, .sem_op = -1};
        return semop(semaphores, &down, 1);
    }
    case WAIT: {
        int status = -1;
        if (fork() == 0) {
            if (read(pipes[kind][i][0], &byte, 1) != 1)
                _exit(99);
            _exit(7);
        }
        return wait4(-1, &status, 0, NULL) > 0 ? WEXITSTATUS(status) : -1;
    }
    case SIGWAIT: {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        struct timespec span = {.tv_sec = 600};
        return sigtimedwait(&set, NULL, &span);
    }
    case ACCEPT:
        return accept(sockets[kind][i][0], NULL, NULL) >= 0 ? 0 : -1;
    default: {
        struct timeval span = {.tv_sec = 600};
        setsockopt(sockets[kind][i][0], SOL_SOCKET, SO_RCVTIMEO, &span, sizeof span);
        return recv(sockets[kind][i][0], &byte, 1, 0);
    }
    }
}

int main(void)
{
    pid_t children[KINDS][EACH], self = getpid();
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    semaphores = semget(IPC_PRIVATE, EACH, 0600);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int kind = 0; kind < KINDS; kind++)
        for (int i = 0; i < EACH; i++) {
            if (pipe(pipes[kind][i]) < 0)
                return 1;
            if (kind == RECV && socketpair(AF_UNIX, SOCK_STREAM, 0, sockets[kind][i]) < 0)
                return 1;
            if (kind == ACCEPT) {
                socklen_t size;
                struct sockaddr_un a = address(i, self, &size);
                sockets[kind][i][0] = socket(AF_UNIX, SOCK_STREAM, 0);
                if (bind(sockets[kind][i][0], (struct sockaddr *)&a, size) < 0 || listen(sockets[kind][i][0], 1) < 0)
                    return 1;
            }
            if ((children[kind][i] = fork()) == 0) {
                errno = 0;
                int result = waits(kind, i);
                shared->results[kind][i] = result;
                shared->errors[kind][i] = result < 0 ? errno : 0;
                _exit(0);
            }
        }
    printf("waiting\n");
    fflush(stdout);
    char byte;
    if (read(0, &byte, 1) != 1)
        return 1;
    for (int i = 0; i < EACH; i++) {
        struct sembuf up = {.sem_num = i, .sem_op = 1};
        int kinds[] = {READ, POLL, EPOLL, WAIT};
        for (unsigned k = 0; k < sizeof kinds / sizeof *kinds; k++)
            if (write(pipes[kinds[k]][i][1], "x", 1) != 1)
                return 1;
        while (syscall(SYS_futex, &shared->words[i], FUTEX_WAKE, 1, NULL, NULL, 0) == 0)
            sched_yield(); /* until it waits: a word that had changed before would be EAGAIN */
        semop(semaphores, &up, 1);
        kill(children[SIGWAIT][i], SIGUSR1);
        socklen_t size;
        struct sockaddr_un a = address(i, self, &size);
        if (connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&a, size) < 0)
            return 1;
        if (send(sockets[RECV][i][1], "x", 1, 0) != 1)
            return 1;
    }
    for (int n = 0; n < KINDS * EACH; n++)
        wait(NULL);
    for (int kind = 0; kind < KINDS; kind++) {
        printf("%s:", names[kind]);
        for (int i = 0; i < EACH; i++)
            printf(" %d/%s", shared->results[kind][i], strerrorname_np(shared->errors[kind][i]));
        printf("\n");
    }
    semctl(semaphores, 0, IPC_RMID);
    return 0;
}
