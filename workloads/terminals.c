/* Whose a terminal is: sessions and foreground groups, by ioctl_tty(2), open(2) and setsid(2), with all errors. */
#include "terminals_common.h"

#include <pthread.h>
#include <sys/socket.h>

static const struct {
    unsigned long request;
    const char *name;
} requests[] = {
    {TIOCGPGRP, "TIOCGPGRP"}, {TIOCSPGRP, "TIOCSPGRP"}, {TIOCGSID, "TIOCGSID"},
    {TIOCSCTTY, "TIOCSCTTY"}, {TIOCNOTTY, "TIOCNOTTY"}, {TIOCSTI, "TIOCSTI"},
};

static void all_requests(int fd, const char *what)
{
    for (size_t i = 0; i < COUNT_OF(requests); i++) {
        int value = 'x';
        void *argument = requests[i].request == TIOCSCTTY || requests[i].request == TIOCNOTTY ? NULL : &value;
        say("%s on %s: %s", requests[i].name, what, outcome(ioctl(fd, requests[i].request, argument)));
    }
}

static void not_terminals(void)
{
    int ends[2], sockets[2];
    need(pipe(ends) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0, "pipe");
    all_requests(-1, "-1");
    all_requests(1000, "a closed descriptor");
    all_requests(open("/dev/null", O_RDWR), "/dev/null");
    all_requests(open("/proc/self/exe", O_RDONLY), "a file");
    all_requests(open("/", O_RDONLY | O_DIRECTORY), "a directory");
    all_requests(open("/dev/null", O_PATH), "a path");
    all_requests(ends[0], "a pipe");
    all_requests(sockets[0], "a socket");
}

