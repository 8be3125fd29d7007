/* Checkpoints of what descriptors lead to: pipes and sockets with unread data, descriptors in flight, files without a
 * name, seals, locks, readiness that was reported or was not. */
#include "saved_common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static char directory[] = "/var/tmp/saved-XXXXXX";
static struct gate ready, go;

static const char *in_directory(const char *name)
{
    static char paths[4][128];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, 128, "%s/%s", directory, name);
    return path;
}

/* What one read gives: its text, an error, or that it is the end. */
static const char *text_of(int fd)
{
    static char texts[2][64];
    static int turn;
    char *text = texts[turn ^= 1];
    ssize_t size = read(fd, text, 63);
    if (size < 0)
        return error_name(errno);
    text[size] = 0;
    return size ? text : "the end";
}

static void put(int fd, const char *text)
{
    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        say("write: %s", error_name(errno));
}

static void pipes(void)
{
    int plain[2], packets[2], ended[2], full[2];
    if (pipe(plain) || pipe2(packets, O_DIRECT | O_NONBLOCK) || pipe(ended) || pipe2(full, O_NONBLOCK))
        say("pipe: %s", error_name(errno));
    fcntl(plain[1], F_SETPIPE_SZ, 8192);
    put(plain[1], "plain");
    put(packets[1], "one");
    put(packets[1], "two");
    put(ended[1], "rest");
    close(ended[1]);
    char block[4096] = {'x'};
    long filled = 0, drained = 0;
    for (ssize_t size; (size = write(full[1], block, sizeof block)) > 0; filled += size)
        ;
    checkpoint_marker();
    say("capacity %d, %s", fcntl(plain[0], F_GETPIPE_SZ), text_of(plain[0]));
    const char *first = text_of(packets[0]), *second = text_of(packets[0]);
    say("packets: %s, %s; then %s", first, second, yes(read(packets[0], block, 1) < 0 && errno == EAGAIN));
    first = text_of(ended[0]);
    say("without a writer: %s, then %s", first, text_of(ended[0]));
    say("full: no more %s", yes(write(full[1], block, 1) < 0 && errno == EAGAIN));
    for (ssize_t size; (size = read(full[0], block, sizeof block)) > 0; drained += size)
        ;
    say("full: all is there %s", yes(filled == drained));
    close(plain[0]), close(plain[1]), close(packets[0]), close(packets[1]);
    close(ended[0]), close(full[0]), close(full[1]);
}

static void files(void)
{
    const char *path = in_directory("deleted");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0640), same = dup(fd), other = open(path, O_RDONLY);
    int unnamed = open(directory, O_TMPFILE | O_RDWR, 0600);
    int append = open(in_directory("kept"), O_CREAT | O_APPEND | O_RDWR, 0600);
    put(fd, "0123456789");
    put(unnamed, "unnamed");
    put(append, "abc");
    lseek(fd, 3, SEEK_SET);
    lseek(other, 7, SEEK_SET);
    lseek(unnamed, 2, SEEK_SET);
    char *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    unlink(path);
    mapped[4] = 'M';
    checkpoint_marker();
    struct stat status, again;
    fstat(fd, &status);
    fstat(other, &again);
    say("deleted: links %d, mode %o, one file %s", (int)status.st_nlink, status.st_mode & 0777,
        yes(status.st_ino == again.st_ino));
    mapped[5] = 'N';
    say("a mapping of it is it: %s", text_of(same));
    int offset = (int)lseek(fd, 0, SEEK_CUR);
    say("a shared offset: %d, one of its own: %s", offset, text_of(other));
    say("never named: %s", text_of(unnamed));
    put(append, "def");
    lseek(append, 0, SEEK_SET);
    say("O_APPEND: %s; closed by exec %d, kept %d", text_of(append), fcntl(fd, F_GETFD), fcntl(same, F_GETFD));
    munmap(mapped, 4096);
    close(fd), close(same), close(other), close(unnamed), close(append);
}

