"""System calls in a process that stands at a stop, by a table of them (platform/injection.py)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct

import pytest

from trapline.platform import injection
from trapline.platform import ptrace_calls as pt
from trapline.platform.injection import Data, Injection, Try, Workspace

GETPID, WRITE, PIPE2, READ, CLONE3, EXIT, OPENAT, CLOSE = 39, 1, 293, 0, 435, 231, 257, 3


@pytest.fixture
def guest():
    """A traced process that stands at its int3, with a workspace."""
    area = mmap.mmap(-1, injection.SIZE, prot=7)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    area[: len(injection.CODE)] = injection.CODE
    trap = injection.PAGE - 16
    area[trap : trap + 2] = b"\xcc\xc3"
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        ctypes.CFUNCTYPE(None)(base + trap)()
        os._exit(1)
    os.waitpid(pid, os.WUNTRACED)
    pt.call(pt.PTRACE_SEIZE, pid, 0, pt.OPTIONS)
    os.kill(pid, signal.SIGCONT)
    while True:
        status = pt.wait_one(pid)
        if status >> 8 == signal.SIGTRAP:
            break
        pt.cont(pid)
    yield Injection(pid, Workspace(base))
    os.kill(pid, signal.SIGKILL)
    pt.wait_one(pid)


def test_results_and_data(guest):
    ends = Data(bytes(8), read_back=True)
    pid, result = guest.run([(GETPID,), (PIPE2, ends, 0)])
    assert (pid, result) == (guest.host, 0)
    out_of, into = struct.unpack("<2i", ends.value)
    text, room = b"words" * 100, Data(bytes(500), read_back=True)
    assert guest.run([(WRITE, into, Data(text), len(text)), (READ, out_of, room, 500)]) == [500, 500]
    assert room.value == text


def test_a_failed_call_ends_the_batch(guest):
    with pytest.raises(OSError, match=r"call 1 \(openat .*No such file") as caught:
        guest.run([(GETPID,), (OPENAT, -100, Data(b"/none\0"), 0, 0), (CLOSE, 0)])
    assert caught.value.errno == errno.ENOENT
    assert guest.run([(CLOSE, 0)]) == [0]  # was not made before
    assert guest.run([Try((CLOSE, 0)), (GETPID,)]) == [-errno.EBADF, guest.host]


def test_more_than_fits(guest):
    count = 3 * injection.BATCH + 7
    assert guest.run([(GETPID,)] * count) == [guest.host] * count
    texts = [os.urandom(20000) for _ in range(40)]
    ends = Data(bytes(8), read_back=True)
    guest.run([(PIPE2, ends, 0)])
    out_of, into = struct.unpack("<2i", ends.value)
    rooms = [Data(bytes(20000), read_back=True) for _ in texts]
    calls = [((WRITE, into, Data(text), 20000), (READ, out_of, room, 20000)) for text, room in zip(texts, rooms, strict=True)]
    guest.run([call for pair in calls for call in pair])
    # Data of an earlier resume is read back before the next one overwrites it.
    assert [room.value for room in rooms] == texts


def test_a_child_is_told(guest):
    arguments = struct.pack("<11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    (pid,) = guest.run([(CLONE3, Data(arguments), 88)])
    assert guest.born == [pid]
    injection.await_birth(pid)
    child = Injection(pid, guest.workspace)
    assert child.run([(GETPID,)]) == [pid]
    child.start([(EXIT, 3)])
    assert os.waitstatus_to_exitcode(pt.wait_one(pid)) == 3


def test_extended_state(guest):
    state = injection.get_extended(guest.host)
    assert len(state) >= 576
    changed = bytearray(state)
    changed[160:416] = os.urandom(256)  # the sixteen XMM registers of the legacy area
    changed[512] |= 2  # are in use
    injection.set_extended(guest.host, bytes(changed))
    assert injection.get_extended(guest.host)[160:416] == changed[160:416]
