"""Setting up real sandboxes: namespaces, mounts, pid 1, the guardian, and that nothing is left behind.

Each test runs namespace_driver.py, as root (where the tests run as root) and as an ordinary user.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trapline.platform import state_dir

DRIVER = Path(__file__).with_name("namespace_driver.py")
NOBODY = 65534
SECOND = 1_000_000_000
IS_ROOT = os.geteuid() == 0


class Place:
    """A directory for one test, owned by the user that the driver becomes."""

    def __init__(self, path: Path, user: int | None) -> None:
        self.path = path
        self.user = user
        self.report = path / "report"
        self.shared = path / "shared"
        self.state = path / "state"
        for directory in (path, self.shared, self.state):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
            if user is not None and IS_ROOT:
                os.chown(directory, user, user)

    def command(self, script: str, job: dict[str, Any]) -> list[str]:
        options = {"state_dir": str(self.state), **job.pop("options", {})}
        user = self.user if IS_ROOT else None
        whole = {"options": options, "script": script, "user": user, "report": str(self.report), **job}
        return [sys.executable, str(DRIVER), json.dumps(whole)]

    def start(self, script: str, popen: dict[str, Any] | None = None, **job: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        more: dict[str, Any] = {"cwd": self.shared, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            self.command(script, job), text=True, env=environment, **{**more, **(popen or {})}
        )

    def run(self, script: str, **job: Any) -> tuple[str, dict[str, Any]]:
        """(the guest's output, the report)."""
        process = self.start(script, **job)
        out, err = process.communicate(timeout=30)
        assert err == "" and process.returncode == 0, err
        return out, self.facts()

    def facts(self, seconds: float = 10) -> dict[str, Any]:
        done = Path(f"{self.report}.done")
        end = time.monotonic() + seconds
        while not done.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        result: dict[str, Any] = json.loads(done.read_text())
        done.unlink()
        return result

    def entries(self) -> list[str]:
        return os.listdir(self.state)


@pytest.fixture(params=["root", "user"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    # Not pytest's tmp_path, which another user cannot enter.
    if request.param == "root" and not IS_ROOT:
        pytest.skip("not root")
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="trapline-test-", dir="/var/tmp"))
    yield Place(path, NOBODY if request.param == "user" else None)
    shutil.rmtree(path)


def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ids(place: Place) -> None:
    out, facts = place.run("echo $$ $PPID; id -u; cat /proc/sys/kernel/hostname", hostname="inside")
    lines = out.split()
    uid = place.user if place.user is not None and IS_ROOT else os.getuid()
    assert lines == ["2", "1", str(uid), "inside"]
    sentry = facts["sentry"]
    assert (facts["pid"], facts["ppid"]) == (2, 1)
    assert sentry["nspid"] == [sentry["guest"], 2]
    assert sentry["parent"] == sentry["init"]
    assert os.uname().nodename != "inside"
    assert sentry["own_namespaces"] == [os.readlink(f"/proc/self/ns/{n}") for n in ("pid", "time")]
    assert facts["mask"] == []


def test_clocks_start_at_zero_and_the_base_is_exact(place: Place) -> None:
    out, facts = place.run("cat /proc/uptime")
    sentry = facts["sentry"]
    assert sentry["own_time"]
    assert 0 < facts["monotonic"] < SECOND
    assert 0 < facts["boottime"] < SECOND
    assert sentry["before"] <= sentry["base"] + facts["monotonic"] <= sentry["now"]
    assert float(out.split()[0]) < 2


def test_without_a_time_namespace(place: Place) -> None:
    _, facts = place.run("true", options={"without": ["time_namespace"]})
    sentry = facts["sentry"]
    assert not sentry["own_time"] and sentry["base"] == 0
    assert sentry["before"] <= facts["monotonic"] <= sentry["now"]


def test_pid_1_is_small_and_reaps(place: Place) -> None:
    script = """
        for i in 1 2 3; do (sh -c 'sleep 0.05' &) ; done   # orphans
        sleep 0.4
        for p in /proc/[0-9]*; do sed -n 's/^State:.//p;s/^Name:.//p' $p/status; done
    """
    out, facts = place.run(script, settle=0.2)
    assert "Z" not in out.split() and out.count("trapline-init") == 1
    status = facts["init_status"]
    assert int(status["VmRSS"].split()[0]) <= 16  # kB
    assert facts["init_descriptors"] == []
    assert int(status["CapPrm"], 16) == 0
    # Only KILL and STOP are not blocked, besides the two that are the C library's.
    assert int(status["SigBlk"], 16) & 0x7FFEFEFF == 0x7FFAFEFF & 0x7FFEFEFF


def test_writes_stay_inside(place: Place) -> None:
    marker = f"trapline-{os.getpid()}"
    script = f"""
        echo shared > here
        echo x > /tmp/{marker} && cat /tmp/{marker}
        echo x > /var/tmp/{marker} && cat /var/tmp/{marker}
        mkdir /tmp/d-{marker} && mv /tmp/d-{marker} /tmp/e-{marker} && ls -d /tmp/e-{marker}
        if test $(id -u) = 0; then
            echo x >> /etc/hosts && rm /etc/hosts && mv /usr/games /usr/{marker} && echo moved
            chown 1:1 /etc/passwd && stat -c %u:%g /etc/passwd
        else
            touch /etc/{marker} /{marker} 2>/dev/null || echo refused
        fi
    """
    out, _ = place.run(script)
    more = ["moved", "1:1"] if place.user is None else ["refused"]
    assert out.split() == ["x", "x", f"/tmp/e-{marker}", *more]
    assert (place.shared / "here").read_text() == "shared\n"
    for path in (f"/tmp/{marker}", f"/var/tmp/{marker}", f"/tmp/e-{marker}", f"/usr/{marker}"):
        assert not os.path.lexists(path)
    assert os.path.exists("/etc/hosts") and os.stat("/etc/passwd").st_uid == 0


def test_mounts_of_a_bundle(place: Place) -> None:
    (place.shared / "data").mkdir()
    (place.shared / "data" / "file").write_text("bound\n")
    root = place.path / "root"
    for name in ("dev", "proc", "sys", "etc/hidden", "etc/kept"):
        (root / name).mkdir(parents=True)
    for name in ("etc/hidden/x", "etc/kept/x", "etc/secret", "etc/name"):
        (root / name).write_text("root's\n")
    (root / "bin").symlink_to("usr/bin")
    (root / "link").symlink_to("/elsewhere")  # leads out of the root, but for a guest
    for path in (root, *root.rglob("*"), place.shared / "data"):
        if place.user is not None and IS_ROOT:
            os.chown(path, place.user, place.user, follow_symlinks=False)
    ro, nosuid, nodev, noexec = 1, 2, 4, 8
    options = {
        "rootfs": str(root),
        "overlay": "none",
        "hostname": "bundle",
        "mounts": [
            {"target": name, "kind": "bind", "source": name, "flags": ro, "recursive": True}
            for name in ("/usr", "/lib", "/lib64", "/opt") if os.path.isdir(name)
        ] + [
            {"target": "/link/data", "kind": "bind", "source": str(place.shared / "data")},
            {"target": "/a/b/name", "kind": "bind", "source": str(place.shared / "data" / "file"), "flags": ro},
            {"target": "/scratch", "kind": "tmpfs", "source": "tmpfs", "flags": noexec | nosuid | nodev, "data": "size=64k"},
            {"target": "/scratch/mq", "kind": "mqueue", "source": "mqueue"},
        ],
        "masked": ["/etc/hidden", "/etc/secret", "/etc/not-there"],
        "read_only": ["/etc/kept", "/etc/not-there"],
        "read_only_root": True,
    }  # fmt: skip
    script = """
        exec 2>&1
        cat /proc/sys/kernel/hostname /link/data/file /elsewhere/data/file /a/b/name
        echo new > /link/data/new && echo written
        (echo x > /a/b/name) 2>/dev/null || echo refused 1
        echo x > /scratch/x && echo scratch; grep -c ' /scratch tmpfs .*noexec' /proc/mounts
        head -c 100000 /dev/zero > /scratch/y 2>/dev/null || echo full
        ls /etc/hidden | wc -l; cat /etc/secret | wc -c
        cat /etc/kept/x; (echo x > /etc/kept/x) 2>/dev/null || echo refused 2
        (echo x > /etc/name) 2>/dev/null || echo refused 3
        (echo x > /usr/x) 2>/dev/null || echo refused 4
        grep -c ' /scratch/mq mqueue' /proc/mounts
    """
    out, _ = place.run(script, options=options)
    assert out.splitlines() == [
        "bundle", "bound", "bound", "bound", "written", "refused 1", "scratch", "1", "full", "0", "0", "root's",
        "refused 2", "refused 3", "refused 4", "1",
    ]  # fmt: skip
    assert (place.shared / "data" / "new").read_text() == "new\n"
    assert not os.path.exists("/elsewhere")


def test_a_network_devices_and_sysctls_of_a_bundle(place: Place) -> None:
    options = {"sysctl": {"kernel.msgmax": "4321", "fs.mqueue.msg_max": "7"}, "user": {"uid": 0, "gid": 0}}
    script = "cat /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/msg_max"
    before = Path("/proc/sys/kernel/msgmax").read_text()
    out, _ = place.run(script, options=options)
    assert out.split() == ["4321", "7"] and Path("/proc/sys/kernel/msgmax").read_text() == before
    if place.user is not None:
        return  # the rest needs root
    holder = subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE)
    try:
        path = f"/proc/{holder.pid}/ns/net"
        until(lambda: os.readlink(path) != os.readlink("/proc/self/ns/net"), 20)
        device = {"path": "/dev/sub/null", "kind": "c", "major": 1, "minor": 3, "mode": 0o640, "uid": 7, "gid": 8}
        options = {"network": "host", "network_path": path, "devices": [device]}
        script = "readlink /proc/self/ns/net; stat -c '%F %t:%T %a %u:%g' /dev/sub/null; echo x > /dev/sub/null"
        out, _ = place.run(script, options=options)
        assert out.splitlines() == [os.readlink(path), "character special file 1:3 640 7:8"]
    finally:
        holder.communicate()
    process = place.start("true", options={"network": "host", "network_path": "/run/netns/not-there"})
    assert process.communicate()[1] == "error: /run/netns/not-there: No such file or directory\n"


