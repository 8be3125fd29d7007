"""Rows of the syscall table: System V IPC, POSIX message queues, pipes, events, polling, asynchronous I/O."""

from __future__ import annotations

from errno import ENOSYS

from trapline.sentry.syscalls.table_types import Support, missing, native, refuse

_NO_RING = "io_uring passes the sentry by"

ROWS = (
    native(7, "poll", "struct pollfd *ufds, unsigned int nfds, int timeout_msecs"),
    native(22, "pipe", "int *fildes"),
    native(23, "select", "int n, fd_set *inp, fd_set *outp, fd_set *exp, struct timeval *tvp"),
    native(29, "shmget", "key_t key, size_t size, int shmflg"),
    native(30, "shmat", "int shmid, char *shmaddr, int shmflg"),
    native(31, "shmctl", "int shmid, int cmd, struct shmid_ds *buf"),
    native(64, "semget", "key_t key, int nsems, int semflg"),
    native(65, "semop", "int semid, struct sembuf *tsops, unsigned int nsops"),
    native(66, "semctl", "int semid, int semnum, int cmd, unsigned long arg"),
    native(67, "shmdt", "char *shmaddr"),
    native(68, "msgget", "key_t key, int msgflg"),
    native(69, "msgsnd", "int msqid, struct msgbuf *msgp, size_t msgsz, int msgflg"),
    native(70, "msgrcv", "int msqid, struct msgbuf *msgp, size_t msgsz, long msgtyp, int msgflg"),
    native(71, "msgctl", "int msqid, int cmd, struct msqid_ds *buf"),
    native(206, "io_setup", "unsigned int nr_events, aio_context_t *ctxp"),
    native(207, "io_destroy", "aio_context_t ctx"),
    native(
        208,
        "io_getevents",
        "aio_context_t ctx_id, long min_nr, long nr, struct io_event *events, struct timespec *timeout",
    ),
    native(209, "io_submit", "aio_context_t ctx_id, long nr, struct iocb **iocbpp"),
    native(210, "io_cancel", "aio_context_t ctx_id, struct iocb *iocb, struct io_event *result"),
    native(213, "epoll_create", "int size"),
    missing(214, "epoll_ctl_old", "", "never in Linux"),
    missing(215, "epoll_wait_old", "", "never in Linux"),
    native(
        220,
        "semtimedop",
        "int semid, struct sembuf *tsops, unsigned int nsops, const struct timespec *timeout",
    ),
    native(232, "epoll_wait", "int epfd, struct epoll_event *events, int maxevents, int timeout"),
    native(233, "epoll_ctl", "int epfd, int op, int fd, struct epoll_event *event"),
    native(240, "mq_open", "const char *u_name, int oflag, umode_t mode, struct mq_attr *u_attr"),
    native(241, "mq_unlink", "const char *u_name"),
    native(
        242,
        "mq_timedsend",
        "mqd_t mqdes, const char *u_msg_ptr, size_t msg_len, unsigned int msg_prio, "
        "const struct timespec *u_abs_timeout",
        "the deadline is on the host's wall clock",
    ),
    native(
        243,
        "mq_timedreceive",
        "mqd_t mqdes, char *u_msg_ptr, size_t msg_len, unsigned int *u_msg_prio, "
        "const struct timespec *u_abs_timeout",
        "the deadline is on the host's wall clock",
    ),
    native(244, "mq_notify", "mqd_t mqdes, const struct sigevent *u_notification"),
    native(245, "mq_getsetattr", "mqd_t mqdes, const struct mq_attr *u_mqstat, struct mq_attr *u_omqstat"),
    native(
        275,
        "splice",
        "int fd_in, loff_t *off_in, int fd_out, loff_t *off_out, size_t len, unsigned int flags",
    ),
    native(276, "tee", "int fdin, int fdout, size_t len, unsigned int flags"),
    native(278, "vmsplice", "int fd, const struct iovec *uiov, unsigned long nr_segs, unsigned int flags"),
    native(284, "eventfd", "unsigned int count"),
    native(290, "eventfd2", "unsigned int count, int flags"),
    native(291, "epoll_create1", "int flags"),
    native(293, "pipe2", "int *fildes, int flags"),
    native(
        333,
        "io_pgetevents",
        "aio_context_t ctx_id, long min_nr, long nr, struct io_event *events, struct timespec *timeout, "
        "const struct __aio_sigset *usig",
        "its mask is the host's alone",
        Support.PARTIAL,
    ),
    refuse(425, "io_uring_setup", "u32 entries, struct io_uring_params *params", ENOSYS, _NO_RING),
    refuse(
        426,
        "io_uring_enter",
        "int fd, u32 to_submit, u32 min_complete, u32 flags, const void *argp, size_t argsz",
        ENOSYS,
        _NO_RING,
    ),
    refuse(
        427,
        "io_uring_register",
        "int fd, unsigned int opcode, void *arg, unsigned int nr_args",
        ENOSYS,
        _NO_RING,
    ),
)
