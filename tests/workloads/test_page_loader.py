"""Pages that come while a program uses its memory, and changes it: the loader with a real program and a source that
the tests are in charge of, without a sandbox."""

from __future__ import annotations

import array
import os
import random
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import workload

from trapline.platform.page_loader import BLOCK, Loader
from trapline.platform.userfaultfd import Userfaultfd

PAGES = 9 * 200
PAGE = 4096

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="events of forks need CAP_SYS_PTRACE")


class Source:
    """The content of a file; `before` is called with each block's number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.before: Callable[[int], None] = lambda block: None
        self.asked: list[int] = []

    def read(self, image: int, block: int, into: memoryview) -> int:
        self.asked.append(block)
        self.before(block)
        return os.preadv(self.fd, [into], block * BLOCK)


class Program:
    """lazy_memory, that waits for its memory to be missing."""

    def __init__(self, *flags: str, pages: int = PAGES) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.file = tempfile.TemporaryFile()
        content = self.file.fileno()
        self.process = subprocess.Popen(
            [workload("lazy_memory"), str(pages), "-u", str(its.fileno()), str(content), *flags],
            stdout=subprocess.PIPE, text=True, pass_fds=[its.fileno(), content],
        )  # fmt: skip
        its.close()
        data, ancillary, _, _ = ours.recvmsg(16, 256, socket.MSG_CMSG_CLOEXEC)
        self.base, self.size = struct.unpack("<QQ", data)
        self.uffd = Userfaultfd(array.array("i", ancillary[0][2])[0])
        self.uffd.begin()
        self.uffd.register(self.base, self.size)
        self.source = Source(content)
        self.broken: list[bool] = []
        self.loader = Loader(self.source, lambda: self.broken.append(True))
        self._socket = ours

    def add(self) -> None:
        """Its memory is the loader's business from here on."""
        self.loader.add(self.uffd, [(self.base, self.base + self.size, 0, 0)])

    def go(self) -> None:
        """Let it use its memory."""
        self._socket.send(b"g")

    def end(self) -> None:
        """Nothing is left of it."""
        self.process.kill()
        self.process.communicate()
        self.loader.close()
        self.file.close()
        self._socket.close()

    def lines(self) -> list[str]:
        """All that it prints, up to its end."""
        text, _ = self.process.communicate(timeout=60)
        return text.splitlines()


@contextmanager
def program(*flags: str, pages: int = PAGES) -> Iterator[Program]:
    found = Program(*flags, pages=pages)
    try:
        yield found
    finally:
        found.end()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("native")
    (directory / "go").touch()
    done = subprocess.run(
        [workload("lazy_memory"), str(PAGES)], cwd=directory, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()[1:]
    assert lines and all(line.endswith(": right") for line in lines)
    return lines


def test_all_that_changes_memory_is_right_when_only_what_is_touched_is_loaded(native: list[str]) -> None:
    with program() as found:
        found.add()
        found.go()
        assert found.lines() == native
        assert found.loader.faults and not found.loader.done and not found.broken


@pytest.mark.parametrize("seed", range(3))
def test_all_that_changes_memory_is_right_while_it_is_loaded(native: list[str], seed: int) -> None:
    choice = random.Random(seed)
    with program() as found:
        found.source.before = lambda block: time.sleep(choice.random() * 0.003)
        found.loader.prefetch()
        found.add()
        found.go()
        assert found.lines() == native
        assert not found.broken and not found.loader.errors


def test_it_ends_when_all_is_loaded_and_nothing_is_left_of_it() -> None:
    before = os.listdir("/proc/self/fd")
    with program() as found:
        held = threading.Event()
        found.source.before = lambda block: None if block else held.wait(60) and None
        found.add()
        found.loader.prefetch()
        assert not found.loader.wait(0.05)
        assert " um" in Path(f"/proc/{found.process.pid}/smaps").read_text()
        held.set()
        assert found.loader.wait(60) and found.loader.done
        assert found.loader.loaded == found.loader.total == found.size
        assert sorted(found.source.asked) == list(range(-(-found.size // BLOCK)))
        assert found.loader.descriptors() == [] and os.eventfd_read(found.loader.news)
        assert " um" not in Path(f"/proc/{found.process.pid}/smaps").read_text()
        found.go()
        assert found.lines()[-1] == "the rest: right"
        assert "faults" in {thread.name for thread in threading.enumerate()}
    assert not {thread.name for thread in threading.enumerate()} & {"faults", "pages-0"}
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_what_is_waited_for_goes_first() -> None:
    blocks = 64
    with program("-d", pages=blocks * BLOCK // PAGE) as found:
        room = threading.Semaphore(0)
        started = threading.Semaphore(0)

        def before(block: int) -> None:
            started.release()
            assert room.acquire(timeout=60)

        found.source.before = before
        found.loader.prefetch()
        # The program stands: everything is asked for by address.
        found.add()
        readers = len(found.loader._threads) - 1
        for _ in range(readers):
            assert started.acquire(timeout=60)
        assert sorted(found.source.asked) == list(range(readers))
        last = found.base + found.size - PAGE
        reader = threading.Thread(target=_peek, args=(found.process.pid, last))
        reader.start()
        while not found.loader.faults:
            time.sleep(0.001)
        room.release()
        assert started.acquire(timeout=60)
        assert found.source.asked[readers] == blocks - 1
        room.release(blocks)
        reader.join(60)
        found.go()
        assert found.lines() == ["SIGBUS: 0 pages, EFAULT: 0", "the others: right"]


def _peek(pid: int, address: int) -> None:
    """As the sentry reads memory: it waits for who loads it."""
    from trapline.platform.guest_memory import GuestMemory

    assert any(GuestMemory(pid).read(address, PAGE))


def test_what_cannot_be_loaded_gives_sigbus_and_nothing_else_does() -> None:
    with program("-d") as found:
        if not found.uffd.poison:
            pytest.skip("the host has no UFFDIO_POISON")

        def before(block: int) -> None:
            if block == 3:
                raise OSError(5, "Input/output error")

        found.source.before = before
        found.add()
        found.go()
        assert found.lines() == [f"SIGBUS: {BLOCK // PAGE} pages, EFAULT: {BLOCK // PAGE}", "the others: right"]
        assert len(found.loader.errors) == 1 and "Input/output error" in found.loader.errors[0]
        assert "SIGBUS" in found.loader.errors[0] and not found.broken


def test_where_the_host_cannot_give_sigbus_the_sandbox_ends() -> None:
    with program("-d") as found:
        found.uffd.poison = False

        def before(block: int) -> None:
            if block == 3:
                raise OSError(5, "Input/output error")

        found.source.before = before
        ended = threading.Event()
        found.loader._broken = lambda: (found.process.kill(), ended.set())[1]
        found.add()
        found.go()
        assert ended.wait(60)
        assert found.lines() == []
        assert "the sandbox ends" in found.loader.errors[0]


def test_a_process_that_is_gone_is_no_error() -> None:
    with program() as found:
        first = threading.Event()
        found.source.before = lambda block: first.set()
        found.add()
        found.go()
        assert first.wait(60)
        found.process.kill()
        found.process.wait()
        found.loader.prefetch()
        assert found.loader.wait(60)
        assert not found.loader.errors and not found.broken
