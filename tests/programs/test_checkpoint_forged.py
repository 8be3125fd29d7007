"""Images whose records lie, with every checksum right, and a real restore of each: a line, or programs that have no more
rights than they had. Nothing is left, and nothing of the host's changes."""

from __future__ import annotations

import os
import re
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forgery
import psutil
import pytest
from boxes import PATIENCE, Boxes, until
from harness import is_root

from trapline.sentry.kernel.state import KernelState, PosixTimer, SigInfo, TimerSetting
from trapline.sentry.state.files import PathFile, Socket, SocketFile, TimerFile
from trapline.sentry.state.ipc import SemaphoreSet, SharedSegment
from trapline.sentry.state.records import Image, Mapping, ProcessRecord

#: Has records of most kinds.
GUEST = """
import ctypes, mmap, os, pty, select, signal, socket, sys, threading, time
threading.Thread(target=lambda: time.sleep(10000), daemon=True).start()
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
os.kill(os.getpid(), signal.SIGUSR2)
signal.setitimer(signal.ITIMER_REAL, 5000)
libc = ctypes.CDLL(None)
timer, timerfd = ctypes.c_void_p(), libc.timerfd_create(1, 0)
libc.timer_create(1, None, ctypes.byref(timer))
libc.timerfd_settime(timerfd, 0, (ctypes.c_long * 4)(0, 0, 5000, 0), None)
shared = mmap.mmap(-1, 4096)
memfd = os.memfd_create('memfd'); os.write(memfd, b'x')
gone = os.open('/var/tmp/gone', os.O_RDWR | os.O_CREAT); os.write(gone, b'gone'); os.unlink('/var/tmp/gone')
own = open('/var/tmp/own', 'w+'); own.write('own'); own.flush()
reader, writer = os.pipe(); os.write(writer, b'unread')
one, two = socket.socketpair(); one.send(b'sent')
inner = socket.socket(); inner.bind(('127.0.0.1', 0)); inner.listen()
outer = socket.create_connection(inner.getsockname())
poll = select.epoll(); poll.register(reader, select.EPOLLIN)
master, slave = pty.openpty()
libc.eventfd(3, 0); libc.inotify_add_watch(libc.inotify_init(), b'/var/tmp', 2)
libc.shmget(77, 4096, 0o1600); libc.semget(78, 2, 0o1600)
if not os.fork():
    os.setsid()
    time.sleep(10000)
if not os.fork():
    os._exit(3)
while True:
    print('up', flush=True)
    time.sleep(0.05)
"""
_RIGHTS = ("Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
_ALL = (1 << 41) - 1


class Forger:
    """One image, and restores of others that are made of it."""

    def __init__(self, boxes: Boxes) -> None:
        self.boxes = boxes
        self.image, self.forged = boxes.path / "image", boxes.path / "forged"
        boxes.begin("run", "-d", "--id", "box", "--", sys.executable, "-c", GUEST)
        log = boxes.state / "box" / "output.log"
        until(lambda: log.exists() and log.stat().st_size, "it writes")
        boxes.good("checkpoint", "--no-fsync", "--image-path", str(self.image), "box")
        boxes.good("delete", "box")
        self.rights: dict[str, int] = {}
        forgery.copy(self.image, self.forged)
        assert self.restore("as it is", lambda guests: None) == ""
        self.rights = self.seen

    def restore(self, what: str, look: Callable[[list[int]], object], seconds: float = 1.0) -> str:
        """What is said of it; "" where it went on, and `look` saw its processes."""
        boxes = self.boxes
        errors = boxes.path / "errors"
        with open(errors, "wb") as file:
            command = boxes.command("restore", "--image-path", str(self.forged))
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file)
        assert process.stdout is not None
        end = time.monotonic() + PATIENCE
        said = ""
        try:
            ready = select.select([process.stdout], [], [], seconds)[0]
            if ready and os.read(process.stdout.fileno(), 1000):
                guests = self._guests(process.pid)
                self._look_at(what, guests)
                look(guests)
            elif process.poll() is None and not ready:
                self._look_at(what, self._guests(process.pid))  # it runs, and says nothing
        finally:
            process.stdout.close()
            if process.poll() is None and not said:
                # Where it has said that it cannot be, its end follows by itself.
                if not errors.read_bytes():
                    process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(end - time.monotonic())
        text = errors.read_bytes()
        assert b"Traceback" not in text and b"internal error" not in text, (what, text.decode())
        if process.returncode == 128:
            lines = [line for line in text.splitlines() if line.startswith(b"trapline restore: ")]
            assert len(lines) == 1, (what, text)
            said = lines[0].decode(errors="replace").removeprefix("trapline restore: ")
            assert said.isprintable(), (what, said)
        until(lambda: os.listdir(boxes.state) == [], f"{what}: its state is removed")
        left = [p for p in psutil.process_iter(["cmdline"]) if str(self.forged) in " ".join(p.info["cmdline"] or ())]
        if left:
            until(lambda: not any(p.is_running() and p.status() != "zombie" for p in left), f"{what}: all ends")
        for path in (self.forged, boxes.path / "errors"):
            subprocess.run(["rm", "-r", str(path)], check=True)
        return said

    @staticmethod
    def _guests(sentry: int) -> list[int]:
        found = []
        for child in psutil.Process(sentry).children(recursive=True):
            try:
                if len(re.findall(r"NSpid:\t(.*)", Path(f"/proc/{child.pid}/status").read_text())[0].split()) > 1:
                    found.append(child.pid)
            except (OSError, IndexError):
                continue
        return found

    def _look_at(self, what: str, guests: list[int]) -> None:
        """Their rights are those that the programs had."""
        self.seen: dict[str, int] = {}
        for guest in guests:
            for task in os.listdir(f"/proc/{guest}/task"):
                try:
                    text = Path(f"/proc/{guest}/task/{task}/status").read_text()
                    policy = os.sched_getscheduler(int(task))
                except OSError:
                    continue  # it has just ended
                if "\nState:\tZ" in text or "\nName:\tpython" not in text:
                    continue
                for name in _RIGHTS[2:]:
                    value = int(re.findall(rf"\n{name}:\t(\S+)", text)[0], 16)
                    self.seen[name] = self.seen.get(name, 0) | value
                    if self.rights and name.startswith("Cap"):
                        assert not value & ~self.rights[name], (what, name, hex(value))
                    elif self.rights:
                        assert value == self.rights[name], (what, name, value)
                assert policy not in (os.SCHED_FIFO, os.SCHED_RR), (what, policy)
                assert os.getpriority(os.PRIO_PROCESS, int(task)) >= os.getpriority(os.PRIO_PROCESS, 0), what


