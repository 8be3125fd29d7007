/* Signal frames: leaving a handler by siglongjmp, the alternate stack, faults, and what a handler may read and
 * change in the context it interrupted. */
#include "common.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

static sigjmp_buf jump;
static volatile int seen_signal, seen_code;
static void *volatile seen_address;

static void on_jump(int signo)
{
    siglongjmp(jump, signo);
}

static void jumps(void)
{
    static volatile int save;
    sigset_t now, none;
    sigemptyset(&none);
    signal(SIGUSR1, on_jump);
    for (save = 0; save < 2; save++) {
        if (sigsetjmp(jump, save) == 0)
            raise(SIGUSR1);
        sigprocmask(SIG_BLOCK, NULL, &now);
        say("siglongjmp, mask saved %d: still blocked %d", save, sigismember(&now, SIGUSR1));
        sigprocmask(SIG_SETMASK, &none, NULL);
    }
    static volatile int rounds;
    for (rounds = 0; rounds < 200; rounds++)
        if (sigsetjmp(jump, 1) == 0)
            raise(SIGUSR1);
    say("%d in a row", rounds);
    if (sigsetjmp(jump, 1) == 0) {
        alarm(1);
        signal(SIGALRM, on_jump);
        for (;;)
            pause();
    }
    say("out of a blocked call");
}

static void on_alternate(int signo)
{
    stack_t now;
    char here;
    (void)signo;
    sigaltstack(NULL, &now);
    bool inside = &here >= (char *)now.ss_sp && &here < (char *)now.ss_sp + now.ss_size;
    stack_t other = {.ss_sp = now.ss_sp, .ss_size = now.ss_size};
    say("on the alternate stack: %s, flags %d, changing it now: %s", yes(inside), now.ss_flags,
        outcome(sigaltstack(&other, NULL)));
}

static stack_t stack;

