/* execve and execveat: what may be executed, what goes wrong and how, and what survives. The program runs
 * itself again with a first argument "as-..." to look from inside. */
#include "common.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>

extern char **environ;

static char directory[] = "/tmp/exec-XXXXXX";
static char self[4096];

static char *in_directory(const char *name)
{
    static char paths[4][128];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, 128, "%s/%s", directory, name);
    return path;
}

static char *make(const char *name, const void *content, size_t size, mode_t mode)
{
    char *path = in_directory(name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, content, size) != (ssize_t)size)
        say("%s: %s", name, error_name(errno));
    fchmod(fd, mode);
    close(fd);
    return path;
}

static char *make_text(const char *name, const char *text)
{
    return make(name, text, strlen(text), 0755);
}

/* Runs in a child; its end is reported, a failed exec by its error. */
static void attempt(const char *what, const char *path, char **argv, char **envp)
{
    struct gate failure = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        execve(path, argv, envp);
        int error = errno;
        if (write(failure.ends[1], &error, sizeof error) < 0)
            _exit(1);
        _exit(120);
    }
    close(failure.ends[1]);
    int error = 0, status = reap(child);
    if (read(failure.ends[0], &error, sizeof error) == sizeof error)
        say("%s: %s", what, error_name(error));
    else
        say("%s: %s", what, status_text(status));
    close(failure.ends[0]);
}

static void plain(const char *what, const char *path)
{
    char *argv[] = {"name", "one", "two", NULL};
    attempt(what, path, argv, environ);
}

static void scripts(void)
{
    char text[256];
    plain("script", make_text("script", "#!/bin/sh\necho \"$# ${1##*/} $2\"; exit 5\n"));
    plain("interpreter with an argument", make_text("argument", "#!/bin/sh -e\nfalse\nexit 9\n"));
    plain("blanks before the interpreter", make_text("blanks", "#!  /bin/sh   \nexit 6\n"));
    plain("no newline at the end", make_text("bare", "#!/bin/true"));
    snprintf(text, sizeof text, "#!%s/script\n", directory);
    plain("script as interpreter of a script", make_text("nested", text));
    char *last = NULL;
    for (int depth = 0; depth < 7; depth++) {
        char name[16];
        snprintf(name, sizeof name, "deep%d", depth);
        snprintf(text, sizeof text, "#!%s\n", last ? last : "/bin/true");
        last = make_text(name, text);
        if (depth > 2)
            plain(name, last);
    }
    plain("missing interpreter", make_text("missing", "#!/nonexistent/interpreter\n"));
    plain("interpreter is a directory", make_text("directory", "#!/tmp\n"));
    plain("no interpreter named", make_text("nothing", "#!\nexit 3\n"));
    plain("windows line ends", make_text("windows", "#!/bin/sh\r\nexit 3\n"));
}

static void not_executable(void)
{
    unsigned char elf[64] = {0x7f, 'E', 'L', 'F', 2, 1, 1};
    char long_name[300];
    plain("missing file", "/nonexistent");
    plain("empty path", "");
    plain("directory", "/tmp");
    plain("no x bit", make("plain", "#!/bin/sh\n", 10, 0644));
    plain("text without #!", make_text("text", "exit 4\n"));
    plain("empty file", make_text("empty", ""));
    plain("two bytes", make_text("two", "#!"));
    plain("file as a directory", in_directory("text/x"));
    plain("device", "/dev/null");
    elf[16] = 2;   /* ET_EXEC */
    elf[18] = 183; /* EM_AARCH64 */
    elf[20] = 1;
    plain("another architecture", make("foreign", elf, sizeof elf, 0755));
    elf[18] = 62; /* ours, but no program headers */
    plain("no program headers", make("headless", elf, sizeof elf, 0755));
    plain("cut off", make("short", elf, 20, 0755));
    elf[18] = 3; /* EM_386 in a 64-bit file */
    plain("wrong class", make("class", elf, sizeof elf, 0755));
    if (symlink("loop", in_directory("loop")) < 0)
        say("symlink: %s", error_name(errno));
    plain("loop of links", in_directory("loop"));
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    plain("name too long", long_name);
    plain("path at NULL", NULL);
    attempt("argv at a bad address", "/bin/true", (char **)8, environ);
    attempt("environment at a bad address", "/bin/true", (char *[]){"true", NULL}, (char **)8);
    attempt("argument at a bad address", "/bin/true", (char *[]){"true", (char *)8, NULL}, environ);
}

