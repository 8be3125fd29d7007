"""Calls that arrive by a ptrace stop, and calls that wait.

A call at its entry stop can be answered (the host then skips it), executed, or *parked*: the host executes
pause(2) in its place, which a signal or PTRACE_INTERRUPT ends with ERESTARTNOHAND. A task that stayed in the
seccomp stop itself would hear neither the terminal nor any other signal of the host's.

At every stop the registers tell where the task is:

* orig_rax >= 0, rax = -ERESTART*: in a call that was interrupted; resumed, the host issues it again;
* rax = pause's number, parked: it is about to issue the pause that it is parked in. orig_rax is -1 where we
  wrote that, and pause's number where the host did: it had prepared the restart already when it stopped again
  on its way out (after a freeze, arch_do_signal_or_restart). What goes wrong otherwise: a result written
  without stepping over the instruction is taken for the number of a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.platform import clone_structures, host_masks
from trapline.platform import ptrace_calls as pt
from trapline.platform.pokes import poke_again
from trapline.platform.tracee import WALL_CLOCK, WATCHED, Tracee
from trapline.sentry.kernel.block import Execute, Reply
from trapline.sentry.kernel.signal_deliver import no_handler_ran
from trapline.sentry.syscalls import table
from trapline.sentry.syscalls.sys_process import Clone
from trapline.sentry.syscalls.wall_deadlines import FUTEX, futex_waits_until, futex_waits_until_monotonic

if TYPE_CHECKING:
    from trapline.platform.engine import Engine

PAUSE, FORK, VFORK, CLONE, RESTART_SYSCALL = 34, 57, 58, 56, 219
EINTR = 4
ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 512, 513, 514, 516
#: Calls of which some arrive by notification.
NOTIFIED = {
    row.nr: row
    for row in table.TABLE
    if table.Class.NOTIFY in (row.default, *[case.kind for case in row.cases])
}
RESTARTS = frozenset({-512, -513, -514, -516})
#: Calls that answer EINTR to any interruption, also one that no handler saw (signal(7), and checked in the
#: shared mechanisms): they are issued again. epoll_wait, semop, semtimedop, rt_sigtimedwait, io_getevents,
#: epoll_pwait, epoll_pwait2, and receives and accepts that may have a timeout.
LEAKS_EINTR = frozenset(
    {232, 65, 220, 128, 208, 281, 441, 45, 47, 299, 43, 288, 0, 19, 44, 46, 1, 20, 42, 333}
)


def entry(e: Engine, t: Tracee) -> None:
    """A seccomp stop: the task is about to execute a call that the filter sends here."""
    regs = e.regs.load(t.host)
    nr = regs.orig_rax
    if t.parked:
        if nr == PAUSE:
            _parked_again(e, t)
            return
        t.parked = False  # a handler ran, and the restarted call or another one is here
    if t.reissue is not None:
        request, t.reissue = t.reissue, None
        execute(e, t, request)
        return
    assert t.task is not None
    if t.task.saved_mask >= 0:
        # Back from an interruption without a handler: only now did the host put the mask back.
        no_handler_ran(t.task)
    args = (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9)
    t.nr, t.args = nr, args
    e.entering = t.tid
    try:
        reply = e.dispatcher.enter(t.task, nr, args, regs.rip)
    finally:
        e.entering = 0
    apply_at_entry(e, t, reply)


def apply_at_entry(e: Engine, t: Tracee, reply: int | Reply | Execute) -> None:
    """Act on the dispatcher's reply at an entry stop. The engine's registers are the task's."""
    regs = e.regs.r
    if isinstance(reply, int):
        host_masks.close(t)
        regs.rax = reply & pt.U64
        regs.orig_rax = pt.U64
        e.regs.store(t.host)
        e.resume(t)
    elif reply is Reply.HOST:
        e.resume(t)
    elif isinstance(reply, Reply):
        t.parked = True
        regs.orig_rax = PAUSE
        e.regs.store(t.host)
        _resume_parked(e, t, reply)
    else:
        execute(e, t, reply)


def _resume_parked(e: Engine, t: Tracee, reply: Reply) -> None:
    """Let a parked task go on. Where it waits for signals to be taken only, they may be another thread's to take, so an
    interrupt of ours ends the pause: it begins anew after that, and after a stop, once there are none left here."""
    if reply is Reply.AGAIN:
        pt.call(pt.PTRACE_INTERRUPT, t.host)
    e.resume(t)


