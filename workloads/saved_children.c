/* Checkpoints in the midst of a family's life: between fork and exec, with a vfork's parent held, with zombies, stopped
 * children, orphans, sessions and groups. */
#include "saved_common.h"

#include <grp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static struct gate ready, go;

static void executes(void)
{
    execl("/bin/sh", "sh", "-c", "exit 14", (char *)NULL);
    _exit(127);
}

/* -- births */
static void before_exec(void)
{
    struct gate closes = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        setpgid(0, 0);
        block(SIG_SETMASK, SIGUSR1, 0);
        checkpoint_marker();
        executes();
    }
    close(closes.ends[1]);
    char byte;
    say("its descriptor was closed by exec: %ld", (long)read(closes.ends[0], &byte, 1));
    say("between fork and exec: %s", status_text(reap(child)));
    close(closes.ends[0]);
}

static volatile int written;

static void vforks(void)
{
    for (volatile int way = 0; way < 3; way++) {
        written = 0;
        pid_t child = vfork();
        if (child == 0) {
            written = 1;
            checkpoint_marker();
            written++;
            if (way == 0)
                execl("/bin/sh", "sh", "-c", "exit 14", (char *)NULL);
            else if (way == 1)
                _exit(15);
            raise(SIGKILL);
        }
        say("vfork: its memory is ours: %d, %s", written, status_text(reap(child)));
    }
}

static int on_another_stack(void *argument)
{
    checkpoint_marker();
    ++*(int *)argument;
    return 16;
}

static void clones(void)
{
    const size_t size = 65536;
    char *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int value = 1;
    pid_t child = clone(on_another_stack, stack + size, CLONE_VM | CLONE_VFORK | SIGCHLD, &value);
    say("as posix_spawn does: %d, %s", value, status_text(reap(child)));
    signal(SIGUSR1, SIG_IGN);
    child = clone(on_another_stack, stack + size, SIGUSR1, &value);
    int status = 0;
    say("a child whose end is told by SIGUSR1: waitpid %s", outcome(waitpid(child, &status, WNOHANG)));
    say("  __WCLONE: %s", waitpid(child, &status, __WCLONE) == child ? status_text(status) : error_name(errno));
    signal(SIGUSR1, SIG_DFL);
    munmap(stack, size);
}

/* -- states */
static void show(const char *what, idtype_t type, id_t id, int options, pid_t expected)
{
    siginfo_t info;
    memset(&info, 0, sizeof info);
    int result = waitid(type, id, &info, options);
    say("  %s: %s, code %d, status %d, right pid %s", what, outcome(result), info.si_code, info.si_status,
        yes(info.si_pid == expected));
}

static int exits(void)
{
    return 40;
}

static int aborts(void)
{
    raise(SIGABRT);
    return 0;
}

static int stops(void)
{
    raise(SIGSTOP);
    return 41;
}

static int stays(void)
{
    for (;;)
        pause();
    return 0;
}

static void await_state(pid_t child, int options)
{
    siginfo_t info;
    waitid(P_PID, (id_t)child, &info, options | WNOWAIT);
}

static void states(void)
{
    pid_t exited = child_of(exits), aborted = child_of(aborts), stopped = child_of(stops), told = child_of(stops);
    pid_t continued = child_of(stays), runs = child_of(stays), killed_while_stopped = child_of(stops);
    int status;
    await_state(exited, WEXITED);
    await_state(aborted, WEXITED);
    await_state(stopped, WSTOPPED);
    waitpid(told, &status, WUNTRACED);
    kill(continued, SIGSTOP);
    waitpid(continued, &status, WUNTRACED);
    kill(continued, SIGCONT);
    await_state(continued, WCONTINUED);
    await_state(killed_while_stopped, WSTOPPED);
    kill(killed_while_stopped, SIGKILL);
    await_state(killed_while_stopped, WEXITED);
    checkpoint_marker();
    const int all = WEXITED | WSTOPPED | WCONTINUED | WNOHANG;
    show("exited", P_PID, (id_t)exited, all | WNOWAIT, exited);
    say("  a zombie can be signalled: %s", outcome(kill(exited, SIGTERM)));
    show("exited", P_PID, (id_t)exited, all, exited);
    show("gone", P_PID, (id_t)exited, all, 0);
    show("aborted", P_PID, (id_t)aborted, all, aborted);
    show("stopped", P_PID, (id_t)stopped, all, stopped);
    show("stopped, once", P_PID, (id_t)stopped, all, 0);
    show("stopped, and told", P_PID, (id_t)told, all, 0);
    show("continued", P_PID, (id_t)continued, all, continued);
    show("continued, once", P_PID, (id_t)continued, all, 0);
    show("runs", P_PID, (id_t)runs, all, 0);
    show("killed while stopped", P_PID, (id_t)killed_while_stopped, all, killed_while_stopped);
    kill(stopped, SIGCONT);
    kill(told, SIGCONT);
    say("  stopped, then on: %s, %s", status_text(reap(stopped)), status_text(reap(told)));
    kill(runs, SIGKILL);
    kill(continued, SIGTERM);
    say("  ended: %s, %s", status_text(reap(runs)), status_text(reap(continued)));
    show("none", P_ALL, 0, all, 0);
}

