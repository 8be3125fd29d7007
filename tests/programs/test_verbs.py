"""The verbs of named sandboxes, from a shell as a user would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from boxes import NOBODY, Boxes, root_of_busybox, until
from harness import alive, is_root, trapline_command
from typist import Typist

from trapline.sentry.control import records

#: Counts into a file of the shared directory.
COUNT = "i=0; while :; do i=$((i+1)); echo $i > count; sleep 0.01; done"


@pytest.fixture(params=["root", "user"])
def anyones(request: pytest.FixtureRequest, platform: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxes]:
    """Also as an ordinary user, where the tests run as root."""
    if request.param == "root" and not is_root():
        pytest.skip("not root")
    # Not pytest's tmp_path, which another user cannot enter.
    path = Path(tempfile.mkdtemp(prefix="tl-", dir="/var/tmp"))
    (path / "work").mkdir()
    monkeypatch.chdir(path / "work")
    found = Boxes(platform, path, NOBODY if request.param == "user" and is_root() else None)
    yield found
    found.close()
    shutil.rmtree(path)


def test_a_life(anyones: Boxes) -> None:
    boxes = anyones
    boxes.good("run", "-d", "--id", "box", "--pid-file", "pid", "--", "sh", "-c", "sleep 100 & exec sleep 101")
    state = boxes.state_of("box")
    assert (state["id"], state["status"], state["ociVersion"]) == ("box", "running", "1.0.2")
    assert state["pid"] == int(Path("pid").read_text()) and alive(state["pid"])
    (seen,) = json.loads(boxes.good("list", "--format=json"))
    assert (seen["id"], seen["status"], seen["pid"]) == ("box", "running", state["pid"])
    assert boxes.good("list", "--quiet") == "box\n"
    until(lambda: len(boxes.ps("box")) == 2, "two processes")
    first = boxes.ps("box")[0]
    assert (first["pid"], first["ppid"], first["command"]) == (1, 0, ["sleep", "101"])
    guests = boxes.guests("box")
    assert "that is running: stop it first, or use --force" in boxes.bad("delete", "box")
    boxes.good("kill", "box", "KILL")
    assert json.loads(boxes.good("wait", "box")) == {"id": "box", "exitStatus": 137}
    until(lambda: boxes.state_of("box")["status"] == "stopped", "it has stopped")
    assert (boxes.state_of("box")["pid"], boxes.state_of("box")["exitStatus"]) == (0, 137)
    assert json.loads(boxes.good("wait", "box"))["exitStatus"] == 137  # kept
    assert not any(map(alive, guests))
    (seen,) = json.loads(boxes.good("list", "--format=json"))
    assert (seen["status"], seen["pid"], seen["exit_status"]) == ("stopped", 0, 137)
    assert "stopped" in boxes.good("list").splitlines()[1]
    assert "is not running" in boxes.bad("kill", "box")
    boxes.good("kill", "--all", "box", "KILL")
    boxes.good("delete", "box")
    assert "does not exist" in boxes.bad("state", "box")
    assert "does not exist" in boxes.bad("delete", "box")
    boxes.good("delete", "--force", "box")


def test_in_the_foreground(boxes: Boxes) -> None:
    result = boxes("run", "--id", "one", "--", "sh", "-c", "cat; echo err >&2; exit 7", input=b"typed\n")
    assert (result.status, result.stdout, result.stderr) == (7, b"typed\n", b"err\n")
    assert boxes.state_of("one")["exitStatus"] == 7
    assert boxes("run", "--id", "two", "--", "sh", "-c", "kill -TERM $$; exit 3").status == 3  # pid 1 has no default
    assert "nothing-here" in boxes.bad("run", "--id", "three", "--", "nothing-here", status=127)


def test_created_then_started(anyones: Boxes) -> None:
    boxes = anyones
    write_bundle(boxes, Path("bundle"), ["sh", "-c", "echo begun > /out/mark; sleep 100"])
    boxes.begin("create", "--bundle", "bundle", "--pid-file", "pid", "box")
    state = boxes.state_of("box")
    assert state["status"] == "created" and state["bundle"] == str(Path("bundle").resolve())
    assert state["pid"] == int(Path("pid").read_text())
    assert "created" in boxes.bad("exec", "box", "true")
    assert "only SIGKILL" in boxes.bad("kill", "box", "TERM")
    assert not Path("out/mark").exists()
    boxes.good("start", "box")
    until(lambda: Path("out/mark").exists() and Path("out/mark").read_text() == "begun\n", "it writes")
    assert boxes.state_of("box")["status"] == "running"
    assert "not created" in boxes.bad("start", "box")
    assert "already exists" in boxes.bad("create", "--bundle", "bundle", "box")
    boxes.begin("create", "--bundle", "bundle", "other")
    boxes.good("delete", "other")  # never started
    boxes.good("delete", "--force", "box")
    said = boxes.bad("create", "--bundle", "bundle", "--id", "none", "--", "nothing-here")
    assert "nothing-here: executable file not found in $PATH" in said
    assert "/etc/passwd: Permission denied" in boxes.bad("create", "--bundle", "bundle", "--id", "none", "--", "/etc/passwd")
    Path("bundle/rootfs/script").write_text("#!/not/there\n")
    Path("bundle/rootfs/script").chmod(0o755)
    boxes.begin("create", "--bundle", "bundle", "--id", "none", "--", "/script")
    assert "/script: no such file or directory: its interpreter does not exist" in boxes.bad("start", "none")
    until(lambda: boxes.state_of("none")["status"] == "stopped", "it stops")
    assert boxes.state_of("none")["exitStatus"] == 127
    assert "nothing-here: executable file not found" in boxes.bad("run", "-d", "--id", "box", "--", "nothing-here")
    assert "does not exist" in boxes.bad("state", "box")


def write_bundle(boxes: Boxes, path: Path, command: list[str], **process: object) -> dict[str, object]:
    """A bundle of busybox, that `out` is shared with."""
    root_of_busybox(path / "rootfs")
    Path("out").mkdir(exist_ok=True)
    boxes.good("spec", "--bundle", str(path), *command)
    config: dict[str, object] = json.loads((path / "config.json").read_text())
    config["process"].update(process)  # type: ignore[attr-defined]
    out = {"destination": "/out", "type": "bind", "source": str(Path("out").resolve()), "options": ["bind"]}
    config["mounts"].append(out)  # type: ignore[attr-defined]
    (path / "config.json").write_text(json.dumps(config))
    return config


def test_a_bundle(anyones: Boxes) -> None:
    boxes = anyones
    script = """
        id -u; id -g; umask; pwd; env | grep -v '^PWD\\|^SHLVL\\|^OLDPWD' | sort
        ulimit -n; uname -n; grep NoNewPrivs /proc/self/status; grep CapBnd /proc/self/status
        touch /root/x || echo ro; touch /tmp/x && echo rw; cat /proc/kcore | wc -c; ls /proc/acpi 2>/dev/null | wc -l
        echo $$; ls /out; echo data > /out/made
    """
    user = {"uid": 1000, "gid": 1000, "umask": 0o27} if boxes.privileged else {"uid": 0, "gid": 0, "umask": 0o27}
    limits = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    write_bundle(
        boxes, Path("bundle"), ["sh", "-c", script], user=user, cwd="/made/here", env=["PATH=/bin", "A=b c"], rlimits=limits
    )
    Path("out").chmod(0o777)
    Path("out/seen").touch()
    Path("bundle/rootfs").chmod(0o755)
    config = json.loads(Path("bundle/config.json").read_text())
    config["root"]["readonly"] = False
    Path("bundle/config.json").write_text(json.dumps(config))
    result = boxes("run", "--bundle", "bundle", "box")
    uid = "1000" if boxes.privileged else "0"
    home = "/home/ann" if boxes.privileged else "/root"
    lines = result.stdout.decode().splitlines()
    assert lines[:9] == [uid, uid, "0027", "/made/here", "A=b c", f"HOME={home}", "PATH=/bin", "100", "trapline"], result
    assert lines[9].split() == ["NoNewPrivs:", "1"]
    if boxes.privileged:
        assert int(lines[10].split()[1], 16) == 1 << 5 | 1 << 10 | 1 << 29  # spec's three
    assert lines[11:] == (["ro"] if boxes.privileged else []) + ["rw", "0", "0", "1", "seen"]
    assert Path("out/made").read_text() == "data\n"
    assert Path("out/made").stat().st_mode & 0o777 == 0o640
    assert Path("bundle/rootfs/made/here").is_dir()  # a bundle's root is written to
    config["root"]["readonly"] = True
    Path("bundle/config.json").write_text(json.dumps(config))
    assert boxes.good("run", "--bundle", "bundle", "--id", "two", "--", "sh", "-c", "2>/dev/null > /x || echo ro") == "ro\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ociVersion": "9"}, "ociVersion 9"),
        ({"hooks": {"poststop": [{"path": "/bin/true"}]}}, "hooks.poststop is not supported"),
        ({"root": {"path": "nowhere"}}, "nowhere is no directory"),
        ({"process": {"cwd": "/", "args": []}}, "there is no command"),
        ({"process": {"cwd": "/", "args": ["x"], "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1 << 40, "hard": 1 << 40}]}},
         "RLIMIT_NOFILE"),
    ],
)  # fmt: skip
def test_bundles_that_are_refused(change: dict[str, object], says: str, boxes: Boxes) -> None:
    config = write_bundle(boxes, Path("bundle"), ["true"])
    Path("bundle/config.json").write_text(json.dumps({**config, **change}))
    for verb in ("run", "create"):
        said = boxes.bad(verb, "--bundle", "bundle", "box")
        assert says in said and said.startswith(f"trapline {verb}: ")
    assert os.listdir(boxes.state) == [] if boxes.state.exists() else True


def test_exec(anyones: Boxes) -> None:
    boxes = anyones
    boxes.good("run", "-d", "--id", "box", "--env", "FIRST=1", "--", "sleep", "100")
    result = boxes("exec", "box", "sh", "-c", "cat; echo err >&2; exit 5", input=b"in\n")
    assert (result.status, result.stdout, result.stderr) == (5, b"in\n", b"err\n")
    script = "pwd; echo $FIRST $MORE; id -u; echo $PPID"
    uid = 1234 if boxes.privileged else boxes.user or os.getuid()
    user = ["--user", "1234:1235"] if boxes.privileged else []
    said = boxes.good("exec", "--cwd", "/usr", "--env", "MORE=2", *user, "box", "sh", "-c", script)
    assert said.split() == ["/usr", "1", "2", str(uid), "0"]
    assert boxes("exec", "box", "sh", "-c", "kill -9 $$").status == 137
    assert "nothing-here: executable file not found in $PATH" in boxes.bad("exec", "box", "nothing-here")
    assert "/etc: Permission denied" in boxes.bad("exec", "box", "/etc")
    assert "does not exist" in boxes.bad("exec", "none", "true")
    assert "/nowhere" in boxes.bad("exec", "--cwd", "/nowhere", "box", "true")
    process = {"args": ["sh", "-c", "echo $X; pwd"], "cwd": "/tmp", "env": ["X=y", "PATH=/bin:/usr/bin"]}
    own = 0 if boxes.privileged else boxes.user or os.getuid()
    Path("process.json").write_text(json.dumps({**process, "user": {"uid": own, "gid": own}}))
    assert boxes.good("exec", "--process", "process.json", "box") == "y\n/tmp\n"
    # Everything that was started is gone again.
    until(lambda: len(boxes.ps("box")) == 1, "only the first is left")
    boxes.good("kill", "box", "KILL")
    until(lambda: boxes.state_of("box")["status"] == "stopped", "it has stopped")
    assert "is not running" in boxes.bad("exec", "box", "true")


def test_exec_detached(boxes: Boxes) -> None:
    boxes.good("run", "-d", "--id", "box", "--", "sleep", "100")
    boxes.begin("exec", "-d", "box", "sh", "-c", "echo $$ > pid; while [ ! -e go ]; do sleep 0.01; done; exit 4")
    until(lambda: Path("pid").exists() and Path("pid").read_text(), "it runs")
    pid = Path("pid").read_text().strip()
    assert "99999 was not started by exec" in boxes.bad("wait", "--pid", "99999", "box")
    waiting = subprocess.Popen(boxes.command("wait", "--pid", pid, "box"), stdout=subprocess.PIPE)
    Path("go").touch()
    out, _ = waiting.communicate(timeout=60)
    assert json.loads(out) == {"id": "box", "exitStatus": 4} and waiting.returncode == 0
    # What the pid file names comes to whoever is the subreaper, and ends as the process does.
    code = """if True:
        import ctypes, os, subprocess, sys
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        subprocess.run(sys.argv[1:], check=True, timeout=60)
        pid = int(open('waiter').read())
        open('go2', 'w').close()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    script = "while [ ! -e go2 ]; do sleep 0.01; done; exit 6"
    words = boxes.command("exec", "-d", "--pid-file", "waiter", "box", "sh", "-c", script)
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=90)
    assert (done.stdout, done.stderr) == ("6\n", "")


