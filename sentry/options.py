"""What `trapline do` was asked for: the one value that the command line hands to the platform."""

from __future__ import annotations

import msgspec


class StraceOptions(msgspec.Struct):
    """Options of `--strace`; the expressions are those of strace(1) and were found right."""

    output: str | None = None  # file; None: standard error
    trace: str = "all"  # which calls
    status: str = "all"  # with which outcome
    summary: str = ""  # "": lines; "only": the table in place of them; "both"
    sort: str = "time"  # of the table
    summary_format: str = "text"  # or "json"
    paths: bool = False  # say what descriptors are
    owned_only: bool = False  # only what the sentry answered


class Mount(msgspec.Struct):
    """One mount of an OCI bundle, made in the order of the list, after the root is the guest's (mount(2))."""

    target: str  # absolute, in the guest
    kind: str  # bind, tmpfs, proc, sysfs, devpts or mqueue
    source: str = ""  # of a bind: absolute path of the host
    flags: int = 0  # MS_NOSUID and so on, MS_RDONLY included
    clear: int = 0  # flags that a bind is not to take over from its source
    recursive: bool = False  # of a bind: with what is mounted below the source
    data: str = ""  # the file system's own options


class Device(msgspec.Struct):
    """A device node of an OCI bundle (mknod(2))."""

    path: str  # absolute, in the guest
    kind: str  # c, b, u (as c) or p
    major: int = 0
    minor: int = 0
    mode: int = 0o666
    uid: int = 0
    gid: int = 0


class User(msgspec.Struct):
    """Who the first program runs as. Ids are the sandbox's."""

    uid: int = 0
    gid: int = 0
    groups: list[int] = []
    umask: int | None = None  # None: the caller's


class DoOptions(msgspec.Struct):
    """Options of one sandbox. Paths are absolute paths of the host unless something else is said."""

    command: list[str]  # looked up in the guest's PATH, in its root
    rootfs: str | None = None  # None: the host's root
    cwd: str | None = None  # in the guest; None: the caller's, or `/` with a rootfs
    env: list[str] = []  # NAME=VALUE, in addition to the caller's
    volumes: list[tuple[str, str, bool]] = []  # (host path, path in the guest, read-only)
    network: str = "none"  # "none" or "host"
    platform: str = "seccomp"  # "seccomp" or "ptrace"
    cpus: int | None = None  # how many CPUs guests may use; None: all that the caller may
    overlay: str = "memory"  # where writes outside of shared directories go: "memory", or "none": to the host
    log: str | None = None  # file; None: standard error
    log_format: str = "text"  # "text" or "json"
    debug: bool = False
    state_dir: str | None = None  # None: chosen by platform/state_dir.py
    stats: bool = False
    stats_json: str | None = None
    core_dir: str | None = None  # where core files go; None: wherever the host's core_pattern says
    watchdog: float = 3.0  # seconds after which a handler that still runs is reported; 0: never
    tty: bool = False  # the first guest gets a terminal of the sandbox's own
    console_socket: str | None = None  # where its master is sent
    record: str | None = None  # asciicast file of it
    record_input: bool = False  # with what is typed
    clock_rate: tuple[int, int] = (1, 1)  # sandbox time per host time, for tests
    checkpoint_at_marker: str | None = None  # for tests: DIR or DIR:kill (platform/checkpoint_marker.py)
    strace: StraceOptions | None = None
    without: set[str] = set()  # features of the host not to be used, for tests (platform/features.py)
    checkpoint_dir: str | None = None  # where checkpoints go that programs inside ask for; None: they cannot
    # Commands that run inside: before a save and once the sandbox goes on; after a restore. Empty: none.
    save_hook: list[str] = []
    restore_hook: list[str] = []
    hook_timeout: float = 600.0  # seconds until one that has not ended is killed; 0: never
    # What only a bundle asks for (sentry/control/oci.py); the defaults are what `do` does.
    hostname: str = ""  # "": the host's
    domainname: str = ""  # likewise
    keep_env: bool = True  # start from the caller's environment; False: from none
    user: User | None = None  # None: the caller
    rlimits: dict[str, tuple[int, int]] = {}  # RLIMIT_NOFILE and so on: soft, hard
    capabilities: list[str] | None = None  # CAP_CHOWN and so on; None: a container's default set
    no_new_privileges: bool = True
    network_path: str = ""  # with network "host": not the host's, but the namespace that this file is
    sysctl: dict[str, str] = {}  # of the sandbox's own namespaces: kernel.msgmax and so on
    devices: list[Device] = []
    mounts: list[Mount] = []
    masked: list[str] = []  # paths in the guest that show as empty
    read_only: list[str] = []  # paths in the guest that cannot be written
    read_only_root: bool = False
    notes: list[str] = []  # for the log: what the bundle asks for and does not get

    def environment(self, inherited: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """The guest's environment: the caller's (`os.environb`) with `env` on top, later ones first."""
        result = dict(inherited) if self.keep_env else {}
        for setting in self.env:
            name, _, value = setting.encode(errors="surrogateescape").partition(b"=")
            result[name] = value
        return result


class ContainerOptions(msgspec.Struct):
    """Options of a sandbox with a name and a life of its own (`run`, `create`). Paths are absolute paths of the host.

    `platform/run.py: run_container` takes it and returns the exit status: the program's where it was waited for, and 0
    as soon as a detached one runs, or a created one waits for `start`.
    """

    id: str
    sandbox: DoOptions
    bundle: str = ""  # the directory of config.json; "": none
    detach: bool = False
    created: bool = False  # stop before the program is executed, until `start`; detached
    pid_file: str | None = None  # the sentry's pid is written there once it runs or waits
    annotations: dict[str, str] = {}


class RestoreOptions(msgspec.Struct):
    """Options of a sandbox that is made from a checkpoint. Paths are absolute paths of the host; None: as in the image.

    `platform/restore.py: restore_sandbox` takes it and returns the exit status: the first program's where it was waited
    for, and 0 as soon as a detached one goes on.
    """

    image_path: str
    id: str = ""  # "": without a name, as with `do`
    background: bool = False  # go on at once, and load memory meanwhile
    clock_continue: bool = False  # clocks go on where they stood, in place of counting the time since
    detach: bool = False
    pid_file: str | None = None  # the sentry's pid is written there once it goes on
    progress: bool = False  # show on standard error how far loading is (platform/progress_bar.py)
    platform: str | None = None
    state_dir: str | None = None  # None: chosen by platform/state_dir.py
    checkpoint_dir: str | None = None
    save_hook: list[str] | None = None
    restore_hook: list[str] | None = None
    hook_timeout: float | None = None
    log: str | None = None  # file; None: standard error
    log_format: str = "text"  # "text" or "json"
    debug: bool = False
    stats: bool = False
    stats_json: str | None = None
    core_dir: str | None = None
    watchdog: float = 3.0
    strace: StraceOptions | None = None
    without: set[str] = set()  # features of the host not to be used, for tests (platform/features.py)

    def apply(self, sandbox: DoOptions) -> None:
        """Change the options that the image has to those of this restore."""
        for name in ("platform", "checkpoint_dir", "save_hook", "restore_hook", "hook_timeout"):
            given = getattr(self, name)
            if given is not None:
                setattr(sandbox, name, given)
        for name in (
            "state_dir", "log", "log_format", "debug", "stats", "stats_json", "core_dir", "watchdog", "strace",
            "without",
        ):  # fmt: skip
            setattr(sandbox, name, getattr(self, name))
        # Who had the master of its terminal, or a recording, had those of the one that was saved.
        sandbox.console_socket = sandbox.record = None
