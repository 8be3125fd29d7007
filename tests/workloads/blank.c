/* A process that does nothing but stop, for memory that is put into it. */
int main(void) {
    __asm__ volatile("int3");
    return 0;
}