def _parked_again(e: Engine, t: Tracee) -> None:
    """The pause in which a task is parked starts again: has its result come meanwhile?"""
    assert t.task is not None
    value = e.dispatcher.take_result(t.task)
    if value is not None:
        t.parked = False
        host_masks.close(t)
        e.regs.r.rax = value & pt.U64
        e.regs.r.orig_rax = pt.U64
        e.regs.store(t.host)
        e.resume(t)
    elif t.reissue is not None:
        t.parked = False
        request, t.reissue = t.reissue, None
        e.regs.r.orig_rax = t.nr
        e.regs.store(t.host)
        execute(e, t, request)
    elif t.tid in e.dispatcher.after_signals:
        reply = e.dispatcher.go_on(t.task)
        if isinstance(reply, Reply):
            _resume_parked(e, t, reply)
            return
        t.parked = False
        e.regs.r.orig_rax = t.nr
        e.regs.store(t.host)
        apply_at_entry(e, t, reply)
    else:
        e.resume(t)


def execute(e: Engine, t: Tracee, request: Execute) -> None:
    """At an entry stop: let the host execute the call, with other arguments if the request has them.

    Linux keeps every register but rax, rcx and r11 over a call, and libc relies on it (glibc's vfork keeps
    its return address in rdi), so what is changed here is put back at the exit stop, or for a clone at the
    event, in parent and child.
    """
    regs = e.regs.r
    t.execute = request
    t.saved = (regs.orig_rax, regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8)
    if request.args is not None:
        a = (*request.args, 0, 0, 0, 0, 0)
        regs.rdi, regs.rsi, regs.rdx, regs.r10 = (x & pt.U64 for x in a[:4])
        if len(request.args) > 4:
            regs.r8 = a[4] & pt.U64
        if isinstance(request, Clone):
            regs.orig_rax = CLONE
        e.regs.store(t.host)
    elif isinstance(request, Clone):
        clone_structures.place(e, t, request)
    pt.cont_to_exit(t.host)


def put_back(e: Engine, saved: tuple[int, ...]) -> None:
    """Restore the argument registers in the engine's buffer."""
    regs = e.regs.r
    _, regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8 = saved


def _trapped(e: Engine, t: Tracee) -> None:
    """Entry or exit of a call under trap_all."""
    entering = pt.at_entry(t.host)
    wall = e.wall if t.trap_all & WALL_CLOCK else None
    if wall is not None and not entering and wall.leaving(t):
        pt.at_entry(t.host)  # who watches sees the result that the guest gets
    if t.trap_all & WATCHED:
        e.on_trap(t, entering)
    if entering:
        if wall is not None:
            wall.entering(t)
    elif pt.last_result() in (-EINTR, -ERESTART_RESTARTBLOCK):
        _hide_at_exit(e, t)


def _hide_at_exit(e: Engine, t: Tracee) -> None:
    """A call was interrupted, and the task stands at its exit. Whether a handler is to run is not known yet, so
    the host is left to choose between EINTR and issuing the call again.

    What goes wrong otherwise: there may be no other stop at which to hide it. An interrupt of ours that comes
    together with this stop is dropped by the host (ptrace_stop), and another thread may take the ignored signal
    of the process that woke this one.
    """
    regs = e.regs.load(t.host)
    if pt.signed(regs.rax) == -EINTR and pt.signed(regs.orig_rax) in LEAKS_EINTR:
        regs.rax = -ERESTARTNOHAND & pt.U64
        e.regs.store(t.host)
    reissue_absolute_wait(e, t)


def exit_stop(e: Engine, t: Tracee) -> None:
    """The exit of a call that the host executed for the sentry (or of any call, under trap_all)."""
    if t.execute is None:
        if t.trap_all:
            _trapped(e, t)
        e.resume(t)
        return
    if t.trap_all & WATCHED:
        e.on_trap(t, False)
    request, saved = t.execute, t.saved
    t.execute = t.saved = None
    if e.structures:
        e.structures.pop(t.host, None)
    regs = e.regs.load(t.host)
    assert saved is not None and t.task is not None
    put_back(e, saved)
    regs.orig_rax = saved[0]
    result = pt.signed(regs.rax)
    reply: int | Reply | Execute = result
    if not isinstance(request, Clone):
        reply = e.dispatcher.executed(t.task, result)
    if isinstance(reply, int):
        e.watch.returned(t, reply)
        regs.rax = reply & pt.U64
        if reply not in RESTARTS and reply != result:
            regs.orig_rax = pt.U64
        e.regs.store(t.host)
        if t.repoke:
            t.repoke = False
            poke_again(e, t)
        e.resume(t)
        return
    # It waits again, or the host has to execute another form: issue the instruction once more.
    regs.rip -= 2
    regs.orig_rax = pt.U64
    if isinstance(reply, Execute):
        t.reissue = reply
        regs.rax = t.nr
    else:
        t.parked = True
        regs.rax = PAUSE
        if reply is Reply.AGAIN:
            pt.call(pt.PTRACE_INTERRUPT, t.host)
    e.regs.store(t.host)
    pt.cont(t.host)


def about_to_pause(t: Tracee, regs: pt.Registers) -> bool:
    """Parked, and stopped before the pause instruction rather than in it."""
    return bool(t.parked and regs.rax == PAUSE)


