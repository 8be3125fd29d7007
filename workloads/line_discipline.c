/* What a terminal does with bytes and settings, all of it the host's: line editing, VMIN and VTIME, flow control, packet
 * mode, queues, locks, names. */
#include "terminals_common.h"

#include <limits.h>
#include <sys/stat.h>

/* asm/termbits.h cannot be read beside termios.h. */
struct settings2 {
    tcflag_t c_iflag, c_oflag, c_cflag, c_lflag;
    cc_t c_line, c_cc[19];
    speed_t c_ispeed, c_ospeed;
};
#undef TCGETS2
#undef TCSETS2
#undef TCSETSW2
#undef TCSETSF2
#define TCGETS2 _IOR('T', 0x2A, struct settings2)
#define TCSETS2 _IOW('T', 0x2B, struct settings2)
#define TCSETSW2 _IOW('T', 0x2C, struct settings2)
#define TCSETSF2 _IOW('T', 0x2D, struct settings2)
#ifndef TIOCGPTLCK
#define TIOCGPTLCK 0x80045439
#endif
#ifndef TIOCGEXCL
#define TIOCGEXCL 0x80045440
#endif
#ifndef TIOCGPKT
#define TIOCGPKT 0x80045438
#endif
#define OTHER_SPEED 0010000 /* BOTHER */

static struct pty pty;
static struct termios cooked;

static void fresh(void)
{
    pty = pty_new();
    need(tcgetattr(pty.slave, &cooked) == 0, "tcgetattr");
}

static void show_bytes(const char *what, const char *bytes, ssize_t length)
{
    char text[600];
    size_t at = 0;
    if (length < 0) {
        say("%s: %s", what, error_name(errno));
        return;
    }
    for (ssize_t i = 0; i < length && at < sizeof text - 8; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        at += (size_t)snprintf(text + at, sizeof text - at, byte >= ' ' && byte < 127 ? "%c" : "\\%03o", byte);
    }
    text[at] = 0;
    say("%s: %zd \"%s\"", what, length, text);
}

static void type(const char *text, size_t length)
{
    need(write(pty.master, text, length) == (ssize_t)length, "typing");
}

/* Waits until this much can be read, since bytes travel through the host's work queues. */
static void await_input(int fd, int count)
{
    for (int left = 0;; sleep_ms(1)) {
        need(ioctl(fd, FIONREAD, &left) == 0, "FIONREAD");
        if (left >= count)
            return;
    }
}

static void read_slave(const char *what)
{
    char bytes[256];
    show_bytes(what, bytes, read(pty.slave, bytes, sizeof bytes));
}

/* All that the terminal shows up to a mark that is written to it. */
static void show_screen(const char *what)
{
    char bytes[1024];
    size_t length = 0;
    need(write(pty.slave, "\007", 1) == 1, "mark");
    while (length < sizeof bytes) {
        ssize_t got = read(pty.master, bytes + length, 1);
        need(got == 1, "screen");
        if (bytes[length] == 7)
            break;
        length++;
    }
    show_bytes(what, bytes, (ssize_t)length);
}

static void with(const struct termios *settings)
{
    need(tcsetattr(pty.slave, TCSANOW, settings) == 0, "tcsetattr");
}

/* --- line editing */