static void nobody(struct pty pty)
{
    drop_admin();
    say("without a terminal /dev/tty is %s", dev_tty());
    say("foreground at the slave: %s", who(tcgetpgrp(pty.slave)));
    say("foreground at the master: %s", who(tcgetpgrp(pty.master)));
    say("session at the slave: %s", who(tcgetsid(pty.slave)));
    say("session at the master: %s", who(tcgetsid(pty.master)));
    say("tcsetpgrp at the slave: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
    say("tcsetpgrp at the master: %s", outcome(tcsetpgrp(pty.master, getpgrp())));
    say("a bad pointer comes first: %s", outcome(ioctl(pty.slave, TIOCSPGRP, (void *)8)));
    pid_t negative = -5;
    say("a negative group comes first: %s", outcome(ioctl(pty.slave, TIOCSPGRP, &negative)));
    say("giving up: %s, at the master %s", outcome(ioctl(pty.slave, TIOCNOTTY)), outcome(ioctl(pty.master, TIOCNOTTY)));
    say("foreground into a bad pointer: %s", outcome(ioctl(pty.master, TIOCGPGRP, (void *)8)));
}

static void nobodys(void)
{
    struct pty pty = pty_new();
    in_session(nobody, pty);
    pty_close(pty);
}

static void show(struct pty pty, const char *when)
{
    say("%s: foreground %s, session %s, at the master %s and %s, /dev/tty %s", when, who(tcgetpgrp(pty.slave)),
        who(tcgetsid(pty.slave)), who(tcgetpgrp(pty.master)), who(tcgetsid(pty.master)), dev_tty());
}

static void acquire(struct pty pty)
{
    drop_admin();
    pid_t child = fork_or_die();
    if (child == 0) {
        say("not the leader: %s", outcome(ioctl(pty.slave, TIOCSCTTY, 0)));
        _exit(0);
    }
    reap(child);
    int writing = open(pty.name, O_WRONLY | O_NOCTTY);
    say("open for writing only: %s", outcome(ioctl(writing, TIOCSCTTY, 0)));
    say("the leader: %s", outcome(ioctl(pty.slave, TIOCSCTTY, 0)));
    show(pty, "acquired");
    say("again: %s, by the one for writing: %s", outcome(ioctl(pty.slave, TIOCSCTTY, 0)),
        outcome(ioctl(writing, TIOCSCTTY, 0)));
    struct pty other = pty_new();
    say("a second one: %s", outcome(ioctl(other.slave, TIOCSCTTY, 0)));
    say("asked there: %s and %s, at the master %s", who(tcgetpgrp(other.slave)), who(tcgetsid(other.slave)),
        who(tcgetpgrp(other.master)));
    say("tcsetpgrp there: %s", outcome(tcsetpgrp(other.slave, getpgrp())));
    say("giving that up: %s", outcome(ioctl(other.slave, TIOCNOTTY)));
    child = fork_or_die();
    if (child == 0) {
        show(pty, "a child");
        say("a child acquires: %s", outcome(ioctl(pty.slave, TIOCSCTTY, 0)));
        setpgid(0, 0);
        say("a child's group: foreground %s", who(tcgetpgrp(pty.slave)));
        setpgid(0, getppid());
        setsid();
        _exit(0);
    }
    reap(child);
    child = fork_or_die();
    if (child == 0) {
        setsid();
        show(pty, "a child with a session of its own");
        say("it acquires: %s, with 1: %s", outcome(ioctl(pty.slave, TIOCSCTTY, 0)), outcome(ioctl(pty.slave, TIOCSCTTY, 1)));
        say("it sets the foreground: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
        say("it acquires the other one by its master: %s", outcome(ioctl(other.master, TIOCSCTTY, 0)));
        show(other, "the other one");
        _exit(0);
    }
    reap(child);
    show(pty, "at the end");
}

static void acquiring(void)
{
    struct pty pty = pty_new();
    in_session(acquire, pty);
    say("its leader has ended: foreground at the master %s, session %s", who(tcgetpgrp(pty.master)), who(tcgetsid(pty.master)));
    in_session(acquire, pty);
    pty_close(pty);
}

static void open_it(struct pty pty)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        open(pty.name, O_RDWR);
        say("opened by a member: /dev/tty %s", dev_tty());
        _exit(0);
    }
    reap(child);
    open(pty.name, O_WRONLY);
    say("opened for writing: /dev/tty %s", dev_tty());
    open(pty.name, O_RDWR | O_NOCTTY);
    say("opened with O_NOCTTY: /dev/tty %s", dev_tty());
    open(pty.name, O_RDONLY);
    say("asked at the master first: %s, session %s", who(tcgetpgrp(pty.master)), who(tcgetsid(pty.master)));
    show(pty, "opened");
    child = fork_or_die();
    if (child == 0) {
        setpgid(0, 0);
        say("a child's own group: foreground %s", who(tcgetpgrp(pty.slave)));
        signal(SIGTTOU, SIG_IGN);
        say("brings itself forward: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
        show(pty, "in front");
        _exit(0);
    }
    reap(child);
    show(pty, "after its end");
}

static void child_looks(struct pty pty)
{
    /* The child is the first to ask: the leader never did. */
    open(pty.name, O_RDWR);
    pid_t child = fork_or_die();
    if (child == 0) {
        show(pty, "the child");
        setpgid(0, 0);
        show(pty, "its own group");
        _exit(0);
    }
    reap(child);
}

static void by_peer(struct pty pty)
{
    int fd = ioctl(pty.master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    say("peer with O_NOCTTY: %s, /dev/tty %s", outcome(fd), dev_tty());
    fd = ioctl(pty.master, TIOCGPTPEER, O_RDWR);
    say("peer: %s, /dev/tty %s", outcome(fd), dev_tty());
    show(pty, "by the peer");
    say("it is a terminal: %s", yes(isatty(fd)));
}

static void watched_by_parent(void)
{
    /* The parent holds the master, and asks there what the child did. */
    struct pty pty = pty_new();
    struct gate opened = gate_new(), go = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        setsid();
        open(pty.name, O_RDWR);
        gate_open(opened);
        gate_wait(go);
        pid_t front = fork_or_die();
        if (front == 0) {
            setpgid(0, 0);
            for (;;)
                pause();
        }
        setpgid(front, front);
        say("in front: %s", outcome(tcsetpgrp(pty.slave, front)));
        gate_open(opened);
        gate_wait(go);
        kill(front, SIGKILL);
        reap(front);
        _exit(0);
    }
    gate_wait(opened);
    say("the parent sees the child's group: %s, its session: %s", yes(tcgetpgrp(pty.master) == child),
        yes(tcgetsid(pty.master) == child));
    gate_open(go);
    gate_wait(opened);
    pid_t front = tcgetpgrp(pty.master);
    say("and the other group: %s", yes(front > 0 && front != child && getpgid(front) == front));
    say("it may not set it: %s", outcome(tcsetpgrp(pty.master, child)));
    gate_open(go);
    reap(child);
    say("afterwards: %s, %s", who(tcgetpgrp(pty.master)), who(tcgetsid(pty.master)));
    pty_close(pty);
}

static void opening(void)
{
    void (*const ways[])(struct pty) = {open_it, child_looks, by_peer};
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        struct pty pty = pty_new();
        in_session(ways[i], pty);
        pty_close(pty);
    }
    watched_by_parent();
}

static void *own_id(void *into)
{
    *(pid_t *)into = (pid_t)syscall(SYS_gettid);
    for (;;)
        pause();
    return NULL;
}