static void memory_files(void)
{
    int fd = memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC), open_one = memfd_create("open", 0);
    put(fd, "sealed");
    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE);
    if (ftruncate(open_one, 8192) < 0)
        say("ftruncate: %s", error_name(errno));
    char *mapped = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, open_one, 0);
    char *of_both = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ready = gate_new();
    go = gate_new();
    pid_t child = fork_or_die();
    if (child == 0) {
        gate_open(ready);
        gate_wait(go);
        of_both[1] = (char)(of_both[0] + 1);
        mapped[1] = (char)(mapped[0] + 1);
        _exit(0);
    }
    gate_wait(ready);
    checkpoint_marker();
    say("seals: %#x, write %s, shrink %s, grow %s", fcntl(fd, F_GET_SEALS), outcome(write(fd, "x", 1)),
        outcome(ftruncate(fd, 1)), outcome(ftruncate(fd, 100)));
    of_both[0] = 'a';
    mapped[0] = 'p';
    gate_open(go);
    reap(child);
    char byte = 0;
    long size = pread(open_one, &byte, 1, 1);
    say("shared with the child: %c, the file's too: %c, read %ld %c", of_both[1], mapped[1], size, byte);
    munmap(mapped, 8192);
    munmap(of_both, 4096);
    close(fd), close(open_one);
    gate_free(ready), gate_free(go);
}

static struct flock range(short type, off_t start, off_t length)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

static void locks(void)
{
    const char *path = in_directory("locks");
    int by_flock = open(path, O_RDWR | O_CREAT, 0600), by_record = open(path, O_RDWR);
    int by_description = open(path, O_RDWR);
    struct flock lock = range(F_WRLCK, 0, 10), shared = range(F_RDLCK, 20, 10), own = range(F_WRLCK, 40, 10);
    flock(by_flock, LOCK_EX);
    fcntl(by_record, F_SETLK, &lock);
    fcntl(by_record, F_SETLK, &shared);
    fcntl(by_description, F_OFD_SETLK, &own);
    ready = gate_new();
    pid_t waiter = fork_or_die();
    if (waiter == 0) {
        int fd = open(path, O_RDWR);
        struct flock wanted = range(F_WRLCK, 0, 5);
        gate_open(ready);
        say("  it waited for the lock: %s", outcome(fcntl(fd, F_SETLKW, &wanted)));
        _exit(0);
    }
    gate_wait(ready);
    let_them_wait();
    checkpoint_marker();
    pid_t child = fork_or_die();
    if (child == 0) {
        int fd = open(path, O_RDWR);
        struct flock ask = range(F_WRLCK, 0, 1), asks = range(F_RDLCK, 25, 1), asks_own = range(F_WRLCK, 45, 1);
        say("  flock: %s", outcome(flock(fd, LOCK_EX | LOCK_NB)));
        fcntl(fd, F_GETLK, &ask);
        say("  record: type %d, from %d, %d bytes, the parent's %s", ask.l_type, (int)ask.l_start, (int)ask.l_len,
            yes(ask.l_pid == getppid()));
        say("  a shared one can be shared: %s", outcome(fcntl(fd, F_SETLK, &asks)));
        fcntl(fd, F_OFD_GETLK, &asks_own);
        say("  of a description: type %d, from %d, of process %d", asks_own.l_type, (int)asks_own.l_start,
            asks_own.l_pid);
        say("  with the description itself: %s", outcome(flock(by_flock, LOCK_EX | LOCK_NB)));
        _exit(0);
    }
    reap(child);
    lock.l_type = F_UNLCK;
    fcntl(by_record, F_SETLK, &lock);
    reap(waiter);
    close(by_flock), close(by_record), close(by_description);
    gate_free(ready);
}

/* -- sockets */
static void send_descriptors(int socket, int first, int second)
{
    char byte = 'd', room[CMSG_SPACE(2 * sizeof(int))] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(2 * sizeof(int));
    memcpy(CMSG_DATA(header), (int[]){first, second}, 2 * sizeof(int));
    if (sendmsg(socket, &message, 0) < 0)
        say("sendmsg: %s", error_name(errno));
}

static void take_descriptors(int socket, int *found)
{
    char byte, room[CMSG_SPACE(2 * sizeof(int))];
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    found[0] = found[1] = -1;
    if (recvmsg(socket, &message, 0) == 1 && CMSG_FIRSTHDR(&message))
        memcpy(found, CMSG_DATA(CMSG_FIRSTHDR(&message)), 2 * sizeof(int));
}

static void in_flight(void)
{
    int pair[2], inner[2], ends[2], found[2], found_inner[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || socketpair(AF_UNIX, SOCK_DGRAM, 0, inner) || pipe(ends))
        say("sockets: %s", error_name(errno));
    put(ends[1], "in the pipe");
    send_descriptors(inner[0], ends[0], ends[1]); /* in flight within what is in flight */
    send_descriptors(pair[0], inner[0], inner[1]);
    close(ends[0]), close(ends[1]), close(inner[0]), close(inner[1]);
    checkpoint_marker();
    take_descriptors(pair[1], found);
    take_descriptors(found[1], found_inner);
    say("in flight within a socket in flight: %s", text_of(found_inner[0]));
    close(pair[0]), close(pair[1]), close(found[0]), close(found[1]), close(found_inner[0]), close(found_inner[1]);
}

