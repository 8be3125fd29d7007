"""Of several mistakes in one call, Linux finds a certain one first. Each line was found by the fuzzer."""

from __future__ import annotations

import errno
import struct

import pytest
from kernel_fixture import World

from trapline.sentry.kernel import task_exit
from trapline.sentry.kernel.block import Execute

GOOD, WILD, NOWHERE = 0x2000, 0x1, 0x3FFFFFFF
BAD_SIGNAL = 65


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("kill", (NOWHERE, BAD_SIGNAL), errno.ESRCH),
        ("kill", (-NOWHERE, BAD_SIGNAL), errno.ESRCH),
        ("kill", (2, BAD_SIGNAL), errno.EINVAL),
        ("kill", (1, BAD_SIGNAL), errno.EINVAL),
        ("tkill", (NOWHERE, BAD_SIGNAL), errno.ESRCH),
        ("tgkill", (NOWHERE, NOWHERE, BAD_SIGNAL), errno.ESRCH),
        ("rt_sigqueueinfo", (NOWHERE, BAD_SIGNAL, GOOD), errno.ESRCH),
        ("rt_tgsigqueueinfo", (-1, 2, 10, WILD), errno.EFAULT),
        ("rt_sigaction", (BAD_SIGNAL, WILD, 0, 8), errno.EFAULT),
        ("rt_sigaction", (BAD_SIGNAL, WILD, 0, 4), errno.EINVAL),
        ("settimeofday", (GOOD, WILD), errno.EFAULT),
        ("clock_nanosleep", (9, 0, WILD, 0), errno.EFAULT),
        ("clock_nanosleep", (9, 0, GOOD, 0), errno.EOPNOTSUPP),
        ("timer_create", (9, 0x3000, GOOD), errno.EINVAL),
        ("timer_create", (9, 0, GOOD), errno.EOPNOTSUPP),
    ],
)
def test_first_mistake(world: World, name: str, args: tuple[int, ...], wanted: int) -> None:
    memory = world.platform.memory(2)
    memory.write(0x3000, struct.pack("<QiiQ", 0, 10, 99, 0))  # a sigevent of no kind
    if name == "settimeofday":
        memory.write(GOOD, struct.pack("<qq", -1, 0))
    if name == "rt_sigqueueinfo":
        memory.write(GOOD, struct.pack("<iii", BAD_SIGNAL, 0, -1))
    assert world.call(world.root, name, *args) == -wanted


@pytest.mark.parametrize("name", ["ppoll", "pselect6", "epoll_pwait", "rt_sigsuspend"])
def test_a_bad_mask_is_the_hosts_to_find(world: World, name: str) -> None:
    """It knows which of the other arguments is wrong before that."""
    place = {"ppoll": 3, "pselect6": 5, "epoll_pwait": 4, "rt_sigsuspend": 0}[name]
    args = [0] * 6
    args[place] = WILD
    if place < 5:
        args[place + 1] = 8
    assert isinstance(world.call(world.root, name, *args), Execute)
    assert world.root.mask == 0


def test_a_siginfo_of_no_known_layout(world: World) -> None:
    """Its last bytes must be zero: the host would refuse it only when it is delivered."""
    memory = world.platform.memory(2)
    for code, tail, wanted in ((-100, 1, -errno.E2BIG), (-100, 0, 0), (-1, 1, 0), (0x80, 1, 0), (7, 1, -errno.E2BIG)):
        memory.write(GOOD, struct.pack("<iii", 10, 0, code).ljust(48, b"\x07") + bytes([tail]) * 80)
        assert world.call(world.root, "rt_sigqueueinfo", 2, 10, GOOD) == wanted, (code, tail)
        for info in world.kernel.group(world.root).pending:
            assert not any(info.fields[32:])
        world.kernel.group(world.root).pending.clear()


def test_a_siginfo_needs_only_its_known_part(world: World) -> None:
    """48 bytes at the end of what can be read."""
    at = 0x9000 - 48
    world.platform.memory(2).write(at, struct.pack("<iii", 10, 0, -1))
    assert world.call(world.root, "rt_sigqueueinfo", 2, 10, at) == 0


def test_zombies_take_signals(world: World) -> None:
    world.fork(world.root, 3)
    task_exit.task_died(world.kernel, 3, 7 << 8)
    for call in (("kill", 3, 10), ("tkill", 3, 10), ("tgkill", 3, 3, 10), ("tkill", 3, 0)):
        assert world.call(world.root, *call) == 0
    assert world.call(world.root, "tgkill", 2, 3, 10) == -errno.ESRCH
    assert world.call(world.root, "tkill", 3, BAD_SIGNAL) == -errno.EINVAL


def test_a_zombie_has_no_stop_to_wait_for(world: World) -> None:
    world.fork(world.root, 3)
    task_exit.task_died(world.kernel, 3, 7 << 8)
    stopped, no_hang = 2, 1
    assert world.call(world.root, "waitid", 1, 3, 0, stopped | no_hang, 0) == -errno.ECHILD
    assert world.call(world.root, "waitid", 0, 0, 0, stopped | no_hang, 0) == -errno.ECHILD
    world.fork(world.root, 4)
    assert world.call(world.root, "waitid", 0, 0, 0, stopped | no_hang, 0) == 0


def test_that_a_pidfds_process_is_gone_is_found_last(world: World) -> None:
    """Whatever is wrong with the siginfo comes before; and a wait finds no child."""
    world.platform.fdinfo[2, 5] = "pos:\t0\nflags:\t02000002\nPid:\t-1\nNSpid:\t-1\n"
    memory = world.platform.memory(2)
    for signo, code, wanted in ((11, -1, errno.EINVAL), (10, 0, errno.EPERM), (10, -1, errno.ESRCH)):
        memory.write(GOOD, struct.pack("<iii", signo, 0, code))
        assert world.call(world.root, "pidfd_send_signal", 5, 10, GOOD, 0) == -wanted
    assert world.call(world.root, "pidfd_send_signal", 5, 10, WILD, 0) == -errno.EFAULT
    assert world.call(world.root, "pidfd_send_signal", 5, 10, 0, 0) == -errno.ESRCH
    assert world.call(world.root, "pidfd_send_signal", 5, BAD_SIGNAL, 0, 0) == -errno.ESRCH
    exited, pidfd = 4, 3
    assert world.call(world.root, "waitid", pidfd, 5, 0, exited, 0) == -errno.ECHILD
