/* The yardstick: what one emulated call costs a ptrace tracer written in C with nothing in it. A seccomp filter
 * stops the guest at getitimer only; the tracer reads the registers, writes them back with a result and with
 * the call cancelled (orig_rax -1), and lets it go on. Tracer and guest share one CPU: on two, the wake-up
 * across them costs several times as much.
 *
 * usage: tracer CMD [ARG...] (see ptrace(2), seccomp(2)) */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static void share_one_cpu(void)
{
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) < 0)
        err(1, "sched_getaffinity");
    int cpu = 0;
    while (!CPU_ISSET(cpu, &allowed))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one) < 0)
        err(1, "sched_setaffinity");
}

static void guest(char **argv)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getitimer, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof program / sizeof program[0], program};
    raise(SIGSTOP); /* until the tracer is there: RET_TRACE without one is ENOSYS */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        err(1, "PR_SET_NO_NEW_PRIVS");
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) < 0)
        err(1, "seccomp");
    execvp(argv[0], argv);
    err(errno == ENOENT ? 127 : 126, "%s", argv[0]);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        errx(2, "usage: tracer CMD [ARG...]");
    share_one_cpu();
    pid_t child = fork();
    if (child < 0)
        err(1, "fork");
    if (child == 0)
        guest(argv + 1);

    int status;
    if (waitpid(child, &status, WUNTRACED) < 0 || !WIFSTOPPED(status))
        errx(1, "the guest did not start");
    if (ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL) < 0)
        err(1, "PTRACE_SEIZE");
    kill(child, SIGCONT);

    for (;;) {
        if (waitpid(child, &status, __WALL) < 0)
            err(1, "waitpid");
        if (WIFEXITED(status))
            return WEXITSTATUS(status);
        if (WIFSIGNALED(status))
            return 128 + WTERMSIG(status);
        long signal = 0;
        if (status >> 8 == (SIGTRAP | PTRACE_EVENT_SECCOMP << 8)) {
            struct user_regs_struct registers;
            ptrace(PTRACE_GETREGS, child, 0, &registers);
            registers.rax = 0;
            registers.orig_rax = (unsigned long long)-1;
            ptrace(PTRACE_SETREGS, child, 0, &registers);
        } else if (status >> 16 == 0) {
            signal = WSTOPSIG(status);
        }
        ptrace(PTRACE_CONT, child, 0, signal);
    }
}