static void limits(void)
{
    const size_t page = 4096, longest = 32 * page;
    char *text = malloc(longest + 1);
    memset(text, 'a', longest);
    text[longest - 1] = 0;
    attempt("longest argument", "/bin/true", (char *[]){"true", text, NULL}, environ);
    text[longest - 1] = 'a';
    text[longest] = 0;
    attempt("one byte more", "/bin/true", (char *[]){"true", text, NULL}, environ);
    text[longest - 1] = 0;
    char **many = calloc(102, sizeof *many);
    for (int i = 0; i < 100; i++)
        many[i] = text;
    attempt("13 MB of arguments", "/bin/true", many, environ);
    attempt("13 MB of environment", "/bin/true", (char *[]){"true", NULL}, many);
    char **small = calloc(20002, sizeof *small);
    for (int i = 0; i < 20000; i++)
        small[i] = "x";
    attempt("20000 arguments", "/bin/true", small, environ);
    attempt("no arguments", self, (char *[]){NULL}, (char *[]){"EXEC_TEST=as-empty", NULL});
    attempt("no argv at all", self, NULL, (char *[]){"EXEC_TEST=as-empty", NULL});
    attempt("no environment at all", self, (char *[]){"exec", "as-bare", NULL}, NULL);
    attempt("one variable", self, (char *[]){"exec", "as-environment", "", "a b", NULL}, (char *[]){"A=b c", NULL});
    free(text);
    free(many);
    free(small);
}

static int execveat_call(int fd, const char *path, char **argv, int flags)
{
    return (int)syscall(SYS_execveat, fd, path, argv, environ, flags);
}

static void at(const char *what, int fd, const char *path, int flags)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        char *argv[] = {"name", "a", "b", NULL};
        execveat_call(fd, path, argv, flags);
        say("%s: %s", what, error_name(errno));
        _exit(120);
    }
    say("%s: %s", what, status_text(reap(child)));
}

static void execveats(void)
{
    int folder = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    at("relative to a directory that exec closes", folder, "script", 0);
    fcntl(folder, F_SETFD, 0);
    at("relative to a directory", folder, "script", 0);
    at("missing there", folder, "nothing-here", 0);
    at("absolute path", -1, "/bin/true", 0);
    int fd = open("/bin/true", O_PATH | O_CLOEXEC);
    at("descriptor of a binary", fd, "", AT_EMPTY_PATH);
    at("without AT_EMPTY_PATH", fd, "", 0);
    close(fd);
    fd = open(in_directory("script"), O_RDONLY | O_CLOEXEC);
    at("script by a descriptor that exec closes", fd, "", AT_EMPTY_PATH);
    fcntl(fd, F_SETFD, 0);
    at("script by one that stays", fd, "", AT_EMPTY_PATH);
    close(fd);
    if (symlinkat("script", folder, "link") < 0)
        say("symlinkat: %s", error_name(errno));
    at("through a link", folder, "link", 0);
    at("AT_SYMLINK_NOFOLLOW", folder, "link", AT_SYMLINK_NOFOLLOW);
    at("bad descriptor", 999, "x", 0);
    at("bad flags", folder, "script", 0x40);
    int memory = memfd_create("program", MFD_CLOEXEC);
    char block[65536];
    ssize_t size;
    fd = open("/bin/true", O_RDONLY | O_CLOEXEC);
    while ((size = read(fd, block, sizeof block)) > 0)
        if (write(memory, block, (size_t)size) != size)
            break;
    close(fd);
    at("anonymous memory", memory, "", AT_EMPTY_PATH);
    close(memory);
    close(folder);
}

static void *exec_in_thread(void *argument)
{
    char **argv = argument;
    execv(self, argv);
    return NULL;
}

static void *wait_forever(void *argument)
{
    for (;;)
        pause();
    return argument;
}

static void from_thread(void)
{
    for (int round = 0; round < 3; round++) {
        pid_t child = fork_or_die();
        if (child == 0) {
            char id[16];
            pthread_t thread;
            snprintf(id, sizeof id, "%d", getpid());
            char *argv[] = {"exec", "as-thread", id, NULL};
            for (int i = 0; i < 3 * round; i++)
                pthread_create(&thread, NULL, wait_forever, NULL);
            pthread_create(&thread, NULL, exec_in_thread, argv);
            pthread_join(thread, NULL);
            _exit(1);
        }
        say("exec by a thread: %s", status_text(reap(child)));
    }
    pid_t child = fork_or_die();
    if (child == 0) {
        pthread_t thread;
        char *argv[] = {"exec", NULL};
        strcpy(self, "/nonexistent");
        pthread_create(&thread, NULL, exec_in_thread, argv);
        pthread_join(thread, NULL);
        _exit(23);
    }
    say("failed exec by a thread: %s", status_text(reap(child)));
}

