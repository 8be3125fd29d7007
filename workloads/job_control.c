/* Job control on a terminal: who may read, write and change it, whom its keys and its end are told. */
#include "terminals_common.h"

#include <poll.h>
#include <pthread.h>

static struct pty pty;

/* A job: a process group of its own in the session of the terminal's leader, who is in front. */
static pid_t job(void (*run)(void))
{
    pid_t child = fork_or_die();
    if (child == 0) {
        setpgid(0, 0);
        signal(SIGTTOU, SIG_DFL);
        close(pty.master);
        run();
        _exit(0);
    }
    setpgid(child, child);
    return child;
}

static void to_front(pid_t group)
{
    need(tcsetpgrp(pty.slave, group) == 0, "tcsetpgrp");
}

static void type(const char *text)
{
    need(write(pty.master, text, strlen(text)) == (ssize_t)strlen(text), "typing");
}

/* What jobs do. */
static void reads(void)
{
    char line[64];
    ssize_t length = read(pty.slave, line, sizeof line);
    say("  read: %s, %zd bytes", outcome(length), length);
}

static void writes(void)
{
    say("  write: %s", outcome(write(pty.slave, "x", 1)));
}

static void sets_attributes(void)
{
    struct termios settings;
    say("  tcgetattr: %s", outcome(tcgetattr(pty.slave, &settings)));
    say("  tcsetattr: %s", outcome(tcsetattr(pty.slave, TCSANOW, &settings)));
}

static void drains(void)
{
    struct termios settings;
    tcgetattr(pty.slave, &settings);
    say("  TCSADRAIN: %s", outcome(tcsetattr(pty.slave, TCSADRAIN, &settings)));
    say("  TCSAFLUSH: %s", outcome(tcsetattr(pty.slave, TCSAFLUSH, &settings)));
}

static void flushes(void)
{
    say("  tcflush: %s", outcome(tcflush(pty.slave, TCIFLUSH)));
}

static void waits_for_output(void)
{
    say("  tcdrain: %s", outcome(tcdrain(pty.slave)));
}

static void holds_output(void)
{
    say("  TCOOFF: %s", outcome(tcflow(pty.slave, TCOOFF)));
    say("  TCOON: %s", outcome(tcflow(pty.slave, TCOON)));
}

static void sends_break(void)
{
    say("  tcsendbreak: %s", outcome(tcsendbreak(pty.slave, 1)));
}

static void resizes(void)
{
    struct winsize size = {.ws_row = 31, .ws_col = 41};
    say("  TIOCSWINSZ: %s", outcome(ioctl(pty.slave, TIOCSWINSZ, &size)));
}

