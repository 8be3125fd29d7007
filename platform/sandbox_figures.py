"""The processes of a running sandbox and what they have used, from its own kernel and the host's /proc (proc(5))."""

from __future__ import annotations

import os
import resource
from time import CLOCK_BOOTTIME, clock_gettime, time
from typing import TYPE_CHECKING

from trapline.sentry.control.interface import Process, Stats
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls import table

if TYPE_CHECKING:
    from trapline.platform.engine import Engine
    from trapline.sentry.kernel.state import ThreadGroup

_NSEC = 1_000_000_000
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PTS = 136  # major number of /dev/pts/N: of 256 terminals each, eight in a row (devices.txt)


def _stat(host: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on. OSError."""
    with open(f"/proc/{host}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def processes(engine: Engine, paused: bool) -> list[Process]:
    """In the order of their ids; zombies too."""
    found = []
    booted = time() - clock_gettime(CLOCK_BOOTTIME)
    for group in sorted(engine.kernel.state.groups.values(), key=lambda group: group.tgid):
        host = _host_of(engine, group)
        try:
            fields = _stat(host)
            with open(f"/proc/{host}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")[:-1]
            with open(f"/proc/{host}/comm", "rb") as file:
                name = file.read().decode(errors="replace").rstrip("\n")
        except OSError:
            if group.exit_status < 0:
                continue  # it is just ending
            fields, words, name = [b"Z", *[b"0"] * 40], [], "?"
        try:
            used = engine.group_cpu_ns(group.tgid) / _NSEC
        except (Gone, OSError):
            used = (int(fields[11]) + int(fields[12])) / _TICK
        found.append(
            Process(
                pid=group.tgid,
                ppid=group.ppid,
                pgid=group.pgid,
                sid=group.sid,
                uid=_user(host, group.uids[0]),
                tty=_terminal(int(fields[4])),
                state=_state(group, fields[0].decode(), paused),
                threads=len(group.threads),
                cpu=used,
                rss=max(int(fields[21]), 0) * _PAGE,
                started=booted + int(fields[19]) / _TICK,
                command=words or [f"[{name}]"],
            )
        )
    return found


def _user(host: int, last: int) -> int:
    try:
        return os.stat(f"/proc/{host}/task").st_uid if host else last
    except OSError:
        return last


def _host_of(engine: Engine, group: ThreadGroup) -> int:
    t = engine.by_tid.get(group.tgid)
    if t is not None:
        return t.host_group
    for tid in group.threads:
        if tid in engine.by_tid:
            return engine.by_tid[tid].host_group
    return 0


def _state(group: ThreadGroup, host: str, paused: bool) -> str:
    """The letter of proc(5), as it is inside: the host shows all that stands at a stop of ours as t."""
    if group.exit_status >= 0:
        return "Z"
    if group.stop_signal:
        return "T"
    return "S" if host == "t" and not paused else host


def _terminal(number: int) -> str:
    if not number:
        return ""
    major, minor = os.major(number), os.minor(number)
    if _PTS <= major < _PTS + 8:
        return f"pts/{(major - _PTS) * 256 + minor}"
    return f"tty{minor}" if major == 4 else f"{major}:{minor}"


def stats(engine: Engine, init: int) -> Stats:
    """What all of it uses. What has ended is in the time of who waited for it: a guest, the init, or the sentry."""
    groups = engine.kernel.state.groups
    used = memory = 0
    hosts = {host for group in groups.values() if (host := _host_of(engine, group))}
    for host in {*hosts, init}:
        try:
            fields = _stat(host)
        except OSError:
            continue
        used += sum(int(field) for field in fields[11:15]) * _NSEC // _TICK
        if host in hosts:
            memory += max(int(fields[21]), 0) * _PAGE
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    used += int((reaped.ru_utime + reaped.ru_stime) * _NSEC)
    own = resource.getrusage(resource.RUSAGE_SELF)
    sentry = int((own.ru_utime + own.ru_stime) * _NSEC)
    return Stats(
        pids=sum(1 for group in groups.values() if group.exit_status < 0),
        threads=len(engine.kernel.state.tasks),
        cpu_total=used + sentry,
        cpu_guests=used,
        cpu_sentry=sentry,
        memory_guests=memory,
        memory_sentry=int(_stat(os.getpid())[21]) * _PAGE,
        calls={table.name_of(nr): count for nr, count in sorted(engine.kernel.state.counts.items())},
    )
