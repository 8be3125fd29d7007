"""RLIMIT_CPU, prlimit(2) and times(2) in the kernel, and which thread CPU timers' signals go to."""

import errno
import struct

import kernel_fixture
import pytest
from time_platform import TICK, TimePlatform

from trapline.sentry.kernel.signals import SI_KERNEL, SIGPROF, SIGXCPU, bit
from trapline.sentry.kernel.state import RLIM_INFINITY, SigAction
from trapline.sentry.kernel.task_clone import CLONE_THREAD
from trapline.sentry.time.timekeeper import cpu_clock_id

SECOND = 10**9
A, B = 0x1000, 0x1100
CPU = f"cpu:{cpu_clock_id(2)}"
RLIMIT_CPU, CAP_SYS_RESOURCE = 0, 24


class Guest:
    def __init__(self, world):
        self.world, self.kernel, self.platform = world, world.kernel, world.platform
        self.task, self.group = world.root, world.kernel.group(world.root)
        self.platform.capabilities &= ~(1 << CAP_SYS_RESOURCE)
        self.group.actions[SIGXCPU] = SigAction(handler=0x4000)

    def put(self, *words, tid=2):
        self.platform.memory(tid).write(A, struct.pack(f"<{len(words)}Q", *words))
        return A

    def got(self, count=2, tid=2):
        return struct.unpack(f"<{count}Q", self.platform.memory(tid).read(B, 8 * count))

    def limit(self, soft, hard=RLIM_INFINITY):
        return self.world.call(self.task, "setrlimit", RLIMIT_CPU, self.put(soft, hard))

    def at(self, used, runner=0):
        self.platform.cpu[2] = used
        self.kernel.cpu_alarm(CPU, runner)

    def signals(self):
        found = [(info.signo, info.code) for info in self.group.pending]
        self.group.pending.clear()
        return found


@pytest.fixture
def guest(monkeypatch):
    monkeypatch.setattr(kernel_fixture, "FakePlatform", TimePlatform)
    world = kernel_fixture.World()
    yield Guest(world)
    world.check_plain()


def test_soft_every_second_then_hard(guest):
    assert guest.limit(1, 3) == 0
    assert guest.platform.cpu_alarms == {CPU: SECOND}
    guest.at(SECOND - 1)
    assert guest.signals() == []
    guest.at(SECOND)
    assert guest.signals() == [(SIGXCPU, SI_KERNEL)] and guest.group.cpu_limit == (2, 3)
    guest.at(2 * SECOND)
    assert guest.signals() == [(SIGXCPU, SI_KERNEL)] and guest.platform.killed == []
    guest.at(3 * SECOND)
    assert guest.signals() == [] and guest.platform.killed == [2]


def test_exceeded_when_it_is_set(guest):
    guest.platform.cpu[2] = 2 * SECOND + 5
    assert guest.limit(1) == 0
    assert guest.signals() == [(SIGXCPU, SI_KERNEL)] and guest.group.cpu_limit[0] == 2
    assert guest.platform.cpu_alarms == {CPU: TICK}  # still exceeded: again a tick later
    guest.at(2 * SECOND + 5 + TICK)
    assert guest.signals() == [(SIGXCPU, SI_KERNEL)] and guest.group.cpu_limit[0] == 3
    guest.at(2 * SECOND + 5 + 2 * TICK)
    assert guest.signals() == []
    guest.platform.cpu[2] = 9 * SECOND
    assert guest.limit(5, 9) == 0
    assert guest.platform.killed == [2]


def test_never_before_the_first_tick(guest):
    assert guest.limit(0) == 0
    assert guest.signals() == [] and guest.platform.cpu_alarms == {CPU: TICK}
    guest.at(TICK)
    assert guest.signals() == [(SIGXCPU, SI_KERNEL)]


def test_infinite_disarms(guest):
    guest.limit(1)
    guest.limit(RLIM_INFINITY)
    assert guest.platform.cpu_alarms == {CPU: -1} and guest.kernel.state.timers == {}


