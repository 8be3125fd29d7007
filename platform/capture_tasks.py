"""Threads and processes as a checkpoint saves them, when all are at rest (quiesce.py).

Most is asked from outside. What only a thread itself can be asked for (its alternate stack, the address that the host
clears at its end) is asked by calls injected into it, at an instruction of our vDSO; its registers are put back, and it
stands at an event stop again afterwards.

Sources: ptrace(2), proc_pid_status(5), get_robust_list(2), sigaltstack(2), PR_GET_TID_ADDRESS(2const).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from trapline.platform import own_filters, stop_calls, task_attributes
from trapline.platform import ptrace_calls as pt
from trapline.platform.injection import get_extended, single
from trapline.platform.pokes import is_poke
from trapline.platform.snapshot import borrowed
from trapline.platform.task_attributes import Probed
from trapline.platform.task_limits import read_limits
from trapline.platform.user_maps import UserMaps
from trapline.sentry.kernel import signal_settle
from trapline.sentry.protocol import Gone
from trapline.sentry.state.records import OwnFilter, ProcessRecord, ThreadRecord
from trapline.sentry.state.unsavable import Unsavable

if TYPE_CHECKING:
    from trapline.platform.session import Session
    from trapline.platform.tracee import Tracee
    from trapline.sentry.kernel.state import ThreadGroup

_SIGALTSTACK, _PRCTL, _PR_GET_TID_ADDRESS, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 131, 157, 40, 3, 4
_UNAME, _UTSNAME = 63, 6 * 65
_GET_ROBUST_LIST, _IOPRIO_GET, _IOPRIO_WHO_PROCESS = 274, 252, 1
_PTRACE_GET_RSEQ_CONFIGURATION = 0x420F
_EVENT_STOP = pt.EVENT_STOP << 16 | 5 << 8 | 0x7F
_RED_ZONE = 128
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class TaskCapture:
    """See the module."""

    def __init__(self, session: Session) -> None:
        self._engine = session.engine
        self._kernel = session.kernel
        self._maps = UserMaps(session.sandbox.init_pid)
        self._root = f"/proc/{session.sandbox.init_pid}/root"
        vdso = session.engine.vdso
        self._image = vdso.image if vdso is not None else None
        self._regs = pt.RegisterFile()
        #: By process, what only it can be asked of its memory.
        self.probed: dict[int, Probed] = {}
        #: What guests call the host and its domain.
        self.names: tuple[str, str] | None = None
        #: Processes that are made dumpable while they are saved: a task of each, and what they were.
        self._hidden: dict[int, tuple[Tracee, int]] = {}

    def process(self, group: ThreadGroup) -> ProcessRecord:
        """A process that has threads; its memory, descriptors and directories are others'. Unsavable; Gone."""
        tracees = [self._engine.by_tid[tid] for tid in group.threads if tid in self._engine.by_tid]
        dead_leader = [t for t in tracees if _state(t) in b"ZX"]
        living = [t for t in tracees if t not in dead_leader]
        if not living:
            raise Gone(group.tgid)
        listening = [t for t in living if t.listening]
        signo = 0
        for t in listening:
            signo = self._bring_back(t)
        try:
            self._open_up(group, living[0])
            return self._record(group, living, bool(dead_leader), signo)
        finally:
            for t in listening:
                pt.call(pt.PTRACE_LISTEN, t.host)

    def _open_up(self, group: ThreadGroup, t: Tracee) -> None:
        """An ordinary user may neither read the memory of a process that is not dumpable, nor most files of /proc of it
        (ptrace(2), proc(5))."""
        if not self._engine.own_uid:
            return
        self._filters(t, int(_fields(f"/proc/{t.host}/status").get("Seccomp_filters", "0")))  # may forbid what follows
        at = self._place(t, group)
        if t.holding is not None:
            # From the event of a vfork's child the host would go on with that call before any of ours.
            self._stand_again(t)
        with borrowed(t.host):
            before = single(t.host, at, _PRCTL, _PR_GET_DUMPABLE)
            if before != 1:
                single(t.host, at, _PRCTL, _PR_SET_DUMPABLE, 1)
                self._hidden[group.tgid] = t, before

    def hide_again(self) -> None:
        """Undo that, before tasks go on."""
        for tgid, (t, before) in self._hidden.items():
            with suppress(Gone, OSError):
                if t.listening:
                    self._bring_back(t)
                with borrowed(t.host):
                    # 2, which execution of what is not readable gives, can only be had so again.
                    at = self._place(t, self._kernel.state.groups[tgid])
                    single(t.host, at, _PRCTL, _PR_SET_DUMPABLE, before & 1)
                if t.listening:
                    pt.call(pt.PTRACE_LISTEN, t.host)
        self._hidden.clear()

    def _place(self, t: Tracee, group: ThreadGroup) -> int:
        """A `syscall` instruction in it."""
        if self._image is None or not group.vdso:
            raise Unsavable(f"task {t.tid} has no vDSO of ours, in which it could be asked for its alternate stack")
        return self._image.trampoline(group.vdso)

    def _record(self, group: ThreadGroup, living: list[Tracee], leader_ended: bool, stop_signal: int) -> ProcessRecord:
        first = living[0]
        return ProcessRecord(
            tgid=group.tgid,
            space=-1,
            table=-1,
            directory=-1,
            threads=[self._thread(t, group) for t in living],
            parent=group.ppid,
            leader_ended=leader_ended,
            limits=read_limits(_text(f"/proc/{first.host}/limits")),
            oom_score=int(_text(f"/proc/{first.host}/oom_score_adj")),
            cpu=self._engine.group_cpu_ns(group.tgid),
            user=self._engine.group_user_ns(group.tgid),
            comm=_bytes(f"/proc/{first.host}/comm").rstrip(b"\n"),
            queued=self._queued(first, True),
            stopped=any(t.listening for t in living),
            stop_signal=stop_signal,
        )

    def zombie(self, group: ThreadGroup) -> ProcessRecord:
        """One that has ended and was not waited for."""
        return ProcessRecord(
            tgid=group.tgid,
            space=-1,
            table=-1,
            directory=-1,
            threads=[],
            parent=group.ppid,
            zombie=group.exit_status,
            comm=self._name_of_zombie(group.tgid),
        )

    def _name_of_zombie(self, tgid: int) -> bytes:
        """As `ps` shows it in the sandbox; only there has it still the id that it is known by."""
        try:
            return _bytes(f"{self._root}/proc/{tgid}/comm").rstrip(b"\n")
        except (OSError, Gone):
            return b""

    # -- one thread
    def _thread(self, t: Tracee, group: ThreadGroup) -> ThreadRecord:
        host = t.host
        status = _fields(f"/proc/{host}/status")
        filters = self._filters(t, int(status.get("Seccomp_filters", "0")))
        # The record comes first: calls in the task change its registers.
        registers = self._registers(t)
        with own_filters.suspended(host) if filters else nullcontext():
            told = self._ask(t, group)
        head, length = _robust_list(host)
        affinity = sorted(os.sched_getaffinity(host))
        assert t.task is not None
        task = t.task
        if task.unsure:
            signal_settle.settle(self._kernel, task)
        return msgspec.structs.replace(
            told,
            registers=registers,
            extended=get_extended(host),
            mask=task.saved_mask if task.saved_mask >= 0 else task.mask,
            name=_bytes(f"/proc/{host}/comm").rstrip(b"\n"),
            robust_head=head,
            robust_length=length,
            rseq=_rseq(host),
            policy=os.sched_getscheduler(host),
            nice=os.getpriority(os.PRIO_PROCESS, host),
            priority=os.sched_getparam(host).sched_priority,
            affinity=affinity,
            io_priority=_libc.syscall(_IOPRIO_GET, _IOPRIO_WHO_PROCESS, host),
            timer_slack=_timer_slack(host),
            uids=self._maps.uids(status["Uid"]),
            gids=self._maps.gids(status["Gid"]),
            groups=self._maps.groups(status["Groups"]),
            capabilities=(
                int(status["CapInh"], 16),
                int(status["CapPrm"], 16),
                int(status["CapEff"], 16),
                int(status["CapBnd"], 16),
                int(status["CapAmb"], 16),
            ),
            no_new_privileges=status["NoNewPrivs"] == "1",
            personality=int(_text(f"/proc/{host}/personality"), 16),
            queued=self._queued(t, False),
            parked=t.parked,
            holds_for=t.holding.tid if t.holding is not None else 0,
            cpu=self._engine.thread_cpu_ns(t.tid),
            user=self._engine.thread_user_ns(t.tid),
            filters=filters,
        )

    @staticmethod
    def _filters(t: Tracee, count: int) -> list[OwnFilter]:
        if count <= own_filters.of_the_sandbox():
            return []
        try:
            return own_filters.read(t.host, count)
        except OSError:
            text = "has a seccomp filter of its own, which the host gives out to root only"
            raise Unsavable(f"task {t.tid} {text}") from None

    @staticmethod
    def _queued(t: Tracee, shared: bool) -> list[bytes]:
        """What is in a queue of the host's, without pokes, and without SIGCHLD, of which the kernel sends its own."""
        found: list[bytes] = []
        place = (ctypes.c_uint64 * 2)()
        room = ctypes.create_string_buffer(128)
        while True:
            struct.pack_into("<QIi", place, 0, len(found), 1 if shared else 0, 1)
            if pt.peek_siginfo(t.host, ctypes.addressof(place), ctypes.addressof(room)) != 1:
                return [raw for raw in found if not is_poke(raw, t) and raw[0] != signal.SIGCHLD]
            found.append(room.raw)

    def _registers(self, t: Tracee) -> bytes:
        """As a task may begin with them that has nothing of the host's remembered for it."""
        if t.holding is not None:
            # It stands inside its vfork(2), at the event of its child. It is held as well where it has that behind it.
            self._stand_again(t)
        regs = self._regs.load(t.host)
        if t.parked:
            # As the host leaves it when its pause(2) was interrupted.
            if stop_calls.about_to_pause(t, regs):
                regs.rip += 2
            regs.rax, regs.orig_rax = -stop_calls.ERESTARTNOHAND & pt.U64, stop_calls.PAUSE
        elif pt.signed(regs.rax) == -stop_calls.ERESTART_RESTARTBLOCK and pt.signed(regs.orig_rax) >= 0:
            # The rest of its timeout is known to the host only, which forgets it with the task.
            if regs.orig_rax == stop_calls.RESTART_SYSCALL and t.restarts >= 0:
                regs.orig_rax = t.restarts
            regs.rax = -stop_calls.ERESTARTNOHAND & pt.U64
        return self._regs.copy()

    def _bring_back(self, t: Tracee) -> int:
        """A task in a job-control stop: to a stop where its registers can be read; it listens again at the end. The
        signal that stopped it."""
        pt.call(pt.PTRACE_INTERRUPT, t.host)
        return self._await_rest(t)

    def _await_rest(self, t: Tracee) -> int:
        """The stop of an interrupt of ours; its signal. Gone when it is another's: that is served once the tasks go
        on."""
        status = pt.wait_stop(t.host)
        if t.listening and status >> 8 & 0xFF == signal.SIGTRAP:  # its job-control stop is over
            self._engine.deferred.append((t.host, status, pt.last_rusage()))
            raise Gone(t.tid)
        if status >> 16 != pt.EVENT_STOP:
            raise OSError(0, f"task {t.tid}: unexpected stop {status:#x}")
        return status >> 8 & 0xFF

    def _ask(self, t: Tracee, group: ThreadGroup) -> ThreadRecord:
        """A record of what only it can be asked; of a first thread also what `probed` tells."""
        at = self._place(t, group)
        regs = self._regs.load(t.host)
        before = self._regs.copy()
        mask = pt.get_sigmask(t.host)
        scratch = (regs.rsp - _RED_ZONE - 256) & ~15
        try:
            kept = t.memory.read(scratch, 32)
        except OSError:
            raise Unsavable(f"task {t.tid} has no stack") from None
        pt.set_sigmask(t.host, pt.U64)
        make = partial(single, t.host, at)
        told = ThreadRecord(t.tid, b"", b"", 0, b"", b"")
        try:
            make(_SIGALTSTACK, 0, scratch)
            told.altstack = t.memory.read(scratch, 24)
            make(_PRCTL, _PR_GET_TID_ADDRESS, scratch)
            (told.clear_tid,) = struct.unpack("<Q", t.memory.read(scratch, 8))
            task_attributes.ask_thread(make, scratch, t.memory.read, told)
            if group.tgid not in self.probed:
                self.probed[group.tgid] = task_attributes.ask_memory(
                    make, partial(_locked, t.host), partial(_is_present, t.host)
                )
                if self.names is None:
                    self.names = self._names(make, t, regs.rsp)
                if group.tgid in self._hidden:
                    hidden = self._hidden[group.tgid][1]
                    self.probed[group.tgid] = self.probed[group.tgid]._replace(dumpable=hidden)
        finally:
            t.memory.write(scratch, kept)
            self._regs.put(before)
            self._regs.store(t.host)
            pt.set_sigmask(t.host, mask)
            # The registers may say that the host is to begin a call again, which it does after such a stop only.
            self._stand_again(t)
        return told

    @staticmethod
    def _names(make: Callable[..., int], t: Tracee, stack: int) -> tuple[str, str]:
        """As the thread sees them, in its UTS namespace (uname(2))."""
        room = (stack - _RED_ZONE - 1024) & ~15
        kept = t.memory.read(room, _UTSNAME)
        try:
            make(_UNAME, room)
            words = t.memory.read(room, _UTSNAME)
        finally:
            t.memory.write(room, kept)
        host, domain = (words[65 * n : 65 * n + 65].partition(b"\0")[0] for n in (1, 5))
        return os.fsdecode(host), os.fsdecode(domain)

    def _stand_again(self, t: Tracee) -> None:
        """Bring a task that stands to an event stop, before it executes anything. Gone; OSError."""
        pt.call(pt.PTRACE_INTERRUPT, t.host)
        pt.cont(t.host)
        self._await_rest(t)