static void canonical(void)
{
    static const struct {
        const char *name, *text;
        int reads;
    } cases[] = {
        {"a line", "hello\n", 1},
        {"two lines", "one\ntwo\n", 2},
        {"VERASE", "abx\177c\n", 1},
        {"VERASE past the beginning", "a\177\177\177b\n", 1},
        {"VERASE of a control character", "a\001\177b\n", 1},
        {"VERASE of a tab", "a\t\177b\n", 1},
        {"VWERASE", "one two\027three\n", 1},
        {"VWERASE of blanks", "one two  \027three\n", 1},
        {"VKILL", "lost\025kept\n", 1},
        {"VREPRINT", "abc\022d\n", 1},
        {"VLNEXT", "a\026\003b\026\177c\n", 1},
        {"VEOF after text", "text\004more\n", 2},
        {"VEOF alone", "\004", 1},
        {"VEOF twice after text", "text\004\004", 2},
        {"VEOL", "one;two\n", 2},
        {"VEOL2", "one:two\n", 2},
        {"CR", "one\r", 1},
        {"8 bits", "\303\244\177x\n", 1},
    };
    for (int utf8 = 0; utf8 < 2; utf8++)
        for (size_t i = 0; i < COUNT_OF(cases); i++) {
            struct termios settings = cooked;
            settings.c_lflag &= ~(tcflag_t)ISIG;
            settings.c_cc[VEOL] = ';';
            settings.c_cc[VEOL2] = ':';
            settings.c_iflag = utf8 ? settings.c_iflag | IUTF8 : settings.c_iflag & ~(tcflag_t)IUTF8;
            with(&settings);
            type(cases[i].text, strlen(cases[i].text));
            say("%s%s", cases[i].name, utf8 ? ", IUTF8" : "");
            for (int n = 0; n < cases[i].reads; n++)
                read_slave("  read");
            show_screen("  shown");
        }
}

static void echoes(void)
{
    static const struct {
        const char *name;
        tcflag_t set, clear;
    } cases[] = {
        {"no ECHO", 0, ECHO}, {"ECHONL", ECHONL, ECHO}, {"no ECHOE", 0, ECHOE}, {"ECHOPRT", ECHOPRT, 0},
        {"no ECHOK", 0, ECHOK | ECHOKE}, {"no ECHOCTL", 0, ECHOCTL}, {"no IEXTEN", 0, IEXTEN},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct termios settings = cooked;
        settings.c_lflag &= ~(tcflag_t)ISIG;
        settings.c_lflag = (settings.c_lflag | cases[i].set) & ~cases[i].clear;
        with(&settings);
        const char text[] = "ab\177c\001d\025e f\027g\022\n";
        type(text, strlen(text));
        say("%s", cases[i].name);
        read_slave("  read");
        show_screen("  shown");
    }
}

static void conversions(void)
{
    static const struct {
        const char *name;
        tcflag_t iset, iclear, oset, oclear;
    } cases[] = {
        {"as it is", 0, 0, 0, 0},           {"INLCR", INLCR, 0, 0, 0},     {"IGNCR", IGNCR, 0, 0, 0},
        {"no ICRNL", 0, ICRNL, 0, 0},       {"ISTRIP", ISTRIP, 0, 0, 0},   {"IUCLC", IUCLC | 0, 0, 0, 0},
        {"no OPOST", 0, 0, 0, OPOST},       {"OCRNL", 0, 0, OCRNL, 0},     {"ONLRET", 0, 0, ONLRET, 0},
        {"OLCUC", 0, 0, OLCUC, 0},          {"XTABS", 0, 0, XTABS, 0},     {"ONOCR", 0, 0, ONOCR, 0},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct termios settings = cooked;
        settings.c_lflag &= ~(tcflag_t)(ICANON | ECHO | ISIG);
        settings.c_iflag = (settings.c_iflag | cases[i].iset) & ~cases[i].iclear;
        settings.c_oflag = (settings.c_oflag | cases[i].oset) & ~cases[i].oclear;
        settings.c_cc[VMIN] = 5;
        settings.c_cc[VTIME] = 1;
        with(&settings);
        type("A\rb\n\301", 5);
        say("%s", cases[i].name);
        if (cases[i].iset == IGNCR)
            await_input(pty.slave, 4);
        else
            await_input(pty.slave, 5);
        read_slave("  read");
        need(write(pty.slave, "ab\tc\r\nd\n", 8) == 8, "write");
        show_screen("  shown");
    }
}

/* --- not canonical */

