/* What the host keeps of a process and of a thread, set to something unusual and asked for again behind a checkpoint: limits,
 * scheduling, capabilities, prctl(2)'s many, extended registers. Each line is the same before and behind it, which
 * is all that is printed: values differ between hosts. */
#include "common.h"
#include <immintrin.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif

enum { MOST = 160, LENGTH = 400 };
struct facts {
    int count;
    char name[MOST][32], text[MOST][LENGTH];
};

__attribute__((format(printf, 3, 4))) static void add(struct facts *all, const char *name, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    snprintf(all->name[all->count], sizeof all->name[0], "%s", name);
    vsnprintf(all->text[all->count], LENGTH, format, arguments);
    va_end(arguments);
    all->count++;
}

/* The first line of a file of /proc, or of one that begins with a word. */
static void add_line(struct facts *all, const char *name, const char *path, const char *word)
{
    FILE *file = fopen(path, "r");
    char line[LENGTH] = "";
    while (file && fgets(line, sizeof line, file) && strncmp(line, word, strlen(word)))
        line[0] = 0;
    if (file)
        fclose(file);
    add(all, name, "%s", line);
}

static void add_prctl(struct facts *all, const char *name, int option)
{
    long result = prctl(option, 0, 0, 0, 0);
    add(all, name, "%ld %s", result, result < 0 ? error_name(errno) : "");
}

static void add_pointed(struct facts *all, const char *name, int option)
{
    int value = -1;
    long result = prctl(option, &value, 0, 0, 0);
    add(all, name, "%ld %d", result, value);
}

static void ask_process(struct facts *all)
{
    static const char *const limits[] = {
        "CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING",
        "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
    };
    for (unsigned i = 0; i < COUNT_OF(limits); i++) {
        struct rlimit limit;
        int result = getrlimit(i, &limit);
        add(all, limits[i], "%d %lu %lu", result, (unsigned long)limit.rlim_cur, (unsigned long)limit.rlim_max);
    }
    mode_t mask = umask(0);
    umask(mask);
    add(all, "umask", "%o", mask);
    char place[LENGTH];
    add(all, "cwd", "%s", getcwd(place, sizeof place) ? place : error_name(errno));
    add(all, "personality", "%x", personality(0xffffffff));
    add_prctl(all, "dumpable", PR_GET_DUMPABLE);
    add_pointed(all, "child subreaper", PR_GET_CHILD_SUBREAPER);
    add_prctl(all, "no huge pages", PR_GET_THP_DISABLE);
    add_prctl(all, "no writable code", PR_GET_MDWE);
    add_prctl(all, "memory merge", PR_GET_MEMORY_MERGE);
    add_line(all, "oom_score_adj", "/proc/self/oom_score_adj", "");
    add_line(all, "coredump_filter", "/proc/self/coredump_filter", "");
    add_line(all, "timers", "/proc/self/comm", "");
    add_line(all, "locked", "/proc/self/status", "VmLck");
    add_line(all, "threads", "/proc/self/status", "Threads");
    unsigned char resident[1];
    void *later = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int result = mincore(later, 4096, resident);
    add(all, "memory to come is locked", "%d %d", result, resident[0] & 1); /* mlockall(MCL_FUTURE) */
    munmap(later, 4096);
}