static void comes_forward(void)
{
    say("  tcsetpgrp: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
}

static void comes_forward_by_tty(void)
{
    int fd = open("/dev/tty", O_RDWR);
    say("  tcsetpgrp on /dev/tty: %s", outcome(tcsetpgrp(fd, getpgrp())));
}

static const struct {
    const char *name;
    void (*run)(void);
} acts[] = {
    {"read", reads}, {"write", writes}, {"tcsetattr", sets_attributes}, {"drain and flush", drains}, {"tcflush", flushes},
    {"tcdrain", waits_for_output}, {"tcflow", holds_output}, {"tcsendbreak", sends_break}, {"resize", resizes},
    {"tcsetpgrp", comes_forward}, {"tcsetpgrp by /dev/tty", comes_forward_by_tty},
};

/* Every act of a job in the background: what stops it is told, and it goes on in front. */
static void default_actions(void)
{
    struct termios settings;
    for (int tostop = 0; tostop < 2; tostop++) {
        tcgetattr(pty.slave, &settings);
        settings.c_lflag = tostop ? settings.c_lflag | TOSTOP : settings.c_lflag & ~(tcflag_t)TOSTOP;
        tcsetattr(pty.slave, TCSANOW, &settings);
        for (size_t i = 0; i < COUNT_OF(acts); i++) {
            say("%s in the background%s", acts[i].name, tostop ? ", TOSTOP" : "");
            pid_t child = job(acts[i].run);
            for (int round = 0;; round++) {
                int status = stopped(child);
                say("  %s", status_text(status));
                if (!WIFSTOPPED(status))
                    break;
                if (round == 1) { /* continued in the background first, it stops again */
                    type("text\n");
                    to_front(child);
                }
                kill(-child, SIGCONT);
            }
            to_front(getpgrp());
            tcflush(pty.slave, TCIFLUSH);
        }
    }
}

static void (*act)(void);
static int how;

static void prepared(void)
{
    sigset_t both;
    sigemptyset(&both);
    sigaddset(&both, SIGTTIN);
    sigaddset(&both, SIGTTOU);
    if (how == 1)
        signal(SIGTTIN, SIG_IGN), signal(SIGTTOU, SIG_IGN);
    else if (how == 2)
        sigprocmask(SIG_BLOCK, &both, NULL);
    else if (how == 3)
        catch(SIGTTIN, 0), catch(SIGTTOU, 0);
    act();
    if (how == 2) {
        sigpending(&both);
        say("  pending: %d %d", sigismember(&both, SIGTTIN), sigismember(&both, SIGTTOU));
    }
    if (how == 3)
        say("  SIGTTIN %d, SIGTTOU %d", came[SIGTTIN], came[SIGTTOU]);
}

static void ignored_blocked_handled(void)
{
    static const char *const names[] = {"", "ignored", "blocked", "handled"};
    struct termios settings;
    tcgetattr(pty.slave, &settings);
    settings.c_lflag |= TOSTOP;
    tcsetattr(pty.slave, TCSANOW, &settings);
    for (how = 1; how < 4; how++)
        for (size_t i = 0; i < COUNT_OF(acts); i++) {
            say("%s in the background, %s", acts[i].name, names[how]);
            act = acts[i].run;
            pid_t child = job(prepared);
            say("  %s", status_text(stopped(child)));
            to_front(getpgrp());
        }
    how = 0;
}

/* A group none of whose members has a parent in the session is orphaned: nobody would continue it. */
static void orphaned(void)
{
    struct termios settings;
    tcgetattr(pty.slave, &settings);
    settings.c_lflag |= TOSTOP;
    tcsetattr(pty.slave, TCSANOW, &settings);
    for (int way = 0; way < 4; way++) {
        struct gate done = gate_new(), go = gate_new();
        how = way;
        say("orphaned, way %d", way);
        pid_t middle = fork_or_die();
        if (middle == 0) {
            pid_t mine = getpid();
            if (fork_or_die() == 0) {
                setpgid(0, 0);
                signal(SIGTTOU, SIG_DFL);
                gate_wait(go); /* until the parent has ended */
                while (getppid() == mine)
                    sleep_ms(1);
                for (size_t i = 0; i < COUNT_OF(acts); i++) {
                    if (way == 2 && acts[i].run == reads)
                        continue; /* natively too it depends on what was pending */
                    if (acts[i].run == comes_forward || acts[i].run == comes_forward_by_tty)
                        if (way == 1 || way == 2)
                            continue;
                    act = acts[i].run;
                    prepared();
                }
                say("  nothing came: %d %d", came[SIGTTIN], came[SIGTTOU]);
                gate_open(done);
                _exit(0);
            }
            _exit(0);
        }
        reap(middle);
        gate_open(go);
        gate_wait(done);
    }
    how = 0;
}

static struct gate handled, forward;
static siginfo_t told;

static void note_info(int signo, siginfo_t *info, void *context)
{
    (void)context;
    came[signo]++;
    told = *info;
}

/* What the handler is told: by the sentry for the first, by the host for the others. */
static void looks_at_siginfo(void)
{
    void (*const tries[])(void) = {comes_forward, sets_attributes, reads};
    struct sigaction action = {.sa_sigaction = note_info, .sa_flags = SA_SIGINFO};
    sigaction(SIGTTOU, &action, NULL);
    sigaction(SIGTTIN, &action, NULL);
    for (size_t i = 0; i < COUNT_OF(tries); i++) {
        tries[i]();
        say("  si_signo %d, si_code %d, si_pid %d, si_uid %d", told.si_signo, told.si_code, told.si_pid, (int)told.si_uid);
    }
}

#define TOLD 3

/* Tells the first times only: it may run so often that nobody reads as fast, and would wait for the pipe for ever. */
static void tell(int signo)
{
    if (came[signo]++ < TOLD)
        gate_open(handled);
}

/* With SA_RESTART the handler runs again and again, until somebody brings the group forward. */
static void restarts(void)
{
    struct sigaction action = {.sa_handler = tell, .sa_flags = SA_RESTART};
    sigaction(SIGTTOU, &action, NULL);
    comes_forward();
    say("  handled more than once: %s", yes(came[SIGTTOU] > 1));
}

static void *waits(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return NULL;
}

static void *comes_forward_in_thread(void *unused)
{
    (void)unused;
    comes_forward();
    return NULL;
}

/* A process of several threads: another one takes the signal, and the caller must find out all the same. */
static void main_thread_takes_it(void)
{
    struct sigaction action = {.sa_handler = tell, .sa_flags = SA_RESTART};
    sigaction(SIGTTOU, &action, NULL);
    pthread_t thread;
    pthread_create(&thread, NULL, comes_forward_in_thread, NULL);
    pthread_join(thread, NULL);
    say("  handled: %s", yes(came[SIGTTOU] > 0));
}

static void stops_with_its_threads(void)
{
    pthread_t thread;
    for (int i = 0; i < 3; i++)
        pthread_create(&thread, NULL, waits, NULL);
    pthread_create(&thread, NULL, comes_forward_in_thread, NULL);
    pthread_join(thread, NULL);
}

static void *waits_for_it(void *unused)
{
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTTOU);
    for (;;)
        if (sigwaitinfo(&set, NULL) == SIGTTOU)
            tell(SIGTTOU);
    return NULL;
}

