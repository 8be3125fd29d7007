"""Rows of the syscall table: sockets."""

from __future__ import annotations

from trapline.sentry.syscalls.table_types import native

ROWS = (
    native(41, "socket", "int family, int type, int protocol"),
    native(42, "connect", "int fd, struct sockaddr *uservaddr, int addrlen"),
    native(43, "accept", "int fd, struct sockaddr *upeer_sockaddr, int *upeer_addrlen"),
    native(
        44,
        "sendto",
        "int fd, const void *buff, size_t len, unsigned int flags, struct sockaddr *addr, int addr_len",
    ),
    native(
        45,
        "recvfrom",
        "int fd, void *ubuf, size_t size, unsigned int flags, struct sockaddr *addr, int *addr_len",
    ),
    native(46, "sendmsg", "int fd, struct msghdr *msg, unsigned int flags"),
    native(47, "recvmsg", "int fd, struct msghdr *msg, unsigned int flags"),
    native(48, "shutdown", "int fd, int how"),
    native(49, "bind", "int fd, struct sockaddr *umyaddr, int addrlen"),
    native(50, "listen", "int fd, int backlog"),
    native(51, "getsockname", "int fd, struct sockaddr *usockaddr, int *usockaddr_len"),
    native(52, "getpeername", "int fd, struct sockaddr *usockaddr, int *usockaddr_len"),
    native(53, "socketpair", "int family, int type, int protocol, int *usockvec"),
    native(54, "setsockopt", "int fd, int level, int optname, char *optval, int optlen"),
    native(55, "getsockopt", "int fd, int level, int optname, char *optval, int *optlen"),
    native(288, "accept4", "int fd, struct sockaddr *upeer_sockaddr, int *upeer_addrlen, int flags"),
    native(
        299,
        "recvmmsg",
        "int fd, struct mmsghdr *mmsg, unsigned int vlen, unsigned int flags, struct timespec *timeout",
    ),
    native(307, "sendmmsg", "int fd, struct mmsghdr *mmsg, unsigned int vlen, unsigned int flags"),
)
