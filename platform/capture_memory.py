"""Address spaces as a checkpoint saves them, seen from outside of processes that stand at ptrace stops.

What a mapping is a mapping of is told from its device and inode, not from its name, which a guest can choose: the
host's own tmpfs holds shared anonymous memory, memfds and System V segments, and its device number is known from a
memfd of the sentry's.

Sources: proc_pid_smaps(5), proc_pid_stat(5), proc_pid_auxv(5), proc_pid_map_files(5), Linux mm/shmem.c, ipc/shm.c.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable

from trapline.platform.memory_areas import HOST_VDSO, Area, read_areas, read_maps
from trapline.platform.page_scan import PageScan, Range
from trapline.platform.task_attributes import Probed
from trapline.sentry.state.records import AddressSpace, Ghost, Mapping, SharedObject

#: What a process has to be asked by injected calls: its break, and whether it is dumpable.
PROBE: tuple[tuple[int, ...], ...] = ((12, 0), (157, 3))  # brk(0), prctl(PR_GET_DUMPABLE)
#: VmFlags that are made again; records.Mapping.
_KEPT = ("gd", "dc", "dd", "wf", "hg", "nh", "lo", "lf", "sr", "rr", "nr", "mg", "dp", "sl")
_SYSV = re.compile(r"/SYSV[0-9a-f]{8}\Z")
_F_GET_SEALS = 1034
#: Fields of /proc/PID/stat, counted from the state, which is the first behind the name.
_START_CODE, _END_CODE, _START_STACK = 23, 24, 25
_START_DATA, _END_DATA, _START_BRK, _ARG_START, _ARG_END, _ENV_START, _ENV_END = range(42, 49)


class Collector:
    """What several address spaces have in common. One for a save."""

    def __init__(self, root: str, vdso: tuple[int, int] | None, refuse: Callable[[str], None]) -> None:
        """`root`: where the sandbox's root can be seen, such as /proc/PID/root of its first process. `vdso`: device and
        inode of our image. `refuse(text)`: of what cannot be saved; it raises, or notes it and the thing is left out.
        """
        self.root = root
        self.vdso = vdso
        self.refuse = refuse
        self.shared: dict[str, SharedObject] = {}
        self.ghosts: dict[str, Ghost] = {}
        #: By key: a path under /proc by which the sentry can open the object or ghost; "" where there is none.
        self.sources: dict[str, str] = {}
        #: By key of a shared object: (host id, mapping) of everyone who maps it.
        self.mapped: dict[str, list[tuple[int, Mapping]]] = {}
        self.device = _shared_memory_device()
        self._same: dict[tuple[int, int, str], bool] = {}
        self._descriptors: dict[int, dict[tuple[int, int], str]] = {}

    def ghost(self, path: str, name: str) -> str:
        """A file without a name, by a path under /proc that opens it; its key. OSError."""
        facts = os.stat(path)
        key = f"{facts.st_dev:x}-{facts.st_ino:x}"
        if key not in self.ghosts:
            self.ghosts[key] = Ghost(facts.st_size, facts.st_mode, facts.st_uid, facts.st_gid, name)
            self.sources[key] = path
        return key

    def has_name(self, area: Area, path: str) -> bool:
        """Whether what an area maps can be found under its path. `path`: a way to open it."""
        known = (area.device, area.inode, area.path)
        if known not in self._same:
            self._same[known] = self._find(area, path)
        return self._same[known]

    def _find(self, area: Area, path: str) -> bool:
        try:
            named = os.stat(self.root + area.path)
        except OSError:
            return False
        try:
            mapped = os.stat(path)
        except OSError:
            return named.st_ino == area.inode  # an overlay's device is another than in maps
        return (named.st_dev, named.st_ino) == (mapped.st_dev, mapped.st_ino)

    def descriptor(self, host: int, device: int, inode: int) -> str:
        """A descriptor of a process for this file, as a path under /proc; "" for none."""
        if host not in self._descriptors:
            found: dict[tuple[int, int], str] = {}
            for number in os.listdir(f"/proc/{host}/fd"):
                try:
                    facts = os.stat(f"/proc/{host}/fd/{number}")
                except OSError:
                    continue
                found[facts.st_dev, facts.st_ino] = f"/proc/{host}/fd/{number}"
            self._descriptors[host] = found
        return self._descriptors[host].get((device, inode), "")


def capture_space(
    host: int, collector: Collector, probed: Probed | None = None, who: str = "", complete: bool = True
) -> AddressSpace:
    """The address space of a process at a stop. `probed`: the results of PROBE; without them the break is where the
    heap's mapping ends. `who` names the process in what is refused. With `complete` false, what takes a walk over all
    pages is left out: `complete_space`. OSError when it is gone."""
    who = who or f"process {host}"
    areas = read_areas(host) if complete else read_maps(host)
    with PageScan(host) as scan:
        guards = scan.guarded if complete else None
        mappings = [m for m in (_mapping(host, area, collector, guards, who) for area in areas) if m is not None]
    layout = _layout(host, areas)
    if probed is not None:
        layout[5] = probed.brk
    exe = os.readlink(f"/proc/{host}/exe")
    ghost = ""
    if exe.endswith(" (deleted)") and not os.path.exists(collector.root + exe):
        exe = exe.removesuffix(" (deleted)")
        ghost = collector.ghost(f"/proc/{host}/exe", exe)
    with open(f"/proc/{host}/auxv", "rb") as file:
        auxv = file.read()
    return AddressSpace(
        mappings=mappings,
        layout=layout,
        auxv=auxv,
        exe=exe,
        exe_ghost=ghost,
        dumpable=probed.dumpable if probed is not None else 1,
        thp_disabled=_thp_disabled(host),
        strict_code=probed.strict_code if probed is not None else 0,
        merged=probed.merged if probed is not None else 0,
        locked_future=probed.locked if probed is not None else 0,
        core_filter=_core_filter(host),
    )


def complete_space(space: AddressSpace, host: int, collector: Collector, who: str) -> None:
    """Fill in what `capture_space` left out, from the process, or from a fork of it (snapshot.py), which has the same
    flags but for locks. What is refused then is left out, too. OSError."""
    areas = {area.start: area for area in read_areas(host)}
    kept: list[Mapping] = []
    with PageScan(host) as scan:
        for mapping in space.mappings:
            area = areas.get(mapping.start)
            if area is None or area.end != mapping.end:
                raise OSError(0, f"the fork of {who} has no mapping at {mapping.start:#x}")
            refused = ""
            if mapping.kind != "host_vdso":
                _flags(mapping, area, scan.guarded)
                refused = _refusal(area)
            if refused:
                collector.refuse(f"{who}: {refused} at {area.start:#x}")
            else:
                kept.append(mapping)
    space.mappings = kept


def _flags(mapping: Mapping, area: Area, guarded: Callable[[int, int], list[Range]]) -> None:
    mapping.flags = [flag for flag in _KEPT if flag in area.flags]
    mapping.writable_file = area.shared and "mw" in area.flags and mapping.kind in ("file", "shared")
    if not area.shared and mapping.kind in ("anonymous", "file") and area.present:
        mapping.guards = guarded(area.start, area.end)


def _layout(host: int, areas: list[Area]) -> list[int]:
    """struct prctl_mm_map's words, the break as far as it can be seen from outside."""
    with open(f"/proc/{host}/stat", "rb") as file:
        fields = [int(word) for word in file.read().rpartition(b")")[2].split()[1:]]
    start_brk = fields[_START_BRK - 1]
    heap = [area.end for area in areas if area.path == "[heap]"]
    places = (
        _START_CODE, _END_CODE, _START_DATA, _END_DATA, _START_BRK, 0, _START_STACK, _ARG_START, _ARG_END, _ENV_START,
        _ENV_END,
    )  # fmt: skip
    words = [fields[place - 1] for place in places]
    words[5] = max([start_brk, *heap])
    return words


