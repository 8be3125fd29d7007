/* sched_setaffinity(2) and sched_getaffinity(2): masks, lengths, errors, permissions, and who inherits what.
   Printed alike natively, under trapline, and where a cpuset or --cpus holds it to some of the CPUs. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *name(long result)
{
    if (result >= 0)
        return "ok";
    return strerrorname_np(errno);
}

static long set(pid_t pid, size_t length, const void *mask)
{
    return syscall(SYS_sched_setaffinity, pid, length, mask);
}

static void show(const char *what, pid_t pid)
{
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(pid, sizeof mask, &mask) < 0) {
        printf("%s: %s\n", what, strerrorname_np(errno));
        return;
    }
    printf("%s:", what);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &mask))
            printf(" %d", cpu);
    printf("\n");
    fflush(stdout);
}

static void only(cpu_set_t *mask, int cpu)
{
    CPU_ZERO(mask);
    CPU_SET(cpu, mask);
}

static cpu_set_t all, start;
static int first;

static void masks(void)
{
    for (int cpu = 0; cpu < 8; cpu++) {
        cpu_set_t one;
        only(&one, cpu);
        long result = set(0, sizeof one, &one);
        printf("only %d: %s%s\n", cpu, name(result), result == 0 && sched_getcpu() != cpu ? ", but runs elsewhere" : "");
        show("then", 0);
    }
    printf("all: %s\n", name(set(0, sizeof all, &all)));
    show("then", 0);
    unsigned char first_and_far[128] = {0};
    first_and_far[first / 8] |= 1 << first % 8;
    first_and_far[127] = 0x80;
    printf("first and a far one: %s\n", name(set(getpid(), sizeof first_and_far, first_and_far)));
    show("then", getpid());
    memset(first_and_far, 0, 127);
    printf("a far one: %s\n", name(set(0, sizeof first_and_far, first_and_far)));
    show("then", 0);
}

static void lengths(void)
{
    long page = sysconf(_SC_PAGESIZE);
    char *two = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(two + page, page);
    memset(two, 0xff, page);
    size_t some[] = {0, 1, 2, 3, 7, 8, 9, 128, 4096};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        printf("length %zu: %s\n", some[i], name(set(0, some[i], two)));
        show("then", 0);
    }
    /* No more is read than the kernel has CPUs for, however long the mask is said to be. */
    long kernels = syscall(SYS_sched_getaffinity, 0, 4096, two + page / 2 - 2048);
    memset(two, 0xff, page);
    printf("longer than what is mapped: %s\n", name(set(0, 1 << 20, two + page - kernels)));
    printf("all but one byte mapped: %s\n", name(set(0, kernels, two + page - kernels + 1)));
    printf("length 0 of nowhere: %s\n", name(set(0, 0, (void *)1)));
    printf("nowhere: %s\n", name(set(0, 8, (void *)1)));
    printf("nowhere, nobody's: %s\n", name(set(-1, 8, (void *)1)));
    printf("negative: %s\n", name(set(-1, sizeof all, &all)));
    printf("nobody's: %s\n", name(set(4194303, sizeof all, &all)));
    printf("nobody's, empty: %s\n", name(set(4194303, 0, &all)));
}

static void *thread(void *told)
{
    int *pipes = told, tid = gettid();
    write(pipes[1], &tid, sizeof tid);
    char byte;
    read(pipes[2], &byte, 1);
    show("thread", 0);
    cpu_set_t own = start;
    printf("thread's own: %s\n", name(set(0, sizeof own, &own)));
    show("thread", gettid());
    return NULL;
}

static void others(void)
{
    cpu_set_t one;
    only(&one, first);
    int pipes[4], tid, status;
    if (pipe(pipes) || pipe(pipes + 2))
        exit(1);
    pthread_t id;
    pthread_create(&id, NULL, thread, pipes);
    read(pipes[0], &tid, sizeof tid);
    printf("of a thread: %s\n", name(set(tid, sizeof one, &one)));
    show("not the main thread's", 0);
    write(pipes[3], "x", 1);
    pthread_join(id, NULL);
    fflush(stdout);

    pid_t child = fork();
    if (child == 0) {
        char byte;
        read(pipes[2], &byte, 1);
        show("child", 0);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            execl("/proc/self/exe", "affinity", "show", NULL);
            _exit(127);
        }
        waitpid(grandchild, NULL, 0);
        _exit(0);
    }
    show("child, by its parent", child);
    printf("of a child: %s\n", name(set(child, sizeof one, &one)));
    show("child, by its parent", child);
    show("not its parent's", 0);
    write(pipes[3], "x", 1);
    siginfo_t info;
    waitid(P_PID, child, &info, WEXITED | WNOWAIT);
    printf("of a zombie: %s\n", name(set(child, sizeof one, &one)));
    printf("of a zombie, empty: %s\n", name(set(child, 0, &one)));
    waitpid(child, &status, 0);
    printf("of a reaped one: %s\n", name(set(child, sizeof one, &one)));
    fflush(stdout);
}

static void tried_by(const char *who, uid_t real, uid_t effective, pid_t target)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (setresuid(real, effective, effective))
            _exit(1);
        printf("%s: own %s, other's %s", who, name(set(0, sizeof start, &start)), name(set(target, sizeof start, &start)));
        printf(", empty %s\n", name(set(target, 0, &start)));
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

/* The target keeps capabilities where one of its ids stays root's: then its owner is not enough. */
static void permissions(uid_t target_effective)
{
    if (geteuid() != 0)
        return;
    int ready[2], go[2];
    if (pipe(ready) || pipe(go))
        exit(1);
    fflush(stdout);
    pid_t target = fork();
    char byte;
    if (target == 0) {
        if (setresuid(1234, target_effective, target_effective))
            _exit(1);
        write(ready[1], "x", 1);
        read(go[0], &byte, 1);
        _exit(0);
    }
    read(ready[0], &byte, 1);
    printf("target's uids 1234 and %u\n", target_effective);
    tried_by("another user, root's", 1235, 1235, getpid());
    tried_by("effective only, root's", 0, 1234, getpid());
    tried_by("real only, root's", 1234, 0, getpid());
    tried_by("real uid of the target", 1234, 1234, target);
    tried_by("effective uid of the target", 1235, target_effective, target);
    tried_by("neither uid of the target", 1235, 1235, target);
    write(go[1], "x", 1);
    waitpid(target, NULL, 0);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "show") == 0) {
        show("executed", 0);
        return 0;
    }
    memset(&all, 0xff, sizeof all);
    sched_getaffinity(0, sizeof start, &start);
    while (!CPU_ISSET(first, &start))
        first++;
    show("start", 0);
    masks();
    lengths();
    others();
    permissions(1236);
    permissions(0);
    return 0;
}