def test_what_the_pid_file_names_ends_as_the_first_program(boxes: Boxes) -> None:
    """As monitors of containers (conmon) find out how one ended: they are its subreaper."""
    code = """if True:
        import ctypes, os, subprocess, sys
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        create, start = sys.argv[1:].index('--'), sys.argv[1:].index('++')
        subprocess.run(sys.argv[2 + create : 1 + start], check=True, timeout=60)
        pid = int(open('pid').read())
        assert os.waitpid(-1, os.WNOHANG) == (0, 0)
        subprocess.run(sys.argv[2 + start :], check=True, timeout=60)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    """
    write_bundle(boxes, Path("bundle"), ["sh", "-c", "echo out; echo err >&2; exit 6"])
    create = boxes.command("create", "--bundle", "bundle", "--pid-file", "pid", "box")
    start = boxes.command("start", "box")
    done = subprocess.run(
        [sys.executable, "-c", code, "--", *create, "++", *start], capture_output=True, text=True, timeout=90
    )
    assert (sorted(done.stdout.split()), done.stderr) == (["6", "out"], "err\n")  # it has the standard descriptors
    assert boxes.state_of("box")["exitStatus"] == 6


def test_signals(boxes: Boxes) -> None:
    script = """
        trap 'echo usr1 >> got' USR1; trap 'echo term >> got; exit 9' TERM
        sh -c "trap 'echo child >> got; exit' USR2; echo \\$\\$ > child; while :; do sleep 0.01; done" &
        echo ready > got; while :; do sleep 0.01; done
    """
    boxes.good("run", "-d", "--id", "box", "--", "sh", "-c", script)
    until(lambda: Path("got").exists() and Path("child").exists() and Path("child").read_text(), "both run")
    boxes.good("kill", "box", "SIGUSR1")
    until(lambda: "usr1" in Path("got").read_text(), "the first got it")
    boxes.good("kill", "--pid", Path("child").read_text().strip(), "box", "12")
    until(lambda: "child" in Path("got").read_text(), "the child got it")
    assert "99999" in boxes.bad("kill", "--pid", "99999", "box")
    assert "99999" in boxes.bad("kill", "--pgid", "99999", "box")
    assert "there is no signal FISH" in boxes.bad("kill", "box", "FISH", status=2)
    assert "exclude one another" in boxes.bad("kill", "--all", "--pid", "1", "box", status=2)
    boxes.good("kill", "box")
    assert json.loads(boxes.good("wait", "box"))["exitStatus"] == 9
    assert Path("got").read_text().split() == ["ready", "usr1", "child", "term"]


