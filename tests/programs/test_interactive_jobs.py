"""Job control on the caller's terminal: trapline as a job of a shell, and shells with jobs inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import is_root
from screen import Screen, same_screen
from scripts import needs

P = r"OUT> $"
NOBODY = 65534
#: Until no job runs. `wait` says different things to one that stops and to one that has stopped.
STILL = 'while [ "$(jobs -r)" ]; do sleep 0.01; done'

ENDED = "while kill -0 %1 2> n; do :; done"


def stop_and_go_on(s: Screen) -> None:
    s.type("run sh -c 'echo up; exec sleep 100'", r"\nup\n")
    s.keys("C-z", see=r"Stopped[^\n]*\n148 OUT> $")
    s.type("jobs", r"jobs\n\[1\][^\n]*\n0 OUT> $")
    s.type("fg", r"fg\nrun[^\n]*\n$")
    s.front("sleep")
    s.keys("C-c", see=r"\^C\n130 OUT> $")
    s.type("jobs; echo none", r"\nnone\n0 OUT> $")


def reader_in_the_background(s: Screen) -> None:
    s.type("run cat", r"run cat\n$")
    s.type("one", r"one\none\n")
    s.keys("C-z", see=r"Stopped +run cat\n148 OUT> $")
    s.type(f"bg; {STILL}", r"Stopped +run cat\n\d+ OUT> $")
    s.type("fg", r"fg\nrun cat\n$")
    s.type("two", r"two\ntwo\n")
    s.keys("C-z", see=r"148 OUT> $")
    s.type(f"kill %1; {ENDED}", r"Terminated +run cat\n0 OUT> $")


def writer_in_the_background(s: Screen) -> None:
    s.type("stty tostop", r"stty tostop\n0 OUT> $")
    s.type(f"run echo out & {STILL}", r"Stopped[^\n]*\n\d+ OUT> $")
    s.type("fg", r"run echo out\nout\n0 OUT> $")


def brought_to_the_front_while_it_runs(s: Screen) -> None:
    s.type("run sh -c 'echo up > f; exec sleep 100' &", r"\] \d+\n0 OUT> $")
    s.until((s.place / "f").exists, "it runs")
    s.type("fg", r"fg\nrun[^\n]*\n$")
    s.front()
    s.keys("C-z", see=r"148 OUT> $")
    s.type("bg", r"&\n0 OUT> $")
    s.type("fg", r"fg\nrun[^\n]*100'\n$")
    s.front()
    s.keys("C-\\", see=r"Quit[^\n]*\n131 OUT> $")
    s.type(f"run sh -c 'read x; read y; echo $x+$y' & {STILL}", r"Stopped[^\n]*\n\d+ OUT> $")
    s.type("fg", r"fg\nrun[^\n]*\n$")
    s.type("one")
    s.type("two", r"one\+two\n0 OUT> $")


def many_stops(s: Screen) -> None:
    s.type("trap 'echo outer' CONT; run bash -c 'trap \"echo -n +\" CONT; echo up; cat; echo end'", r"\nup\n")
    for _ in range(6):
        s.keys("C-z", see=r"148 OUT> $")
        s.type("clear; fg", r"run[^\n]*\n\S* ?$")
        s.front("cat")
    s.type("through", r"through\nthrough\n")
    s.keys("C-d", see=r"end\n0 OUT> $")


def scripts(s: Screen) -> None:
    """Whoever controls no jobs leaves the guest in its own group."""
    s.type("sh -c 'run sh -c \"echo up; exec sleep 100\"; echo after $?'", r"\nup\n")
    s.keys("C-z", see=r"148 OUT> $")
    s.type("fg", r"fg\nsh[^\n]*\n$")
    s.front("sleep")
    s.keys("C-c", see=r"130 OUT> $")
    s.type("for i in 1 2; do run sh -c 'echo up $0; exec sleep 100' $i; done; echo no", r"\nup 1\n")
    s.keys("C-c", see=r"\^C\n+130 OUT> $")


def pipelines(s: Screen) -> None:
    s.type("run cat | tr a-z A-Z", r"A-Z\n$")
    s.type("one", r"one\nONE\n$")
    s.keys("C-z", see=r"148 OUT> $")
    s.type("fg", r"fg\nrun[^\n]*\n$")
    s.type("two", r"two\nTWO\n$")
    s.keys("C-d", see=r"0 OUT> $")
    s.type("seq 3 | run cat | run tail -n 1", r"\n3\n0 OUT> $")
    s.type("seq 200 > f; run cat f | less", r"\n: $")
    s.keys("q", see=P)
    s.keys("C-l", see=r"^\d+ OUT> $")


def shell_inside(s: Screen) -> None:
    s.type("run bash --norc", P)
    s.type("PS1='$? IN> '", r"IN> $")
    s.type("tty | grep -c /dev/pts; [ $$ = $(ps -o pgid= -p $$) ]; echo $?", r"\n1\n0\n0 IN> $")
    s.type("up", r"\nup\n$")
    s.keys("C-z", see=r"148 IN> $")
    s.type("jobs", r"Stopped +up\n0 IN> $")
    s.type("bg", r"up &\n0 IN> $")
    s.type("fg", r"fg\nup\n$")
    s.front("sleep")
    s.keys("C-c", see=r"\^C\n130 IN> $")
    s.type("sleep 100 | sleep 100 | sleep 100 &", r"\] \d+\n0 IN> $")
    s.type("cat | cat | cat", r"cat\n$")
    s.type("x", r"\nx\nx\n")
    s.keys("C-z", see=r"148 IN> $")
    s.type("jobs", r"jobs\n.*sleep.*cat\n0 IN> $")
    s.type("kill %1; wait %1", r"Terminated[^\n]*\n143 IN> $")
    s.type("fg", r"fg\ncat[^\n]*\n$")
    s.front("cat")
    s.keys("C-d", see=r"0 IN> $")
    s.type("PS1='$? 2> ' bash --norc", r" 2> $")
    s.type("up", r"\nup\n$")
    s.keys("C-z", see=r"148 2> $")
    s.type(f"kill -9 %1; {ENDED}; exit", r"IN> $")
    s.type("stty -echo; echo off; read x; stty echo; echo quiet $x", r"\noff\n$")
    s.type("typed", echo=False, pattern=r"quiet typed\n0 IN> $")
    s.type("for i in {1..20}; do /bin/true | /bin/cat; (exit 3); done; echo $?", r"\n3\n0 IN> $")
    s.type("up & fg", r"up\n.*up\n$")
    s.front("sleep")
    s.keys("C-c", see=r"130 IN> $")
    s.type("suspend", r"Stopped +run bash --norc\n\d+ OUT> $")
    s.type("fg", r"fg\nrun[^\n]*\n[^\n]*IN> $")
    s.type("exit 5", r"5 OUT> $")
    s.type("cat", r"cat\n$")
    s.keys("C-d", see=r"0 OUT> $")


def statuses(s: Screen) -> None:
    for signo in ("KILL", "TERM", "HUP", "SEGV"):
        s.type(f"ulimit -c 0; run sh -c 'kill -{signo} $$'; echo", r"\n\n0 OUT> $")
        s.keys("C-l", see=r"^0 OUT> $")
        s.type(f"run sh -c 'kill -{signo} $$'", r"1\d\d OUT> $")
    s.type("run sh -c 'exit 7'", r"7 OUT> $")


def test_stop_and_go_on(platform: str, tmp_path: Path) -> None:
    same_screen(stop_and_go_on, platform, tmp_path)


def test_reader_in_the_background(platform: str, tmp_path: Path) -> None:
    same_screen(reader_in_the_background, platform, tmp_path)


def test_writer_in_the_background(platform: str, tmp_path: Path) -> None:
    same_screen(writer_in_the_background, platform, tmp_path)


def test_brought_to_the_front_while_it_runs(platform: str, tmp_path: Path) -> None:
    """The shell gives the terminal to trapline's group and says nothing: keys and reads still are the guests'."""
    same_screen(brought_to_the_front_while_it_runs, platform, tmp_path)


def test_many_stops(platform: str, tmp_path: Path) -> None:
    same_screen(many_stops, platform, tmp_path)


def test_scripts(platform: str, tmp_path: Path) -> None:
    same_screen(scripts, platform, tmp_path)


def test_pipelines(platform: str, tmp_path: Path) -> None:
    needs("less")
    same_screen(pipelines, platform, tmp_path)


def test_shell_inside(platform: str, tmp_path: Path) -> None:
    same_screen(shell_inside, platform, tmp_path)


def test_statuses(platform: str, tmp_path: Path) -> None:
    same_screen(statuses, platform, tmp_path)


@pytest.mark.skipif(not is_root(), reason="the other tests are those of an ordinary user then")
def test_as_an_ordinary_user(platform: str, tmp_path: Path) -> None:
    """In a user namespace: jobs, the terminal's name where the terminal is the user's, and one of the sandbox's own."""
    driver = Path(__file__).parent.parent / "workloads" / "unprivileged_driver.py"
    words = [sys.executable, str(driver), str(NOBODY), "-", "do", f"--platform={platform}"]
    probe = subprocess.run([*words, f"--state-dir=/tmp/trapline-{NOBODY}", "true"], cwd="/", capture_output=True)
    if probe.returncode == 125 and b"user namespaces" in probe.stderr:
        pytest.skip(probe.stderr.decode().strip())
    for parent in (tmp_path, *tmp_path.parents):  # pytest's directories are root's alone
        if str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    with Screen(tmp_path / "place", words) as s:
        for path in (s.place, s.place / "tools"):
            os.chown(path, NOBODY, NOBODY)
        s.type('[ "$(run tty)" = "$(tty)" ]; echo $?', r"\n0\n0 OUT> $")  # another user's, as after su
        os.chown(os.readlink(f"/proc/{s.pid}/fd/0"), NOBODY, NOBODY)
        s.type('[ "$(run readlink /proc/self/fd/0)" = "$(tty)" ]; echo $?', r"\n0\n0 OUT> $")
        stop_and_go_on(s)
        s.type("run -t sh -c 'id -u; tty; stty size; exit 3'", rf"\n{NOBODY}\n/dev/pts/0\n24 80\n3 OUT> $")
