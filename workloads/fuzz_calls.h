/* What fuzz_calls.c draws from: the owned calls, and arguments of each kind, most of them nearly right. */
#ifndef FUZZ_CALLS_H
#define FUZZ_CALLS_H

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>

enum kind {
    NONE, PID, SIG, CLOCK, TIMER, FLAGS, OPTIONS, IDTYPE, WHICH, SETSIZE, HOW, FD, SCOPE, NUMBER, PRCTL, SECONDS,
    OUT,     /* where something is written */
    IN,      /* any structure */
    TIME,    /* a timespec that is soon over, or wrong */
    ITIMER,  /* an itimerspec or itimerval: far away, off, or wrong */
    SET,     /* a sigset_t */
    SETARG,  /* pselect6's pair */
    ACTION,  /* struct kernel_sigaction */
    EVENT,   /* struct sigevent */
    INFO,    /* siginfo_t */
    TIMERID, /* where timer_create writes, and a timer's number */
};

struct call {
    const char *name;
    long nr;
    enum kind kinds[6];
    int chaos;      /* 1: only in chaos: it blocks, or its effect comes at some later time */
    int exact;      /* 1: its positive results are compared too */
};

static const struct call calls[] = {
    {"rt_sigaction", SYS_rt_sigaction, {SIG, ACTION, OUT, SETSIZE}, 0, 1},
    {"rt_sigprocmask", SYS_rt_sigprocmask, {HOW, SET, OUT, SETSIZE}, 0, 1},
    {"rt_sigpending", SYS_rt_sigpending, {OUT, SETSIZE}, 0, 1},
    {"rt_sigtimedwait", SYS_rt_sigtimedwait, {SET, OUT, TIME, SETSIZE}, 0, 1},
    {"rt_sigqueueinfo", SYS_rt_sigqueueinfo, {PID, SIG, INFO}, 0, 1},
    {"rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo, {PID, PID, SIG, INFO}, 0, 1},
    {"kill", SYS_kill, {PID, SIG}, 0, 1},
    {"tkill", SYS_tkill, {PID, SIG}, 0, 1},
    {"tgkill", SYS_tgkill, {PID, PID, SIG}, 0, 1},
    {"pidfd_send_signal", SYS_pidfd_send_signal, {FD, SIG, INFO, SCOPE}, 0, 1},
    {"nanosleep", SYS_nanosleep, {TIME, OUT}, 0, 1},
    {"clock_nanosleep", SYS_clock_nanosleep, {CLOCK, FLAGS, TIME, OUT}, 0, 1},
    {"clock_gettime", SYS_clock_gettime, {CLOCK, OUT}, 0, 1},
    {"clock_getres", SYS_clock_getres, {CLOCK, OUT}, 0, 1},
    {"clock_settime", SYS_clock_settime, {CLOCK, TIME}, 0, 1},
    {"gettimeofday", SYS_gettimeofday, {OUT, OUT}, 0, 1},
    {"settimeofday", SYS_settimeofday, {TIME, IN}, 0, 1},
    {"time", SYS_time, {OUT}, 0, 0},
    {"getitimer", SYS_getitimer, {WHICH, OUT}, 0, 1},
    {"setitimer", SYS_setitimer, {WHICH, ITIMER, OUT}, 0, 1},
    {"alarm", SYS_alarm, {SECONDS}, 0, 0},
    {"timer_create", SYS_timer_create, {CLOCK, EVENT, TIMERID}, 0, 1},
    {"timer_settime", SYS_timer_settime, {TIMER, NONE, ITIMER, OUT}, 0, 1},
    {"timer_gettime", SYS_timer_gettime, {TIMER, OUT}, 0, 1},
    {"timer_getoverrun", SYS_timer_getoverrun, {TIMER}, 0, 1},
    {"timer_delete", SYS_timer_delete, {TIMER}, 0, 1},
    {"timerfd_settime", SYS_timerfd_settime, {FD, FLAGS, ITIMER, OUT}, 0, 1},
    {"timerfd_gettime", SYS_timerfd_gettime, {FD, OUT}, 0, 1},
    {"wait4", SYS_wait4, {PID, OUT, OPTIONS, OUT}, 0, 1},
    {"waitid", SYS_waitid, {IDTYPE, PID, OUT, OPTIONS, OUT}, 0, 1},
    {"setpgid", SYS_setpgid, {PID, PID}, 0, 1},
    {"getpgid", SYS_getpgid, {PID}, 0, 1},
    {"getsid", SYS_getsid, {PID}, 0, 1},
    {"getpgrp", SYS_getpgrp, {NONE}, 0, 1},
    {"setsid", SYS_setsid, {NONE}, 0, 1},
    {"prctl", SYS_prctl, {PRCTL, SIG, NONE}, 0, 1},
    {"ppoll", SYS_ppoll, {NONE, NONE, TIME, SET, SETSIZE}, 0, 1},
    {"pselect6", SYS_pselect6, {NONE, NONE, NONE, NONE, TIME, SETARG}, 0, 1},
    {"epoll_pwait", SYS_epoll_pwait, {FD, OUT, NUMBER, NONE, SET, SETSIZE}, 0, 1},
    {"pause", SYS_pause, {NONE}, 1, 0},
    {"rt_sigsuspend", SYS_rt_sigsuspend, {SET, SETSIZE}, 1, 0},
    {"rt_sigreturn", SYS_rt_sigreturn, {NONE}, 1, 0},
    {"clone3", SYS_clone3, {IN, NUMBER}, 1, 0},
    {"vfork", SYS_vfork, {NONE}, 1, 0},
    {"adjtimex", SYS_adjtimex, {IN}, 1, 0},
    {"clock_adjtime", SYS_clock_adjtime, {CLOCK, IN}, 1, 0},
};

#define PAGE 4096UL
#define ARENA ((char *)0x500000000000UL)

static uint64_t random_state = 1;
static bool chaos;
static pid_t live_child, zombie_child, shield; /* `shield`: a process that must not be signalled */

static uint64_t chance(void) /* xorshift64* */
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1DULL;
}