/* The signal is taken by sigwait in another thread, in which alone it is blocked. */
static void waited_for_in_thread(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTTOU);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pthread_t waiter;
    pthread_create(&waiter, NULL, waits_for_it, NULL);
    struct sigaction action = {.sa_handler = tell, .sa_flags = SA_RESTART};
    sigaction(SIGTTOU, &action, NULL);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    comes_forward();
    say("  taken: %s", yes(came[SIGTTOU] > 0));
}

static void no_restart(void)
{
    catch(SIGTTOU, 0);
    comes_forward();
    say("  handled: %d", came[SIGTTOU]);
}

/* The call's signal is one of several; the mask of a handler that runs meanwhile matters to the restart. */
static void other_signals(void)
{
    struct sigaction action = {.sa_handler = tell, .sa_flags = SA_RESTART};
    sigset_t set, old;
    sigaction(SIGTTOU, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, &old);
    raise(SIGUSR1);
    comes_forward();
    say("  SIGUSR1 %d", came[SIGUSR1]);
    sigprocmask(SIG_SETMASK, &old, NULL);
    say("  SIGUSR1 %d", came[SIGUSR1]);
}

static void ends(void)
{
}

static void coming_forward(void)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {
        {"handler with SA_RESTART", restarts}, {"main thread takes it", main_thread_takes_it},
        {"sigwait takes it", waited_for_in_thread}, {"other signals", other_signals},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        say("%s", cases[i].name);
        handled = gate_new();
        pid_t child = job(cases[i].run);
        for (int round = 0; round < TOLD; round++)
            gate_wait(handled);
        to_front(child);
        say("  %s", status_text(stopped(child)));
        to_front(getpgrp());
        gate_free(handled);
    }
    say("what handlers are told");
    pid_t looking = job(looks_at_siginfo);
    say("  %s", status_text(stopped(looking)));
    say("handler without SA_RESTART");
    pid_t child = job(no_restart);
    say("  %s", status_text(stopped(child)));
    say("its group is not in front: %s", yes(tcgetpgrp(pty.slave) == getpgrp()));
    say("a process of several threads");
    child = job(stops_with_its_threads);
    for (int round = 0; round < 3; round++) {
        say("  %s", status_text(stopped(child)));
        if (round == 2)
            to_front(child);
        kill(child, SIGCONT);
    }
    say("  %s", status_text(stopped(child)));
    to_front(getpgrp());

    say("the whole group stops");
    struct gate ready = gate_new();
    child = job(ends); /* gone at once; its group stays for the zombie */
    siginfo_t info;
    waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
    pid_t member = fork_or_die();
    if (member == 0) {
        setpgid(0, child);
        signal(SIGTTOU, SIG_DFL);
        gate_open(ready);
        for (;;)
            pause();
    }
    gate_wait(ready);
    pid_t asker = fork_or_die();
    if (asker == 0) {
        setpgid(0, child);
        signal(SIGTTOU, SIG_DFL);
        comes_forward();
        _exit(0);
    }
    say("  the one who asked: %s", status_text(stopped(asker)));
    say("  the other: %s", status_text(stopped(member)));
    kill(asker, SIGKILL);
    kill(member, SIGKILL);
    reap(asker);
    reap(member);
    reap(child);
}