static void minimum_and_time(void)
{
    static const struct {
        int minimum, time, typed;
    } cases[] = {{0, 0, 0}, {0, 0, 3}, {1, 0, 3}, {4, 0, 6}, {0, 1, 0}, {0, 1, 2}, {3, 1, 2}, {3, 1, 3}, {10, 1, 1}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct termios settings = cooked;
        settings.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        settings.c_cc[VMIN] = (cc_t)cases[i].minimum;
        settings.c_cc[VTIME] = (cc_t)cases[i].time;
        with(&settings);
        type("abcdef", (size_t)cases[i].typed);
        await_input(pty.slave, cases[i].typed);
        say("VMIN %d VTIME %d typed %d", cases[i].minimum, cases[i].time, cases[i].typed);
        read_slave("  read");
        struct pollfd waiter = {pty.slave, POLLIN, 0};
        say("  poll %d", poll(&waiter, 1, 0));
        fcntl(pty.slave, F_SETFL, O_NONBLOCK);
        read_slave("  read without waiting");
        fcntl(pty.slave, F_SETFL, 0);
    }
    struct termios settings = cooked;
    settings.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    settings.c_cc[VMIN] = 6;
    with(&settings);
    pid_t child = fork_or_die();
    if (child == 0) {
        read_slave("VMIN 6, typed in three parts");
        _exit(0);
    }
    for (int i = 0; i < 3; i++)
        type("ab", 2);
    reap(child);
}

/* --- flow control and packet mode */

static void flow(void)
{
    struct termios settings = cooked;
    settings.c_iflag |= IXON;
    with(&settings);
    int queued = 0;
    char bytes[64];
    say("stopped by VSTOP");
    fcntl(pty.master, F_SETFL, O_NONBLOCK);
    type("\023", 1);
    fcntl(pty.slave, F_SETFL, O_NONBLOCK);
    for (int i = 0; i < 200; i++) { /* the key takes its way through a work queue */
        ssize_t length = write(pty.slave, "x", 1);
        if (length < 0) {
            say("  write: %s", error_name(errno));
            break;
        }
        sleep_ms(1);
    }
    while (read(pty.master, bytes, sizeof bytes) > 0)
        ;
    say("  TIOCOUTQ %s %d", outcome(ioctl(pty.slave, TIOCOUTQ, &queued)), queued);
    type("\021", 1);
    for (int i = 0; i < 2000 && write(pty.slave, "y", 1) < 0; i++)
        sleep_ms(1);
    fcntl(pty.master, F_SETFL, 0);
    show_bytes("  after VSTART", bytes, read(pty.master, bytes, sizeof bytes));
    fcntl(pty.slave, F_SETFL, 0);
    settings.c_iflag |= IXANY;
    with(&settings);

    say("tcflow");
    say("  TCOOFF %s", outcome(tcflow(pty.slave, TCOOFF)));
    pid_t child = fork_or_die();
    if (child == 0)
        _exit(write(pty.slave, "z", 1) == 1 ? 0 : errno);
    struct pollfd waiter = {pty.master, POLLIN, 0};
    say("  the master sees %d", poll(&waiter, 1, 20));
    say("  TCOON %s", outcome(tcflow(pty.slave, TCOON)));
    say("  the write: %s", status_text(reap(child)));
    show_bytes("  master", bytes, read(pty.master, bytes, sizeof bytes));
    say("  TCIOFF %s", outcome(tcflow(pty.slave, TCIOFF)));
    show_bytes("  it sends VSTOP", bytes, read(pty.master, bytes, sizeof bytes));
    say("  TCION %s", outcome(tcflow(pty.slave, TCION)));
    show_bytes("  it sends VSTART", bytes, read(pty.master, bytes, sizeof bytes));
    say("  of something else: %s", outcome(ioctl(pty.slave, TCXONC, 9)));
}

