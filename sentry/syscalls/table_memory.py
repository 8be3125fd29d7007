"""Rows of the syscall table: memory (lent: the host's page tables are the guest's)."""

from __future__ import annotations

from errno import ENOSYS

from trapline.sentry.syscalls.table_types import native, refuse

ROWS = (
    native(9, "mmap", "void *addr, size_t len, int prot, int flags, int fd, off_t off"),
    native(10, "mprotect", "void *start, size_t len, int prot"),
    native(11, "munmap", "void *addr, size_t len"),
    native(12, "brk", "void *brk"),
    native(25, "mremap", "void *addr, size_t old_len, size_t new_len, int flags, void *new_addr"),
    native(26, "msync", "void *start, size_t len, int flags"),
    native(27, "mincore", "void *start, size_t len, unsigned char *vec"),
    native(28, "madvise", "void *start, size_t len_in, int behavior"),
    native(149, "mlock", "void *start, size_t len"),
    native(150, "munlock", "void *start, size_t len"),
    native(151, "mlockall", "int flags"),
    native(152, "munlockall"),
    native(154, "modify_ldt", "int func, void *ptr, unsigned long bytecount"),
    native(216, "remap_file_pages", "void *start, size_t size, int prot, unsigned long pgoff, int flags"),
    native(
        237,
        "mbind",
        "void *start, unsigned long len, unsigned long mode, const unsigned long *nmask, "
        "unsigned long maxnode, unsigned int flags",
    ),
    native(238, "set_mempolicy", "int mode, const unsigned long *nmask, unsigned long maxnode"),
    native(
        239,
        "get_mempolicy",
        "int *policy, unsigned long *nmask, unsigned long maxnode, void *addr, unsigned long flags",
    ),
    native(
        256,
        "migrate_pages",
        "pid_t pid, unsigned long maxnode, const unsigned long *old_nodes, const unsigned long *new_nodes",
    ),
    native(
        279,
        "move_pages",
        "pid_t pid, unsigned long nr_pages, const void **pages, const int *nodes, int *status, int flags",
    ),
    native(
        310,
        "process_vm_readv",
        "pid_t pid, const struct iovec *lvec, unsigned long liovcnt, const struct iovec *rvec, "
        "unsigned long riovcnt, unsigned long flags",
    ),
    native(
        311,
        "process_vm_writev",
        "pid_t pid, const struct iovec *lvec, unsigned long liovcnt, const struct iovec *rvec, "
        "unsigned long riovcnt, unsigned long flags",
    ),
    native(319, "memfd_create", "const char *uname, unsigned int flags"),
    refuse(323, "userfaultfd", "int flags", ENOSYS, "the sentry's own, for restoring"),
    native(325, "mlock2", "void *start, size_t len, int flags"),
    native(329, "pkey_mprotect", "void *start, size_t len, int prot, int pkey"),
    native(330, "pkey_alloc", "unsigned long flags, unsigned long init_val"),
    native(331, "pkey_free", "int pkey"),
    native(
        440,
        "process_madvise",
        "int pidfd, const struct iovec *vec, size_t vlen, int behavior, unsigned int flags",
    ),
    native(447, "memfd_secret", "unsigned int flags"),
    native(
        450,
        "set_mempolicy_home_node",
        "void *start, unsigned long len, unsigned long home_node, unsigned long flags",
    ),
    native(453, "map_shadow_stack", "void *addr, unsigned long size, unsigned int flags"),
    native(462, "mseal", "void *start, size_t len, unsigned long flags"),
)
