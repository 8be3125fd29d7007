"""Sandboxes with a life of their own: pid 1, processes from outside, the end, and what is left when trapline is killed."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from guests import orphans_come_here, until
from harness import Result, alive, is_root, native, trapline_command

from trapline.sentry.control.client import Client, ControlError

HERE = Path(__file__).parent
DRIVER = str(HERE / "control_driver.py")
NOBODY = 65534


def trapline(*arguments: str, **more: object) -> Result:
    return native(trapline_command(*arguments), **more)


def driven(scenario: str, platform: str, *command: str, user: str = "-", **more: object) -> Result:
    line = [sys.executable, DRIVER, scenario, user, f"--platform={platform}", *command]
    return native(line, **more)


@pytest.mark.parametrize("end", ["exits", "fault"])
@pytest.mark.skipif(not is_root(), reason="unshare needs root")
def test_the_program_is_pid_1(platform: str, tmp_path: Path, end: str) -> None:
    """Signals, orphans and its own end are those of the first process of any pid namespace."""
    program = [sys.executable, str(HERE / "init_program.py"), end]
    expected = native(["unshare", "--pid", "--fork", "--mount-proc", "setsid", *program])
    result = trapline("run", f"--platform={platform}", f"--state-dir={tmp_path}", "--id=one", "--", *program)
    assert result.stdout == expected.stdout, f"{expected}\n{result}"
    assert result.status == expected.status == (9 if end == "exits" else 139), result


EXECUTED = """\
true 0
status 7
signal 143
pipeline 0
no such program: /no/such: command not found
not found: no-such-program: command not found
no such directory: working directory /no/such: No such file or directory
no program: /etc/passwd: Permission denied
no limit: RLIMIT_NONSENSE: there is no such resource limit
descriptors 0
limits 0
directory 0
environment 0
session 0
wait: process 12345 was not started by exec, or was waited for
"""


@pytest.mark.parametrize("user", ["-", str(NOBODY)])
def test_processes_from_outside(platform: str, tmp_path: Path, user: str) -> None:
    """Statuses and errors, and that nothing of the sentry's gets in."""
    place = tmp_path
    if user != "-":
        if not is_root():
            pytest.skip("the tests run as an ordinary user already")
        place = Path("/tmp") / f"trapline-test-{os.getpid()}"
        place.mkdir(mode=0o777)
        place.chmod(0o777)
    try:
        more = [f"--state-dir={place}/state", "--", "sleep", "1000"]
        result = driven("execute", platform, *more, user=user, cwd=place)
        left = os.listdir(place / "state")
    finally:
        if place is not tmp_path:
            shutil.rmtree(place)
    assert result.stderr.decode() == EXECUTED, result
    assert result.stdout == b"OUT OF EXEC\n0\n0\n1\n2\n77\n/usr\nONLY=this\nTrue 0\n", result
    assert result.status == 137 and not left


def test_it_is_controlled_like_any_other(platform: str, tmp_path: Path) -> None:
    """A process from outside has the sandbox's clocks, CPUs, hostname and files, its signals and waits are the
    sentry's, and a trace shows it."""
    result = driven("same", platform, "--strace", "-o", f"{tmp_path}/trace", "-e", "kill,wait4", "--cpus=1",
                    f"--state-dir={tmp_path}/state", "--", "sh", "-c", "echo mine > /tmp/trapline-mine; sleep 1000")  # fmt: skip
    assert result.status == 137, result
    lines = result.stdout.decode().split()
    assert lines[:3] == ["mine", "1", "True"], result
    assert not Path("/tmp/trapline-mine").exists()
    assert re.search(r"--- SIGUSR1 ", (tmp_path / "trace").read_text())


@pytest.mark.skipif(not is_root(), reason="other users are root's to have")
def test_users_and_capabilities(platform: str, tmp_path: Path) -> None:
    result = driven("users", platform, f"--state-dir={tmp_path}/state", "--", "sleep", "1000")
    assert result.stdout.decode().split("\n") == [
        "12 34 56", "0000000000000000 0000000000000000", "0000000000000001 0000000000000001", "",
    ], result  # fmt: skip
    assert result.stderr == b"no capability: CAP_NONSENSE: there is no such capability\n"


