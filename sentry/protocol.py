"""What the kernel asks of the outside: guest memory and a platform.

Declared here, implemented in `platform/` for real guests and in `tests/unit/fake_platform.py` for unit
tests. Tasks are named by their tid in the sandbox (`Task.tid`); the platform alone knows host ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from trapline.sentry.kernel.block import Execute
    from trapline.sentry.kernel.tty import Terminal


class Gone(Exception):
    """The task died while it was asked for something. Never an error: its death is reported separately."""


class Memory(Protocol):
    """Guest memory of one task, with the guest's own page protections (process_vm_readv(2))."""

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes. OSError(EFAULT) when any is not readable; Gone."""

    def write(self, address: int, data: bytes) -> None:
        """All of `data`. OSError(EFAULT) when any byte is not writable; Gone."""

    def read_string(self, address: int, limit: int = 4096) -> bytes:
        """Up to a NUL byte, which is left out. OSError(EFAULT), OSError(ENAMETOOLONG); Gone."""


class Platform(Protocol):
    """The mechanics that only the host can do. Every method may raise Gone."""

    def memory(self, tid: int) -> Memory: ...

    # -- the call in flight
    def complete(self, tid: int, result: int) -> bool:
        """A blocked call has its result (-errno for an error). True when the guest has it now; False when it
        will be written at the task's next stop, or given when the call is issued again."""

    def execute(self, tid: int, request: Execute) -> None:
        """A blocked call goes on by the host's executing it; the result comes by Dispatcher.executed."""

    def begin_anew(self, tid: int) -> None:
        """Bring the task of a blocked call to begin its wait anew, once its signals are taken (block.AfterSignals)."""

    def stack_pointer(self, tid: int) -> int:
        """rsp of the task whose call is being entered; nobody else's."""

    # -- signals
    def poke(self, tid: int, signo: int) -> None:
        """Bring a thread to a delivery stop soon, by a host signal of this number that carries a cookie.

        The host's mask must let it through (the kernel knows the mask): it is one reason to stop, not the
        signal: what is delivered there is what the kernel says then.
        """

    def poke_process(self, tgid: int, signo: int) -> None:
        """The same for whichever living thread of a process the host finds first, the leader preferred."""

    def host_pending(self, tid: int) -> int:
        """The set of signals that the host itself made for a thread or its process (SIGPIPE, a terminal's keys, SIGIO)
        and holds back, since the mask blocks them. Pokes are none of them."""

    def host_mask(self, tid: int) -> int:
        """The set of signals that a thread blocks on the host. Gone."""

    def open_mask(self, tid: int, signals: int) -> None:
        """Let the host's signals of this set come to delivery stops of a thread although the kernel's mask blocks them,
        while its call in flight waits (Linux do_sigtimedwait does so). The thread stands at a stop."""

    def lend(self, tid: int, signo: int, shared: bool) -> None:
        """Bring a thread that blocks this signal to a stop where the host can queue it, with its siginfo, for the
        thread or for its process: `signal_lend.lent` gives it there."""

    def kill_group(self, tgid: int) -> None:
        """SIGKILL to a whole thread group, at once."""

    def continue_group(self, tgid: int) -> None:
        """SIGCONT on the host: ends the host's group stop. Its delivery stop is a poke."""

    # -- clocks and timers, in host ns
    def host_monotonic(self) -> int: ...
    def host_realtime(self) -> int: ...
    def host_clock(self, clock_id: int) -> int:
        """Any clock of the host's by its id (clock_gettime(2)), ns."""

    def host_clock_resolution(self, clock_id: int) -> int: ...
    def set_alarm(self, clock_id: int, when: int) -> None:
        """Arm the one host timer of CLOCK_MONOTONIC (1) or CLOCK_REALTIME (0), absolute host ns; -1 disarms.

        When it expires the sentry calls `Kernel.timers_expired()`.
        """

    def host_adjtimex(self) -> tuple[int, bytes]:
        """adjtimex(2) with no modes: (its result, struct timex)."""

    def wall_clock_moved(self, span: int) -> None:
        """The sandbox's REALTIME was stepped against the host's, `span` host ns forward: absolute REALTIME
        timerfds and waits that are the host's follow, and those with TFD_TIMER_CANCEL_ON_SET are cancelled."""

    def thread_cpu_ns(self, tid: int) -> int:
        """User and system time of one thread, ns."""

    def group_cpu_ns(self, tgid: int) -> int:
        """User and system time of a process, threads that have ended included, ns."""

    def group_user_ns(self, tgid: int) -> int:
        """User time of a process, ns. Right to a tick of 10 ms."""

    def thread_user_ns(self, tid: int) -> int: ...

    def set_cpu_alarm(self, key: str, tid: int, whole_group: bool, after: int) -> None:
        """Call `Kernel.cpu_alarm(key)` once this task (or its group) has used `after` ns more CPU; -1 cancels.

        Once, and it may come early. Costs nothing while the task does not run.
        """

    def running_thread(self, tgid: int) -> int:
        """A thread of a process that is running or ready to run; 0 when there seems to be none."""

    def process_times(self, tgid: int) -> tuple[int, int, int, int]:
        """User and system time of a process, and of its children that were waited for, in ticks of 10 ms."""

    def waited_for(self, tgid: int, before: tuple[int, int]) -> None:
        """A process has waited for a child of whose user and system time the host does not know so much, µs."""

    def earlier_usage(self, tid: int, who: int) -> tuple[int, int]:
        """User and system time, µs, from before a restore: of a task's process, its children or itself, by `who` of
        getrusage(2)."""

    def pending_limit(self, tgid: int) -> int:
        """The soft RLIMIT_SIGPENDING of a process."""

    def has_ended(self, tid: int) -> bool:
        """Whether a thread is a zombie: a leader that waits for its threads to end."""

    # -- descriptors
    def descriptor(self, tid: int, fd: int) -> int:
        """A duplicate, in the sentry, of a guest's descriptor (pidfd_getfd(2)). OSError(EBADF).

        Give it back to `close_descriptor`.
        """

    def close_descriptor(self, fd: int) -> None:
        """Close what `descriptor` gave."""

    def terminal(self, tid: int, fd: int) -> Terminal:
        """Which terminal a guest's descriptor is. OSError EBADF; EIO where that was hung up; ENOTTY, or what the device
        says to a request that it does not know, where it is none."""

    def controlling_terminal(self, tgid: int) -> int:
        """The device number of a process's controlling terminal as the host has it; 0 for none."""

    def descriptor_info(self, tid: int, fd: int) -> str:
        """/proc/PID/fdinfo/FD. OSError(EBADF)."""

    def process_of_directory(self, tid: int, fd: int) -> int:
        """The process, as the sandbox numbers it, whose directory of /proc a guest's descriptor is. OSError EBADF
        where it is no such directory, ESRCH where that process is gone."""

    def timerfd_settime(self, fd: int, flags: int, value: int, interval: int) -> None:
        """timerfd_settime(2) on a duplicate that `descriptor` gave, host ns. OSError."""

    def timerfd_gettime(self, fd: int) -> tuple[int, int]:
        """timerfd_gettime(2): (remaining, interval), host ns. OSError."""

    def timerfd_uncancel(self, fd: int) -> bool:
        """Whether this timerfd (by a duplicate) was cancelled by a step and nobody has been told yet; from now
        on it is not."""

    # -- ids
    def credentials(self, tid: int) -> tuple[tuple[int, int, int], int]:
        """((real, effective, saved) uid, effective capability set) of a task, as the sandbox sees them; 1 is the
        sandbox's init."""

    def permitted(self, tid: int) -> int:
        """The permitted capability set of a task; 1 is the sandbox's init."""

    # -- CPUs
    def cpu_mask_size(self) -> int:
        """How many bytes the host's kernel reads of a CPU mask at most."""

    def set_affinity(self, tid: int, cpus: list[int]) -> None:
        """The host lets this task (1: the sandbox's init) run on these CPUs only. OSError."""

    def group_ids(self, tid: int) -> tuple[int, int, int]:
        """(real, effective, saved) gid likewise."""