def test_pause_and_resume(anyones: Boxes) -> None:
    boxes = anyones
    boxes.good("run", "-d", "--id", "box", "--", "sh", "-c", COUNT)
    count = Path("count")
    until(lambda: count.exists() and count.read_text(), "it counts")
    boxes.good("pause", "box")
    assert boxes.state_of("box")["status"] == "paused"
    (seen,) = json.loads(boxes.good("list", "--format=json"))
    assert seen["status"] == "paused"
    before = count.read_text()
    assert "paused" in boxes.bad("exec", "box", "true")
    assert "paused" in boxes.bad("pause", "box")
    assert count.read_text() == before
    boxes.good("resume", "box")
    until(lambda: count.read_text() not in ("", before), "it goes on")
    assert "not paused" in boxes.bad("resume", "box")
    boxes.good("pause", "box")
    boxes.good("delete", "--force", "box")  # also of a paused one


def test_events_and_features(boxes: Boxes) -> None:
    boxes.good("run", "-d", "--id", "box", "--", "sh", "-c", COUNT)
    (line,) = boxes.good("events", "--stats", "box").splitlines()
    found = json.loads(line)
    assert (found["type"], found["id"]) == ("stats", "box")
    assert found["data"]["cpu"]["usage"]["total"] > 0 and found["data"]["memory"]["usage"]["usage"] > 0
    assert found["data"]["pids"]["current"] >= 1
    with subprocess.Popen(boxes.command("events", "--interval", "10ms", "box"), stdout=subprocess.PIPE) as events:
        assert events.stdout is not None
        totals = [json.loads(events.stdout.readline())["data"]["cpu"]["usage"]["total"] for _ in range(3)]
        assert totals == sorted(totals) and totals[0] < totals[2]
        boxes.good("kill", "box", "KILL")
        events.stdout.read()
        assert events.wait(30) == 0  # it ends with the sandbox
    features = json.loads(boxes.good("features"))
    assert features["ociVersionMin"] == "1.0.0" and "bind" in features["mountOptions"]


