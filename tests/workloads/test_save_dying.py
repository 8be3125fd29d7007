"""Saves while processes die, stop and are continued: none of them is refused for that."""

from __future__ import annotations

import subprocess
from pathlib import Path

from guests import compiled, until
from harness import trapline_command

from trapline.sentry.control.client import Client

SAVES = 60


def test_saves_while_processes_die(platform: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    line = trapline_command("--root", str(state), "--platform", platform, "do", "--", compiled("dying"))
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        until(lambda: list(state.glob("*/control.sock")), "it is served")
        place = next(state.glob("*/control.sock")).parent
        for number in range(SAVES):
            spec = {"image_path": str(tmp_path / f"image{number}"), "fsync": False, "leave_running": True}
            with Client(str(place), 30) as client:
                client.call("checkpoint", spec=spec)
        said, _ = process.communicate(timeout=30)
        assert (said, process.returncode) == (b"all as it should be\n", 0)
    finally:
        process.kill()
        process.communicate()
