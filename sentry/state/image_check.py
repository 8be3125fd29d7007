"""Whether the records of an image make sense together: every key refers to something, no id is there twice, every
number is one that the host could have given.

`check_image` looks at what was the host's (`Image`) and at the page runs, `check_kernel` at whether the kernel's state
is of the same processes. `check` does both for an image that was opened, and returns what it read. Bounds are those of
Linux on x86-64; what only the host of the restore can know (whether a file is still there, whether an id is free)
shows in the restore. `check_beginnings` is of what one cannot do without.
"""

from __future__ import annotations

from collections.abc import Iterable
from stat import S_ISDIR

from trapline.sentry.kernel.state import ClockState, KernelState
from trapline.sentry.state import manifest
from trapline.sentry.state.image_bounds import (
    MOST_DESCRIPTORS,
    MOST_PIDS,
    U32,
    U64,
    Bad,
    absolute,
    known,
    length,
    name,
    number,
)
from trapline.sentry.state.image_check_files import check_files
from trapline.sentry.state.image_reader import ImageReader
from trapline.sentry.state.pages_meta import PAGE
from trapline.sentry.state.records import AddressSpace, Image, Mapping, PageRun, ProcessRecord, ThreadRecord
from trapline.sentry.state.unusable import UnusableImage

#: TASK_SIZE_MAX with four levels of page tables, and with five (arch/x86/include/asm/page_64_types.h).
USER_END = (1 << 47) - PAGE
USER_END_5 = (1 << 56) - PAGE
MAPPING_KINDS = ("anonymous", "file", "shared", "vdso", "host_vdso")
SHARED_KINDS = ("anonymous", "memfd", "sysv")
_REGISTERS = 27 * 8  # struct user_regs_struct
_STACK = 24  # stack_t
_XSAVE_LEAST, _XSAVE_MOST = 512, 64 << 10  # the legacy region; more than any processor has
_LIMITS = 16  # RLIM_NLIMITS
_CPUS = 8192  # NR_CPUS_RANGE_END
_FILTER_FLAG_LOG = 2
_FILTER_MOST = 4096 * 8  # BPF_MAXINSNS of struct sock_filter
_NGROUPS = 65536
PROT_EXEC = 4
_OUTSIDE = (0, 1)  # parents of those whose parent is none of the guests: 1 is the sandbox's init


def check(reader: ImageReader) -> tuple[KernelState, Image]:
    """The records of an image, once all of it makes sense; its files are compared with their checksums, but not its
    pages. UnusableImage."""
    kernel, image = reader.kernel(), reader.image()
    flags = reader.manifest.cpu_flags
    end = USER_END_5 if "la57" in flags else USER_END
    try:
        check_image(image, end)
        check_runs(image, reader.runs())
        check_ghosts(image, reader)
    except Bad as error:
        raise UnusableImage(f"{reader.path}/{manifest.GUESTS}: {error}") from None
    try:
        check_kernel(kernel, image)
    except Bad as error:
        raise UnusableImage(f"{reader.path}/{manifest.KERNEL}: {error}") from None
    reader.check_files()
    return kernel, image


def check_image(image: Image, end: int = USER_END) -> None:
    """What was the host's. `end`: of the addresses that a program may use. Bad."""
    for space_key, space in image.spaces.items():
        _check_space(f"address space {space_key}", image, space, end)
    for key, shared in image.shared.items():
        number(f"the size of {key}", shared.size, 1 << 62)
        if shared.kind not in SHARED_KINDS:
            raise Bad(f"{key} is shared memory of the kind '{shared.kind}', which there is not")
        if shared.huge not in (0, 21, 30):
            raise Bad(f"{key} is of pages of 2^{shared.huge} bytes")
        name(f"the name of {key}", shared.name)
    for directory, directories in image.directories.items():
        absolute(f"the current directory {directory}", directories.cwd)
        absolute(f"the root directory {directory}", directories.root)
        number(f"the umask of directory {directory}", directories.umask, 0o1000)
    for table_key, table in image.tables.items():
        for descriptor, entry in table.items():
            number(f"a descriptor of table {table_key}", descriptor, MOST_DESCRIPTORS)
            known(f"descriptor {descriptor} of table {table_key}", "file", entry.file, image.files)
    _check_processes(image, end)
    check_files(image)
    for offset, size in image.vdso_host:
        if offset % PAGE or size % PAGE or not 0 < size <= 1 << 20 or not -(1 << 20) <= offset <= 0:
            raise Bad(f"{size} bytes at {offset} cannot be the host's vDSO")