def test_a_killed_sentry(anyones: Boxes) -> None:
    boxes = anyones
    boxes.good("run", "-d", "--id", "box", "--", "sh", "-c", "sleep 100 & sleep 100")
    until(lambda: len(boxes.ps("box")) == 3, "three processes")
    guests = boxes.guests("box")
    os.kill(boxes.state_of("box")["pid"], signal.SIGKILL)
    until(lambda: boxes.state_of("box")["status"] == "stopped", "it counts as stopped")
    until(lambda: not any(map(alive, guests)), "no guest is left")
    assert boxes.state_of("box")["exitStatus"] == -1
    assert "stopped" in boxes.good("list")
    assert "was killed" in boxes.bad("wait", "box")
    assert "already exists" in boxes.bad("run", "--id", "box", "--", "true")
    boxes.good("delete", "box")
    boxes.good("run", "--id", "box", "--", "true")


def test_a_do_can_be_asked_too(boxes: Boxes) -> None:
    command = boxes.command("do", "--", "sh", "-c", "echo ready; exec sleep 100")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stdout.readline() == b"ready\n"
        name = str(running.pid)
        assert boxes.state_of(name)["status"] == "running"
        assert boxes.good("exec", name, "sh", "-c", "echo $PPID") == "0\n"
        boxes.good("pause", name)
        assert boxes.state_of(name)["status"] == "paused"
        boxes.good("resume", name)
        assert "belongs to a `do`" in boxes.bad("delete", "--force", name)
        with records.find(str(boxes.state), name).client() as client:
            number = client.begin("wait")
            boxes.good("kill", name)
            assert client.finish(number) == {"status": 143}
        assert running.wait(60) == 143
    assert "does not exist" in boxes.bad("state", name)