static void handler(int signo)
{
    (void)signo;
}

static void survivors(void)
{
    pid_t child = fork_or_die();
    if (child == 0) {
        char kept[16], closed[16];
        sigset_t set;
        timer_t timer;
        stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
        struct itimerval interval = {.it_value = {1000, 0}};
        struct sigevent event = {.sigev_notify = SIGEV_NONE};
        snprintf(kept, sizeof kept, "%d", open("/dev/null", O_RDONLY));
        snprintf(closed, sizeof closed, "%d", open("/dev/null", O_RDONLY | O_CLOEXEC));
        signal(SIGUSR1, SIG_IGN);
        signal(SIGUSR2, handler);
        sigemptyset(&set);
        sigaddset(&set, SIGHUP);
        sigaddset(&set, SIGRTMIN + 1);
        sigprocmask(SIG_SETMASK, &set, NULL);
        kill(getpid(), SIGHUP);
        sigaltstack(&stack, NULL);
        setitimer(ITIMER_REAL, &interval, NULL);
        timer_create(CLOCK_MONOTONIC, &event, &timer);
        prctl(PR_SET_NAME, "old-name");
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        execl(self, "exec", "as-survivor", kept, closed, (char *)NULL);
        _exit(1);
    }
    say("seen from inside: %s", status_text(reap(child)));
}

static int look_from_inside(int argc, char **argv)
{
    if (strcmp(argv[1], "as-thread") == 0) {
        struct stat tasks;
        bool alone = stat("/proc/self/task", &tasks) == 0 && tasks.st_nlink == 3;
        say("same id %s, leader %s, the only thread %s", yes(getpid() == atoi(argv[2])),
            yes(getpid() == syscall(SYS_gettid)), yes(alone));
    } else if (strcmp(argv[1], "as-environment") == 0) {
        say("argc %d, [%s] [%s], environment [%s], next %s", argc, argv[2], argv[3], environ[0], environ[1] ? "some" : "none");
    } else if (strcmp(argv[1], "as-bare") == 0) {
        say("environment is empty: %s", yes(environ[0] == NULL));
    } else if (strcmp(argv[1], "as-survivor") == 0) {
        struct sigaction action;
        struct itimerval interval;
        struct itimerspec setting;
        stack_t stack;
        sigset_t set, pending;
        char name[17] = "";
        int death = -1;
        sigaction(SIGUSR1, NULL, &action);
        say("ignored stays ignored: %s", yes(action.sa_handler == SIG_IGN));
        sigaction(SIGUSR2, NULL, &action);
        say("handled becomes default: %s", yes(action.sa_handler == SIG_DFL));
        sigprocmask(SIG_SETMASK, NULL, &set);
        sigpending(&pending);
        say("mask: %d %d %d, pending: %d", sigismember(&set, SIGHUP), sigismember(&set, SIGRTMIN + 1),
            sigismember(&set, SIGUSR1), sigismember(&pending, SIGHUP));
        sigaltstack(NULL, &stack);
        say("alternate stack gone: %s", yes(stack.ss_flags == SS_DISABLE));
        getitimer(ITIMER_REAL, &interval);
        say("interval timer runs on: %s", yes(interval.it_value.tv_sec > 900));
        say("POSIX timer: %s", outcome(syscall(SYS_timer_gettime, 0, &setting)));
        say("kept: %s, closed: %s", outcome(fcntl(atoi(argv[2]), F_GETFD)), outcome(fcntl(atoi(argv[3]), F_GETFD)));
        prctl(PR_GET_NAME, name);
        prctl(PR_GET_PDEATHSIG, &death);
        say("name %s, PDEATHSIG kept %s", name, yes(death == SIGTERM));
    }
    return 44;
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"scripts", scripts}, {"errors", not_executable}, {"limits", limits}, {"execveat", execveats},
        {"thread", from_thread}, {"survivors", survivors},
    };
    const char *test = getenv("EXEC_TEST");
    if (test != NULL && strcmp(test, "as-empty") == 0) {
        say("argc %d, argv[0] is empty: %s", argc, yes(argv[0] != NULL && argv[0][0] == 0));
        return 45;
    }
    if (argc > 1 && strncmp(argv[1], "as-", 3) == 0)
        return look_from_inside(argc, argv);
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0 || mkdtemp(directory) == NULL)
        return 1;
    self[length] = 0;
    make_text("script", "#!/bin/sh\necho \"$# ${1##*/} $2\"; exit 5\n");
    int result = run_sections(argc, argv, sections, COUNT_OF(sections));
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    return system(command) == 0 ? result : 1;
}
