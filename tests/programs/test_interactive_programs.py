"""Programs that take a whole terminal, on the caller's: editor, pager, multiplexer, prompts; and how they leave it."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import psutil
import pytest
from screen import Screen, prefix, same_screen, shown
from scripts import needs

P = r"\d+ OUT> $"


def vim(s: Screen) -> str:
    s.type("run vim -Nu NONE -i NONE f", r"\n~\n")
    s.keys("i", "h", "e", "l", "l", "o", "Enter", "w", "o", "r", "l", "d", "Escape", see=r"^hello\nworld")
    s.resize(60, 12)
    s.until(lambda: len(s.whole().splitlines()) <= 12, "it has the new size")
    s.type(":%s/l/L/g", r"3 substitutions on 2 lines")
    s.keys("C-z", see=r"148 OUT> $")
    s.type("fg", r"^heLLo\nworLd\n")
    picture = s.whole()
    s.type(":wq", P)
    s.type("cat f", r"heLLo\nworLd\n0 OUT> $")
    return picture + s.all()


def less(s: Screen) -> str:
    s.type("seq 1000 > f; run less f", r"f +$")
    s.keys("Space", see=r"^24\n.*46\n: $")
    s.type("/77", r"^77\n")
    s.resize(40, 10)
    s.until(lambda: len(s.whole().splitlines()) <= 10, "it has the new size")
    s.keys("G", see=r"^992\n.*1000\n\(END\) $")
    s.keys("C-z", see=r"148 OUT> $")
    s.type("fg", r"^992\n.*1000\n\(END\) $")
    picture = s.text()
    s.keys("q", see=P)
    s.type("stty size; stty -a | grep -c ' echo '", r"10 40\n1\n0 OUT> $")
    return picture + s.text()


def multiplexer(s: Screen) -> str:
    s.type("run tmux -f /dev/null -L inner new 'PS1=\"t> \" bash --norc'", r"t> $")
    s.type("echo $((40 + 2)); stty size", r"\n42\n23 80\nt> $")
    s.type("up", r"\nup\n$")
    s.keys("C-z", see=r"Stopped +up\nt> $")
    s.keys("C-b", '"')
    s.wait(r"─+\n[#$] $")
    s.type("exit")
    s.until(lambda: "─" not in s.all(), "one pane")
    s.type("kill -9 %1; while kill -0 %1 2> n; do :; done; clear; exit", r"\[exited\]\n\d OUT> $")
    return s.all()


def repl(s: Screen) -> None:
    s.type("run python3 -q", r">>> $")
    s.type("1 + 1", r"\n2\n>>> $")
    s.keys("Up", "BSpace", "5", "Enter", see=r"1 \+ 5\n6\n>>> $")
    s.type("import time; print('up'); time.sleep(100)", r"\nup\n$")
    s.keys("C-c", see=r"KeyboardInterrupt\n>>> $")
    s.keys("C-z", see=r"148 OUT> $")
    s.type("fg", r"fg\nrun[^\n]*\n")
    s.type("import os; os.ttyname(0) == os.ttyname(1)", r"True\n>>> $")
    s.keys("C-d", see=r"0 OUT> $")


def passwords(s: Screen) -> None:
    s.type("run bash -c 'read -rsp \"secret: \" x; echo; echo got $x'", r"\nsecret: $")
    s.type("hidden", echo=False, pattern=r"\ngot hidden\n0 OUT> $")
    s.type("run python3 -c 'import getpass; print(getpass.getpass(\"pass: \"))'", r"\npass: $")
    s.type("typ", enter=False, echo=False)
    s.keys("C-z", see=r"148 OUT> $")
    s.type("fg", r"fg\nrun[^\n]*\n")
    s.type("second", r"\nsecond\n0 OUT> $")
    s.type("run bash -c 'read -sp \"more: \" x; echo no'", r"\nmore: $")
    s.keys("C-c", see=r"130 OUT> $")
    s.type("stty -a | grep -c ' echo '", r"\n1\n0 OUT> $")


def names(s: Screen) -> None:
    s.type('[ "$(run tty)" = "$(tty)" ]; echo $?', r"\n0\n0 OUT> $")
    s.type("""run sh -c 'tty < /dev/null; [ $(ps -o tty= -p $$) = $(tty | cut -d/ -f3-) ]; echo $?'""", P)
    s.type("""[ "$(run readlink /proc/self/fd/0)" = "$(tty)" ]; echo $?""", r"\n0\n0 OUT> $")
    s.type("run sh -c 'echo a > /dev/tty; echo b > $(tty); script -qc tty /dev/null | grep -c /pts/'", r"a\nb\n1\n0 OUT> $")
    s.keys("C-l", see="^0 OUT> $")


@pytest.mark.parametrize("scenario", [vim, less, multiplexer, repl, passwords, names], ids=lambda f: f.__name__)
def test_program(scenario, platform: str, tmp_path: Path) -> None:
    needs({"repl": "python3", "passwords": "python3", "names": "script", "multiplexer": "tmux"}.get(
        scenario.__name__, scenario.__name__
    ))  # fmt: skip
    same_screen(scenario, platform, tmp_path)


def test_top(platform: str, tmp_path: Path) -> None:
    """Its screen is another each time; natively and here it comes, follows the window's size, and goes."""
    needs("top")

    def scenario(s: Screen) -> str:
        s.type("run top -d 100", r"top - .*PID USER")
        s.resize(70, 10)
        s.keys("h", see=r"Type 'q' or <Esc>")
        s.keys("Escape", see=r"top - .*PID USER")
        s.keys("q", see=P)
        s.keys("C-l", see="^0 OUT> $")
        s.type("stty size; stty -a | grep -c ' echo '", r"10 70\n1\n0 OUT> $")
        return s.text()

    words = ["env"], prefix(platform)
    native, emulated = (shown(scenario, tmp_path / str(i), list(w)) for i, w in enumerate(words))
    assert emulated == native