def test_an_ordinary_users_bundle_may_be_of_any_user(place: Place) -> None:
    if place.user is None:
        pytest.skip("only for an ordinary user")
    out, _ = place.run("id -u; id -g; touch mine; stat -c %u mine", options={"user": {"uid": 0, "gid": 7}})
    assert out.split() == ["0", "7", "0"]
    assert os.stat(place.shared / "mine").st_uid == (place.user if IS_ROOT else os.getuid())


def test_volumes(place: Place) -> None:
    for name in ("one", "two"):
        (place.path / name).mkdir()
        if IS_ROOT and place.user is not None:
            os.chown(place.path / name, place.user, place.user)
    (place.path / "two" / "file").write_text("in a file\n")
    options = {
        "volumes": [
            (f"{place.path}/one", "/tmp/made/by/us", False),
            (f"{place.path}/two", "/var/lock/ro", True),  # on Debian a link to another directory
            (f"{place.path}/two/file", "/tmp/single", False),
        ]
    }
    script = """
        echo x > /tmp/made/by/us/new
        (echo y > /var/lock/ro/new) 2>/dev/null || echo read-only
        cat /var/lock/ro/file /tmp/single
    """
    if not IS_ROOT or place.user is not None:
        options["volumes"][1] = (f"{place.path}/two", "/tmp/ro", True)
        script = script.replace("/var/lock/ro", "/tmp/ro")
    out, _ = place.run(script, options=options)
    assert out == "read-only\nin a file\nin a file\n"
    assert os.listdir(place.path / "one") == ["new"]
    assert os.listdir(place.path / "two") == ["file"]
    for path in ("/tmp/made", "/tmp/single", "/var/lock/ro", "/run/lock/ro"):
        assert not os.path.exists(path)


