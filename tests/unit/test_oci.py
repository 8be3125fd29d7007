"""Bundles: config.json to the options of a sandbox, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.sentry.control import mount_options, oci
from trapline.sentry.control.oci import OciError
from trapline.sentry.options import Device, DoOptions, Mount, User

PLAIN: dict[str, Any] = {
    "ociVersion": "1.0.2-dev",
    "process": {"args": ["sh", "-c", "true"], "cwd": "/"},
    "root": {"path": "rootfs"},
    "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
}


def made(tmp_path: Path, change: dict[str, Any]) -> oci.Bundle:
    """PLAIN with changes, dotted names to values; None removes."""
    config = copy.deepcopy(PLAIN)
    for name, value in change.items():
        *path, last = name.split(".")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    (tmp_path / "rootfs").mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return oci.load(str(tmp_path))


def options(tmp_path: Path, change: dict[str, Any]) -> DoOptions:
    result = DoOptions(command=[])
    oci.apply(made(tmp_path, change), result)
    return result


def test_a_plain_bundle(tmp_path: Path) -> None:
    assert options(tmp_path, {}) == DoOptions(
        command=["sh", "-c", "true"],
        rootfs=str(tmp_path / "rootfs"),
        cwd="/",
        keep_env=False,
        env=["HOME=/"],
        user=User(),
        capabilities=[],
        network="none",
    )


def test_everything(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "rootfs" / "etc").mkdir(parents=True)
    (tmp_path / "rootfs" / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\nfive:x:5:6::/home/five:/bin/sh\n")
    found = options(
        tmp_path,
        {
            "process.terminal": True,
            "process.user": {"uid": 5, "gid": 6, "umask": 18, "additionalGids": [7, 8], "username": "ignored"},
            "process.env": ["A=1", "B="],
            "process.cwd": "/x/../y",
            "process.rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": (1 << 64) - 1},
            ],
            "process.capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"]},
            "process.noNewPrivileges": True,
            "process.oomScoreAdj": 100,
            "root.readonly": True,
            "hostname": "h",
            "annotations": {"a": "b"},
            "linux.namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            "linux.sysctl": {"kernel.msgmax": "9", "fs/mqueue/msg_max": "7"},
            "linux.devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 384, "uid": 5}],
            "linux.maskedPaths": ["/proc/kcore"],
            "linux.readonlyPaths": ["/proc/sys/"],
            "linux.unheardOf": {"x": [1]},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "options": ["nosuid", "size=65536k"]},
                {"destination": "/dev/shm", "type": "bind", "source": "data", "options": ["rbind", "ro", "rprivate"]},
                {"destination": "/data/", "type": "none", "source": str(tmp_path / "data"), "options": ["bind", "exec"]},
                {"destination": "tmp", "type": "tmpfs", "source": "tmpfs", "options": ["noexec", "mode=1777", "ro", "rw"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
            ],
        },
    )
    assert found == DoOptions(
        command=["sh", "-c", "true"],
        rootfs=str(tmp_path / "rootfs"),
        read_only_root=True,
        cwd="/y",
        keep_env=False,
        env=["A=1", "B=", "HOME=/home/five"],
        tty=True,
        user=User(5, 6, [7, 8], 18),
        rlimits={"RLIMIT_NOFILE": (10, 20), "RLIMIT_CORE": (0, -1)},
        capabilities=["CAP_CHOWN", "CAP_KILL"],
        network="host",
        notes=["mounts: /sys/fs/cgroup: there is no cgroup file system; it is empty"],
        hostname="h",
        sysctl={"kernel.msgmax": "9", "fs.mqueue.msg_max": "7"},
        devices=[Device("/dev/fuse", "c", 10, 229, 0o600, 5, 0)],
        masked=["/proc/kcore"],
        read_only=["/proc/sys"],
        mounts=[
            Mount("/dev/shm", "bind", str(tmp_path / "data"), mount_options.MS_RDONLY, recursive=True),
            Mount("/data", "bind", str(tmp_path / "data"), clear=mount_options.MS_NOEXEC),
            Mount("/tmp", "tmpfs", "tmpfs", mount_options.MS_NOEXEC, data="mode=1777"),
        ],
    )


def test_a_network_that_somebody_made(tmp_path: Path) -> None:
    kinds = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
    found = options(tmp_path, {"linux.namespaces": [*kinds, {"type": "network", "path": "/run/netns/x"}]})
    assert (found.network, found.network_path) == ("host", "/run/netns/x")


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    bundle = made(
        tmp_path,
        {
            "linux.resources": {"devices": [{"allow": False}], "pids": {"limit": 5}, "memory": {}},
            "linux.seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
        },
    )
    assert bundle.notes == [
        "linux.resources is not applied: pids",
        "linux.seccomp is not applied: guests have the sandbox's own filter",
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ociVersion": "2.0.0"}, "ociVersion 2.0.0 is not served, but 1.x"),
        ({"ociVersion": None}, "missing required field `ociVersion`"),
        ({"root": None}, "there is no root"),
        ({"root.path": "nowhere"}, "nowhere is no directory"),
        ({"process": None}, "there is no process"),
        ({"process.args": []}, "there is no command"),
        ({"process.args": [1]}, "Expected `str`, got `int`"),
        ({"process.cwd": "x"}, "'x' is not absolute"),
        ({"process.cwd": None}, "missing required field `cwd`"),
        ({"process.env": ["A"]}, "'A' is not NAME=VALUE"),
        ({"process.args": ["a\0b"]}, "NUL"),
        ({"process.user": {"uid": -1}}, "ids are from 0 to"),
        ({"process.rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}, "there is no RLIMIT_X"),
        ({"process.rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]}, "above the hard one"),
        ({"process.rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2}, "listed twice"),
        ({"process.apparmorProfile": "x"}, "AppArmor"),
        ({"hooks": {"prestart": [{"path": "/bin/true"}]}}, "hooks.prestart is not supported"),
        ({"linux.namespaces": [{"type": "pid"}]}, "always has a mount namespace"),
        ({"linux.namespaces": [{"type": "pid"}] * 2}, "pid is listed twice"),
        ({"linux.namespaces": [{"type": "fish"}]}, "no namespace fish"),
        ({"linux.namespaces": [{"type": "ipc", "path": "/proc/1/ns/ipc"}]}, "joining a ipc namespace"),
        ({"linux.uidMappings": [{"hostID": 1, "containerID": 0, "size": 1}]}, "mappings of user ids"),
        ({"linux.devices": [{"path": "/dev/x", "type": "x"}]}, "there is no type x"),
        ({"linux.devices": [{"path": "x", "type": "c"}]}, "'x' is not absolute"),
        ({"linux.sysctl": {"kernel.panic": "1"}}, "kernel.panic is the host's"),
        ({"linux.sysctl": {"kernel.msg/../panic": "1"}}, "is the host's"),
        ({"linux.sysctl": {"net.x": "1"}, "linux.namespaces": [{"type": k} for k in ("pid", "mount", "ipc")]}, "net.x"),
        ({"linux.intelRdt": {"closID": "x"}}, "linux.intelRdt is not supported"),
        ({"linux.maskedPaths": ["proc"]}, "'proc' is not absolute"),
        ({"mounts": [{"destination": "/"}]}, "cannot be mounted on"),
        ({"mounts": [{"destination": "/a", "type": "bind", "source": "nowhere"}]}, "does not exist"),
        ({"mounts": [{"destination": "/a", "type": "ext4", "source": "/dev/sda"}]}, "type 'ext4'"),
        ({"mounts": [{"destination": "/a", "type": "tmpfs", "options": ["rshared"]}]}, "option rshared"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(OciError) as caught:
        options(tmp_path, change)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(OciError, match=r"config\.json does not exist"):
        oci.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OciError, match=r"config\.json: "):
        oci.load(str(tmp_path))


@given(st.lists(st.sampled_from([*mount_options.FLAGS, "bind", "size=3", "private"])))
def test_the_last_of_two_options_counts(given_options: list[str]) -> None:
    found = mount_options.parse(given_options)
    for name, (flag, on) in mount_options.FLAGS.items():
        last = [o for o in given_options if o in mount_options.FLAGS and mount_options.FLAGS[o][0] == flag]
        if last and last[-1] == name:
            assert bool(found.flags & flag) is on
            assert bool(found.clear & flag) is not on
    assert found.bind == ("bind" in given_options)