# -- memory
def _check_space(who: str, image: Image, space: AddressSpace, end: int) -> None:
    last = 0
    for mapping in sorted(space.mappings, key=lambda mapping: mapping.start):
        if mapping.start % PAGE or mapping.end % PAGE or not 0 <= mapping.start < mapping.end <= end:
            raise Bad(f"{who}: there can be no mapping from {mapping.start:#x} to {mapping.end:#x}")
        if mapping.start < last:
            raise Bad(f"{who}: two mappings are at {mapping.start:#x}")
        last = mapping.end
        _check_mapping(f"{who}: the mapping at {mapping.start:#x}", image, mapping)
    if len(space.layout) != 11:
        raise Bad(f"{who}: its layout has {len(space.layout)} words")
    for word in space.layout:
        number(f"{who}: a word of its layout", word, end + 1)
    length(f"{who}: its auxiliary vector", space.auxv, 1024, unit=16)
    number(f"{who}: dumpable", space.dumpable, 3)
    for word in (space.strict_code, space.merged, space.locked_future, space.core_filter + 1):
        number(f"{who}: a word of its flags", word, U32)
    name(f"{who}: its program", space.exe)
    if space.exe_ghost:
        known(f"{who}: its program", "the nameless file", space.exe_ghost, image.ghosts)


def _check_mapping(who: str, image: Image, mapping: Mapping) -> None:
    if mapping.kind not in MAPPING_KINDS:
        raise Bad(f"{who} is of the kind '{mapping.kind}', which there is not")
    number(f"{who}: its protection", mapping.prot, 8)
    if mapping.offset % PAGE or not 0 <= mapping.offset < 1 << 63:
        raise Bad(f"{who}: it cannot begin at {mapping.offset} of what it maps")
    if mapping.kind == "shared":
        known(who, "shared memory", mapping.key, image.shared)
    if mapping.deleted:
        known(who, "the nameless file", mapping.key, image.ghosts)
    elif mapping.kind == "file":
        absolute(f"{who}: its file", mapping.path)
    name(f"{who}: its name", mapping.name)
    for start, stop in mapping.guards:
        if start % PAGE or stop % PAGE or not mapping.start <= start < stop <= mapping.end:
            raise Bad(f"{who}: there can be no guard pages from {start:#x} to {stop:#x}")
    if any(not (len(flag) == 2 and flag.isascii() and flag.isalpha()) for flag in mapping.flags):
        raise Bad(f"{who}: there are no such flags")


def check_runs(image: Image, runs: Iterable[PageRun]) -> None:
    """That pages belong to something that is mapped. `pages_meta.decode` has found none of them twice. Bad."""
    owners: dict[str, list[tuple[int, int]]] = {
        f"s{key}": _covered(space) for key, space in image.spaces.items()
    }
    for key, shared in image.shared.items():
        if key in owners:
            raise Bad(f"shared memory has the name of an address space: {key}")
        owners[key] = [(0, shared.size + -shared.size % PAGE)]
    for owner, start, size in sorted([(run.owner, run.start, run.size) for run in runs], reverse=True):
        known("a run of pages", "the memory", owner, owners)
        covered = owners[owner]
        # Both are looked at from the highest address down.
        while covered and covered[-1][0] > start:
            covered.pop()
        if not covered or start + size > covered[-1][1]:
            raise Bad(f"pages at {start:#x} of {owner} are of nothing that is mapped")


