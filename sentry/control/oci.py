"""A bundle's config.json (OCI runtime specification, config.md and config-linux.md), and what it asks of a sandbox.

Properties that are not known are ignored, as the specification has it. What is known and cannot be done is an error
that names it, unless leaving it out is safe for what runs inside: then it is a note for the log (`Bundle.notes`).
"""

from __future__ import annotations

import os
import posixpath
from typing import Any

import msgspec

from trapline.sentry.control import mount_options
from trapline.sentry.options import Device, DoOptions, Mount, User

CONFIG = "config.json"
OCI_VERSION = "1.0.2"  # that `state`, `spec` and `features` tell
#: Made for every sandbox, whether or not the bundle lists them; a listed one of this kind is that one.
OWN = {
    "/proc": ("proc",), "/sys": ("sysfs",), "/dev": ("tmpfs", "devtmpfs"), "/dev/pts": ("devpts",),
    "/dev/shm": ("tmpfs",), "/dev/mqueue": ("mqueue",),
}  # fmt: skip
ALWAYS = ("pid", "mount", "ipc")  # namespaces that every sandbox has
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_MOST = 1 << 24  # bytes of config.json


class OciError(Exception):
    """A bundle that is wrong or asks for what there is not. One line without a full stop."""


class OciUser(msgspec.Struct, rename="camel", frozen=True):
    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: list[int] = []


class Size(msgspec.Struct):
    height: int = 0
    width: int = 0


class Rlimit(msgspec.Struct):
    type: str
    soft: int
    hard: int


class OciCapabilities(msgspec.Struct):
    bounding: list[str] = []
    effective: list[str] = []
    permitted: list[str] = []
    inheritable: list[str] = []
    ambient: list[str] = []


class OciProcess(msgspec.Struct, rename="camel"):
    """The `process` object: a bundle's, or that of `exec --process`."""

    cwd: str
    args: list[str] = []
    env: list[str] = []
    terminal: bool = False
    console_size: Size | None = None
    user: OciUser = OciUser()
    rlimits: list[Rlimit] = []
    capabilities: OciCapabilities | None = None
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    oom_score_adj: int | None = None


class OciRoot(msgspec.Struct):
    path: str
    readonly: bool = False


class OciMount(msgspec.Struct):
    destination: str
    type: str = ""
    source: str = ""
    options: list[str] = []


class OciNamespace(msgspec.Struct):
    type: str
    path: str = ""


class OciDevice(msgspec.Struct, rename="camel"):
    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int = 0o666
    uid: int = 0
    gid: int = 0


class OciLinux(msgspec.Struct, rename="camel"):
    namespaces: list[OciNamespace] = []
    masked_paths: list[str] = []
    readonly_paths: list[str] = []
    uid_mappings: list[Any] = []
    gid_mappings: list[Any] = []
    devices: list[OciDevice] = []
    sysctl: dict[str, str] = {}
    resources: dict[str, Any] = {}
    seccomp: dict[str, Any] = {}
    personality: dict[str, Any] = {}
    intel_rdt: dict[str, Any] = {}


class Config(msgspec.Struct, rename="camel"):
    oci_version: str
    root: OciRoot | None = None
    process: OciProcess | None = None
    hostname: str = ""
    mounts: list[OciMount] = []
    hooks: dict[str, list[Any] | None] = {}
    annotations: dict[str, str] = {}
    linux: OciLinux | None = None


class Bundle(msgspec.Struct):
    """A bundle as it is used: its directory (absolute), config, and what of it is left out, a line each."""

    path: str
    config: Config
    notes: list[str] = []


def load(directory: str) -> Bundle:
    """Read and check a bundle. OciError."""
    path = os.path.abspath(directory)
    bundle = Bundle(path, decode(_read(f"{path}/{CONFIG}"), Config, CONFIG))
    _check(bundle)
    return bundle


def load_process(file: str) -> OciProcess:
    """The file of `exec --process`. OciError."""
    process: OciProcess = decode(_read(file), OciProcess, file)
    _check_process(process, file)
    return process


