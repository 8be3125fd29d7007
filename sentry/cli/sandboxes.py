"""Running sandboxes as they are seen from outside: from the state directories and the host's /proc.

Nothing is asked of a sandbox's sentry, so that looking costs it nothing and works also when it hangs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import psutil

_ANSWER_SECONDS = 2.0  # for a sandbox to say in which state it is
#: (id, platform/state_dir.py's Info, user id, state directory)
Entry = tuple[str, Any, int, str]


class NoSuchSandbox(Exception):
    """Its text is one line for the user."""


class Guest(msgspec.Struct):
    """One process of a sandbox. Ids are the sandbox's, 0 for what lies outside; times in s, memory in bytes."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    tty: str  # the host's name for it; "" without one
    state: str  # one letter, proc(5); t: stopped, or at one of its calls
    threads: int
    cpu: float  # user and system
    rss: int
    command: list[str]
    host_pid: int


class Sandbox(msgspec.Struct):
    """One sandbox. Times in s, memory in bytes; of a stopped one what it used is 0."""

    id: str
    status: str  # the OCI runtime specification's; "unknown": it does not answer
    platform: str  # "" when an older trapline wrote it down
    pid: int  # of its sentry, on the host
    init_pid: int  # of its pid 1, on the host; 0 while it starts
    user: str
    created: float  # since the epoch
    uptime: float
    guests: int  # processes
    guest_cpu: float  # of the guests, those that were waited for included
    sentry_cpu: float
    guest_rss: int  # the sum, pages that they share counted for each
    sentry_rss: int
    command: list[str]
    bundle: str = ""
    annotations: dict[str, str] = {}
    exit_status: int = -1  # of a stopped one; -1: not known


def directories(given: str | None) -> list[str]:
    """Where to look: the directory that was given, else the user's own and, for root, those of all users."""
    from trapline.platform import state_dir

    if given is not None:
        return [os.path.abspath(given)]
    found = [state_dir.default_path()]
    if os.geteuid() == 0:
        from glob import glob

        found += sorted(glob("/run/user/*/trapline") + glob("/tmp/trapline-*"))
    return found


def entries(given: str | None) -> list[Entry]:
    """(id, what was written down, user id, state directory) of every running sandbox, the oldest first.

    NoSuchSandbox when a directory that was asked for cannot be read. What a killed one left is removed from
    a directory of ours as `do` does it, and elsewhere not looked at.
    """
    from trapline.platform import state_dir

    found = []
    for path in directories(given):
        try:
            owner = os.lstat(path).st_uid
            if owner == os.geteuid():
                state_dir.remove_stale(path)
            found += [(name, info, owner, path) for name, info in state_dir.running(path, owner)]
        except FileNotFoundError:
            if given is not None:
                raise NoSuchSandbox(f"state directory {path}: there is none") from None
        except OSError as error:
            if given is not None or path == state_dir.default_path():
                raise NoSuchSandbox(f"state directory {path}: {error.strerror}") from None
    return sorted(found, key=lambda entry: (entry[1].created, entry[0]))


def stopped(given: str | None) -> list[Sandbox]:
    """The named sandboxes that have ended and were not deleted, the oldest first."""
    from trapline.platform import state_dir

    found = []
    for path in directories(given):
        try:
            owner = os.lstat(path).st_uid
            found += [_ended(name, info, owner) for name, info in state_dir.stopped(path)]
        except OSError:
            continue  # `entries` has said so, where it was asked for
    return sorted(found, key=lambda sandbox: (sandbox.created, sandbox.id))


def _ended(name: str, info: Any, owner: int) -> Sandbox:
    return Sandbox(
        id=name, status="stopped", platform=info.platform, pid=0, init_pid=0, user=_user_name(owner),
        created=info.created, uptime=0.0, guests=0, guest_cpu=0.0, sentry_cpu=0.0, guest_rss=0, sentry_rss=0,
        command=info.command, bundle=info.bundle, annotations=info.annotations, exit_status=info.exit_status,
    )  # fmt: skip


def _status(path: str, name: str) -> str:
    """Of a named sandbox whose sentry runs."""
    from trapline.sentry.control import records

    try:
        return records.find(path, name).status(_ANSWER_SECONDS)
    except records.RecordError:
        return "unknown"


def choose(given: str | None, name: str | None) -> Entry:
    """The entry of one sandbox, by its id or because it is the only one. NoSuchSandbox."""
    if name is not None and given is not None and not os.path.lexists(given):
        raise NoSuchSandbox(_why_not(name))
    there = entries(given)
    if name is None:
        if len(there) == 1:
            return there[0]
        if not there:
            raise NoSuchSandbox("no sandbox is running")
        raise NoSuchSandbox(f"which one? {', '.join(entry[0] for entry in there)}: see trapline list")
    for entry in there:
        if entry[0] == name:
            return entry
    if any(sandbox.id == name for sandbox in stopped(given)):
        raise NoSuchSandbox(f"sandbox {name} is not running")
    raise NoSuchSandbox(_why_not(name))