def finish_at_stop(e: Engine, t: Tracee, value: int) -> None:
    """Write a call's result into the loaded registers of a task that stands at a signal or event stop.

    A restart (-ERESTARTSYS) is left to the host, which knows the handler's SA_RESTART.
    """
    e.watch.answered(t, value)
    host_masks.close(t)
    regs = e.regs.r
    before = about_to_pause(t, regs)
    if value in RESTARTS:
        if t.parked and before:
            regs.rax = t.nr
            regs.orig_rax = pt.U64
        elif t.parked:
            regs.rax = value & pt.U64
            regs.orig_rax = t.nr
    else:
        if before:
            regs.rip += 2
        regs.rax = value & pt.U64
        regs.orig_rax = pt.U64
    t.parked = False


def interrupted(e: Engine, t: Tracee) -> None:
    """A task stands at an event stop (PTRACE_INTERRUPT, the end of a group stop): no signal is involved.

    Nothing of an interrupt of ours may be seen by the guest: no call may return EINTR for it. The end of a
    group stop is different: some calls do return EINTR then (signal(7)), and programs see it natively.
    """
    e.regs.load(t.host)
    task = t.task
    assert task is not None
    value = e.dispatcher.take_result(task) if task.call is not None else None
    if value is None and t.after_stop:
        value = e.dispatcher.interrupt_by_stop(task)
    if value is not None:
        finish_at_stop(e, t, value)
        e.regs.store(t.host)
    elif t.parked and t.reissue is not None:
        begin_reissue(e, t)
    elif t.trap_all & WALL_CLOCK and e.wall is not None and e.wall.read_ended(t):
        pass
    elif t.after_stop:
        _after_group_stop(e, t)
    else:
        hide_interruption(e, t)
    if e.lenders:
        host_masks.event_stop(e, t)
    e.resume(t)


def begin_reissue(e: Engine, t: Tracee) -> None:
    """Leave the pause for the call itself, which the host shall execute: at its entry stop `t.reissue` is
    found. The registers are loaded."""
    regs = e.regs.r
    if not about_to_pause(t, regs):
        regs.rip -= 2
    regs.rax = t.nr
    regs.orig_rax = pt.U64
    t.parked = False
    e.regs.store(t.host)


def issue_after_handler(e: Engine) -> bool:
    """A handler is about to run in a call whose notification was cancelled before the sentry had served it.

    What goes wrong otherwise: the host answers EINTR for ERESTARTSYS without SA_RESTART, and kill(2) or
    timer_create(2) never do that. ERESTARTNOINTR issues the call after the handler, as if the signal had come
    just before it. The registers are loaded; True when they were changed.
    """
    regs = e.regs.r
    row = NOTIFIED.get(regs.orig_rax) if pt.signed(regs.rax) == -ERESTARTSYS else None
    if row is None:
        return False
    args = (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9)
    if row.decide(args) is not table.Class.NOTIFY:
        return False  # the host's own
    regs.rax = -ERESTARTNOINTR & pt.U64
    return True


def _after_group_stop(e: Engine, t: Tracee) -> None:
    """What these calls return when a stop was in between is EINTR, also where `_hide_at_exit` thought of a
    restart (the registers are loaded)."""
    regs = e.regs.r
    if pt.signed(regs.rax) == -ERESTARTNOHAND and pt.signed(regs.orig_rax) in LEAKS_EINTR:
        regs.rax = -EINTR & pt.U64
        e.regs.store(t.host)
    reissue_absolute_wait(e, t)


def reissue_absolute_wait(e: Engine, t: Tracee) -> None:
    """Have a futex wait that was interrupted (the registers are loaded) issued again as it stands, not by
    restart_syscall, where its deadline is on REALTIME, or on a MONOTONIC that has stood still.

    What goes wrong otherwise: restart_syscall waits for the host's time that the host remembers, and nobody
    can tell what it stands for when the sandbox moves its clock. A handler makes it EINTR in either case.
    """
    regs = e.regs.r
    if pt.signed(regs.rax) != -ERESTART_RESTARTBLOCK:
        return
    if regs.orig_rax != RESTART_SYSCALL:
        t.restarts = regs.orig_rax  # which a checkpoint cannot find out any more once it was restarted
    if regs.orig_rax == FUTEX and (
        futex_waits_until(regs.rsi) or (t.trap_all & WALL_CLOCK and futex_waits_until_monotonic(regs.rsi))
    ):
        regs.rax = -ERESTARTNOHAND & pt.U64
        e.regs.store(t.host)


def hide_interruption(e: Engine, t: Tracee) -> None:
    """Issue a call again that returned EINTR though no handler runs (the registers are loaded)."""
    reissue_absolute_wait(e, t)
    regs = e.regs.r
    nr = pt.signed(regs.orig_rax)
    if nr >= 0 and pt.signed(regs.rax) == -EINTR and nr in LEAKS_EINTR:
        regs.rax = nr
        regs.rip -= 2
        regs.orig_rax = pt.U64
        e.regs.store(t.host)
