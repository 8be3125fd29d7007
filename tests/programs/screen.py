"""A real terminal from outside: a window of tmux with a shell in it, which the tests type into and look at.

Each scenario runs twice, natively and with `run` meaning `trapline do`; the screens must be the same at the end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from harness import program, trapline_command

PATIENCE = 20  # seconds until something that must show counts as not showing


class Screen:
    """One window with a shell, whose prompt is `STATUS OUT> `. `run` there is the command of the case."""

    def __init__(self, place: Path, prefix: list[str], shell: str = "bash --norc") -> None:
        program("tmux")
        self.place = place
        place.mkdir(exist_ok=True)
        tools = place / "tools"
        tools.mkdir()
        run = tools / "run"
        words = " ".join(f"'{word}'" for word in prefix)
        run.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        run.chmod(0o755)
        kept = ("HOME", "LANG", "USER", "PYTHONPATH", "VIRTUAL_ENV")
        up = tools / "up"  # a program that says when it runs, and can be stopped or killed then
        up.write_text("#!/bin/sh\necho up\nexec sleep 100\n")
        up.chmod(0o755)
        self.environment = {name: os.environ[name] for name in kept if name in os.environ}
        self.environment |= {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PS1": "$? OUT> ",
            "HISTFILE": "",
            "TMUX_TMPDIR": str(place),
            "SHELL": "/bin/sh",
            "LC_ALL": "C.UTF-8",
            "PYTHON_HISTORY": os.devnull,
            "PYTHON_BASIC_REPL": "1",
            "LESSHISTFILE": "-",
            "INPUTRC": str(tools / "inputrc"),
        }
        (tools / "inputrc").write_text("set enable-bracketed-paste off\n")
        self._tmux("new-session", "-d", "-x", "80", "-y", "24", "-c", str(place), f"exec {shell}")
        self.pid = int(self._tmux("display-message", "-p", "#{pane_pid}"))
        self.wait(r"OUT> $")

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-f", os.devnull, *words], env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done
        return done.stdout

    def text(self) -> str:
        """What the window shows, down to the line of the cursor; a space after what stands in that, as after a
        prompt."""
        row, _, shown = self._tmux("display-message", "-p", "#{cursor_y}", ";", "capture-pane", "-p").partition("\n")
        lines = shown.split("\n")[: int(row) + 1]
        return "\n".join(lines) + (" " if lines[-1] else "")

    def whole(self) -> str:
        """The window, also what is below the cursor, without the empty lines at its end."""
        return self._tmux("capture-pane", "-p").rstrip()

    def all(self) -> str:
        """What it has shown, too."""
        return self._tmux("capture-pane", "-p", "-S", "-").rstrip()

    def wait(self, pattern: str) -> None:
        """Until the screen matches, down to the cursor or as a whole; `$` is where the cursor's line ends."""
        self.until(lambda: re.search(pattern, self.text(), re.S) or re.search(pattern, self.whole(), re.S), pattern)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that does not show."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"not to be seen: {what}\n{self.whole()}"
            time.sleep(0.01)

    def type(self, text: str, pattern: str = "", enter: bool = True, echo: bool = True) -> None:
        """Type a line, and wait for what it shows: not before it shows itself, or what was there would count."""
        self._tmux("send-keys", "-l", "--", text)
        if echo:
            self.until(lambda: "".join(self.text().split()).endswith("".join(text.split())), text)
        if enter:
            self._tmux("send-keys", "Enter")
        if pattern:
            self.wait(pattern)

    def keys(self, *names: str, see: str = "") -> None:
        """Press keys by tmux's names, and wait for what they show."""
        self._tmux("send-keys", *names)
        if see:
            self.wait(see)

    def front(self, name: str = "") -> None:
        """Until a program of this name, or anything but the window's shell, is in the foreground: a shell says what it
        brings there before it does so, and a key that comes in between is the shell's."""

        def names() -> list[str]:
            group = int(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[5])
            found = []
            for process in psutil.Process(self.pid).children(recursive=True):
                try:
                    if os.getpgid(process.pid) == group != self.pid:
                        found += ["", process.name()]
                except (ProcessLookupError, psutil.NoSuchProcess):
                    continue
            return found

        self.until(lambda: name in names(), f"{name or 'something'} is in the foreground")

    def resize(self, columns: int, rows: int) -> None:
        """Another size of the window, which its terminal has afterwards: tmux tells it that some time later."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))
        terminal = os.open(self._tmux("display-message", "-p", "#{pane_tty}").strip(), os.O_RDWR | os.O_NOCTTY)
        try:
            self.until(lambda: os.get_terminal_size(terminal) == (columns, rows), f"{columns} by {rows}")
        finally:
            os.close(terminal)

    def close(self) -> None:
        """The end of the terminal, whatever runs on it."""
        subprocess.run(["tmux", "kill-server"], env=self.environment, capture_output=True)

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


Scenario = Callable[[Screen], object]
_native: dict[str, str] = {}


def prefix(platform: str, *flags: str) -> list[str]:
    """The words by which `run` starts a command under trapline."""
    assert sys.executable
    return trapline_command("do", f"--platform={platform}", *flags, "--")


def shown(scenario: Scenario, place: Path, words: list[str]) -> str:
    """The screen that a scenario ends with."""
    with Screen(place, words) as screen:
        result = scenario(screen)
        text = result if isinstance(result, str) else screen.all()
    # Ids of processes, and names of terminals, are those of the run.
    return re.sub(r"(?m)^\[(\d)\] \d+$", r"[\1] PID", text).replace(str(place), "PLACE")


def same_screen(scenario: Scenario, platform: str, place: Path, *flags: str) -> str:
    """Natively and under trapline: the same at the end. The native run is made once for both platforms."""
    name = f"{scenario.__module__}.{scenario.__qualname__}"
    if name not in _native:
        _native[name] = shown(scenario, place / "native", ["env"])
    actual = shown(scenario, place / "trapline", prefix(platform, *flags))
    assert actual == _native[name], f"native:\n{_native[name]}\n\ntrapline:\n{actual}"
    return actual
