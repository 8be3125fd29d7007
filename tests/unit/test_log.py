"""Where messages go, and in which form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trapline.sentry.log import Log


@pytest.mark.parametrize("debug, said", [(False, ""), (True, "trapline: note\ntrapline: trouble\n")])
def test_without_a_file_only_debug_talks(capsys: pytest.CaptureFixture[str], debug: bool, said: str) -> None:
    """A guest's standard error is its own, and must be what it is natively."""
    log = Log(None, debug=debug)
    log.info("note")
    log.warning("trouble")
    log.close()
    out, err = capsys.readouterr()
    assert (out, err) == ("", said)


@pytest.mark.parametrize("debug", [False, True])
def test_what_a_program_cannot_have_is_said_in_any_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], debug: bool
) -> None:
    """On standard error, once each time; and in the file where there is one."""
    file = tmp_path / "log"
    for log in (Log(None, debug=debug), Log(str(file), debug=debug)):
        log.tell("no")
        log.close()
        assert capsys.readouterr() == ("", "trapline: no\n")
    assert file.read_text().endswith(" warning no\n")


def test_lines_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log"
    log = Log(str(file))
    log.info("note")
    log.warning("trouble")
    first, second = file.read_text().splitlines()  # at once: a killed sentry must not lose its last words
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} info note", first)
    assert second.endswith(" warning trouble")
    log.close()
    assert capsys.readouterr() == ("", "")


def test_lines_of_json(tmp_path: Path) -> None:
    """Each line is one object, whatever the message contains."""
    file = tmp_path / "log"
    log = Log(str(file), "json")
    log.warning('two\nlines, "quoted" ä')
    log.close()
    (line,) = file.read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert found["message"] == 'two\nlines, "quoted" ä' and found["level"] == "warning"
    assert found["time"] > 1_000_000_000


def test_a_file_is_added_to_and_closed_once(tmp_path: Path) -> None:
    file = tmp_path / "log"
    for text in ("one", "two"):
        log = Log(str(file))
        log.info(text)
        log.close()
        log.close()
    assert [line.split()[-1] for line in file.read_text().splitlines()] == ["one", "two"]


def test_a_disk_that_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    """Said once; the programs go on, and what they do is logged no more."""
    log = Log("/dev/full")
    log.warning("one")
    log.warning("two")
    log.tell("three")
    log.close()
    assert capsys.readouterr().err == (
        "trapline: the log cannot be written any more: No space left on device\ntrapline: three\n"
    )


def test_a_standard_error_that_is_gone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr", None)
    Log(None).tell("nobody hears it")
    full = open("/dev/full", "w")
    monkeypatch.setattr("sys.stderr", full)
    Log(None).tell("nor this")
    monkeypatch.undo()
    with pytest.raises(OSError):
        full.close()
    assert capsys.readouterr().out == ""