def test_rootfs(place: Place) -> None:
    busybox = Path("/bin/busybox")
    if not busybox.exists() or b"ld-linux" in busybox.read_bytes()[:2000]:
        pytest.skip("no static busybox")
    root = place.path / "with:odd,name"
    (root / "bin").mkdir(parents=True)
    (root / "bin/busybox").write_bytes(busybox.read_bytes())
    (root / "bin/busybox").chmod(0o755)
    (root / "bin/sh").symlink_to("busybox")
    root.chmod(0o755)
    if IS_ROOT and place.user is not None:
        for path in (root, root / "bin"):
            os.chown(path, place.user, place.user)
    out, _ = place.run("B=/bin/busybox; $B ls /; $B touch /new; pwd", options={"rootfs": str(root)})
    assert out.split() == ["bin", "dev", "proc", "sys", "/"]
    assert sorted(os.listdir(root)) == ["bin"]


@pytest.mark.skipif(not IS_ROOT, reason="mounts")
def test_a_root_that_cannot_be_overlaid_again(place: Place) -> None:
    """An overlay of an overlay is the kernel's limit: then the root is read-only, but can be worked in."""
    if place.user is not None:
        pytest.skip("an ordinary user has no such mounts to begin with")
    layers = place.path / "layers"
    layers.mkdir()
    prepare = f"""
        mount -t tmpfs none {layers} && cd {layers} && mkdir u1 w1 m1 u2 w2 m2
        mount -t overlay none -o lowerdir=/,upperdir=u1,workdir=w1 m1
        mount -t overlay none -o lowerdir=m1,upperdir=u2,workdir=w2 m2
        exec "$@"
    """
    script = "touch /usr/x 2>/dev/null || echo closed; echo open > /tmp/x; cat /tmp/x"
    command = place.command(script, {"options": {"rootfs": f"{layers}/m2"}})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", prepare, "sh", *command],
        capture_output=True, text=True, env=environment, timeout=30,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("closed\nopen\n", "")
    assert "no overlay of" in place.facts()["sentry"]["notes"][0]


