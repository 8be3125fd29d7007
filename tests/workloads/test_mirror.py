"""The host's dispositions and masks are what the kernel says, at every stop of workloads that change them a lot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from guests import compiled, python_file
from harness import native, workload

DRIVER = """
import json
import sys
from trapline.platform import engine, ptrace_calls as pt
from trapline.sentry.cli.main import main
from trapline.sentry.kernel.signals import SYNCHRONOUS, bit

wrong = []
checked = 0
stopped = engine.Engine._stopped

def sets(host):
    with open(f"/proc/{{host}}/status") as file:
        lines = dict(line.split(":", 1) for line in file.read().splitlines())
    return [int(lines[name], 16) for name in ("SigIgn", "SigCgt")]

def check(self, t, signo, event):
    global checked
    task = t.task
    # A fault that is blocked or ignored: the host made it deadly before it told anybody.
    forced = not event and signo < 32 and SYNCHRONOUS & bit(signo)
    if task is not None and not forced and event != pt.EVENT_EXEC and not t.listening and len(wrong) < 5:
        group = self.kernel.group(task)
        ignored = sum(bit(s) for s, a in group.actions.items() if a.handler == 1)
        caught = sum(bit(s) for s, a in group.actions.items() if a.handler > 1)
        # What a thread waits for in sigtimedwait its host mask lets through, to be heard of (host_masks.py).
        masks = {{task.mask & ~t.opened}} if task.saved_mask < 0 else {{task.mask, task.saved_mask}}
        found = sets(t.host_group)
        mask = pt.get_sigmask(t.host)
        checked += 1
        if [ignored, caught] != found or mask not in masks:
            wrong.append([t.tid, signo, event, [hex(ignored), hex(caught)], [hex(x) for x in found],
                          [hex(m) for m in masks], hex(mask)])
    stopped(self, t, signo, event)

engine.Engine._stopped = check
status = main(["do", "--platform={platform}", "--", *{command!r}])
with open({file!r}, "w") as f:
    json.dump([checked, wrong], f)
sys.exit(status)
"""


LOAD = ["queue", "pingpong", "stops", "threads", "restart", "timers"]  # scenarios of workloads/mixed_load.c


@pytest.mark.parametrize("name", ["signals", "jobs", "frames", "processes", "threads_exit", "exec", "clone3", "group_stops", "race", *LOAD])
def test_they_agree(platform: str, tmp_path: Path, name: str) -> None:
    file = tmp_path / "found"
    if name == "race":
        command = [compiled("signal_race"), "100"]
    elif name in LOAD:
        command = [workload("mixed_load"), "once", name, "1"]
    else:
        command = [workload(name)]
    text = DRIVER.format(platform=platform, command=command, file=str(file))
    result = native(python_file(tmp_path, text))
    checked, wrong = json.loads(file.read_text())
    assert result.status == 0 and not wrong, (wrong, result)
    assert checked > 5