def test_programs_that_end_at_once(boxes: Boxes) -> None:
    """Their end may be known before it is that they were executed."""
    for turn in range(8):
        boxes.good("run", "-d", "--id", f"box{turn}", "--", "true")
        boxes.bad("run", "-d", "--id", f"none{turn}", "--", "nothing-here")
    assert sorted(boxes.good("list", "--quiet").split()) == [f"box{turn}" for turn in range(8)]


def test_two_starts_of_one_id(boxes: Boxes) -> None:
    words = boxes.command("run", "-d", "--id", "box", "--", "sleep", "100")
    runs = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = sorted([(run.communicate(timeout=60)[1], run.returncode) for run in runs])
    assert said == [("", 0)] + [("trapline run: sandbox box already exists\n", 128)] * 2
    assert len(boxes.ps("box")) == 1


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["run", "--id", "a/b", "true"], 128, "invalid id 'a/b'"),
        (["run", "--id", "box"], 2, "there is no command"),
        (["run", "box", "true"], 2, "give --id ID before a command: --id box true"),
        (["run", "--bundle", "nowhere", "box"], 128, "nowhere/config.json does not exist"),
        (["create"], 2, "there is no ID"),
        (["state"], 2, "there is no ID"),
        (["state", "box"], 128, "sandbox box does not exist"),
        (["state", "a", "b"], 2, "'b' is too much"),
        (["exec", "box"], 2, "there is no command"),
        (["exec", "--user", "ann", "box", "true"], 2, "--user takes UID or UID:GID in numbers"),
        (["pause", "box"], 128, "sandbox box does not exist"),
        (["exec", "-d", "-t", "box", "sh"], 2, "needs --console-socket"),
        (["events", "--interval", "x", "box"], 2, "--interval takes a time"),
        (["attach", "--detach-keys", "x,ctrl-", "box"], 2, "--detach-keys takes keys"),
        (["delete", "../x"], 128, "invalid id '../x'"),
        (["ps", "box"], 128, "sandbox box does not exist"),
    ],
)
def test_mistakes(words: list[str], status: int, says: str, tmp_path: Path, platform: str) -> None:
    assert says in Boxes(platform, tmp_path).bad(*words, status=status)


