"""By which host signal a thread is brought to a delivery stop: SIGCONT acts on the host as soon as it is sent."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from kernel_fixture import World

from trapline.sentry.kernel.signal_send import poke_number
from trapline.sentry.kernel.signals import DEFAULT_STOP, SIGCONT, UNMASKABLE, bit
from trapline.sentry.kernel.state import Task

ALL = (1 << 64) - 1


def test_a_sigcont_that_waited_is_not_sent_to_the_host(world: World) -> None:
    """Found by the soak: it undid a SIGSTOP that was sent later and was just being delivered."""
    memory = world.platform.memory(2)
    memory.write(0x1000, struct.pack("<QQQQ", 0x400000, 0, 0, 0))
    memory.write(0x2000, struct.pack("<Q", ALL))
    memory.write(0x3000, struct.pack("<Q", 0))
    world.call(world.root, "rt_sigaction", SIGCONT, 0x1000, 0, 8)
    world.call(world.root, "rt_sigprocmask", 2, 0x2000, 0, 8)
    world.call(world.root, "kill", 2, SIGCONT)
    assert world.platform.continued == [2] and world.platform.pokes == []
    world.call(world.root, "rt_sigprocmask", 2, 0x3000, 0, 8)
    ((tid, signo),) = world.platform.pokes
    assert tid == 2 and signo != SIGCONT


@given(st.integers(0, ALL), st.integers(1, ALL))
def test_any_mask(mask: int, ready: int) -> None:
    """The number gets through the mask; it is SIGCONT only where nothing else would."""
    task = Task(tid=2, tgid=2, mask=mask & ~UNMASKABLE)
    ready &= ~task.mask
    if not ready:
        return
    signo = poke_number(task, ready)
    assert not task.mask & bit(signo)
    assert ready & bit(signo) or ready == bit(SIGCONT)
    if signo == SIGCONT:
        assert not ~task.mask & ALL & ~(bit(SIGCONT) | DEFAULT_STOP | UNMASKABLE)