def test_terminals(platform: str, tmp_path: Path) -> None:
    """A terminal of its own: named, controlling, of the size asked for and of that it is given then."""
    result = driven("terminal", platform, f"--state-dir={tmp_path}/state", "--", "sleep", "1000")
    assert result.stderr.decode() == "True\n50 120\n40 100\nstatus 3\n", result


@pytest.mark.parametrize("first_is_init", [True, False])
def test_the_end(platform: str, tmp_path: Path, first_is_init: bool) -> None:
    """While the last task exits, many ask for one more process: each gets one that ran or a plain error, and none is
    left running."""
    for _ in range(4):
        one_end(platform, tmp_path, first_is_init)
        if first_is_init:
            assert trapline("delete", f"--state-dir={tmp_path}", "box").status == 0
        assert not os.listdir(tmp_path)


def one_end(platform: str, tmp_path: Path, first_is_init: bool) -> None:
    name = "box" if first_is_init else ""
    verb = ["run", f"--id={name}"] if first_is_init else ["do"]
    line = trapline_command(*verb, f"--platform={platform}", f"--state-dir={tmp_path}", "--", "sh", "-c",
                            "echo on; read x; exit 3")  # fmt: skip
    first = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdin is not None and first.stdout is not None and first.stdout.readline() == b"on\n"
    directory = str(tmp_path / (name or str(first.pid)))
    ran: list[int] = []
    hosts: list[int] = []
    errors: list[str] = []
    enough = threading.Semaphore(0)

    def ask() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        try:
            while True:
                with Client(directory) as client:
                    started = client.call("exec", (null, null, null), spec={"args": ["sleep", "0"]})
                    hosts.append(started["host_pid"])
                    enough.release()
                    ran.append(client.call("wait", pid=started["pid"])["status"])
        except ControlError as error:
            errors.append(str(error))
        finally:
            os.close(null)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for _ in range(24):
        assert enough.acquire(timeout=30)
    first.stdin.write(b"\n")
    first.stdin.close()
    assert first.wait(30) == 3
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    first.stdout.close()
    assert len(errors) == 12, errors
    plain = ("the sandbox has ended", "it hung up", "it is not served", "No such file")
    assert all(any(text in error for text in plain) for error in errors), errors
    assert set(ran) <= {0, 137} and len(ran) >= 12
    assert not [host for host in hosts if alive(host)]


def test_what_is_left_of_a_killed_one(platform: str, tmp_path: Path) -> None:
    """trapline killed while it runs, is paused, or stands before its program: no guest runs, the entry is there as a
    stopped one, and delete takes it away."""
    state = f"--state-dir={tmp_path}"
    for name, verbs in (("runs", []), ("paused", ["pause"])):
        with orphans_come_here() as left:
            result = trapline("run", "-d", state, f"--platform={platform}", f"--id={name}", "--", "sleep", "1000")
            assert result.status == 0, result
            with Client(str(tmp_path / name)) as client:
                null = os.open(os.devnull, os.O_RDWR)
                client.call("exec", (null, null, null), spec={"args": ["sleep", "1000"]})
                os.close(null)
                for verb in verbs:
                    client.call(verb)
            sentry = next(p for p in left() if "trapline" in p.cmdline())
            sentry.kill()
            until(lambda left=left: not left(), "the end of all of it")
        shown = trapline("state", state, name)
        assert b'"status": "stopped"' in shown.stdout, shown
        assert trapline("delete", state, name).status == 0
        assert not os.listdir(tmp_path)


