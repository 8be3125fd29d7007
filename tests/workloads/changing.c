/* Memory of as many MiB as the argument says, every page of which is looked at and changed at each line of input; says
 * whether anything was wrong, and whether it had a child. Ends with its input. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

int main(int argc, char **argv) {
    size_t words = (size_t)atol(argv[1]) << 17, few = argc > 2 ? 512 * 64 : words;
    unsigned long *p = mmap(0, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), turns = 0;
    for (size_t i = 0; i < words; i++) p[i] = i * 2654435761ul + 1;
    printf("ready\n");
    fflush(stdout);
    for (int c; (c = getchar()) != EOF;) {
        unsigned long wrong = 0;
        for (size_t i = 0; i < words; i++) wrong += p[i] != i * 2654435761ul + 1 + (i < few ? turns : 0);
        for (size_t i = 0; i < few; i++) p[i]++;
        int status, child = waitpid(-1, &status, WNOHANG | __WALL) != -1 || errno != ECHILD;
        printf("turn %lu: %lu wrong, %s\n", turns++, wrong, child ? "a child" : "no child");
        fflush(stdout);
    }
    return 0;
}
