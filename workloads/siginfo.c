/* What a signal says of itself: who may claim what, and every field of the siginfo_t of signals that come from
 * processes, children, faults, pipes, limits, filters and descriptors. */
#include "common.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#define SIGINFO_SIZE 128

static volatile sig_atomic_t count;
static siginfo_t last;
static sigjmp_buf back;

static void keep(int signo, siginfo_t *info, void *context)
{
    (void)signo, (void)context;
    last = *info;
    count++;
}

static void keep_and_leave(int signo, siginfo_t *info, void *context)
{
    keep(signo, info, context);
    siglongjmp(back, 1);
}

static void install(int signo, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigaction(signo, &action, NULL);
}

static void block(int how, int signo)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signo);
    sigprocmask(how, &set, NULL);
}

static bool is_pending(int signo)
{
    sigset_t set;
    sigpending(&set);
    return sigismember(&set, signo);
}

static const char *of_whom(pid_t pid)
{
    return pid == getpid() ? "own" : pid == getppid() ? "the parent's" : pid == 0 ? "0" : "another's";
}

/* Takes one pending signal of this number; its siginfo in words. */
static const char *taken(int signo)
{
    static char text[160];
    sigset_t set;
    struct timespec zero = {0, 0};
    sigemptyset(&set);
    sigaddset(&set, signo);
    siginfo_t info;
    memset(&info, 0x5a, sizeof info);
    if (sigtimedwait(&set, &info, &zero) < 0)
        return error_name(errno);
    snprintf(text, sizeof text, "signal %d, errno %d, code %d, pid %s, uid %s, value %#lx, rest %s", info.si_signo,
             info.si_errno, info.si_code, of_whom(info.si_pid), yes(info.si_uid == getuid()),
             (unsigned long)info.si_value.sival_ptr, yes(((unsigned char *)&info)[127] == 0));
    return text;
}

static long queue_info(pid_t pid, int signo, siginfo_t *info)
{
    return syscall(SYS_rt_sigqueueinfo, pid, signo, info);
}

static long queue_thread_info(pid_t pid, pid_t tid, int signo, siginfo_t *info)
{
    return syscall(SYS_rt_tgsigqueueinfo, pid, tid, signo, info);
}

static const int codes[] = {SI_USER, SI_KERNEL, SI_QUEUE, SI_TIMER, SI_MESGQ, SI_ASYNCIO, SI_SIGIO, SI_TKILL, -7, -60, -77, 1, 77};

static void claims(void)
{
    pid_t self = getpid();
    block(SIG_BLOCK, SIGRTMIN);
    block(SIG_BLOCK, SIGUSR1);
    for (size_t i = 0; i < COUNT_OF(codes); i++) {
        siginfo_t info;
        memset(&info, 0, sizeof info);
        info.si_signo = SIGHUP; /* is set by the call */
        info.si_errno = 7;
        info.si_code = codes[i];
        info.si_pid = self;
        info.si_uid = getuid();
        info.si_value.sival_ptr = (void *)0x123456789abL;
        say("code %d to oneself: %s", codes[i], outcome(queue_info(self, SIGRTMIN, &info)));
        say("  %s", taken(SIGRTMIN));
        say("  to a thread: %s", outcome(queue_thread_info(self, self, SIGUSR1, &info)));
        say("  %s", taken(SIGUSR1));
        say("  to another: %s", outcome(queue_info(getppid(), 0, &info)));
        pid_t child = fork_or_die();
        if (child == 0)
            _exit(queue_thread_info(getppid(), getppid(), 0, &info) == 0 ? 0 : errno);
        say("  to another's thread: %s", error_name(reap(child) >> 8));
    }
    block(SIG_UNBLOCK, SIGRTMIN);
    block(SIG_UNBLOCK, SIGUSR1);
}

