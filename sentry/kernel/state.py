"""The kernel's state: plain data, and nothing else.

Everything here can be sent through msgspec and back and is then equal (a test does so after every
workload). Each object has one owner that holds it: the kernel its processes, a process its threads. All else
refers to it by id, and no handle, closure or coroutine is kept: what waits is described by the `CallRecord` of
the task that waits.
"""

from __future__ import annotations

import enum
from functools import cached_property

import msgspec

#: No limit (getrlimit(2)).
RLIM_INFINITY = (1 << 64) - 1


class TaskStatus(enum.IntEnum):
    """Where a task is, as the sentry knows it."""

    RUNNING = 0  # in the guest, or in a call that the host serves
    BLOCKED = 1  # in a call that the sentry owns, waiting
    STOPPED = 2  # job-control stop
    HELD = 3  # a vfork parent until its child execs or exits


class SigInfo(msgspec.Struct):
    """The fields of siginfo_t that the sentry decides (sigaction(2)).

    `fields` holds bytes 16..128 of the structure when a signal came from the host and is passed on whole.
    """

    signo: int
    code: int = 0
    errno: int = 0
    pid: int = 0
    uid: int = 0
    status: int = 0  # SIGCHLD
    utime: int = 0
    stime: int = 0
    value: int = 0  # sigval, as an unsigned 64-bit number
    timer_id: int = 0
    overrun: int = 0
    fields: bytes = b""
    forced: bool = False  # a fault's, of the instruction that the thread executes
    outside: bool = False  # sent from outside of the sandbox: also pid 1 takes SIGKILL and SIGSTOP then


class SigAction(msgspec.Struct, frozen=True):
    """One disposition: struct kernel_sigaction of rt_sigaction(2). A value: a fork shares it."""

    handler: int = 0  # 0 SIG_DFL, 1 SIG_IGN, else an address
    flags: int = 0
    restorer: int = 0
    mask: int = 0


class CallRecord(msgspec.Struct):
    """One owned call in flight, and all of its progress.

    A call may be cancelled and issued again by the host at any moment (a freeze, a restarted signal), and a
    checkpoint unwinds it: it is then entered again *from this record*. So a handler keeps nothing that must
    survive a block in locals only: an absolute deadline goes to `deadline`, partial results to `scratch`.
    """

    nr: int
    args: tuple[int, int, int, int, int, int]
    ip: int = 0
    entered: int = 0  # times this record was entered; > 1 after a cancellation
    deadline: int = -1  # absolute, ns, on the clock that the handler names; -1: none yet
    scratch: dict[str, int] = {}


class Task(msgspec.Struct):
    """One guest thread. `tid` is its id in the sandbox's pid namespace."""

    tid: int
    tgid: int
    status: TaskStatus = TaskStatus.RUNNING
    mask: int = 0  # blocked signals, bit N-1 for signal N
    saved_mask: int = -1  # the mask to come back to after ppoll and its like; -1: none
    unsure: int = 0  # signals of which only the host knows whether `mask` has them right; see signal_settle.py
    pending: list[SigInfo] = []
    call: CallRecord | None = None
    name: str = ""
    uid: int = -1  # its real user, once that was asked of the host and until it is set again; -1: not known
    made: dict[int, int] = {}  # tgids of the children that are this thread's; see family.py


class ThreadGroup(msgspec.Struct):
    """One guest process."""

    tgid: int
    ppid: int = 0
    pgid: int = 0
    sid: int = 0
    tty: int = 0  # number of its controlling terminal, as far as is known; 0: none. See tty.py
    threads: dict[int, Task] = {}  # by tid, in the order of creation: all that a signal to it needs is in here
    children: dict[int, int] = {}  # tgid: place in the order of creation or adoption; zombies too
    reports: list[tuple[int, int]] = []  # (place, tgid) of children with something to wait for; see family.py
    actions: dict[int, SigAction] = {}  # only those that are not SIG_DFL
    pending: list[SigInfo] = []  # directed at the process
    queues: dict[int, int] = {}  # tids whose own queue may not be empty; see signal_send.queueing
    contested: int = 0  # signals that one of several threads set to be ignored, or no longer; see signal_settle.py
    watched: int = 0  # signals of which the process has, or inherited, a signalfd; see signal_lend.py
    exit_signal: int = 17  # SIGCHLD; 0 for none
    parent_tid: int = 0  # the thread of the parent that made it (for __WNOTHREAD)
    subreaper: bool = False
    pdeathsig: int = 0
    did_exec: bool = False
    uids: tuple[int, int, int] = (0, 0, 0)  # real, effective, saved
    # exit and job control
    exit_status: int = -1  # wait status once all threads are gone; -1 while alive
    exit_rusage: bytes = b""
    #: Of what it says, user and system time that the host knows nothing of: from before a restore, µs.
    used_before: tuple[int, int] = (0, 0)
    core_dumped: bool = False  # by the sentry: the host's wait status does not say so
    killed_by: int = 0  # what the sentry killed it for, where the host knows of its SIGKILL only; see signal_deliver.py
    reaped: tuple[int, int] = (0, 0)  # user and system time of the children that were waited for, µs
    stop_signal: int = 0  # not 0: stopped by it
    stop_report: int = 0  # wait status of a stop not yet waited for
    continue_report: bool = False
    # timers
    itimers: dict[int, TimerSetting] = {}
    posix_timers: dict[int, PosixTimer] = {}
    next_timer_id: int = 0
    cpu_limit: tuple[int, int] = (RLIM_INFINITY, RLIM_INFINITY)  # RLIMIT_CPU: soft, hard, seconds
    limits: dict[int, int] = {}  # soft limits that were asked of the host, until they are set again
    vdso: int = 0  # address of our image in this address space; 0: none
    exe: str = ""