#define RACERS 6

static struct gate start, at_line;

static void races(void)
{
    signal(SIGTTOU, SIG_IGN);
    gate_open(at_line);
    gate_wait(start);
    for (int i = 0; i < 50; i++)
        need(tcsetpgrp(pty.slave, getpgrp()) == 0, "tcsetpgrp");
    gate_open(at_line);
    for (;;)
        pause();
}

/* Many want to be in front at once. Whoever is said to be there in the end is whom a key reaches. */
static void racing(void)
{
    int right = 0;
    for (int round = 0; round < 20; round++) {
        pid_t racers[RACERS], reached = 0;
        start = gate_new();
        at_line = gate_new();
        for (int i = 0; i < RACERS; i++)
            racers[i] = job(races);
        for (int i = 0; i < RACERS; i++)
            gate_wait(at_line);
        for (int i = 0; i < RACERS; i++)
            gate_open(start);
        for (int i = 0; i < RACERS; i++)
            gate_wait(at_line);
        pid_t front = tcgetpgrp(pty.slave);
        type("\003");
        int status;
        reached = wait(&status);
        right += reached == front && WIFSIGNALED(status) && WTERMSIG(status) == SIGINT;
        for (int i = 0; i < RACERS; i++)
            if (racers[i] != reached) {
                kill(racers[i], SIGKILL);
                reap(racers[i]);
            }
        to_front(getpgrp());
        gate_free(start);
        gate_free(at_line);
    }
    say("the key reached who was said to be in front in %d of 20 races", right);
}

/* The keys. */
static void waits_for_keys(void)
{
    const int keys[] = {SIGINT, SIGQUIT, SIGTSTP, SIGWINCH};
    for (size_t i = 0; i < COUNT_OF(keys); i++)
        catch(keys[i], SA_RESTART);
    gate_open(handled);
    gate_wait(forward);
    char line[64];
    ssize_t length = read(pty.slave, line, sizeof line);
    say("  read %zd; INT %d QUIT %d TSTP %d WINCH %d", length, came[SIGINT], came[SIGQUIT], came[SIGTSTP], came[SIGWINCH]);
}

static void sleeps(void)
{
    for (;;)
        pause();
}