/* Their parent waits in one way or other while they make the marker call. */
static int marks(void)
{
    gate_wait(go);
    let_them_wait();
    checkpoint_marker();
    return 42;
}

static int marks_in_a_group(void)
{
    setpgid(0, 0);
    return marks();
}

static void waiting(void)
{
    int status = 0;
    go = gate_new();
    pid_t child = child_of(marks), other = child_of(stays);
    gate_open(go);
    say("wait4 of any: right %s", yes(waitpid(-1, &status, 0) == child));
    say("  %s", status_text(status));
    child = child_of(marks);
    gate_open(go);
    say("wait4 of one: right %s", yes(waitpid(child, &status, 0) == child));
    child = child_of(marks_in_a_group);
    setpgid(child, child);
    gate_open(go);
    say("of a group: right %s", yes(waitpid(-child, &status, 0) == child));
    child = child_of(marks);
    int fd = (int)syscall(SYS_pidfd_open, child, 0);
    gate_open(go);
    show("by a pidfd", P_PIDFD, (id_t)fd, WEXITED, child);
    close(fd);
    child = child_of(marks);
    fd = (int)syscall(SYS_pidfd_open, child, 0);
    gate_open(go);
    struct pollfd waiter = {fd, POLLIN, 0};
    say("a pidfd is ready: %d", poll(&waiter, 1, -1));
    say("  %s", status_text(reap(child)));
    close(fd);
    signal(SIGCHLD, SIG_IGN);
    child = child_of(marks);
    gate_open(go);
    say("SIGCHLD ignored: %s", outcome(waitpid(child, &status, 0)));
    signal(SIGCHLD, SIG_DFL);
    kill(other, SIGKILL);
    reap(other);
    gate_free(go);
}

/* -- groups, sessions, orphans */
static void await_parent(pid_t not_this)
{
    while (getppid() == not_this)
        sleep_ms(1);
}

static volatile sig_atomic_t hung_up, continued_by;

static void note(int signo)
{
    if (signo == SIGHUP)
        hung_up++;
    else
        continued_by++;
}

static void orphans(void)
{
    ready = gate_new();
    go = gate_new();
    struct gate done = gate_new(), stands = gate_new();
    pid_t self = getpid();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t leader = fork_or_die();
    if (leader == 0) {
        setsid();
        pid_t orphan = fork_or_die();
        if (orphan == 0) {
            setpgid(0, 0);
            install(SIGHUP, note, 0);
            install(SIGCONT, note, 0);
            prctl(PR_SET_PDEATHSIG, SIGURG);
            gate_open(ready);
            raise(SIGSTOP);
            await_parent(leader);
            while (!hung_up || !continued_by)
                sleep_ms(1);
            int signo = 0;
            prctl(PR_GET_PDEATHSIG, &signo);
            say("  orphan: its parent is the subreaper %s, HUP and CONT came %s", yes(getppid() == self),
                yes(hung_up == 1 && continued_by == 1));
            say("  its death signal %d", signo);
            checkpoint_marker();
            say("  it stays: session %s, group %s", yes(getsid(0) != getsid(self)), yes(getpgrp() == getpid()));
            signal(SIGTSTP, SIG_DFL);
            raise(SIGTSTP); /* of no effect in an orphaned group */
            say("  not stopped by SIGTSTP");
            gate_open(done);
            _exit(43);
        }
        setpgid(orphan, orphan);
        gate_wait(ready);
        await_state(orphan, WSTOPPED);
        gate_open(stands);
        gate_wait(go);
        _exit(44);
    }
    gate_wait(stands);
    checkpoint_marker();
    int reaper = 0;
    prctl(PR_GET_CHILD_SUBREAPER, &reaper);
    say("subreaper: %d, the leader's session: own %s, group %s", reaper, yes(getsid(leader) == leader),
        yes(getpgid(leader) == leader));
    gate_open(go);
    gate_wait(done);
    say("the leader: %s", status_text(reap(leader)));
    int status = 0;
    pid_t orphan = waitpid(-1, &status, 0);
    say("the orphan: reaped %s, %s", yes(orphan > 0), status_text(status));
    prctl(PR_SET_CHILD_SUBREAPER, 0);
    gate_free(ready), gate_free(go), gate_free(done), gate_free(stands);
}