static void refusals(void)
{
    pid_t self = getpid(), gone = fork_or_die();
    if (gone == 0)
        _exit(0);
    waitid(P_PID, (id_t)gone, &(siginfo_t){0}, WEXITED | WNOWAIT);
    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_code = SI_QUEUE;
    siginfo_t *nowhere = (siginfo_t *)16;
    say("zombie: %s, %s, kill %s, tgkill %s", outcome(queue_info(gone, SIGUSR1, &info)),
        outcome(queue_thread_info(gone, gone, SIGUSR1, &info)), outcome(kill(gone, SIGUSR1)),
        outcome(syscall(SYS_tgkill, gone, gone, SIGUSR1)));
    reap(gone);
    const int numbers[] = {0, 1, 64, 65, -1, 1000};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        int n = numbers[i];
        block(SIG_BLOCK, n > 0 && n < 65 ? n : SIGUSR1);
        say("signal %d: %s, to a thread %s, to nobody %s, nobody's thread %s", n, outcome(queue_info(self, n, &info)),
            outcome(queue_thread_info(self, self, n, &info)), outcome(queue_info(gone, n, &info)),
            outcome(queue_thread_info(gone, gone, n, &info)));
        say("  bad address: %s, %s, to nobody %s", outcome(queue_info(self, n, nowhere)),
            outcome(queue_thread_info(self, self, n, nowhere)), outcome(queue_info(gone, n, nowhere)));
        say("  pid 0: %s, -1: %s, thread 0: %s, group 0: %s, -1 -1: %s", outcome(queue_info(0, n, &info)),
            outcome(queue_info(-1, n, &info)), outcome(queue_thread_info(self, 0, n, &info)),
            outcome(queue_thread_info(0, self, n, &info)), outcome(queue_thread_info(-1, -1, n, &info)));
        say("  tgkill %s %s %s, tkill %s %s", outcome(syscall(SYS_tgkill, gone, gone, n)), outcome(syscall(SYS_tgkill, -1, self, n)),
            outcome(syscall(SYS_tgkill, self, 0, n)), outcome(syscall(SYS_tkill, gone, n)), outcome(syscall(SYS_tkill, -1, n)));
        say("  kill of nobody %s, of the least number %s", outcome(kill(gone, n)), outcome(kill((pid_t)0x80000000, n)));
    }
    /* Bytes behind those that every layout has, of a code that is not known. */
    struct { siginfo_t info; } odd;
    memset(&odd, 0, sizeof odd);
    odd.info.si_code = -77;
    ((char *)&odd.info)[100] = 1;
    say("unknown layout with a tail: %s", outcome(queue_info(self, 0, &odd.info)));
    odd.info.si_code = SI_QUEUE;
    say("known layout with a tail: %s", outcome(queue_info(self, 0, &odd.info)));
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    siginfo_t *edge = (siginfo_t *)(page + 4096 - 48);
    memset(edge, 0, 48);
    edge->si_code = SI_QUEUE;
    say("48 bytes that can be read: known %s", outcome(queue_info(self, 0, edge)));
    edge->si_code = -77;
    say("unknown %s", outcome(queue_info(self, 0, edge)));
    munmap(page, 4096);
    for (int i = 0; i < 2; i++) /* one was sent to the thread, one to the process */
        taken(SIGHUP), taken(SIGRTMAX);
    block(SIG_UNBLOCK, SIGHUP);
    block(SIG_UNBLOCK, SIGRTMAX);
    block(SIG_UNBLOCK, SIGUSR1);
}