def _core_filter(host: int) -> int:
    with open(f"/proc/{host}/coredump_filter", "rb") as file:
        return int(file.read() or b"-1", 16)


def _thp_disabled(host: int) -> bool:
    with open(f"/proc/{host}/status", "rb") as file:
        return b"\nTHP_enabled:\t0\n" in file.read()


def _mapping(
    host: int, area: Area, collector: Collector, guarded: Callable[[int, int], list[Range]] | None, who: str
) -> Mapping | None:
    """None of what every process has of itself, or what is left out."""
    path = area.path
    if path == "[vsyscall]":
        return None
    mapping = Mapping(area.start, area.end, area.prot, "anonymous", area.shared)
    if path in HOST_VDSO and not area.inode:
        mapping.kind, mapping.name = "host_vdso", path
        return mapping
    refused = _refusal(area)
    if refused:
        collector.refuse(f"{who}: {refused} at {area.start:#x}")
        return None
    if area.inode:
        if not _file(host, area, mapping, collector, who):
            return None
    elif path.startswith("[anon:"):
        mapping.name = path[6:-1]
    if guarded is not None:
        _flags(mapping, area, guarded)
    return mapping


def _refusal(area: Area) -> str:
    """What cannot be saved of an area; "" for nothing."""
    if "ht" in area.flags:
        return "huge pages of hugetlbfs"
    if "ss" in area.flags:
        return "a shadow stack"
    if "io" in area.flags or "pf" in area.flags:
        return f"a mapping of the device {area.path}" if area.inode else f"a special mapping {area.path}"
    if "um" in area.flags or "ui" in area.flags:
        return "memory with a userfaultfd"
    if not area.inode and area.path[:1] == "[" and not area.path.startswith(("[heap]", "[stack", "[anon:")):
        return f"a special mapping {area.path}"
    if area.inode and not area.path.startswith(("/", "[anon_shmem:")):
        return f"a mapping of {area.path}"
    return ""


