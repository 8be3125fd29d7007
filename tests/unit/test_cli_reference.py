"""docs/cli.md and shell completion, made from the verbs' definitions."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trapline.sentry.cli import reference
from trapline.sentry.cli.main import VERBS, main

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == reference.markdown(), "run: make docs"


def test_every_verb_is_declared_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    for command in reference.commands():
        assert command.usage.startswith(f"trapline {command.name}")
        assert command.summary.endswith(".")
        assert command.examples or command.name in ("doctor",), command.name
        assert all(flag.help for flag in command.flags), command.name
        assert main([command.name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: {command.usage}")
        assert all(flag.name in shown for flag in command.flags)


@pytest.fixture
def completed(tmp_path: Path) -> object:
    """What a real bash offers for a line; `list` says that there are boxes."""
    script = tmp_path / "completion"
    script.write_text(reference.bash())
    program = tmp_path / "bin" / "trapline"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n[ \"$1 $2\" = 'list --quiet' ] && printf 'box\\nother\\n'\n")
    program.chmod(0o755)
    (tmp_path / "here" / "a dir").mkdir(parents=True)
    (tmp_path / "here" / "file.json").touch()

    def complete(line: str) -> list[str]:
        driver = r"""
            source "$1"
            line=$2
            eval "COMP_WORDS=($line)"
            # What readline does: = is a word of its own, and a space at the end begins a new word.
            words=()
            for word in "${COMP_WORDS[@]}"; do
                case $word in --*=*) words+=("${word%%=*}" = ${word#*=}) ;; *) words+=("$word") ;; esac
            done
            [ "${line% }" = "$line" ] || words+=("")
            COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1)) COMP_LINE=$line COMP_POINT=${#line}
            _trapline
            printf '%s\n' "${COMPREPLY[@]}"
        """
        done = subprocess.run(
            ["bash", "--norc", "-c", driver, "bash", str(script), line],
            capture_output=True, text=True, timeout=20, cwd=tmp_path / "here",
            env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert done.returncode == 0 and done.stderr == "", done
        return sorted(done.stdout.split("\n")[:-1]) if done.stdout != "\n" else []

    return complete


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trapline pa", ["pause"]),
        ("trapline ", sorted([*VERBS, "help", "--root", "--log", "--log-format", "--debug", "--debug-log", "--platform",
                              "--network", "--version"])),
        ("trapline --root /x st", ["start", "state", "statefile"]),
        ("trapline statefile a", ["a dir"]),
        ("trapline statefile --g", ["--get"]),
        ("trapline kill --p", ["--pgid", "--pid"]),
        ("trapline kill ", ["box", "other"]),
        ("trapline kill b", ["box"]),
        ("trapline kill --pid 7 box US", ["USR1", "USR2"]),
        ("trapline kill box --a", ["--all"]),
        ("trapline do --platform ", ["ptrace", "seccomp"]),
        ("trapline do --platform=p", ["ptrace"]),
        ("trapline do --platform=ptrace --netw", ["--network"]),
        ("trapline run --bundle ", ["a dir"]),
        ("trapline exec --process f", ["file.json"]),
        ("trapline exec --env A=1 o", ["other"]),
        ("trapline do -- bas", None),
        ("trapline do bas", None),
        ("trapline do cat f", ["file.json"]),
        ("trapline list --format ", ["json", "table"]),
        ("trapline completion f", ["fish"]),
        ("trapline help dele", ["delete"]),
        ("trapline state box ", []),
    ],
)  # fmt: skip
def test_bash(completed: object, line: str, expected: list[str] | None) -> None:
    found = completed(line)  # type: ignore[operator]
    if expected is None:
        assert "bash" in found and "basename" in found
    else:
        assert found == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_good_shell(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    for verb in VERBS:
        assert verb in script.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
@pytest.mark.parametrize("way", ["of fpath", "sourced"])
@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("trapline che", "trapline checkpoint "),
        ("trapline --root /x stat", "trapline --root /x state"),
        ("trapline kill --pg", "trapline kill --pgid="),
        ("trapline do --platform=se", "trapline do --platform=seccomp "),
        ("trapline completion f", "trapline completion fish "),
        ("trapline help dele", "trapline help delete "),
        ("trapline kill b", "trapline kill box "),
        ("trapline kill box QU", "trapline kill box QUIT "),
    ],
)
def test_zsh(way: str, typed: str, becomes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At a prompt, with the first Tab."""
    assert main(["completion", "zsh"]) == 0
    (tmp_path / "_trapline").write_text(capsys.readouterr().out)
    program = tmp_path / "bin" / "trapline"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n[ \"$*\" = 'list --quiet' ] && printf 'box\\nother\\n'\n")
    program.chmod(0o755)
    source = "source _trapline; " if way == "sourced" else ""
    (tmp_path / ".zshrc").write_text(
        f"fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -D; {source}"
        "show() { print -r -- \"<$BUFFER>\"; BUFFER=; exit }; zle -N show; bindkey '^X' show; print ready; PS1=\n"
    )
    pid, terminal = pty.fork()
    if not pid:
        environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "ZDOTDIR": str(tmp_path), "TERM": "dumb"}
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-i", "-d"], environment)
    shown = ""

    def until(pattern: str) -> None:
        nonlocal shown
        while not re.search(pattern, shown):
            assert select.select([terminal], [], [], 20)[0], shown
            shown += os.read(terminal, 4096).decode()

    try:
        until("ready")
        os.write(terminal, typed.encode() + b"\t\x18")
        until("<.*>")
    finally:
        os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    found = re.search(r"<(.*)>", shown)
    assert found is not None and found[1].rstrip() == becomes.rstrip()


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 0
    script = tmp_path / "trapline.fish"
    script.write_text(capsys.readouterr().out)
    for typed, expected in (("che", "checkpoint"), ("do --platf", "--platform"), ("checkpoint --compression z", "zstd")):
        done = subprocess.run(
            ["fish", "-c", f"source {script}; complete -C 'trapline {typed}'"], capture_output=True, text=True, check=True,
            env={**os.environ, "HOME": str(tmp_path)},
        )  # fmt: skip
        assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == [expected]


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == main(["completion", "bsh"]) == 2
    assert "did you mean bash?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["state", "box"], ["kill", "box"], ["exec", "box", "true"], ["delete", "-f", "box"]])
def test_clients_start_light(words: list[str], tmp_path: Path) -> None:
    code = "import sys\nfrom trapline.sentry.cli.main import main\n"
    code += f"main({words[:1]!r} + ['--state-dir={tmp_path}'] + {words[1:]!r})\nprint(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    loaded = set(done.stdout.split())
    assert "trapline.sentry.control.client" in loaded
    assert not loaded & {"trio", "psutil", "msgspec", "argparse", "subprocess", "ctypes", "typing"}
