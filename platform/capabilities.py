"""What a guest may still do when it was started by root: a container's default set, and no more."""

from __future__ import annotations

import os

from trapline.platform import setup_calls as calls

# Numbers of include/uapi/linux/capability.h. The set is the one that container engines give by default.
CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP = 0, 1, 3, 4, 5, 6, 7, 8
NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, SYS_ADMIN, MKNOD, AUDIT_WRITE, SETFCAP = 10, 13, 18, 21, 27, 29, 31

CONTAINER_DEFAULT = (
    1 << CHOWN | 1 << DAC_OVERRIDE | 1 << FOWNER | 1 << FSETID | 1 << KILL | 1 << SETGID | 1 << SETUID
    | 1 << SETPCAP | 1 << NET_BIND_SERVICE | 1 << NET_RAW | 1 << SYS_CHROOT | 1 << MKNOD | 1 << AUDIT_WRITE
    | 1 << SETFCAP
)  # fmt: skip


def privileged() -> bool:
    """Whether this process can make namespaces and mounts without a user namespace."""
    return bool(calls.capabilities()[0] >> SYS_ADMIN & 1)


def drop_capabilities() -> None:
    """Limit the calling process, and all it executes, to what a guest may have.

    For root: bounding, permitted and effective become the container's default set, as far as it was held;
    inheritable and ambient become empty. For an ordinary user (who holds all of them inside his own user
    namespace while it is set up): none, which is what an exec would leave. Needs CAP_SETPCAP for the
    bounding set.
    """
    _, permitted, _ = calls.capabilities()
    keep = permitted & CONTAINER_DEFAULT if os.geteuid() == 0 else 0
    if keep >> SETPCAP & 1:  # an ordinary user keeps his bounding set, as natively: it gives him nothing
        for number in range(64):
            if not keep >> number & 1:
                try:
                    calls.prctl(calls.PR_CAPBSET_DROP, number)
                except OSError:
                    break  # past the last one that this kernel knows
    try:
        calls.prctl(calls.PR_CAP_AMBIENT, calls.PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError:
        pass  # clearing needs nothing and cannot fail on Linux 4.3 and later
    calls.set_capabilities(keep, keep, 0)