static void keys(void)
{
    struct termios settings, cooked;
    tcgetattr(pty.slave, &cooked);
    static const struct {
        const char *name;
        tcflag_t set, clear;
        const char *text;
    } cases[] = {
        {"interrupt", 0, 0, "lost\003kept\n"},  {"quit", 0, 0, "lost\034kept\n"},
        {"suspend", 0, 0, "lost\032kept\n"},    {"interrupt, NOFLSH", NOFLSH, 0, "kept\003too\n"},
        {"no ISIG", 0, ISIG, "\003\034\032\n"}, {"not canonical", 0, ICANON, "\003x"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        say("%s", cases[i].name);
        settings = cooked;
        settings.c_lflag = (settings.c_lflag | cases[i].set) & ~cases[i].clear;
        tcsetattr(pty.slave, TCSANOW, &settings);
        handled = gate_new();
        forward = gate_new();
        pid_t child = job(waits_for_keys);
        gate_wait(handled);
        to_front(child);
        gate_open(forward);
        type(cases[i].text);
        say("  %s", status_text(stopped(child)));
        to_front(getpgrp());
        tcflush(pty.slave, TCIFLUSH);
    }
    tcsetattr(pty.slave, TCSANOW, &cooked);

    say("whom they reach");
    pid_t child = job(sleeps), behind = job(sleeps);
    to_front(child);
    type("\032");
    say("  in front: %s", status_text(stopped(child)));
    kill(child, SIGCONT);
    type("\034");
    int status = reap(child);
    say("  in front: killed by SIGQUIT %s", yes(WIFSIGNALED(status) && WTERMSIG(status) == SIGQUIT));
    to_front(behind);
    type("\003");
    say("  the other, once in front: %s", status_text(reap(behind)));
    to_front(getpgrp());

    say("TIOCSIG at the master");
    child = job(sleeps);
    to_front(child);
    say("  %s", outcome(ioctl(pty.master, TIOCSIG, SIGINT)));
    say("  in front: %s", status_text(reap(child)));
    to_front(getpgrp());

    say("size");
    struct winsize size = {.ws_row = 10, .ws_col = 20};
    catch(SIGWINCH, 0);
    const char *found = outcome(ioctl(pty.master, TIOCSWINSZ, &size));
    say("  new: %s, SIGWINCH %d", found, came[SIGWINCH]);
    found = outcome(ioctl(pty.slave, TIOCSWINSZ, &size));
    say("  the same: %s, SIGWINCH %d", found, came[SIGWINCH]);
    size.ws_row = 11;
    found = outcome(ioctl(pty.slave, TIOCSWINSZ, &size));
    say("  at the slave: %s, SIGWINCH %d", found, came[SIGWINCH]);
    memset(&size, 0, sizeof size);
    found = outcome(ioctl(pty.slave, TIOCGWINSZ, &size));
    say("  found: %s, %d x %d", found, size.ws_row, size.ws_col);
    child = job(sleeps);
    to_front(child);
    size.ws_col = 33;
    ioctl(pty.master, TIOCSWINSZ, &size);
    say("  in the background: SIGWINCH %d", came[SIGWINCH]);
    kill(child, SIGKILL);
    reap(child);
    to_front(getpgrp());
}

/* Reads that wait: stopped, continued, and interrupted by signals that nobody sees. */
static void one_reader(void)
{
    char line[64];
    gate_open(handled);
    gate_wait(forward);
    for (int round = 0; round < 5; round++) {
        ssize_t length = read(pty.slave, line, sizeof line);
        say("  read: %s %zd", outcome(length), length);
        gate_open(handled);
    }
}

static void polling_reader(void)
{
    char line[64];
    gate_open(handled);
    gate_wait(forward);
    for (int round = 0; round < 5; round++) {
        struct pollfd waiter = {pty.slave, POLLIN, 0};
        say("  poll: %d", poll(&waiter, 1, -1) == 1);
        ssize_t length = read(pty.slave, line, sizeof line);
        say("  read: %s %zd", outcome(length), length);
        gate_open(handled);
    }
}

static void raw_reader(void)
{
    struct termios settings;
    tcgetattr(pty.slave, &settings);
    cfmakeraw(&settings);
    settings.c_lflag |= ISIG;
    settings.c_cc[VMIN] = 3;
    settings.c_cc[VTIME] = 0;
    signal(SIGTTOU, SIG_IGN);
    tcsetattr(pty.slave, TCSANOW, &settings);
    one_reader();
}

static void waiting_reads(void)
{
    void (*const ways[])(void) = {one_reader, polling_reader, raw_reader};
    struct termios cooked;
    tcgetattr(pty.slave, &cooked);
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        say("reader %zu", i);
        handled = gate_new();
        forward = gate_new();
        pid_t child = job(ways[i]);
        gate_wait(handled);
        to_front(child);
        gate_open(forward);
        for (int round = 0; round < 5; round++) {
            for (int signals = 0; signals < 20; signals++) {
                kill(child, SIGCHLD); /* ignored by default */
                kill(child, SIGURG);
            }
            type("\032");
            int status = stopped(child);
            if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTSTP)
                say("  %s", status_text(status));
            kill(child, SIGCONT);
            kill(child, SIGSTOP);
            status = stopped(child);
            if (!WIFSTOPPED(status))
                say("  %s", status_text(status));
            type("ab\n");
            kill(child, SIGCONT);
            gate_wait(handled); /* a key that sends a signal throws away what was not read */
        }
        say("  %s", status_text(reap(child)));
        to_front(getpgrp());
        tcsetattr(pty.slave, TCSANOW, &cooked);
        tcflush(pty.slave, TCIFLUSH);
    }
}

