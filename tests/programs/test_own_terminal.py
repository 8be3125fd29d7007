"""A terminal of the sandbox's own: -t, --console-socket and --record."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import subprocess
import termios
import time
from pathlib import Path

import pytest
from harness import do, trapline_command
from screen import Screen, prefix

P = r"\d+ OUT> $"
WHOSE = "tty; ps -o pid=,pgid=,sid=,tpgid=,tty= -p $$; stty size; echo x > /dev/tty; [ /dev/console -ef $(tty) ]; echo $?"


def given(platform: str, script: str, data: bytes, *flags: str) -> subprocess.CompletedProcess[bytes]:
    """`do -t` of a shell script whose input is a pipe."""
    words = trapline_command("do", f"--platform={platform}", "-t", *flags, "--", "sh", "-c", script)
    return subprocess.run(words, input=data, capture_output=True, timeout=30)


def test_a_terminal_without_one(platform: str) -> None:
    """The command leads a session on /dev/pts/0, in its foreground; nothing of it is trapline's caller's."""
    done = given(platform, WHOSE, b"")
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert lines == [["/dev/pts/0"], ["2", "2", "2", "2", "pts/0"], ["24", "80"], ["x"], ["0"]], done
    assert b"\r\n" in done.stdout and done.stderr == b"" and done.returncode == 0


def test_end_of_input(platform: str) -> None:
    """It is the terminal's VEOF: twice where a line was begun, and whatever key that is."""
    assert given(platform, "stty -echo; echo on; cat; echo end", b"line\n").stdout.endswith(b"line\r\nend\r\n")
    assert given(platform, "stty -echo; echo on; cat; echo end", b"part").stdout.endswith(b"partend\r\n")
    assert given(platform, "cat; echo end", b"").stdout.endswith(b"end\r\n")
    lines = b"".join(b"%d\n" % n for n in range(20000))
    done = given(platform, "stty -echo; echo on; wc -l; cat < /dev/null", lines)
    assert done.stdout.split()[-1] == b"20000"


def test_all_output_comes(platform: str) -> None:
    done = given(platform, "seq 200000; exit 3", b"")
    assert done.returncode == 3 and done.stdout.split() == [b"%d" % n for n in range(1, 200001)]


def test_nobody_takes_the_output(platform: str) -> None:
    """The terminal is hung up, as when a window is closed."""
    words = " ".join(trapline_command("do", f"--platform={platform}", "-t", "--", "yes"))
    done = subprocess.run(
        ["bash", "-c", f"{words} < /dev/null | head -1; echo ${{PIPESTATUS[0]}}"], capture_output=True, timeout=30
    )
    assert done.stdout.split() == [b"y", b"129"], done


def test_statuses(platform: str) -> None:
    for script, status in (("exit 7", 7), ("kill -9 $$", 137), ("kill -INT $$", 130)):
        done = given(platform, script, b"")
        assert (done.returncode if done.returncode >= 0 else 128 - done.returncode) == status, done
    assert do(platform, ["no-such-command"], "-t").status == 127


def test_on_a_terminal(platform: str, tmp_path: Path) -> None:
    """Keys go through, sizes follow, and the caller's terminal is as before, whatever ends the session."""
    with Screen(tmp_path / "place", prefix(platform, "-t")) as s:
        s.type("stty -a > before", P)
        s.type("run bash --norc", P)
        s.type("PS1='$? IN> '; tty", r"\n/dev/pts/0\n0 IN> $")
        s.type("up", r"\nup\n$")
        s.keys("C-z", see=r"Stopped +up\n148 IN> $")
        s.type("fg", r"fg\nup\n$")
        s.front("trapline-tty")
        s.keys("C-c", see=r"\^C\n\d+ IN> $")
        s.resize(60, 20)
        s.type("until [ \"$(stty size)\" = '20 60' ]; do :; done; echo sized", r"\nsized\n0 IN> $")
        s.type("exit 4", r"4 OUT> $")
        s.type("stty -a | sed 's/rows.*columns [0-9]*//' > after; sed 's/rows.*columns [0-9]*//' before | cmp after", P)
        s.keys("C-l", see="^0 OUT> $")
        s.type("run sh -c 'echo gone; kill -9 $$'", r"gone\nKilled\n137 OUT> $")
        s.type("stty -a | grep -c ' echo '", r"\n1\n0 OUT> $")


