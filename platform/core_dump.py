"""Writes the core file of a process that is about to die of a signal (`do --core-dir`).

The process's other threads are stopped first and left so: the signal ends them too. What of its memory is in the
file is what Linux would put there: /proc/PID/coredump_filter (core(5)), and nothing that was never touched.
RLIMIT_CORE holds: 0 for no core, else the file is cut at that size.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import time
from typing import TYPE_CHECKING

from trapline.platform import ptrace_calls as pt
from trapline.platform.core_memory import mappings_of, read_present
from trapline.platform.tracee import Tracee
from trapline.sentry.kernel import core_elf
from trapline.sentry.kernel.core_elf import Process, Thread
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from trapline.platform.engine import Engine

_GETREGSET = 0x4204
_PATIENCE_NS = 2_000_000_000  # for a thread to stop: one that a dying disk holds cannot


class CoreDumper:
    """Writes cores into one directory of the host."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        #: The files that were written, in order.
        self.written: list[str] = []
        #: Wait until memory that is still on its way has come: /proc/PID/mem does not (page_loader.py).
        self.load: Callable[[], object] = lambda: None

    def dump(self, e: Engine, t: Tracee, siginfo: bytes) -> bool:
        """Write the core of the process of a task that stands at the delivery of its last signal.

        True when there is one. Nothing that goes wrong is more than a line in the log.
        """
        try:
            limit, hard = resource.prlimit(t.host_group, resource.RLIMIT_CORE)
            if limit == 0:
                return False
            resource.prlimit(t.host_group, resource.RLIMIT_CORE, (0, hard))  # the host is not to write one too
            self.load()
            path = self._write(_gather(e, t, siginfo), t.host_group, limit)
        except (OSError, Gone) as error:
            e.log(f"no core of task {t.tid}: {error}")
            return False
        self.written.append(path)
        return True

    def _write(self, process: Process, host: int, limit: int) -> str:
        name = process.name.decode(errors="replace").replace("/", "!")
        stem = os.path.join(self.directory, f"core.{name}.{process.pid}.{int(time.time())}")
        path, number = stem, 0
        while True:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                break
            except FileExistsError:
                number += 1
                path = f"{stem}.{number}"
        try:
            head, pieces = core_elf.layout(process)
            size = pieces[-1][0] + pieces[-1][2] if pieces else len(head)
            size = size if limit < 0 else min(size, limit)
            os.write(fd, head[:size])
            os.ftruncate(fd, size)  # what was never touched is a hole
            for at, data in read_present(host, pieces):
                if at < size:
                    os.pwrite(fd, data[: size - at], at)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        return path


def _gather(e: Engine, t: Tracee, siginfo: bytes) -> Process:
    assert t.task is not None
    group = e.kernel.group(t.task)
    threads = [_thread(t)]
    for tid in group.threads:
        other = e.by_tid.get(tid)
        if other is not None and other is not t and _stop(e, other):
            try:
                threads.append(_thread(other))
            except (Gone, OSError):
                continue  # it died meanwhile
    status = dict(line.split(":\t", 1) for line in _text(t.host_group, "status").splitlines() if ":\t" in line)
    return Process(
        siginfo=siginfo,
        threads=threads,
        mappings=mappings_of(t.host_group),
        pid=group.tgid,
        ppid=group.ppid,
        pgid=group.pgid,
        sid=group.sid,
        uid=int(status["Uid"].split()[0]),
        gid=int(status["Gid"].split()[0]),
        name=status["Name"].strip().encode("utf-8", "surrogateescape"),
        arguments=_bytes(t.host_group, "cmdline").rstrip(b"\0").replace(b"\0", b" "),
        auxv=_bytes(t.host_group, "auxv"),
        times=_times(t.host_group),
    )


def _stop(e: Engine, t: Tracee) -> bool:
    """Bring a thread to a stop and leave it there; False when it ended, or cannot stop."""
    deadline = time.monotonic_ns() + _PATIENCE_NS
    try:
        if t.holding is not None:
            return True  # at its event stop already, until its vfork child is done
        pt.call(pt.PTRACE_INTERRUPT, t.host)
        while time.monotonic_ns() < deadline:
            status = pt.wait_now(t.host)
            if status is None:
                time.sleep(0.0002)
            elif status & 0xFF != 0x7F:
                e.deferred.append((t.host, status, pt.last_rusage()))
                return False
            elif status >> 16 in (pt.EVENT_FORK, pt.EVENT_VFORK, pt.EVENT_CLONE):
                # It has a child that nobody knows yet: that is served first, and it goes on to the interrupt.
                e.serve_stop(t.host, status)
            else:
                return True
    except Gone:
        return False
    return False


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _register_set(host: int, kind: int) -> bytes:
    """PTRACE_GETREGSET; empty where the machine has no such set."""
    buffer = ctypes.create_string_buffer(16384)
    vector = _Vector(ctypes.addressof(buffer), 16384)
    try:
        pt.call(_GETREGSET, host, kind, ctypes.addressof(vector))
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EINVAL):
            raise
        return b""
    return buffer.raw[: vector.size]


def _thread(t: Tracee) -> Thread:
    registers = _register_set(t.host, core_elf.NT_PRSTATUS)
    if t.parked:
        # It waits in pause in place of its call, whose number is what a debugger wants to see.
        at = 15 * 8  # orig_rax in user_regs_struct
        registers = registers[:at] + t.nr.to_bytes(8, "little") + registers[at + 8 :]
    return Thread(
        tid=t.tid,
        registers=registers,
        floating=_register_set(t.host, core_elf.NT_PRFPREG),
        extended=_register_set(t.host, core_elf.NT_XSTATE),
        blocked=t.task.mask if t.task is not None else 0,
    )


def _times(host: int) -> tuple[int, int, int, int]:
    fields = _bytes(host, "stat").rpartition(b")")[2].split()
    tick = 1_000_000 // os.sysconf("SC_CLK_TCK")
    user, system, children_user, children_system = (int(f) * tick for f in fields[11:15])
    return user, system, children_user, children_system


def _bytes(host: int, name: str) -> bytes:
    with open(f"/proc/{host}/{name}", "rb") as file:
        return file.read()


def _text(host: int, name: str) -> str:
    return _bytes(host, name).decode("utf-8", "surrogateescape")
