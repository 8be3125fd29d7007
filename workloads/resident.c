/* What the benchmark of checkpoints saves: memory that cannot be compressed, and a loop that shows whether it runs.
 *
 * It fills its memory, prints "ready", and goes round: reads the clock, reads a page somewhere, and prints "mark" every
 * 2 ms. SIGUSR1: writes to the first DIRTY MiB, each page once, and prints "dirtied". SIGUSR2: prints "gap" and the
 * largest time in ns between two readings of the clock, one after the other, since it was last asked.
 *
 * usage: resident MIB DIRTY */
#include "common.h"

#include <sys/mman.h>

enum { PAGE = 4096 };

static volatile sig_atomic_t write_now, tell_now;

static void asked(int number)
{
    if (number == SIGUSR1)
        write_now = 1;
    else
        tell_now = 1;
}

static uint64_t next(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: resident MIB DIRTY\n");
        return 2;
    }
    size_t size = strtoul(argv[1], NULL, 10) << 20, dirty = strtoul(argv[2], NULL, 10) << 20;
    unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || dirty > size) {
        perror("resident");
        return 1;
    }
    uint64_t state = 0x9e3779b97f4a7c15;
    for (size_t i = 0; i < size; i += sizeof state) {
        uint64_t word = next(&state);
        memcpy(memory + i, &word, sizeof word);
    }
    struct sigaction action = {.sa_handler = asked, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    say("ready");
    int64_t last = now_ns(CLOCK_MONOTONIC), mark = last, largest = 0;
    for (;;) {
        int64_t now = now_ns(CLOCK_MONOTONIC);
        if (now - last > largest)
            largest = now - last;
        last = now;
        size_t page = next(&state) % (size / PAGE);
        (void)*(volatile unsigned char *)(memory + page * PAGE);
        if (now - mark >= 2 * MS) {
            mark = now;
            say("mark");
        }
        if (tell_now) {
            tell_now = 0;
            say("gap %lld", (long long)largest);
            largest = 0;
            last = now_ns(CLOCK_MONOTONIC);
        }
        if (write_now) {
            write_now = 0;
            for (size_t i = 0; i < dirty; i += PAGE)
                memory[i] ^= 1;
            say("dirtied");
        }
    }
}