static void unix_sockets(void)
{
    int pair[2], messages[2], half[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, messages) ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, half))
        say("socketpair: %s", error_name(errno));
    struct sockaddr_un name = {.sun_family = AF_UNIX}, from;
    snprintf(name.sun_path, sizeof name.sun_path, "%s/socket", directory);
    int receiver = socket(AF_UNIX, SOCK_DGRAM, 0), sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    bind(receiver, (struct sockaddr *)&name, sizeof name);
    snprintf(name.sun_path, sizeof name.sun_path, "%s/sender", directory);
    bind(sender, (struct sockaddr *)&name, sizeof name);
    snprintf(name.sun_path, sizeof name.sun_path, "%s/socket", directory);
    connect(sender, (struct sockaddr *)&name, sizeof name);
    put(pair[0], "there");
    put(pair[1], "back");
    put(messages[0], "first");
    put(messages[0], "second");
    put(sender, "datagram");
    put(half[0], "last");
    shutdown(half[0], SHUT_WR);
    checkpoint_marker();
    const char *first = text_of(pair[1]);
    say("stream: %s, %s", first, text_of(pair[0]));
    first = text_of(messages[1]);
    say("messages: %s, %s", first, text_of(messages[1]));
    first = text_of(half[1]);
    say("shut down: %s, then %s; the other way %s", first, text_of(half[1]), outcome(write(half[1], "x", 1)));
    char text[16] = "";
    socklen_t length = sizeof from;
    ssize_t size = recvfrom(receiver, text, sizeof text - 1, 0, (struct sockaddr *)&from, &length);
    bool named = strcmp(strrchr(from.sun_path, '/'), "/sender") == 0;
    say("datagram: %zd %s, its sender by name %s", size, text, yes(named));
    struct ucred peer;
    length = sizeof peer;
    getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &peer, &length);
    say("peer: ourselves %s", yes(peer.pid == getpid() && peer.uid == getuid()));
    close(pair[0]), close(pair[1]), close(messages[0]), close(messages[1]), close(half[0]), close(half[1]);
    close(receiver), close(sender);
}

static void internet(void)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    int datagrams = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, now;
    socklen_t length = sizeof place;
    bind(listener, (struct sockaddr *)&place, sizeof place);
    listen(listener, 5);
    getsockname(listener, (struct sockaddr *)&place, &length);
    connect(client, (struct sockaddr *)&place, sizeof place);
    int server = accept(listener, NULL, NULL);
    put(client, "to the server");
    put(server, "to the client");
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    bind(datagrams, (struct sockaddr *)&own, sizeof own);
    getsockname(datagrams, (struct sockaddr *)&own, &length);
    sendto(datagrams, "datagram", 8, 0, (struct sockaddr *)&own, sizeof own);
    checkpoint_marker();
    const char *first = text_of(server);
    say("unread: %s, %s", first, text_of(client));
    put(client, "more");
    say("goes on: %s", text_of(server));
    shutdown(client, SHUT_WR);
    say("ends: %s", text_of(server));
    getsockname(listener, (struct sockaddr *)&now, &length);
    int second = socket(AF_INET, SOCK_STREAM, 0);
    say("listens at its port: %s, connect %s", yes(now.sin_port == place.sin_port),
        outcome(connect(second, (struct sockaddr *)&now, sizeof now)));
    say("datagram: %s", text_of(datagrams));
    close(listener), close(client), close(server), close(datagrams), close(second);
}

