"""How an owned call waits: the one way to block.

A handler that may wait is an `async def`. It awaits `block(...)` or `execute(...)`, which yield a plain
request to whoever drives the coroutine (syscalls/dispatch.py); no event loop is involved, so the order of
wake-ups is the kernel's own and unit tests need no process. All progress is in the task's `CallRecord`.
"""

from __future__ import annotations

import enum
from collections.abc import Generator
from typing import Any


class Outcome(enum.IntEnum):
    """Why a blocked call goes on."""

    WOKEN = 0
    TIMED_OUT = 1
    INTERRUPTED = 2  # a signal is about to be delivered, or the call is being unwound


class Restart(enum.IntEnum):
    """What an interrupted call becomes (Linux include/linux/errno.h).

    SYS restarts after a handler with SA_RESTART, NOINTR after any; NOHAND and RESTARTBLOCK only when no handler ran;
    EINTR never.
    """

    EINTR = 4
    SYS = 512
    NOINTR = 513
    NOHAND = 514
    RESTARTBLOCK = 516


class Interrupted(Exception):
    """Raised by a handler whose block was interrupted, with the rule for its restart."""

    def __init__(self, kind: Restart) -> None:
        super().__init__(kind)
        self.kind = kind


class Block:
    """Request: wait until woken, until `deadline` (ns on `clock_id`; -1 never) or until interrupted.

    `queue` names what is waited for, so that `ps` and a deadlock report can say it.
    """

    __slots__ = ("clock_id", "deadline", "queue")

    def __init__(self, clock_id: int, deadline: int, queue: str) -> None:
        self.clock_id = clock_id
        self.deadline = deadline
        self.queue = queue

    def __await__(self) -> Generator[Block, Outcome, Outcome]:
        outcome = yield self
        return outcome


class Execute:
    """Request: let the host execute this call, with other arguments if given, and go on with its result.

    The guest's registers are put back afterwards. Only for calls of class stop and wrap.
    """

    __slots__ = ("args",)

    def __init__(self, args: tuple[int, ...] | None = None) -> None:
        self.args = args

    def __await__(self) -> Generator[Execute, int, int]:
        result = yield self
        return result


class AfterSignals:
    """Request: let the signals that are there be taken, by whichever threads, and go on then; also after a stop.

    It is how a call ends with ERESTARTSYS that finds out anew, when it is made again, whether it may go on. The outcome
    is INTERRUPTED where a handler of the caller's is about to run, else WOKEN. Only for calls of class stop and wrap.
    """

    __slots__ = ()

    def __await__(self) -> Generator[AfterSignals, Outcome, Outcome]:
        outcome = yield self
        return outcome


class Reply(enum.Enum):
    """What a plain handler may return instead of a number."""

    HOST = "host"  # the host executes the call as it stands; the sentry is not told the result
    BLOCKED = "blocked"  # the call waits; its result comes by Platform.complete
    AGAIN = "again"  # it waits for signals to be taken only, and goes on by Dispatcher.go_on


Driver = Generator[Any, Any, int]