@pytest.fixture
def forger(boxes: Boxes) -> Iterator[Forger]:
    yield Forger(boxes)


def living(image: Image) -> ProcessRecord:
    return next(process for process in image.processes if process.zombie < 0)


def set_all(items: Any, **values: Any) -> None:
    for item in items:
        for name, value in values.items():
            setattr(item, name, value)


def threads(image: Image) -> Any:
    return [thread for process in image.processes for thread in process.threads]


def registers(image: Image, index: int, value: int) -> None:
    """Of all; words of struct user_regs_struct."""
    for thread in threads(image):
        words = list(struct.unpack("<27Q", thread.registers))
        words[index] = value
        thread.registers = struct.pack("<27Q", *words)


def a_path(image: Image, path: bytes, flags: int = 0, kind: int = 0o100000) -> None:
    image.files[9999] = PathFile(path=path, flags=flags, type=kind)
    image.tables[living(image).table][99] = next(iter(next(iter(image.tables.values())).values())).__class__(9999)


def a_socket(image: Image, *words: Any, **more: Any) -> None:
    image.sockets[9999] = Socket(*words, **more)
    image.files[9999] = SocketFile()
    image.tables[living(image).table][99] = next(iter(next(iter(image.tables.values())).values())).__class__(9999)


def a_mapping(image: Image, *words: Any, **more: Any) -> None:
    image.spaces[living(image).space].mappings.append(Mapping(*words, **more))


def vdso_of(image: Image) -> Mapping:
    return next(m for m in image.spaces[living(image).space].mappings if m.kind == "vdso")