def test_set_and_told(guest):
    call = guest.world.call
    assert guest.limit(100, 200) == 0
    assert call(guest.task, "getrlimit", RLIMIT_CPU, B) == 0 and guest.got() == (100, 200)
    assert call(guest.task, "prlimit64", 0, RLIMIT_CPU, guest.put(50, 150), B) == 0 and guest.got() == (100, 200)
    assert guest.limit(300, 200) == -errno.EINVAL
    assert guest.limit(50, 151) == -errno.EPERM
    guest.platform.capabilities |= 1 << CAP_SYS_RESOURCE
    assert guest.limit(50, 151) == 0
    for name, *arguments in (("setrlimit", 0, 1), ("getrlimit", 0, 1), ("prlimit64", 0, 0, 1, 0), ("prlimit64", 0, 0, 0, 1)):
        assert call(guest.task, name, *arguments) == -errno.EFAULT
    assert guest.group.cpu_limit == (50, 151)


def test_of_another_process(guest):
    child = guest.world.fork(guest.task, 9)
    call = guest.world.call
    assert call(guest.task, "prlimit64", 9, RLIMIT_CPU, guest.put(3, 4), 0) == 0
    assert guest.kernel.group(child).cpu_limit == (3, 4)
    assert guest.platform.cpu_alarms == {f"cpu:{cpu_clock_id(9)}": 3 * SECOND}
    for ids in (guest.platform.uids, guest.platform.gids):
        ids[9] = (0, 0, 5)
        assert call(guest.task, "prlimit64", 9, RLIMIT_CPU, 0, B) == -errno.EPERM
        ids.clear()
    assert call(guest.task, "prlimit64", 9, RLIMIT_CPU, 0, B) == 0 and guest.got() == (3, 4)


def test_a_child_inherits_and_is_armed(guest):
    guest.limit(2, 5)
    group = guest.kernel.group(guest.world.fork(guest.task, 9))
    guest.kernel.time_on_start(group)  # as the platform does once it knows the child
    assert group.cpu_limit == (2, 5)
    assert guest.platform.cpu_alarms[f"cpu:{cpu_clock_id(9)}"] == 2 * SECOND
    guest.platform.cpu[9] = 5 * SECOND
    guest.kernel.cpu_alarm(f"cpu:{cpu_clock_id(9)}")
    assert guest.platform.killed == [9]
    guest.kernel.time_on_group_exit(group)
    assert list(guest.kernel.state.timers) == ["rlimit:2"]


def test_an_exec_keeps_it(guest):
    guest.limit(2, 5)
    guest.kernel.time_on_exec(guest.group)
    assert list(guest.kernel.state.timers) == ["rlimit:2"] and guest.group.cpu_limit == (2, 5)


@pytest.mark.parametrize("by_alarm", [True, False])
def test_the_thread_that_runs_takes_the_signal(guest, by_alarm):
    """By what the alarm says, or by a look at which one runs; but not one that blocks it."""
    runner, other = guest.world.fork(guest.task, 3, CLONE_THREAD), guest.world.fork(guest.task, 4, CLONE_THREAD)
    guest.group.actions[SIGPROF] = SigAction(handler=0x4000)
    guest.platform.memory(2).write(A, struct.pack("<4q", 0, 10000, 0, 10000))
    assert guest.world.call(guest.task, "setitimer", 2, A, 0) == 0
    guest.platform.runner = 0 if by_alarm else runner.tid
    guest.at(20 * 10**6, runner.tid if by_alarm else 0)
    assert guest.platform.pokes == [(runner.tid, SIGPROF)] and guest.signals() == [(SIGPROF, SI_KERNEL)]
    runner.mask = bit(SIGPROF)
    guest.platform.pokes.clear()
    guest.at(40 * 10**6, runner.tid if by_alarm else 0)
    assert guest.platform.pokes == [(guest.task.tid, SIGPROF)]
    assert other.pending == []


def test_times(guest):
    guest.platform.monotonic += 2 * SECOND + 5
    assert guest.world.call(guest.task, "times", B) == 200
    assert guest.got(4) == (1, 2, 3, 4)
    assert guest.world.call(guest.task, "times", 0) == 200
    assert guest.world.call(guest.task, "times", 1) == -errno.EFAULT
