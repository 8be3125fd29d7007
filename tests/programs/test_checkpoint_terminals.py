"""Shells on terminals, saved while somebody sits there, and detached ones that are attached to again."""

from __future__ import annotations

import os
import re

import pytest
from boxes import Boxes, until
from typist import Typist

SHELL = ("env", "PS1=$? OUT> ", "bash", "--norc", "--noediting")
#: What says when ^C comes to it, and not to the shell.
WAITS = "sh -c 'echo it is ${x:+}up; exec sleep 300'"
#: A prompt, which says what the last command ended with.
PROMPT = "{} OUT> "


def save(boxes: Boxes, image: str, *more: str) -> None:
    boxes.good("checkpoint", "--image-path", image, *more, "box")
    if not more:
        boxes.good("delete", "box")


def use(at: Typist, number: int) -> None:
    """What a terminal's session is for: job control, the size, keys, lines that are edited."""
    at.send(f"echo $((x + {number})) $(stty size) $(tty)")
    at.expect(f"{40 + number} 30 100 /dev/pts/0")
    at.expect(PROMPT.format(0))
    at.send(WAITS)
    at.expect("it is up")
    at.interrupt()
    at.expect(PROMPT.format(130))
    at.send("sleep 200 & jobs; kill %%; wait; true")
    at.expect("Running")
    at.expect(PROMPT.format(0))


def begin(at: Typist) -> None:
    at.expect(PROMPT.format(0))
    at.send("x=40")
    at.expect(PROMPT.format(0))


def test_bash_left_running(boxes: Boxes) -> None:
    at = Typist(boxes.command("run", "-t", "--id", "box", "--", *SHELL), size=(30, 100))
    begin(at)
    for number in range(2):
        at.type("echo typ")
        at.expect("echo typ")
        save(boxes, f"image{number}", "--leave-running")
        at.send("ed; cat")
        at.expect("typed")
        at.send("through cat")
        at.expect("through cat\r\nthrough cat")
        save(boxes, f"image-cat{number}", "--leave-running")
        at.type("again\n\4")
        at.expect("again\r\nagain")
        at.expect(PROMPT.format(0))
        use(at, number)
    at.send("exit 7")
    assert at.end() == 7


def test_bash_restored_on_another_terminal(boxes: Boxes) -> None:
    at = Typist(boxes.command("run", "-t", "--id", "box", "--", *SHELL), size=(30, 100))
    begin(at)
    for number in range(3):
        at.send("cat")
        at.expect("cat")
        at.send("seen")
        at.expect("seen\r\nseen")
        save(boxes, f"image{number}")
        assert at.end() in (137, -9)
        at = Typist(boxes.command("restore", "--id", "box", "--image-path", f"image{number}"), size=(30, 100))
        at.send("more")
        at.expect("more\r\nmore")
        at.type("\4")
        at.expect(PROMPT.format(0))
        use(at, number)
    at.send("exit 7")
    assert at.end() == 7


def test_bash_attached_to_again(boxes: Boxes) -> None:
    """A detached sandbox's terminal is the sentry's, also after a restore."""
    boxes.begin("run", "-d", "-t", "--id", "box", "--", *SHELL)
    at = Typist(boxes.command("attach", "box"), size=(30, 100))
    begin(at)
    for number in range(2):
        at.send("cat")
        at.expect("cat")
        at.send("seen")
        at.expect("seen\r\nseen")
        save(boxes, f"image{number}")
        at.end()
        boxes.begin("restore", "-d", "--id", "box", "--image-path", f"image{number}")
        at = Typist(boxes.command("attach", "box"), size=(30, 100))
        at.send("again")
        at.expect("again\r\nagain")  # twice: it is attached, so that ^C is for those inside
        at.interrupt()
        at.expect(PROMPT.format(130))
        use(at, number)
    at.send("exit 7")
    at.end()
    until(lambda: boxes.state_of("box")["status"] == "stopped", "its end")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_detached_sandbox(boxes: Boxes, terminal: bool) -> None:
    """What it writes goes to the log of the sandbox that it is in; its standard input is no device of the host's."""
    script = 'i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); echo "line $i"; sleep 0.01; done'
    boxes.begin("run", "-d", *(["-t"] if terminal else []), "--id", "box", "--", "sh", "-c", script)
    log = boxes.state / "box" / "output.log"
    until(lambda: b"line 20" in log.read_bytes(), "it writes")
    boxes.good("checkpoint", "--image-path", "image", "box")
    first = log.read_bytes()
    for name in ("one", "two"):
        boxes.begin("restore", "-d", "--id", name, "--image-path", "image")
    for name in ("one", "two"):
        other = boxes.state / name / "output.log"
        until(lambda other=other: len(other.read_bytes().split()) > 20, "it goes on")
        numbers = [int(n) for n in re.findall(rb"line (\d+)", first + other.read_bytes().rpartition(b"\n")[0])]
        assert numbers == list(range(1, len(numbers) + 1))
    assert os.listdir("image")
