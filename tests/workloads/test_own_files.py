"""A sandbox's own files and IPC objects, saved and given to other sandboxes, which see what it saw."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Result, is_root, native

NOBODY = 65534
HERE = Path(__file__).parent
DRIVER, FILES, IPC = (str(HERE / name) for name in ("own_files_driver.py", "own_files_guest.py", "own_ipc_guest.py"))


class Place:
    """A directory of the host's that guests change, one for what is written down, and the driver."""

    def __init__(self, user: int, tmp_path: Path) -> None:
        self.user = user
        # Directly below an overlay's top: in a user namespace nothing of root's can be copied to an upper layer.
        self.tree = Path(f"/tmp/trapline-own-{os.getpid()}")
        self.work = Path(f"/tmp/trapline-drv-{os.getpid()}")
        self.guest_python = next((p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(p)), sys.executable)
        for path in (self.tree / "dir", self.tree / "replaced", self.tree / "renamed", self.work):
            path.mkdir(parents=True)
        for name in ("old", "gone", "dir/gone", "moved", "closed", "set", "replaced/x", "replaced/y", "renamed/z"):
            (self.tree / name).write_text(name)
        for script in (FILES, IPC):
            shutil.copy(script, self.work)
        if is_root():
            for path in (self.tree, self.work, *self.tree.rglob("*"), *self.work.rglob("*")):
                os.chown(path, user, user)

    def run(self, *steps: tuple[str, str, str], first: str = "", **more: object) -> Result:
        """(archive to begin with, archive to end with, shell script); `more` are fields of DoOptions. `first` is done
        by root in a mount namespace of its own."""
        words = [json.dumps([begin, end, ["sh", "-c", script], more]) for begin, end, script in steps]
        command = [sys.executable, DRIVER, str(self.user), str(self.work), *words]
        return native(["unshare", "-m", "sh", "-c", f'{first} && exec "$@"', "sh", *command] if first else command)

    def guest(self, script: str, *words: str) -> str:
        """For the shell."""
        return " ".join([self.guest_python, str(self.work / Path(script).name), *words])

    def close(self) -> None:
        for path in (self.tree, self.work):
            shutil.rmtree(path)