static void ask_thread(struct facts *all)
{
    uid_t uid[3];
    gid_t gid[3];
    getresuid(&uid[0], &uid[1], &uid[2]);
    getresgid(&gid[0], &gid[1], &gid[2]);
    add(all, "uids", "%u %u %u", uid[0], uid[1], uid[2]);
    add(all, "gids", "%u %u %u", gid[0], gid[1], gid[2]);
    static const char *const words[] = {"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
                                        "NoNewPrivs", "Speculation_Store_Bypass", "SpeculationIndirectBranch",
                                        "Cpus_allowed", "Mems_allowed", "SigBlk", "x86_Thread_features"};
    for (unsigned i = 0; i < COUNT_OF(words); i++)
        add_line(all, words[i], "/proc/thread-self/status", words[i]);
    char name[17] = "";
    prctl(PR_GET_NAME, name, 0, 0, 0);
    add(all, "name", "%s", name);
    add_prctl(all, "keepcaps", PR_GET_KEEPCAPS);
    add_prctl(all, "securebits", PR_GET_SECUREBITS);
    add_prctl(all, "timer slack", PR_GET_TIMERSLACK);
    add_pointed(all, "parent's death", PR_GET_PDEATHSIG);
    add_pointed(all, "time stamp counter", PR_GET_TSC);
    add_prctl(all, "machine checks", PR_MCE_KILL_GET);
    add_prctl(all, "io flusher", PR_GET_IO_FLUSHER);
    add(all, "nice", "%d", getpriority(PRIO_PROCESS, 0));
    add(all, "io priority", "%ld", syscall(SYS_ioprio_get, 1, 0));
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
        uint32_t low, high;
    } attributes = {.size = sizeof attributes};
    long result = syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0);
    add(all, "scheduling", "%ld %u %lu %d %u", result, attributes.policy, (unsigned long)attributes.flags,
        attributes.nice, attributes.priority);
    int mode = -1;
    unsigned long nodes = 0;
    result = syscall(SYS_get_mempolicy, &mode, &nodes, 64, 0, 0);
    add(all, "memory policy", "%ld %d %lu", result, mode, nodes);
    stack_t stack;
    sigaltstack(0, &stack);
    add(all, "alternate stack", "%p %#x %zu", stack.ss_sp, (unsigned)stack.ss_flags, stack.ss_size);
    void *head = 0;
    size_t size = 0;
    result = syscall(SYS_get_robust_list, 0, &head, &size);
    add(all, "robust list", "%ld %p %zu", result, head, size);
    add(all, "tid", "%d", (int)syscall(SYS_gettid));
    unsigned short control;
    __asm__ volatile("fnstcw %0" : "=m"(control));
    add(all, "x87 control", "%#x", control);
    add(all, "mxcsr", "%#x", _mm_getcsr());
    unsigned long base[2] = {0, 0};
    syscall(SYS_arch_prctl, 0x1003, &base[0]);
    syscall(SYS_arch_prctl, 0x1004, &base[1]);
    add(all, "fs, gs", "%lx %lx", base[0], base[1]);
    result = syscall(SYS_arch_prctl, 0x1011, 0);
    add(all, "cpuid", "%ld", result);
}

static void compare(const char *who, const struct facts *before, const struct facts *after)
{
    for (int i = 0; i < before->count; i++) {
        bool same = !strcmp(before->text[i], after->text[i]);
        say("%s, %s: %s", who, before->name[i], same ? "as it was" : "not as it was");
        if (!same && getenv("SHOW"))
            say("  before %s\n  after  %s", before->text[i], after->text[i]);
    }
}

static void limit(int which, rlim_t soft, rlim_t hard)
{
    struct rlimit now, wanted = {soft, hard};
    getrlimit(which, &now);
    if (now.rlim_max != RLIM_INFINITY && wanted.rlim_max > now.rlim_max)
        wanted.rlim_max = now.rlim_max;
    if (wanted.rlim_cur > wanted.rlim_max)
        wanted.rlim_cur = wanted.rlim_max;
    setrlimit(which, &wanted);
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd >= 0 && write(fd, text, strlen(text)) < 0)
        errno = 0;
    close(fd);
}

