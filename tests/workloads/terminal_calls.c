/* Guest of test_terminals.py: on a terminal of its own, as many calls of a kind as are asked for. */
#include "../../workloads/terminals_common.h"

static struct pty pty;

static void run(const char *what, long count)
{
    char bytes[4] = "abc";
    struct termios settings;
    struct winsize size;
    int value = 'x';
    while (count-- > 0) {
        if (strcmp(what, "tcgetpgrp") == 0)
            need(tcgetpgrp(pty.slave) == getpid(), what);
        else if (strcmp(what, "tcgetsid") == 0)
            need(tcgetsid(pty.slave) == getpid(), what);
        else if (strcmp(what, "tcsetpgrp") == 0)
            need(tcsetpgrp(pty.slave, getpid()) == 0, what);
        else if (strcmp(what, "echo") == 0)
            need(write(pty.master, "ab\n", 3) == 3 && read(pty.slave, bytes, 4) == 3 && read(pty.master, bytes, 4) == 4, what);
        else if (strcmp(what, "settings") == 0)
            need(tcgetattr(pty.slave, &settings) == 0 && tcsetattr(pty.slave, TCSANOW, &settings) == 0 &&
                     ioctl(pty.slave, TIOCGWINSZ, &size) == 0 && ioctl(pty.slave, FIONREAD, &value) == 0 &&
                     tcflush(pty.slave, TCIOFLUSH) == 0 && open("/dev/tty", O_RDWR) >= 0,
                 what);
    }
}

int main(int argc, char **argv)
{
    pty = pty_new();
    setsid();
    need(ioctl(pty.slave, TIOCSCTTY, 0) == 0, "TIOCSCTTY");
    for (int i = 1; i + 1 < argc; i += 2)
        run(argv[i], atol(argv[i + 1]));
    char byte = 'x';
    say("foreground: %d", tcgetpgrp(pty.slave) == getpid() ? 0 : (int)tcgetpgrp(pty.slave));
    say("TIOCSTI: %s", outcome(ioctl(pty.slave, TIOCSTI, &byte)));
    say("TIOCSTI, bad pointer: %s", outcome(ioctl(pty.slave, TIOCSTI, (void *)8)));
    say("TIOCSTI at the master: %s", outcome(ioctl(pty.master, TIOCSTI, &byte)));
    return 0;
}
