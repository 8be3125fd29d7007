"""Where a parked task can stand when its result is written: in the pause, before it, and before it once more."""

from __future__ import annotations

import struct

import pytest
from kernel_fixture import World

from trapline.platform import ptrace_calls as pt
from trapline.platform.engine import Engine
from trapline.platform.stop_calls import PAUSE
from trapline.platform.tracee import Tracee
from trapline.sentry.kernel.block import Reply
from trapline.sentry.syscalls import table

_RESTART_NOHAND = -514 & pt.U64
_INTERRUPT_STOP = pt.EVENT_STOP << 16 | 5 << 8 | 0x7F
_NANOSLEEP = table.by_name("nanosleep")
_BEHIND = 0x401002  # the instruction behind the call's


@pytest.mark.parametrize(
    ("orig_rax", "rax", "rip"),
    [
        pytest.param(PAUSE, _RESTART_NOHAND, _BEHIND, id="interrupted in the pause"),
        pytest.param(pt.U64, PAUSE, _BEHIND - 2, id="sent to the pause, not yet in it"),
        pytest.param(PAUSE, PAUSE, _BEHIND - 2, id="the host had prepared the restart after a freeze"),
    ],
)
def test_a_result_reaches_a_parked_task(
    world: World, monkeypatch: pytest.MonkeyPatch, orig_rax: int, rax: int, rip: int
) -> None:
    """The guest goes on behind the call with the result, and makes no call of that number."""
    resumed: list[int] = []
    monkeypatch.setattr(pt, "call", lambda request, host, address=0, data=0: None)
    monkeypatch.setattr(pt, "cont", lambda host, signo=0: resumed.append(host))
    monkeypatch.setattr(pt.RegisterFile, "load", lambda self, host: self.r)
    monkeypatch.setattr(pt.RegisterFile, "store", lambda self, host: None)
    assert _NANOSLEEP is not None
    engine = Engine()
    engine.kernel, engine.dispatcher = world.kernel, world.dispatcher
    task = Tracee(1002, 1002, 2, world.root)
    engine.add(task)
    world.platform.memory(2).write(0x1000, struct.pack("<qq", 1, 0))
    world.platform.deliver = False
    assert world.call(world.root, "nanosleep", 0x1000, 0) is Reply.BLOCKED
    task.nr, task.parked = _NANOSLEEP.nr, True
    world.advance(1_000_000_000)

    regs = engine.regs.r
    regs.orig_rax, regs.rax, regs.rip = orig_rax, rax, rip
    engine.serve_stop(1002, _INTERRUPT_STOP)
    assert (regs.rax, regs.rip, regs.orig_rax) == (0, _BEHIND, pt.U64)
    assert not task.parked and resumed == [1002]