static void packets(void)
{
    int on = 1, found = 0;
    char bytes[64];
    say("at the slave: %s", outcome(ioctl(pty.slave, TIOCPKT, &on)));
    say("on: %s", outcome(ioctl(pty.master, TIOCPKT, &on)));
    const char *result = outcome(ioctl(pty.master, TIOCGPKT, &found));
    say("found: %s %d", result, found);
    need(write(pty.slave, "data", 4) == 4, "write");
    show_bytes("data", bytes, read(pty.master, bytes, sizeof bytes));
    tcflush(pty.slave, TCIFLUSH);
    show_bytes("flush of input", bytes, read(pty.master, bytes, sizeof bytes));
    tcflush(pty.slave, TCOFLUSH);
    show_bytes("flush of output", bytes, read(pty.master, bytes, sizeof bytes));
    tcflow(pty.slave, TCOOFF);
    struct pollfd waiter = {pty.master, POLLIN | POLLPRI, 0};
    poll(&waiter, 1, 1000);
    say("poll %#x", (unsigned)waiter.revents);
    show_bytes("stop", bytes, read(pty.master, bytes, sizeof bytes));
    tcflow(pty.slave, TCOON);
    show_bytes("start", bytes, read(pty.master, bytes, sizeof bytes));
    struct termios settings = cooked;
    settings.c_iflag &= ~(tcflag_t)IXON;
    with(&settings);
    show_bytes("no IXON", bytes, read(pty.master, bytes, sizeof bytes));
    with(&cooked);
    show_bytes("IXON", bytes, read(pty.master, bytes, sizeof bytes));
    settings = cooked;
    settings.c_lflag |= EXTPROC;
    with(&settings);
    show_bytes("EXTPROC", bytes, read(pty.master, bytes, sizeof bytes));
    on = 0;
    say("off: %s", outcome(ioctl(pty.master, TIOCPKT, &on)));
}

/* --- queues */

static void queues(void)
{
    int left = -1;
    type("abc\ndef", 7);
    await_input(pty.slave, 4);
    ioctl(pty.slave, FIONREAD, &left);
    say("canonical FIONREAD %d", left);
    struct termios settings = cooked;
    settings.c_lflag &= ~(tcflag_t)ICANON;
    with(&settings);
    await_input(pty.slave, 7);
    ioctl(pty.slave, FIONREAD, &left);
    say("raw FIONREAD %d", left);
    ioctl(pty.slave, TIOCINQ, &left);
    say("TIOCINQ %d", left);
    say("TCIFLUSH %s", outcome(tcflush(pty.slave, TCIFLUSH)));
    ioctl(pty.slave, FIONREAD, &left);
    say("FIONREAD %d", left);
    type("ghi", 3);
    await_input(pty.slave, 3);
    say("TCOFLUSH %s", outcome(tcflush(pty.slave, TCOFLUSH)));
    ioctl(pty.slave, FIONREAD, &left);
    say("FIONREAD %d", left);
    say("TCIOFLUSH %s", outcome(tcflush(pty.slave, TCIOFLUSH)));
    ioctl(pty.slave, FIONREAD, &left);
    say("FIONREAD %d", left);
    say("of something else: %s", outcome(ioctl(pty.slave, TCFLSH, 9)));
    say("TIOCOUTQ %s", outcome(ioctl(pty.slave, TIOCOUTQ, &left)));
    say("into a bad pointer: %s", outcome(ioctl(pty.slave, TIOCOUTQ, (void *)8)));
    say("TCSBRK 0: %s, 1: %s, TCSBRKP: %s", outcome(ioctl(pty.slave, TCSBRK, 0)), outcome(ioctl(pty.slave, TCSBRK, 1)),
        outcome(ioctl(pty.slave, TCSBRKP, 1)));
    with(&cooked);
    type("typed ahead\n", 12);
    await_input(pty.slave, 12);
    say("TCSETSW keeps input: %s", outcome(tcsetattr(pty.slave, TCSADRAIN, &cooked)));
    ioctl(pty.slave, FIONREAD, &left);
    say("FIONREAD %d", left);
    say("TCSETSF throws it away: %s", outcome(tcsetattr(pty.slave, TCSAFLUSH, &cooked)));
    ioctl(pty.slave, FIONREAD, &left);
    say("FIONREAD %d", left);
}

/* --- settings */

