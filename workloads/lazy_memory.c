/* Memory that may still be on its way while a program uses it, and changes what is where: threads at random, fork, exec,
 * munmap, mremap, mprotect, madvise, calls of the kernel's. Each page has a pattern of its own, and is compared whole.
 *
 * lazy_memory PAGES [-u SOCKET FILE] [-d]
 *   fills so many pages, says "ready", and waits for a file "go" in the working directory (without -u); then all parts.
 *   -u  hands a userfaultfd for its memory to a socket, the content to a file, and is given both back by whoever answers
 *   -d  touches all pages once instead, and counts those that give SIGBUS
 *   -c  ends by SIGABRT instead
 * lazy_memory NUMBER -w
 *   writes what the page of that number holds
 */
#include "common.h"

#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define THREADS 4

static char *memory;
static unsigned long pages;

static uint64_t mixed(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ul;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebul;
    return x ^ x >> 31;
}

static void fill(void *page, unsigned long number)
{
    uint64_t *words = page, x = mixed(number + 1);
    for (unsigned long i = 0; i < WORDS; i++)
        words[i] = x = x * 6364136223846793005ul + 1442695040888963407ul;
}

static bool is_right(const void *page, unsigned long number)
{
    const volatile uint64_t *words = page;
    uint64_t x = mixed(number + 1);
    for (unsigned long i = 0; i < WORDS; i++)
        if (words[i] != (x = x * 6364136223846793005ul + 1442695040888963407ul))
            return false;
    return true;
}

static bool is_zero(const void *page)
{
    const volatile uint64_t *words = page;
    for (unsigned long i = 0; i < WORDS; i++)
        if (words[i])
            return false;
    return true;
}

/* Pages from `first` on, which are at `at` now: how many are not as they were. */
static unsigned long wrong(const char *at, unsigned long first, unsigned long count)
{
    unsigned long bad = 0;
    for (unsigned long i = 0; i < count; i++)
        bad += !is_right(at + i * PAGE, first + i);
    return bad;
}

static unsigned long not_zero(const char *at, unsigned long count)
{
    unsigned long bad = 0;
    for (unsigned long i = 0; i < count; i++)
        bad += !is_zero(at + i * PAGE);
    return bad;
}

static void tell(const char *what, unsigned long bad)
{
    if (bad)
        say("%s: %lu pages are wrong", what, bad);
    else
        say("%s: right", what);
}

static char *page(unsigned long number) { return memory + number * PAGE; }

static void must(bool good, const char *what)
{
    if (!good) {
        say("%s: %s", what, strerror(errno));
        _exit(2);
    }
}

/* -- parts, each on pages of its own */
struct part {
    unsigned long first, count;
};

static void *touch(void *argument)
{
    const struct part *part = argument;
    uint64_t x = (uint64_t)(uintptr_t)&argument;
    unsigned long bad = 0;
    for (unsigned long i = 0; i < part->count; i++) {
        x = mixed(x + i);
        unsigned long number = part->first + x % part->count;
        bad += !is_right(page(number), number);
    }
    return (void *)bad;
}

static void threads(struct part part)
{
    pthread_t made[THREADS];
    unsigned long bad = 0;
    for (int i = 0; i < THREADS; i++)
        must(!pthread_create(&made[i], NULL, touch, &part), "pthread_create");
    for (int i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(made[i], &result);
        bad += (unsigned long)result;
    }
    tell("threads at random", bad);
}

static void drop(struct part part)
{
    unsigned long third = part.count / 3;
    char *middle = page(part.first + third);
    must(!madvise(middle, third * PAGE, MADV_DONTNEED), "madvise");
    unsigned long bad = not_zero(middle, third) + wrong(page(part.first), part.first, third);
    bad += wrong(middle + third * PAGE, part.first + 2 * third, part.count - 2 * third);
    for (unsigned long i = 0; i < third; i++)
        fill(middle + i * PAGE, part.first + i);
    tell("MADV_DONTNEED", bad + wrong(middle, part.first, third));
}