static void errors_of_setting(struct pty pty)
{
    struct gate gate = gate_new(), other = gate_new();
    say("a bad pointer: %s", outcome(ioctl(pty.slave, TIOCSPGRP, (void *)8)));
    say("negative: %s", outcome(tcsetpgrp(pty.slave, -2)));
    say("0: %s", outcome(tcsetpgrp(pty.slave, 0)));
    say("no such group: %s", outcome(tcsetpgrp(pty.slave, 4194000)));
    say("own: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
    say("own, at the master: %s", outcome(tcsetpgrp(pty.master, getpgrp())));
    pid_t child = fork_or_die();
    if (child == 0) {
        setsid();
        gate_open(gate);
        gate_wait(other);
        _exit(0);
    }
    gate_wait(gate);
    say("of another session: %s", outcome(tcsetpgrp(pty.slave, child)));
    gate_open(other);
    siginfo_t info;
    waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
    say("a zombie of another session: %s", outcome(tcsetpgrp(pty.slave, child)));
    reap(child);
    say("once it is reaped: %s", outcome(tcsetpgrp(pty.slave, child)));
    child = fork_or_die();
    if (child == 0)
        for (;;)
            pause();
    signal(SIGTTOU, SIG_IGN);
    say("a process that leads no group: %s", outcome(tcsetpgrp(pty.slave, child)));
    say("it is in front: %s", yes(tcgetpgrp(pty.slave) == child));
    say("back again: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
    kill(child, SIGKILL);
    waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
    say("its zombie: %s", outcome(tcsetpgrp(pty.slave, child)));
    reap(child);
    say("back again: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
    pid_t leader = fork_or_die();
    if (leader == 0) {
        setpgid(0, 0);
        if (fork_or_die() == 0) {
            gate_open(gate);
            gate_wait(other);
            _exit(0);
        }
        gate_wait(gate);
        _exit(0);
    }
    reap(leader);
    say("a group whose leader is gone: %s", outcome(tcsetpgrp(pty.slave, leader)));
    say("it is in front: %s", yes(tcgetpgrp(pty.slave) == leader));
    say("back again: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
    gate_open(other);
    static volatile pid_t thread;
    pthread_t id;
    pthread_create(&id, NULL, own_id, (void *)&thread);
    while (!thread)
        sleep_ms(1);
    say("a thread: %s", outcome(tcsetpgrp(pty.slave, thread)));
    say("back again: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
    int tty = open("/dev/tty", O_RDWR);
    say("by /dev/tty: %s, foreground %s, session %s", outcome(tcsetpgrp(tty, getpgrp())), who(tcgetpgrp(tty)), who(tcgetsid(tty)));
    say("a bad pointer for the answer: %s, %s", outcome(ioctl(tty, TIOCGPGRP, (void *)8)), outcome(ioctl(tty, TIOCGSID, (void *)8)));
}

static struct pty of_threads;

static void *asks_after_leader(void *unused)
{
    char text[64], line[256] = "";
    snprintf(text, sizeof text, "/proc/self/task/%d/stat", (int)getpid());
    do { /* until the leader is a zombie */
        int fd = open(text, O_RDONLY | O_CLOEXEC);
        need(fd >= 0 && read(fd, line, sizeof line - 1) > 0, "stat");
        close(fd);
    } while (strstr(line, ") Z ") == NULL);
    say("foreground: %s", who(tcgetpgrp(of_threads.slave)));
    say("set: %s", outcome(tcsetpgrp(of_threads.slave, getpgrp())));
    _exit(0);
    return unused;
}

static void leader_ends_first(struct pty pty)
{
    pthread_t thread;
    of_threads = pty;
    pthread_create(&thread, NULL, asks_after_leader, NULL);
    pthread_exit(NULL);
}

static void setting(void)
{
    on_terminal(errors_of_setting);
    say("the first thread has ended");
    on_terminal(leader_ends_first);
}

static void give_up(struct pty pty)
{
    struct gate told = gate_new(), go = gate_new();
    sigset_t both, old;
    sigemptyset(&both);
    sigaddset(&both, SIGHUP);
    sigaddset(&both, SIGCONT);
    pid_t member = fork_or_die();
    if (member == 0) {
        say("a member gives it up: %s", outcome(ioctl(pty.slave, TIOCNOTTY)));
        say("it has none: %s, /dev/tty %s", who(tcgetpgrp(pty.slave)), dev_tty());
        say("twice: %s", outcome(ioctl(pty.slave, TIOCNOTTY)));
        _exit(0);
    }
    reap(member);
    show(pty, "the leader has it still");
    sigprocmask(SIG_BLOCK, &both, &old);
    member = fork_or_die();
    if (member == 0) {
        setpgid(0, 0);
        gate_open(told);
        catch(SIGHUP, 0);
        catch(SIGCONT, 0);
        while (!came[SIGHUP] || !came[SIGCONT])
            sigsuspend(&old);
        say("the foreground group: SIGHUP %d, SIGCONT %d", came[SIGHUP], came[SIGCONT]);
        say("it has none either: %s, /dev/tty %s", who(tcgetpgrp(pty.slave)), dev_tty());
        gate_open(told);
        gate_wait(go);
        show(pty, "it has none when the leader has one again");
        _exit(0);
    }
    gate_wait(told);
    signal(SIGTTOU, SIG_IGN);
    need(tcsetpgrp(pty.slave, member) == 0, "tcsetpgrp");
    say("at the master: %s", outcome(ioctl(pty.master, TIOCNOTTY)));
    const char *given = outcome(ioctl(pty.slave, TIOCNOTTY));
    gate_wait(told);
    say("the leader gives it up: %s", given);
    sigset_t pending;
    sigpending(&pending);
    say("the leader: SIGHUP %d, SIGCONT %d", sigismember(&pending, SIGHUP), sigismember(&pending, SIGCONT));
    say("it has none: %s, at the master %s", who(tcgetpgrp(pty.slave)), who(tcgetpgrp(pty.master)));
    say("takes it again: %s", outcome(ioctl(pty.slave, TIOCSCTTY, 0)));
    show(pty, "again");
    gate_open(go);
    reap(member);
}

static void giving_up(void)
{
    on_terminal(give_up);
}

/* Pseudo-terminals one after the other have one number. */
static void reuse(struct pty first)
{
    char name[64];
    struct gate shown = gate_new();
    strcpy(name, first.name);
    for (int round = 0; round < 3; round++) {
        struct pty pty = pty_new();
        say("round %d: the same name: %s", round, yes(strcmp(pty.name, name) == 0 || round == 0));
        strcpy(name, pty.name);
        pid_t child = fork_or_die();
        if (child == 0) {
            setsid();
            close(pty.master);
            if (round == 1)
                ioctl(pty.slave, TIOCSCTTY, 0);
            else
                open(pty.name, O_RDWR);
            pid_t front = fork_or_die();
            if (front == 0) {
                setpgid(0, 0);
                signal(SIGTTOU, SIG_IGN);
                say("another group: foreground %s", who(tcgetpgrp(pty.slave)));
                say("in front: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
                _exit(0);
            }
            reap(front);
            say("foreground: %s", who(tcgetpgrp(pty.slave)));
            if (round != 2)
                _exit(0);
            gate_open(shown);
            for (;;)
                pause(); /* hung up by its master's end */
        }
        if (round == 2)
            gate_wait(shown);
        else
            reap(child);
        pty_close(pty);
        if (round == 2)
            say("its leader: %s", status_text(reap(child)));
    }
}

static void numbers(void)
{
    struct pty pty = pty_new();
    in_session(reuse, pty);
    pty_close(pty);
}

/* One leader, whose terminals are hung up and taken one after the other, with the hangup heard, ignored or blocked. */
static void takes_many(struct pty unused)
{
    (void)unused;
    sigset_t hangup;
    sigemptyset(&hangup);
    sigaddset(&hangup, SIGHUP);
    signal(SIGTTOU, SIG_IGN);
    struct gate shown = gate_new();
    for (int round = 0; round < 6; round++) {
        if (round < 2)
            catch(SIGHUP, 0);
        else
            signal(SIGHUP, SIG_IGN);
        if (round > 3)
            sigprocmask(SIG_BLOCK, &hangup, NULL);
        struct pty pty = pty_new();
        if (round % 2)
            say("round %d acquires: %s", round, outcome(ioctl(pty.slave, TIOCSCTTY, 0)));
        else
            open(pty.name, O_RDWR);
        show(pty, "before");
        pid_t child = fork_or_die();
        if (child == 0) {
            setpgid(0, 0);
            tcsetpgrp(pty.slave, getpgrp());
            show(pty, "another group");
            gate_open(shown);
            for (;;)
                pause();
        }
        gate_wait(shown);
        kill(child, SIGKILL);
        reap(child);
        say("back: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
        close(pty.master);
        say("hung up: foreground %s, session %s, set %s", who(tcgetpgrp(pty.slave)), who(tcgetsid(pty.slave)),
            outcome(tcsetpgrp(pty.slave, getpgrp())));
        say("acquire %s, give up %s, /dev/tty %s", outcome(ioctl(pty.slave, TIOCSCTTY, 0)),
            outcome(ioctl(pty.slave, TIOCNOTTY)), dev_tty());
        close(pty.slave);
    }
    say("SIGHUP: %s", yes(came[SIGHUP] == 2));
}

static void one_leader(void)
{
    struct pty pty = pty_new();
    in_session(takes_many, pty);
    pty_close(pty);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"not terminals", not_terminals}, {"nobody's", nobodys},   {"acquiring", acquiring},
        {"opening", opening},             {"setting", setting},    {"giving up", giving_up},
        {"numbers", numbers},             {"one leader", one_leader},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
