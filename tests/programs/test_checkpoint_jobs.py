"""A shell under `do`, in a window of tmux, that is saved with its jobs and restored in another window: it has that
terminal as it had the one before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from boxes import Boxes
from harness import trapline_command
from screen import Screen


@pytest.fixture
def boxes(platform: str, tmp_path: Path) -> Iterator[Boxes]:
    found = Boxes(platform, tmp_path)
    yield found
    found.close()


def window(boxes: Boxes, name: str) -> Screen:
    """In which `run` is trapline, with the state of `boxes`."""
    return Screen(boxes.path / name, trapline_command("--root", str(boxes.state), "--platform", boxes.platform))


def saved(boxes: Boxes, screen: Screen, image: str) -> None:
    name = boxes.good("list", "--quiet").strip()
    boxes.good("checkpoint", "--image-path", f"{boxes.path}/{image}", name)
    screen.wait(r"137 OUT> $")


def jobs(screen: Screen) -> None:
    """What a shell's user does with them."""
    screen.type("up", "up\n$")
    screen.front("sleep")
    screen.keys("C-c", see=r"\^C\n130 IN> $")
    screen.type("up", "up\n$")
    screen.front("sleep")
    screen.keys("C-z", see=r"Stopped +up\n148 IN> $")
    screen.type("bg; jobs", r"Running +up.*0 IN> $")
    screen.type("fg %3", "up\n$")
    screen.front("sleep")
    screen.keys("C-c", see=r"130 IN> $")


START = "run do -- env PS1='$? IN> ' bash --norc --noprofile"


def test_bash_with_jobs(boxes: Boxes) -> None:
    with window(boxes, "one") as one:
        one.type(START, r"0 IN> $")
        one.type("x=4; up", "up\n$")
        one.front("sleep")
        one.keys("C-z", see="Stopped +up\n148 IN> $")
        one.type("sleep 300 &", r"148 IN> $|0 IN> $")
        one.type("echo $((x + 1", enter=False)
        saved(boxes, one, "one-image")
        one.type("echo the shell is here", "the shell is here\n0 OUT> $")
    for number, words in enumerate((["restore", "--image-path"], ["restore", "--id", "named", "--image-path"])):
        image, after = f"{boxes.path}/{'one' if not number else 'two'}-image", "two-image"
        with window(boxes, f"other{number}") as other:
            other.resize(100, 30)
            other.type(f"run {' '.join(words)} {image}", r"IN> echo \$\(\(x \+ 1$")
            other.type(f" + {number})); stty size", rf"{5 + number}\n30 100\n0 IN> $")
            other.type("jobs", r"Stopped +up\n.*Running +sleep 300.*0 IN> $")
            other.type("fg %1", "up\n$")
            other.front("sleep")
            other.keys("C-z", see="Stopped +up\n148 IN> $")
            jobs(other)
            other.resize(90, 20)
            other.type("stty size", "20 90\n0 IN> $")
            other.type("echo $((x + 1", enter=False)
            if not number:
                saved(boxes, other, after)
            else:
                other.keys("C-u")
                other.type("kill %1 %2; exit 7", "7 OUT> $")
                other.type("stty -a | grep -o ' echo '", " echo\n0 OUT> $")


def test_a_program_that_is_a_job_itself(boxes: Boxes) -> None:
    """It is stopped and continued by the shell that restored it, also where that put it into the background."""
    with window(boxes, "one") as one:
        one.type("run do up", "up\n$")
        one.front("sleep")
        saved(boxes, one, "image")
        one.type("run restore --image-path ../image")
        one.front("sleep")
        one.keys("C-z", see=r"Stopped +.*148 OUT> $")
        one.type("fg")
        one.front("sleep")
        one.keys("C-c", see=r"\^C\n130 OUT> $")
        one.type("clear")
        one.type("run do sh -c 'echo reads; read x; echo got $x; read y; echo and $y'", "reads\n$")
        one.front("sh")
        saved(boxes, one, "reader")
        one.type("run restore --image-path ../reader & sleep 0.5", "OUT> $")
        one.type("jobs", r"Stopped +run restore [^\n]+\n0 OUT> $")
        one.type("fg")
        one.front("sh")
        one.type("first", "got first\n$")
        one.type("second", "and second\n0 OUT> $")


@pytest.mark.long
def test_a_terminal_of_the_sandboxs_own(boxes: Boxes) -> None:
    """`do -t`: jobs are those of the shell inside, and of the window there is only its size."""
    with window(boxes, "one") as one:
        one.type(START.replace("do --", "do -t --"), r"0 IN> $")
        one.type("x=4; up", "up\n$")
        one.keys("C-z", see="Stopped +up\n148 IN> $")
        saved(boxes, one, "image")
    with window(boxes, "two") as two:
        two.resize(100, 30)
        two.type("run restore --image-path ../image")
        two.front()
        two.type("echo $((x + 1)); stty size", r"5\n30 100\n0 IN> $")
        two.type("fg", "up\n$")
        two.keys("C-c", see=r"\^C\n130 IN> $")
        two.resize(90, 20)
        two.type("stty size", "20 90\n0 IN> $")
        two.type("exit 7", "7 OUT> $")