def test_record(platform: str, tmp_path: Path) -> None:
    file = tmp_path / "session.cast"
    now = "python3 -c 'import time; print(time.monotonic())'"
    script = f"printf 'h\\303'; sleep 0.1; printf '\\251\\n'; printf '\\377'; read x; {now}; sleep 1; {now}; exit 3"
    words = trapline_command(
        "do", f"--platform={platform}", f"--record={file}", "--record-input", "--clock-rate=1/2", "--env=TERM=vt100", "--env=SHELL=/s"
    )  # fmt: skip
    with subprocess.Popen([*words, "--", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdin is not None and run.stdout is not None
        _until(run.stdout.fileno(), b"\xff")
        out, _ = run.communicate(b"in\n", timeout=30)
    assert run.returncode == 3, out
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    header, events = lines[0], lines[1:]
    assert abs(header.pop("timestamp") - time.time()) < 60
    assert header.pop("command").startswith("sh -c 'printf ")
    assert header == {"version": 2, "width": 80, "height": 24, "env": {"SHELL": "/s", "TERM": "vt100"}}
    shown = "".join(data for _, kind, data in events if kind == "o")
    first, second, begun, ended = shown.split()
    assert (first, second) == ("hé", "\ufffdin"), events
    assert "".join(data for _, kind, data in events if kind == "i") == "in\n"
    when = [at for at, _, _ in events]
    assert when == sorted(when) and when[0] >= 0
    # By the sandbox's clock, which is half as fast here.
    at = [next(at for at, _, data in events if data.startswith(text)) for text in (begun, ended)]
    passed = float(ended) - float(begun)
    assert passed >= 1 and abs((at[1] - at[0]) / passed - 1) < 0.3, events


def test_record_sizes(platform: str, tmp_path: Path) -> None:
    with Screen(tmp_path / "place", prefix(platform, f"--record={tmp_path}/cast")) as s:
        s.type("run bash --norc", P)
        s.resize(70, 15)
        s.type("until [ \"$(stty size)\" = '15 70' ]; do :; done; exit", P)
    lines = [json.loads(line) for line in (tmp_path / "cast").read_text().splitlines()]
    assert (lines[0]["width"], lines[0]["height"]) == (80, 24)
    assert [data for _, kind, data in lines[1:] if kind == "r"] == ["70x15"]


def test_a_full_disk_ends_the_recording_only(platform: str) -> None:
    done = given(platform, "echo shown; exit 5", b"", "--record=/dev/full")
    assert done.returncode == 5 and b"shown\r\n" in done.stdout
    assert done.stderr == b"trapline: --record /dev/full: No space left on device; the rest is not in it\n"


def test_console_socket(platform: str, tmp_path: Path) -> None:
    """The master comes by SCM_RIGHTS with its name, as runc sends it; whoever has it is the terminal's other side."""
    path = f"{tmp_path}/console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        script = f"{WHOSE}; read x; echo got $x; exit 6"
        words = trapline_command("do", f"--platform={platform}", f"--console-socket={path}", "--", "sh", "-c", script)
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            listener.settimeout(20)
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                name, rights, _, _ = connection.recvmsg(4096, 64)
                master = array.array("i", rights[0][2])[0]
            assert name == b"/dev/ptmx" and os.isatty(master)
            heard = _until(master, b"\r\n0\r\n")
            assert heard.split()[:2] == [b"/dev/pts/0", b"2"]
            termios.tcflush(master, termios.TCIFLUSH)
            os.write(master, b"typed\n")
            _until(master, b"got typed\r\n")
            out, err = run.communicate(timeout=30)
            assert (run.returncode, out, err) == (6, b"", b"")
        with pytest.raises(OSError):
            while os.read(master, 1000):
                pass
        os.close(master)


def _until(master: int, text: bytes) -> bytes:
    heard = b""
    while text not in heard:
        assert select.select([master], [], [], 20)[0], heard
        heard += os.read(master, 1000)
    return heard


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        (["--console-socket=/no/such"], 125, "trapline: --console-socket /no/such: No such file or directory"),
        (["--console-socket=/etc/passwd"], 125, "trapline: --console-socket /etc/passwd: Connection refused"),
        (["--record=/proc/none"], 125, "trapline: --record /proc/none: No such file or directory"),
        (["--record=/no/such/file"], 2, "--record takes a file in a directory that exists"),
        (["--record=session.cast", "--console-socket=/y"], 2, "choose one"),
        (["--record-input"], 2, "--record-input needs --record FILE"),
        (["--tty=yes"], 2, "--tty takes no value"),
    ],
)
def test_mistakes(flags: list[str], status: int, says: str) -> None:
    """One line, before anything runs."""
    result = do("seccomp", ["echo", "ran"], *flags)
    assert result.status == status and result.stdout == b"", result
    assert says in result.stderr.decode() and result.stderr.count(b"\n") == 1
