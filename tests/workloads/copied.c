/* Memory that changes while a copy of it is written; what fork(2) leaves out; a pipe whose other end must not be held
 * open by the copy. Stops at an int3 when its memory stands, and prints what it saw afterwards. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIZE = 8 << 20, PAGE = 4096 };
static unsigned char *area(int advice, int prot) {
    unsigned char *p = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mmap(0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int at = 0; at < SIZE / 2; at += 8) *(unsigned long *)(p + at) = (unsigned long)at | 1;
    if (advice) madvise(p, SIZE, advice);
    if (!(prot & PROT_READ)) mprotect(p, SIZE, prot);
    return p;
}

int main(void) {
    int ends[2];
    if (pipe(ends)) return 2;
    unsigned char *plain = area(0, 3), *left = area(MADV_DONTFORK, 3), *wiped = area(18, 3), *hidden = area(0, PROT_NONE);
    printf("%lx %lx %lx %lx\n", (long)plain, (long)left, (long)wiped, (long)hidden);
    fflush(stdout);
    __asm__ volatile("int3" ::: "memory");
    close(ends[1]);
    char byte;
    printf("pipe %zd\n", read(ends[0], &byte, 1));
    mprotect(hidden, SIZE, PROT_READ | PROT_WRITE);
    for (int at = 0; at < SIZE; at += 8)
        ++*(unsigned long *)(plain + at), ++*(unsigned long *)(left + at), ++*(unsigned long *)(wiped + at), ++*(unsigned long *)(hidden + at);
    printf("changed\n");
    fflush(stdout);
    __asm__ volatile("int3" ::: "memory");
    int status;
    int found = waitpid(-1, &status, __WALL | WNOHANG);
    printf("children %s\n", found < 0 && errno == ECHILD ? "none" : "some");
    return 0;
}
