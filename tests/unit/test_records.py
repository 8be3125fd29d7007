"""Named sandboxes on disk: how they are written down, found, and left when their sentry is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trapline.platform import state_dir
from trapline.sentry.control import records
from trapline.sentry.control.records import NoSuchSandbox, RecordError


def test_a_named_entry_from_its_start_to_its_end(tmp_path: Path) -> None:
    path = str(tmp_path)
    entry = state_dir.create(path, ["sh"], "ptrace", name="box", bundle="/b")
    record = records.find(path, "box")
    assert (record.pid, record.named, record.info["bundle"]) == (os.getpid(), True, "/b")
    assert record.is_live() and record.status() == "creating"
    entry.finish(3)
    record = records.find(path, "box")
    assert not record.is_live() and record.status() == "stopped"
    assert record.info["exit_status"] == 3 and record.info["ended"] >= record.info["created"]
    assert sorted(os.listdir(record.directory)) == ["info.json", "lock"]
    assert state_dir.remove_stale(path) == []
    assert [r.id for r in records.all_of(path)] == ["box"]
    entry.remove()
    assert os.listdir(path) == []


def test_two_of_one_name(tmp_path: Path) -> None:
    first = state_dir.create(str(tmp_path), ["sh"], name="box")
    with pytest.raises(state_dir.NameTaken, match="sandbox box already exists"):
        state_dir.create(str(tmp_path), ["sh"], name="box")
    first.finish(0)  # it has stopped, and keeps its name until it is deleted
    with pytest.raises(state_dir.NameTaken, match="sandbox box already exists"):
        state_dir.create(str(tmp_path), ["sh"], name="box")
    assert os.listdir(tmp_path) == ["box"]
    first.remove()
    state_dir.create(str(tmp_path), ["sh"], name="box").remove()


@pytest.mark.parametrize("by_guardian", [False, True])
def test_a_killed_sentrys_named_entry_stays_as_stopped(tmp_path: Path, by_guardian: bool) -> None:
    code = f"""
import os, signal
from trapline.platform import state_dir
entry = state_dir.create({str(tmp_path)!r}, ["sh"], name="7")
print(os.getpid(), entry.info.start_time, flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, started = map(int, process.stdout.readline().split())
        assert records.find(str(tmp_path), "7").is_live()
        process.send_signal(signal.SIGKILL)
    assert records.find(str(tmp_path), "7").status() == "stopped"
    if by_guardian:
        state_dir.remove_of(str(tmp_path), 7, 1)  # the end of another sentry, whose id is this one's name
        state_dir.remove_of(str(tmp_path), pid, started)
    else:
        assert state_dir.remove_stale(str(tmp_path)) == []
    record = records.find(str(tmp_path), "7")
    assert record.info["exit_status"] == -1
    assert sorted(os.listdir(record.directory)) == ["info.json", "lock"]


@pytest.mark.parametrize("name", ["", ".", "..", ".new-x", "a/b", "a b", "a\n", "é", "x" * 129])
def test_what_is_no_id(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecordError, match="invalid id"):
        records.find(str(tmp_path), name)


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(NoSuchSandbox, match="sandbox box does not exist"):
        records.find(str(tmp_path), "box")
    with pytest.raises(NoSuchSandbox, match="sandbox box does not exist"):
        records.find(str(tmp_path / "none"), "box")
    (tmp_path / "box").mkdir()
    for content in ("{", "[]", ""):
        (tmp_path / "box" / "info.json").write_text(content)
        with pytest.raises(NoSuchSandbox):
            records.find(str(tmp_path), "box")
    (tmp_path / "box" / "info.json").unlink()
    os.mkfifo(tmp_path / "box" / "info.json")
    with pytest.raises(NoSuchSandbox):
        records.find(str(tmp_path), "box")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "no" / "space"
    path.mkdir(parents=True)
    if os.geteuid() == 0:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=3", "tmpfs", str(path)]).returncode:
            pytest.skip("no mounts here")
    else:
        pytest.skip("needs a mount")
    try:
        with pytest.raises(state_dir.StateDirError, match="No space left on device"):
            state_dir.create(str(path), ["sh"], name="box")
        assert os.listdir(path) == []
    finally:
        subprocess.run(["umount", str(path)], check=True)