def test_overlay_none_writes_to_the_host(place: Place) -> None:
    other = place.path / "other"
    other.mkdir()
    other.chmod(0o777)
    place.run(f"echo x > {other}/new; ls /proc/1/ > /dev/null", options={"overlay": "none"})
    assert os.listdir(other) == ["new"]


def test_kernel_windows(place: Place) -> None:
    script = """
        ls /proc | grep -c '^[0-9]'
        ls /sys/class/net
        echo > /dev/null && head -c 3 /dev/zero | wc -c
        ls /dev/pts /dev/shm | wc -w; touch /dev/shm/x && echo shm
        (echo 1 > /proc/sys/vm/drop_caches) 2>/dev/null || echo closed
        mount -t tmpfs none /mnt 2>/dev/null || echo no mounts
    """
    out, _ = place.run(script)
    processes, *rest = out.split("\n")
    assert int(processes) <= 4
    assert rest == ["lo", "3", "3", "shm", "closed", "no mounts", ""]  # names of two directories, ptmx


@pytest.mark.parametrize("network", ["none", "host"])
def test_network(place: Place, network: str) -> None:
    out, facts = place.run(
        "readlink /proc/self/ns/net; cat /sys/class/net/lo/flags", options={"network": network}
    )
    link, flags = out.split()
    assert (link == os.readlink("/proc/self/ns/net")) == (network == "host")
    assert network == "host" or int(flags, 16) & 1  # up
    assert facts["sentry"]["notes"] == []


def test_privileges(place: Place) -> None:
    out, _ = place.run("sed -n 's/^Cap//p' /proc/self/status")
    sets = {k: int(v, 16) for k, v in (line.split(":\t") for line in out.splitlines())}
    assert sets["Inh"] == sets["Amb"] == 0
    if place.user is None:
        assert sets["Prm"] == sets["Eff"] == sets["Bnd"] == 0xA80425FB  # what container engines give
    else:
        assert sets["Prm"] == sets["Eff"] == 0


