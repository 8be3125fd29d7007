"""Rows of the syscall table: files, directories, descriptors and mounts (lent)."""

from __future__ import annotations

from trapline.sentry.syscalls.table_types import Case, Class, Support, native, one_of, wrap

#: Requests of ioctl_tty(2) that concern whose a terminal is: what the host executes once it was decided, and the rest.
TIOCSCTTY, TIOCNOTTY, TIOCSPGRP = 0x540E, 0x5422, 0x5410
TIOCGPGRP, TIOCGSID, TIOCSTI = 0x540F, 0x5429, 0x5412

_CAPS = "the guest's capabilities decide"
_NOW = "for the present time the host's wall clock is used"

ROWS = (
    native(0, "read", "int fd, void *buf, size_t count"),
    native(1, "write", "int fd, const void *buf, size_t count"),
    native(2, "open", "const char *filename, int flags, umode_t mode"),
    native(3, "close", "int fd"),
    native(4, "stat", "const char *filename, struct stat *statbuf"),
    native(5, "fstat", "int fd, struct stat *statbuf"),
    native(6, "lstat", "const char *filename, struct stat *statbuf"),
    native(8, "lseek", "int fd, off_t offset, unsigned int whence"),
    wrap(
        16,
        "ioctl",
        "int fd, unsigned int cmd, unsigned long arg",
        "the sentry's: whose a terminal is (TIOCSCTTY, TIOCNOTTY, TIOCGSID, TIOCGPGRP, TIOCSPGRP), TIOCSTI; else lent",
        Support.PARTIAL,
        when=one_of(1, TIOCSCTTY, TIOCNOTTY, TIOCSPGRP),
        cases=(Case(one_of(1, TIOCGPGRP, TIOCGSID, TIOCSTI), Class.NOTIFY),),
    ),
    native(17, "pread64", "int fd, void *buf, size_t count, loff_t pos"),
    native(18, "pwrite64", "int fd, const void *buf, size_t count, loff_t pos"),
    native(19, "readv", "int fd, const struct iovec *vec, unsigned long vlen"),
    native(20, "writev", "int fd, const struct iovec *vec, unsigned long vlen"),
    native(21, "access", "const char *filename, int mode"),
    native(32, "dup", "int fildes"),
    native(33, "dup2", "int oldfd, int newfd"),
    native(40, "sendfile", "int out_fd, int in_fd, loff_t *offset, size_t count"),
    native(72, "fcntl", "int fd, unsigned int cmd, unsigned long arg"),
    native(73, "flock", "int fd, unsigned int cmd"),
    native(74, "fsync", "int fd"),
    native(75, "fdatasync", "int fd"),
    native(76, "truncate", "const char *path, long length"),
    native(77, "ftruncate", "int fd, off_t length"),
    native(78, "getdents", "int fd, struct linux_dirent *dirent, unsigned int count"),
    native(79, "getcwd", "char *buf, unsigned long size"),
    native(80, "chdir", "const char *filename"),
    native(81, "fchdir", "int fd"),
    native(82, "rename", "const char *oldname, const char *newname"),
    native(83, "mkdir", "const char *pathname, umode_t mode"),
    native(84, "rmdir", "const char *pathname"),
    native(85, "creat", "const char *pathname, umode_t mode"),
    native(86, "link", "const char *oldname, const char *newname"),
    native(87, "unlink", "const char *pathname"),
    native(88, "symlink", "const char *oldname, const char *newname"),
    native(89, "readlink", "const char *path, char *buf, int bufsiz"),
    native(90, "chmod", "const char *filename, umode_t mode"),
    native(91, "fchmod", "int fd, umode_t mode"),
    native(92, "chown", "const char *filename, uid_t user, gid_t group"),
    native(93, "fchown", "int fd, uid_t user, gid_t group"),
    native(94, "lchown", "const char *filename, uid_t user, gid_t group"),
    native(95, "umask", "int mask"),
    native(132, "utime", "char *filename, struct utimbuf *times", _NOW),
    native(133, "mknod", "const char *filename, umode_t mode, unsigned int dev"),
    native(136, "ustat", "unsigned int dev, struct ustat *ubuf"),
    native(137, "statfs", "const char *pathname, struct statfs *buf"),
    native(138, "fstatfs", "int fd, struct statfs *buf"),
    native(155, "pivot_root", "const char *new_root, const char *put_old", _CAPS),
    native(161, "chroot", "const char *filename", _CAPS),
    native(162, "sync"),
    native(
        165, "mount", "char *dev_name, char *dir_name, char *type, unsigned long flags, void *data", _CAPS
    ),
    native(166, "umount2", "char *name, int flags", _CAPS),
    native(187, "readahead", "int fd, loff_t offset, size_t count"),
    native(
        188, "setxattr", "const char *pathname, const char *name, const void *value, size_t size, int flags"
    ),
    native(
        189, "lsetxattr", "const char *pathname, const char *name, const void *value, size_t size, int flags"
    ),
    native(190, "fsetxattr", "int fd, const char *name, const void *value, size_t size, int flags"),
    native(191, "getxattr", "const char *pathname, const char *name, void *value, size_t size"),
    native(192, "lgetxattr", "const char *pathname, const char *name, void *value, size_t size"),
    native(193, "fgetxattr", "int fd, const char *name, void *value, size_t size"),
    native(194, "listxattr", "const char *pathname, char *list, size_t size"),
    native(195, "llistxattr", "const char *pathname, char *list, size_t size"),
    native(196, "flistxattr", "int fd, char *list, size_t size"),
    native(197, "removexattr", "const char *pathname, const char *name"),
    native(198, "lremovexattr", "const char *pathname, const char *name"),
    native(199, "fremovexattr", "int fd, const char *name"),
    native(217, "getdents64", "int fd, struct linux_dirent64 *dirent, unsigned int count"),
    native(221, "fadvise64", "int fd, loff_t offset, size_t len, int advice"),
    native(235, "utimes", "char *filename, struct timeval *utimes", _NOW),
    native(253, "inotify_init"),
    native(254, "inotify_add_watch", "int fd, const char *pathname, u32 mask"),
    native(255, "inotify_rm_watch", "int fd, __s32 wd"),
    native(257, "openat", "int dfd, const char *filename, int flags, umode_t mode"),
    native(258, "mkdirat", "int dfd, const char *pathname, umode_t mode"),
    native(259, "mknodat", "int dfd, const char *filename, umode_t mode, unsigned int dev"),
    native(260, "fchownat", "int dfd, const char *filename, uid_t user, gid_t group, int flag"),
    native(261, "futimesat", "int dfd, const char *filename, struct timeval *utimes", _NOW),
    native(262, "newfstatat", "int dfd, const char *filename, struct stat *statbuf, int flag"),
    native(263, "unlinkat", "int dfd, const char *pathname, int flag"),
    native(264, "renameat", "int olddfd, const char *oldname, int newdfd, const char *newname"),
    native(265, "linkat", "int olddfd, const char *oldname, int newdfd, const char *newname, int flags"),
    native(266, "symlinkat", "const char *oldname, int newdfd, const char *newname"),
    native(267, "readlinkat", "int dfd, const char *pathname, char *buf, int bufsiz"),
    native(268, "fchmodat", "int dfd, const char *filename, umode_t mode"),
    native(269, "faccessat", "int dfd, const char *filename, int mode"),
    native(277, "sync_file_range", "int fd, loff_t offset, loff_t nbytes, unsigned int flags"),
    native(280, "utimensat", "int dfd, const char *filename, struct timespec *utimes, int flags", _NOW),
    native(285, "fallocate", "int fd, int mode, loff_t offset, loff_t len"),
    native(292, "dup3", "int oldfd, int newfd, int flags"),
    native(294, "inotify_init1", "int flags"),
    native(
        295,
        "preadv",
        "int fd, const struct iovec *vec, unsigned long vlen, unsigned long pos_l, unsigned long pos_h",
    ),
    native(
        296,
        "pwritev",
        "int fd, const struct iovec *vec, unsigned long vlen, unsigned long pos_l, unsigned long pos_h",
    ),
    native(300, "fanotify_init", "unsigned int flags, unsigned int event_f_flags", _CAPS),
    native(
        301,
        "fanotify_mark",
        "int fanotify_fd, unsigned int flags, __u64 mask, int dfd, const char *pathname",
        _CAPS,
    ),
    native(
        303,
        "name_to_handle_at",
        "int dfd, const char *name, struct file_handle *handle, void *mnt_id, int flag",
    ),
    native(304, "open_by_handle_at", "int mountdirfd, struct file_handle *handle, int flags", _CAPS),
    native(306, "syncfs", "int fd"),
    native(
        316,
        "renameat2",
        "int olddfd, const char *oldname, int newdfd, const char *newname, unsigned int flags",
    ),
    native(
        326,
        "copy_file_range",
        "int fd_in, loff_t *off_in, int fd_out, loff_t *off_out, size_t len, unsigned int flags",
    ),
    native(
        327,
        "preadv2",
        "int fd, const struct iovec *vec, unsigned long vlen, unsigned long pos_l, unsigned long pos_h, "
        "rwf_t flags",
    ),
    native(
        328,
        "pwritev2",
        "int fd, const struct iovec *vec, unsigned long vlen, unsigned long pos_l, unsigned long pos_h, "
        "rwf_t flags",
    ),
    native(
        332,
        "statx",
        "int dfd, const char *filename, unsigned int flags, unsigned int mask, struct statx *buffer",
    ),
    native(428, "open_tree", "int dfd, const char *filename, unsigned int flags", _CAPS),
    native(
        429,
        "move_mount",
        "int from_dfd, const char *from_pathname, int to_dfd, const char *to_pathname, unsigned int flags",
        _CAPS,
    ),
    native(430, "fsopen", "const char *fs_name, unsigned int flags", _CAPS),
    native(431, "fsconfig", "int fd, unsigned int cmd, const char *key, const void *value, int aux", _CAPS),
    native(432, "fsmount", "int fs_fd, unsigned int flags, unsigned int attr_flags", _CAPS),
    native(433, "fspick", "int dfd, const char *path, unsigned int flags", _CAPS),
    native(436, "close_range", "unsigned int fd, unsigned int max_fd, unsigned int flags"),
    native(437, "openat2", "int dfd, const char *filename, struct open_how *how, size_t usize"),
    native(439, "faccessat2", "int dfd, const char *filename, int mode, int flags"),
    native(
        442,
        "mount_setattr",
        "int dfd, const char *path, unsigned int flags, struct mount_attr *uattr, size_t usize",
        _CAPS,
    ),
    native(
        451,
        "cachestat",
        "int fd, struct cachestat_range *cstat_range, struct cachestat *cstat, unsigned int flags",
    ),
    native(452, "fchmodat2", "int dfd, const char *filename, umode_t mode, unsigned int flags"),
    native(
        457,
        "statmount",
        "const struct mnt_id_req *req, struct statmount *buf, size_t bufsize, unsigned int flags",
    ),
    native(
        458, "listmount", "const struct mnt_id_req *req, u64 *mnt_ids, size_t nr_mnt_ids, unsigned int flags"
    ),
    native(
        463,
        "setxattrat",
        "int dfd, const char *pathname, unsigned int at_flags, const char *name, "
        "const struct xattr_args *uargs, size_t usize",
    ),
    native(
        464,
        "getxattrat",
        "int dfd, const char *pathname, unsigned int at_flags, const char *name, struct xattr_args *uargs, "
        "size_t usize",
    ),
    native(
        465, "listxattrat", "int dfd, const char *pathname, unsigned int at_flags, char *list, size_t size"
    ),
    native(466, "removexattrat", "int dfd, const char *pathname, unsigned int at_flags, const char *name"),
    native(
        467,
        "open_tree_attr",
        "int dfd, const char *filename, unsigned int flags, struct mount_attr *uattr, size_t usize",
        _CAPS,
    ),
    native(
        468,
        "file_getattr",
        "int dfd, const char *filename, struct file_attr *ufattr, size_t usize, unsigned int at_flags",
    ),
    native(
        469,
        "file_setattr",
        "int dfd, const char *filename, struct file_attr *ufattr, size_t usize, unsigned int at_flags",
    ),
)