def decode(data: bytes, kind: type[Any], name: str) -> Any:
    """JSON as one of the structs here. OciError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise OciError(f"{name}: {' '.join(str(error).split())}") from None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
    except FileNotFoundError:
        raise OciError(f"{path} does not exist") from None
    except OSError as error:
        raise OciError(f"{path}: {error.strerror}") from None
    if len(data) > _MOST:
        raise OciError(f"{path} is longer than {_MOST >> 20} MiB")
    return data


def _check(bundle: Bundle) -> None:
    config = bundle.config
    if config.oci_version.split(".")[0] != "1":
        raise OciError(f"{CONFIG}: ociVersion {config.oci_version} is not served, but 1.x")
    if config.root is None:
        raise OciError(f"{CONFIG}: there is no root")
    if config.process is None:
        raise OciError(f"{CONFIG}: there is no process")
    _check_process(config.process, f"{CONFIG}: process")
    for name in HOOKS:
        if config.hooks.get(name):
            raise OciError(f"{CONFIG}: hooks.{name} is not supported")
    _check_linux(config.linux or OciLinux(), bundle.notes)


def _check_process(process: OciProcess, where: str) -> None:
    if not process.args or not process.args[0]:
        raise OciError(f"{where}.args: there is no command")
    if not process.cwd.startswith("/"):
        raise OciError(f"{where}.cwd: '{process.cwd}' is not absolute")
    for setting in process.env:
        if not setting.partition("=")[1] or setting.startswith("="):
            raise OciError(f"{where}.env: '{setting}' is not NAME=VALUE")
    if any("\0" in word for word in (*process.args, *process.env, process.cwd)):
        raise OciError(f"{where}: a NUL character in a word")
    ids = (process.user.uid, process.user.gid, *process.user.additional_gids)
    if any(not 0 <= number < (1 << 32) - 1 for number in ids):
        raise OciError(f"{where}.user: ids are from 0 to {(1 << 32) - 2}")
    if process.apparmor_profile or process.selinux_label:
        raise OciError(f"{where}: AppArmor profiles and SELinux labels are not supported")
    for limit in process.rlimits:
        if limit.soft > limit.hard:
            raise OciError(f"{where}.rlimits: {limit.type}: its soft limit is above the hard one")
    if len({limit.type for limit in process.rlimits}) != len(process.rlimits):
        raise OciError(f"{where}.rlimits: a type is listed twice")


def _check_linux(linux: OciLinux, notes: list[str]) -> None:
    kinds = [namespace.type for namespace in linux.namespaces]
    for namespace in linux.namespaces:
        if namespace.type not in ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"):
            raise OciError(f"{CONFIG}: linux.namespaces: there is no namespace {namespace.type}")
        if kinds.count(namespace.type) > 1:
            raise OciError(f"{CONFIG}: linux.namespaces: {namespace.type} is listed twice")
        if namespace.path and namespace.type != "network":
            raise OciError(f"{CONFIG}: linux.namespaces: joining a {namespace.type} namespace is not supported")
    for kind in ALWAYS:
        if kinds and kind not in kinds:
            raise OciError(f"{CONFIG}: linux.namespaces: a sandbox always has a {kind} namespace of its own")
    if "user" in kinds or linux.uid_mappings or linux.gid_mappings:
        raise OciError(f"{CONFIG}: linux: mappings of user ids are not supported")
    for name in ("personality", "intel_rdt"):
        if getattr(linux, name):
            raise OciError(f"{CONFIG}: linux.{name.replace('_r', 'R')} is not supported")
    for name in linux.sysctl:
        if not in_namespaces(name, "network" in kinds):
            raise OciError(f"{CONFIG}: linux.sysctl: {name} is the host's: a sandbox has none of its own")
    for device in linux.devices:
        if device.type not in ("c", "b", "u", "p"):
            raise OciError(f"{CONFIG}: linux.devices: {device.path}: there is no type {device.type}")
    limits = [name for name, value in linux.resources.items() if value and name != "devices"]
    if limits:
        notes.append(f"linux.resources is not applied: {', '.join(sorted(limits))}")
    if linux.seccomp:
        notes.append("linux.seccomp is not applied: guests have the sandbox's own filter")
    if "cgroup" in kinds:
        notes.append("linux.namespaces: there is no cgroup namespace; /sys/fs/cgroup is empty")


def in_namespaces(name: str, own_network: bool) -> bool:
    """Whether a name below /proc/sys, with dots or slashes, is one of a namespace that the sandbox has of its own."""
    path = name.replace("/", ".")
    if any(not part or part.startswith(".") for part in path.split(".")):
        return False
    if path.startswith("net."):
        return own_network
    return path in ("kernel.domainname", "kernel.hostname", "kernel.sem") or path.startswith(
        ("kernel.msg", "kernel.shm", "fs.mqueue.")
    )


def apply(bundle: Bundle, options: DoOptions) -> None:
    """Set what the bundle says. OciError."""
    config = bundle.config
    assert config.root is not None
    assert config.process is not None
    process, linux = config.process, config.linux or OciLinux()
    options.rootfs = os.path.join(bundle.path, config.root.path)
    if not os.path.isdir(options.rootfs):
        raise OciError(f"{CONFIG}: root.path: {options.rootfs} is no directory")
    options.rootfs = os.path.realpath(options.rootfs)
    options.read_only_root = config.root.readonly
    options.command = process.args
    options.cwd = posixpath.normpath(process.cwd)
    options.keep_env, options.env = False, list(process.env)
    if not any(setting.startswith("HOME=") for setting in process.env):
        options.env.append("HOME=" + _home(options.rootfs, process.user.uid))
    options.tty = options.tty or process.terminal
    options.hostname = config.hostname
    user = process.user
    options.user = User(user.uid, user.gid, user.additional_gids, user.umask)
    options.rlimits = rlimits(process)
    options.capabilities = capabilities(process)
    options.no_new_privileges = True
    network = next((n for n in linux.namespaces if n.type == "network"), None)
    options.network = "none" if network is not None and not network.path else "host"
    options.network_path = network.path if network is not None else ""
    options.sysctl = {name.replace("/", "."): value for name, value in linux.sysctl.items()}
    options.devices = [
        Device(_inside(d.path, "linux.devices"), d.type, d.major, d.minor, d.file_mode & 0o7777, d.uid, d.gid)
        for d in linux.devices
    ]
    options.masked = [_inside(path, "linux.maskedPaths") for path in linux.masked_paths]
    options.read_only = [_inside(path, "linux.readonlyPaths") for path in linux.readonly_paths]
    options.mounts = [found for each in config.mounts if (found := _mount(bundle, each)) is not None]
    options.notes = bundle.notes


def _home(root: str, uid: int) -> str:
    """From the root's own /etc/passwd, as other runtimes do it; `/` where that does not know the user."""
    try:
        # A link may not lead us out of the root, nor a pipe keep us.
        file = os.open(root + "/etc/passwd", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(file, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines.read(_MOST).splitlines():
                fields = line.split(":")
                if len(fields) >= 6 and fields[2] == str(uid) and fields[5].startswith("/"):
                    return fields[5]
    except OSError:
        pass
    return "/"


def rlimits(process: OciProcess) -> dict[str, tuple[int, int]]:
    """{RLIMIT_...: (soft, hard)} as setrlimit(2) has them. OciError for an unknown one."""
    import resource

    for limit in process.rlimits:
        if not limit.type.startswith("RLIMIT_") or not hasattr(resource, limit.type):
            raise OciError(f"rlimits: there is no {limit.type}")
    return {limit.type: (_signed(limit.soft), _signed(limit.hard)) for limit in process.rlimits}


def _signed(limit: int) -> int:
    """Unlimited is the largest number of 64 bits there, and -1 to Python."""
    return -1 if limit >= (1 << 64) - 1 else limit


def capabilities(process: OciProcess) -> list[str]:
    """What the process may have at most; none where the specification's object is absent."""
    return sorted(set(process.capabilities.bounding)) if process.capabilities is not None else []


def _inside(path: str, where: str) -> str:
    if not path.startswith("/"):
        raise OciError(f"{CONFIG}: {where}: '{path}' is not absolute")
    return posixpath.normpath(path)


def _mount(bundle: Bundle, given: OciMount) -> Mount | None:
    # Relative ones are of old configurations, and meant from the root (config.md).
    target = posixpath.normpath("/" + given.destination.lstrip("/"))
    if target == "/":
        raise OciError(f"{CONFIG}: mounts: '{given.destination}' cannot be mounted on")
    try:
        parsed = mount_options.parse(given.options)
    except ValueError as error:
        raise OciError(f"{CONFIG}: mounts: {target}: {error}") from None
    if parsed.bind or given.type == "bind":
        source = os.path.normpath(os.path.join(bundle.path, given.source))
        if not given.source or not os.path.exists(source):
            raise OciError(f"{CONFIG}: mounts: {target}: its source {source} does not exist")
        if parsed.data:
            raise OciError(f"{CONFIG}: mounts: {target}: a bind mount has no option {parsed.data[0]}")
        return Mount(target, "bind", source, parsed.flags, parsed.clear, parsed.recursive)
    if given.type in OWN.get(target, ()):
        return None
    if given.type in ("cgroup", "cgroup2"):
        bundle.notes.append(f"mounts: {target}: there is no {given.type} file system; it is empty")
        return None
    if given.type not in ("tmpfs", "proc", "sysfs", "devpts", "mqueue"):
        raise OciError(f"{CONFIG}: mounts: {target}: file systems of type '{given.type}' are not supported")
    return Mount(target, given.type, given.type, parsed.flags, data=",".join(parsed.data))
