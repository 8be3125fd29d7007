"""What is saved of the host's inside guests: memory maps, registers, descriptors, ids. The kernel's own state is
`KernelState`; these records are what the host holds beside it.

Everything refers to everything else by small numbers that are keys here: an address space by `space`, an open file
description (what dup(2) and fork(2) share) by `file`, a table of descriptors by `table`. All addresses and sizes are
bytes; bit sets are those of the host's calls. An image is input from outside: `check` in image_check.py says what else
must hold before anything of it is used.
"""

from __future__ import annotations

import msgspec

from trapline.sentry.state.files import AnyFile, Descriptor, Pipe, RecordLock, Socket, Terminal
from trapline.sentry.state.ipc import IpcRecord


class Mapping(msgspec.Struct):
    """One mapping (mmap(2), proc_pid_maps(5))."""

    start: int
    end: int
    prot: int  # PROT_*
    #: "anonymous", "file", "shared" (an object in `Image.shared`: shared anonymous memory, memfd, System V), "vdso"
    #: (our image and its parameter page), "host_vdso" (the host's [vdso] and [vvar] pages).
    kind: str
    shared: bool = False  # MAP_SHARED
    offset: int = 0  # in the file or shared object
    path: str = ""  # of a file, as the sandbox's root shows it; "" for others
    device: int = 0  # of a file: to know it again
    inode: int = 0
    deleted: bool = False  # the file has no name any more: its content is in `Image.ghosts`
    key: str = ""  # of the shared object or ghost
    writable_file: bool = False  # a shared file mapping of a descriptor opened for writing
    name: str = ""  # PR_SET_VMA_ANON_NAME; of "host_vdso" which of its mappings this is
    #: VmFlags of proc_pid_smaps(5) that are set again: gd, dc, dd, wf, hg, nh, lo, lf, sr, rr, nr, mg, dp, sl.
    flags: list[str] = []
    guards: list[tuple[int, int]] = []  # start, end: guard pages in it (MADV_GUARD_INSTALL)


class AddressSpace(msgspec.Struct):
    """What one mm holds; threads and CLONE_VM children share one."""

    mappings: list[Mapping]
    #: struct prctl_mm_map's words in its order: start_code, end_code, start_data, end_data, start_brk, brk,
    #: start_stack, arg_start, arg_end, env_start, env_end (prctl(2), PR_SET_MM_MAP).
    layout: list[int]
    auxv: bytes
    exe: str = ""  # as the sandbox's root shows it
    exe_ghost: str = ""  # key, where it has no name any more
    dumpable: int = 1
    thp_disabled: bool = False  # PR_SET_THP_DISABLE
    strict_code: int = 0  # PR_SET_MDWE
    merged: int = 0  # PR_SET_MEMORY_MERGE
    locked_future: int = 0  # flags of mlockall(2)
    core_filter: int = -1  # /proc/PID/coredump_filter; -1: the host's


class SharedObject(msgspec.Struct):
    """Memory that several processes may map, or hold by descriptors."""

    kind: str  # "anonymous", "memfd", "sysv"
    size: int
    name: str = ""  # memfd
    seals: int = 0
    identity: int = 0  # shmid
    huge: int = 0  # log2 of the page size of MFD_HUGETLB or MAP_HUGETLB, 0 for none


class Ghost(msgspec.Struct):
    """A file without a name that somebody has open or mapped: its content lies in the image's `ghosts/KEY`."""

    size: int
    mode: int
    uid: int
    gid: int
    path: str = ""  # what it once was called


class ThreadRecord(msgspec.Struct):
    """The host's side of one thread. All but the registers is asked for and set in the thread itself."""

    tid: int
    registers: bytes  # struct user_regs_struct, as it stands before the next instruction
    extended: bytes  # NT_X86_XSTATE
    mask: int  # blocked on the host
    name: bytes
    altstack: bytes  # stack_t
    robust_head: int = 0
    robust_length: int = 24
    clear_tid: int = 0  # where the host writes 0 at the thread's end (set_tid_address(2))
    rseq: tuple[int, int, int, int] = (0, 0, 0, 0)  # address, length, signature, flags
    policy: int = 0  # sched_setattr(2)
    nice: int = 0
    priority: int = 0
    affinity: list[int] = []
    io_priority: int = 0
    timer_slack: int = 50000
    uids: tuple[int, int, int, int] = (0, 0, 0, 0)  # real, effective, saved, fs; as the sandbox numbers them
    gids: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: list[int] = []
    #: Inheritable, permitted, effective, bounding, ambient.
    capabilities: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    secure_bits: int = 0
    no_new_privileges: bool = True
    #: It waits in a call of the kernel's (`Task.call`): the registers say that the host executes pause(2) for it.
    parked: bool = False
    holds_for: int = 0  # it is in vfork(2) until this child executes a program or ends
    cpu: int = 0  # CPU time used, ns
    user: int = 0  # of it in user mode
    #: siginfo_t of signals that the host holds for it since its mask blocks them (a signalfd looks there).
    queued: list[bytes] = []
    personality: int = 0  # personality(2)
    machine_checks: int = 2  # PR_MCE_KILL_GET
    time_stamps: int = 1  # PR_GET_TSC
    memory_policy: tuple[int, int] = (0, 0)  # mode and nodes of set_mempolicy(2)
    filters: list[bytes] = []  # seccomp programs of its own, the first installed first


class ProcessRecord(msgspec.Struct):
    """The host's side of one process."""

    tgid: int
    space: int  # -1 of a zombie
    table: int  # of its descriptors
    directory: int  # who shares fs_struct (CLONE_FS): key of `Image.directories`
    threads: list[ThreadRecord]  # those that live, the leader first
    parent: int = 0  # on the host, as the sandbox numbers it: 0 where it is outside
    leader_ended: bool = False
    zombie: int = -1  # its host wait status, where it has ended and was not waited for
    limits: dict[int, tuple[int, int]] = {}
    oom_score: int = 0
    cpu: int = 0  # of the process, threads that have ended included, ns
    user: int = 0
    comm: bytes = b""
    queued: list[bytes] = []  # as of a thread, for the process
    stopped: bool = False  # by a job-control signal


class Directories(msgspec.Struct):
    """fs_struct."""

    cwd: str
    root: str
    umask: int


class Image(msgspec.Struct):
    """All of it but pages, kernel state and the sandbox's own files."""

    spaces: dict[int, AddressSpace] = {}
    shared: dict[str, SharedObject] = {}
    ghosts: dict[str, Ghost] = {}
    processes: list[ProcessRecord] = []  # in the order of their ids
    tables: dict[int, dict[int, Descriptor]] = {}
    files: dict[int, AnyFile] = {}  # open file descriptions
    pipes: dict[int, Pipe] = {}
    sockets: dict[int, Socket] = {}
    terminals: dict[int, Terminal] = {}
    locks: dict[int, list[RecordLock]] = {}  # by table
    directories: dict[int, Directories] = {}
    vdso: bytes = b""  # our image as guests have it mapped, without the parameter page
    vdso_host: list[tuple[int, int]] = []  # what of the host's was moved below it: offset, length
    ipc: IpcRecord = msgspec.field(default_factory=IpcRecord)


class PageRun(msgspec.Struct, array_like=True):
    """Pages that lie one after the other in memory and in pages.img."""

    owner: str  # "s3": address space 3; or the key of a shared object
    start: int  # address, or offset in the shared object
    size: int
    offset: int  # in pages.img
    image: int = 0  # whose pages.img: 0 this image's, 1 its parent's, 2 the parent's of that
