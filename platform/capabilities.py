"""What a guest may still do when it was started by root: a container's default set, and no more."""

from __future__ import annotations

import os
from collections.abc import Callable

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


#: Every capability, in the order of the numbers (capabilities(7)), and its number by its name.
_NAMES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
BY_NAME = {f"CAP_{name}": number for number, name in enumerate(_NAMES.split())}


def names_of(mask: int) -> list[str]:
    """CAP_CHOWN and so on of a set."""
    return [name for name, number in BY_NAME.items() if mask >> number & 1]


def drop_capabilities(wanted: int | None = None, become: Callable[[], None] = lambda: None) -> None:
    """Limit the calling process, and all it executes, to what a guest may have, or to the set `wanted`; `become`
    changes its user in between, where the capabilities for that are still there.

    For root: bounding, permitted and effective become the container's default set, as far as it was held;
    inheritable and ambient become empty. For an ordinary user (who holds all of them inside his own user
    namespace while it is set up): none, which is what an exec would leave. Needs CAP_SETPCAP for the
    bounding set.
    """
    _, permitted, _ = calls.capabilities()
    keep = permitted & (CONTAINER_DEFAULT if wanted is None else wanted) if os.geteuid() == 0 else 0
    # An ordinary user keeps his bounding set, as natively: it gives him nothing.
    if permitted >> SETPCAP & 1 and os.geteuid() == 0:
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
    become()
    if os.geteuid():
        keep = 0
    calls.set_capabilities(keep, keep, 0)