static void pidfds(void)
{
    pid_t self = getpid();
    struct gate gate = gate_new(), said = gate_new();
    block(SIG_BLOCK, SIGUSR1);
    pid_t child = fork_or_die();
    if (child == 0) {
        setpgid(0, 0);
        gate_wait(gate);
        say("taken by it: %s", taken(SIGUSR1));
        gate_open(said);
        pause();
    }
    setpgid(child, child);
    int fd = (int)syscall(SYS_pidfd_open, child, 0), own = (int)syscall(SYS_pidfd_open, self, 0);
    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_code = SI_QUEUE;
    info.si_signo = SIGUSR1;
    say("0: %s, 65: %s, -1: %s", outcome(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0)),
        outcome(syscall(SYS_pidfd_send_signal, fd, 65, NULL, 0)), outcome(syscall(SYS_pidfd_send_signal, fd, -1, NULL, 0)));
    say("no pidfd: %s, no descriptor: %s", outcome(syscall(SYS_pidfd_send_signal, gate.ends[0], 0, NULL, 0)),
        outcome(syscall(SYS_pidfd_send_signal, 999, 0, NULL, 0)));
    say("flags 8: %s, 3: %s, 1: %s, 2: %s, 4: %s", outcome(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 8)),
        outcome(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 3)), outcome(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 1)),
        outcome(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 2)), outcome(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 4)));
    say("another number within: %s, bad address: %s", outcome(syscall(SYS_pidfd_send_signal, fd, SIGUSR2, &info, 0)),
        outcome(syscall(SYS_pidfd_send_signal, fd, SIGUSR1, (void *)16, 0)));
    info.si_code = SI_USER;
    say("kill's code to another: %s", outcome(syscall(SYS_pidfd_send_signal, fd, SIGUSR1, &info, 0)));
    info.si_pid = self, info.si_uid = getuid();
    say("to oneself: %s", outcome(syscall(SYS_pidfd_send_signal, own, SIGUSR1, &info, 0)));
    say("  %s", taken(SIGUSR1));
    for (int flag = 0; flag < 3; flag += 1) {
        say("flag %d: %s", flag, outcome(syscall(SYS_pidfd_send_signal, own, SIGUSR1, NULL, flag)));
        say("  %s", taken(SIGUSR1));
    }
    say("self as thread: %s", outcome(syscall(SYS_pidfd_send_signal, -10000, SIGUSR1, NULL, 0)));
    say("  %s", taken(SIGUSR1));
    say("self as process: %s", outcome(syscall(SYS_pidfd_send_signal, -10001, SIGUSR1, NULL, 0)));
    say("  %s", taken(SIGUSR1));
    int directory = open("/proc/self", O_RDONLY | O_DIRECTORY);
    say("a directory of /proc: %s", outcome(syscall(SYS_pidfd_send_signal, directory, SIGUSR1, NULL, 0)));
    say("  %s", taken(SIGUSR1));
    close(directory);
    block(SIG_UNBLOCK, SIGUSR1);
    say("to a child: %s", outcome(syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0)));
    gate_open(gate);
    gate_wait(said);
    say("to its process group: %s", outcome(syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 4)));
    say("its end: %s", status_text(reap(child)));
    say("reaped: %s", outcome(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0)));
    say("pidfd_open of nobody: %s, 0: %s, -1: %s, flags 1: %s", outcome(syscall(SYS_pidfd_open, child, 0)),
        outcome(syscall(SYS_pidfd_open, 0, 0)), outcome(syscall(SYS_pidfd_open, -1, 0)), outcome(syscall(SYS_pidfd_open, self, 1)));
    close(fd), close(own);
    gate_free(gate);
    gate_free(said);
}

/* A siginfo that looks like a fault's, queued to oneself, is no fault: it waits while it is blocked, is dropped
 * while ignored. */
static void forged(void)
{
    const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
    for (size_t i = 0; i < COUNT_OF(faults); i++) {
        int signo = faults[i];
        siginfo_t info;
        memset(&info, 0, sizeof info);
        info.si_code = 1;
        info.si_addr = (void *)0x4711;
        count = 0;
        install(signo, keep, 0);
        block(SIG_BLOCK, signo);
        install(SIGUSR1, keep, 0);
        say("%d: %s", signo, outcome(queue_thread_info(getpid(), getpid(), signo, &info)));
        raise(SIGUSR1); /* brings the thread to take something else */
        say("  blocked: pending %s, handled %d", yes(is_pending(signo)), count);
        block(SIG_UNBLOCK, signo);
        say("  unblocked: handled %d, code %d, address %s", count, last.si_code, yes(last.si_addr == (void *)0x4711));
        signal(signo, SIG_IGN);
        queue_thread_info(getpid(), getpid(), signo, &info);
        say("  ignored: still here");
        signal(signo, SIG_DFL);
        pid_t child = fork_or_die();
        if (child == 0) {
            queue_thread_info(getpid(), getpid(), signo, &info);
            _exit(0);
        }
        say("  default: %s", status_text(reap(child)));
    }
}