static void settings_forms(void)
{
    struct settings2 two = {0};
    struct winsize size = {1, 2, 3, 4};
    int value = -1;
    say("TCGETS2 %s", outcome(ioctl(pty.slave, TCGETS2, &two)));
    say("  %o %o %o %o, %u %u", two.c_iflag, two.c_oflag, two.c_cflag, two.c_lflag, two.c_ispeed, two.c_ospeed);
    two.c_cflag = (two.c_cflag & ~(tcflag_t)CBAUD) | OTHER_SPEED;
    two.c_ispeed = two.c_ospeed = 12345;
    static const struct {
        unsigned long request;
        const char *name;
    } forms[] = {{TCSETS2, "TCSETS2"}, {TCSETSW2, "TCSETSW2"}, {TCSETSF2, "TCSETSF2"}};
    for (size_t i = 0; i < COUNT_OF(forms); i++) {
        two.c_ospeed = two.c_ispeed = 12345 + (speed_t)i;
        two.c_cc[VMIN] = (cc_t)(3 + i);
        say("%s %s", forms[i].name, outcome(ioctl(pty.slave, forms[i].request, &two)));
        memset(&two, 0, sizeof two);
        ioctl(pty.slave, TCGETS2, &two);
        say("  %o, %u %u, VMIN %d", two.c_cflag, two.c_ispeed, two.c_ospeed, two.c_cc[VMIN]);
        say("  a bad pointer: %s", outcome(ioctl(pty.slave, forms[i].request, (void *)8)));
    }
    say("TCGETS at the master: %s", outcome(tcgetattr(pty.master, &cooked)));
    say("TCSETS at the master: %s", outcome(tcsetattr(pty.master, TCSANOW, &cooked)));
    say("TCGETS into a bad pointer: %s", outcome(ioctl(pty.slave, TCGETS, (void *)8)));
    say("TIOCSWINSZ %s", outcome(ioctl(pty.slave, TIOCSWINSZ, &size)));
    memset(&size, 0, sizeof size);
    say("TIOCGWINSZ %s", outcome(ioctl(pty.master, TIOCGWINSZ, &size)));
    say("  %d %d %d %d", size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel);
    say("  bad pointers: %s, %s", outcome(ioctl(pty.slave, TIOCGWINSZ, (void *)8)), outcome(ioctl(pty.slave, TIOCSWINSZ, (void *)8)));
    say("TIOCGETD %s", outcome(ioctl(pty.slave, TIOCGETD, &value)));
    say("  %d", value);
    say("exclusive: %s", outcome(ioctl(pty.slave, TIOCEXCL)));
    ioctl(pty.slave, TIOCGEXCL, &value);
    say("  %d", value);
    drop_admin();
    say("  opening it: %s", outcome(open(pty.name, O_RDWR | O_NOCTTY)));
    say("  by the master: %s", outcome(ioctl(pty.master, TIOCGPTPEER, O_RDWR | O_NOCTTY)));
    say("not: %s", outcome(ioctl(pty.slave, TIOCNXCL)));
    say("  opening it: %s", outcome(open(pty.name, O_RDWR | O_NOCTTY)));
    say("a request that is none: %s", outcome(ioctl(pty.slave, 0x54FF, 0)));
    say("FIONBIO %s", outcome(ioctl(pty.slave, FIONBIO, &(int){1})));
    char byte;
    say("  read: %s", outcome(read(pty.slave, &byte, 1)));
    say("lseek: %s, pread: %s", outcome(lseek(pty.slave, 0, SEEK_SET)), outcome(pread(pty.slave, &byte, 1, 0)));
}

/* --- names and locks */

