"""What clone3 becomes: clone in registers, or clone3 with a structure of the sentry's."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from kernel_fixture import World

from trapline.platform import clone_structures
from trapline.sentry.kernel.signals import SIG_IGN, SIGCHLD, SIGUSR1
from trapline.sentry.kernel.state import SigAction
from trapline.sentry.syscalls.sys_process import Clone
from trapline.sentry.time import parameter_page

VM, PIDFD, VFORK, PARENT_SETTID, UNTRACED = 0x100, 0x1000, 0x4000, 0x100000, 0x800000
CLEAR_SIGHAND, INTO_CGROUP = 1 << 32, 1 << 33


def clone3(world: World, flags: int, size: int = 88, cgroup: int = 0) -> object:
    world.platform.memory(2).write(
        0x1000, struct.pack("<11Q", flags, 0x2000, 0x2008, 0x2010, SIGCHLD, 0x3000, 0x100, 5, 0, 0, cgroup)
    )
    return world.call(world.root, "clone3", 0x1000, size)


def test_what_clone_can_say_is_said_in_registers(world: World) -> None:
    request = clone3(world, VM | VFORK | UNTRACED | PARENT_SETTID)
    assert isinstance(request, Clone) and request.hold and not request.structure
    assert request.args == (VM | PARENT_SETTID | SIGCHLD, 0x3100, 0x2010, 0x2008, 5)


@pytest.mark.parametrize("more", [CLEAR_SIGHAND, INTO_CGROUP, PIDFD | PARENT_SETTID])
def test_what_it_cannot_say_is_a_structure_without_the_sentrys_flags(world: World, more: int) -> None:
    request = clone3(world, more | VM | VFORK | UNTRACED, cgroup=9)
    assert isinstance(request, Clone) and request.hold and request.args is None
    assert struct.unpack("<11Q", request.structure) == (
        more | VM, 0x2000, 0x2008, 0x2010, SIGCHLD, 0x3000, 0x100, 5, 0, 0, 9
    )  # fmt: skip
    assert request.flags == more | VM | VFORK | UNTRACED | SIGCHLD  # what the kernel makes of it


def test_a_cgroup_needs_its_field(world: World) -> None:
    assert clone3(world, INTO_CGROUP, size=80) == -22


def test_a_child_with_cleared_handlers_keeps_what_is_ignored(world: World) -> None:
    world.kernel.group(world.root).actions = {SIGUSR1: SigAction(handler=0x400000), 12: SigAction(handler=SIG_IGN)}
    child = world.fork(world.root, 3, CLEAR_SIGHAND)
    assert world.kernel.group(child).actions == {12: SigAction(handler=SIG_IGN)}


def test_the_places_are_apart_from_each_other_and_from_the_parameters() -> None:
    places = clone_structures.PLACES
    assert len(places) > 20 and places[0] >= parameter_page.SIZE
    assert all(b - a >= clone_structures.SIZE for a, b in pairwise(places))
    assert places[-1] + clone_structures.SIZE <= clone_structures.PAGE
