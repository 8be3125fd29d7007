/* Memory of every kind, made before an int3 and looked at after it: a tracer that stands at its SIGTRAP may save the
 * process, or put it back elsewhere. Prints a line for each kind, `right` or what is wrong. Argument: a directory for its
 * files. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096ul
#define MADV_GUARD 102
enum { KINDS = 40 };
static struct kind { const char *name; unsigned char *at; size_t size; unsigned seed; int prot, protected; } kinds[KINDS];
static int count;
static unsigned long static_data[3000] = { 1, 2, 3 };

static unsigned char byte(unsigned seed, size_t i) { return (unsigned char)(seed * 131 + i * 7 + (i >> 9) * 13); }
static void fill(unsigned char *p, size_t n, unsigned seed) { for (size_t i = 0; i < n; i++) p[i] = byte(seed, i); }
static void die(const char *what) { perror(what); exit(2); }

static struct kind *keep(const char *name, void *at, size_t size) {
    if (at == MAP_FAILED) die(name);
    struct kind *k = &kinds[count++];
    *k = (struct kind){ name, at, size, (unsigned)count * 3 + 1, PROT_READ | PROT_WRITE, 0 };
    return k;
}
static struct kind *filled(const char *name, void *at, size_t size) {
    struct kind *k = keep(name, at, size);
    fill(k->at, size, k->seed);
    return k;
}
static void protect(struct kind *k, int prot) {
    if (mprotect(k->at, k->size, prot)) die(k->name);
    k->prot = prot;
}
static int file(const char *directory, const char *name, size_t size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0) die(path);
    unsigned char block[PAGE];
    fill(block, PAGE, 99);
    for (size_t at = 0; at < size; at += PAGE)
        if (write(fd, block, PAGE) != (ssize_t)PAGE) die("write");
    return fd;
}
static void unlink_in(const char *directory, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    unlink(path);
}

int main(int argc, char **argv) {
    const char *d = argv[1];
    int anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    filled("private", mmap(0, 64 * PAGE, 3, anonymous, -1, 0), 64 * PAGE);
    unsigned char *sparse = mmap(0, 4096 * PAGE, 3, anonymous | MAP_NORESERVE, -1, 0);
    filled("sparse", sparse + 1000 * PAGE, PAGE);
    filled("sparse, its end", sparse + 4095 * PAGE, PAGE);
    volatile unsigned char zero = sparse[3 * PAGE];
    protect(filled("read only", mmap(0, 3 * PAGE, 3, anonymous, -1, 0), 3 * PAGE), PROT_READ);
    protect(filled("no access", mmap(0, 5 * PAGE, 3, anonymous, -1, 0), 5 * PAGE), PROT_NONE);
    protect(filled("to be executed", mmap(0, PAGE, 3, anonymous, -1, 0), PAGE), PROT_READ | PROT_EXEC);
    filled("grows down", mmap(0, 4 * PAGE, 3, anonymous | MAP_GROWSDOWN, -1, 0), 4 * PAGE);
    struct kind *named = filled("named", mmap(0, 2 * PAGE, 3, anonymous, -1, 0), 2 * PAGE);
    prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named->at, named->size, "a name");
    struct { const char *name; int advice; } advised[] = {
        { "dontfork", MADV_DONTFORK }, { "wipeonfork", 18 }, { "dontdump", MADV_DONTDUMP }, { "mergeable", MADV_MERGEABLE },
        { "sequential", MADV_SEQUENTIAL }, { "random", MADV_RANDOM }, { "no huge pages", MADV_NOHUGEPAGE },
    };
    for (size_t i = 0; i < sizeof advised / sizeof *advised; i++) {
        struct kind *k = filled(advised[i].name, mmap(0, 2 * PAGE, 3, anonymous, -1, 0), 2 * PAGE);
        madvise(k->at, k->size, advised[i].advice);
        mmap(0, PAGE, 0, anonymous, -1, 0);
    }
    unsigned char *huge = mmap(0, 6ul << 20, 3, anonymous, -1, 0);
    madvise(huge, 6ul << 20, MADV_HUGEPAGE);
    filled("huge pages", huge, 6ul << 20);
    struct kind *locked = filled("locked", mmap(0, 2 * PAGE, 3, anonymous, -1, 0), 2 * PAGE);
    mlock(locked->at, locked->size);
    struct kind *fault = filled("locked on fault", mmap(0, 2 * PAGE, 3, anonymous, -1, 0), PAGE);
    mlock2(fault->at, 2 * PAGE, MLOCK_ONFAULT);
    struct kind *guarded = filled("between guards", mmap(0, 3 * PAGE, 3, anonymous, -1, 0) + PAGE, PAGE);
    int guards = !madvise(guarded->at - PAGE, PAGE, MADV_GUARD) && !madvise(guarded->at + PAGE, PAGE, MADV_GUARD);
    unsigned char *brk_area = sbrk(5 * PAGE + 100);
    filled("break", brk_area, 5 * PAGE + 100);

    int fd = file(d, "private", 8 * PAGE);
    unsigned char *p = mmap(0, 8 * PAGE, 3, MAP_PRIVATE, fd, 0);
    close(fd);
    filled("file, private, changed", p + 2 * PAGE, PAGE);
    kinds[count++] = (struct kind){ "file, private, as it is", p + 3 * PAGE, PAGE, 99, 3, 0 };
    volatile unsigned char seen = p[3 * PAGE];
    fd = file(d, "shared", 4 * PAGE);
    filled("file, shared", mmap(0, 4 * PAGE, 3, MAP_SHARED, fd, 0), 4 * PAGE);
    void *r = mmap(0, 2 * PAGE, PROT_READ, MAP_SHARED, fd, PAGE);
    close(fd);
    char path[4096];
    snprintf(path, sizeof path, "%s/shared", d);
    fd = open(path, O_RDONLY);
    kinds[count++] = (struct kind){ "file, shared, opened to be read", mmap(0, PAGE, PROT_READ, MAP_SHARED, fd, 0), PAGE,
                                    kinds[count - 2].seed, PROT_READ, 0 };
    close(fd);
    fd = file(d, "deleted\nwith (deleted)", 4 * PAGE);
    p = mmap(0, 4 * PAGE, 3, MAP_PRIVATE, fd, 0);
    filled("deleted file, private", p, PAGE);
    kinds[count++] = (struct kind){ "deleted file, private, as it is", p + 2 * PAGE, PAGE, 99, 3, 0 };
    filled("deleted file, shared", mmap(0, 4 * PAGE, 3, MAP_SHARED, fd, 0), 2 * PAGE);
    unlink_in(d, "deleted\nwith (deleted)");
    close(fd);

    filled("shared", mmap(0, 16 * PAGE, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 9 * PAGE);
    fd = memfd_create("a memfd", MFD_ALLOW_SEALING);
    if (ftruncate(fd, 20 * PAGE)) die("ftruncate");
    struct kind *m = filled("memfd, shared", mmap(0, 10 * PAGE, 3, MAP_SHARED, fd, 3 * PAGE), 10 * PAGE);
    p = mmap(0, 10 * PAGE, 3, MAP_PRIVATE, fd, 3 * PAGE);
    filled("memfd, private, changed", p + PAGE, PAGE);
    if (m->at[5 * PAGE] != p[5 * PAGE]) die("memfd");
    fcntl(fd, 1033, 0x2 | 0x4 | 0x10);
    close(fd);
    int id = shmget(IPC_PRIVATE, 6 * PAGE, 0600);
    filled("System V", shmat(id, 0, 0), 6 * PAGE);
    p = shmat(id, 0, SHM_RDONLY);
    kinds[count] = kinds[count - 1];
    kinds[count].name = "System V, to be read", kinds[count].at = p, kinds[count++].prot = PROT_READ;
    shmctl(id, IPC_RMID, 0);
    mmap(0, 1ul << 34, PROT_NONE, anonymous | MAP_NORESERVE, -1, 0);
    for (size_t i = 0; i < 3000; i++) static_data[i] += i * i;
    unsigned char on_stack[3 * PAGE];
    fill(on_stack, sizeof on_stack, 77);
    void *break_before = sbrk(0);

    __asm__ volatile("int3" ::: "memory");

    if (sbrk(0) != break_before) printf("the break: wrong\n");
    unsigned char mapped[16];
    if (sbrk(3 * PAGE) != break_before || mincore((void *)(((unsigned long)break_before + 2 * PAGE) & -PAGE), 1, mapped))
        printf("the break does not grow\n");
    for (int i = 0; i < count; i++) {
        struct kind *k = &kinds[i];
        if (!(k->prot & PROT_READ)) mprotect(k->at, k->size, PROT_READ);
        size_t bad = 0;
        for (size_t j = 0; j < k->size; j++) bad += k->at[j] != byte(k->seed, j);
        printf(bad ? "%s: %zu wrong\n" : "%s: right\n", k->name, bad);
    }
    for (int i = 0; i < count; i++)
        if (kinds[i].prot & PROT_WRITE) ++*(volatile unsigned char *)kinds[i].at;
    for (size_t i = 0; i < 4096; i++) if (i != 1000 && i != 4095 && sparse[i * PAGE]) printf("sparse: page %zu\n", i), i = 4096;
    for (size_t i = 0; i < 3000; i++) if (static_data[i] != (i < 3 ? i + 1 : 0) + i * i) printf("static data wrong\n"), i = 3000;
    for (size_t i = 0; i < sizeof on_stack; i++) if (on_stack[i] != byte(77, i)) printf("stack wrong\n"), i = sizeof on_stack;
    if (guards) {
        int ends[2];
        if (pipe(ends)) die("pipe");
        if (write(ends[1], guarded->at - PAGE, 1) != -1 || errno != EFAULT) printf("guards: none before\n");
        if (write(ends[1], guarded->at + PAGE, 1) != -1 || errno != EFAULT) printf("guards: none behind\n");
    }
    if (fcntl(0, 1) == 12345) printf("%d %d %p %d\n", zero, seen, r, argc);
    printf("done\n");
    return 0;
}