def _file(host: int, area: Area, mapping: Mapping, collector: Collector, who: str) -> bool:
    """Fill in what a mapping is of; False where it is left out."""
    mapping.offset = area.offset
    mapping.device, mapping.inode = area.device, area.inode
    if (area.device, area.inode) == collector.vdso:
        mapping.kind = "vdso"
        return True
    through = _through(host, area, collector)
    if area.device == collector.device:
        return _shared(host, area, mapping, collector, through)
    mapping.kind = "file"
    mapping.path = area.path
    facts = os.stat(through) if through else None
    if facts is not None and not stat.S_ISREG(facts.st_mode) and not _is_zero(facts):
        collector.refuse(f"{who}: a mapping of {area.path}, which is no regular file, at {area.start:#x}")
        return False
    if area.deleted or not collector.has_name(area, through):
        if not through and not area.deleted:
            # Told by its number alone, which a stacked file system may show differently.
            return True
        if not through:
            collector.refuse(f"{who}: a mapping of {area.path}, which was deleted, at {area.start:#x}")
            return False
        mapping.deleted = True
        mapping.key = collector.ghost(through, area.path)
    return True


def _is_zero(facts: os.stat_result) -> bool:
    return stat.S_ISCHR(facts.st_mode) and facts.st_rdev == os.makedev(1, 5)  # /dev/zero


def _through(host: int, area: Area, collector: Collector) -> str:
    """A path under /proc that opens what an area maps; "" where there is none: map_files asks for CAP_SYS_ADMIN, and
    not everything that is mapped is open, too."""
    path = f"/proc/{host}/map_files/{area.start:x}-{area.end:x}"
    try:
        os.stat(path)
    except OSError:
        return collector.descriptor(host, area.device, area.inode)
    return path


def _shared(host: int, area: Area, mapping: Mapping, collector: Collector, through: str) -> bool:
    """A mapping of the host's own tmpfs."""
    mapping.kind = "shared"
    if _SYSV.match(area.path) and area.deleted:
        kind, name, key = "sysv", "", f"sysv:{area.inode}"
    elif area.path.startswith("/memfd:") and area.deleted:
        kind, name, key = "memfd", area.path[7:], f"memfd:{area.device:x}:{area.inode}"
    else:
        kind, name, key = "anonymous", "", f"shm:{area.device:x}:{area.inode}"
        if area.path.startswith("[anon_shmem:"):
            mapping.name = area.path[12:-1]
    mapping.key = key
    collector.mapped.setdefault(key, []).append((host, mapping))
    found = collector.shared.get(key)
    if found is None:
        found = collector.shared[key] = SharedObject(kind, 0, name)
        if kind == "sysv":
            found.identity = area.inode
    if through and not collector.sources.get(key):
        collector.sources[key] = through
        found.size = os.stat(through).st_size
        if kind == "memfd":
            found.seals = seals_of(through)
    elif not collector.sources.get(key):
        # Nobody can say how long it is: as far as it is mapped.
        found.size = max(found.size, area.offset + area.size)
    return True


def seals_of(path: str) -> int:
    """fcntl(2), F_GET_SEALS. OSError."""
    import fcntl

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS)
    finally:
        os.close(fd)


_device: list[int] = []


def _shared_memory_device() -> int:
    """Of the host's own tmpfs."""
    if not _device:
        fd = os.memfd_create("trapline-device", os.MFD_CLOEXEC)
        _device.append(os.fstat(fd).st_dev)
        os.close(fd)
    return _device[0]