static void show_child(const char *what, pid_t child)
{
    say("%s: code %d, status %d, its pid %s, uid %d, errno %d", what, last.si_code, last.si_status, yes(last.si_pid == child),
        (int)last.si_uid, last.si_errno);
}

static long ticks(struct timeval t)
{
    return t.tv_sec * 100 + t.tv_usec / 10000;
}

static void wait_count(int wanted)
{
    sigset_t none, old, chld;
    sigemptyset(&none);
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld, &old);
    while (count < wanted)
        sigsuspend(&none);
    sigprocmask(SIG_SETMASK, &old, NULL);
}

static void children(void)
{
    count = 0;
    install(SIGCHLD, keep, 0);
    struct rusage usage;
    int status;
    pid_t child = fork_or_die();
    if (child == 0) {
        burn_ms(150);
        _exit(3);
    }
    wait_count(1);
    wait4(child, &status, 0, &usage);
    show_child("exit", child);
    /* rusage divides by what was measured, the signal counts the ticks that it was met at. */
    long told = last.si_utime + last.si_stime, used = ticks(usage.ru_utime) + ticks(usage.ru_stime);
    say("times as in rusage, nearly: %s, some: %s", yes(labs(told - used) <= 7), yes(told > 5));
    /* A grandchild's time is in the rusage, and not in the signal. */
    count = 0;
    child = fork_or_die();
    if (child == 0) {
        signal(SIGCHLD, SIG_DFL);
        pid_t grandchild = fork_or_die();
        if (grandchild == 0) {
            burn_ms(200);
            _exit(0);
        }
        reap(grandchild);
        abort();
    }
    wait_count(1);
    wait4(child, &status, 0, &usage);
    show_child("abort", child);
    say("a grandchild's time: in rusage %s, in the signal %s", yes(ticks(usage.ru_utime) > 10), yes(last.si_utime > 10));
    count = 0;
    child = fork_or_die();
    if (child == 0) {
        burn_ms(150);
        raise(SIGSTOP);
        pause();
    }
    wait_count(1);
    show_child("stop", child);
    say("time at the stop: %s", yes(last.si_utime > 5));
    count = 0;
    kill(child, SIGCONT);
    wait_count(1);
    show_child("continue", child);
    say("time at the continuation: %s", yes(last.si_utime > 5));
    count = 0;
    kill(child, SIGKILL);
    wait_count(1);
    show_child("kill", child);
    say("time at the end: %s", yes(last.si_utime > 5));
    reap(child);
    if (getuid() == 0) {
        const uid_t ids[][3] = {{1001, 1002, 1003}, {0, 1002, 0}};
        for (size_t i = 0; i < COUNT_OF(ids); i++) {
            count = 0;
            child = fork_or_die();
            if (child == 0) {
                if (setresuid(ids[i][0], ids[i][1], ids[i][2]) < 0)
                    _exit(99);
                _exit(5);
            }
            wait_count(1);
            show_child("another user", child);
            siginfo_t info = {0};
            waitid(P_PID, (id_t)child, &info, WEXITED);
            say("waitid: uid %d", (int)info.si_uid);
        }
    } else {
        for (int i = 0; i < 2; i++)
            say("another user: needs root");
    }
    signal(SIGCHLD, SIG_DFL);
}