def test_mistakes_are_one_line_each(platform: str, tmp_path: Path) -> None:
    state = f"--state-dir={tmp_path}/state"

    def line(*arguments: str) -> str:
        result = trapline(*arguments)
        assert result.status != 0 and not result.stdout and result.stderr.count(b"\n") == 1, result
        return result.stderr.decode()

    flags = ("-d", state, f"--platform={platform}")
    assert trapline("run", *flags, "--id=box", "--", "sleep", "1000").status == 0
    try:
        assert "box already exists" in line("run", *flags, "--id=box", "--", "true")
        assert "not found" in line("run", *flags, "--id=other", "--", "no-such-program")
        assert "/no/such" in line("run", *flags, "--id=other", "--cwd=/no/such", "--", "true")
        assert "--pid-file" in line("run", *flags, "--id=other", f"--pid-file={tmp_path}/no/such", "--", "true")
        assert os.listdir(tmp_path / "state") == ["box"]
    finally:
        assert trapline("delete", "--force", state, "box").status == 0
    long = tmp_path / ("long" * 40) / ("longer" * 30)
    assert trapline("run", f"--state-dir={long}", "--id=box", f"--platform={platform}", "--", "true").status == 0
    assert stat_mode(long / "box") == 0o700


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_attach(platform: str, tmp_path: Path) -> None:
    """The terminal of a detached sandbox: what was shown comes back, keys arrive, and all of it is in the log."""
    result = trapline("run", "-d", "-t", f"--state-dir={tmp_path}", f"--platform={platform}", "--id=box", "--",
                      "sh", "-c", "stty -echo; tty; read x; echo got $x; read y; exit 5")  # fmt: skip
    assert result.status == 0, result
    with Client(str(tmp_path / "box")) as client:
        until(lambda: b"pts" in (tmp_path / "box" / "output.log").read_bytes(), "the first line")
        shown = base64.b64decode(client.call("attach")["shown"])
        assert shown == b"/dev/pts/0\r\n"
        with socket.socket(fileno=client.take_descriptor()) as terminal:
            terminal.settimeout(20)
            terminal.sendall(b"something\n")
            seen = b""
            while b"got something\r\n" not in seen:
                seen += terminal.recv(4096)
        client.call("resize", rows=30, columns=90)
        waiting = client.begin("wait")
        with Client(str(tmp_path / "box")) as other:
            assert base64.b64decode(other.call("attach")["shown"]).endswith(b"got something\r\n")
            with socket.socket(fileno=other.take_descriptor()) as terminal:
                terminal.sendall(b"\n")
                assert client.finish(waiting)["status"] == 5
    log = (tmp_path / "box" / "output.log").read_bytes()
    assert log == b"/dev/pts/0\r\ngot something\r\n", log


def test_unserved_sandboxes_import_no_trio(platform: str, tmp_path: Path) -> None:
    """Nobody asks it anything, so it pays nothing for being askable."""
    result = trapline("run", "-d", f"--state-dir={tmp_path}", f"--platform={platform}", "--id=box", "--", "sleep", "1000")
    assert result.status == 0, result
    try:
        pid = int(json.loads((tmp_path / "box" / "info.json").read_text())["pid"])
        assert "trio" not in Path(f"/proc/{pid}/maps").read_text()
        assert stat_mode(tmp_path / "box" / "control.sock") == 0o600
        assert psutil.Process(pid).status() == psutil.STATUS_SLEEPING
    finally:
        with Client(str(tmp_path / "box")) as client:
            client.call("kill", signal=signal.SIGKILL)


@pytest.mark.skipif(not is_root(), reason="the tests run as an ordinary user already")
def test_as_an_ordinary_user(platform: str) -> None:
    """A life from `run -d` to `delete`; and the state directory is nobody else's."""
    place = Path("/tmp") / f"trapline-test-{os.getpid()}"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    script = str(HERE / "unprivileged_driver.py")

    def user(verb: str, *arguments: str) -> Result:
        line = [sys.executable, script, str(NOBODY), "-", verb, f"--state-dir={place}/state", *arguments]
        return native(line, cwd=place)

    try:
        started = user("run", "-d", f"--platform={platform}", "--id=box", "--", "sh", "-c", "echo $$ >&2; sleep 1000")
        assert (started.status, started.stderr) == (0, b""), started
        result = user("exec", "box", "sh", "-c", "id -u; echo $PPID; kill -9 1; echo $?; exit 6")
        assert result.stdout.decode().split() == [str(NOBODY), "0", "0"] and result.status == 6, result
        assert user("pause", "box").status == 0
        assert b'"paused"' in user("state", "box").stdout
        assert user("resume", "box").status == 0
        assert b"id 1" in user("exec", "box", "sh", "-c", "echo id $(ps -o pid= -C sleep | wc -l)").stdout
        assert (place / "state" / "box" / "output.log").read_bytes() == b"1\n"
        line = [sys.executable, script, "65533", "-", "state", f"--state-dir={place}/state", "box"]
        other = native(line, cwd=place)
        assert other.status and other.stderr.count(b"\n") == 1, other
        assert user("kill", "box", "KILL").status == 0
        assert b"137" in user("wait", "box").stdout
    finally:
        user("delete", "--force", "box")
        left = os.listdir(place / "state")
        shutil.rmtree(place)
    assert not left
