"""Rows of the syscall table: the system as a whole, security, and numbers whose calls are gone."""

from __future__ import annotations

from errno import EACCES, EPERM

from trapline.sentry.syscalls.table_types import missing, native, refuse

_HOST = "it would change the host"
_NEVER = "never in Linux"
_KEYS = "the host's keyrings"
_CAPS = "the guest's capabilities decide"

ROWS = (
    native(63, "uname", "struct new_utsname *name"),
    native(99, "sysinfo", "struct sysinfo *info"),
    native(103, "syslog", "int type, char *buf, int len", _CAPS),
    missing(134, "uselib", "const char *library", "removed from Linux"),
    native(139, "sysfs", "int option, unsigned long arg1, unsigned long arg2"),
    native(153, "vhangup", "", _CAPS),
    missing(156, "_sysctl", "struct __sysctl_args *args", "removed in Linux 5.5"),
    native(163, "acct", "const char *name", _CAPS),
    refuse(167, "swapon", "const char *specialfile, int swap_flags", EPERM, _HOST),
    refuse(168, "swapoff", "const char *specialfile", EPERM, _HOST),
    refuse(169, "reboot", "int magic1, int magic2, unsigned int cmd, void *arg", EPERM, _HOST),
    native(170, "sethostname", "char *name, int len", "of the sandbox's own namespace"),
    native(171, "setdomainname", "char *name, int len", "of the sandbox's own namespace"),
    native(172, "iopl", "unsigned int level", _CAPS),
    native(173, "ioperm", "unsigned long from, unsigned long num, int turn_on", _CAPS),
    missing(174, "create_module", "const char *name, size_t size", "removed in Linux 2.6"),
    refuse(175, "init_module", "void *umod, unsigned long len, const char *uargs", EPERM, _HOST),
    refuse(176, "delete_module", "const char *name_user, unsigned int flags", EPERM, _HOST),
    missing(177, "get_kernel_syms", "struct kernel_sym *table", "removed in Linux 2.6"),
    missing(
        178,
        "query_module",
        "const char *name, int which, void *buf, size_t bufsize, size_t *ret",
        "removed in Linux 2.6",
    ),
    native(179, "quotactl", "unsigned int cmd, const char *special, qid_t id, void *addr", _CAPS),
    missing(
        180, "nfsservctl", "int cmd, struct nfsctl_arg *argp, union nfsctl_res *resp", "removed in Linux 3.1"
    ),
    missing(181, "getpmsg", "", _NEVER),
    missing(182, "putpmsg", "", _NEVER),
    missing(183, "afs_syscall", "", _NEVER),
    missing(184, "tuxcall", "", _NEVER),
    missing(185, "security", "", _NEVER),
    missing(212, "lookup_dcookie", "u64 cookie64, char *buf, size_t len", "removed in Linux 6.7"),
    missing(236, "vserver", "", _NEVER),
    refuse(
        246,
        "kexec_load",
        "unsigned long entry, unsigned long nr_segments, struct kexec_segment *segments, unsigned long flags",
        EPERM,
        _HOST,
    ),
    native(
        248,
        "add_key",
        "const char *type, const char *description, const void *payload, size_t plen, key_serial_t ringid",
        _KEYS,
    ),
    native(
        249,
        "request_key",
        "const char *type, const char *description, const char *callout_info, key_serial_t destringid",
        _KEYS,
    ),
    native(
        250,
        "keyctl",
        "int option, unsigned long arg2, unsigned long arg3, unsigned long arg4, unsigned long arg5",
        _KEYS,
    ),
    refuse(
        298,
        "perf_event_open",
        "struct perf_event_attr *attr_uptr, pid_t pid, int cpu, int group_fd, unsigned long flags",
        EACCES,
        "as where perf_event_paranoid forbids it",
    ),
    refuse(313, "finit_module", "int fd, const char *uargs, int flags", EPERM, _HOST),
    native(318, "getrandom", "char *ubuf, size_t len, unsigned int flags"),
    refuse(
        320,
        "kexec_file_load",
        "int kernel_fd, int initrd_fd, unsigned long cmdline_len, const char *cmdline_ptr, "
        "unsigned long flags",
        EPERM,
        _HOST,
    ),
    refuse(321, "bpf", "int cmd, union bpf_attr *uattr, unsigned int size", EPERM, _HOST),
    native(335, "uretprobe", "", "made by the host's own probes only"),
    native(336, "uprobe", "", "made by the host's own probes only"),
    native(443, "quotactl_fd", "int fd, unsigned int cmd, qid_t id, void *addr", _CAPS),
    native(
        444, "landlock_create_ruleset", "const struct landlock_ruleset_attr *attr, size_t size, __u32 flags"
    ),
    native(445, "landlock_add_rule", "int ruleset_fd, int rule_type, const void *rule_attr, __u32 flags"),
    native(446, "landlock_restrict_self", "int ruleset_fd, __u32 flags"),
    native(459, "lsm_get_self_attr", "unsigned int attr, struct lsm_ctx *ctx, u32 *size, u32 flags"),
    native(460, "lsm_set_self_attr", "unsigned int attr, struct lsm_ctx *ctx, u32 size, u32 flags"),
    native(461, "lsm_list_modules", "u64 *ids, u32 *size, u32 flags"),
)