/* -- readiness */
static void readiness(void)
{
    int epoll = epoll_create1(0), event = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
    int once = eventfd(1, 0), quiet = eventfd(0, 0);
    struct epoll_event found[4], interest = {EPOLLIN, {.u64 = 1}};
    epoll_ctl(epoll, EPOLL_CTL_ADD, event, &interest);
    interest = (struct epoll_event){EPOLLIN | EPOLLONESHOT, {.u64 = 2}};
    epoll_ctl(epoll, EPOLL_CTL_ADD, once, &interest);
    interest = (struct epoll_event){EPOLLIN | EPOLLET, {.u64 = 3}};
    epoll_ctl(epoll, EPOLL_CTL_ADD, quiet, &interest);
    int before = epoll_wait(epoll, found, 4, 0);
    int watches = inotify_init1(IN_NONBLOCK);
    int watch = inotify_add_watch(watches, directory, IN_CREATE);
    checkpoint_marker();
    int after = epoll_wait(epoll, found, 4, 0);
    say("ready: %d, then %d: %d", before, after, (int)found[0].data.u64);
    interest = (struct epoll_event){EPOLLIN | EPOLLONESHOT, {.u64 = 2}};
    say("once: set again %s", outcome(epoll_ctl(epoll, EPOLL_CTL_MOD, once, &interest)));
    eventfd_write(quiet, 1);
    after = epoll_wait(epoll, found, 4, 0);
    int again = epoll_wait(epoll, found, 4, 0);
    say("all: %d, again %d", after, again);
    eventfd_t value = 0;
    int taken = 0;
    while (eventfd_read(event, &value) == 0)
        taken++;
    say("semaphore: %d", taken);
    close(open(in_directory("created"), O_CREAT | O_WRONLY, 0600));
    char room[512] __attribute__((aligned(8)));
    struct inotify_event *told = (struct inotify_event *)room;
    bool came = read(watches, room, sizeof room) > 0;
    say("watch: %s", yes(came && told->wd == watch && strcmp(told->name, "created") == 0));
    close(epoll), close(event), close(once), close(quiet), close(watches);
}

static volatile sig_atomic_t signalled;

static void owner_told(int signo, siginfo_t *info, void *context)
{
    (void)context;
    signalled = signo == SIGRTMIN && (info->si_band & POLLIN) ? 1 : 2;
}

static void owners(void)
{
    int pair[2];
    struct sigaction action = {.sa_sigaction = owner_told, .sa_flags = SA_SIGINFO};
    sigaction(SIGRTMIN, &action, NULL);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        say("socketpair: %s", error_name(errno));
    fcntl(pair[0], F_SETOWN, getpid());
    fcntl(pair[0], F_SETSIG, SIGRTMIN);
    fcntl(pair[0], F_SETFL, O_ASYNC | O_NONBLOCK);
    checkpoint_marker();
    put(pair[1], "x");
    while (!signalled)
        sleep_ms(1);
    say("O_ASYNC: its signal with what is ready %s, owner %s", yes(signalled == 1),
        yes(fcntl(pair[0], F_GETOWN) == getpid()));
    close(pair[0]), close(pair[1]);
    signal(SIGRTMIN, SIG_DFL);
}

static void system_v(void)
{
    int segment = shmget(IPC_PRIVATE, 8192, 0600), semaphores = semget(IPC_PRIVATE, 2, 0600);
    int queue = msgget(IPC_PRIVATE, 0600);
    char *mapped = shmat(segment, NULL, 0);
    strcpy(mapped, "attached");
    shmctl(segment, IPC_RMID, NULL);
    semctl(semaphores, 0, SETVAL, 5);
    semctl(semaphores, 1, SETVAL, 7);
    struct { long type; char text[8]; } message = {2, "second"}, first = {1, "first"};
    msgsnd(queue, &message, 7, 0);
    msgsnd(queue, &first, 6, 0);
    checkpoint_marker();
    struct shmid_ds facts = {0};
    const char *found = outcome(shmctl(segment, IPC_STAT, &facts));
    say("segment: %s, %s, attached %d", mapped, found, (int)facts.shm_nattch);
    say("semaphores: %d %d", semctl(semaphores, 0, GETVAL), semctl(semaphores, 1, GETVAL));
    msgrcv(queue, &first, 8, 1, 0);
    msgrcv(queue, &message, 8, 0, 0);
    say("messages: %s, %s", first.text, message.text);
    shmdt(mapped);
    semctl(semaphores, 0, IPC_RMID);
    msgctl(queue, IPC_RMID, NULL);
}

int main(int argc, char **argv)
{
    static const struct section sections[] = {
        {"pipes", pipes}, {"files", files}, {"memory", memory_files}, {"locks", locks}, {"flight", in_flight},
        {"unix", unix_sockets}, {"internet", internet}, {"readiness", readiness}, {"owners", owners},
        {"system-v", system_v},
    };
    if (mkdtemp(directory) == NULL)
        return 1;
    int result = run_sections(argc, argv, sections, COUNT_OF(sections));
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    return system(command) == 0 ? result : 1;
}