static void alternate(void)
{
    struct sigaction action = {.sa_handler = on_alternate, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    stack_t small = {.ss_sp = stack.ss_sp, .ss_size = 100}, off = {.ss_flags = SS_DISABLE};
    say("too small: %s", outcome(sigaltstack(&small, NULL)));
    sigaltstack(&off, NULL);
    sigaltstack(NULL, &small);
    say("switched off: %s", yes(small.ss_flags == SS_DISABLE));
    sigaltstack(&stack, NULL);
}

static void on_fault(int signo, siginfo_t *info, void *context)
{
    (void)context;
    seen_address = info->si_addr;
    seen_code = info->si_code;
    seen_signal = signo;
    siglongjmp(jump, signo);
}

static int overflow(int depth)
{
    volatile char frame[4096];
    frame[0] = (char)depth;
    return depth > 1 << 20 ? 0 : overflow(depth + 1) + frame[0];
}

static void faults(void)
{
    static char *volatile targets[4];
    static volatile size_t i;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (size_t s = 0; s < COUNT_OF(signals); s++)
        sigaction(signals[s], &action, NULL);
    targets[0] = (char *)16;
    targets[1] = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    targets[2] = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FILE *file = tmpfile();
    targets[3] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
    for (i = 0; i < COUNT_OF(targets); i++) {
        if (sigsetjmp(jump, 1) == 0)
            *targets[i] = 1;
        say("write %zu: signal %d, code %d, address right %s", i, seen_signal, seen_code, yes(seen_address == targets[i]));
    }
    if (sigsetjmp(jump, 1) == 0)
        __asm__ volatile("xorl %%ecx, %%ecx\n\tmovl $1, %%eax\n\tcltd\n\tidivl %%ecx" ::: "eax", "ecx", "edx");
    say("division: signal %d, code %d", seen_signal, seen_code);
    if (sigsetjmp(jump, 1) == 0)
        __asm__ volatile("ud2");
    say("bad instruction: signal %d, code %d", seen_signal, seen_code);
    if (sigsetjmp(jump, 1) == 0)
        __asm__ volatile("int3");
    say("breakpoint: signal %d, code %d", seen_signal, seen_code);
    if (sigsetjmp(jump, 1) == 0)
        *(volatile char *)0x8000000000000000ull = 1;
    say("address that is none: signal %d, code %d", seen_signal, seen_code);
    struct rlimit limit = {256 * 1024, RLIM_INFINITY};
    setrlimit(RLIMIT_STACK, &limit);
    if (sigsetjmp(jump, 1) == 0)
        overflow(0);
    say("stack overflow, on the alternate stack: signal %d", seen_signal);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    pid_t child = fork_or_die();
    if (child == 0) {
        sigprocmask(SIG_BLOCK, &set, NULL);
        *targets[0] = 1;
        _exit(1);
    }
    say("a fault while blocked: %s", status_text(reap(child)));
    child = fork_or_die();
    if (child == 0) {
        signal(SIGSEGV, SIG_IGN);
        *targets[0] = 1;
        _exit(1);
    }
    say("a fault while ignored: %s", status_text(reap(child)));
    child = fork_or_die();
    if (child == 0) {
        stack_t nowhere = {.ss_sp = targets[2], .ss_size = 65536};
        sigaltstack(&nowhere, NULL);
        raise(SIGSEGV);
        _exit(1);
    }
    say("no room for a frame: %s", status_text(reap(child)));
}

static void on_skip(int signo, siginfo_t *info, void *context)
{
    ucontext_t *interrupted = context;
    (void)signo;
    (void)info;
    interrupted->uc_mcontext.gregs[REG_RIP] += 2; /* over ud2 */
    interrupted->uc_mcontext.gregs[REG_RBX] = 1234;
    sigaddset(&interrupted->uc_sigmask, SIGUSR2);
}

static volatile double sink;

static void on_clobber(int signo)
{
    (void)signo;
    for (int i = 1; i < 50; i++)
        sink = sink * 1.5 + i;
    __asm__ volatile("pxor %%xmm0, %%xmm0\n\tpxor %%xmm7, %%xmm7\n\tpxor %%xmm15, %%xmm15" ::: "xmm0", "xmm7", "xmm15");
    errno = 0;
}

static void contexts(void)
{
    sigset_t now, none;
    struct sigaction action = {.sa_sigaction = on_skip, .sa_flags = SA_SIGINFO};
    sigemptyset(&none);
    sigaction(SIGILL, &action, NULL);
    long rbx;
    __asm__ volatile("movl $7, %%ebx\n\tud2\n\tmovq %%rbx, %0" : "=r"(rbx)::"rbx", "memory");
    sigprocmask(SIG_SETMASK, &none, &now);
    say("context changed: register %ld, mask %d", rbx, sigismember(&now, SIGUSR2));

    signal(SIGUSR1, on_clobber);
    long id = getpid(), result;
    uint64_t before[3] = {0x1122334455667788, 0x99aabbccddeeff00, 0x0f1e2d3c4b5a6978}, after[3];
    __asm__ volatile("movq %2, %%xmm0\n\tmovq %3, %%xmm7\n\tmovq %4, %%xmm15\n\t"
                     "movq %5, %%rdi\n\tmovq $10, %%rsi\n\tmovq $62, %%rax\n\tsyscall\n\t" /* kill(self, SIGUSR1) */
                     "movq %%rax, %0\n\tmovq %%xmm0, 0(%1)\n\tmovq %%xmm7, 8(%1)\n\tmovq %%xmm15, 16(%1)"
                     : "=&r"(result) : "r"(after), "r"(before[0]), "r"(before[1]), "r"(before[2]), "r"(id)
                     : "rax", "rcx", "r11", "rdi", "rsi", "xmm0", "xmm7", "xmm15", "memory");
    say("vector registers kept: %s, result %ld", yes(memcmp(before, after, sizeof before) == 0), result);
    uint64_t kept;
    __asm__ volatile("movq %1, %%r10\n\tmovq $39, %%rax\n\tsyscall\n\tmovq %%r10, %0"
                     : "=r"(kept) : "r"(before[0]) : "rax", "rcx", "r10", "r11", "memory");
    say("getpid keeps r10: %s", yes(kept == before[0]));
    __asm__ volatile("movq %1, %%r9\n\txorl %%edi, %%edi\n\txorl %%esi, %%esi\n\tmovq $36, %%rax\n\tsyscall\n\tmovq %%r9, %0"
                     : "=r"(kept) : "r"(before[1]) : "rax", "rcx", "rdi", "rsi", "r9", "r11", "memory");
    say("an owned call keeps r9: %s", yes(kept == before[1]));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"jumps", jumps}, {"alternate", alternate}, {"faults", faults}, {"contexts", contexts},
    };
    stack.ss_size = 65536;
    stack.ss_sp = malloc(stack.ss_size);
    sigaltstack(&stack, NULL);
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
