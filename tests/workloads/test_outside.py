"""`trapline list` and `trapline ps`: running sandboxes as they are seen from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from guests import Running, compiled, until
from harness import Result, do, is_root, native, trapline_command

from trapline.sentry.cli.columns import duration, printable, size, table

GUESTS = "setsid sleep 100 & sleep 100 & (exit 3) & echo ready; exec sleep 100"


def ask(*words: str, **more: object) -> Result:
    return native(trapline_command(*words), **more)


def as_json(*words: str) -> list[dict[str, object]]:
    result = ask(*words, "--format=json")
    assert (result.status, result.stderr) == (0, b""), result
    found: list[dict[str, object]] = json.loads(result.stdout)
    return found


def test_a_running_sandbox(platform: str, tmp_path: Path) -> None:
    flag = f"--state-dir={tmp_path}"
    assert as_json("list", flag) == []
    with Running(platform, ["sh", "-c", GUESTS], flag) as running:
        running.wait_for(b"ready\n")
        until(
            lambda: len(as_json("ps", flag)) == 4,
            "four processes: one is a zombie",
            seen=lambda: as_json("ps", flag),
        )
        (seen,) = as_json("list", flag)
        assert (seen["id"], seen["pid"], seen["platform"]) == (str(running.pid), running.pid, platform)
        assert seen["status"] == "running"
        assert seen["guests"] == 4 and seen["command"] == ["sh", "-c", GUESTS]
        assert seen["uptime"] > 0 and seen["sentry_cpu"] > 0 and seen["guest_rss"] > 0  # type: ignore[operator]
        rows = as_json("ps", flag, str(running.pid))
        until(lambda: [r["command"] for r in as_json("ps", flag)].count(["sleep", "100"]) == 3, "three sleep")
        rows = {row["pid"]: row for row in as_json("ps", flag, str(running.pid))}
        root = rows[2]
        assert (root["ppid"], root["command"]) == (1, ["sleep", "100"])
        own = [row for row in rows.values() if row["sid"] == row["pid"]]
        assert len(own) == 1 and own[0]["pgid"] == own[0]["pid"] and own[0]["ppid"] == 2
        (zombie,) = [row for row in rows.values() if row["state"] == "Z"]
        assert zombie["command"] == ["[sh]"] and zombie["ppid"] == 2
        assert all(os.path.exists(f"/proc/{row['host_pid']}") for row in rows.values())
        text = ask("ps", flag, "--host").stdout.decode().splitlines()
        assert text[0].split()[:2] == ["HOST", "PID"] and len(text) == 5 and "\x1b" not in "".join(text)
        text = ask("list", flag).stdout.decode().splitlines()
        assert text[0].startswith("ID") and text[1].endswith(GUESTS)
        os.kill(int(str(own[0]["host_pid"])), signal.SIGKILL)
        running.process.terminate()
        running.finish()
    assert as_json("list", flag) == []
    result = ask("ps", flag)
    assert (result.status, result.stderr) == (128, b"trapline ps: no sandbox is running\n")


def test_which_one(platform: str, tmp_path: Path) -> None:
    flag = f"--state-dir={tmp_path}"
    sleeper = [compiled("faults"), "sleeper"]
    with Running(platform, sleeper, flag) as one, Running(platform, sleeper, flag) as two:
        one.wait_for(b"ready\n")
        two.wait_for(b"ready\n")
        assert {entry["pid"] for entry in as_json("list", flag)} == {one.pid, two.pid}
        result = ask("ps", flag)
        assert result.status == 128 and result.stdout == b"" and b"which one? " in result.stderr
        assert len(as_json("ps", flag, str(two.pid))) == 1
        wrong = ask("ps", flag, "999999999")
        assert (wrong.status, wrong.stdout) == (128, b"")
        assert wrong.stderr == b"trapline ps: sandbox 999999999 does not exist: see trapline list\n"
        # What a killed one leaves is no running sandbox.
        two.process.kill()
        until(lambda: [entry["pid"] for entry in as_json("list", flag)] == [one.pid], "only one is left")


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["list", "x"], 2, "'x' is too much"),
        (["ps", "1", "2"], 2, "'2' is too much"),
        (["list", "--format=xml"], 2, "--format takes table or json"),
        (["list", "--state-dir=/nowhere/at/all"], 128, "state directory /nowhere/at/all: there is none"),
        (["list", "--state-dir=/etc/passwd"], 128, "state directory /etc/passwd: Not a directory"),
    ],
)
def test_mistakes(words: list[str], status: int, says: str) -> None:
    result = ask(*words)
    assert result.status == status and result.stdout == b"", result
    assert says in result.stderr.decode() and result.stderr.count(b"\n") == 1


@pytest.mark.skipif(not is_root(), reason="only root can be somebody else")
def test_other_users(platform: str, tmp_path: Path) -> None:
    """They may not read root's state directory, and are told so; root sees theirs."""
    tmp_path.chmod(0o755)
    state = tmp_path / "state"
    with Running(platform, [compiled("faults"), "sleeper"], f"--state-dir={state}") as running:
        running.wait_for(b"ready\n")
        # Everything is imported before: somebody else may not be able to read this Python.
        code = "import os, sys, glob, psutil, pwd, msgspec; from trapline.sentry.cli import columns, list, ps, sandboxes\n"
        code += "from trapline.sentry.cli.main import main; os.setgid(54321); os.setuid(54321); sys.exit(main(sys.argv[1:]))"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        for words, says in (
            (["list", f"--state-dir={state}"], "Permission denied"),
            (["ps", str(running.pid)], "would be another user's: only they and root may look at it"),
        ):
            done = subprocess.run(
                [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment, cwd="/"
            )
            assert done.returncode == 128 and says in done.stderr and done.stderr.count("\n") == 1, done


def test_list_starts_light(tmp_path: Path) -> None:
    code = f"import sys; from trapline.sentry.cli.main import main; main(['list', '--state-dir={tmp_path}']); "
    code += "print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not {"trio", "psutil", "argparse", "json", "subprocess", "ctypes"} & set(done.stdout.split())


def test_odd_state(tmp_path: Path, platform: str) -> None:
    """Whatever lies in a state directory: it is not shown, and nothing waits for it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "info.json").write_text("{")
    (tmp_path / "c").write_text("")
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d" / "info.json")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "info.json").symlink_to("/etc/passwd")
    assert as_json("list", f"--state-dir={tmp_path}") == []
    assert do(platform, ["true"], f"--state-dir={tmp_path}").status == 0


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (0, 4.214, 59.999, 60, 3599, 3600, 86399, 86400, 273906)] == [
        "0.00", "4.21", "60.00", "1:00", "59:59", "1:00:00", "23:59:59", "1-00:00:00", "3-04:05:06",
    ]  # fmt: skip
    assert [size(n) for n in (0, 999, 1024, 831_488, 1_468_006, 24_117_248, 1 << 40)] == [
        "0B", "999B", "1K", "812K", "1.4M", "23M", "1.0T",
    ]  # fmt: skip
    assert printable(["a\x1b[31m", "b\n", "ü"]) == "a?[31m b? ü"
    assert table(("A", "BB"), [("1", "x"), ("222", "")], ("A",)) == "  A  BB\n  1  x\n222\n"
    assert table(("A",), [("12345",)], width=3) == "A\n123\n"