/* A start that neighbouring seeds do not share. */
static uint64_t mixed(uint64_t seed)
{
    random_state = seed * 0x9E3779B97F4A7C15ULL | 1;
    chance();
    return chance() | 1;
}

static unsigned below(unsigned limit)
{
    return (unsigned)((chance() >> 33) % limit);
}

#define ONE_OF(...)                                                                                                 \
    ({                                                                                                              \
        const int64_t one_of[] = {__VA_ARGS__};                                                                     \
        one_of[below(COUNT_OF(one_of))];                                                                            \
    })

/* none, two writable, one read-only, none, one writable with nothing behind it */
static void make_arena(void)
{
    if (mmap(ARENA, 6 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != ARENA)
        _exit(94);
    mprotect(ARENA + PAGE, 2 * PAGE, PROT_READ | PROT_WRITE);
    mprotect(ARENA + 3 * PAGE, PAGE, PROT_READ);
    mprotect(ARENA + 5 * PAGE, PAGE, PROT_READ | PROT_WRITE);
}

__asm__("fuzz_restorer: mov $15, %eax\n syscall\n");
extern void fuzz_restorer(void);

static void nothing(int signo)
{
    (void)signo;
}

static int64_t draw_signal(void)
{
    int64_t signo = below(10) ? 1 + below(64) : ONE_OF(0, 65, 66, -1, 1000, INT32_MIN, INT32_MAX, 0x100000009);
    /* The end and the stop of another process come at some time later. */
    return !chaos && ((int)signo == SIGKILL || (int)signo == SIGSTOP) ? 0 : signo;
}

static int64_t draw_pid(void)
{
    pid_t self = getpid();
    int64_t pid = ONE_OF(0, self, self, self, self, -self, live_child, live_child, zombie_child, zombie_child,
                         INT32_MAX, 0x3fffffff, INT32_MIN, -INT32_MAX, self | 0x700000000);
    if (chaos && !below(3))
        pid = ONE_OF(-1, 1, self + 1, self - 1, self + 2, 3 + below(60), -(int64_t)(3 + below(60)));
    if (shield && ((int)pid == -1 || (int)pid == 1 || (int)pid == shield || (int)pid == -shield))
        return self;
    return pid;
}

static int64_t draw_number(enum kind kind)
{
    switch (kind) {
    case PID: return draw_pid();
    case SIG: return draw_signal();
    case CLOCK:
        return below(4) ? (int64_t)below(13) : ONE_OF(-1, -2, -6, 100, INT32_MIN, INT32_MAX, ~(int64_t)getpid() * 8 + 2,
                                                      ~(int64_t)0x3fffffff * 8 + 2, ~(int64_t)getpid() * 8 + 6);
    case TIMER: return ONE_OF(0, 0, 0, 1, 1, 2, -1, INT32_MAX, INT32_MIN, 0x100000000);
    case FLAGS: return ONE_OF(0, 0, 0, 0, 1, 2, 4, -1, 0x100000000);
    case OPTIONS: {
        int64_t options = ONE_OF(WEXITED, WEXITED, WEXITED | WNOWAIT, WSTOPPED, WCONTINUED, 0, -1, 0x40000000,
                                 (int64_t)0x80000000 | WEXITED, 0x100, __WNOTHREAD | WEXITED);
        return chaos && below(2) ? options & ~WNOHANG : options | WNOHANG;
    }
    case IDTYPE: return ONE_OF(P_ALL, P_PID, P_PID, P_PGID, 3, 4, -1, 0x100000001);
    case WHICH: return ONE_OF(0, 0, 1, 2, 3, -1, INT32_MIN);
    case SETSIZE: return below(6) ? 8 : ONE_OF(0, 4, 7, 9, 16, 128, -1, INT64_MIN);
    case HOW: return below(5) ? below(3) : ONE_OF(3, -1, INT32_MAX);
    case FD: return ONE_OF(10, 10, 11, 11, 12, 13, 14, 14, 15, 15, -1, 99, INT32_MIN, 0x10000000a);
    case SCOPE: return ONE_OF(0, 0, 0, 0, 0, 8, -1); /* what 1, 2 and 4 mean depends on the kernel */
    case PRCTL: return ONE_OF(PR_SET_PDEATHSIG, PR_SET_PDEATHSIG, PR_GET_PDEATHSIG);
    case SECONDS: return ONE_OF(0, 100000, 0xffffffff, -1);
    case NUMBER: return ONE_OF(0, 1, 1, 2, 64, 88, 104, 4096, 5000, -1, INT32_MAX, INT32_MIN);
    default: return 0;
    }
}

static int64_t seconds_and(int64_t *words, int64_t seconds, int64_t rest)
{
    words[0] = seconds;
    return words[1] = rest;
}

/* Up to 128 bytes of a structure's contents. */
static void draw_structure(enum kind kind, unsigned char *bytes)
{
    int64_t words[16];
    for (int i = 0; i < 16; i++)
        words[i] = below(3) ? 0 : ONE_OF(-1, 1, INT64_MIN, INT64_MAX, 1000000000, (int64_t)chance());
    switch (kind) {
    case TIME:
        switch (below(8)) {
        case 0: seconds_and(words, -1, 0); break;
        case 1: seconds_and(words, 0, 1000000000); break;
        case 2: seconds_and(words, 0, -1); break;
        case 3: seconds_and(words, INT64_MIN, 0); break;
        case 4: seconds_and(words, 0, 0); break;
        default: seconds_and(words, 0, 1 + below(200000));
        }
        if (chaos && !below(4))
            seconds_and(words, ONE_OF(1, 1000, INT64_MAX), below(1000000000));
        break;
    case ITIMER:
        for (int i = 0; i < 4; i += 2)
            switch (below(6)) {
            case 0: seconds_and(words + i, -1, 0); break;
            case 1: seconds_and(words + i, 0, 1000000000); break;
            case 2: seconds_and(words + i, 0, 0); break;
            case 3: seconds_and(words + i, INT64_MAX, 999999); break;
            default: seconds_and(words + i, 4000000000, 0);
            }
        if (chaos && below(2))
            seconds_and(words + 2, 0, below(2000000));
        break;
    case SET: words[0] = ONE_OF(0, -1, (int64_t)(chance() & chance()), 1 << below(31), (int64_t)1 << below(64)); break;
    case SETARG:
        words[0] = (int64_t)(ARENA + PAGE + 64);
        words[1] = draw_number(SETSIZE);
        break;
    case ACTION:
        words[0] = ONE_OF(0, 1, (int64_t)nothing, (int64_t)nothing, (int64_t)nothing);
        words[1] = ONE_OF(0, SA_RESTART, SA_SIGINFO, SA_NODEFER, (int64_t)SA_RESETHAND, SA_NOCLDWAIT, 0x800) | 0x04000000;
        words[2] = (int64_t)fuzz_restorer;
        words[3] = ONE_OF(0, 0, -1, (int64_t)chance());
        break;
    case EVENT:
        words[0] = (int64_t)chance();
        words[1] = ONE_OF(SIGALRM, SIGUSR1, SIGRTMIN, 64, 0, 65, -1) & 0xffffffff;
        words[1] |= ONE_OF(0, 0, 1, 2, 4, 5, -1) << 32;
        words[2] = ONE_OF(getpid(), live_child, -1, 0, 0x3fffffff);
        break;
    case INFO:
        words[0] = draw_signal() & 0xffffffff;
        words[1] = ONE_OF(-1, -1, -1, 0, -6, -2, 1, 0x80, INT32_MIN) & 0xffffffff;
        break;
    default: break;
    }
    memcpy(bytes, words, 128);
}

/* Most pointers lead to writable memory, with a structure of the right kind there. */
static char *draw_pointer(enum kind kind, unsigned turn)
{
    unsigned char bytes[128];
    char *place = ARENA + PAGE + 64 + 512 * turn;
    draw_structure(kind, bytes);
    memcpy(place, bytes, sizeof bytes);
    switch (below(24)) {
    case 0: return ARENA + 3 * PAGE + 16;
    case 1: return ARENA + 16;
    case 2: return ARENA + 3 * PAGE - (4 << below(4)); /* runs into the read-only page */
    case 3: return ARENA + 6 * PAGE - (4 << below(4)); /* runs into nothing */
    case 4: return memcpy(place + 1, bytes, sizeof bytes), place + 1;
    case 5: return (char *)ONE_OF((int64_t)0xffff800000000000, INT64_MIN, -1, 1, 0x1000);
    case 6:
    case 7: return kind == TIME && !chaos ? place : NULL; /* without a time it would wait for ever */
    default: return place;
    }
}

static void draw_arguments(const struct call *call, int64_t *arguments)
{
    for (unsigned i = 0; i < 6; i++) {
        enum kind kind = call->kinds[i];
        arguments[i] = kind >= OUT ? (int64_t)draw_pointer(kind, i) : kind == NONE ? 0 : draw_number(kind);
    }
    /* Whether these can wake a machine depends on the machine. */
    if (!chaos && call->kinds[0] == CLOCK && ((int)arguments[0] == 8 || (int)arguments[0] == 9))
        arguments[0] = 1;
    /* A clock of CPU time does not go on while its process sleeps. */
    if (!chaos && call->nr == SYS_clock_nanosleep && ((int)arguments[0] == 2 || arguments[0] < -2))
        arguments[0] = 3;
    if (!chaos && call->nr == SYS_waitid && (int)arguments[0] == 3)
        arguments[1] = draw_number(FD);
}

#endif
