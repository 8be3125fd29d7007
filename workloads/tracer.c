/* The yardstick: what one emulated call costs a ptrace tracer written in C with nothing in it. A seccomp filter
 * stops the guest at a few calls only; the tracer reads the registers and writes them back: for getitimer with a
 * result and with the call cancelled (orig_rax -1), for the others as they were, so that the host executes them.
 * Signals stop the guest too, as they do any tracee. Tracer and guest share one CPU: on two, the wake-up across
 * them costs several times as much. Children of the guest are not traced, and the calls fail in them.
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
    static const int traced[] = {
        SYS_getitimer, SYS_setitimer, SYS_clock_gettime, SYS_clock_nanosleep, SYS_timer_create,
        SYS_timer_settime, SYS_timer_delete, SYS_kill,
    };
    enum { COUNT = sizeof traced / sizeof traced[0] };
    struct sock_filter program[COUNT + 5] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, COUNT + 1),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    for (int i = 0; i < COUNT; i++)
        program[3 + i] = (struct sock_filter)BPF_JUMP(
            BPF_JMP | BPF_JEQ | BPF_K, (unsigned)traced[i], (unsigned char)(COUNT - i), 0);
    program[3 + COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program[4 + COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    struct sock_fprog filter = {COUNT + 5, program};
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
            if (registers.orig_rax == SYS_getitimer) {
                registers.rax = 0;
                registers.orig_rax = (unsigned long long)-1;
            }
            ptrace(PTRACE_SETREGS, child, 0, &registers);
        } else if (status >> 16 == 0) {
            signal = WSTOPSIG(status);
        }
        ptrace(PTRACE_CONT, child, 0, signal);
    }
}