static void death_signals(void)
{
    ready = gate_new();
    go = gate_new();
    struct gate said = gate_new();
    pid_t parent = fork_or_die();
    if (parent == 0) {
        pid_t child = fork_or_die();
        if (child == 0) {
            sigset_t set = set_of(SIGUSR2, 0);
            siginfo_t info = {0};
            block(SIG_BLOCK, SIGUSR2, 0);
            prctl(PR_SET_PDEATHSIG, SIGUSR2);
            gate_open(ready);
            int got = sigwaitinfo(&set, &info);
            say("  death signal: %s, code %d", yes(got == SIGUSR2), info.si_code);
            gate_open(said);
            _exit(0);
        }
        gate_wait(go);
        _exit(0);
    }
    gate_wait(ready);
    let_them_wait();
    checkpoint_marker();
    gate_open(go);
    reap(parent);
    gate_wait(said);
    gate_free(ready), gate_free(go), gate_free(said);
}

/* A group whose leader is a zombie, and one whose leader has gone, have their members still. */
static void groups(void)
{
    pid_t zombie = child_of(exits), gone = child_of(stays);
    int status = 0;
    setpgid(zombie, zombie); /* perhaps it has ended already: then it is not one of its own */
    setpgid(gone, gone);
    pid_t members[2];
    for (int i = 0; i < 2; i++) {
        members[i] = child_of(stays);
        setpgid(members[i], gone);
    }
    kill(gone, SIGKILL);
    await_state(gone, WEXITED);
    await_state(zombie, WEXITED);
    checkpoint_marker();
    bool both = getpgid(members[0]) == gone && getpgid(members[1]) == gone;
    say("the leader is a zombie: members are in its group %s", yes(both));
    reap(gone);
    reap(zombie);
    checkpoint_marker();
    say("the leader has gone: they are still %s", yes(getpgid(members[0]) == gone && getpgid(members[1]) == gone));
    say("a new process is not given its id: %s", yes(getpgid(child_of(exits)) != gone));
    wait(&status);
    say("the group is signalled: %s", outcome(kill(-gone, SIGTERM)));
    for (int i = 0; i < 2; i++) {
        pid_t ended = waitpid(-gone, &status, 0);
        say("  a member %s: %s", yes(ended == members[0] || ended == members[1]), status_text(status));
    }
    say("nobody is left in it: %s", outcome(kill(-gone, 0)));
}

/* -- what a process has set for itself */
#define NO_SETUID_FIXUP 4
#define NO_AMBIENT_RAISE 0x40

static int sets_bits(void)
{
    long set = prctl(PR_SET_SECUREBITS, NO_SETUID_FIXUP | NO_AMBIENT_RAISE, 0, 0, 0);
    bool may = set == 0 || getuid() != 0;
    int before = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
    checkpoint_marker();
    say("  securebits: set %s, kept %s", yes(may), yes(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) == before));
    return 46;
}

static int sets_all(void)
{
    struct rlimit files = {100, 200}, found, stack = {1 << 20, RLIM_INFINITY};
    char name[17] = "", place[64] = "";
    prctl(PR_SET_NAME, "set-all");
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_KEEPCAPS, 1);
    prctl(PR_SET_DUMPABLE, 0);
    setrlimit(RLIMIT_NOFILE, &files);
    setrlimit(RLIMIT_STACK, &stack);
    umask(027);
    errno = 0;
    int nice_value = nice(7), before = nice_value;
    bool moved = chdir("/usr") == 0;
    if (getuid() == 0) {
        gid_t others[] = {1234, 1235};
        moved &= setgroups(2, others) == 0 && setresgid(1001, 1002, 1003) == 0 && setresuid(1001, 1002, 1003) == 0;
    }
    checkpoint_marker();
    uid_t uids[3];
    gid_t gids[3], groups[8];
    getresuid(&uids[0], &uids[1], &uids[2]);
    getresgid(&gids[0], &gids[1], &gids[2]);
    prctl(PR_GET_NAME, name);
    say("  name %s, no new privileges %d, keep %d, dumpable %d", name, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
        prctl(PR_GET_KEEPCAPS), prctl(PR_GET_DUMPABLE));
    getrlimit(RLIMIT_NOFILE, &found);
    say("  files %d %d, umask %03o, nice %s", (int)found.rlim_cur, (int)found.rlim_max, umask(0),
        yes(getpriority(PRIO_PROCESS, 0) == before));
    say("  directory %s, moved %s", getcwd(place, sizeof place), yes(moved));
    if (moved && uids[1] == 1002)
        say("  users %d %d %d, groups %d %d %d and %d more", uids[0], uids[1], uids[2], gids[0], gids[1], gids[2],
            getgroups(8, groups));
    return 45;
}

static void settings(void)
{
    say("%s", status_text(reap(child_of(sets_all))));
    say("%s", status_text(reap(child_of(sets_bits))));
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"exec", before_exec}, {"vfork", vforks}, {"clone", clones}, {"states", states}, {"waiting", waiting},
        {"orphans", orphans}, {"death", death_signals}, {"groups", groups}, {"settings", settings},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