def test_errors_go_to_the_log_as_other_runtimes_write_them(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["--root", str(tmp_path / "s"), "--log", str(log), "--log-format=json", "--systemd-cgroup", "start", "box"]
    done = subprocess.run(trapline_command(*words), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128, "trapline start: sandbox box does not exist\n")
    found = json.loads(log.read_text())
    assert (found["level"], found["msg"]) == ("error", "sandbox box does not exist")


@pytest.mark.skipif(not is_root(), reason="only root can mount and be somebody else")
def test_a_full_disk_and_a_state_directory_of_another(boxes: Boxes) -> None:
    boxes.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=3", "tmpfs", str(boxes.state)], check=True)
    try:
        said = boxes.bad("run", "-d", "--id", "box", "--", "true")
        assert "No space left on device" in said and str(boxes.state) in said
        assert os.listdir(boxes.state) == []
    finally:
        subprocess.run(["umount", str(boxes.state)], check=True)
    os.chown(boxes.state, 54321, 54321)
    assert "belongs to somebody else" in boxes.bad("run", "-d", "--id", "box", "--", "true")
    os.chown(boxes.state, 0, 0)


def test_terminals(boxes: Boxes) -> None:
    command = boxes.command("run", "-t", "--id", "front", "--", "sh", "-c", "tty; stty size; read x; echo got $x; exit 3")
    run = Typist(command, size=(31, 97))
    run.expect("31 97")
    run.send("typed")
    run.expect("got typed")
    assert run.end() == 3
    boxes.good("run", "-d", "-t", "--id", "box", "--", "sh", "-c", "echo begin; while read x; do echo got $x; done; exit 4")
    command = boxes.command("attach", "box")
    for turn in ("one", "two"):
        attached = Typist(command)
        attached.expect("begin")  # what it showed before
        attached.send(turn)
        attached.expect(f"got {turn}")
        attached.type("\x10\x11")  # ctrl-p ctrl-q
        assert attached.end() == 0 and boxes.state_of("box")["status"] == "running"
    command = boxes.command("exec", "-t", "box", "sh", "-c", "stty size; exec cat")
    inside = Typist(command, size=(33, 99))
    inside.expect("33 99")
    inside.send("hello")
    inside.expect("hello\r\nhello")
    inside.interrupt()
    assert inside.end() == 130
    command = boxes.command("attach", "box")
    attached = Typist(command)
    attached.expect("got two")
    attached.type("\4")
    assert attached.end() == 4
    assert "no terminal" in boxes_without_terminal(boxes)


def boxes_without_terminal(boxes: Boxes) -> str:
    boxes.good("run", "-d", "--id", "plain", "--", "sleep", "100")
    return boxes.bad("attach", "plain")


def test_names_that_are_not_utf8(boxes: Boxes) -> None:
    """Linux's are bytes: arguments, paths of images, what an error names, and what is listed."""
    odd = os.fsdecode(b"a\xffb")
    boxes.begin("run", "-d", "--id", "odd", "--", "sh", "-c", f"sleep 1000; : {odd}")
    assert boxes("exec", "odd", "printf", odd).stdout == b"a\xffb"
    assert f"{odd}: executable file not found" in boxes.bad("exec", "odd", odd).replace("\\udcff", "\udcff")
    assert r"a\xffb" in boxes.good("list") and r"a\xffb" in boxes.good("ps", "odd")
    assert r"a\xffb" in boxes.ps("odd")[0]["command"][-1]
    boxes.good("checkpoint", "--no-fsync", "--image-path", odd, "odd")
    boxes.good("delete", "odd")
    boxes.begin("restore", "-d", "--id", "odd", "--image-path", odd)
    assert r"a\xffb" in boxes.ps("odd")[0]["command"][-1]
    assert boxes("do", "printf", odd).stdout == b"a\xffb"


def test_a_console_socket(boxes: Boxes) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("console")
        listener.listen()
        listener.settimeout(60)
        words = ["--console-socket", "console", "--id", "box", "--", "sh", "-c", "tty > out; read x; echo got $x; exec sleep 100"]
        boxes.good("run", "-d", "-t", *words)
        master = receive(listener)
        os.write(master, b"typed\n")
        assert until_seen(master, b"got typed")
        os.close(master)
        boxes.good("exec", "-d", "-t", "--console-socket", "console", "box", "sh", "-c", "echo from exec; sleep 100")
        master = receive(listener)
        assert until_seen(master, b"from exec")
        os.close(master)


def receive(listener: object) -> int:
    import socket

    with listener.accept()[0] as connection:  # type: ignore[attr-defined]
        _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    return fds[0]


def until_seen(master: int, text: bytes) -> bool:
    seen = b""
    while text not in seen:
        seen += os.read(master, 4096)
    return True