def test_descriptors(place: Place) -> None:
    """The guest gets standard descriptors, and what the caller passed on; nothing of the sentry's."""
    reader, writer = os.pipe()
    script = f"for i in 0 1 2 3 4 5 6 7 8 9 {reader}; do test -e /proc/self/fd/$i && echo $i; done"
    process = place.start(script, popen={"pass_fds": [reader], "stdin": subprocess.DEVNULL})
    out, err = process.communicate(timeout=30)
    os.close(reader)
    os.close(writer)
    assert err == ""
    assert out.split() == ["0", "1", "2", str(reader)]


def test_ignored_signals_pass_on(place: Place) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    process = place.start("sed -n 's/^SigIgn://p' /proc/self/status", popen={"preexec_fn": ignore})
    out, err = process.communicate(timeout=30)
    assert err == ""
    # 32 and 33 are libc's own, and some starters leave them ignored.
    assert int(out, 16) & ~(3 << 31) == 1 << signal.SIGUSR1 - 1
    assert [s for s in place.facts()["sentry"]["ignored"] if s not in (32, 33)] == [signal.SIGUSR1]


def test_nothing_is_left_after_the_end(place: Place) -> None:
    _, facts = place.run("sleep 100 & sleep 0.05")
    assert place.entries() == []
    assert not any(lives(facts["sentry"][who]) for who in ("init", "guest", "guardian"))


def test_nothing_is_left_after_the_sentry_was_killed(place: Place) -> None:
    process = place.start("sleep 100 & echo on; sleep 100", linger=True)
    facts = place.facts()
    assert len(place.entries()) == 1
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    process.kill()
    process.communicate(timeout=5)  # whoever reads our output sees its end
    until(lambda: not any(lives(facts["sentry"][who]) for who in ("init", "guest", "guardian")))
    until(lambda: place.entries() == [])


def test_killed_with_its_whole_process_group(place: Place) -> None:
    """As a shell or a test runner does it: the guardian has its own session and clears up all the same."""
    process = place.start("sleep 100", linger=True, popen={"start_new_session": True})
    facts = place.facts()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=5)
    until(lambda: not any(lives(facts["sentry"][who]) for who in ("init", "guest", "guardian")))
    until(lambda: place.entries() == [])


def test_a_killed_guardian_does_no_harm(place: Place) -> None:
    process = place.start("sleep 0.3; echo fine")
    os.kill(place.facts()["sentry"]["guardian"], signal.SIGKILL)
    out, err = process.communicate(timeout=10)
    assert (out, err, process.returncode) == ("fine\n", "", 0)
    assert place.entries() == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cwd": "/nowhere"}, "error: working directory /nowhere: No such file or directory"),
        ({"volumes": [("/nowhere", "/x", False)]}, "error: /nowhere: No such file or directory"),
        ({"volumes": [("/usr", "/dev/null/x", False)]}, "error: /dev/null/x: Not a directory"),
        ({"rootfs": "/nowhere"}, "error: /nowhere: No such file or directory"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(place: Place, options: dict[str, Any], says: str) -> None:
    process = place.start("true", options=options)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 125
    assert err == says + "\n"
    assert place.entries() == []


def test_a_working_directory_that_is_gone(place: Place) -> None:
    gone = place.path / "gone"
    gone.mkdir()
    script = f'cd {gone}; rmdir {gone}; exec "$@"'
    command = ["sh", "-c", script, "sh", *place.command("true", {})]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)
    assert process.stderr == "error: the current directory does not exist any more\n"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    main, other = pty.openpty()
    yield main, other
    os.close(main)
    os.close(other)


def on_terminal(main: int, other: int) -> dict[str, Any]:
    def take() -> None:
        os.setsid()
        import fcntl

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    return {"stdin": other, "stdout": other, "stderr": other, "preexec_fn": take}


def heard(main: int, pattern: str, seconds: float = 10) -> str:
    text = ""
    end = time.monotonic() + seconds
    while not re.search(pattern, text):
        ready, _, _ = select.select([main], [], [], max(0, end - time.monotonic()))
        assert ready, text
        text += os.read(main, 4096).decode()
    return text


