"""The moment after a checkpoint that ended a sandbox, whose memory the host is freeing yet."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from harness import trapline_command, workload

MIB = 256


def test_a_saved_sandbox_has_stopped_for_everybody(platform: str, tmp_path: Path) -> None:
    """Whoever asks is told so, nobody gets in, and it can be deleted: all at once after the checkpoint."""
    state = f"--state-dir={tmp_path / 'state'}"

    def verb(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            trapline_command(words[0], state, *words[1:]), capture_output=True, text=True, timeout=60, check=False
        )

    program = [workload("resident-static"), str(MIB), "1"]
    for _ in range(3):
        line = trapline_command("run", state, f"--platform={platform}", "--id=box", "--", *program)
        with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as first:
            assert first.stdout is not None
            while not first.stdout.readline().startswith(b"ready"):
                pass
            done = verb("checkpoint", "--no-fsync", f"--image-path={tmp_path / 'image'}", "--format=json", "box")
            assert done.returncode == 0, done.stderr
            entered = verb("exec", "box", "--", "true")
            assert entered.returncode and not entered.stdout
            assert "has ended" in entered.stderr or "not running" in entered.stderr, entered.stderr
            told = json.loads(verb("state", "box").stdout)
            assert (told["status"], told["exitStatus"]) == ("stopped", 137)
            deleted = verb("delete", "box")
            assert deleted.returncode == 0, deleted.stderr
            assert first.wait(30) == 137
        assert not (tmp_path / "state" / "box").exists()
        subprocess.run(["rm", "-r", tmp_path / "image"], check=True)
