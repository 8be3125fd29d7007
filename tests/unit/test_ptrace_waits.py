"""Waiting for one tracee among the threads of a process."""

import os
import subprocess
import sys

import pytest

from trapline.platform import ptrace_calls as pt
from trapline.sentry.protocol import Gone

THREADED = "import threading\nthreading.Thread(target=threading.Event().wait).start()\nprint(flush=True)\ninput()"


def test_a_leader_that_ends_before_its_threads() -> None:
    """It cannot be waited for until they are, so nobody may wait for it alone."""
    process = subprocess.Popen([sys.executable, "-c", THREADED], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read(1)
    tids = sorted(int(name) for name in os.listdir(f"/proc/{process.pid}/task"))
    assert len(tids) == 2
    for tid in tids:
        pt.call(pt.PTRACE_SEIZE, tid)
    pt.call(pt.PTRACE_INTERRUPT, process.pid)
    assert pt.wait_stop(process.pid) >> 16 == pt.EVENT_STOP
    pt.cont(process.pid)
    process.kill()
    with pytest.raises(Gone):
        pt.wait_stop(process.pid)
    # Nothing was taken from who waits for the deaths.
    other = next(tid for tid in tids if tid != process.pid)
    assert [pt.wait_one(other), pt.wait_one(process.pid)] == [9, 9]
    process.returncode = -9