static void show_fault(const char *what, void *address)
{
    say("%s: signal %d, errno %d, code %d, address %s", what, last.si_signo, last.si_errno, last.si_code,
        last.si_addr == address ? "right" : last.si_addr == NULL ? "null" : "another");
}

static volatile int zero_divisor;
static volatile int *volatile nowhere_at = (int *)8;
extern char trap_after[], ill_at[], fpe_at[], single_after[];

static void faults(void)
{
    const int all[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    for (size_t i = 0; i < COUNT_OF(all); i++)
        install(all[i], keep_and_leave, SA_NODEFER);
    char *volatile page = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!sigsetjmp(back, 1))
        *(volatile char *)(page + 7) = 1;
    show_fault("read-only page", page + 7);
    munmap(page, 8192);
    if (!sigsetjmp(back, 1))
        *(volatile char *)(page + 9) = 1;
    show_fault("no page", page + 9);
    if (!sigsetjmp(back, 1))
        *(volatile char *)0x8000000000000000UL = 1;
    show_fault("non-canonical address", NULL);
    char name[] = "/tmp/siginfo-XXXXXX";
    int fd = mkstemp(name);
    unlink(name);
    if (ftruncate(fd, 4096) < 0)
        exit(94);
    page = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
    if (!sigsetjmp(back, 1))
        (void)*(volatile char *)(page + 5000);
    show_fault("behind the end of a file", page + 5000);
    munmap(page, 8192);
    close(fd);
    if (!sigsetjmp(back, 1))
        __asm__ volatile("ill_at: ud2");
    show_fault("ud2", ill_at);
    if (!sigsetjmp(back, 1))
        __asm__ volatile("xorl %%edx, %%edx; movl $1, %%eax; xorl %%ecx, %%ecx; fpe_at: divl %%ecx" ::: "eax", "ecx", "edx");
    show_fault("division", fpe_at);
    if (!sigsetjmp(back, 1))
        __asm__ volatile("int3; trap_after: nop");
    show_fault("breakpoint", trap_after);
    if (!sigsetjmp(back, 1))
        __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq; nop; single_after: nop" ::: "memory", "cc");
    show_fault("single step", single_after);
    for (size_t i = 0; i < COUNT_OF(all); i++)
        signal(all[i], SIG_DFL);
}

/* A fault kills where its signal is blocked or ignored, whatever handler there is. */
static void no_way_out(void)
{
    for (int way = 0; way < 4; way++) {
        pid_t child = fork_or_die();
        if (child == 0) {
            install(SIGFPE, keep, 0);
            install(SIGSEGV, keep, 0);
            if (way & 1)
                block(SIG_BLOCK, SIGFPE), block(SIG_BLOCK, SIGSEGV);
            if (way == 2)
                signal(SIGFPE, SIG_IGN), signal(SIGSEGV, SIG_IGN);
            if (way < 2) {
                sigset_t all;
                sigfillset(&all);
                if (way == 0)
                    sigprocmask(SIG_SETMASK, &all, NULL);
                zero_divisor = 1 / zero_divisor;
            }
            *nowhere_at = 1;
            _exit(0);
        }
        say("way %d: %s", way, status_text(reap(child)));
    }
    /* In its own handler a fault's signal is blocked. */
    pid_t child = fork_or_die();
    if (child == 0) {
        struct sigaction action = {.sa_handler = (void (*)(int))8};
        sigaction(SIGSEGV, &action, NULL);
        *nowhere_at = 1;
        _exit(0);
    }
    say("handler at a bad address: %s", status_text(reap(child)));
}

