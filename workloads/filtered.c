/* Programs with seccomp filters of their own: what each refuses is refused in the children and threads of who installed
 * it, and nowhere else; before and after every checkpoint_marker (common.h), at which a save may be made. */
#include "common.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

/* A filter that gives `action` for the call `nr`, where its first argument is `first` (-1: whatever it is). */
static long install(unsigned flags, long nr, int first, unsigned action)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)nr, 0, first < 0 ? 2 : 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)first, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    if (first < 0) { /* no argument is looked at */
        code[1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)nr, 2, 3);
        code[2] = code[3] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    struct sock_fprog program = {COUNT_OF(code), code};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static volatile sig_atomic_t trapped;

static void on_trap(int signo, siginfo_t *info, void *context)
{
    (void)signo;
    (void)context;
    trapped = info->si_syscall == SYS_sysinfo && info->si_errno == 77 ? 1 : -1;
}

static const char *result(long value) { return value < 0 ? error_name(errno) : "ok"; }

static void try_all(const char *who)
{
    struct utsname name;
    struct sysinfo info;
    char text[5][32];
    trapped = 0;
    snprintf(text[0], 32, "%s", result(uname(&name)));
    sysinfo(&info);
    snprintf(text[1], 32, "%s", trapped == 1 ? "trapped" : trapped ? "trapped otherwise" : "ok");
    snprintf(text[2], 32, "%s", result(syscall(SYS_getpriority, 0, 0)));
    snprintf(text[3], 32, "%s", result(syscall(SYS_getpriority, 1, 0)));
    snprintf(text[4], 32, "%s", result(syscall(SYS_getitimer, 0, &info)));
    say("%s: uname %s, sysinfo %s, getpriority %s and %s, getitimer %s", who, text[0], text[1], text[2], text[3], text[4]);
}

static int dies_of(long nr)
{
    pid_t child = fork();
    if (child == 0) {
        syscall(nr, 0, 0, 0, 0, 0);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static pthread_barrier_t barrier;

static void *thread(void *own)
{
    if (own)
        say("the thread's own: %s", result(install(0, SYS_getitimer, -1, SECCOMP_RET_ERRNO | EPERM)));
    pthread_barrier_wait(&barrier); /* installed */
    pthread_barrier_wait(&barrier); /* saved */
    try_all(own ? "thread with one of its own" : "thread");
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier); /* another one for all, where that is possible */
    if (!own)
        try_all("thread, after all were synchronised");
    return NULL;
}

static void threads(bool one_has_its_own)
{
    pthread_t other;
    pthread_barrier_init(&barrier, NULL, 2);
    pthread_create(&other, NULL, thread, one_has_its_own ? "" : NULL);
    pthread_barrier_wait(&barrier);
    checkpoint_marker();
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    try_all("main");
    long done = install(SECCOMP_FILTER_FLAG_TSYNC, SYS_getpriority, 1, SECCOMP_RET_ERRNO | EXDEV);
    say("one for all threads: %s", done > 0 ? "a thread cannot follow" : result(done));
    pthread_barrier_wait(&barrier);
    pthread_join(other, NULL);
}

int main(void)
{
    static struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    try_all("before");
    say("errno: %s", result(install(0, SYS_uname, -1, SECCOMP_RET_ERRNO | EUCLEAN)));
    say("trap: %s", result(install(SECCOMP_FILTER_FLAG_LOG, SYS_sysinfo, -1, SECCOMP_RET_TRAP | 77)));
    say("errno by argument: %s", result(install(0, SYS_getpriority, 0, SECCOMP_RET_ERRNO | EDOM)));
    say("kill: %s", result(install(0, SYS_acct, -1, SECCOMP_RET_KILL_PROCESS)));
    /* What a save itself makes in a process. */
    say("kill 2: %s", result(install(0, SYS_prctl, 40 /* PR_GET_TID_ADDRESS */, SECCOMP_RET_KILL_PROCESS)));
    say("kill 3: %s", result(install(0, SYS_sigaltstack, -1, SECCOMP_RET_KILL_PROCESS)));
    /* The last one counts where two say the same kind of thing. */
    say("errno again: %s", result(install(0, SYS_uname, -1, SECCOMP_RET_ERRNO | ENOTEMPTY)));
    for (int round = 0; round < 2; round++) {
        try_all("parent");
        pid_t child = fork();
        if (child == 0) {
            try_all("child");
            say("the child's own: %s", result(install(0, SYS_getitimer, -1, SECCOMP_RET_ERRNO | EPERM)));
            checkpoint_marker();
            try_all("child");
            _exit(0);
        }
        waitpid(child, NULL, 0);
        try_all("parent, without its child's");
        say("acct kills: %d, sigaltstack: %d", dies_of(SYS_acct), dies_of(SYS_sigaltstack));
        say("filters: mode %d", prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
        checkpoint_marker();
    }
    if (fork() == 0) {
        threads(true);
        _exit(0);
    }
    wait(NULL);
    threads(false);
    try_all("at the end");
    return 0;
}