/* Ends. */
static void say_poll(int fd, const char *what)
{
    struct pollfd waiter = {fd, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
    int ready = poll(&waiter, 1, 0);
    say("  %s: poll %d, %#x", what, ready, (unsigned)waiter.revents);
}

static void say_ends(int fd, const char *what)
{
    char byte;
    struct termios settings;
    int left = 0;
    say_poll(fd, what);
    ssize_t length = read(fd, &byte, 1);
    say("  %s: read %s %zd", what, outcome(length), length);
    say("  %s: write %s", what, outcome(write(fd, "x", 1)));
    say("  %s: tcgetattr %s, isatty %d, FIONREAD %s", what, outcome(tcgetattr(fd, &settings)), isatty(fd),
        outcome(ioctl(fd, FIONREAD, &left)));
    say("  %s: foreground %s, session %s", what, who(tcgetpgrp(fd)), who(tcgetsid(fd)));
}

static void await_hangup(void)
{
    sigset_t hangup, old;
    sigemptyset(&hangup);
    sigaddset(&hangup, SIGHUP);
    sigaddset(&hangup, SIGCONT);
    sigprocmask(SIG_BLOCK, &hangup, &old);
    catch(SIGHUP, 0);
    catch(SIGCONT, 0);
    gate_open(handled);
    while (!came[SIGHUP])
        sigsuspend(&old);
    sigprocmask(SIG_SETMASK, &old, NULL);
}

static struct gate finished;

static void member_of_ending_session(void)
{
    await_hangup();
    while (getppid() == getsid(0)) /* the leader tells us first, and then gives the terminal up */
        sleep_ms(1);
    say("  foreground group: SIGHUP %d", came[SIGHUP]);
    say("  its terminal: %s, /dev/tty %s, isatty %d", who(tcgetpgrp(pty.slave)), dev_tty(), isatty(pty.slave));
    say("  it can still write: %s", outcome(write(pty.slave, "x", 1)));
    gate_open(finished);
    _exit(0);
}

static void background_of_ending_session(void)
{
    catch(SIGHUP, 0);
    gate_open(handled);
    char byte;
    while (read(finished.ends[0], &byte, 1) < 0)
        ;
    say("  background group: SIGHUP %d, /dev/tty %s, %s", came[SIGHUP], dev_tty(), who(tcgetpgrp(pty.slave)));
    gate_open(handled);
    _exit(0);
}

static void stopped_of_ending_session(void)
{
    catch(SIGHUP, 0);
    catch(SIGCONT, 0);
    gate_open(handled);
    raise(SIGSTOP);
    while (!came[SIGHUP] || !came[SIGCONT])
        sleep_ms(1);
    say("  stopped and orphaned: SIGHUP %d, SIGCONT %d", came[SIGHUP], came[SIGCONT]);
    _exit(0);
}

static void leader_ends(void)
{
    handled = gate_new();
    finished = gate_new();
    pid_t member = job(member_of_ending_session);
    gate_wait(handled);
    job(background_of_ending_session);
    gate_wait(handled);
    to_front(member);
    say("the leader ends");
    _exit(0);
}

static void leader_with_stopped_job_ends(void)
{
    handled = gate_new();
    pid_t halted = job(stopped_of_ending_session);
    gate_wait(handled);
    stopped(halted);
    say("the leader ends, with a stopped job");
    _exit(0);
}

static void master_closes(void)
{
    handled = gate_new();
    finished = gate_new();
    sigset_t both, old;
    sigemptyset(&both);
    sigaddset(&both, SIGHUP);
    sigaddset(&both, SIGCONT);
    pid_t child = job(sleeps); /* it is told when the leader ends */
    to_front(child);
    sigprocmask(SIG_BLOCK, &both, &old);
    catch(SIGHUP, 0);
    catch(SIGCONT, 0);
    gate_open(finished);
    say("the master is closed");
    close(pty.master);
    while (!came[SIGHUP] || !came[SIGCONT])
        sigsuspend(&old);
    sigprocmask(SIG_SETMASK, &old, NULL);
    say("  the leader: SIGHUP %d, SIGCONT %d, /dev/tty %s", came[SIGHUP], came[SIGCONT], dev_tty());
    kill(child, SIGKILL);
    say("  foreground group: %s", status_text(reap(child)));
    say_ends(pty.slave, "slave");
    say("  tcsetpgrp: %s", outcome(tcsetpgrp(pty.slave, getpgrp())));
    say("  opening it by name: %s", yes(open(pty.name, O_RDWR) < 0));
}

static void with_terminal(void (*run)(void))
{
    pty = pty_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        setsid();
        need(ioctl(pty.slave, TIOCSCTTY, 0) == 0, "TIOCSCTTY");
        signal(SIGTTOU, SIG_IGN); /* as shells do */
        run();
        _exit(0);
    }
    int status = reap(child);
    if (status)
        say("the session's leader: %s", status_text(status));
    pty_close(pty);
}

