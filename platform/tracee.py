"""What the platform knows of one guest thread: handles and the phase of its call. Never serialised."""

from __future__ import annotations

from trapline.platform.guest_memory import GuestMemory
from trapline.platform.notifications import Listener
from trapline.sentry.kernel.block import Execute
from trapline.sentry.kernel.state import Task

#: Why a task stops at every call: somebody looks on, or the sandbox has moved its wall clock.
WATCHED, WALL_CLOCK = 1, 2


class Tracee:
    """One traced thread. `host` is its id as the sentry sees it, `tid` as the sandbox does."""

    __slots__ = (
        "after_stop",
        "args",
        "execute",
        "holder",
        "holding",
        "host",
        "host_group",
        "lend_by",
        "lending",
        "listener",
        "listening",
        "memory",
        "nr",
        "opened",
        "parked",
        "poked",
        "reissue",
        "repoke",
        "restarts",
        "saved",
        "self_sent",
        "task",
        "tid",
        "trap_all",
    )

    def __init__(self, host: int, host_group: int, tid: int, task: Task | None) -> None:
        self.host = host
        self.host_group = host_group
        self.tid = tid
        self.task = task  # None until its creator's event has been seen
        self.memory = GuestMemory(host)
        self.nr = -1  # the call in flight, for those that came by a stop
        self.args: tuple[int, ...] = ()
        self.parked = False  # it waits in pause(2) in place of its call
        self.opened = 0  # signals that come to a stop though the mask blocks them; see host_masks.py
        self.lending: list[tuple[int, bool]] = []  # signals that the host shall queue at a stop of its; host_masks.py
        self.lend_by = 0  # the number of the poke for that
        self.poked = 0  # signals by which it was poked and has not stopped yet
        self.reissue: Execute | None = None  # at its next entry stop, have the host execute this
        self.self_sent = 0  # the signal whose poke is its own kill, executed by the host (pokes.py)
        self.restarts = -1  # the call that the host restarts by restart_syscall(2), if it does
        self.repoke = False  # a signal was put off until the call in flight is done
        self.execute: Execute | None = None  # the host executes this now
        self.saved: tuple[int, ...] | None = None  # orig_rax and argument registers to put back
        self.holding: Tracee | None = None  # a vfork child until whose exec or end this one is held
        self.holder: Tracee | None = None  # and the other way round
        self.after_stop = False  # its stop has ended, the SIGCONT that ended it may still come
        self.listening = False  # in a group stop, by PTRACE_LISTEN
        self.trap_all = 0  # stops at every call, for these reasons
        self.listener: Listener | None = None  # where its calls come by notification: that of its chain of processes