static void names(void)
{
    char found[PATH_MAX], path[64];
    struct stat by_fd, by_name;
    int lock = -1, number = -1;
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    say("a new master: %s", outcome(master));
    ioctl(master, TIOCGPTLCK, &lock);
    say("it is locked: %d", lock);
    say("TIOCGPTN: %s, at a slave: %s", outcome(ioctl(master, TIOCGPTN, &number)), outcome(ioctl(pty.slave, TIOCGPTN, &number)));
    snprintf(path, sizeof path, "/dev/pts/%d", number);
    ioctl(master, TIOCGPTN, &number);
    snprintf(path, sizeof path, "/dev/pts/%d", number);
    say("opening the slave: %s", outcome(open(path, O_RDWR | O_NOCTTY)));
    say("by the master: %s", outcome(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY)));
    lock = 0;
    say("unlocking: %s", outcome(ioctl(master, TIOCSPTLCK, &lock)));
    ioctl(master, TIOCGPTLCK, &lock);
    say("it is locked: %d", lock);
    int slave = open(path, O_RDWR | O_NOCTTY);
    say("opening the slave: %s", outcome(slave));
    lock = 1;
    ioctl(master, TIOCSPTLCK, &lock);
    say("locked again: %s", outcome(open(path, O_RDWR | O_NOCTTY)));
    say("ttyname: %s", yes(ttyname_r(slave, found, sizeof found) == 0 && strcmp(found, path) == 0));
    say("ptsname: %s", yes(ptsname_r(master, found, sizeof found) == 0 && strcmp(found, path) == 0));
    snprintf(found, sizeof found, "/proc/self/fd/%d", slave);
    char target[PATH_MAX] = "";
    need(readlink(found, target, sizeof target - 1) > 0, "readlink");
    say("/proc/self/fd: %s", yes(strcmp(target, path) == 0));
    need(fstat(slave, &by_fd) == 0 && stat(path, &by_name) == 0, "stat");
    say("one device: %s, mode %o, own: %s", yes(by_fd.st_rdev == by_name.st_rdev && by_fd.st_ino == by_name.st_ino),
        by_name.st_mode & 0707 /* the group's is an option of the mount */, yes(by_name.st_uid == geteuid()));
    say("ttyname of the master: %s", yes(ttyname_r(master, found, sizeof found) != 0 || strcmp(found, "/dev/ptmx") == 0 || strcmp(found, "/dev/pts/ptmx") == 0));
    close(master);
    say("its master is closed: %s", yes(stat(path, &by_name) < 0 && errno == ENOENT));
    say("isatty: %d", isatty(slave));
    say("many at once:");
    int masters[40];
    for (size_t i = 0; i < COUNT_OF(masters); i++)
        masters[i] = posix_openpt(O_RDWR | O_NOCTTY);
    int distinct = 0;
    for (size_t i = 0; i < COUNT_OF(masters); i++) {
        int mine = -1;
        ioctl(masters[i], TIOCGPTN, &mine);
        bool twice = mine < 0;
        for (size_t j = 0; j < i; j++) {
            int its = -1;
            ioctl(masters[j], TIOCGPTN, &its);
            twice |= its == mine;
        }
        distinct += !twice;
    }
    say("  %d names", distinct);
}

/* --- much data */

static void bulk(void)
{
    struct termios settings = cooked;
    cfmakeraw(&settings);
    with(&settings);
    pid_t child = fork_or_die();
    if (child == 0) {
        unsigned sum = 0;
        char bytes[4096];
        for (size_t left = 1 << 20; left;) {
            ssize_t got = read(pty.slave, bytes, sizeof bytes);
            need(got > 0, "read");
            for (ssize_t i = 0; i < got; i++)
                sum = sum * 31 + (unsigned char)bytes[i];
            left -= (size_t)got;
        }
        say("a million bytes: %u", sum);
        _exit(0);
    }
    char bytes[4096];
    for (int i = 0; i < 256; i++) {
        for (size_t at = 0; at < sizeof bytes; at++)
            bytes[at] = (char)(at * 7 + (size_t)i);
        for (size_t at = 0; at < sizeof bytes;) {
            ssize_t put = write(pty.master, bytes + at, sizeof bytes - at);
            need(put > 0, "write");
            at += (size_t)put;
        }
    }
    reap(child);
}

#define ON_PTY(name)            \
    static void on_##name(void) \
    {                           \
        fresh();                \
        name();                 \
        pty_close(pty);         \
    }
ON_PTY(canonical)
ON_PTY(echoes)
ON_PTY(conversions)
ON_PTY(minimum_and_time)
ON_PTY(flow)
ON_PTY(packets)
ON_PTY(queues)
ON_PTY(names)
ON_PTY(bulk)
ON_PTY(settings_forms)

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"canonical", on_canonical}, {"echoes", on_echoes},   {"conversions", on_conversions},
        {"minimum and time", on_minimum_and_time},            {"flow", on_flow},
        {"packets", on_packets},     {"queues", on_queues},   {"names", on_names},
        {"bulk", on_bulk},           {"settings", on_settings_forms},
    };
    return run_sections(argc, argv, sections, COUNT_OF(sections));
}