def a_billion(kernel: KernelState, image: Image) -> None:
    """More processes than a host has ids for, each of them well formed."""
    group, record = kernel.groups[living(image).tgid], living(image)
    import copy

    for tgid in range(100_000, 140_000):
        process = copy.copy(record)
        process.tgid, process.threads, process.zombie, process.parent, process.space = tgid, [], 0, record.tgid, -1
        process.table = process.directory = -1
        image.processes.append(process)
        kernel.groups[tgid] = group.__class__(tgid, ppid=record.tgid, pgid=group.pgid, sid=group.sid, exit_status=0)
        group.children[tgid] = tgid
        kernel.process_groups[group.pgid][tgid] = 0


#: What is changed; what is said of it, or None: it may go on or not, with the rights that it had.
LIES: dict[str, tuple[forgery.Change, str | None]] = {
    # quick ones
    "capabilities": (lambda i, k, f: set_all(threads(i), capabilities=(_ALL,) * 5), None),
    "no new privileges": (lambda i, k, f: set_all(threads(i), no_new_privileges=False), None),
    "real time": (lambda i, k, f: set_all(threads(i), policy=1, priority=50, nice=-20, io_priority=1 << 13), None),
    "sysctl": (lambda i, k, f: f["options"].update(sysctl={"kernel.core_pattern": "|/bin/true"}), "is the host's"),
    "kernel space": (lambda i, k, f: registers(i, 16, 0xFFFFFFFF81000000), None),
    "no canonical address": (lambda i, k, f: registers(i, 16, 0x8000_0000_0000_0000), None),
    "segments": (lambda i, k, f: registers(i, 17, 0x10), ""),
    "extended state": (lambda i, k, f: set_all(threads(i), extended=threads(i)[0].extended[:520] + b"\xff" * 56 + threads(i)[0].extended[576:]), ""),
    "program": (lambda i, k, f: set_all(i.spaces.values(), exe="/etc/../../../nowhere"), ""),
    "over the vDSO": (lambda i, k, f: a_mapping(i, vdso_of(i).start, vdso_of(i).start + 4096, 3, "anonymous"), "two mappings"),
    "opened anew": (lambda i, k, f: a_path(i, b"/etc/passwd", 0o1001), "flags"),
    "raw socket": (lambda i, k, f: a_socket(i, 2, 3, 1), "family 2 and the type 3"),
    "size": (lambda i, k, f: set_all(i.shared.values(), size=1 << 61), ""),
    # the rest
    "packets": (lambda i, k, f: a_socket(i, 17, 3, 768), "family 17"),
    "firewall": (lambda i, k, f: a_socket(i, 2, 1, 0, options=[(0, 64, bytes(100))]), None),
    "a device": (lambda i, k, f: a_path(i, b"/dev/mem", 2, 0o020000), ""),
    "a host's process": (lambda i, k, f: a_path(i, b"/proc/1/environ"), None),
    "a limit of the host's": (lambda i, k, f: a_path(i, b"/proc/sys/kernel/core_pattern", 1), ""),
    "negative offset": (lambda i, k, f: set_all([x for x in i.files.values() if isinstance(x, PathFile)], position=-1), "position"),
    "huge offset": (lambda i, k, f: set_all([x for x in i.files.values() if isinstance(x, PathFile)], position=(1 << 63) - 1), None),
    "huge descriptor": (lambda i, k, f: i.tables[living(i).table].update({(1 << 30) - 1: next(iter(i.tables[living(i).table].values()))}), ""),
    "descriptor": (lambda i, k, f: i.tables[living(i).table].update({1 << 40: next(iter(i.tables[living(i).table].values()))}), "cannot be"),
    "many processes": (lambda i, k, f: a_billion(k, i), None),
    "limits": (lambda i, k, f: set_all([p for p in i.processes if p.threads], limits={7: (1 << 62, 1 << 62)}), ""),
    "own limits": (lambda i, k, f: set_all([p for p in i.processes if p.threads], limits={9: (4096, 4096), 1: (0, 0), 7: (3, 3)}), None),
    "user": (lambda i, k, f: set_all(threads(i), uids=(12345,) * 4, gids=(1,) * 4, groups=[0, 1, 2]), None),
    "users that are none": (lambda i, k, f: set_all(threads(i), uids=((1 << 32) - 1,) * 4), None),
    "CPUs": (lambda i, k, f: set_all(threads(i), affinity=[]), None),
    "other CPUs": (lambda i, k, f: set_all(threads(i), affinity=[8191]), None),
    "mask": (lambda i, k, f: set_all(threads(i), mask=(1 << 64) - 1), None),
    "the kernel's mask": (lambda i, k, f: set_all([t for g in k.groups.values() for t in g.threads.values()], mask=(1 << 64) - 1), None),
    "rseq": (lambda i, k, f: set_all(threads(i), rseq=(0x1000, 32, 5, 0)), ""),
    "alternate stack": (lambda i, k, f: set_all(threads(i), altstack=struct.pack("<QiiQ", 0, 1 << 30, 0, 1 << 62)), None),
    "a signal's kernel": (lambda i, k, f: set_all([living(i)], queued=[bytes(128)]), None),
    "a signal of a fault": (lambda i, k, f: k.groups[living(i).tgid].pending.append(SigInfo(11, forced=True, fields=b"x")), None),
    "timers": (lambda i, k, f: k.timers.update({"nonsense": TimerSetting(5), "itimer:1:9": TimerSetting(1 << 62)}), None),
    "a timer": (lambda i, k, f: k.groups[living(i).tgid].posix_timers.update({5: PosixTimer(5, 99, 9, 99, setting=TimerSetting(1, 1, 99))}), None),
    "interval timers": (lambda i, k, f: k.groups[living(i).tgid].itimers.update({0: TimerSetting(-5, -1), 7: TimerSetting(1 << 63)}), None),
    "a timerfd": (lambda i, k, f: set_all([x for x in i.files.values() if isinstance(x, TimerFile)], deadline=(1 << 63) - 1, interval=1, ticks=1 << 63), None),
    "clock": (lambda i, k, f: setattr(k.clock, "rate_den", 0), None),
    "clock's rate": (lambda i, k, f: f["options"].update(clock_rate=[0, 0]), "clocks"),
    "clocks of the manifest": (lambda i, k, f: f.update(monotonic=-(1 << 63), boottime=(1 << 63) - 1), None),
    "termios": (lambda i, k, f: set_all(i.terminals.values(), settings=b"\xff" * 44), None),
    "terminal's number": (lambda i, k, f: set_all(i.terminals.values(), number=(1 << 20) - 1), ""),
    "IPC keys": (lambda i, k, f: i.ipc.segments.append(SharedSegment(3, 77, 0o7777, 0, 0, 0, 0, 1 << 61)), ""),
    "IPC sizes": (lambda i, k, f: i.ipc.semaphores.append(SemaphoreSet(3, 79, 0o7777, 0, 0, 0, 0, [0] * 100_000, [0] * 100_000)), ""),
    "IPC limits": (lambda i, k, f: i.ipc.limits.update({"kernel/sem": "x" * 100}), ""),
    "a name with NUL": (lambda i, k, f: set_all(threads(i), name=b"a\0b"), None),
    "directories": (lambda i, k, f: set_all(i.directories.values(), cwd="/../../../..", root="/proc/1/root/../.."), None),
    "the host's root": (lambda i, k, f: set_all(i.directories.values(), root="/proc/1/root"), None),
    "no directory": (lambda i, k, f: set_all(i.directories.values(), cwd="/nowhere"), ""),
    "nameless elsewhere": (lambda i, k, f: set_all(i.ghosts.values(), path="/../../../../etc/gone", mode=0o107777), None),
    "nameless device": (lambda i, k, f: set_all(i.ghosts.values(), mode=0o020666), None),
    "nameless size": (lambda i, k, f: set_all(i.ghosts.values(), size=1 << 61), None),
    "pipe's size": (lambda i, k, f: set_all(i.pipes.values(), capacity=1 << 31), None),
    "memory above": (lambda i, k, f: a_mapping(i, 0x7FFFFFFFE000, 0x7FFFFFFFF000, 3, "anonymous"), None),
    "lowest memory": (lambda i, k, f: a_mapping(i, 0, 4096, 3, "anonymous"), None),
    "all memory": (lambda i, k, f: a_mapping(i, 0x10000, 0x500000000000, 3, "anonymous"), ""),
    "the layout": (lambda i, k, f: set_all(i.spaces.values(), layout=[0] * 11), ""),
    "vDSO": (lambda i, k, f: setattr(i, "vdso", b"\x7fELF" + bytes(4000)), ""),
    "no vDSO": (lambda i, k, f: setattr(i, "vdso", b""), None),
    "the vDSO's address": (lambda i, k, f: set_all(k.groups.values(), vdso=0x1000), ""),
    "actions": (lambda i, k, f: k.groups[living(i).tgid].actions.update({9: k.groups[living(i).tgid].actions[10], 19: k.groups[living(i).tgid].actions[10]}), None),
    "the first": (lambda i, k, f: setattr(k, "root_tgid", 4000), ""),
    "sessions": (lambda i, k, f: set_all(k.groups.values(), sid=4000, pgid=4001), None),
    "orphans": (lambda i, k, f: set_all(k.groups.values(), ppid=0), None),
    "zombies": (lambda i, k, f: set_all([p for p in i.processes if p.zombie >= 0], zombie=0xFFFF), None),
    "nobody lives": (lambda i, k, f: i.processes.clear(), ""),
    "parked": (lambda i, k, f: set_all(threads(i), parked=True, holds_for=99), None),
    "no root": (lambda i, k, f: f["options"].update(rootfs="/nowhere"), ""),
    "volumes": (lambda i, k, f: f["options"].update(volumes=[["/nowhere", "/../../x", False]]), ""),
    "network": (lambda i, k, f: f["options"].update(network="host", network_path="/etc/passwd"), ""),
    "platform": (lambda i, k, f: f["options"].update(platform="ptrace\n"), None),
    "environment": (lambda i, k, f: f["options"].update(env=["a\0b"], command=[]), None),
    "hostname": (lambda i, k, f: f["options"].update(hostname="x" * 1000), ""),
    "capability": (lambda i, k, f: f["options"].update(capabilities=["CAP_ALL"]), "no capability CAP_ALL"),
}  # fmt: skip
QUICK = list(LIES)[:13]


