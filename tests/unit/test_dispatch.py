"""One call in flight per task; results that stick; crashes that hurt nobody else."""

import errno
import struct

from trapline.sentry.kernel.block import Reply
from trapline.sentry.kernel.signal_deliver import Delivery
from trapline.sentry.kernel.state import SigInfo
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls import registry, table

SECOND = 1_000_000_000


def sleep(world, seconds=1):
    world.platform.memory(2).write(0x1000, struct.pack("<qq", seconds, 0))
    return world.call(world.root, "nanosleep", 0x1000, 0)


def test_same_call_again_is_not_a_second_call(world):
    """A freeze cancels the notification: the sleep must not start anew."""
    assert sleep(world) is Reply.BLOCKED
    deadline = world.root.call.deadline
    world.advance(SECOND // 2)
    assert sleep(world) is Reply.BLOCKED
    assert world.root.call.deadline == deadline
    world.advance(SECOND // 2)
    assert world.platform.completed == [(2, 0)]
    assert world.root.call is None
    assert world.kernel.state.counts[table.by_name("nanosleep").nr] == 1


def test_result_sticks_until_it_is_handed_over(world):
    world.platform.deliver = False
    sleep(world)
    world.advance(SECOND)
    assert world.root.call is not None
    assert sleep(world) == 0  # the host issued the call again: it has slept already
    assert world.root.call is None
    assert sleep(world) is Reply.BLOCKED  # a new one


def test_sticky_result_is_written_at_a_stop(world):
    world.platform.deliver = False
    sleep(world)
    world.advance(SECOND)
    assert world.dispatcher.interrupt(world.root, None) == 0
    assert world.root.call is None


def test_immediate_result_that_was_not_heard_is_not_computed_twice(world):
    """kill must not signal twice because its notification was cancelled."""
    child = world.fork(world.root, 3)
    nr = table.by_name("kill").nr
    args = (child.tid, 10, 0, 0, 0, 0)
    assert world.dispatcher.enter(world.root, nr, args) == 0
    world.dispatcher.undelivered(world.root, nr, args, 0)
    pokes = list(world.platform.pokes)
    assert world.dispatcher.enter(world.root, nr, args) == 0
    assert world.platform.pokes == pokes


def test_another_call_drops_the_old_one(world):
    sleep(world)
    assert world.call(world.root, "getpgrp") == 2
    assert not world.dispatcher.running
    assert world.root.call is None
    world.advance(2 * SECOND)
    assert world.platform.completed == []


def test_interrupted_without_handler_goes_on(world):
    sleep(world)
    assert world.dispatcher.interrupt(world.root, None) is None
    assert sleep(world) is Reply.BLOCKED
    world.advance(SECOND)
    assert world.platform.completed == [(2, 0)]


def test_interrupted_by_handler_is_eintr_even_with_restart(world):
    sleep(world)
    delivery = Delivery(SigInfo(10), handler=True, restart=True, stop=False)
    assert world.dispatcher.interrupt(world.root, delivery) == -errno.EINTR


def test_unwound_call_is_entered_again_from_its_record(world):
    sleep(world)
    world.dispatcher.unwind(world.root)
    world.advance(SECOND // 2)
    assert sleep(world) is Reply.BLOCKED
    assert world.root.call.entered == 2
    world.advance(SECOND // 2)
    assert world.platform.completed == [(2, 0)]


def test_exception_in_a_handler_kills_only_its_process(world, monkeypatch):
    def broken(kernel, task):
        raise RuntimeError("bug")

    world.fork(world.root, 3)
    nr = table.by_name("getpgrp").nr
    monkeypatch.setitem(registry.handlers, nr, registry.bind("getpgrp", broken))
    lines = []
    world.kernel.log = lines.append
    assert world.call(world.root, "getpgrp") == -errno.ENOSYS
    assert world.platform.killed == [2]
    assert world.dispatcher.crashes
    assert ("RuntimeError" in lines[0] and "getpgrp" in lines[0]) or str(nr) in lines[0]


def test_unknown_call_is_named_once(world):
    lines = []
    world.kernel.log = lines.append
    for _ in range(3):
        assert world.dispatcher.enter(world.root, 999, (0,) * 6) == -errno.ENOSYS
    assert len(lines) == 1


def test_gone_is_not_an_error_of_ours(world):
    world.platform.gone.add(2)
    try:
        world.call(world.root, "nanosleep", 0x1000, 0)
    except Gone:
        pass
    assert not world.dispatcher.crashes
    world.platform.gone.clear()


def test_gone_of_another_task_is_answered(world):
    """The caller lives, so it must not be left without a result."""

    def ask(kernel, task):
        raise Gone(99)

    with registry.override("getpgrp", ask):
        world.dispatcher.handlers = registry.handlers
        assert world.call(world.root, "getpgrp") == -errno.ESRCH
    assert not world.dispatcher.crashes
