"""Threads of a restored process, who they are, and what they go on with.

Order within a process, each step resting on those before: all threads (made with capabilities they have only
now); what each thread tells the host of itself; whose it is; dispositions; the sandbox's filter, for all threads at
once; last the workspace is unmapped and the registers are set. From the filter on a task is a guest like any other,
and goes on when it is resumed, with the restart of the call that it was in.

Sources: clone3(2), set_robust_list(2), set_tid_address(2), sigaltstack(2), rseq in include/uapi/linux/rseq.h,
capabilities(7), seccomp(2) SECCOMP_FILTER_FLAG_TSYNC.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress

from trapline.platform import injection, task_attributes
from trapline.platform import ptrace_calls as pt
from trapline.platform.injection import Call, Data, Injection, Try, single
from trapline.platform.restore_tree import make_child
from trapline.sentry.kernel.state import SigAction
from trapline.sentry.state.records import AddressSpace, Directories, ProcessRecord, ThreadRecord

_CLONE_THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000  # VM, FS, FILES, SIGHAND, THREAD, SYSVSEM
_SIGALTSTACK, _SET_ROBUST_LIST, _SET_TID_ADDRESS, _RSEQ, _PRCTL, _RT_SIGACTION = 131, 273, 218, 334, 157, 13
_SETGROUPS, _SETRESGID, _SETRESUID, _SETFSUID, _SETFSGID, _CAPSET, _UMASK = 116, 119, 117, 122, 123, 126, 95
_OPENAT, _FCHDIR, _CHROOT, _CLOSE, _SECCOMP = 257, 81, 161, 3, 317
_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NAME, _PR_CAPBSET_DROP, _PR_SET_TIMERSLACK = 4, 8, 15, 24, 29
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 2, 4
_CAPABILITY_VERSION_3, _LAST_CAPABILITY, _CAP_SETPCAP = 0x20080522, 40, 8
_PR_SET_SECUREBITS, _NO_SETUID_FIXUP, _KEEP_CAPS = 28, 1 << 2, 1 << 4
_SS_ONSTACK, _SS_DISABLE, _O_PATH, _AT_FDCWD = 1, 2, 0o10000000, -100
_SIGTRAP = 5
_IOPRIO_SET, _IOPRIO_WHO_PROCESS, _IOPRIO_CLASS_RT, _TGKILL = 251, 1, 1, 234
_CAP_SYS_NICE, _REAL_TIME = 23, (1, 2, 6)  # SCHED_FIFO, SCHED_RR, SCHED_DEADLINE
_PRLIMIT64 = 302
_EXIT, _RT_SIGQUEUEINFO, _RT_TGSIGQUEUEINFO = 60, 129, 297
_TSYNC, _NEW_LISTENER, _TSYNC_ESRCH, _WAIT_KILLABLE = 1, 8, 16, 32
_libc = ctypes.CDLL(None, use_errno=True)


def make_threads(leader: Injection, record: ProcessRecord) -> list[Injection]:
    """The process's threads, in the record's order. OSError; Gone."""
    made = []
    for thread in record.threads:
        if thread.tid == record.tgid:
            made.append(leader)
        else:
            made.append(make_child(leader, thread.tid, _CLONE_THREAD, 0))
    return made


def end_leader(leader: Injection) -> None:
    """The first thread ends before its process, whose zombie it stays until then: that is not reported to anybody."""
    leader.start([(_EXIT, 0)])
    while True:
        with open(f"/proc/{leader.host}/task/{leader.host}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[0] == b"Z":
                return
        os.sched_yield()


def thread_calls(thread: ThreadRecord) -> list[Call | Try]:
    """What a thread tells the host of itself, and at the end who it is."""
    pointer, flags, size = struct.unpack("<Qi4xQ", thread.altstack)
    calls: list[Call | Try] = []
    if not flags & _SS_DISABLE and size:
        stack = struct.pack("<Qi4xQ", pointer, flags & ~_SS_ONSTACK, size)
        calls.append((_SIGALTSTACK, Data(stack), 0))
    if thread.robust_head:
        calls.append((_SET_ROBUST_LIST, thread.robust_head, thread.robust_length))
    calls.append((_SET_TID_ADDRESS, thread.clear_tid))
    address, length, signature, _ = thread.rseq
    if address:
        calls.append((_RSEQ, address, length, 0, signature))
    calls.append((_PRCTL, _PR_SET_NAME, Data(thread.name + b"\0"), 0, 0, 0))
    calls.append(Try((_PRCTL, _PR_SET_TIMERSLACK, thread.timer_slack, 0, 0, 0)))
    return calls + task_attributes.thread_calls(thread) + _identity_calls(thread)


def _identity_calls(thread: ThreadRecord) -> list[Call | Try]:
    """Capabilities are kept over the change of user by securebits, which are what they were once that one is the
    thread's which may set them."""
    _, _, _, bounding, ambient = thread.capabilities
    bits = thread.secure_bits & ~_KEEP_CAPS
    groups = struct.pack(f"<{len(thread.groups)}I", *thread.groups)
    calls: list[Call | Try] = [(_PRCTL, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)]  # the seed's
    calls += [
        (_PRCTL, _PR_CAPBSET_DROP, number, 0, 0, 0)
        for number in range(_LAST_CAPABILITY + 1)
        if not bounding >> number & 1
    ]
    calls += [
        (_PRCTL, _PR_SET_SECUREBITS, _KEEP_CAPS | _NO_SETUID_FIXUP) if bits else (_PRCTL, _PR_SET_KEEPCAPS, 1, 0, 0, 0),
        # Denied in an ordinary user's sandbox (user_namespaces(7)), where nobody could have changed them either.
        Try((_SETGROUPS, len(thread.groups), Data(groups))),
        (_SETRESGID, *thread.gids[:3]),
        (_SETRESUID, *thread.uids[:3]),
    ]
    if thread.gids[3] != thread.gids[1]:
        calls.append((_SETFSGID, thread.gids[3]))
    if thread.uids[3] != thread.uids[1]:
        calls.append((_SETFSUID, thread.uids[3]))
    calls.append(_capset(thread, 1 << _CAP_SETPCAP if bits else 0))
    calls += [
        (_PRCTL, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0)
        for number in range(_LAST_CAPABILITY + 1)
        if ambient >> number & 1
    ]
    if bits:
        calls += [(_PRCTL, _PR_SET_SECUREBITS, thread.secure_bits), _capset(thread, 0)]
    else:
        calls.append((_PRCTL, _PR_SET_KEEPCAPS, 1 if thread.secure_bits else 0, 0, 0, 0))
    if thread.no_new_privileges:
        calls.append((_PRCTL, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    return calls


def _capset(thread: ThreadRecord, more: int) -> Call:
    inheritable, permitted, effective, _, _ = thread.capabilities
    sets = (effective | more, permitted | more, inheritable)
    data = struct.pack("<6I", *[word & 0xFFFFFFFF for word in sets], *[word >> 32 for word in sets])
    return _CAPSET, Data(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)), Data(data)


def signal_calls(record: ProcessRecord, thread: ThreadRecord) -> list[Call | Try]:
    """Have the host hold again what it held back: each thread tells itself, since nobody else may use every siginfo
    (rt_sigqueueinfo(2)). All signals are blocked meanwhile."""
    calls: list[Call | Try] = [
        (_RT_TGSIGQUEUEINFO, record.tgid, thread.tid, raw[0], Data(raw)) for raw in thread.queued
    ]
    if thread is record.threads[0]:
        calls += [(_RT_SIGQUEUEINFO, record.tgid, raw[0], Data(raw)) for raw in record.queued]
    return calls


def schedule(host: int, thread: ThreadRecord, allowed: set[int]) -> None:
    """Policy, nice value and CPUs, set from outside; what may not be had stays as it is. To stand before others of the
    host is only for whom could do that by itself, or as far as we do."""
    free = thread.capabilities[1] >> _CAP_SYS_NICE & 1
    with suppress(OSError):
        os.sched_setaffinity(host, set(thread.affinity) & allowed or allowed)
    with suppress(OSError):
        nice = thread.nice if free else max(thread.nice, os.getpriority(os.PRIO_PROCESS, 0))
        os.setpriority(os.PRIO_PROCESS, host, nice)
    if thread.policy and (free or thread.policy & 0xF not in _REAL_TIME or thread.policy == os.sched_getscheduler(0)):
        with suppress(OSError):
            os.sched_setscheduler(host, thread.policy, os.sched_param(thread.priority))
    if thread.io_priority and (free or thread.io_priority >> 13 != _IOPRIO_CLASS_RT):
        _libc.syscall(_IOPRIO_SET, _IOPRIO_WHO_PROCESS, host, thread.io_priority)


def told_from_outside(host: int, record: ProcessRecord, space: AddressSpace) -> None:
    """What is written into a process's files of /proc; what may not be had stays as it is."""
    for name, text in (
        ("oom_score_adj", str(record.oom_score)),
        ("coredump_filter", hex(space.core_filter) if space.core_filter >= 0 else ""),
    ):
        with suppress(OSError):
            if text:
                with open(f"/proc/{host}/{name}", "w", encoding="ascii") as file:
                    file.write(text)


def directory_calls(places: Directories) -> list[Call | Try]:
    """umask, working directory and root, of a process that has no descriptor 0."""
    calls: list[Call | Try] = [(_UMASK, places.umask)]
    calls.append((_OPENAT, _AT_FDCWD, Data(os.fsencode(places.cwd) + b"\0"), _O_PATH, 0))
    if places.root != "/":
        calls.append((_CHROOT, Data(os.fsencode(places.root) + b"\0")))
    calls += [(_FCHDIR, 0), (_CLOSE, 0)]
    return calls


def disposition_calls(actions: dict[int, SigAction]) -> list[Call | Try]:
    """All dispositions but SIGTRAP's, which ends each batch of calls."""
    return [
        (_RT_SIGACTION, number, Data(_packed(action)), 0, 8)
        for number, action in actions.items()
        if number != _SIGTRAP
    ]


def _packed(action: SigAction) -> bytes:
    """struct kernel_sigaction."""
    return struct.pack("<4Q", action.handler, action.flags & pt.U64, action.restorer, action.mask)


def become_guest(leader: Injection, at: int, actions: dict[int, SigAction], program: bytes, flags: int) -> int:
    """The last calls but the workspace's end: SIGTRAP's disposition, and the filter. `at` is a `syscall` instruction
    of the process, `flags` those of seccomp(2). The listener's number in the guest, -1 for none. OSError; Gone."""
    host, base = leader.host, leader.workspace.base
    data = base + injection.DATA
    if _SIGTRAP in actions:
        leader.memory.write(data, _packed(actions[_SIGTRAP]))
        single(host, at, _RT_SIGACTION, _SIGTRAP, data, 0, 8)
    leader.memory.write(data, struct.pack("<H6xQ", len(program) // 8, data + 16) + program)
    listener = single(host, at, _SECCOMP, 1, flags, data)
    return listener if flags & _NEW_LISTENER else -1


def send_to_thread(host_group: int, host: int, signo: int) -> None:
    """tgkill(2)."""
    _libc.syscall(_TGKILL, host_group, host, signo)


def filter_flags(listener: bool, killable: bool, threads: int) -> int:
    """For `become_guest`."""
    flags = (_NEW_LISTENER | (_WAIT_KILLABLE if killable else 0)) if listener else 0
    if threads > 1:
        flags |= _TSYNC | (_TSYNC_ESRCH if listener else 0)
    return flags


def go_on_from(host: int, thread: ThreadRecord) -> None:
    """The registers and the mask that a thread goes on with. It stands at a stop after a call, or of a signal; the
    interrupt brings it, once it is resumed, to an event stop, where the host does what they say of a restart."""
    injection.set_extended(host, thread.extended)
    registers = pt.RegisterFile()
    registers.put(thread.registers)
    registers.store(host)
    pt.set_sigmask(host, thread.mask)
    pt.call(pt.PTRACE_INTERRUPT, host)
