/* kill(2) is never interrupted, whatever handlers run around it: a call that an answering kernel was slow to take
 * up must not be given back with EINTR. */
#include "common.h"

static void handler(int signo)
{
    (void)signo;
}

int main(void)
{
    struct sigaction action = {.sa_handler = handler}; /* no SA_RESTART */
    sigaction(SIGCHLD, &action, NULL);
    int interrupted = 0;
    for (int round = 0; round < 500; round++) {
        pid_t child = fork_or_die();
        if (child == 0)
            _exit(0);
        for (int i = 0; i < 20; i++)
            if (kill(getpid(), 0) < 0 && errno == EINTR)
                interrupted++;
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    say("kill interrupted: %d", interrupted);
    return 0;
}
