"""What an OCI bundle adds to a sandbox's root: mounts, devices, masked and read-only paths, and that it is read-only.

Made by pid 1 once `/` is the new root, so that links in it lead where the guest sees them lead, and while the old root
is still in the namespace, or nothing could be bound from it. Sources: config-linux.md and config.md of the runtime
specification, mount(2).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from trapline.platform import setup_calls as calls
from trapline.platform.setup_calls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC, MS_REMOUNT, mount
from trapline.sentry.options import Device, DoOptions, Mount

Opened = list[tuple[Mount, int]]  # -1: no bind


def open_sources(mounts: list[Mount]) -> Opened:
    """Before the root changes. OSError with the source that is not there."""
    return [(each, os.open(each.source, os.O_PATH) if each.kind == "bind" else -1) for each in mounts]


def make(options: DoOptions, opened: Opened, note_tmpfs: Callable[[str], None]) -> None:
    """OSError with the mount that failed. `note_tmpfs` is told where there are files of the sandbox's own now."""
    for each, source in opened:
        if source >= 0:
            _bind(each, source)
            os.close(source)
        else:
            place = _fresh(each)
            if each.kind == "tmpfs" and not each.flags & MS_RDONLY:
                note_tmpfs(place)
    for device in options.devices:
        _make_device(device)
    for path in options.masked:
        _mask(path)
    for path in options.read_only:
        _make_read_only(path)
    if options.read_only_root:
        remount("/", MS_RDONLY)


def _bind(each: Mount, source: int) -> None:
    place = _make_place(each.target, stat.S_ISDIR(os.fstat(source).st_mode))
    mount(f"/proc/self/fd/{source}", place, None, MS_BIND | (MS_REC if each.recursive else 0))
    if each.flags or each.clear:
        remount(place, each.flags, each.clear)


def _fresh(each: Mount) -> str:
    place = _make_place(each.target, True)
    mount(each.source, place, each.kind, each.flags, each.data)
    return place


def _make_place(target: str, directory: bool) -> str:
    """Where to mount: behind the links, also those that lead nowhere yet."""
    place = os.path.realpath(target)
    if directory:
        os.makedirs(place, exist_ok=True)
    elif not os.path.exists(place):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    return place


def _make_device(device: Device) -> None:
    """As the specification has it: an existing node of this kind and number is left as it is."""
    kind = {"b": stat.S_IFBLK, "p": stat.S_IFIFO}.get(device.kind, stat.S_IFCHR)
    number = 0 if kind == stat.S_IFIFO else os.makedev(device.major, device.minor)
    place = os.path.realpath(device.path)
    try:
        found = os.lstat(place)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.mknod(place, kind | device.mode, number)
        os.chmod(place, device.mode)  # mknod was subject to the umask
        os.chown(place, device.uid, device.gid)
        return
    if stat.S_IFMT(found.st_mode) != kind or (kind != stat.S_IFIFO and found.st_rdev != number):
        raise OSError(errno.EEXIST, "there is something else", device.path)


def _mask(path: str) -> None:
    """A directory shows as empty, anything else as /dev/null; what is not there needs no mask."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(mode):
        mount("trapline", path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=0k")
    else:
        mount("/dev/null", path, None, MS_BIND)


def _make_read_only(path: str) -> None:
    if os.path.exists(path):
        mount(path, path, None, MS_BIND | MS_REC)
        remount(path, MS_RDONLY)


def remount(target: str, flags: int, clear: int = 0) -> None:
    """Set flags of one mount, and keep those that it has: a user namespace locks them (mount_namespaces(7))."""
    has = os.statvfs(target).f_flag
    kept = sum(flag for bit, flag in _ST_FLAGS if has & bit)
    mount(None, target, None, MS_BIND | MS_REMOUNT | kept & ~clear | flags)


#: What statvfs(3) tells, as flags of mount(2).
_ST_FLAGS = (
    (1, MS_RDONLY), (2, MS_NOSUID), (4, MS_NODEV), (8, MS_NOEXEC),
    (1024, calls.MS_NOATIME), (2048, calls.MS_NODIRATIME), (4096, calls.MS_RELATIME),
)  # fmt: skip