def try_lie(forger: Forger, name: str) -> str | None:
    """What is wrong with the way that it is met."""
    change, says = LIES[name]
    forgery.forge(forger.forged, change)
    said = forger.restore(name, lambda guests: None)
    if says is None:
        return None
    return None if said and says in said else f"{name}: said {said!r}, not {says!r}"


def try_all(forger: Forger, names: list[str]) -> None:
    wrong = []
    for name in names:
        forgery.copy(forger.image, forger.forged)
        try:
            wrong += [text for text in [try_lie(forger, name)] if text]
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
            subprocess.run(["rm", "-rf", str(forger.forged)], check=True)
    assert not wrong, "\n".join(wrong)


@pytest.mark.skipif(not is_root(), reason="not root")
def test_some_lies(forger: Forger) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_bytes()
    try_all(forger, QUICK)
    assert Path("/proc/sys/kernel/core_pattern").read_bytes() == before


@pytest.mark.long
def test_all_lies(forger: Forger) -> None:
    try_all(forger, list(LIES))


SEEDS = range(*(int(word) for word in os.environ.get("TRAPLINE_SEEDS", "0:150").split(":")))


@pytest.mark.long
def test_fields_by_chance(forger: Forger) -> None:
    """One field or a few are something else of their type."""
    wrong = []
    for seed in SEEDS:
        forgery.copy(forger.image, forger.forged)
        what = forgery.forge_by_chance(forger.forged, seed)
        try:
            forger.restore(what, lambda guests: None, 0.6)
        except AssertionError as error:
            wrong.append(f"{what}: {error}")
            subprocess.run(["rm", "-rf", str(forger.forged)], check=True)
    assert not wrong, "\n".join(wrong)
