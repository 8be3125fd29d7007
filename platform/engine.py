"""The part of a platform that both kinds share: tracees, their stops, and the order in which they are served.

Order of stops (stated here, relied on everywhere): a new task runs only after its creator's event was seen
and the kernel knows it; a parent sees a child's death only after `wait4` here took it, since the host hides
a traced zombie from its real parent until then; a call's result is written, or its notification answered,
before the task is resumed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from trapline.platform import host_masks, pokes, stop_calls, stop_signals, stop_tasks, unannounced
from trapline.platform import ptrace_calls as pt
from trapline.platform.host_services import HostServices
from trapline.platform.notifications import Listener
from trapline.platform.stop_sources import StopSources
from trapline.platform.tracee import WATCHED, Tracee
from trapline.platform.watch import NOBODY, Watch
from trapline.sentry.kernel.block import Execute
from trapline.sentry.kernel.signal_deliver import host_signal
from trapline.sentry.kernel.signals import bit, unpack_siginfo
from trapline.sentry.kernel.state import SigInfo
from trapline.sentry.protocol import Gone, Memory

if TYPE_CHECKING:
    from trapline.platform.core_dump import CoreDumper
    from trapline.platform.vdso_setup import VdsoSetup
    from trapline.platform.wall_clock import WallClock
    from trapline.sentry.kernel.kernel import Kernel
    from trapline.sentry.syscalls.dispatch import Dispatcher

#: So often a thread is asked whether it has come to the delivery stop of its own signal: 0.1 ms.
SOON = 100
_STOP_SIGNALS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_SIGTRAP = 5
#: A notification: id, host tid, number, arguments, instruction pointer.
Note = tuple[int, int, int, tuple[int, int, int, int, int, int], int]


class Engine(HostServices):
    """Implements `Platform` for calls that arrive by ptrace stops. `seccomp.py` adds notifications."""

    kernel: Kernel
    dispatcher: Dispatcher
    #: How many stops of the only tracee are looked for at once. On one CPU it has often run to its next stop when
    #: PTRACE_CONT returns (three times in four), and asking saves an epoll_wait and a read of the signalfd: 3 us a
    #: call. Timers wait meanwhile, so not for long.
    chain = 8

    def __init__(self) -> None:
        super().__init__()
        self.tracees: dict[int, Tracee] = {}
        self.by_tid: dict[int, Tracee] = {}
        #: The task whose notification is being served, and by which signal it was poked meanwhile.
        self.serving = 0
        self.poked_caller = 0
        #: The task whose call arrived by a stop and is being entered, and (host id) who sent itself a signal.
        self.entering = self.self_poked = 0
        #: Calls that were received while something else was waited for.
        self.held_back: list[tuple[Listener, Note]] = []
        #: Tasks that stood at their first stop before their creator's event, and with which signal.
        self.early: dict[int, int] = {}
        self.stillborn: set[int] = set()
        #: Unknown tasks whose death was taken: killed before their creator's event told of them.
        self.died_early: set[int] = set()
        #: By which signals processes were poked as a whole, until a thread stops for it.
        self.poked_groups: dict[int, int] = {}
        #: By process, the thread that is to hand signals to the host's queue.
        self.lenders: dict[int, Tracee] = {}
        #: Tasks that the host reads a structure of ours for, and its place; see clone_structures.py.
        self.structures: dict[int, int] = {}
        #: Deaths that were met while something else was waited for.
        self.deferred: list[tuple[int, int, bytes]] = []
        #: There are or were children that are no tracees (yet): their deaths may be waiting, too.
        self.others = False
        self.sources = StopSources()
        self.regs = pt.RegisterFile()
        self.vdso: VdsoSetup | None = None
        self.stops = 0
        self.tasks_peak = 0
        #: si_code of the signal that stopped the first guest last.
        self.root_stop_code = 0
        #: What to do at an exec while there is no image of ours.
        self.hide_vdso: Callable[[Tracee], None] = lambda t: None
        #: Called at the first exec of a process that was made from outside, by host id.
        self.on_exec: dict[int, Callable[[], None]] = {}
        #: Called at every call's entry (True) and exit of a task under trap_all; its registers can be read.
        self.on_trap: Callable[[Tracee, bool], None] = lambda t, entering: None
        #: Once the sandbox has moved its wall clock.
        self.wall: WallClock | None = None
        #: Who looks at the tasks (a live strace).
        self.watch: Watch = NOBODY
        #: Writes core files, where that is asked for.
        self.cores: CoreDumper | None = None
        self.log: Callable[[str], None] = lambda text: None

    # -- tracees
    def add(self, t: Tracee) -> None:
        """Take a new tracee into the tables."""
        self.tracees[t.host] = t
        self.by_tid[t.tid] = t
        self.tasks_peak = max(self.tasks_peak, len(self.tracees))

    def find(self, tid: int) -> Tracee:
        """A tracee by its id in the sandbox. Gone."""
        t = self.by_tid.get(tid)
        if t is None:
            raise Gone(tid)
        return t

    def thread_hosts(self, tgid: int) -> list[int]:
        group = self.kernel.state.groups.get(tgid)
        return [self.by_tid[tid].host for tid in group.threads if tid in self.by_tid] if group else []

    def tid_of(self, host: int) -> int:
        t = self.tracees.get(host)
        return t.tid if t is not None else 0

    def cpu_alarm_rang(self, number: int, value: int) -> None:
        """A signal of a CPU alarm came; `value` says of which (see signal_descriptor.py)."""
        for key, host in self.cpu_alarms.rang(number, value):
            self.kernel.cpu_alarm(key, self.tid_of(host))

    def joined(self, t: Tracee) -> None:
        """A thread of a process that has others: alarms of the process's clock are to count it, too."""
        for key in self.cpu_alarms.of_process(t.host_group):
            self.kernel.cpu_alarm(key)

    def ended(self, t: Tracee, status: int) -> None:
        """A tracee is dead; before the kernel hears of it."""

    def resume(self, t: Tracee, signo: int = 0) -> None:
        """Let a stopped task go on."""
        if t.trap_all or t.execute is not None:
            pt.cont_to_exit(t.host, signo)
        else:
            pt.cont(t.host, signo)

    def set_trap_all(self, tid: int, on: bool, reason: int = WATCHED) -> None:
        """Stop a running task at every call, entry and exit, or no longer for this reason; `on_trap` sees the
        stops of those who are watched.

        The filter cannot be changed once it is installed, so this is how a live strace, fault injection or a
        moved wall clock see the calls that are the host's. Children inherit it. Gone.
        """
        t = self.find(tid)
        before, t.trap_all = t.trap_all, t.trap_all | reason if on else t.trap_all & ~reason
        if bool(before) != bool(t.trap_all):
            self.interrupt(t)  # it goes on in the other way

    def interrupt(self, t: Tracee) -> None:
        """Bring a running task to an event stop, of which it sees nothing. Gone."""
        if not t.listening:
            pt.call(pt.PTRACE_INTERRUPT, t.host)

    # -- stops
    def serve_stops(self, limit: int, named: tuple[int, ...] = ()) -> int:
        """Serve the stops and deaths that are waiting, `limit` at most; how many there were. `named` are the
        host ids that SIGCHLDs told of."""
        served, chain = 0, self.chain
        asked = self.sources.begin(named)
        while served < limit:
            if self.deferred:
                host, status, rusage = self.deferred.pop(0)
                stop_tasks.died(self, host, status, rusage)
                continue
            host, status = self.sources.next(self.tracees, asked)
            if host <= 0:
                break
            served += 1
            self.stops += 1
            self.serve_stop(host, status)
            if self.self_poked:
                self.serve_self_poked()
            if len(self.tracees) == 1 and host in self.tracees and not (
                self.early or self.stillborn or self.deferred or self.others
            ):
                # What was served is the only one there is: it runs again, and its next stop sends a SIGCHLD
                # of its own. After another's stop or death it may be waiting, with a SIGCHLD that merged.
                chain -= 1
                if not chain:
                    break
        if self.early:
            unannounced.settle(self)
        return served

    def serve_self_poked(self) -> None:
        """Who sent itself a signal takes it before anybody else's call is served, if it comes to its stop soon.

        What goes wrong otherwise: natively a thread takes its own signal before its call returns. Here a thread that
        calls without a pause (sigaction(2) with a handler and SIG_IGN in turn) would always be served between the
        sending and the delivery, and the signal be dropped, for ever.
        """
        host, self.self_poked = self.self_poked, 0
        if len(self.tracees) == 1:
            return
        for _ in range(SOON):
            status = pt.stopped_now(host)
            if status is not None:
                self.stops += 1
                self.serve_stop(host, status)
                return
            os.sched_yield()

    def serve_stop(self, host: int, status: int, rusage: bytes = b"") -> None:
        """Serve one wait status; of a death `rusage` is what came with it, where that is not the last wait."""
        try:
            if status & 0xFF != 0x7F:
                rusage = rusage or pt.last_rusage()
                if host in self.tracees or host in self.early or host in self.stillborn:
                    stop_tasks.died(self, host, status, rusage)
                elif not self.child_ended(host, status):
                    self.died_early.add(host)
                return
            t = self.tracees.get(host)
            if t is None:
                if host in self.stillborn:
                    self.stillborn.discard(host)
                    pt.cont(host)
                else:
                    stop_tasks.new_stop(self, host, status >> 8 & 0xFF)
                return
            self._stopped(t, status >> 8 & 0xFF, status >> 16)
        except Gone:
            return  # killed while it was stopped; its death is reported by itself

    def _stopped(self, t: Tracee, signo: int, event: int) -> None:
        if event == pt.EVENT_SECCOMP:
            stop_calls.entry(self, t)
        elif event == 0:
            if signo == _SIGTRAP | 0x80:
                stop_calls.exit_stop(self, t)
            else:
                stop_signals.delivery_stop(self, t, signo)
        elif event == pt.EVENT_STOP:
            if t.saved is not None and t.execute is None:
                stop_tasks.first_stop(self, t, signo)
            elif signo in _STOP_SIGNALS:
                stop_signals.group_stop(self, t, signo)
            else:
                stop_signals.event_stop(self, t)
        elif event in (pt.EVENT_FORK, pt.EVENT_VFORK, pt.EVENT_CLONE):
            stop_tasks.clone_event(self, t, event)
        elif event == pt.EVENT_EXEC:
            stop_tasks.exec_event(self, t)
        else:
            self.resume(t)

    def child_ended(self, host: int, status: int) -> bool:
        """A child that is no guest ended: whether it was known as one of the sentry's own (the sandbox's init)."""
        return False

    def install_vdso(self, t: Tracee) -> None:
        """Map our vDSO into a task that has just executed a program."""
        if self.vdso is None:
            self.hide_vdso(t)
            return
        assert t.task is not None
        group = self.kernel.group(t.task)
        group.vdso = 0
        try:
            group.vdso = self.vdso.install(self, t)
        except OSError as error:
            self.log(f"no vDSO for task {t.tid}: {error}")

    def put_off_stop(self, t: Tracee, status: int) -> bool:
        """In the middle of a set-up: whether this is a stop for which the set-up need not end. Then what it is for
        waits in the kernel's queue until `t.repoke` is heeded, and the caller resumes the task without it.

        Such are the delivery of a SIGSTOP, which cannot be blocked; and PTRACE_EVENT_STOP: an interrupt of ours, a
        SIGCONT, which stops every tracee that it is sent to, also one that blocks it (ptrace_trap_notify), or a
        group stop that another thread began before this one's exec ended it.
        """
        if status >> 16 == pt.EVENT_STOP:
            signo = status >> 8 & 0xFF
            if signo in _STOP_SIGNALS and t.task is not None:
                host_signal(self.kernel, t.task, SigInfo(signo=signo))
                t.repoke = True
            return True
        if status >> 16 or status >> 8 & 0xFF != signal.SIGSTOP:
            return False
        raw = pt.get_siginfo(t.host)
        if not pokes.is_poke(raw, t) and t.task is not None:
            host_signal(self.kernel, t.task, unpack_siginfo(raw))
        t.repoke = True
        return True

    def serve_held_back(self) -> None:
        """Serve the calls in `held_back`; only where calls come by notification."""

    # -- Platform: the call in flight
    def memory(self, tid: int) -> Memory:
        return self.find(tid).memory

    def complete(self, tid: int, result: int) -> bool:
        t = self.find(tid)
        if t.parked and not t.listening:
            pt.call(pt.PTRACE_INTERRUPT, t.host)
        return False

    def execute(self, tid: int, request: Execute) -> None:
        t = self.find(tid)
        t.reissue = request
        if not t.listening:
            pt.call(pt.PTRACE_INTERRUPT, t.host)

    def begin_anew(self, tid: int) -> None:
        self.interrupt(self.find(tid))

    def stack_pointer(self, tid: int) -> int:
        return self.regs.r.rsp  # its call came by a stop, where they were loaded

    # -- Platform: a wall clock of the sandbox's own
    def wall_clock_moved(self, span: int) -> None:
        if self.wall is None:
            from trapline.platform.wall_clock import WallClock

            self.wall = WallClock(self)
        self.wall.moved(span)

    def timerfd_gettime(self, fd: int) -> tuple[int, int]:
        setting = self.wall.timerfds.setting(fd) if self.wall is not None else None
        return super().timerfd_gettime(fd) if setting is None else setting

    def timerfd_uncancel(self, fd: int) -> bool:
        return self.wall is not None and self.wall.timerfds.uncancel(fd)

    # -- Platform: signals
    def poke(self, tid: int, signo: int) -> None:
        t = self.by_tid.get(tid)
        if t is not None:
            t.poked |= bit(signo)
            if tid == self.serving:
                self.poked_caller = self.poked_caller or signo  # by whoever serves it, before it is answered
            else:
                if tid == self.entering:
                    self.self_poked = t.host
                pokes.poke_thread(t.host_group, t.host, signo)

    def poke_process(self, tgid: int, signo: int) -> None:
        if tgid == self.serving:
            self.poke(tgid, signo)  # the leader is calling, so it lives
            return
        t = self.by_tid.get(tgid)
        if t is not None:
            self.poke_group(t, signo)

    def poke_group(self, t: Tracee, signo: int) -> None:
        """Poke a process, and note it."""
        self.poked_groups[t.host_group] = self.poked_groups.get(t.host_group, 0) | bit(signo)
        pokes.poke_group(t.host_group, signo)

    def host_pending(self, tid: int) -> int:
        return host_masks.pending(self, self.find(tid))

    def host_mask(self, tid: int) -> int:
        return host_masks.blocked(self.find(tid))

    def lend(self, tid: int, signo: int, shared: bool) -> None:
        host_masks.ask_to_lend(self, self.find(tid), signo, shared)

    def open_mask(self, tid: int, signals: int) -> None:
        host_masks.open_for(self.find(tid), signals)

    def kill_group(self, tgid: int) -> None:
        t = self.by_tid.get(tgid)
        if t is None:
            group = self.kernel.state.groups.get(tgid)
            t = next((self.by_tid[i] for i in group.threads if i in self.by_tid), None) if group else None
        if t is not None:
            try:
                os.kill(t.host_group, signal.SIGKILL)
            except ProcessLookupError:
                return

    def continue_group(self, tgid: int) -> None:
        group = self.kernel.state.groups.get(tgid)
        for tid in group.threads if group else ():
            t = self.by_tid.get(tid)
            if t is not None:
                self.poke_group(t, signal.SIGCONT)
                return
