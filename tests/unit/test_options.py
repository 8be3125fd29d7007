"""From a command line of `do` to DoOptions, and the verbs' entry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from trapline.sentry.cli import do, doctor, restore
from trapline.sentry.cli.flags import UsageError, parse_mixed
from trapline.sentry.cli.main import VERBS, main
from trapline.sentry.options import DoOptions, RestoreOptions, StraceOptions


def made(*words: str) -> DoOptions:
    result = do.options(list(words))
    assert result is not None
    return result


def test_defaults() -> None:
    assert made("true") == DoOptions(command=["true"])


def test_everything(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "file").touch()
    line = f"""
        --rootfs={tmp_path}/root --cwd w/../x --env A=1 --env B= --volume {tmp_path}:/d:ro
        --volume {tmp_path}/file --network host --platform=ptrace --cpus 1 --overlay none --log {tmp_path}/log
        --log-format json --debug --state-dir {tmp_path}/s --stats --stats-json {tmp_path}/j --clock-rate 0.5
        --without perf_event --without addfd -- --odd --debug
    """
    options = made(*line.split())
    assert options == DoOptions(
        command=["--odd", "--debug"],
        rootfs=f"{tmp_path}/root",
        cwd="/x",
        env=["A=1", "B="],
        volumes=[(str(tmp_path), "/d", True), (f"{tmp_path}/file", f"{tmp_path}/file", False)],
        network="host",
        platform="ptrace",
        cpus=1,
        overlay="none",
        log=f"{tmp_path}/log",
        log_format="json",
        debug=True,
        state_dir=f"{tmp_path}/s",
        stats=True,
        stats_json=f"{tmp_path}/j",
        clock_rate=(1, 2),
        without={"perf_event", "addfd"},
    )
    assert msgspec.json.decode(msgspec.json.encode(options), type=DoOptions) == options


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    options = made("--cwd", "sub", "--volume", "sub", "--log", "l", "x")
    assert options.cwd == f"{tmp_path}/sub"
    assert options.volumes == [(f"{tmp_path}/sub", f"{tmp_path}/sub", False)]
    assert options.log == f"{tmp_path}/l"


def test_hooks(tmp_path: Path) -> None:
    options = made("--checkpoint-dir", str(tmp_path), "--save-hook", "sh -c 'a  b'", "--hook-timeout", "0.5", "x")
    assert options.checkpoint_dir == str(tmp_path)
    assert (options.save_hook, options.restore_hook, options.hook_timeout) == (["sh", "-c", "a  b"], [], 0.5)


def restored(*words: str) -> RestoreOptions:
    return restore.restore_options(*parse_mixed(restore.VERBS[0].flags, list(words)))


def test_restore(tmp_path: Path) -> None:
    assert restored("--image-path", str(tmp_path)) == RestoreOptions(str(tmp_path))
    line = f"""
        --image-path={tmp_path} --background --clock-continue box -d --pid-file {tmp_path}/pid --platform ptrace
        --state-dir {tmp_path}/s --log {tmp_path}/log --log-format json --debug --stats --stats-json {tmp_path}/j
        --core-dir {tmp_path} --watchdog 0 --checkpoint-dir {tmp_path} --restore-hook true --hook-timeout 7
        --without addfd --strace --owned-only
    """
    assert restored(*line.split()) == RestoreOptions(
        image_path=str(tmp_path),
        id="box",
        background=True,
        clock_continue=True,
        detach=True,
        pid_file=f"{tmp_path}/pid",
        platform="ptrace",
        state_dir=f"{tmp_path}/s",
        checkpoint_dir=str(tmp_path),
        restore_hook=["true"],
        hook_timeout=7.0,
        log=f"{tmp_path}/log",
        log_format="json",
        debug=True,
        stats=True,
        stats_json=f"{tmp_path}/j",
        core_dir=str(tmp_path),
        watchdog=0.0,
        strace=StraceOptions(owned_only=True),
        without={"addfd"},
    )


def test_a_restore_changes_what_the_image_has() -> None:
    saved = DoOptions(["x"], platform="ptrace", debug=True, checkpoint_dir="/a", save_hook=["s"], core_dir="/c")
    RestoreOptions("/i", log="/l").apply(saved)
    assert saved == DoOptions(["x"], platform="ptrace", log="/l", checkpoint_dir="/a", save_hook=["s"])
    RestoreOptions("/i", platform="seccomp", checkpoint_dir="/b", save_hook=[], hook_timeout=3.0).apply(saved)
    assert saved == DoOptions(["x"], checkpoint_dir="/b", hook_timeout=3.0)


@pytest.mark.parametrize(
    ("text", "rate"), [("0.5", (1, 2)), ("1/2", (1, 2)), ("2", (2, 1)), ("1.25", (5, 4)), ("4/6", (2, 3))]
)
def test_clock_rate(text: str, rate: tuple[int, int]) -> None:
    assert made("--clock-rate", text, "x").clock_rate == rate


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "there is no command"),
        (["--debug"], "there is no command"),
        ([""], "the command is empty"),
        (["--env", "A", "x"], "--env takes NAME=VALUE, not 'A'"),
        (["--env", "=A", "x"], "--env takes NAME=VALUE"),
        (["--volume", "/nowhere/at/all", "x"], "--volume needs a file or directory that exists"),
        (["--volume", "/usr:relative", "x"], "--volume takes an absolute path in the sandbox"),
        (["--volume", "/usr:/", "x"], "--volume cannot take the place of the root"),
        (["--volume", "/usr:/a:rx", "x"], "--volume takes SRC[:DST[:ro]]"),
        (["--rootfs", "/etc/passwd", "x"], "--rootfs takes a directory that exists"),
        (["--log", "/nowhere/log", "x"], "--log takes a file in a directory that exists"),
        (["--cpus", "0", "x"], "--cpus takes a number of CPUs"),
        (["--cpus", "-1", "x"], "--cpus takes a number of CPUs"),
        (["--cpus", "99999", "x"], "that trapline may use here, not '99999'"),
        (["--clock-rate", "0", "x"], "--clock-rate takes a positive number"),
        (["--clock-rate", "1/0", "x"], "--clock-rate takes a positive number"),
        (["--clock-rate", "fast", "x"], "--clock-rate takes a positive number"),
        (["--network", "hots", "x"], "--network takes none or host, not 'hots': did you mean host?"),
        (["--without", "perf_evnt", "x"], "there is no feature perf_evnt: did you mean perf_event?"),
    ],
)
def test_mistakes(words: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        do.options(words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_environment() -> None:
    options = DoOptions(command=["x"], env=["A=1", "B=x=y", "A=2"])
    assert options.environment({b"A": b"0", b"C": b"\xff"}) == {b"A": b"2", b"B": b"x=y", b"C": b"\xff"}


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == main(["help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    assert main(["help", "do"]) == main(["do", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--volume" in shown and "--clock-rate" not in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dot"], "did you mean do?"),
        (["cat"], "to run it, trapline do cat"),
        (["ls"], "did you mean list?"),
        (["--verson"], "there is no flag --verson"),
        (["help", "dor"], "did you mean do?"),
        (["do", "--debgu", "x"], "trapline do: there is no flag --debgu: did you mean --debug?"),
        (["doctor", "x"], "'x' is too much"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("\n") == 1


def test_start_is_light() -> None:
    """What the way to `do` imports costs every run: nothing heavy may come in by the side."""
    code = "import sys, trapline.sentry.cli.do; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    loaded = set(output.stdout.split())
    unwanted = {"argparse", "logging", "json", "subprocess", "difflib", "trio", "ctypes", "asyncio"}
    assert not loaded & unwanted


def test_doctor_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--format", "json"])
    shown = msgspec.json.decode(capsys.readouterr().out)
    assert {"able", "host", "features"} == set(shown)
    assert all({"name", "available", "needed", "instead", "advice"} <= set(row) for row in shown["features"])


def test_doctor_without_what_is_needed() -> None:
    rows = doctor.examine(["ptrace", "sync_wake_up"])
    by_name = {row["name"]: row for row in rows}
    assert by_name["ptrace"]["needed"] and not by_name["ptrace"]["available"]
    assert not by_name["sync_wake_up"]["needed"]
    text = doctor.table(rows, False)
    assert "NO   ptrace" in text and "no   sync_wake_up" in text and "sandboxes cannot run here" in text