@pytest.fixture(params=["root", "ordinary"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "root" and not is_root():
        pytest.skip("only root is root")
    user = 0 if request.param == "root" else NOBODY if is_root() else os.getuid()
    made = Place(user, tmp_path)
    try:
        probe = made.run(("", "", "true"))
        if b"user namespaces" in probe.stdout:
            pytest.skip(probe.stdout.decode().strip())
        assert (probe.status, probe.stdout) == (0, b""), probe
        yield made
    finally:
        made.close()


def test_own_files(place: Place) -> None:
    """What a guest sees of all kinds of files that it has changed is what guests of other sandboxes see: of one that
    has got them, and of one that has got them from that."""
    seen = [str(place.tree), "/dev/shm", "/dev/full", "/dev/null", "/var/tmp", "/tmp/trapline-own-top"]
    if place.user == 0:
        seen += ["/etc", "/dev/block"]
    listing = place.guest(FILES, "list", *seen)
    before = subprocess.run([place.guest_python, FILES, "list", str(place.tree)], capture_output=True).stdout
    result = place.run(
        ("", "a", f"{place.guest(FILES, 'change', str(place.tree))} && exec {listing} > {place.work}/first"),
        ("a", "b", f"exec {listing} > {place.work}/second"),
        ("b", "", f"exec {listing} > {place.work}/third"),
    )
    assert (result.status, result.stdout, result.stderr) == (0, b"", b"")
    first, second, third = ((place.work / name).read_text().splitlines() for name in ("first", "second", "third"))
    assert len(first) > 40 and any("closed directory" in line for line in first)
    assert second == first
    assert third == first
    # Nothing of it went to the host.
    assert subprocess.run([place.guest_python, FILES, "list", str(place.tree)], capture_output=True).stdout == before
    assert not os.path.exists("/dev/shm/a") and not os.path.exists("/tmp/trapline-own-top")


def test_two_of_one(place: Place) -> None:
    """Two sandboxes that begin with one archive have private files."""
    result = place.run(
        ("", "a", f"echo first > {place.tree}/new; echo shared > /dev/shm/x"),
        ("a", "", f"rm {place.tree}/new /dev/shm/x; echo second > {place.tree}/old"),
        ("a", "", f"cat {place.tree}/new {place.tree}/old /dev/shm/x"),
    )
    assert (result.status, result.stdout, result.stderr) == (0, b"first\noldshared\n", b"")


def test_a_damaged_archive(place: Place) -> None:
    """It starts nothing, and there is one line about it."""
    assert place.run(("", "a", f"echo x > {place.tree}/new")).status == 0
    whole = (place.work / "a").read_bytes()
    at = whole.index(b"trapline-own")
    for number, data in enumerate((whole[: len(whole) // 2], b"", whole[:at] + b"\xff" + whole[at + 1 :])):
        (place.work / f"bad{number}").write_bytes(data)
        shutil.copy(place.work / "a.ipc", place.work / f"bad{number}.ipc")
    result = place.run(*[(f"bad{number}", "", "echo started") for number in range(3)])
    lines = result.stdout.decode().splitlines()
    assert len(lines) == 3 and all(line.startswith("UnusableImage: files/upper.tar: ") for line in lines), result


def test_a_layer_without_a_place(place: Place) -> None:
    """Files of what is no file system of the sandbox's own where it is to be restored."""
    assert place.run(("", "a", "echo x > /dev/shm/file")).status == 0
    data = (place.work / "a").read_bytes()
    assert data.count(b'"/dev/shm"') == 1
    (place.work / "b").write_bytes(data.replace(b'"/dev/shm"', b'"/dev/sin"'))
    shutil.copy(place.work / "a.ipc", place.work / "b.ipc")
    result = place.run(("b", "", "echo started"))
    assert b"it has files in /dev/sin, which is not a file system in memory" in result.stdout, result


def test_file_systems_of_a_bundle(place: Place) -> None:
    """Those in memory that can be written to are saved; what is mounted over one of the sandbox's own hides it; a
    volume is the host's."""
    (place.work / "volume").mkdir(mode=0o777)
    (place.work / "volume").chmod(0o777)
    mounts = [
        {"target": "/dev/shm", "kind": "tmpfs", "source": "shm", "data": "mode=1777"},
        {"target": "/mnt/over", "kind": "tmpfs", "source": "none"},
        {"target": f"{place.tree}/in/between", "kind": "tmpfs", "source": "none"},
        {"target": f"{place.tree}/volume", "kind": "bind", "source": str(place.work / "volume")},
    ]
    if place.user:
        del mounts[1]  # there is nothing that an ordinary user may make there
    places = " ".join([str(mount["target"]) for mount in mounts])
    result = place.run(
        ("", "a", f"for d in {places}; do echo $d > $d/file; done"),
        ("a", "", f"echo changed > {place.tree}/volume/file; for d in {places}; do cat $d/file; done"),
        mounts=mounts,
    )
    assert (result.status, result.stderr) == (0, b""), result
    assert result.stdout.decode().split() == [*places.split()[:-1], "changed"]
    with tarfile.open(place.work / "a") as tar:
        files = [member.name for member in tar if member.name.endswith("/file")]
    assert len(files) == len(mounts) - 1


def test_a_file_that_is_a_mount(place: Place) -> None:
    """As /etc/hosts in containers. Root's sandbox has a copy, which is the host's again only where it was not saved."""
    if place.user or shutil.which("unshare") is None:
        pytest.skip("only root can make such a mount, by unshare(1)")
    tree = place.tree
    mounted = " && ".join([f"mount --bind {tree}/{name} {tree}/dir/{name}" for name in ("moved", "set", "old")])
    for name in ("moved", "set", "old"):
        (tree / "dir" / name).write_text("covered")
    result = place.run(
        ("", "a", f"cd {tree}/dir && cat moved && echo changed > moved && rm set"),
        ("a", "", f"cd {tree}/dir && cat moved && cat old && ls set"),
        first=mounted,
    )
    assert (result.status, result.stdout) == (1, b"movedchanged\nold"), result
    assert b"status 2" in result.stderr  # ls does not find it


def test_nothing_written_is_little(place: Place) -> None:
    """An archive of nothing holds the layers and what the set-up itself makes, and no content."""
    assert place.run(("", "a", "true")).status == 0
    with tarfile.open(place.work / "a") as tar:
        assert sum(member.size for member in tar if member.name != "layers.json") < 4096


def test_ipc_objects(place: Place) -> None:
    """System V objects and POSIX message queues: ids, keys, owners, contents, in a third sandbox as in the first. A
    segment that some process had attached comes back, and what it holds with that process."""
    make, listing = place.guest(IPC, "make"), place.guest(IPC, "list")
    result = place.run(
        ("", "a", make),
        ("a", "b", "true"),
        ("b", "", f"{listing} > {place.work}/third"),
        ("", "", f"{make} && {listing} > {place.work}/first"),
    )
    if b"CONFIG_CHECKPOINT_RESTORE" in result.stdout:
        pytest.skip(result.stdout.decode())
    assert (result.status, result.stdout, result.stderr) == (0, b"", b"")
    first, third = ((place.work / name).read_text() for name in ("first", "third"))
    # Its mark that it is to be removed is set again by whoever has attached it.
    assert "shm 0 7 1600 " in first
    assert third == first.replace("shm 0 7 1600 ", "shm 0 7 600 ")
    assert "b'in the middle'" not in first and "b'again'" in first and "b'low again'" in first


def test_who_waits_to_be_told(place: Place) -> None:
    """A queue cannot be saved where a process is registered for a message's arrival, and nothing happens to it."""
    result = place.run(("", "a", place.guest(IPC, "told")))
    assert b"Unsavable: POSIX message queue /told: process " in result.stdout and result.status == 0, result