static void pipes_and_limits(void)
{
    int ends[2];
    if (pipe(ends) < 0)
        exit(93);
    close(ends[0]);
    install(SIGPIPE, keep, 0);
    memset(&last, 0, sizeof last);
    long result = write(ends[1], "x", 1);
    say("write: %s", outcome(result));
    say("SIGPIPE: code %d, pid %s, uid %s, value %#lx", last.si_code, of_whom(last.si_pid), yes(last.si_uid == getuid()),
        (unsigned long)last.si_value.sival_ptr);
    block(SIG_BLOCK, SIGPIPE);
    result = write(ends[1], "x", 1);
    say("blocked: %s, pending %s", outcome(result), yes(is_pending(SIGPIPE)));
    say("%s", taken(SIGPIPE));
    say("and taken: %s", taken(SIGPIPE));
    block(SIG_UNBLOCK, SIGPIPE);
    close(ends[1]);
    install(SIGXFSZ, keep, 0);
    char name[] = "/tmp/siginfo-XXXXXX";
    int fd = mkstemp(name);
    unlink(name);
    pid_t child = fork_or_die();
    if (child == 0) {
        /* Output may be a file, which the limit must not hit. */
        struct rlimit low = {10, RLIM_INFINITY}, high = {RLIM_INFINITY, RLIM_INFINITY};
        memset(&last, 0, sizeof last);
        setrlimit(RLIMIT_FSIZE, &low);
        result = pwrite(fd, "x", 1, 100);
        setrlimit(RLIMIT_FSIZE, &high);
        say("beyond the limit: %s", outcome(result));
        say("SIGXFSZ: code %d, pid %s, uid %s", last.si_code, of_whom(last.si_pid), yes(last.si_uid == getuid()));
        block(SIG_BLOCK, SIGXFSZ);
        setrlimit(RLIMIT_FSIZE, &low);
        result = ftruncate(fd, 1000);
        setrlimit(RLIMIT_FSIZE, &high);
        say("blocked: %s, pending %s", outcome(result), yes(is_pending(SIGXFSZ)));
        say("%s", taken(SIGXFSZ));
        _exit(0);
    }
    say("%s", status_text(reap(child)));
    close(fd);
}

extern char after_call[];

static void filters(void)
{
    for (int way = 0; way < 3; way++) {
        pid_t child = fork_or_die();
        if (child == 0) {
            struct sock_filter code[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP | 77),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
            };
            struct sock_fprog program = {COUNT_OF(code), code};
            count = 0;
            install(SIGSYS, keep, 0);
            if (way == 1)
                block(SIG_BLOCK, SIGSYS);
            if (way == 2)
                signal(SIGSYS, SIG_IGN);
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
            long result;
            __asm__ volatile("syscall; after_call:" : "=a"(result) : "a"(SYS_getppid) : "rcx", "r11", "memory");
            say("SIGSYS: count %d, errno %d, code %d, number %s, address %s, machine %s, result %s", count, last.si_errno, last.si_code,
                yes(last.si_syscall == SYS_getppid), yes(last.si_call_addr == after_call), yes(last.si_arch == AUDIT_ARCH_X86_64),
                yes(result == SYS_getppid));
            _exit(0);
        }
        say("%s", status_text(reap(child)));
    }
}

static void parents_death(void)
{
    struct gate ready = gate_new(), done = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        pid_t second = fork_or_die();
        if (second == 0) {
            pid_t parent = getppid();
            block(SIG_BLOCK, SIGRTMIN);
            prctl(PR_SET_PDEATHSIG, SIGRTMIN);
            gate_open(ready);
            sigset_t set;
            siginfo_t info = {0};
            sigemptyset(&set);
            sigaddset(&set, SIGRTMIN);
            sigwaitinfo(&set, &info);
            say("parent's death: code %d, its pid %s, uid %s", info.si_code, yes(info.si_pid == parent), yes(info.si_uid == getuid()));
            gate_open(done);
            _exit(0);
        }
        gate_wait(ready);
        _exit(0);
    }
    reap(child);
    gate_wait(done);
    gate_free(ready);
    gate_free(done);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"claims", claims}, {"refusals", refusals}, {"pidfds", pidfds}, {"forged", forged}, {"children", children},
        {"faults", faults}, {"no way out", no_way_out}, {"pipes and limits", pipes_and_limits}, {"filters", filters},
        {"parent's death", parents_death},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