def _ends(handle: int) -> bool:
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(10_000))


def all_end(running: list[psutil.Process]) -> bool:
    """Whether all of them end within the patience."""
    handles = []
    for process in running:
        try:
            handles.append(os.pidfd_open(process.pid))
        except ProcessLookupError:
            continue
    try:
        return all(_ends(handle) for handle in handles)
    finally:
        for handle in handles:
            os.close(handle)


def processes(s: Screen) -> list[psutil.Process]:
    return psutil.Process(s.pid).children(recursive=True)


@pytest.mark.parametrize("shell", ["bash --norc", "dash"])
@pytest.mark.parametrize("victim", ["guest", "trapline"])
def test_the_terminal_after_a_kill(victim: str, shell: str, platform: str, tmp_path: Path) -> None:
    """It is left as it was found, by trapline or by its guardian, whether the shell looks after that or not."""
    needs("dash")
    with Screen(tmp_path / "place", prefix(platform), shell) as s:
        s.type("stty -a > before", P)
        s.type("run sh -c 'stty raw -echo; echo up; exec sleep 100'", r"\n *up\n")
        running = processes(s)
        named = {p.name(): p for p in running}
        target = named["sleep"] if victim == "guest" else next(p for p in running if p.ppid() == s.pid)
        target.send_signal(signal.SIGKILL)
        assert all_end(running)
        s.wait(r"137 OUT> $")
        s.type("stty -a > after; cmp before after; echo same $?", r"same 0\n0 OUT> $")
        s.type("cat", r"cat\n$")
        s.type("echoed", r"echoed\nechoed\n")
        s.keys("C-d", see=P)


def test_killed_in_the_background(platform: str, tmp_path: Path) -> None:
    """The terminal is the shell's, which edits a line: nobody else touches it."""
    with Screen(tmp_path / "place", prefix(platform)) as s:
        s.type("run sh -c 'echo up > f; exec sleep 100' &", P)
        s.until((s.place / "f").exists, "it runs")
        running = processes(s)
        s.type("half", enter=False)
        next(p for p in running if p.ppid() == s.pid).send_signal(signal.SIGKILL)
        assert all_end(running)
        s.keys("Home", "e", "c", "h", "o", "Space", see=r"OUT> echo half")
        s.keys("Enter", see=r"\nhalf\n.*\d+ OUT> $")


def test_a_killed_script_leaves_the_terminal_to_its_caller(platform: str, tmp_path: Path) -> None:
    """A shell in the sandbox had the foreground, and trapline, in a script, was not there to take it back."""
    with Screen(tmp_path / "place", prefix(platform)) as s:
        front = "until [ $(ps -o tpgid= -p $$) = $(ps -o pgid= -p $$) ]; do :; done"
        s.type(f"sh -c 'run bash --norc; {front}; read x; echo got $x'", P)
        s.type("PS1='IN> '", r"IN> $")
        script = next(p for p in processes(s) if p.ppid() == s.pid)
        trapline = next(p for p in processes(s) if p.ppid() == script.pid)
        running = trapline.children(recursive=True)
        trapline.send_signal(signal.SIGKILL)
        assert all_end(running)
        s.type("line", pattern=r"got line\n0 OUT> $")


def test_hangup(platform: str, tmp_path: Path) -> None:
    with Screen(tmp_path / "place", prefix(platform)) as s:
        s.type("run sh -c 'trap \"echo hup > f; exit\" HUP; echo up; while :; do sleep 0.05; done'", r"\nup\n")
        running = processes(s)
        s.close()
        assert all_end(running)
        assert (s.place / "f").read_text() == "hup\n"


def test_session_leader(platform: str, tmp_path: Path) -> None:
    """trapline as the window's own process, as a terminal emulator or sshd starts a program."""
    program = "sh -c 'trap \"echo hup > f; exit\" HUP; echo up; ps -o pgid= -p $$; read x; echo got $x; "
    program += "while :; do sleep 0.05; done'"
    with Screen(tmp_path / "place", prefix(platform), "bash --norc") as s:
        words = " ".join(prefix(platform))
        s.type(f"exec {words} {program}", r"\nup\n *2\n")
        assert psutil.Process(s.pid).cmdline()[:2] == prefix(platform)[:2]
        s.keys("C-z")  # nobody could continue it: as of an orphaned group, nothing happens
        s.type("line", pattern=r"got line\n")
        running = processes(s)
        s.close()
        assert all_end(running)
        assert (s.place / "f").read_text() == "hup\n"


def test_nothing_is_left(platform: str, tmp_path: Path) -> None:
    with Screen(tmp_path / "place", prefix(platform)) as s:
        s.type("run bash --norc", P)
        s.type("sleep 100 & up", r"\nup\n$")
        s.keys("C-z", see=P)
        running = processes(s)
    assert all_end(running)
