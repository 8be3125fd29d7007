"""sched_setaffinity under `--cpus`: what is asked for is intersected with the sandbox's CPUs."""

import errno

import pytest

from trapline.platform.application_cpus import as_list, only
from trapline.sentry.kernel.block import Reply

SIZE = 8


def ask(world, task, pid, mask, size=SIZE, address=0x1000):
    world.platform.memory(task.tid).write(0x1000, mask.to_bytes(SIZE, "little"))
    return world.call(task, "sched_setaffinity", pid, size, address)


@pytest.fixture
def held(world):
    """A sandbox on CPUs 1 and 3."""
    world.kernel.state.allowed_cpus = [1, 3]
    return world


def test_without_a_cap_the_host_executes_it(world):
    assert ask(world, world.root, 0, 1) is Reply.HOST
    assert world.platform.affinity == {}


@pytest.mark.parametrize(
    ("mask", "left"), [(0b1010, [1, 3]), (0b1111, [1, 3]), (0b0010, [1]), (0b1001, [3]), (1 << 63 | 2, [1])]
)
def test_what_is_left(held, mask, left):
    assert ask(held, held.root, 0, mask) == 0
    assert held.platform.affinity == {2: left}
    held.check_plain()


@pytest.mark.parametrize("mask", [0, 0b0101, 1 << 63])
def test_nothing_is_left(held, mask):
    assert ask(held, held.root, 0, mask) == -errno.EINVAL
    assert held.platform.affinity == {}


def test_lengths(held):
    """Missing bytes are 0; what is more than the kernel has CPUs for is not read."""
    assert ask(held, held.root, 0, 0xFFFF, size=1) == 0
    assert ask(held, held.root, 0, 1 << 9, size=1) == -errno.EINVAL
    assert ask(held, held.root, 0, 0xFFFF, size=0) == -errno.EINVAL
    assert ask(held, held.root, 0, 0xFFFF, size=0, address=1) == -errno.EINVAL
    held.platform.memory(2).write(0x9000 - SIZE, b"\xff" * SIZE)
    assert held.call(held.root, "sched_setaffinity", 0, 1 << 31, 0x9000 - SIZE) == 0
    assert held.call(held.root, "sched_setaffinity", 0, SIZE, 0x9000 - SIZE + 1) == -errno.EFAULT


def test_order_of_errors(held):
    assert ask(held, held.root, 99, 2, address=1) == -errno.EFAULT
    assert ask(held, held.root, -1, 0) == -errno.ESRCH
    assert ask(held, held.root, 99, 0) == -errno.ESRCH
    other = held.fork(held.root, 3)
    held.platform.capabilities = 0
    held.platform.uids = {2: (1, 1, 1), 3: (2, 2, 2)}
    assert ask(held, held.root, other.tid, 0) == -errno.EPERM


@pytest.mark.parametrize(
    ("caller", "target", "capabilities", "allowed"),
    [
        ((1, 1, 1), (1, 1, 1), 0, True),
        ((1, 1, 1), (1, 2, 2), 0, True),  # its real one
        ((1, 1, 1), (2, 1, 2), 0, True),  # its effective one
        ((1, 1, 1), (2, 2, 1), 0, False),  # its saved one does not count
        ((1, 3, 1), (1, 1, 1), 0, False),  # nor does the caller's real one
        ((0, 0, 0), (1, 1, 1), 0, False),  # root of a container
        ((1, 1, 1), (0, 0, 0), 1 << 23, True),  # CAP_SYS_NICE
    ],
)
def test_who_may(held, caller, target, capabilities, allowed):
    held.fork(held.root, 3)
    held.platform.uids = {2: caller, 3: target}
    held.platform.capabilities = capabilities
    assert ask(held, held.root, 3, 2) == (0 if allowed else -errno.EPERM)
    assert held.platform.affinity == ({3: [1]} if allowed else {})
    assert ask(held, held.root, 2, 2) == 0  # oneself always


def test_a_target_with_more_capabilities(held):
    """cap_safe_nice: the same user is not enough, as where the target is a set-user-id program of root's."""
    held.fork(held.root, 3)
    held.platform.capabilities = 0
    held.platform.permits = {2: 0b01, 3: 0b11}
    assert ask(held, held.root, 3, 2) == -errno.EPERM
    held.platform.permits = {2: 0b11, 3: 0b01}
    assert ask(held, held.root, 3, 2) == 0


def test_a_task_that_dies_meanwhile(held):
    held.fork(held.root, 3)
    held.platform.capabilities = 0
    held.platform.gone.add(3)
    assert ask(held, held.root, 3, 2) == -errno.ESRCH


def test_files():
    assert as_list([0]) == "0"
    assert as_list([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    text = "processor\t: 0\nmodel\t: a\n\nprocessor\t: 1\nmodel\t: b\n\nprocessor\t: 10\n\n"
    assert only([0, 10], text) == "processor\t: 0\nmodel\t: a\n\nprocessor\t: 10\n\n"
    assert only([1], text) == "processor\t: 1\nmodel\t: b\n\n"