static void hangups(void)
{
    /* The ends of the gates are made by the leader: this process only waits until all of them are closed. */
    struct gate alive = gate_new();
    void (*const ways[])(void) = {leader_ends, leader_with_stopped_job_ends};
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        pty = pty_new();
        alive = gate_new();
        pid_t child = fork_or_die();
        if (child == 0) {
            setsid();
            need(ioctl(pty.slave, TIOCSCTTY, 0) == 0, "TIOCSCTTY");
            ways[i]();
        }
        reap(child);
        close(alive.ends[1]);
        char byte;
        need(read(alive.ends[0], &byte, 1) == 0, "the members' end");
        say("  at the master: foreground %s, session %s", who(tcgetpgrp(pty.master)), who(tcgetsid(pty.master)));
        pty_close(pty);
    }
    pty = pty_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        setsid();
        need(ioctl(pty.slave, TIOCSCTTY, 0) == 0, "TIOCSCTTY");
        master_closes();
        _exit(0);
    }
    close(pty.master); /* the child's is the last */
    reap(child);
    close(pty.slave);

    say("the slave is closed");
    pty = pty_new();
    close(pty.slave);
    say_ends(pty.master, "master");
    pty.slave = open(pty.name, O_RDWR | O_NOCTTY);
    say("opened again");
    say("  write: %s", outcome(write(pty.slave, "x", 1)));
    struct pollfd waiter = {pty.master, POLLIN, 0};
    poll(&waiter, 1, -1);
    say("  master: %#x", (unsigned)waiter.revents);
    pty_close(pty);
}

#define ON_TERMINAL(name)            \
    static void run_##name(void)     \
    {                                \
        with_terminal(name);         \
    }
ON_TERMINAL(default_actions)
ON_TERMINAL(ignored_blocked_handled)
ON_TERMINAL(orphaned)
ON_TERMINAL(coming_forward)
ON_TERMINAL(racing)
ON_TERMINAL(keys)
ON_TERMINAL(waiting_reads)

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"default actions", run_default_actions},
        {"ignored, blocked, handled", run_ignored_blocked_handled},
        {"orphaned", run_orphaned},
        {"coming forward", run_coming_forward},
        {"racing", run_racing},
        {"keys", run_keys},
        {"waiting reads", run_waiting_reads},
        {"hangups", hangups},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