def _covered(space: AddressSpace) -> list[tuple[int, int]]:
    """What is mapped, ascending, with what touches as one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted([(mapping.start, mapping.end) for mapping in space.mappings]):
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def check_ghosts(image: Image, reader: ImageReader) -> None:
    """That the content of files without a name is in the image. Bad."""
    for key, ghost in image.ghosts.items():
        number(f"the size of the nameless file {key}", ghost.size, 1 << 62)
        number(f"the mode of the nameless file {key}", ghost.mode, 1 << 16)
        number(f"the user of the nameless file {key}", ghost.uid, U32)
        number(f"the group of the nameless file {key}", ghost.gid, U32)
        if not S_ISDIR(ghost.mode):
            known(f"the nameless file {key}", "the content", f"ghosts/{key}", reader.manifest.files)


# -- processes
def _check_processes(image: Image, end: int) -> None:
    ids: set[int] = set()
    for process in image.processes:
        number("the id of a process", process.tgid, MOST_PIDS + 1, 1)
        if process.tgid in ids:
            raise Bad(f"two processes have the id {process.tgid}")
        ids.add(process.tgid)
    tids: set[int] = set()
    for process in image.processes:
        who = f"process {process.tgid}"
        if process.parent not in ids and process.parent not in _OUTSIDE:
            raise Bad(f"{who} is the child of {process.parent}, which there is not")
        if process.zombie >= 0:
            number(f"{who}: its wait status", process.zombie, 1 << 16)
            if process.threads:
                raise Bad(f"{who} has ended, and has threads")
            continue
        _check_process(who, image, process)
        for thread in process.threads:
            if thread.tid in tids or (thread.tid in ids and thread.tid != process.tgid):
                raise Bad(f"two threads have the id {thread.tid}")
            tids.add(thread.tid)
            _check_thread(f"thread {thread.tid}", thread, end)
    _check_tree(image)


def _check_tree(image: Image) -> None:
    parents = {process.tgid: process.parent for process in image.processes}
    rooted: set[int] = set()
    for tgid in parents:
        path: set[int] = set()
        while tgid in parents and tgid not in rooted:
            if tgid in path:
                raise Bad(f"process {tgid} is an ancestor of itself")
            path.add(tgid)
            tgid = parents[tgid]
        rooted |= path


def _check_process(who: str, image: Image, process: ProcessRecord) -> None:
    known(who, "address space", process.space, image.spaces)
    known(who, "table of descriptors", process.table, image.tables)
    known(who, "directory", process.directory, image.directories)
    if not process.threads:
        raise Bad(f"{who} lives, and has no thread")
    if not process.leader_ended and process.threads[0].tid != process.tgid:
        raise Bad(f"{who}: its leader is not the first of its threads")
    for resource, limits in process.limits.items():
        number(f"{who}: a resource", resource, _LIMITS)
        for limit in limits:
            number(f"{who}: limit {resource}", limit, U64, -1)
    number(f"{who}: its OOM score", process.oom_score, 1001, -1000)
    number(f"{who}: its CPU time", process.cpu, 1 << 63)
    number(f"{who}: its user time", process.user, 1 << 63)
    length(f"{who}: its name", process.comm, 15)


def _check_thread(who: str, thread: ThreadRecord, end: int) -> None:
    number("the id of a thread", thread.tid, MOST_PIDS + 1, 1)
    length(f"{who}: its registers", thread.registers, _REGISTERS, _REGISTERS)
    length(f"{who}: its extended state", thread.extended, _XSAVE_MOST, _XSAVE_LEAST, 8)
    length(f"{who}: its alternate stack", thread.altstack, _STACK, _STACK)
    length(f"{who}: its name", thread.name, 15)
    number(f"{who}: its mask", thread.mask, U64)
    # Addresses that the host does not check when they are set may be anything.
    number(f"{who}: its list of robust futexes", thread.robust_head, U64)
    number(f"{who}: the address cleared at its end", thread.clear_tid, U64)
    address, size, signature, flags = thread.rseq
    number(f"{who}: its rseq", address, end + 1)
    for word in (size, signature, flags, thread.robust_length, thread.secure_bits, *thread.uids, *thread.gids):
        number(f"{who}: a word of 32 bits", word, U32)
    if len(thread.groups) > _NGROUPS or len(thread.affinity) > _CPUS:
        raise Bad(f"{who}: it has more groups or CPUs than there can be")
    for group in thread.groups:
        number(f"{who}: a group", group, U32)
    for cpu in thread.affinity:
        number(f"{who}: a CPU", cpu, _CPUS)
    for capabilities in thread.capabilities:
        number(f"{who}: its capabilities", capabilities, U64)
    # SCHED_RESET_ON_FORK may be or-ed to the policy.
    number(f"{who}: its policy", thread.policy & ~0x40000000, 8)
    number(f"{who}: its nice value", thread.nice, 20, -20)
    number(f"{who}: its priority", thread.priority, 100)
    number(f"{who}: its I/O priority", thread.io_priority, 1 << 16)
    number(f"{who}: its timer slack", thread.timer_slack, U64)
    mode, nodes = thread.memory_policy
    for word in (thread.personality, thread.machine_checks, thread.time_stamps, mode):
        number(f"{who}: a word of its attributes", word, U32)
    number(f"{who}: its memory nodes", nodes, U64)
    number(f"{who}: its CPU time", thread.cpu, 1 << 63)
    number(f"{who}: its user time", thread.user, 1 << 63)
    number(f"{who}: whom it holds for", thread.holds_for, MOST_PIDS + 1)
    for own in thread.filters:
        length(f"{who}: a seccomp filter", own.program, _FILTER_MOST, 8, 8)
        if own.flags & ~_FILTER_FLAG_LOG:
            raise Bad(f"{who}: a seccomp filter has flags {own.flags:#x}")


# -- the kernel's state
def check_kernel(kernel: KernelState, image: Image) -> None:
    """That it is of these processes, and that what it says of them leads nowhere else. Bad."""
    groups = kernel.groups
    missing = groups.keys() - {process.tgid for process in image.processes}
    if missing:
        raise Bad(f"it knows of process {min(missing)}, which there is not")
    for process in image.processes:
        who = f"process {process.tgid}"
        if process.tgid not in groups:
            raise Bad(f"it knows nothing of {who}")
        tids = {thread.tid for thread in process.threads}
        missing = tids - groups[process.tgid].threads.keys()
        if missing:
            raise Bad(f"it knows nothing of thread {min(missing)}")
    for tgid, group in groups.items():
        who = f"process {tgid}"
        number("the id of a process", tgid, MOST_PIDS + 1, 1)
        if group.tgid != tgid:
            raise Bad(f"{who} is written down as {group.tgid}")
        if group.ppid not in groups and group.ppid not in _OUTSIDE:
            raise Bad(f"{who} is the child of {group.ppid}, which there is not")
        number(f"{who}: its process group", group.pgid, MOST_PIDS + 1)
        number(f"{who}: its session", group.sid, MOST_PIDS + 1)
        for child in (*group.children, *(child for _, child in group.reports)):
            known(who, "the child", child, groups)
        for tid, task in group.threads.items():
            if task.tid != tid or task.tgid != tgid:
                raise Bad(f"thread {tid} of {who} is written down as {task.tid} of {task.tgid}")
            number("the id of a thread", tid, MOST_PIDS + 1, 1)
            number(f"thread {tid}: its mask", task.mask, U64)
            for child in task.made:
                known(f"thread {tid}", "the child", child, groups)
            _signals(f"thread {tid}", [info.signo for info in task.pending])
        _signals(who, [info.signo for info in group.pending])
        _signals(who, group.actions)
    for pgid, members in kernel.process_groups.items():
        for member in members:
            known(f"process group {pgid}", "the process", member, groups)
    number("the number of checkpoints", kernel.checkpoint_count, 1 << 63)
    _check_clock(kernel.clock)


def _check_clock(clock: ClockState) -> None:
    for what, value in (("rate", clock.rate_num), ("rate's divisor", clock.rate_den)):
        number(f"the clocks' {what}", value, 1 << 32, 1)
    for value in (
        clock.monotonic_base, clock.monotonic_start, clock.boottime_base, clock.boottime_start, clock.raw_base,
        clock.frozen, clock.boottime_frozen, clock.realtime_delta, clock.realtime_start, clock.boot_realtime,
        clock.tai_delta,
    ):  # fmt: skip
        number("a time of the clocks", value, 1 << 63, -(1 << 63))


def _signals(who: str, numbers: Iterable[int]) -> None:
    for signo in numbers:
        number(f"{who}: a signal", signo, 65, 1)


# -- for a restore
def check_beginnings(kernel: KernelState, image: Image) -> None:
    """What a restore begins with: the first process, and in each an instruction by which it makes calls. Bad."""
    known("the sandbox", "the first process", kernel.root_tgid, kernel.groups)
    for process in image.processes:
        if process.zombie < 0:
            _check_vdso(process.tgid, kernel.groups[process.tgid].vdso, image.spaces[process.space])


def _check_vdso(tgid: int, address: int, space: AddressSpace) -> None:
    for mapping in space.mappings:
        if mapping.kind == "vdso" and mapping.start == address and mapping.offset == PAGE and mapping.prot & PROT_EXEC:
            return
    raise Bad(f"process {tgid}: there is no vDSO at {address:#x}")
