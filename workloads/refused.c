/* Calls that a guest is refused. Natively most of them succeed, so this is no oracle against the host: it
 * prints what came back, and the tests know what must. Each is tried in a child, since some would change it. */
#include "common.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>

static char buffer[4096];

static long call_io_uring(void) { return syscall(425 /* io_uring_setup */, 4, buffer); }
static long call_io_uring_enter(void) { return syscall(426, 0, 0, 0, 0, 0, 0); }
static long call_io_uring_register(void) { return syscall(427, 0, 0, 0, 0); }
static long call_userfaultfd(void) { return syscall(SYS_userfaultfd, O_CLOEXEC); }
static long call_unshare_user(void) { return syscall(SYS_unshare, CLONE_NEWUSER); }
static long call_unshare_pid(void) { return syscall(SYS_unshare, CLONE_NEWPID); }
static long call_unshare_time(void) { return syscall(SYS_unshare, 0x80); }
static long call_setns(void) { return syscall(SYS_setns, 0, 0); }
static long call_traceme(void) { return syscall(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0); }
static long call_attach(void) { return syscall(SYS_ptrace, PTRACE_SEIZE, getppid(), 0, 0); }
static long call_bpf(void) { return syscall(SYS_bpf, 0, buffer, 0); }
static long call_perf(void) { return syscall(SYS_perf_event_open, buffer, 0, -1, -1, 0); }
static long call_reboot(void) { return syscall(SYS_reboot, 0, 0, 0, 0); } /* wrong magic: never takes effect */
static long call_module(void) { return syscall(SYS_init_module, buffer, 0, buffer); }
static long call_delete_module(void) { return syscall(SYS_delete_module, "no-such-module", 0); }
static long call_kexec(void) { return syscall(SYS_kexec_load, 0, 0x7fffffff, 0, 0); }
static long call_swapon(void) { return syscall(SYS_swapon, "/nonexistent", 0); }
static long call_unknown(void) { return syscall(999); }
static long call_unknown_again(void) { return syscall(999); }
static long call_negative(void) { return syscall(-1); }
static long call_huge(void) { return syscall(0x12345678); }
static long call_x32(void) { return syscall(0x40000000 | SYS_getppid); }
static long call_clone_newpid(void) { return syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0); }
static long call_clone_newuser(void) { return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0); }
static long call_set_mm(void) { return syscall(SYS_prctl, PR_SET_MM, PR_SET_MM_BRK, 0, 0, 0); }

static long call_clone3_newuser(void)
{
    uint64_t arguments[8] = {[0] = CLONE_NEWUSER, [4] = SIGCHLD};
    return syscall(SYS_clone3, arguments, sizeof arguments);
}

static long call_listener(void)
{
    struct sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, allow};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static long call_int80(void)
{
    long result = 20; /* getpid in the 32-bit table */
    __asm__ volatile("int $0x80" : "+a"(result)::"r8", "r9", "r10", "r11", "memory");
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

static const struct {
    const char *name;
    long (*call)(void);
} calls[] = {
    {"io_uring_setup", call_io_uring}, {"io_uring_enter", call_io_uring_enter},
    {"io_uring_register", call_io_uring_register}, {"userfaultfd", call_userfaultfd},
    {"unshare user", call_unshare_user}, {"unshare pid", call_unshare_pid}, {"unshare time", call_unshare_time},
    {"setns", call_setns}, {"ptrace TRACEME", call_traceme}, {"ptrace SEIZE", call_attach}, {"bpf", call_bpf},
    {"perf_event_open", call_perf}, {"reboot", call_reboot}, {"init_module", call_module},
    {"delete_module", call_delete_module}, {"kexec_load", call_kexec}, {"swapon", call_swapon},
    {"number 999", call_unknown}, {"number 999 again", call_unknown_again}, {"number -1", call_negative},
    {"number 0x12345678", call_huge}, {"x32 getppid", call_x32}, {"int 0x80", call_int80},
    {"clone NEWPID", call_clone_newpid}, {"clone NEWUSER", call_clone_newuser},
    {"clone3 NEWUSER", call_clone3_newuser}, {"prctl SET_MM", call_set_mm}, {"seccomp NEW_LISTENER", call_listener},
};

int main(void)
{
    for (size_t i = 0; i < COUNT_OF(calls); i++) {
        struct gate answer = gate_new();
        pid_t child = fork_or_die();
        if (child == 0) {
            pid_t self = getpid();
            long result = calls[i].call();
            int error = result == -1 ? errno : 0;
            if (getpid() != self) /* a clone that was allowed after all */
                _exit(0);
            if (write(answer.ends[1], &error, sizeof error) < 0)
                _exit(1);
            if (result > 0)
                waitpid((pid_t)result, NULL, WNOHANG);
            _exit(0);
        }
        close(answer.ends[1]);
        int error = 0;
        ssize_t size = read(answer.ends[0], &error, sizeof error);
        int status = reap(child);
        say("%s: %s", calls[i].name, size == sizeof error ? error_name(error) : status_text(status));
        close(answer.ends[0]);
    }
    return 0;
}
