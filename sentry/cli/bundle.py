"""`trapline spec` and `trapline features`: a bundle to begin with, and what of bundles is supported."""

from __future__ import annotations

import os
from typing import Any

from trapline.sentry.cli.flags import Flag, VerbError
from trapline.sentry.cli.state import OCI_VERSION
from trapline.sentry.cli.verb import Verb, path, print_json

NAMESPACES = ("pid", "network", "ipc", "uts", "mount")
CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
KINDS = ("bind", "tmpfs", "proc", "sysfs", "devpts", "mqueue")


def template(command: list[str], cwd: str, terminal: bool) -> dict[str, Any]:
    """A config.json that runs a command in the bundle's `rootfs`."""
    held = {name: list(CAPABILITIES) for name in ("bounding", "effective", "permitted")}
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "args": command,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": cwd,
            "capabilities": held,
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "trapline",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in NAMESPACES],
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
        },
    }


def _spec(values: dict[str, Any], words: list[str]) -> int:
    import json

    place = os.path.join(values["bundle"] or ".", "config.json")
    content = json.dumps(template(words or ["sh"], values["cwd"] or "/", bool(values["tty"])), indent=4) + "\n"
    try:
        with open(place, "x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise VerbError(f"{place} already exists: remove it first") from None
    except OSError as error:
        raise VerbError(f"{place}: {error.strerror}") from None
    return 0


def _features(values: dict[str, Any], words: list[str]) -> int:
    from trapline import __version__
    from trapline.platform.capabilities import CONTAINER_DEFAULT, names_of
    from trapline.sentry.control import mount_options

    print_json(
        {
            "ociVersionMin": "1.0.0",
            "ociVersionMax": OCI_VERSION,
            "hooks": [],
            "mountOptions": sorted([*mount_options.FLAGS, *mount_options.PRIVATE, "bind", "rbind"]),
            "linux": {
                "namespaces": sorted(NAMESPACES),
                "capabilities": names_of(CONTAINER_DEFAULT),
                "cgroup": {"v1": False, "v2": False, "systemd": False, "systemdUser": False, "rdma": False},
                "seccomp": {"enabled": False},
                "apparmor": {"enabled": False},
                "selinux": {"enabled": False},
                "intelRdt": {"enabled": False},
                "mountExtensions": {"idmap": {"enabled": False}},
            },
            "annotations": {"trapline.version": __version__, "trapline.mountTypes": ",".join(KINDS)},
        }
    )
    return 0


VERBS = (
    Verb(
        "spec",
        "[FLAGS] [COMMAND [ARGUMENT...]]",
        "Write a config.json for a bundle that runs a command, sh by default, in the directory rootfs beside it.",
        (
            Flag("--bundle", "DIR", "Write it into this directory. Default: the current one.", parse=path, short="-b"),
            Flag("--cwd", "DIR", "Where the command starts in the sandbox. Default: /."),
            Flag("--tty", help="With a terminal.", short="-t"),
        ),
        _spec,
        examples="  mkdir rootfs && cp -a /bin/busybox rootfs/sh && trapline spec /sh && trapline run box\n",
        command=True,
        words=(0, 0),
    ),
    Verb(
        "features",
        "",
        "Print as JSON what of OCI bundles is supported (features.md of the runtime specification).",
        (),
        _features,
        examples="  trapline features\n",
        words=(0, 0),
    ),
)
