"""Where running sandboxes are written down, so that what a killed one left behind is found and removed.

One directory per sandbox holds `lock`, which its sentry keeps locked (flock(2)) as long as it lives,
`info.json`, and `stage`, the place for the sandbox's own mounts (which only its mount namespace has). An
entry whose lock is free is stale, unless the sandbox has a name: then it has stopped, and is there until `delete`.
`sentry/control/records.py` reads the same, for verbs that must start fast.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from time import time

import msgspec

#: What an entry's directory may hold, by whether a stopped one still has it.
_OF_A_RUN = ("stage", "control.sock")
_KEPT = ("output.log", "info.json", "lock")
_HINT = "give another with --state-dir"
_UNFINISHED = ".new-"  # name of an entry until its lock is held
_UNFINISHED_SECONDS = 60


class Info(msgspec.Struct):
    """What info.json says. Start times are clock ticks after boot, field 22 of /proc/PID/stat (proc(5))."""

    pid: int
    start_time: int
    command: list[str]
    created: float  # seconds since the epoch
    init_pid: int = 0
    init_start_time: int = 0
    platform: str = ""
    # Of a sandbox with a name (`run`, `create`):
    named: bool = False
    bundle: str = ""
    annotations: dict[str, str] = {}
    exit_status: int = -1  # as a shell gives it, once it has ended; -1: it has not, or its sentry was killed
    ended: float = 0.0  # seconds since the epoch


class StateDirError(Exception):
    """No directory for state. Its text is one line for the user."""


class NameTaken(StateDirError):
    """There is a sandbox of this name already."""


class Entry:
    """One running sandbox's directory, whose lock this process holds."""

    __slots__ = ("info", "lock", "path")

    def __init__(self, path: str, lock: int, info: Info) -> None:
        self.path = path
        self.lock = lock
        self.info = info

    @property
    def stage(self) -> str:
        return self.path + "/stage"

    def record_init(self, pid: int) -> None:
        """Write down pid 1 of the sandbox (its host id), to be killed if it is left over."""
        self.info.init_pid = pid
        self.info.init_start_time = start_time(pid)
        self._write()

    def _write(self) -> None:
        # In place and never shorter than before: ext4 would write to disk upon a rename or truncation.
        # Nobody reads it while our lock is held but to show it.
        file = os.open(self.path + "/info.json", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, _encoded(self.info).ljust(os.fstat(file).st_size))
        finally:
            os.close(file)

    def finish(self, exit_status: int) -> None:
        """A named sandbox has ended: write that down, and give up the lock. The entry stays. OSError."""
        self.info.exit_status, self.info.ended = exit_status, time()
        try:
            self._write()
        finally:
            remove_parts(self.path, _OF_A_RUN)
            os.close(self.lock)
            self.lock = -1

    def remove(self) -> None:
        """Remove the entry and give up its lock. Not an error if it is gone already."""
        remove_tree(self.path)
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def _encoded(info: Info) -> bytes:
    try:
        return msgspec.json.encode(info)
    except UnicodeEncodeError:
        # Arguments and paths are bytes to Linux; here they are only shown.
        from trapline.sentry.state.names import printable

        shown = [printable(word) for word in info.command]
        return msgspec.json.encode(msgspec.structs.replace(info, command=shown, bundle=printable(info.bundle)))