class TTY(msgspec.Struct):
    """A terminal that is the controlling terminal of a session; see tty.py."""

    number: int  # device number of the slave side, as TIOCGDEV tells it; tty.OUTSIDE is added to those from outside
    sid: int  # the session whose it is; 0: one of outside
    foreground: int  # its process group that may read and gets the keys' signals; 0: one of outside
    doubted: bool = False  # a member of the session was told of a hangup: whether a process still has it is asked


class TimerSetting(msgspec.Struct):
    """When a timer expires next and how often: ktime's Setting.

    `next` is absolute on the timer's clock, in ns; -1 when disarmed. `period` 0 is one-shot. `clock_id` is
    a clock of clock_gettime(2), CPU clocks with their explicit negative ids (see time/timekeeper.py).
    """

    next: int = -1
    period: int = 0
    clock_id: int = 1


class PosixTimer(msgspec.Struct):
    """timer_create(2)."""

    timer_id: int
    clock_id: int
    notify: int  # SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD 2, SIGEV_THREAD_ID 4
    signo: int = 0
    value: int = 0
    tid: int = 0  # target of SIGEV_THREAD_ID
    cpu_tid: int = 0  # whose CPU clock; 0: not a CPU clock
    setting: TimerSetting = msgspec.field(default_factory=TimerSetting)
    overrun: int = 0  # periods passed since the signal that is pending was queued
    overrun_last: int = 0  # timer_getoverrun(2)
    queued: bool = False  # its one signal is pending (or held back because it is ignored)


class ClockState(msgspec.Struct):
    """The sandbox's clocks against the host's (see sentry/time/timekeeper.py)."""

    rate_num: int = 1
    rate_den: int = 1
    monotonic_base: int = 0  # host MONOTONIC at which the sandbox's was monotonic_start, ns
    monotonic_start: int = 0
    boottime_base: int = -1  # host BOOTTIME likewise; -1: the sandbox's BOOTTIME is its MONOTONIC
    boottime_start: int = 0
    raw_base: int = -1  # host MONOTONIC_RAW likewise; -1: it runs with MONOTONIC
    frozen: int = 0  # how long MONOTONIC stood still since the start, host ns: natively the guests' went on
    boottime_frozen: int = 0
    realtime_delta: int = 0  # at rate 1: sandbox REALTIME = host REALTIME + this, ns
    realtime_start: int = 0  # at another rate: sandbox REALTIME at monotonic_base
    boot_realtime: int = 0  # sandbox REALTIME when its MONOTONIC was 0 (btime of proc(5)); 0: not known yet
    timezone: tuple[int, int] = (0, 0)  # struct timezone of settimeofday(2)
    tai_delta: int = 0  # what ADJ_TAI made of the host's TAI offset, ns more than it
    ntp: dict[str, int] = {}  # what adjtimex(2) says otherwise than the host (see syscalls/sys_adjtimex.py)


class KernelState(msgspec.Struct, dict=True):
    """The whole kernel."""

    schema: int = 1
    groups: dict[int, ThreadGroup] = {}
    process_groups: dict[int, dict[int, int]] = {}  # pgid: tgids of its members; see family.py
    ttys: dict[int, TTY] = {}  # the terminals that are a session's, by number; see tty.py
    places: int = 0  # the last place given to a child
    clock: ClockState = msgspec.field(default_factory=ClockState)
    timers: dict[str, TimerSetting] = {}  # those that are armed, by key (see time/clocks.py)
    counts: dict[int, int] = {}  # owned calls answered, by number
    exec_count: int = 0
    checkpoint_count: int = 0  # see checkpoints.py
    checkpoint_asked: int = 0  # requests of programs inside that are not answered, the first is being served
    cpus: int = 1
    allowed_cpus: list[int] = []  # the host's CPUs that guests are held to, ascending; empty: to none
    root_tgid: int = 0
    may_end: bool = False  # from now on the sandbox has ended once no task lives; see task_clone.outside_task
    init_uid: int = 0  # the user whose the sandbox's init is
    init_sid: int = 0  # its session: 0, the caller's, or 1
    users_changed: bool = False  # a process has asked to be another user's

    @cached_property
    def tasks(self) -> dict[int, Task]:
        """Every thread by its id: an index of what the groups hold, made anew when the state was read back.

        Only for what begins with an id from outside (a stop, an argument of tkill(2)). Sending a signal does not
        look at it, see kernel.py.
        """
        return {tid: task for group in self.groups.values() for tid, task in group.threads.items()}
