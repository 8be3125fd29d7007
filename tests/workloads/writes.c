/* Does to its memory, at random from a seed, what changes pages, between one int3 and the next. Arguments: seed, how
 * many steps in between; `huge` for transparent huge pages. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
enum { PAGES = 4096 };
static unsigned long state;
static unsigned long below(unsigned long n) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % n;
}
static char *area;
static void *make(void *at, unsigned long n) {
    return mmap(at, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);
}

static void step(int zero) {
    unsigned long n = 1 + below(40), from = below(PAGES - 40);
    char *p = area + from * PAGE;
    pid_t child;
    switch (below(9)) {
    case 0: memset(p, (int)below(255) + 1, n * PAGE); break;
    case 1: for (unsigned long i = 0; i < n; i += 3) p[i * PAGE + 5]++; break;
    case 2: madvise(p, n * PAGE, MADV_DONTNEED); break;
    case 3: make(p, n); break;
    case 4: mremap(p, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, area + below(from > 50 ? from - 40 : 1) * PAGE), make(p, n); break;
    case 5: if (read(zero, p, n * PAGE) < 0) _exit(3); break;
    case 6:
        if (!(child = fork())) memset(p, 9, n * PAGE), _exit(0);
        waitpid(child, 0, 0);
        break;
    case 7: mprotect(p, n * PAGE, PROT_READ), mprotect(p, n * PAGE, PROT_READ | PROT_WRITE); break;
    default: { volatile char seen = p[below(n) * PAGE]; (void)seen; }
    }
}

int main(int argc, char **argv) {
    state = strtoul(argv[1], 0, 0) * 2654435761ul + 88172645463325252ul;
    int steps = atoi(argv[2]), zero = open("/dev/zero", O_RDONLY);
    area = make(0, PAGES);
    if (argc > 3) madvise(area, PAGES * PAGE, MADV_HUGEPAGE);
    memset(area, 1, PAGES / 2 * PAGE);
    for (;;) {
        __asm__ volatile("int3" ::: "memory");
        for (int i = 0; i < steps; i++) step(zero);
    }
}