def _why_not(name: str) -> str:
    pid = name.partition("-")[0]
    if given_by_another := pid.isdecimal() and os.geteuid() != 0:
        try:
            given_by_another = os.stat(f"/proc/{int(pid)}").st_uid != os.geteuid()
        except OSError:
            given_by_another = False
    if given_by_another:
        return f"sandbox {name} would be another user's: only they and root may look at it"
    return f"sandbox {name} does not exist: see trapline list"


def look(entry: Entry) -> Sandbox | None:
    """A sandbox's figures; None when it has just ended."""
    import psutil

    name, info, owner, path = entry
    try:
        sentry = psutil.Process(info.pid)
        times, resident = sentry.cpu_times(), sentry.memory_info().rss
        uptime = max(0.0, _now() - sentry.create_time())
    except psutil.NoSuchProcess:
        return None
    cpu, rss, count = 0.0, 0, 0
    for process in _members(info, with_init=True):
        try:
            with process.oneshot():
                used, memory = process.cpu_times(), process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        cpu += used.user + used.system + used.children_user + used.children_system
        if info.named or process.pid != info.init_pid:
            rss += memory
            count += 1
    return Sandbox(
        id=name,
        status=_status(path, name) if info.named else "running",
        platform=info.platform,
        pid=info.pid,
        init_pid=info.init_pid,
        user=_user_name(owner),
        created=info.created,
        uptime=uptime,
        guests=count,
        guest_cpu=cpu,
        sentry_cpu=times.user + times.system,
        guest_rss=rss,
        sentry_rss=resident,
        command=info.command,
        bundle=info.bundle,
        annotations=info.annotations,
    )


def guests(info: Any) -> list[Guest]:
    """The processes of a sandbox, in the order of their ids."""
    import psutil

    found = []
    ids: dict[int, int] = {}
    for process in _members(info, with_init=True):
        try:
            with process.oneshot():
                status = _proc_status(process.pid)
                own = ids[process.pid] = int(status["NSpid"].split()[-1])
                if process.pid == info.init_pid and not info.named:
                    continue  # a stub; with a name it is the program
                times = process.cpu_times()
                found.append(
                    Guest(
                        pid=own,
                        ppid=process.ppid(),
                        pgid=int(status["NSpgid"].split()[-1]),
                        sid=int(status["NSsid"].split()[-1]),
                        tty=(process.terminal() or "").removeprefix("/dev/"),
                        state=status["State"][:1],
                        threads=int(status["Threads"]),
                        cpu=times.user + times.system,
                        rss=process.memory_info().rss,
                        command=_command(process),
                        host_pid=process.pid,
                    )
                )
        except (psutil.NoSuchProcess, OSError, KeyError):
            continue  # it has ended
    for guest in found:
        guest.ppid = ids.get(guest.ppid, 0)
    return sorted(found, key=lambda guest: guest.pid)


def _members(info: Any, with_init: bool) -> list[psutil.Process]:
    """The sandbox's pid 1 and everything below it; with a name also what `exec` made, which is the sentry's child."""
    import psutil

    from trapline.platform import state_dir

    try:
        init = psutil.Process(info.init_pid) if info.init_pid > 0 else None
        if init is None or state_dir.start_time(info.init_pid) != info.init_start_time:
            return []
        if info.named:
            depth = len(_proc_status(init.pid)["NSpid"].split())
            return [p for p in psutil.Process(info.pid).children(recursive=True) if _depth(p.pid) == depth]
        return [init, *init.children(recursive=True)] if with_init else init.children(recursive=True)
    except (psutil.NoSuchProcess, OSError):
        return []


def _depth(pid: int) -> int:
    """In how many pid namespaces a process has an id: the sentry's helpers are in one less than guests."""
    try:
        return len(_proc_status(pid)["NSpid"].split())
    except (OSError, KeyError):
        return 0


def _command(process: psutil.Process) -> list[str]:
    """Its arguments; in brackets its name, where it has none (a zombie) or they may not be read."""
    import psutil

    from trapline.sentry.state.names import printable

    try:
        return [printable(word) for word in process.cmdline()] or [f"[{process.name()}]"]
    except (psutil.AccessDenied, psutil.ZombieProcess):
        return [f"[{process.name()}]"]


def _proc_status(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _now() -> float:
    from time import time

    return time()


def as_json(rows: list[Any]) -> str:
    """A list of objects."""
    return msgspec.json.format(msgspec.json.encode(rows), indent=2).decode()