static void unmap(struct part part)
{
    unsigned long third = part.count / 3;
    char *middle = page(part.first + third);
    must(!munmap(middle, third * PAGE), "munmap");
    must(mmap(middle, third * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == middle, "mmap");
    unsigned long bad = not_zero(middle, third) + wrong(page(part.first), part.first, third);
    tell("munmap", bad + wrong(middle + third * PAGE, part.first + 2 * third, part.count - 2 * third));
    must(mmap(middle, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == middle, "mmap");
    char *over = page(part.first + 2 * third);
    must(mmap(over, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == over, "mmap");
    tell("mmap over it", not_zero(over, 1) + wrong(over + PAGE, part.first + 2 * third + 1, 1));
}

static void move(struct part part)
{
    unsigned long quarter = part.count / 4;
    /* away, and over what lies elsewhere */
    char *free_place = mmap(NULL, quarter * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *from = page(part.first);
    char *to = mremap(from, quarter * PAGE, quarter * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, free_place);
    must(to == free_place, "mremap");
    tell("mremap", wrong(to, part.first, quarter));
    char *over = page(part.first + quarter);
    to = mremap(page(part.first + 2 * quarter), quarter * PAGE, quarter * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, over);
    must(to == over, "mremap");
    tell("mremap over others", wrong(to, part.first + 2 * quarter, quarter));
    /* and back, half of it, over what was left free */
    to = mremap(over, quarter / 2 * PAGE, quarter / 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, from);
    must(to == from, "mremap");
    unsigned long bad = wrong(to, part.first + 2 * quarter, quarter / 2);
    tell("mremap of a part", bad + wrong(over + quarter / 2 * PAGE, part.first + 2 * quarter + quarter / 2, quarter - quarter / 2));
    char *old = page(part.first + 3 * quarter);
    to = mremap(old, quarter * PAGE, quarter * PAGE, MREMAP_MAYMOVE | 4 /* MREMAP_DONTUNMAP */, NULL);
    must(to != MAP_FAILED, "mremap");
    tell("MREMAP_DONTUNMAP", not_zero(old, quarter) + wrong(to, part.first + 3 * quarter, quarter));
    char *longer = mremap(to, quarter * PAGE, 2 * quarter * PAGE, MREMAP_MAYMOVE);
    must(longer != MAP_FAILED, "mremap");
    tell("mremap to more", wrong(longer, part.first + 3 * quarter, quarter) + not_zero(longer + quarter * PAGE, quarter));
}

static void protect(struct part part)
{
    unsigned long bad = 0;
    for (unsigned long i = 0; i + 8 <= part.count; i += 8) {
        must(!mprotect(page(part.first + i), 2 * PAGE, PROT_NONE), "mprotect");
        must(!mprotect(page(part.first + i + 4), 2 * PAGE, PROT_READ), "mprotect");
    }
    for (unsigned long i = 0; i + 8 <= part.count; i += 8) {
        bad += wrong(page(part.first + i + 2), part.first + i + 2, 6);
        must(!mprotect(page(part.first + i), 2 * PAGE, PROT_READ | PROT_WRITE), "mprotect");
        bad += wrong(page(part.first + i), part.first + i, 2);
    }
    tell("mprotect", bad);
}

static unsigned long ended(pid_t child)
{
    int status;
    must(waitpid(child, &status, 0) == child, "waitpid");
    return WIFEXITED(status) ? (unsigned long)WEXITSTATUS(status) : 1000;
}

static unsigned long limited(unsigned long bad) { return bad > 255 ? 255 : bad; }

static void forks(struct part part)
{
    int go[2];
    must(!pipe(go), "pipe");
    pid_t child = fork();
    if (!child) {
        char byte;
        must(read(go[0], &byte, 1) == 1, "read");
        pid_t grandchild = fork();
        unsigned long half = part.count / 2;
        if (!grandchild)
            _exit((int)limited(wrong(page(part.first), part.first, half)));
        unsigned long bad = wrong(page(part.first + half), part.first + half, part.count - half);
        _exit((int)limited(bad + ended(grandchild)));
    }
    /* What we do from here on is not the child's business. */
    for (unsigned long i = 0; i < part.count; i += 2)
        fill(page(part.first + i), 0);
    must(!madvise(page(part.first + part.count / 2), PAGE * (part.count / 4), MADV_DONTNEED), "madvise");
    must(write(go[1], "x", 1) == 1, "write");
    unsigned long bad = ended(child);
    close(go[0]);
    close(go[1]);
    for (unsigned long i = 1; i < part.count / 2; i += 2)
        bad += !is_right(page(part.first + i), part.first + i);
    tell("fork", bad);
}

static void executes(struct part part, char *self)
{
    volatile unsigned long bad = 0;
    for (volatile int i = 0; i < 3; i++) {
        pid_t child = i == 1 ? vfork() : fork();
        if (!child) {
            execl(self, self, "0", (char *)NULL);
            _exit(3);
        }
        bad += ended(child);
    }
    tell("exec in a child", bad + wrong(page(part.first), part.first, part.count));
}

static void kernel(struct part part)
{
    unsigned long bad = 0, half = part.count / 2;
    int ends[2];
    must(!pipe(ends), "pipe");
    static char copy[2 * PAGE];
    for (unsigned long i = 0; i < half; i++) {
        must(write(ends[1], page(part.first + i), PAGE) == (ssize_t)PAGE, "write");
        must(read(ends[0], copy, PAGE) == (ssize_t)PAGE, "read");
        bad += !is_right(copy, part.first + i);
    }
    for (unsigned long i = half; i < part.count; i++) {
        must(write(ends[1], "01234567", 8) == 8, "write");
        must(read(ends[0], page(part.first + i) + 8, 8) == 8, "read");
        bad += memcmp(page(part.first + i) + 8, "01234567", 8) != 0;
        fill(copy, part.first + i);
        bad += memcmp(page(part.first + i) + 16, copy + 16, PAGE - 16) != 0;
    }
    close(ends[0]);
    close(ends[1]);
    tell("calls", bad);
}

static sigjmp_buf failed;
static int code;

static void on_bus(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    code = info->si_code;
    siglongjmp(failed, 1);
}

static void damaged(void)
{
    struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGBUS, &action, NULL);
    volatile unsigned long failing = 0, bad = 0, twice = 0;
    for (volatile unsigned long i = 0; i < pages; i++) {
        if (!sigsetjmp(failed, 1)) {
            bad += !is_right(page(i), i);
            continue;
        }
        failing++;
        int null = open("/dev/zero", O_RDONLY | O_CLOEXEC);
        twice += read(null, page(i), 8) == -1 && errno == EFAULT;
        close(null);
    }
    say("SIGBUS: %lu pages, EFAULT: %lu", failing, twice);
    tell("the others", bad);
}

/* -- who brings the pages */
static void hand_over(int socket, int file)
{
    for (unsigned long done = 0; done < pages * PAGE;) {
        ssize_t count = write(file, memory + done, pages * PAGE - done);
        must(count > 0, "write");
        done += (unsigned long)count;
    }
    must(!madvise(memory, pages * PAGE, MADV_DONTNEED), "madvise");
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    must(uffd >= 0, "userfaultfd");
    uint64_t place[2] = {(uint64_t)(uintptr_t)memory, pages * PAGE};
    struct iovec data = {place, sizeof place};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof uffd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &uffd, sizeof uffd);
    must(sendmsg(socket, &message, 0) == (ssize_t)sizeof place, "sendmsg");
    close(uffd);
    must(read(socket, place, 1) == 1, "read");
}

static void await_go(void)
{
    struct stat status;
    struct timespec pause = {0, 1000000};
    while (stat("go", &status))
        nanosleep(&pause, NULL);
}

int main(int count, char **words)
{
    pages = strtoul(words[1], NULL, 10);
    if (!pages)
        return 0;
    if (count > 2 && !strcmp(words[2], "-w")) {
        static char content[PAGE];
        fill(content, pages);
        return write(1, content, PAGE) != (ssize_t)PAGE;
    }
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED, "mmap");
    for (unsigned long i = 0; i < pages; i++)
        fill(page(i), i);
    int next = 2;
    if (count > next && !strcmp(words[next], "-u")) {
        hand_over(atoi(words[next + 1]), atoi(words[next + 2]));
        next += 3;
    } else {
        say("ready");
        await_go();
    }
    if (count > next) {
        if (!strcmp(words[next], "-c")) {
            struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
            setrlimit(RLIMIT_CORE, &all);
            abort();
        }
        damaged();
        return 0;
    }
    unsigned long size = pages / 9;
    struct part parts[9];
    for (unsigned long i = 0; i < 9; i++)
        parts[i] = (struct part){i * size, size};
    kernel(parts[8]);
    protect(parts[7]);
    drop(parts[1]);
    unmap(parts[2]);
    move(parts[3]);
    forks(parts[4]);
    executes(parts[5], words[0]);
    threads(parts[0]);
    /* Others change the memory while threads look at it. */
    pid_t child = fork();
    if (!child) {
        threads(parts[6]);
        _exit(0);
    }
    unsigned long bad = ended(child);
    tell("a child's threads", bad);
    tell("the rest", wrong(page(parts[6].first), parts[6].first, size));
    return 0;
}
