/* A process with a second thread that crashes in one of several ways, and a parent that says how it ended. */
#include "common.h"

#include <pthread.h>
#include <sys/mman.h>

int marker = 4711;
static char *volatile nowhere;
char *written, *untouched;
static struct gate waiting, there;

/* Each says that it is there from within the function that is to be seen in the core. */
__attribute__((noinline)) static void waiting_thread(void)
{
    char byte;
    gate_open(there);
    while (read(waiting.ends[0], &byte, 1) < 0)
        ;
}

static void *second(void *argument)
{
    (void)argument;
    waiting_thread();
    return NULL;
}

__attribute__((noinline)) static void sleeping_thread(void)
{
    gate_open(there);
    for (;;)
        sleep_ms(100000);
}

static void *third(void *argument)
{
    (void)argument;
    sleeping_thread();
    return NULL;
}

__attribute__((noinline)) void crash_here(const char *how)
{
    if (strcmp(how, "segv") == 0)
        *nowhere = 1;
    else if (strcmp(how, "abort") == 0)
        abort();
    else if (strcmp(how, "quit") == 0)
        raise(SIGQUIT);
    else if (strcmp(how, "term") == 0)
        raise(SIGTERM);
    __asm__ volatile(""); /* no jump in place of the last call: this function is to be seen in the core */
}

static int crash(const char *how)
{
    pthread_t thread;
    waiting = gate_new();
    there = gate_new();
    written = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(written + 70000, "written text");
    untouched = mmap(NULL, (size_t)1 << 36, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    strcpy(untouched + ((size_t)1 << 35), "far out");
    pthread_create(&thread, NULL, second, NULL);
    pthread_create(&thread, NULL, third, NULL);
    gate_wait(there);
    gate_wait(there);
    crash_here(how);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "parent") != 0)
        return crash(argv[2]);
    for (int by_waitid = 0; by_waitid < 2; by_waitid++) {
        pid_t child = fork_or_die();
        if (child == 0)
            _exit(crash(argv[2]));
        if (by_waitid) {
            siginfo_t info = {0};
            waitid(P_PID, (id_t)child, &info, WEXITED);
            say("waitid: code %d, status %d", info.si_code, info.si_status);
        } else {
            int status = 0;
            waitpid(child, &status, 0);
            say("waitpid: signal %d, core %s", WTERMSIG(status), yes(WCOREDUMP(status)));
        }
    }
    return 0;
}
