"""What is written down of sandboxes, read for the verbs: which there are, whether one runs, how one ended.

`platform/state_dir.py` writes it. Nothing here imports msgspec, which costs more than Python's own start.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat

from trapline.sentry.control.client import Client, ControlError, Gone

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from typing import Any

LONGEST_ID = 128
_UNFINISHED = ".new-"  # state_dir.py: an entry that is being made
_MOST = 1 << 20  # bytes of info.json


class RecordError(Exception):
    """One line for the user, without a full stop."""


class NoSuchSandbox(RecordError):
    """There is none of this id."""


class Record:
    """One entry: `info` is info.json's object."""

    __slots__ = ("directory", "id", "info", "owner")

    def __init__(self, directory: str, id: str, info: dict[str, Any], owner: int) -> None:
        self.directory = directory
        self.id = id
        self.info = info
        self.owner = owner  # user id

    @property
    def named(self) -> bool:
        return bool(self.info.get("named"))

    @property
    def pid(self) -> int:
        return int(self.info.get("pid", 0))

    def is_live(self) -> bool:
        """Whether its sentry runs: it keeps `lock` locked (flock(2)), and the host frees that with its end, also when
        nobody waits for it."""
        try:
            lock = os.open(self.directory + "/lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(lock)
        return False

    def client(self) -> Client:
        """A connection to it. RecordError."""
        try:
            return Client(self.directory)
        except Gone:
            raise RecordError(f"sandbox {self.id} is not running") from None
        except ControlError as error:
            raise RecordError(f"sandbox {self.id}: {error}") from None

    def status(self, timeout: float | None = None) -> str:
        """The OCI status. RecordError where it runs and does not answer, in so many seconds."""
        if not self.is_live():
            return "stopped"
        try:
            with Client(self.directory, timeout) as client:
                return str(client.call("state")["status"])
        except Gone:
            # It does not serve yet, or no more. A sandbox of `do` never does.
            if not self.is_live() or os.path.exists(self.directory + "/control.sock"):
                return "stopped"
            return "creating" if self.named else "running"
        except ControlError as error:
            raise RecordError(f"sandbox {self.id}: {error}") from None


def check_id(name: str) -> None:
    """RecordError for what is no id: letters, digits and `_+-.`, not beginning with a dot."""
    if not name or len(name) > LONGEST_ID or name.startswith("."):
        raise RecordError(f"invalid id '{name}': 1 to {LONGEST_ID} characters, the first no dot")
    if not all((c.isascii() and c.isalnum()) or c in "_+-." for c in name):
        raise RecordError(f"invalid id '{name}': letters, digits and _ + - . are allowed")


def default_directory() -> str:
    """As platform/state_dir.py has it."""
    uid = os.geteuid()
    if uid == 0:
        return "/run/trapline"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and os.access(runtime, os.W_OK | os.X_OK):
        return runtime + "/trapline"
    return f"/tmp/trapline-{uid}"


def find(given: str | None, name: str) -> Record:
    """The sandbox of this id in the state directory: the one given, or the user's. RecordError, NoSuchSandbox."""
    check_id(name)
    path = given or default_directory()
    found = _read(path, name)
    if found is None:
        _check_directory(path)
        raise NoSuchSandbox(f"sandbox {name} does not exist")
    return found


def all_of(path: str) -> list[Record]:
    """Every entry that can be read, in no order. OSError for the directory."""
    found = []
    for name in os.listdir(path):
        try:
            record = None if name.startswith(_UNFINISHED) else _read(path, name)
        except RecordError:
            continue  # another user's
        if record is not None:
            found.append(record)
    return found


def _check_directory(path: str) -> None:
    try:
        os.scandir(path).close()
    except FileNotFoundError:
        return
    except OSError as error:
        raise RecordError(f"state directory {path}: {error.strerror}") from None


def _read(path: str, name: str) -> Record | None:
    directory = f"{path}/{name}"
    try:
        # Somebody else's directory may hold anything under this name: no link is followed, no pipe waited for.
        file = os.open(directory + "/info.json", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        raise RecordError(f"sandbox {name} is another user's: only they and root may ask") from None
    except OSError:
        return None
    try:
        seen = os.fstat(file)
        if not stat.S_ISREG(seen.st_mode):
            return None
        info = json.loads(os.read(file, _MOST))
        return Record(directory, name, info, seen.st_uid) if isinstance(info, dict) else None
    except (OSError, ValueError):
        return None
    finally:
        os.close(file)
