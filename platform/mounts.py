"""The root that a guest sees: the host's files, or a directory's, with an overlay in memory over them.

Built by pid 1 of the new pid namespace inside the new mount namespace, so nothing here can be seen by the
host and all of it goes with the namespace. Sources: mount(2), overlayfs.rst, user_namespaces(7) and
mount_namespaces(7) (locked mounts), devpts.rst; all under Documentation/filesystems for the kernel's own.

What a guest writes reaches the host only below the working directory and the volumes. Unix sockets of the
host can be connected to there, and nowhere else: seen through an overlay they are other inodes.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from trapline.platform import own_layers, terminal_nodes
from trapline.platform import setup_calls as calls
from trapline.platform.setup_calls import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
)

if TYPE_CHECKING:
    from trapline.platform.restore_own_files import SavedFiles
    from trapline.sentry.options import DoOptions, Mount

# Mounts of these kinds are windows into the host's kernel, not files: a guest gets fresh ones or none.
PSEUDO = frozenset(
    ["autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs"]
    + ["efivarfs", "fusectl", "hugetlbfs", "mqueue", "nfsd", "nsfs", "proc", "pstore", "rpc_pipefs"]
    + ["securityfs", "selinuxfs", "sysfs", "tracefs"]
)
FRESH = ("/proc", "/sys", "/dev")
DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
LINKS = (
    ("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"), ("ptmx", "pts/ptmx"),
)  # fmt: skip
# Read-only for a root guest, who by his user id alone could change the whole host there.
HOST_WIDE = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus")
# A working directory at or below the first, or equal to the second, is the system's and not somebody's
# project.
SYSTEM_TREES = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr",
)  # fmt: skip
SYSTEM_DIRECTORIES = ("/", "/home", "/media", "/mnt", "/opt", "/run", "/srv", "/var")
PROJECTS_IN_SYSTEM_TREES = ("/usr/src", "/usr/local/src")
CHECKPOINT_PLACE = "/run/trapline"
CHECKPOINT_FILES = ("checkpoint", "outcome")
COPY_LIMIT = 1 << 20  # bytes; larger files that are mount points are bound read-only

_ST_FLAGS = (
    (2, MS_NOSUID), (4, MS_NODEV), (8, MS_NOEXEC),
    (1024, calls.MS_NOATIME), (2048, calls.MS_NODIRATIME), (4096, calls.MS_RELATIME),
)  # fmt: skip


class Plan:
    """What to build. Paths are absolute; those of `volumes` are (host, guest, read-only)."""

    __slots__ = (
        "bundle", "checkpoint_files", "cpus", "handles", "is_init", "layers", "notes", "overlay", "own_group",
        "own_terminal", "privileged", "saved", "shared", "source", "stage", "terminal", "terminal_shown", "terminals",
        "upper_count", "volumes", "window",
    )  # fmt: skip

    def __init__(
        self,
        stage: str,
        source: str = "/",
        overlay: bool = True,
        shared: str = "",
        volumes: list[tuple[str, str, bool]] | None = None,
        terminal: str = "",
        privileged: bool = True,
    ) -> None:
        self.stage = stage  # an empty directory of the host, covered by a tmpfs that only the sandbox has
        self.source = source
        self.overlay = overlay
        self.shared = shared  # the working directory, if the host's is to be shared
        self.volumes = volumes or []
        self.terminal = terminal  # the caller's, shown by its name and as /dev/console
        self.own_terminal = False  # a terminal of the sandbox's own in its place
        self.window: tuple[int, int, int, int] | None = None  # its struct winsize
        self.terminals: list[int] = []  # descriptors that the sentry is to keep, or the terminal is gone
        self.terminal_shown = ""  # the name that it has inside, once it has one
        self.own_group = ""  # how the first guest's process group is made (caller_terminal.py)
        self.privileged = privileged  # not inside a user namespace of our own
        self.is_init = False  # the first guest is pid 1, rather than a stub's child
        self.bundle: DoOptions | None = None  # has mounts and the like of its own (bundle_mounts.py)
        self.checkpoint_files = False  # those by which programs ask for checkpoints (checkpoint_file.py)
        self.cpus: list[int] = []  # show these CPUs only; empty: all
        self.notes: list[str] = []  # what came out differently than one may expect
        self.upper_count = 0
        self.layers: list[own_layers.Layer] = []  # where the sandbox's own files are
        self.handles: list[int] = []  # once it is built: descriptors of the stage and of the root
        self.saved: SavedFiles | None = None  # own files of a checkpoint, put back as the layers are made


def below(path: str, tree: str) -> bool:
    """Whether a path is a directory or lies in it."""
    return path == tree or tree == "/" or path.startswith(tree + "/")


def is_shared(directory: str) -> bool:
    """Whether this working directory is shared with the host: not when it is the system's own.

    `/`, /home, /var and their like are not, neither are /etc, /usr and what they hold, but projects kept in
    /usr/src and /usr/local/src are. What a guest writes in one that is not shared vanishes with the sandbox.
    """
    if any(below(directory, tree) and directory != tree for tree in PROJECTS_IN_SYSTEM_TREES):
        return True
    return directory not in SYSTEM_DIRECTORIES and not any(below(directory, tree) for tree in SYSTEM_TREES)


def _unescape(field: bytes) -> str:
    if b"\\" in field:
        for code in (b"040", b"011", b"012", b"134"):
            field = field.replace(b"\\" + code, bytes([int(code, 8)]))
    return os.fsdecode(field)


def mounts_below(source: str) -> dict[str, tuple[str, bool]]:
    """{mount point: (file system type, read-only)} of what is mounted under `source`, outermost first."""
    found: dict[str, tuple[str, bool]] = {}
    with open("/proc/self/mountinfo", "rb", 0) as file:
        content = file.readall()
    for line in content.splitlines():
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        point = _unescape(fields[4])
        if point != source and below(point, source):
            found.pop(point, None)  # a later mount at the same place covers the earlier
            found[point] = (right.partition(b" ")[0].decode(), b"ro" in fields[5].split(b","))
    return dict(sorted(found.items()))


def build(plan: Plan) -> None:
    """Leaves the calling process in the new root, its working directory `/`.

    OSError with the mount that failed. In a user namespace the caller's own ids must be mapped already.
    """
    os.close(os.open(plan.source, os.O_PATH | os.O_DIRECTORY))  # here its absence has a plain message
    mount("none", "/", None, MS_REC | MS_PRIVATE)  # or what we mount would propagate to the host
    points = mounts_below(plan.source)
    mount("trapline", plan.stage, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for name in ("upper", "work", "root"):
        os.mkdir(f"{plan.stage}/{name}")
    stage = os.open(plan.stage, os.O_PATH | os.O_DIRECTORY)
    root = plan.stage + "/root"
    if not plan.overlay:
        mount(plan.source, root, None, MS_BIND | MS_REC)
    elif plan.privileged or not points:
        _overlaid_root(plan, root, points)
    else:
        mount("trapline", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        _note_tmpfs(plan, root, root)
        _overlay_each(plan, plan.source, root, points)
        _own_places(plan, root, points)
    _kernel_windows(plan, root)
    wanted = [(plan.shared, plan.shared, False)] if plan.shared else []
    opened = [(os.open(host, os.O_PATH), guest, ro) for host, guest, ro in wanted + plan.volumes]
    sources = _bundle_sources(plan.bundle)
    os.chdir(root)
    calls.pivot_root(".", ".")
    # From here on `/` is the new root, so that links in it lead where the guest sees them lead; the old one
    # is stacked on it, still in this namespace (or nothing could be bound from it), and reached by
    # descriptors.
    for handle, guest, read_only in opened:
        _bind(handle, guest, read_only)
        os.close(handle)
    if plan.bundle is not None:
        from trapline.platform import bundle_mounts

        bundle_mounts.make(plan.bundle, sources, lambda place: _note_tmpfs(plan, "", place))
    if plan.checkpoint_files:
        _checkpoint_files()
    calls.umount(".", calls.MNT_DETACH)
    if plan.overlay and not plan.privileged and points:
        os.chmod("/", 0o555)  # a stand-in for a directory that is not the caller's
    os.chdir("/")
    own_layers.write(stage, plan.layers)
    plan.handles = [stage, os.open("/", os.O_PATH | os.O_DIRECTORY)]
    if plan.saved is not None:
        plan.saved.fill_mounts(plan.layers)


def _checkpoint_files() -> None:
    """Two FIFOs in a directory of their own, in which nothing else can be made or taken away."""
    os.makedirs(CHECKPOINT_PLACE, 0o755, exist_ok=True)
    mount("trapline", CHECKPOINT_PLACE, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755")
    for name in CHECKPOINT_FILES:
        os.mkfifo(f"{CHECKPOINT_PLACE}/{name}", 0o666)
        os.chmod(f"{CHECKPOINT_PLACE}/{name}", 0o666)  # mkfifo was subject to the umask
    make_read_only(CHECKPOINT_PLACE)


def _bundle_sources(bundle: DoOptions | None) -> list[tuple[Mount, int]]:
    if bundle is None:
        return []
    from trapline.platform import bundle_mounts

    return bundle_mounts.open_sources(bundle.mounts)


def _note_tmpfs(plan: Plan, root: str, target: str) -> None:
    """The sandbox has files of its own in what has just been mounted at `target`, where `root` is to be its root."""
    plan.layers.append(own_layers.Layer("tmpfs", target[len(root) :] or "/", -1, os.stat(target).st_dev))


def _overlay(plan: Plan, lower: str, target: str) -> None:
    """One overlay of a directory of the host over `target`."""
    like = os.stat(lower)
    number = plan.upper_count
    upper, work = (f"{plan.stage}/{part}/{number}" for part in ("upper", "work"))
    plan.upper_count += 1
    os.mkdir(upper)
    os.mkdir(work)
    mode = stat.S_IMODE(like.st_mode)
    # The top directory of an overlay shows the upper layer's owner and mode.
    if plan.privileged:
        os.chown(upper, like.st_uid, like.st_gid)
    elif not os.access(lower, os.W_OK, effective_ids=True):
        mode &= ~0o222  # another's directory, which shows as ours: keep it closed
    os.chmod(upper, mode)
    shown = target[len(plan.stage + "/root") :] or "/"
    if plan.saved is not None:
        plan.saved.fill_upper(shown, upper)
    handle = -1
    named = lower
    if any(c in lower for c in ":,\\"):  # separators of the options
        handle = os.open(lower, os.O_PATH | os.O_DIRECTORY)
        named = f"/proc/self/fd/{handle}"
    try:
        # An upper layer is all that there is to know of an overlay: nothing lies in an index beside it, no file has its
        # content elsewhere.
        options = f"lowerdir={named},upperdir={upper},workdir={work},xino=auto,index=off,metacopy=off"
        # Without redirect_dir a directory of the lower layer cannot be renamed (EXDEV). It needs trusted
        # xattrs.
        options += ",redirect_dir=on" if plan.privileged else ",userxattr"
        mount("trapline", target, "overlay", 0, options)
        plan.layers.append(own_layers.Layer("overlay", shown, number))
    except OSError:
        if plan.saved is not None:
            plan.saved.not_mounted(shown)
        raise
    finally:
        if handle >= 0:
            os.close(handle)


def _overlaid_root(plan: Plan, root: str, points: dict[str, tuple[str, bool]]) -> None:
    try:
        _overlay(plan, plan.source, root)
    except OSError as error:
        # Most likely the source is itself an overlay of an overlay: the kernel's limit is two.
        consequence = "it is read-only, with empty /tmp, /var/tmp and /run"
        plan.notes.append(f"no overlay of {plan.source} ({error.strerror}): {consequence}")
        _read_only_root(plan, root, points)
        return
    prefix = "" if plan.source == "/" else plan.source
    for point, (kind, read_only) in points.items():
        inner = point[len(prefix) :]
        if kind in PSEUDO or any(below(inner, tree) for tree in FRESH) or below(point, plan.stage):
            continue
        _one_mount(plan, point, root + inner, read_only)


def _one_mount(plan: Plan, point: str, target: str, read_only: bool) -> None:
    """Show one mount of the host, which an overlay of what lies above it leaves out."""
    try:
        like = os.stat(point)
        if stat.S_ISREG(like.st_mode) and like.st_size <= COPY_LIMIT and not read_only and plan.privileged:
            if plan.saved is not None and plan.saved.has(target[len(plan.stage + "/root") :]):
                return  # as the guests had changed it
            with open(point, "rb") as old, open(target, "wb") as new:
                new.write(old.read())
        elif not stat.S_ISDIR(like.st_mode) or read_only:
            mount(point, target, None, MS_BIND)
            make_read_only(target)
        else:
            try:
                _overlay(plan, point, target)
            except OSError:
                mount(point, target, None, MS_BIND)
                make_read_only(target)
    except OSError as error:
        # Hidden under another mount, or not ours to read: the guest sees the bare directory below it.
        plan.notes.append(f"{point} is not shown: {error.strerror}")


def _read_only_root(plan: Plan, root: str, points: dict[str, tuple[str, bool]]) -> None:
    mount(plan.source, root, None, MS_BIND | MS_REC)
    prefix = "" if plan.source == "/" else plan.source
    for inner in ("", *(p[len(prefix) :] for p, (kind, _) in points.items() if kind not in PSEUDO)):
        try:
            make_read_only(root + inner)
        except OSError as error:
            plan.notes.append(f"{inner} stays writable: {error.strerror}")
    for name, mode in (("/tmp", "1777"), ("/var/tmp", "1777"), ("/run", "755")):
        if os.path.isdir(root + name):
            mount("trapline", root + name, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}")
            _note_tmpfs(plan, root, root + name)


def _overlay_each(plan: Plan, directory: str, target: str, points: dict[str, tuple[str, bool]]) -> None:
    """An overlay for each directory that has no mount below it.

    In a user namespace the mounts inherited from the host are locked to what they cover, and an overlay of a
    directory that has one below is EINVAL. So such a directory is made anew and its entries are taken singly.
    """
    holders = {os.path.dirname(p) for p in points}
    for holder in list(holders):
        while len(holder) > len(plan.source):
            holder = os.path.dirname(holder)
            holders.add(holder)
    prefix = "" if plan.source == "/" else plan.source
    pending = [(directory, target)]
    while pending:
        directory, target = pending.pop()
        try:
            entries = list(os.scandir(directory))
        except OSError:
            continue
        for entry in entries:
            path = f"{directory.rstrip('/')}/{entry.name}"
            new = f"{target}/{entry.name}"
            if entry.is_symlink():
                os.symlink(os.readlink(path), new)
            elif entry.is_dir(follow_symlinks=False):
                os.mkdir(new)
                kind = points.get(path, ("", False))[0]
                if path[len(prefix) :] in FRESH or kind in PSEUDO or path == plan.stage:
                    pass
                elif not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
                    os.chmod(new, 0)  # closed on the host
                elif path in holders:
                    pending.append((path, new))
                else:
                    _one_mount(plan, path, new, points.get(path, ("", False))[1])
            elif entry.is_file(follow_symlinks=False):
                os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o444))
                _one_mount(plan, path, new, True)


def _own_places(plan: Plan, root: str, points: dict[str, tuple[str, bool]]) -> None:
    """Overlays of their own for places where an ordinary user writes, below directories of others.

    In a user namespace a directory whose owner is not mapped cannot be copied to the upper layer, so nothing
    can be created below it (EOVERFLOW); the top directory of an overlay has no need of that.
    """
    if plan.source != "/":
        return
    wanted = [os.environ.get(name, "") for name in ("HOME", "TMPDIR", "XDG_RUNTIME_DIR")]
    for path in {os.path.realpath(p) for p in (*wanted, "/var/tmp", "/run/lock") if p.startswith("/")}:
        if path in points or path.count("/") < 2 or not os.path.isdir(path) or not os.access(path, os.W_OK):
            continue
        if os.path.isdir(root + path) and not any(below(path, tree) for tree in FRESH):
            _one_mount(plan, path, root + path, False)


def _kernel_windows(plan: Plan, root: str) -> None:
    """Fresh /proc, /sys and /dev: those of the namespaces, not of the host."""
    for name in FRESH:
        if not os.path.isdir(root + name):
            os.mkdir(root + name, 0o755)
    plain = MS_NOSUID | MS_NODEV | MS_NOEXEC
    try:
        mount("proc", root + "/proc", "proc", plain)
    except PermissionError as error:
        # mount_too_revealing() in fs/namespace.c
        raise OSError(
            error.errno, "a fresh /proc is refused: parts of the host's /proc are masked, as containers do it"
        ) from None
    if plan.privileged:
        for path in HOST_WIDE:
            if os.path.exists(root + path):
                mount(root + path, root + path, None, MS_BIND)
                mount(None, root + path, None, MS_BIND | MS_REMOUNT | MS_RDONLY | plain)
    try:
        mount("sysfs", root + "/sys", "sysfs", plain | MS_RDONLY)
    except OSError:  # in a user namespace that shares the host's network
        try:
            mount("/sys", root + "/sys", None, MS_BIND | MS_REC)
        except OSError as error:
            plan.notes.append(f"/sys is empty: {error.strerror}")
    if plan.cpus:
        from trapline.platform import application_cpus

        application_cpus.show(plan, root)
    _devices(plan, root)


def _devices(plan: Plan, root: str) -> None:
    dev = root + "/dev"
    mount("trapline", dev, "tmpfs", MS_NOSUID, "mode=755")
    _note_tmpfs(plan, root, dev)
    for name, major, minor in DEVICES:
        path = f"{dev}/{name}"
        if plan.privileged:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            os.chmod(path, 0o666)  # mknod was subject to the umask
        else:  # mknod is refused in a user namespace
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
            mount("/dev/" + name, path, None, MS_BIND)
    for name, to in LINKS:
        os.symlink(to, f"{dev}/{name}")
    os.mkdir(dev + "/pts")
    os.mkdir(dev + "/shm")
    options = "newinstance,ptmxmode=0666,mode=620"
    if plan.privileged:
        options += ",gid=5"  # tty, as distributions have it; not mapped in a user namespace
    mount("devpts", dev + "/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    mount("trapline", dev + "/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    _note_tmpfs(plan, root, dev + "/shm")
    if os.path.isdir("/dev/mqueue"):
        os.mkdir(dev + "/mqueue")
        try:
            mount("mqueue", dev + "/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        except OSError:
            os.rmdir(dev + "/mqueue")
    terminal_nodes.show(plan, dev)


def make_read_only(target: str) -> None:
    """The second step of a read-only bind; it must repeat the flags that a user namespace locks."""
    flags = os.statvfs(target).f_flag
    keep = sum(mount_flag for bit, mount_flag in _ST_FLAGS if flags & bit)
    mount(None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | keep)


def _bind(source: int, target: str, read_only: bool) -> None:
    """Share a directory or file of the host, given by descriptor; its place is made if there is none."""
    if stat.S_ISDIR(os.fstat(source).st_mode):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(f"/proc/self/fd/{source}", target, None, MS_BIND | MS_REC)
    if read_only:
        make_read_only(target)
