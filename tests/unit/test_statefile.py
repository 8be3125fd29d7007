"""`trapline statefile`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from image_samples import NAME, SIZE, make

from trapline.sentry.cli.main import main


@pytest.fixture
def target(tmp_path: Path) -> str:
    make(tmp_path / "base")
    make(tmp_path / "image", "zstd", tmp_path / "base")
    return str(tmp_path / "image")


def test_text(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["statefile", target]) == 0
    shown = capsys.readouterr().out
    assert target in shown and "compression zstd" in shown and "not checked: --verify" in shown
    assert "ghosts/1" in shown and "8 (ended)" not in shown and "(ended)" in shown
    assert f"{target[:-5]}base" in shown
    # What could act on a terminal, or cannot be printed, is a question mark.
    assert all(line.isprintable() for line in shown.splitlines()) and NAME not in shown
    assert main(["statefile", "--verify", target]) == 0
    assert "every block is right" in capsys.readouterr().out


def test_json(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["statefile", "--format", "json", target]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["manifest"]["command"] == ["sh", "-c", NAME] and found["manifest"]["checkpoint_count"] == 3
    assert found["pages"]["bytes"] == found["pages"]["own_bytes"] == SIZE + 4096
    assert [process["pid"] for process in found["processes"]] == [7, 8]
    assert found["processes"][0]["threads"] == [7, 9] and found["processes"][0]["pages"] == SIZE
    assert [os.path.basename(path) for path in found["parents"]] == ["base"]


def test_parts(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["statefile", "--list", target]) == 0
    names = capsys.readouterr().out.split()
    assert {"manifest", "kernel.timers", "guests.spaces", "runs"} <= set(names)
    for name in names:
        assert main(["statefile", "--get", name, target]) == 0
        json.loads(capsys.readouterr().out)
    for name, expected in (
        ("kernel.timers.itimer:7:0.next", 5),
        ("guests.spaces.1.mappings.0.end", 0x10000 + SIZE),
        ("guests.processes.0.threads.1.registers", bytes(216).hex()),
        ("guests.processes.0.threads.0.name", "sh"),
        ("manifest.files.ghosts/1.size", 6),
    ):
        assert main(["statefile", f"--get={name}", target]) == 0
        assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 2, "there is no directory"),
        (["a", "b"], 2, "'b' is too much"),
        (["--list", "--get=x", "a"], 2, "exclude one another"),
        (["/nowhere/at/all"], 128, "/nowhere/at/all: there is no such directory"),
        (["--get=kernel.timer", "IMAGE"], 128, "there is no timer in kernel: did you mean timers?"),
        (["--get=kernel.places.x", "IMAGE"], 128, "there is no x in kernel.places: see --list"),
        (["--get=zzz", "IMAGE"], 128, "there is no zzz in an image: see --list"),
    ],
)
def test_mistakes(
    target: str, capsys: pytest.CaptureFixture[str], words: list[str], status: int, says: str
) -> None:
    assert main(["statefile", *(target if word == "IMAGE" else word for word in words)]) == status
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize("verify", [False, True])
def test_damage(target: str, capsys: pytest.CaptureFixture[str], verify: bool) -> None:
    """Pages are looked at when they are asked for, of the parents too; all else always."""
    pages = Path(target).parent / "base" / "pages.img"
    content = bytearray(pages.read_bytes())
    content[5] ^= 1
    pages.write_bytes(content)
    assert main(["statefile", *(["--verify"] if verify else []), target]) == (128 if verify else 0)
    if verify:
        assert "base/pages.img: block 0, from 0x0 on, is damaged" in capsys.readouterr().err
    (Path(target) / "kernel.msgpack").unlink()
    assert main(["statefile", target]) == 128
    assert "kernel.msgpack: it is missing" in capsys.readouterr().err
