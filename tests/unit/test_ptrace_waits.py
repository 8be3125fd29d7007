"""Waiting for one tracee among the threads of a process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trapline.platform import ptrace_calls as pt
from trapline.platform import setup_calls as calls
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


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_a_pid_1_that_waits_in_its_end_for_what_we_trace() -> None:
    """It sleeps, and will never stop again: the host has it wait until we have waited for the other."""
    reader, writer = os.pipe()
    maker = os.fork()
    if maker == 0:
        calls.unshare(calls.CLONE_NEWPID)
        init = os.fork()
        if init == 0:
            if os.fork() == 0:
                signal.pause()
            os.write(writer, b"x")
            signal.pause()
        os.waitpid(init, 0)
        os._exit(0)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    init = int(Path(f"/proc/{maker}/task/{maker}/children").read_text())
    traced = int(Path(f"/proc/{init}/task/{init}/children").read_text())
    pt.call(pt.PTRACE_SEIZE, traced, 0, 0)
    pt.call(pt.PTRACE_SEIZE, init, 0, 0)
    os.kill(init, signal.SIGKILL)
    end = time.monotonic() + 10
    while not (pt.is_dead(init) and b") S " in Path(f"/proc/{init}/stat").read_bytes()):  # it sleeps in its end
        assert time.monotonic() < end
        time.sleep(0.001)
    with pytest.raises(Gone):
        pt.wait_stop(init)
    assert os.waitpid(traced, 0x40000000)[1] == signal.SIGKILL
    assert os.waitpid(init, 0x40000000)[1] == signal.SIGKILL
    os.waitpid(maker, 0)
