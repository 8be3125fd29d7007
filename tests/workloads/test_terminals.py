"""Terminals: the sentry decides whose they are, the host moves the bytes with no trap, and both agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from guests import compiled, lines_of, python_file
from harness import do, native, stats, workload


def test_input_is_not_made_up(platform: str) -> None:
    """As with dev.tty.legacy_tiocsti=0, whatever this host has: a guest's TIOCSTI would type at the caller's shell."""
    lines = lines_of(do(platform, [compiled("terminal_calls")]))
    assert lines["foreground"] == "0"
    assert [lines[name] for name in ("TIOCSTI", "TIOCSTI, bad pointer", "TIOCSTI at the master")] == ["EIO"] * 3


OVERRIDE = """
import struct, sys
from trapline.sentry.cli.main import main
from trapline.sentry.syscalls import registry

async def ioctl(kernel, task, fd, command, argument):
    if command == 0x540F:  # TIOCGPGRP
        kernel.memory(task).write(argument, struct.pack("<i", 4242))
        return 0
    return await override.previous[0](kernel, task, fd, command, argument)

override = registry.override("ioctl", ioctl)
sys.exit(main(["do", "--platform={platform}", "--", {program!r}]))
"""


def test_the_foreground_group_is_what_the_handler_says(platform: str, tmp_path: Path) -> None:
    text = OVERRIDE.format(platform=platform, program=compiled("terminal_calls"))
    assert lines_of(native(python_file(tmp_path, text)))["foreground"] == "4242"


def traps(platform: str, tmp_path: Path, what: str) -> tuple[float, float, float]:
    """What 100 calls of a kind add to a run: calls of ioctl that the sentry answered, stops, notifications; per call."""
    few, many = (stats(platform, [compiled("terminal_calls"), what, str(n)], tmp_path) for n in (0, 100))

    def more(name: str) -> float:
        return (many[name] - few[name]) / 100  # type: ignore[operator]

    calls = (many["calls"]["ioctl"] - few["calls"]["ioctl"]) / 100  # type: ignore[index]
    return calls, more("stops"), more("notifications")


def test_tcsetpgrp_takes_two_traps(platform: str, tmp_path: Path) -> None:
    calls, stops, notifications = traps(platform, tmp_path, "tcsetpgrp")
    assert calls == 1
    assert stops + notifications == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("what", ["tcgetpgrp", "tcgetsid"])
def test_to_ask_takes_one(platform: str, tmp_path: Path, what: str) -> None:
    calls, stops, notifications = traps(platform, tmp_path, what)
    assert calls == 1
    assert (stops if platform == "ptrace" else notifications) == pytest.approx(1, abs=0.1)
    assert stops + notifications == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("what", ["echo", "settings"])
def test_bytes_and_settings_take_none(platform: str, tmp_path: Path, what: str) -> None:
    calls, stops, notifications = traps(platform, tmp_path, what)
    assert calls == 0
    assert stops + notifications == pytest.approx(0, abs=0.1)


#: At every call that comes by a stop, while the host executes none of the sentry's: whose terminal it is there and here.
MIRROR = """
import json
import sys
from trapline.platform import engine, ptrace_calls as pt
from trapline.sentry.cli.main import main
from trapline.sentry.kernel.tty import DEVICE

wrong = []
checked = set()
stopped = engine.Engine._stopped

def stat(host):
    with open(f"/proc/{{host}}/stat") as file:
        return [int(word) for word in file.read().rpartition(")")[2].split()[1:6]]

def check(self, t, signo, event):
    if event == pt.EVENT_SECCOMP and t.task is not None and not self.dispatcher.executing and len(wrong) < 5:
        group = self.kernel.group(t.task)
        _, _, session, device, front = stat(t.host_group)
        tty = self.kernel.state.ttys.get(group.tty)
        leader = self.tracees.get(front)  # the group has its number, there and here
        if tty is not None and device and leader is not None:
            checked.add((group.tty, tty.foreground))
            if (tty.number & DEVICE, tty.sid, tty.foreground) != (device, group.sid, leader.tid):
                wrong.append([t.tid, group.tgid, [tty.number, tty.sid, tty.foreground], [device, leader.tid]])
    stopped(self, t, signo, event)

engine.Engine._stopped = check
status = main(["do", "--platform={platform}", "--", *{command!r}])
with open({file!r}, "w") as f:
    json.dump([len(checked), wrong], f)
sys.exit(status)
"""


@pytest.mark.parametrize("name, least", [("terminals", 8), ("job_control", 15)])
def test_the_host_has_the_same_group_in_front(platform: str, tmp_path: Path, name: str, least: int) -> None:
    file = tmp_path / "found"
    text = MIRROR.format(platform=platform, command=[workload(name)], file=str(file))
    result = native(python_file(tmp_path, text))
    checked, wrong = json.loads(file.read_text())
    assert result.status == 0 and not wrong, (wrong, result)
    assert checked >= least
