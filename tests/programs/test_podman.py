"""podman with trapline as its OCI runtime: run, exec, pause, unpause, kill, wait, rm, from a root file system of ours."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from boxes import Boxes, root_of_busybox, until
from harness import Result, alive, is_root, program
from typist import Typist

# Limits that a root without CAP_SYS_RESOURCE may set, too.
FLAGS = ("--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")


class Podman:
    """A podman with a store, a state and a runtime of its own."""

    def __init__(self, platform: str, path: Path) -> None:
        self.path = path
        self.boxes = Boxes(platform, path)
        self.root = root_of_busybox(path / "rootfs")
        # Its name is how podman knows what it can do.
        runtime = path / "trapline"
        line = shlex.join([*self.boxes.command("VERB")[:-1]])
        python_path = shlex.quote(os.pathsep.join(p for p in sys.path if p))
        runtime.write_text(f'#!/bin/sh\nexport PYTHONPATH={python_path}\nexec {line} "$@"\n')
        runtime.chmod(0o755)
        names = '["trapline"]'
        config = f"[engine]\nruntime_supports_nocgroup = {names}\nruntime_supports_nocgroups = {names}\n"
        (path / "containers.conf").write_text(config + f"runtime_supports_json = {names}\n")
        self.words = [
            program("podman"), f"--root={path}/store", f"--runroot={path}/run", f"--tmpdir={path}/tmp",
            "--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file", f"--runtime={runtime}",
        ]  # fmt: skip

    def __call__(self, *words: str) -> Result:
        environment = {**os.environ, "CONTAINERS_CONF": str(self.path / "containers.conf")}
        done = subprocess.run(
            [*self.words, *words], capture_output=True, stdin=subprocess.DEVNULL, timeout=120, env=environment
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def good(self, *words: str) -> str:
        result = self(*words)
        assert result.status == 0, result
        return result.stdout.decode()

    def run(self, name: str, script: str, *flags: str) -> Result:
        groups = ["--cgroups=disabled"] if not any(flag.startswith("--cgroup") for flag in flags) else []
        return self("run", *groups, *FLAGS, *flags, "--name", name, "--rootfs", str(self.root), "/bin/sh", "-c", script)

    def state(self, name: str) -> dict[str, object]:
        found: list[dict[str, dict[str, object]]] = json.loads(self.good("container", "inspect", name))
        return found[0]["State"]


@pytest.fixture
def podman(platform: str) -> Iterator[Podman]:
    program("podman")
    program("conmon")
    if not is_root():
        pytest.skip("podman without root wants mappings of user ids, which a sandbox does not have")
    path = Path(tempfile.mkdtemp(prefix="tl-", dir="/tmp"))  # podman takes no long paths
    found = Podman(platform, path)
    works = found("info")
    if works.status:
        pytest.skip(f"podman does not start here: {works.stderr.decode().splitlines()[-1:]}")
    yield found
    found("rm", "--all", "--force", "--time=0")
    found.boxes.close()
    for mount in _mounts_below(path):
        subprocess.run(["umount", mount])
    shutil.rmtree(path)


def _mounts_below(path: Path) -> list[str]:
    with open("/proc/self/mounts") as mounts:
        return [fields[1] for fields in map(str.split, mounts) if fields[1].startswith(f"{path}/")][::-1]


def test_run_prints_and_ends_as_the_program_does(podman: Podman) -> None:
    result = podman.run("one", "echo out; echo err >&2; hostname; id -u; echo $$; exit 3", "--hostname=box")
    assert (result.status, result.stdout, result.stderr) == (3, b"out\nbox\n0\n1\n", b"err\n"), result
    assert podman.state("one")["ExitCode"] == 3 and podman.state("one")["Status"] == "exited"
    result = podman.run("two", "id -u; id -g; echo $HOME; cat /data/file; touch /data/x 2>/dev/null || echo ro",
                        "--user=1000:1000", "--rm", f"--volume={_data(podman.path)}:/data:ro")  # fmt: skip
    assert result.stdout.decode().split() == ["1000", "1000", "/home/ann", "shared", "ro"], result
    assert podman("container", "exists", "two").status == 1
    # pid 1 takes no signal that it has no handler for, from inside.
    result = podman.run("three", "kill -9 $$; kill -TERM $$; echo here; exit 5", "--rm")
    assert (result.status, result.stdout) == (5, b"here\n"), result
    podman.good("rm", "one")
    assert podman.boxes.good("list", "--quiet") == ""


def _data(path: Path) -> Path:
    data = path / "data"
    data.mkdir()
    (data / "file").write_text("shared\n")
    return data


def test_a_program_that_is_not_there(podman: Podman) -> None:
    result = podman("run", "--cgroups=disabled", *FLAGS, "--name=none", "--rootfs", str(podman.root), "/bin/not-there")
    assert result.status == 127 and b"not-there: executable file not found" in result.stderr, result


def test_a_detached_containers_life(podman: Podman) -> None:
    script = """
        trap 'exit 9' TERM
        echo started; i=0
        while :; do i=$((i+1)); echo $i > /data/count; sleep 0.02; done
    """
    data = _data(podman.path)
    result = podman.run("box", script, "--detach", f"--volume={data}:/data")
    assert result.status == 0, result
    state = podman.state("box")
    assert state["Status"] == "running" and alive(int(str(state["Pid"])))
    (name,) = podman.boxes.good("list", "--quiet").split()
    assert podman.boxes.state_of(name)["pid"] == state["Pid"]
    assert podman.good("ps", "--format={{.Names}} {{.State}}").split()[:2] == ["box", "Up"]

    result = podman("exec", "box", "sh", "-c", "cat /data/file; exit 5")
    assert (result.status, result.stdout) == (5, b"shared\n"), result
    result = podman("exec", "--user=1000", "--env=A=b", "--workdir=/tmp", "box", "sh", "-c", "id -u; echo $A; pwd")
    assert (result.status, result.stdout) == (0, b"1000\nb\n/tmp\n"), result
    podman.good("exec", "--detach", "box", "sh", "-c", "echo detached > /data/detached")
    until(lambda: (data / "detached").exists(), "the detached one writes")
    assert podman("exec", "box", "not-there").status == 127

    podman.good("kill", "--signal=TERM", "box")
    assert podman.good("wait", "box") == "9\n"
    assert podman.good("logs", "box") == "started\n"
    podman.good("rm", "box")
    assert podman.boxes.good("list", "--quiet") == ""


def test_pause(podman: Podman) -> None:
    """Which podman does only where it can make control groups (for its monitor: a sandbox has none)."""
    data = _data(podman.path)
    parent = f"/trapline-test-{os.getpid()}"
    script = "i=0; while :; do i=$((i+1)); echo $i > /data/count; sleep 0.02; done"
    try:
        result = podman.run("box", script, "--detach", f"--cgroup-parent={parent}", f"--volume={data}:/data")
        if result.status and b"cgroup" in result.stderr:
            pytest.skip(f"no control groups here: {result.stderr.decode().strip()}")
        assert result.status == 0, result
        count = data / "count"
        until(count.exists, "it counts")
        podman.good("pause", "box")
        assert podman.state("box")["Status"] == "paused"
        before = count.read_text()
        assert podman("exec", "box", "true").status != 0
        assert count.read_text() == before
        podman.good("unpause", "box")
        until(lambda: count.read_text() not in ("", before), "it goes on")
        podman.good("rm", "--force", "--time=0", "box")
    finally:
        until(lambda: _without_groups(parent), "podman's last process leaves its group")


def _without_groups(parent: str) -> bool:
    """Whether its control groups could be removed."""
    found = [each for each, _, _ in os.walk("/sys/fs/cgroup", topdown=False) if f"{parent}/" in f"{each}/"]
    try:
        for directory in found:
            os.rmdir(directory)
    except OSError:
        return False
    return True


def test_stop_start_and_rm_by_force(podman: Podman) -> None:
    podman.good("create", "--cgroups=disabled", *FLAGS, "--name=box", "--rootfs", str(podman.root), "/bin/sh", "-c", "echo here; exec sleep 100")
    assert podman.state("box")["Status"] == "created"
    for _ in range(2):
        podman.good("start", "box")
        assert podman.state("box")["Status"] == "running"
        podman.good("stop", "--time=0", "box")  # pid 1 has no handler: it is killed
        assert podman.state("box")["ExitCode"] == 137
    podman.good("start", "box")
    podman.good("rm", "--force", "--time=0", "box")
    assert podman.boxes.good("list", "--quiet") == ""


def test_a_terminal(podman: Podman) -> None:
    words = [*podman.words, "run", "-it", "--cgroups=disabled", *FLAGS, "--name=box", "--rootfs", str(podman.root), "/bin/sh"]
    environment = {**os.environ, "CONTAINERS_CONF": str(podman.path / "containers.conf")}
    shell = Typist(words, environment, size=(31, 97))
    shell.expect("# ")
    shell.send("tty; stty size; echo $((40 + 2))")
    shell.expect("/dev/pts/0\r\n31 97\r\n42\r\n")
    # Said by what has the terminal's foreground then: a key before that is the shell's, natively too.
    shell.send("sh -c 'echo rea\"\"dy; exec sleep 100'")
    shell.expect("ready\r\n")
    shell.interrupt()
    shell.expect("# ")
    shell.send("exit 4")
    assert shell.end() == 4
