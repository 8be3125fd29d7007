"""Checkpoints as users and programs ask for them: verbs, hooks, and the files inside. What is saved is tested elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from boxes import NOBODY, Boxes, until
from harness import is_root

saves = pytest.mark.skipif(
    importlib.util.find_spec("trapline.platform.checkpoint") is None, reason="nothing is saved by this version"
)
#: What a program inside does to ask, and to hear.
ASK = "ask() { echo $1 > /run/trapline/checkpoint; read answer < /run/trapline/outcome; echo \"$answer\"; }\n"
#: With no descriptor of the host's.
OWN = "exec sleep 100 < /dev/null > /dev/null 2>&1"


@pytest.fixture(params=["root", "user"])
def anyones(request: pytest.FixtureRequest, platform: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxes]:
    """Also as an ordinary user, where the tests run as root."""
    if request.param == "root" and not is_root():
        pytest.skip("not root")
    # Not pytest's tmp_path, which another user cannot enter.
    path = Path(tempfile.mkdtemp(prefix="tl-", dir="/var/tmp"))
    for name in ("work", "images"):
        (path / name).mkdir()
    monkeypatch.chdir(path / "work")
    found = Boxes(platform, path, NOBODY if request.param == "user" and is_root() else None)
    yield found
    found.close()
    shutil.rmtree(path)


def test_the_files_inside(anyones: Boxes) -> None:
    script = ASK + """
        ask fly
        cd /run/trapline; ls; [ -p checkpoint ] && [ -p outcome ] && echo fifos
        rm -f checkpoint 2>/dev/null || echo stays; touch other 2>/dev/null || echo closed
        exec 3> checkpoint 4< outcome
        echo x y >&3; read answer <&4; echo "$answer"
    """
    said = anyones.good("do", "--checkpoint-dir", "../images", "--", "sh", "-c", script).splitlines()
    assert said == [
        "failed: takes checkpoint or stop, not 'fly'", "checkpoint", "outcome", "fifos", "stays", "closed",
        "failed: takes checkpoint or stop, not 'x y'",
    ]  # fmt: skip
    # Who does not ask for them has none.
    assert anyones.good("do", "--", "sh", "-c", "test -e /run/trapline/checkpoint || echo none") == "none\n"


@saves
def test_a_program_asks_for_its_own(anyones: Boxes) -> None:
    said = anyones.good("do", "--checkpoint-dir", "../images", "--", "sh", "-c", ASK + "ask checkpoint; ask; ask")
    assert said == "resumed 1\nresumed 2\nresumed 3\n"
    assert sorted(os.listdir("../images")) == ["1", "2", "3"]


@saves
def test_a_program_is_told_of_the_restore(anyones: Boxes) -> None:
    script = ASK + "exec 4< /run/trapline/outcome; echo stop > /run/trapline/checkpoint; read x <&4; echo $x; ask fly"
    ended = anyones("do", "--checkpoint-dir", "../images", "--", "sh", "-c", script)
    assert (ended.status, ended.stdout) == (137, b"")
    said = anyones.good("restore", "--image-path", "../images/1")
    assert said == "restored 1\nfailed: takes checkpoint or stop, not 'fly'\n"


def test_a_save_hook_prevents_it(anyones: Boxes) -> None:
    hook = "sh -c 'echo $TRAPLINE_CHECKPOINT >> hooked; echo not now; exit 3'"
    anyones.good("run", "-d", "--save-hook", hook, "--id", "box", "--", "sleep", "100")
    said = anyones.bad("checkpoint", "--image-path", "../images/one", "box")
    assert said.startswith("trapline checkpoint: the save hook sh -c ") and said.endswith(": exit status 3: not now")
    said = anyones.bad("wait", "--checkpoint", "1", "box")
    assert said.startswith("trapline wait: the checkpoint failed: the save hook") and said.endswith("not now")
    assert json.loads(anyones.good("wait", "--checkpoint=0", "box")) == {"id": "box", "checkpoints": 0}
    assert Path("hooked").read_text() == "save\n" and os.listdir("../images") == []
    assert [process["command"] for process in anyones.ps("box")] == [["sleep", "100"]]


@saves
def test_hooks_around_a_save_and_after_a_restore(anyones: Boxes) -> None:
    hook = "sh -c 'echo $TRAPLINE_CHECKPOINT >> hooked'"
    hooks = ["--save-hook", hook, "--restore-hook", hook]
    anyones.good("run", "-d", *hooks, "--id", "box", "--", "sh", "-c", OWN)
    said = json.loads(anyones.good("checkpoint", "--image-path", "../images/one", "--leave-running", "--format=json", "box"))
    assert said["number"] == 1 and said["image_path"] == str(Path("../images/one").resolve())
    assert Path("hooked").read_text() == "save\nresume\n"
    line = anyones.good("checkpoint", "--image-path", "../images/two", "box")
    assert line.startswith("checkpoint 2: ") and line.endswith("/images/two\n")
    assert anyones.state_of("box")["status"] == "stopped"
    assert Path("hooked").read_text() == "save\nresume\nsave\n"
    anyones.good("restore", "-d", "--id", "again", "--image-path", "../images/two")
    assert json.loads(anyones.good("wait", "--restore", "again")) == {"id": "again", "checkpoints": 2}
    assert json.loads(anyones.good("wait", "--checkpoint", "2", "again"))["checkpoints"] == 2
    until(lambda: Path("hooked").read_text() == "save\nresume\nsave\nrestore\n", "the restore hook")


def test_who_waits_for_a_checkpoint_hears_of_the_end(anyones: Boxes) -> None:
    anyones.good("run", "-d", "--id", "box", "--", "sleep", "100")
    assert "the sandbox was not made from a checkpoint" in anyones.bad("wait", "--restore", "box")
    words = (["--checkpoint", "box"], ["--checkpoint", "4", "box"])
    waiting = [subprocess.Popen(anyones.command("wait", *more), stderr=subprocess.PIPE) for more in words]
    for process in waiting:
        connected = f"/proc/{process.pid}/wchan"
        until(lambda place=connected: Path(place).read_text().startswith("unix_stream"), "it waits for an answer")
    anyones.good("kill", "box", "KILL")
    for process in waiting:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (128, b"trapline wait: the sandbox has ended\n")
    assert "is not running" in anyones.bad("wait", "--checkpoint", "box")
    assert "is not running" in anyones.bad("checkpoint", "--image-path", "../images/x", "box")


def test_the_sandbox_of_a_do(anyones: Boxes) -> None:
    with open("output", "wb") as output:
        command = anyones.command("do", "--save-hook", "false", "--", "sh", "-c", "echo up; exec sleep 100")
        doing = subprocess.Popen(command, stdout=output)
    try:
        until(lambda: Path("output").read_bytes() == b"up\n", "it runs")
        name = anyones.good("list", "--quiet").strip()
        said = anyones.bad("checkpoint", "--image-path", "../images/one", name)
        assert said == "trapline checkpoint: the save hook false: exit status 1"
        anyones.good("kill", name)
    finally:
        doing.wait(60)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["checkpoint", "box"], "there is no --image-path DIR"),
        (["checkpoint", "--image-path", "no/such/place", "box"], "takes a directory to be made, in one that exists"),
        (["checkpoint", "--image-path", "x", "--parent-path", "none", "box"], "of an earlier checkpoint"),
        (["checkpoint", "--image-path", "x", "--timeout", "0", "box"], "more than 0"),
        (["checkpoint", "--image-path", "x", "--compression", "zst", "box"], "did you mean zstd?"),
        (["checkpoint", "--image-path", "x"], "there is no ID"),
        (["restore"], "there is no --image-path DIR"),
        (["restore", "--image-path", "none"], "takes a directory that `trapline checkpoint` made"),
        (["restore", "--image-path", ".", "-d"], "--detach needs --id ID"),
        (["restore", "--image-path", ".", "--id", "a", "b"], "two ids, a and b"),
        (["restore", "--image-path", ".", "a", "b"], "'b' is too much"),
        (["wait", "--checkpoint=x", "box"], "takes the number of a checkpoint"),
        (["wait", "--checkpoint", "x", "box"], "not 'x': --checkpoint N ID"),
        (["wait", "--restore", "--checkpoint", "box"], "exclude one another"),
        (["wait", "box", "7"], "'7' is too much"),
        (["do", "--save-hook", "sh 'x", "true"], "quoted as for a shell"),
        (["do", "--hook-timeout", "-1", "true"], "seconds"),
        (["do", "--checkpoint-dir", "none", "true"], "takes a directory that exists"),
    ],
)
def test_mistakes(words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in Boxes("seccomp", tmp_path).bad(*words, status=2)


def test_a_bar_while_memory_is_loaded(boxes: Boxes) -> None:
    """On a terminal, once it takes longer than a moment; the programs find an empty line."""
    code = "import os, time\nown = os.urandom(20 << 20)\nwhile True:\n    print('up', flush=True)\n    time.sleep(0.05)\n"
    boxes.begin("run", "-d", "--id", "box", "--", sys.executable, "-c", code)
    log = boxes.state / "box" / "output.log"
    until(lambda: log.exists() and log.stat().st_size, "it is up")
    form = "zstd" if boxes.platform == "ptrace" else "none"
    boxes.good("checkpoint", "--no-fsync", "--compression", form, "--image-path", "image", "box")
    boxes.good("delete", "box")
    pid, master = pty.fork()
    if not pid:
        words = boxes.command("restore", "--image-path", "image")
        os.execv(words[0], words)
    until(lambda: list(boxes.state.iterdir()), "it begins")
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.4)  # that is the moment
    os.kill(pid, signal.SIGCONT)
    shown = b""
    while b"up" not in shown:
        shown += os.read(master, 4096)
    bar, _, rest = shown.partition(b"up")
    # Of the two that unpacking a compressed image adds, the one in whose time the moment ended.
    assert re.search(rb"\r(memory|unpacking) +\d+% \[#* *\]  \d+[KMB] of \d+M", bar), shown
    assert re.search(rb"\r +\r$", bar) and b"%" not in rest, shown
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(master)
    until(lambda: not list(boxes.state.iterdir()), "nothing is left")