def _locked(host: int) -> int:
    return int(_fields(f"/proc/{host}/status").get("VmLck", "0 kB").split()[0])


def _is_present(host: int, address: int) -> bool:
    with open(f"/proc/{host}/pagemap", "rb", buffering=0) as file:
        file.seek(address // 4096 * 8)
        return bool(file.read(8)[7] & 0x80)


def _state(t: Tracee) -> int:
    return _bytes(f"/proc/{t.host}/stat").rpartition(b")")[2].split()[0][0]


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise Gone(path) from None


def _text(path: str) -> str:
    return _bytes(path).decode().strip()


def _fields(path: str) -> dict[str, str]:
    """A file of lines NAME: VALUE."""
    lines = (line.partition(":") for line in _bytes(path).decode(errors="replace").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _robust_list(host: int) -> tuple[int, int]:
    head, length = ctypes.c_ulong(), ctypes.c_ulong()
    if _libc.syscall(_GET_ROBUST_LIST, host, ctypes.byref(head), ctypes.byref(length)):
        raise OSError(ctypes.get_errno(), "get_robust_list")
    return head.value, length.value


def _rseq(host: int) -> tuple[int, int, int, int]:
    """(address, length, signature, flags) of its restartable sequences (Linux 5.13); zeros for none."""
    room = ctypes.create_string_buffer(24)
    try:
        pt.call(_PTRACE_GET_RSEQ_CONFIGURATION, host, 24, ctypes.addressof(room))
    except OSError:
        return (0, 0, 0, 0)
    address, size, signature, flags = struct.unpack_from("<QIII", room.raw)
    return address, size, signature, flags


def _timer_slack(host: int) -> int:
    try:
        return int(_text(f"/proc/{host}/timerslack_ns"))
    except (OSError, ValueError):
        return 50000
