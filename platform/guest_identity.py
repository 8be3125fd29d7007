"""Who a guest is before its program: limits, user, groups and capabilities, set by the guest itself in this order.

Limits first, since raising one needs a capability of root's; capabilities last, since changing the user needs them.
Sources: setrlimit(2), setgroups(2), capabilities(7), the OCI runtime specification (config.md, "Process").
"""

from __future__ import annotations

import os
import resource

from trapline.platform.capabilities import BY_NAME, drop_capabilities
from trapline.platform.first_processes import SetupError
from trapline.sentry.options import User

_LARGEST_ID = (1 << 32) - 2  # -1 means none to the calls


def take(user: User | None, rlimits: dict[str, tuple[int, int]], capabilities: list[str] | None) -> None:
    """Become what is asked for. `user` None: who we are. SetupError, its text one line for whoever asked."""
    set_limits(rlimits)
    wanted = capability_set(capabilities)
    if user is None:
        drop_capabilities(wanted)
        return
    if user.umask is not None:
        os.umask(user.umask)
    drop_capabilities(wanted, lambda: _become(user))


def _become(user: User) -> None:
    if not (0 <= user.uid <= _LARGEST_ID and 0 <= user.gid <= _LARGEST_ID):
        raise SetupError(f"user {user.uid}:{user.gid}: no such ids")
    try:
        if user.groups or os.geteuid() == 0:
            os.setgroups(user.groups)
    except OSError:
        # Denied in an ordinary user's sandbox (user_namespaces(7)): none but his own can be had.
        if set(user.groups) - set(os.getgroups()) - {user.gid}:
            raise SetupError(f"groups {', '.join(map(str, user.groups))}: an ordinary user has his own only") from None
    try:
        if os.getresgid() != (user.gid,) * 3:
            os.setresgid(user.gid, user.gid, user.gid)
        if os.getresuid() != (user.uid,) * 3:
            os.setresuid(user.uid, user.uid, user.uid)
    except OSError:
        own = f"{os.getuid()}:{os.getgid()}"
        raise SetupError(f"user {user.uid}:{user.gid}: an ordinary user's sandbox has only his own, {own}") from None


def set_limits(rlimits: dict[str, tuple[int, int]]) -> None:
    """SetupError for a name that is none, or a limit that may not be had."""
    for name, (soft, hard) in rlimits.items():
        number = getattr(resource, name, None) if name.startswith("RLIMIT_") else None
        if not isinstance(number, int):
            raise SetupError(f"{name}: there is no such resource limit")
        try:
            resource.setrlimit(number, (_limit(soft), _limit(hard)))
        except (OSError, ValueError, OverflowError) as error:
            raise SetupError(f"{name} {soft}:{hard}: {getattr(error, 'strerror', None) or error}") from None


def _limit(value: int) -> int:
    return resource.RLIM_INFINITY if value < 0 or value >= (1 << 64) - 1 else value


def capability_set(names: list[str] | None) -> int | None:
    """SetupError for one that Linux does not know."""
    if names is None:
        return None
    found = 0
    for name in names:
        if name not in BY_NAME:
            raise SetupError(f"{name}: there is no such capability")
        found |= 1 << BY_NAME[name]
    return found