def start_time(pid: int) -> int:
    """When a process started, in clock ticks after boot; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def default_path() -> str:
    """$XDG_RUNTIME_DIR/trapline; root: /run/trapline; else /tmp/trapline-UID."""
    uid = os.geteuid()
    if uid == 0:
        return "/run/trapline"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and os.access(runtime, os.W_OK | os.X_OK):
        return runtime + "/trapline"
    return f"/tmp/trapline-{uid}"


def prepare(path: str | None = None) -> str:
    """Make the directory if need be; its path. StateDirError when it cannot be made or is another's."""
    path = path or default_path()
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        found = os.lstat(path)
    except OSError as error:
        raise StateDirError(f"state directory {path}: {error.strerror}: {_HINT}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StateDirError(f"state directory {path} belongs to somebody else: {_HINT}")
    return path


def create(path: str, command: list[str], platform: str = "", name: str = "", bundle: str = "") -> Entry:
    """A new, locked entry in a prepared directory, of this name or else of one made from our id. StateDirError."""
    pid = os.getpid()
    info = Info(pid, start_time(pid), command, time(), platform=platform, named=bool(name), bundle=bundle)
    number = 0
    while True:
        own = name or (f"{pid}-{number}" if number else str(pid))
        final = f"{path}/{own}"
        # By our id also where it has a name: by that whoever clears up after us finds it, however little is in it.
        temporary = f"{path}/{_UNFINISHED}{pid}-{name}" if name else f"{path}/{_UNFINISHED}{own}"
        try:
            if os.path.lexists(final):
                raise FileExistsError
            os.mkdir(temporary, 0o700)
            break
        except FileExistsError:
            if name:
                raise NameTaken(f"sandbox {name} already exists") from None
            number += 1  # another sandbox of this process, or a stale entry of an earlier one of this number
        except OSError as error:
            raise StateDirError(f"state directory {path}: {error.strerror}: {_HINT}") from None
    entry = Entry(temporary, -1, info)
    try:
        entry.lock = os.open(temporary + "/lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(entry.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.mkdir(temporary + "/stage", 0o700)
        entry._write()
        os.rename(temporary, final)
    except OSError as error:
        entry.remove()
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise NameTaken(f"sandbox {name} already exists") from None
        raise StateDirError(f"state directory {path}: {error.strerror}: {_HINT}") from None
    entry.path = final
    return entry


def remove_tree(path: str) -> None:
    """Remove an entry's directory, whatever is missing of it."""
    remove_parts(path, (*_OF_A_RUN, *_KEPT))
    try:
        os.rmdir(path)
    except OSError:
        pass


def remove_parts(path: str, names: tuple[str, ...]) -> None:
    """Remove some of what is in an entry's directory. Not an error where something is missing."""
    for name in names:
        try:
            os.rmdir(f"{path}/{name}") if name == "stage" else os.unlink(f"{path}/{name}")
        except OSError:
            pass


def remove_stopped(entry: str) -> bool:
    """Remove a stopped sandbox's entry, and what its sentry may have left; False while one keeps it. OSError."""
    try:
        lock = os.open(entry + "/lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        remove_tree(entry)
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        _kill_left_over(entry)
        remove_tree(entry)
        return True
    finally:
        os.close(lock)


def is_named(entry: str) -> bool:
    """Whether an entry, by its path, is one that stays when its sandbox has ended."""
    info = _read(entry)
    return info is not None and info.named


def remove_stale(path: str) -> list[str]:
    """Remove entries whose sentry is gone, and kill what is left of their sandboxes. The names removed."""
    removed: list[str] = []
    try:
        names = os.listdir(path)
    except OSError:
        return removed
    for name in names:
        entry = f"{path}/{name}"
        try:
            if name.startswith(_UNFINISHED) and os.stat(entry).st_mtime > time() - _UNFINISHED_SECONDS:
                continue
            lock = os.open(entry + "/lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            # Being removed right now, or half removed when somebody was killed.
            if os.path.isdir(entry) and os.stat(entry).st_mtime < time() - _UNFINISHED_SECONDS:
                remove_tree(entry)
            continue
        except OSError:
            continue  # not one of ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _kill_left_over(entry)
            if is_named(entry):
                remove_parts(entry, _OF_A_RUN)
            else:
                remove_tree(entry)
                removed.append(name)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
    return removed


def remove_of(path: str, pid: int, started: int) -> None:
    """Remove the entries of a dead sentry, finished or not, and kill what is left of their sandboxes.

    `started` is the start time that it had, 0 when it was dead already: another process may have its id by now.
    """
    if start_time(pid) not in (0, started):
        return
    try:
        names = os.listdir(path)
    except OSError:
        return
    for name in names:
        bare = name.removeprefix(_UNFINISHED)
        entry = f"{path}/{name}"
        info = _read(entry)
        if info is not None and info.named:
            if (info.pid, info.start_time) == (pid, started):
                _kill_left_over(entry)
                remove_tree(entry) if name.startswith(_UNFINISHED) else remove_parts(entry, _OF_A_RUN)
        elif bare == str(pid) or bare.startswith(f"{pid}-"):
            _kill_left_over(entry)
            remove_tree(entry)


def running(path: str, owner: int) -> list[tuple[str, Info]]:
    """(name, info) of each entry whose sentry runs and is `owner`'s, in no order. OSError for the directory."""
    found = []
    for name in os.listdir(path):
        info = None if name.startswith(_UNFINISHED) else _read(f"{path}/{name}")
        if info and info.named and is_stopped(f"{path}/{name}"):
            continue
        try:
            if info and start_time(info.pid) == info.start_time and os.stat(f"/proc/{info.pid}").st_uid == owner:
                found.append((name, info))
        except OSError:
            continue  # it has just ended
    return found


def stopped(path: str) -> list[tuple[str, Info]]:
    """(name, info) of each named sandbox that has ended and was not deleted, in no order. OSError for the directory."""
    found = []
    for name in os.listdir(path):
        info = None if name.startswith(_UNFINISHED) else _read(f"{path}/{name}")
        if info and info.named and is_stopped(f"{path}/{name}"):
            found.append((name, info))
    return found


def is_stopped(entry: str) -> bool:
    """Whether nobody holds the lock of an entry: so it is as soon as its sentry has ended, waited for or not."""
    try:
        lock = os.open(entry + "/lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _read(entry: str) -> Info | None:
    try:
        # Somebody else's directory may hold anything under this name: no link is followed, no pipe waited for.
        file = os.open(entry + "/info.json", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return msgspec.json.decode(os.read(file, 1 << 20), type=Info)
    except (OSError, msgspec.DecodeError):
        return None
    finally:
        os.close(file)


def _kill_left_over(entry: str) -> None:
    info = _read(entry)
    if info is None or info.init_pid <= 0:
        return
    try:
        pidfd = os.pidfd_open(info.init_pid)
    except OSError:
        return
    try:
        # Only after the descriptor is there: from then on the number cannot mean another process unnoticed.
        if info.init_start_time and start_time(info.init_pid) == info.init_start_time:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(pidfd)
