"""What a run may leave behind: processes, mounts, namespaces, temporary files, state. Nothing of it may be left.

Every process of a sandbox descends from its trapline, so once we are their subreaper (prctl(2)) whatever outlives
it is found below us. A namespace lives as long as a process, a mount or a descriptor holds it: they are looked for
in all of /proc that can be read, by their numbers.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

_SUBREAPER = 36
_KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def mounts() -> list[str]:
    """Mount points of our namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return sorted(line.split()[4] for line in file)


def cgroups() -> set[str]:
    """Control groups whose name has ours in it."""
    return {str(path) for path in Path("/sys/fs/cgroup").glob("**/*trapline*")}


def namespaces(pid: int) -> set[str]:
    """`kind:[number]` of a process that are not our own."""
    found = set()
    for kind in _KINDS:
        try:
            name = os.readlink(f"/proc/{pid}/ns/{kind}")
            if name != os.readlink(f"/proc/self/ns/{kind}"):
                found.add(name)
        except OSError:
            continue
    return found


def _began(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return float("inf")


def living() -> list[psutil.Process]:
    """Our descendants that run; those that have ended and are ours are reaped."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
            elif process.ppid() == os.getpid():
                os.waitpid(process.pid, os.WNOHANG)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue
    return found


class Leftovers:
    """Looks before and after. `temporary` is to be the TMPDIR, `state` the --state-dir of what is run."""

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        self._own = tempfile.mkdtemp(prefix="soak-")
        self.temporary = self._own + "/tmp"
        self.state = self._own + "/state"
        os.mkdir(self.temporary)
        self._mounts = mounts()
        self._cgroups = cgroups()
        self._before = {process.pid for process in psutil.Process().children(recursive=True)}
        self.namespaces: set[str] = set()

    def processes(self) -> list[psutil.Process]:
        """Descendants that were not there before."""
        return [process for process in living() if process.pid not in self._before]

    def all_gone(self, seconds: float) -> bool:
        """Wait for the processes to end, which are being killed: False when some do not within this time."""
        end = time.monotonic() + seconds
        while self.processes():
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    def note_namespaces(self, pid: int) -> None:
        """Remember the namespaces of what runs below a process now, to be looked for at the end."""
        for process in psutil.Process(pid).children(recursive=True):
            self.namespaces |= namespaces(process.pid)

    def left(self, state: bool = True, ended: float = 0) -> list[str]:
        """One line for each thing that is left. `state`: the state directory counts, too.

        `ended` is when the sandbox ended, s since the epoch: a namespace's number may be another's after that.
        """
        found = [f"process {p.pid} {p.name()}" for p in self.processes()]
        found += [f"mount {point}" for point in mounts() if point not in self._mounts]
        found += [f"cgroup {path}" for path in cgroups() - self._cgroups]
        found += [f"temporary file {name}" for name in os.listdir(self.temporary)]
        if state and os.path.isdir(self.state):
            found += [f"state {name}" for name in os.listdir(self.state)]
        if self.namespaces:
            for entry in os.listdir("/proc"):
                if entry.isdecimal() and _began(int(entry)) < ended:
                    found += [f"namespace {name} of {entry}" for name in self.namespaces & namespaces(int(entry))]
        return found

    def close(self) -> None:
        """End what is left, and remove our directory."""
        for process in self.processes():
            process.kill()
        self.all_gone(5)
        shutil.rmtree(self._own, ignore_errors=True)
