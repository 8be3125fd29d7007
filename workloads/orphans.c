/* Process groups that become orphaned, and the ids of groups and sessions with all their errors (setpgid(2),
 * setsid(2), getsid(2); POSIX "orphaned process group"; Linux kill_orphaned_pgrp). */
#include "common.h"

#include <pthread.h>
#include <sys/prctl.h>

static volatile sig_atomic_t hangups, continues;
static struct gate report;

static void on_hangup(int signo)
{
    (void)signo;
    hangups++;
}

static void on_continue(int signo)
{
    (void)signo;
    continues++;
}

/* The member of a group, stopped or not, whose leader ends: it tells what came, in this order. */
static void member(bool stopped)
{
    sigset_t both, none;
    sigemptyset(&none);
    sigemptyset(&both);
    sigaddset(&both, SIGHUP);
    sigaddset(&both, SIGCONT);
    sigprocmask(SIG_BLOCK, &both, NULL);
    signal(SIGHUP, on_hangup);
    signal(SIGCONT, on_continue);
    if (stopped) {
        raise(SIGSTOP);
        while (hangups == 0 || continues == 0)
            sigsuspend(&none);
    } else {
        sleep_ms(30);
        sigprocmask(SIG_SETMASK, &none, NULL);
    }
    say("  member: hangups %d, continues %d, its group is its leader's: %s", hangups, continues, yes(getpgrp() != getpid()));
    gate_open(report);
    _exit(0);
}

static void orphaned(bool stopped)
{
    report = gate_new();
    pid_t session = fork_or_die();
    if (session == 0) {
        setsid();
        pid_t leader = fork_or_die();
        if (leader == 0) {
            setpgid(0, 0);
            pid_t other = fork_or_die();
            if (other == 0)
                member(stopped);
            int status;
            if (stopped)
                waitpid(other, &status, WUNTRACED);
            _exit(0);
        }
        _exit(reap(leader));
    }
    /* The leader's parent is of the same session: with it gone, or the leader, the group has no way back. */
    int status = reap(session);
    gate_wait(report);
    say("%s member: leader %s", stopped ? "stopped" : "running", status_text(status));
    gate_free(report);
}

static void orphaned_groups(void)
{
    orphaned(true);
    orphaned(false);
}

/* A group whose leader goes, but that still has a member with a parent in another group of the session. */
static void not_orphaned(void)
{
    struct gate go = gate_new();
    pid_t session = fork_or_die();
    if (session == 0) {
        setsid();
        pid_t leader = fork_or_die();
        if (leader == 0) {
            setpgid(0, 0);
            gate_wait(go);
            _exit(0);
        }
        setpgid(leader, leader);
        pid_t child = fork_or_die();
        if (child == 0) {
            setpgid(0, leader);
            signal(SIGHUP, on_hangup);
            raise(SIGSTOP);
            _exit(hangups);
        }
        int status;
        waitpid(child, &status, WUNTRACED);
        gate_open(go);
        int first = reap(leader);
        sleep_ms(30);
        int still = waitpid(child, &status, WNOHANG | WUNTRACED | WCONTINUED);
        kill(child, SIGCONT);
        _exit(first != 0 || still != 0 || reap(child) != 0);
    }
    say("a member with a parent in the session stays stopped: %s", status_text(reap(session)));
    gate_free(go);
}

static void *set_group(void *argument)
{
    *(int *)argument = setpgid(0, 0) < 0 ? errno : 0;
    return NULL;
}

static void ids(void)
{
    struct gate go = gate_new();
    pid_t self = getpid(), child = fork_or_die();
    if (child == 0) {
        gate_wait(go);
        char *const nothing[] = {"true", NULL};
        execv("/bin/true", nothing);
        _exit(99);
    }
    say("child into a group of its own: %s", outcome(setpgid(child, 0)));
    say("it has it: %s", yes(getpgid(child) == child));
    say("and back: %s", outcome(setpgid(child, getpgrp())));
    say("into a group that is none: %s", outcome(setpgid(child, self + 100000)));
    say("a stranger: %s, negative: %s", outcome(setpgid(1000000, 0)), outcome(setpgid(child, -5)));
    say("getpgid of a stranger: %s, getsid: %s", outcome(getpgid(1000000)), outcome(getsid(1000000)));
    say("session of a child: %s", yes(getsid(child) == getsid(0)));
    gate_open(go);
    say("child %s", status_text(reap(child)));
    say("reaped: setpgid %s, getpgid %s", outcome(setpgid(child, 0)), outcome(getpgid(child)));

    child = fork_or_die();
    if (child == 0) {
        pid_t sid = setsid();
        int again = setsid() < 0 ? errno : 0, leads = setpgid(0, 0) < 0 ? errno : 0;
        say("  new session: %s, again: %s", yes(sid == getpid() && getsid(0) == sid && getpgrp() == sid), strerrorname_np(again));
        say("  setpgid of a session's leader: %s", strerrorname_np(leads));
        pid_t inside = fork_or_die();
        if (inside == 0) {
            setpgid(0, 0);
            _exit(getsid(0) == sid && getpgrp() == getpid() ? 0 : 1);
        }
        say("  a group in it: %s", status_text(reap(inside)));
        _exit(0);
    }
    say("session %s", status_text(reap(child)));
    child = fork_or_die();
    if (child == 0) {
        setsid();
        gate_wait(go);
        _exit(0);
    }
    sleep_ms(20);
    say("a child in another session: %s", outcome(setpgid(child, getpgrp())));
    say("into its group: %s", outcome(setpgid(0, child)));
    gate_open(go);
    reap(child);

    child = fork_or_die();
    if (child == 0) {
        pthread_t thread;
        int error = -1;
        pthread_create(&thread, NULL, set_group, &error);
        pthread_join(thread, NULL);
        say("  by a thread: %s, for all: %s", error ? strerrorname_np(error) : "ok", yes(getpgrp() == getpid()));
        _exit(0);
    }
    reap(child);
    gate_free(go);
}

/* A process group whose leader has been reaped keeps its id, and nobody gets it. */
static void without_leader(void)
{
    struct gate go = gate_new();
    pid_t leader = fork_or_die();
    if (leader == 0) {
        gate_wait(go);
        _exit(0);
    }
    setpgid(leader, leader);
    pid_t child = fork_or_die();
    if (child == 0) {
        setpgid(0, leader);
        sleep_ms(100000);
        _exit(0);
    }
    setpgid(child, leader);
    gate_open(go);
    reap(leader);
    say("its id: %s, kill of the group: %s", yes(getpgid(child) == leader), outcome(kill(-leader, SIGTERM)));
    int status;
    say("wait by group: %s", yes(waitpid(-leader, &status, 0) == child && WTERMSIG(status) == SIGTERM));
    say("then: %s, %s", outcome(kill(-leader, 0)), outcome(waitpid(-leader, &status, WNOHANG)));
    gate_free(go);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"orphaned", orphaned_groups}, {"not-orphaned", not_orphaned}, {"ids", ids}, {"leaderless", without_leader},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
