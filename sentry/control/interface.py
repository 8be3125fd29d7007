"""What the control server asks of the sandbox that it is part of.

Declared here, implemented in `platform/` for a running sandbox and by a fake in the server's own tests. All of it runs
in the sentry's one thread. Errors that a client shall see are `Refused`; their text is one line without a full stop.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec


class Status(enum.Enum):
    """The states of the OCI runtime specification (runtime.md, "State"), and one of runc's and runsc's own."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Refused(Exception):
    """What was asked for is not possible now."""


class NoSuchProcess(Refused):
    """A process that is not, or no longer, in the sandbox."""


class ExecSpec(msgspec.Struct):
    """One more process for a running sandbox: the OCI `process` object as far as it is supported."""

    args: list[str]
    env: list[str] | None = None  # NAME=VALUE; None: as the sandbox's first process had it
    add_env: list[str] = []  # NAME=VALUE, on top of that
    cwd: str = ""  # absolute, in the sandbox; empty: as the first process's
    uid: int = -1  # -1: as the first process's
    gid: int = -1
    groups: list[int] = []
    terminal: bool = False  # a terminal of the sandbox's own; its master is what the client gets
    size: tuple[int, int] = (0, 0)  # of the terminal: rows, columns; 0: not set
    rlimits: dict[str, tuple[int, int]] = {}  # RLIMIT_NOFILE and so on: soft, hard
    capabilities: list[str] | None = None  # CAP_CHOWN and so on; None: as the first process's
    no_new_privileges: bool = True


class Process(msgspec.Struct):
    """One process of the sandbox, for `ps`. Ids are the sandbox's; CPU time in s, memory in bytes."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    uid: int
    tty: str
    state: str  # one letter, proc(5)
    threads: int
    cpu: float
    rss: int
    started: float  # since the epoch
    command: list[str]


class Stats(msgspec.Struct):
    """For `events --stats`. CPU in ns, memory in bytes."""

    pids: int
    threads: int
    cpu_total: int  # guests, those that ended included, and sentry
    cpu_guests: int
    cpu_sentry: int
    memory_guests: int
    memory_sentry: int
    calls: dict[str, int]  # owned calls answered, by name


class Started(msgspec.Struct):
    """What `exec` answers: the process's id in the sandbox and on the host, and the terminal's master, -1 for none."""

    pid: int
    host_pid: int
    master: int = -1


class CheckpointSpec(msgspec.Struct):
    """What is to be saved, and how. Paths are absolute paths of the host; see `trapline checkpoint`."""

    image_path: str  # a directory that the image becomes
    leave_running: bool = False  # go on afterwards, in place of ending the sandbox
    compression: Literal["none", "zstd"] = "none"
    direct: bool = False  # O_DIRECT (open(2)): past the page cache
    parent_path: str = ""  # an earlier image of the same sandbox: save only what was written since
    drop: bool = False  # leave out what cannot be saved, and say so, in place of refusing
    fsync: bool = True  # the image outlives a power failure once it is there
    timeout: float = 0.0  # s; not done by then, the sandbox goes on as it was. 0: no limit


class CheckpointResult(msgspec.Struct):
    """What was saved."""

    number: int = 0  # which checkpoint of the sandbox it is (docs/checkpoint-waiting.md)
    image_path: str = ""
    size: int = 0  # of the image, bytes
    seconds: float = 0.0  # from the call to the image's name
    pause_ms: float = 0.0  # for which no guest ran
    dropped: list[str] = []  # what was left out since it cannot be saved
    notes: list[str] = []  # what came out differently than one may expect
    shares: bool = False  # of what the sandbox had, others on the host may have need: its network, or directories


#: Told how far long work is: (bytes done, bytes in all or 0 where that is not known, what is being done in a word or
#: two). Called in the sentry's thread, as often as one likes, and returns at once.
Report = Callable[[int, int, str], None]


class Control(Protocol):
    """One sandbox, seen from its own control server."""

    @property
    def status(self) -> Status: ...

    async def start(self) -> None:
        """Let the first process of a created sandbox execute its program, and wait until it has. Refused in any other
        state, and where it cannot."""

    async def execute(self, spec: ExecSpec, stdio: list[int]) -> Started:
        """Start one more process. `stdio` are descriptors of ours for its 0, 1 and 2 (duplicated; none with a
        terminal). Refused once no task lives: from the moment when the last task has ended, none is made any more."""

    async def wait(self, pid: int | None) -> int:
        """The exit status, as a shell gives it (128+N for signal N), of a process that `execute` started or of the
        sandbox's first (pid None or its id). NoSuchProcess for any other. An end that was not waited for is kept."""

    def kill(self, signo: int, *, pid: int | None = None, pgid: int | None = None, every: bool = False) -> None:
        """Send a signal to the first process, to a process, to a process group, or to all. NoSuchProcess; Refused for
        a number that is no signal. Only SIGKILL in the state `created`."""

    async def pause(self, freeze_clocks: bool = False) -> None:
        """Stop every task at a clean point, without any of them seeing EINTR. Refused unless running. `freeze_clocks`:
        MONOTONIC and BOOTTIME stand still too; else clocks go on, and timers that expire meanwhile fire afterwards."""

    async def resume(self) -> None:
        """Go on. Refused unless paused."""

    async def checkpoint(self, spec: CheckpointSpec, report: Report) -> CheckpointResult:
        """Save the sandbox, which ends then unless `leave_running`. Refused in any state but running, while another
        attempt is in progress, and where it cannot be saved: then it runs as before, and so it does when the call is
        cancelled."""

    async def wait_checkpoint(self, number: int | None) -> int:
        """Until checkpoint `number` is there, or (None) the next attempt is over; how many there are then. Refused when
        that failed. It is registered before the first await (docs/checkpoint-waiting.md)."""

    async def wait_restore(self) -> int:
        """Until all of the image is there that the sandbox was restored from; the number of its checkpoint. Refused
        when that failed, or for a sandbox that was not restored."""

    def processes(self) -> list[Process]: ...

    def stats(self) -> Stats: ...

    async def attach(self) -> tuple[int, bytes]:
        """For the terminal of a detached sandbox: a descriptor (connected socket or pty master) over which bytes go
        both ways, and what was last shown. Refused where the sandbox has no terminal."""

    def resize(self, rows: int, columns: int, pid: int | None = None) -> None:
        """Set the window size of the terminal of the first process or of an `execute`."""

    async def ended(self) -> int:
        """Until the sandbox has ended; the first process's exit status."""