def test_the_callers_terminal(place: Place, terminal: tuple[int, int]) -> None:
    """It is the controlling terminal, has its own name, which no other terminal gets, and is /dev/console too."""
    main, other = terminal
    name = os.ttyname(other)
    number = int(name.removeprefix("/dev/pts/"))
    if IS_ROOT and place.user is not None:
        os.fchown(other, place.user, place.user)
    process = place.start(
        "tty; readlink /proc/self/fd/1; echo to-tty > /dev/tty; ls -l /dev/console; "
        f"python3 -c 'import os; a = [os.openpty()[1] for _ in range({number + 1})]; print(*map(os.ttyname, a))'; echo end",
        popen=on_terminal(main, other),
    )
    lines = heard(main, "end").split()
    assert lines[:3] == [name, name, "to-tty"] and lines[3].startswith("crw"), lines
    made = lines[lines.index("/dev/console") + 1 : lines.index("end")]
    assert len(made) == len(set(made)) == number + 1 and name not in made, lines
    process.wait(10)


def test_the_guardian_restores_the_terminal(place: Place, terminal: tuple[int, int]) -> None:
    main, other = terminal
    if IS_ROOT and place.user is not None:
        os.fchown(other, place.user, place.user)
    before = termios.tcgetattr(other)
    process = place.start("stty raw -echo; echo set; sleep 100", linger=True, popen=on_terminal(main, other))
    heard(main, "set")
    assert termios.tcgetattr(other) != before
    facts = place.facts()
    process.kill()
    process.wait(10)
    until(lambda: not lives(facts["sentry"]["guardian"]))
    assert termios.tcgetattr(other) == before


def test_an_orderly_end_leaves_the_terminal_as_the_program_left_it(
    place: Place, terminal: tuple[int, int]
) -> None:
    main, other = terminal
    if IS_ROOT and place.user is not None:
        os.fchown(other, place.user, place.user)
    process = place.start("stty -echo", popen=on_terminal(main, other))
    process.wait(10)
    assert not termios.tcgetattr(other)[3] & termios.ECHO


# -- the state directory


def test_stale_entries_are_removed_and_live_ones_kept(tmp_path: Path) -> None:
    path = state_dir.prepare(str(tmp_path / "state"))
    live = state_dir.create(path, ["live"])
    left_over = subprocess.Popen(["sleep", "100"])
    pid = os.fork()
    if pid == 0:
        stale = state_dir.create(path, ["stale"])
        stale.record_init(left_over.pid)
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(os.listdir(path)) == 2
    assert state_dir.remove_stale(path) == [str(pid)]
    assert left_over.wait(5) == -signal.SIGKILL
    assert os.listdir(path) == [os.path.basename(live.path)]
    live.remove()
    assert os.listdir(path) == []


def test_a_process_of_the_same_number_is_not_killed(tmp_path: Path) -> None:
    path = state_dir.prepare(str(tmp_path / "state"))
    entry = state_dir.create(path, ["x"])
    innocent = subprocess.Popen(["sleep", "100"])
    entry.record_init(innocent.pid)
    entry.info.init_start_time -= 1
    entry._write()
    os.close(entry.lock)  # as if its sentry had died
    assert state_dir.remove_stale(path) == [os.path.basename(entry.path)]
    assert innocent.poll() is None
    innocent.kill()
    innocent.wait()


def test_two_sandboxes_of_one_process(tmp_path: Path) -> None:
    path = state_dir.prepare(str(tmp_path / "state"))
    one, two = state_dir.create(path, ["1"]), state_dir.create(path, ["2"])
    assert one.path != two.path
    assert state_dir.remove_stale(path) == []
    one.remove()
    two.remove()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    path = state_dir.prepare(str(tmp_path / "state"))
    (tmp_path / "state" / "notes").write_text("mine")
    (tmp_path / "state" / ".new-1").mkdir()  # being made right now
    assert state_dir.remove_stale(path) == []
    assert sorted(os.listdir(path)) == [".new-1", "notes"]


def test_a_state_directory_that_cannot_be() -> None:
    with pytest.raises(state_dir.StateDirError, match="--state-dir"):
        state_dir.prepare("/proc/nowhere")
    if IS_ROOT:
        with pytest.raises(state_dir.StateDirError):
            state_dir.prepare("/etc/passwd")
