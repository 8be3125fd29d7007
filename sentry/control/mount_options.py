"""Options of a mount as fstab and OCI bundles write them (mount(8), config.md), as flags of mount(2)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS = 1, 2, 4, 8, 16
MS_DIRSYNC, MS_NOATIME, MS_NODIRATIME = 128, 1024, 2048
MS_RELATIME, MS_STRICTATIME = 1 << 21, 1 << 24

#: name: (flag, whether it is set)
FLAGS = {
    "ro": (MS_RDONLY, True), "rw": (MS_RDONLY, False),
    "nosuid": (MS_NOSUID, True), "suid": (MS_NOSUID, False),
    "nodev": (MS_NODEV, True), "dev": (MS_NODEV, False),
    "noexec": (MS_NOEXEC, True), "exec": (MS_NOEXEC, False),
    "sync": (MS_SYNCHRONOUS, True), "async": (MS_SYNCHRONOUS, False),
    "dirsync": (MS_DIRSYNC, True),
    "noatime": (MS_NOATIME, True), "atime": (MS_NOATIME, False),
    "nodiratime": (MS_NODIRATIME, True), "diratime": (MS_NODIRATIME, False),
    "relatime": (MS_RELATIME, True), "norelatime": (MS_RELATIME, False),
    "strictatime": (MS_STRICTATIME, True), "nostrictatime": (MS_STRICTATIME, False),
}  # fmt: skip
#: Nothing of a sandbox's mounts reaches the host's or comes from there later, so these are as good as `rprivate`.
PRIVATE = ("private", "rprivate", "slave", "rslave", "unbindable", "runbindable")
IGNORED = ("defaults", "nofail", "z", "Z", "U", "copy", "nocopy", "tmpcopyup", "copy-up")
#: These would have to mean something, and cannot.
REFUSED = ("shared", "rshared", "remount", "move", "idmap", "ridmap")


class Parsed(msgspec.Struct):
    """`clear`: flags that were switched off by name. `data`: what is the file system's own."""

    flags: int = 0
    clear: int = 0
    bind: bool = False
    recursive: bool = False
    data: list[str] = []


def parse(options: Sequence[str]) -> Parsed:
    """ValueError for an option that means something and is not supported."""
    found = Parsed()
    for option in options:
        if option in FLAGS:
            flag, on = FLAGS[option]
            found.flags = found.flags | flag if on else found.flags & ~flag
            found.clear = found.clear & ~flag if on else found.clear | flag
        elif option in ("bind", "rbind"):
            found.bind, found.recursive = True, option == "rbind"
        elif option in REFUSED:
            raise ValueError(f"the option {option} is not supported")
        elif option and option not in PRIVATE and option not in IGNORED:
            found.data.append(option)
    return found
