"""Run a command and know what it cost, as time(1) does: elapsed, CPU time, memory, faults, switches.

What is counted is the command's whole tree of *waited-for* descendants (getrusage(2), RUSAGE_CHILDREN). For
trapline that is everything: guests are descendants of the sandbox's first process, which waits for each of
them (or the host does when the pid namespace ends), and trapline waits for it and for its other helpers.

The command is not started by Python itself: a process's ru_maxrss takes in what its memory was *before*
exec, so every command would seem to need as much as this interpreter. It is started by a program of some
hundred bytes, which reads the clock, forks, waits and reports.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO

import msgspec

# Linux x86-64; `argv[1:]` is the command, descriptor 3 takes the report.
_STARTER = bytes.fromhex(
    # the stack: argc, argv, envp
    "488b0c24"  # mov (%rsp),%rcx
    "488d5c2410"  # lea 16(%rsp),%rbx: &argv[1]
    "488d6ccc10"  # lea 16(%rsp,%rcx,8),%rbp: envp
    "4881ec00010000"  # sub $256,%rsp
    # clock_gettime(CLOCK_MONOTONIC, rsp)
    "68e4000000586a015f4889e60f05"
    # fork()
    "6a39580f0585c0"
    "7439"  # jz child
    # wait4(-1, rsp + 32, 0, rsp + 40)
    "6a3d584883cfff488d74242031d24c8d5424280f05"
    # clock_gettime(CLOCK_MONOTONIC, rsp + 16)
    "68e4000000586a015f488d7424100f05"
    # write(3, rsp, 184); exit(0)
    "6a01586a035f4889e6bab80000000f05"
    "31ffeb19"
    # child: close(3); execve(argv[1], argv + 1, envp); exit(127)
    "6a03586a035f0f05"
    "6a3b58488b3b4889de4889ea0f05"
    "6a7f5f"
    "6a3c580f05"
)
_REPORT = struct.Struct("4q i 4x 18q")  # two timespecs, the wait status, struct rusage
_BASE = 0x400000


class Measured(msgspec.Struct):
    """What one run cost. Times in seconds, memory in KiB."""

    elapsed: float
    user: float
    system: float
    max_resident: int
    major_faults: int
    minor_faults: int
    inputs: int  # blocks of 512 bytes that were really read
    outputs: int
    voluntary: int  # context switches, waiting for something
    involuntary: int  # context switches, its time being up
    status: int  # as a shell gives it: 128 + N for signal N
    stdout: bytes  # digest of what was written
    stderr: bytes  # its last part, as it is

    @property
    def cpu(self) -> float:
        """User and system time, s."""
        return self.user + self.system


class NotMeasured(Exception):
    """The command could not be started, or the run was interrupted."""


def _program() -> bytes:
    """The starter as an ELF file (elf(5)): one header, one loadable segment."""
    size = 64 + 56 + len(_STARTER)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, _BASE + 120, 64, 0, 0, 64, 56, 1, 64, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 4096)
    return header + segment + _STARTER


def find_program(name: str) -> str:
    """The path of a program as a shell would find it. NotMeasured."""
    path = shutil.which(name)
    if path is None:
        raise NotMeasured(f"{name}: no such program")
    return path


def measure(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    capture: bool = True,
    cpus: set[int] | None = None,
) -> Measured:
    """Run a command to its end. NotMeasured when it does not start; its own failure is in `status`.

    Its stdin is /dev/null. Its output is kept in temporary files unless `capture` is False.
    `cpus` are the CPUs it may run on.
    """
    path = find_program(command[0])
    starter = _out_of_the_way(os.memfd_create("starter", os.MFD_CLOEXEC))
    os.write(starter, _program())
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    report_to = _out_of_the_way(write_end)
    allowed = os.sched_getaffinity(0)
    with open(os.devnull, "rb") as null, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, null.fileno(), 0)]
        if capture:
            actions.append((os.POSIX_SPAWN_DUP2, out.fileno(), 1))
            actions.append((os.POSIX_SPAWN_DUP2, err.fileno(), 2))
        actions.append((os.POSIX_SPAWN_DUP2, report_to, 3))
        try:
            if cpus is not None:
                os.sched_setaffinity(0, cpus)
            child = os.posix_spawn(
                f"/proc/self/fd/{starter}",
                ["starter", path, *command[1:]],
                os.environ if environment is None else environment,
                file_actions=actions,
                setsigdef=[13],  # SIGPIPE, which Python ignores
            )
        finally:
            os.sched_setaffinity(0, allowed)
            os.close(report_to)
            os.close(starter)
        try:
            report = os.read(read_end, _REPORT.size)
        finally:
            os.close(read_end)
            os.waitpid(child, 0)
        if len(report) != _REPORT.size:
            raise NotMeasured(f"{command[0]}: the run was interrupted")
        return _measured(report, _digest(out), _tail(err))


def _out_of_the_way(fd: int) -> int:
    """The same descriptor with another number: the starter's 3 must not fall on it."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved


def _measured(report: bytes, stdout: bytes, stderr: bytes) -> Measured:
    # struct rusage: utime, stime, maxrss, ixrss, idrss, isrss, minflt, majflt, nswap, inblock, oublock,
    # msgsnd, msgrcv, nsignals, nvcsw, nivcsw
    s0, n0, s1, n1, status, *usage = _REPORT.unpack(report)
    return Measured(
        elapsed=(s1 - s0) + (n1 - n0) / 1e9,
        user=usage[0] + usage[1] / 1e6,
        system=usage[2] + usage[3] / 1e6,
        max_resident=usage[4],
        minor_faults=usage[8],
        major_faults=usage[9],
        inputs=usage[11],
        outputs=usage[12],
        voluntary=usage[16],
        involuntary=usage[17],
        status=os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status),
        stdout=stdout,
        stderr=stderr,
    )


def _digest(file: IO[bytes]) -> bytes:
    import hashlib

    file.seek(0)
    return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]


def _tail(file: IO[bytes]) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2000))
    return file.read()