static void set_process(void)
{
    limit(RLIMIT_CPU, 1000, 2000);
    limit(RLIMIT_FSIZE, 1 << 30, 1 << 31);
    limit(RLIMIT_DATA, 1 << 30, 1UL << 31);
    limit(RLIMIT_STACK, 4 << 20, 16 << 20);
    limit(RLIMIT_CORE, 0, 4096);
    limit(RLIMIT_RSS, 1 << 28, 1 << 29);
    limit(RLIMIT_NPROC, 3000, 3001);
    limit(RLIMIT_NOFILE, 100, 200);
    limit(RLIMIT_MEMLOCK, 1 << 22, 1 << 23);
    limit(RLIMIT_AS, 1UL << 34, 1UL << 35);
    limit(RLIMIT_LOCKS, 10, 20);
    limit(RLIMIT_SIGPENDING, 100, 200);
    limit(RLIMIT_MSGQUEUE, 1 << 16, 1 << 17);
    limit(RLIMIT_NICE, 5, 10);
    limit(RLIMIT_RTPRIO, 0, 3);
    limit(RLIMIT_RTTIME, 100000, 200000);
    umask(0137);
    if (chdir("/usr/bin") < 0)
        say("no directory");
    personality(personality(0xffffffff) | ADDR_NO_RANDOMIZE);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0);
    write_file("/proc/self/oom_score_adj", "500");
    write_file("/proc/self/coredump_filter", "0x7f");
    write_file("/proc/self/comm", "an unusual name");
}

static char alternate[2][1 << 16];

static void set_thread(int which)
{
    prctl(PR_SET_NAME, which ? "another thread" : "the first", 0, 0, 0);
    prctl(PR_SET_TIMERSLACK, 123456 + which, 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, which ? SIGUSR1 : SIGUSR2, 0, 0, 0);
    prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    setpriority(PRIO_PROCESS, 0, which ? 7 : 3);
    syscall(SYS_ioprio_set, 1, 0, which ? 3 << 13 : 2 << 13 | 6);
    struct sched_param none = {0};
    sched_setscheduler(0, (which ? SCHED_IDLE : SCHED_BATCH) | SCHED_RESET_ON_FORK, &none);
    unsigned long nodes = 1;
    syscall(SYS_set_mempolicy, 2, &nodes, 64);
    stack_t stack = {.ss_sp = alternate[which], .ss_size = sizeof alternate[0], .ss_flags = which ? (int)(1U << 31) : 0};
    sigaltstack(&stack, 0);
    unsigned short control;
    __asm__ volatile("fnstcw %0" : "=m"(control));
    control |= which ? 0x800 : 0xc00; /* how x87 rounds */
    __asm__ volatile("fldcw %0" : : "m"(control));
    _mm_setcsr(_mm_getcsr() | 0x8040);
    syscall(SYS_arch_prctl, 0x1001, (unsigned long)alternate[which]);
    sigset_t some;
    sigemptyset(&some);
    sigaddset(&some, which ? SIGRTMIN + 3 : SIGURG);
    pthread_sigmask(SIG_BLOCK, &some, 0);
    if (which)
        return;
    prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED, 0, 0, 0);
    prctl(PR_CAPBSET_DROP, CAP_SYS_TIME, 0, 0, 0);
}

static pthread_barrier_t barrier;
static struct facts seen[4];

static void *other(void *unused)
{
    (void)unused;
    set_thread(1);
    ask_thread(&seen[2]);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    ask_thread(&seen[3]);
    return 0;
}

/* The same with memory that is locked when it comes, and code that is never written: they forbid what comes after. */
static void locked_and_strict(void)
{
    static struct facts before, after;
    prctl(PR_SET_MDWE, 1, 0, 0, 0);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    mlockall(MCL_FUTURE);
    ask_process(&before);
    ask_thread(&before);
    checkpoint_marker();
    ask_process(&after);
    ask_thread(&after);
    compare("strict", &before, &after);
}

int main(void)
{
    static struct facts before, after;
    set_process();
    set_thread(0);
    pthread_barrier_init(&barrier, 0, 2);
    pthread_t thread;
    pthread_create(&thread, 0, other, 0);
    pthread_barrier_wait(&barrier);
    ask_process(&before);
    ask_thread(&seen[0]);
    checkpoint_marker();
    ask_process(&after);
    ask_thread(&seen[1]);
    pthread_barrier_wait(&barrier);
    pthread_join(thread, 0);
    compare("process", &before, &after);
    compare("first thread", &seen[0], &seen[1]);
    compare("other thread", &seen[2], &seen[3]);
    fflush(0);
    pid_t child = fork();
    if (!child) {
        locked_and_strict();
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    say("child %s", status_text(status));
    return 0;
}
