/* Checkpoints of pseudoterminals: unread lines and output, settings, who is in front, readers that wait. */
#include "saved_common.h"
#include "terminals_common.h"

static struct pty pty;
static struct gate ready, go;

static const char *read_text(int fd)
{
    static char text[4096];
    ssize_t size = read(fd, text, sizeof text - 1);
    if (size < 0)
        return error_name(errno);
    text[size] = 0;
    for (char *at = text; *at; at++)
        if (*at == '\n' || *at == '\r')
            *at = *at == '\n' ? '$' : '^';
    return text;
}

static void put(int fd, const char *text)
{
    need(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write");
}

/* What was written is processed by the host at some time or other. */
static void await_unread(int fd, int wanted)
{
    for (int count = 0; count < wanted;)
        need(ioctl(fd, FIONREAD, &count) == 0, "FIONREAD");
}

static void lines(void)
{
    pty = pty_new();
    put(pty.master, "one\ntwo\nhalf");
    put(pty.slave, "output\n");
    await_unread(pty.slave, 8);
    await_unread(pty.master, 22); /* with the echo: each newline is two */
    struct winsize size = {25, 81, 0, 0}, found = {0};
    ioctl(pty.master, TIOCSWINSZ, &size);
    checkpoint_marker();
    say("first: %s", read_text(pty.slave));
    say("second: %s", read_text(pty.slave));
    put(pty.master, " and half\n");
    say("third: %s", read_text(pty.slave));
    ioctl(pty.slave, TIOCGWINSZ, &found);
    say("window: %d x %d", found.ws_row, found.ws_col);
    char name[64] = "";
    say("name as before: %s", yes(ptsname_r(pty.master, name, sizeof name) == 0 && strcmp(name, pty.name) == 0));
    pty_close(pty);
}

static void settings(void)
{
    struct termios before, after;
    pty = pty_new();
    tcgetattr(pty.slave, &before);
    before.c_iflag = IXOFF | INLCR | BRKINT;
    before.c_oflag = OPOST | OCRNL;
    before.c_lflag = ECHOCTL | IEXTEN;
    before.c_cc[VMIN] = 5;
    before.c_cc[VTIME] = 3;
    before.c_cc[VINTR] = 'i';
    cfsetspeed(&before, B9600);
    tcsetattr(pty.slave, TCSANOW, &before);
    tcgetattr(pty.slave, &before); /* as the host took them */
    int packet = 1;
    ioctl(pty.master, TIOCPKT, &packet);
    put(pty.master, "raw\ntext");
    await_unread(pty.slave, 8);
    checkpoint_marker();
    tcgetattr(pty.slave, &after);
    say("settings: same %s", yes(memcmp(&before, &after, sizeof before) == 0));
    say("unread: %s", read_text(pty.slave));
    put(pty.slave, "x");
    say("packet mode: %s", yes(read_text(pty.master)[0] == TIOCPKT_DATA));
    pty_close(pty);
}

static volatile sig_atomic_t hung_up;

static void note(int signo)
{
    (void)signo;
    hung_up = 1;
}

static void leads(struct pty own)
{
    int terminal = open("/dev/tty", O_RDWR);
    signal(SIGTTOU, SIG_IGN);
    install(SIGHUP, note, 0);
    pid_t front = fork_or_die();
    if (front == 0) {
        setpgid(0, 0);
        tcsetpgrp(own.slave, getpid());
        signal(SIGTTOU, SIG_DFL);
        gate_open(ready);
        say("  a reader that waits: %s", read_text(own.slave));
        say("  again: %s", read_text(terminal));
        gate_open(go);
        for (;;)
            pause();
    }
    setpgid(front, front);
    gate_wait(ready);
    pid_t behind = fork_or_die();
    if (behind == 0) {
        setpgid(0, 0);
        read_text(own.slave); /* SIGTTIN */
        for (;;)
            pause();
    }
    setpgid(behind, behind);
    waitid(P_PID, (id_t)behind, &(siginfo_t){0}, WSTOPPED | WNOWAIT);
    let_them_wait();
    checkpoint_marker();
    int status = 0;
    say("  in front: %s, session %s", yes(tcgetpgrp(own.slave) == front), yes(tcgetsid(own.slave) == getpid()));
    waitpid(behind, &status, WUNTRACED);
    say("  behind: %s", status_text(status));
    put(own.master, "a line\n");
    put(own.master, "another\n");
    gate_wait(ready);
    put(own.master, "\003");
    say("  the key: %s", status_text(reap(front)));
    kill(behind, SIGKILL);
    reap(behind);
    close(terminal);
    close(own.slave);
    close(own.master);
    while (!hung_up)
        sleep_ms(1);
    say("  the master was closed: hung up");
}

static void jobs(void)
{
    ready = gate_new();
    go = gate_new();
    pty = pty_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        setsid();
        need(ioctl(pty.slave, TIOCSCTTY, 0) == 0, "TIOCSCTTY");
        leads(pty);
        _exit(0);
    }
    gate_wait(go);
    let_them_wait();
    checkpoint_marker();
    gate_open(ready);
    close(pty.master);
    close(pty.slave);
    say("the leader: %s", status_text(reap(child)));
    gate_free(ready), gate_free(go);
}

/* More than a terminal has ready at once: a writer waits on either side. */
static int fills(int fd, char with)
{
    char block[512];
    memset(block, with, sizeof block);
    for (int i = 0; i < 100; i++) {
        block[0] = (char)i;
        need(write(fd, block, sizeof block) == sizeof block, "write");
    }
    return 60;
}

static int fills_slave(void)
{
    gate_open(ready);
    return fills(pty.slave, 's');
}

static int fills_master(void)
{
    gate_open(ready);
    return fills(pty.master, 'm');
}

static bool drains(int fd, char with)
{
    char block[512];
    bool right = true;
    for (int i = 0; i < 100; i++) {
        for (size_t at = 0; at < sizeof block;) {
            ssize_t size = read(fd, block + at, sizeof block - at);
            need(size > 0, "read");
            at += (size_t)size;
        }
        right &= block[0] == (char)i && block[1] == with && block[511] == with;
    }
    return right;
}

static void full(void)
{
    struct termios raw;
    ready = gate_new();
    pty = pty_new();
    tcgetattr(pty.slave, &raw);
    cfmakeraw(&raw);
    tcsetattr(pty.slave, TCSANOW, &raw);
    pid_t to_master = child_of(fills_slave), to_slave = child_of(fills_master);
    gate_wait(ready), gate_wait(ready);
    let_them_wait();
    checkpoint_marker();
    say("at the master: all in its order %s", yes(drains(pty.master, 's')));
    say("at the slave: all in its order %s", yes(drains(pty.slave, 'm')));
    say("writers: %s, %s", status_text(reap(to_master)), status_text(reap(to_slave)));
    pty_close(pty);
    gate_free(ready);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"lines", lines}, {"settings", settings}, {"jobs", jobs}, {"full", full},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
