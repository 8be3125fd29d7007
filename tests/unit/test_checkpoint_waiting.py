"""Counter and waiting: every row of docs/checkpoint-waiting.md, and any order of events against a plain model."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trapline.sentry.kernel.checkpoints import Busy, Checkpoints, Outcome, Restoring, Waiter
from trapline.sentry.kernel.state import KernelState

PAGE = Path(__file__).resolve().parents[2] / "docs" / "checkpoint-waiting.md"


class World:
    """Checkpoints with `count` of them behind, and waiters that note when they are woken."""

    def __init__(self, count: int = 0) -> None:
        self.state = KernelState(checkpoint_count=count)
        self.checkpoints = Checkpoints(self.state)
        self.woken: list[Waiter] = []

    def wait(self, number: int | None) -> Waiter:
        waiter = self.checkpoints.wait(number, lambda: self.woken.append(waiter))
        return waiter

    def succeed(self) -> None:
        self.checkpoints.begin()
        self.checkpoints.succeed()

    def fail(self, why: str = "why") -> None:
        self.checkpoints.begin()
        self.checkpoints.fail(why)


def at_once(world: World, number: int | None, outcome: Outcome) -> None:
    waiter = world.wait(number)
    assert waiter.outcome == outcome and waiter not in world.woken


def later(world: World, number: int | None, *steps: Callable[[], object]) -> Outcome | None:
    """What a waiter has at the end; it must have been told by the last step, if at all, and woken once."""
    waiter = world.wait(number)
    for step in steps:
        assert waiter.outcome is None and waiter not in world.woken
        step()
    assert world.woken.count(waiter) == (waiter.outcome is not None)
    return waiter.outcome


ROWS: dict[str, Callable[[], None]] = {}


def row(function: Callable[[], None]) -> Callable[[], None]:
    ROWS[function.__name__.replace("_", "-")] = function
    return function


@row
def zero() -> None:
    for count in (0, 2):
        at_once(World(count), 0, Outcome(count))
    failed, busy = World(), World()
    failed.fail()
    at_once(failed, 0, Outcome(0))
    busy.checkpoints.begin()
    at_once(busy, 0, Outcome(0))


@row
def reached() -> None:
    world = World(2)
    world.succeed()
    world.fail()
    for number in (1, 2, 3):
        at_once(world, number, Outcome(3))
    world.checkpoints.begin()
    at_once(world, 3, Outcome(3))


@row
def failed_before() -> None:
    world = World(4)
    world.fail("no room")
    at_once(world, 5, Outcome(4, "no room"))
    at_once(world, 5, Outcome(4, "no room"))  # and so for the next one


@row
def in_progress_succeeds() -> None:
    world = World(4)
    world.checkpoints.begin()
    assert later(world, 5, world.checkpoints.succeed) == Outcome(5)


@row
def in_progress_fails() -> None:
    world = World(4)
    world.checkpoints.begin()
    assert later(world, 5, lambda: world.checkpoints.fail("no room")) == Outcome(4, "no room")


@row
def failed_then_in_progress() -> None:
    ends: tuple[tuple[Callable[[Checkpoints], object], Outcome], ...] = (
        (lambda checkpoints: checkpoints.succeed(), Outcome(1)),
        (lambda checkpoints: checkpoints.fail("second"), Outcome(0, "second")),
    )
    for end, outcome in ends:
        world = World()
        world.fail("first")
        world.checkpoints.begin()
        assert later(world, 1, partial(end, world.checkpoints)) == outcome


@row
def none_yet() -> None:
    world = World(7)
    assert later(world, 8, world.checkpoints.begin, world.checkpoints.succeed) == Outcome(8)
    world = World(7)
    assert later(world, 8, world.checkpoints.begin, lambda: world.checkpoints.fail("x")) == Outcome(7, "x")


@row
def succeeded_before() -> None:
    world = World()
    world.fail()
    world.succeed()
    assert later(world, 2, world.checkpoints.begin, world.checkpoints.succeed) == Outcome(2)
    assert later(world, 3, world.checkpoints.begin, lambda: world.checkpoints.fail("x")) == Outcome(2, "x")


@row
def early_failed_before() -> None:
    world = World()
    world.fail()
    assert later(world, 2) is None


@row
def early_fails() -> None:
    world = World()
    world.checkpoints.begin()
    assert later(world, 2, lambda: world.checkpoints.fail("x"), world.fail) is None


@row
def early_reaches() -> None:
    world = World()
    world.fail()
    assert later(world, 3, world.fail, world.succeed, world.fail, world.succeed, world.succeed) == Outcome(3)


@row
def early_then_fails() -> None:
    world = World()
    assert later(world, 2, world.fail, world.succeed, lambda: world.fail("no room")) == Outcome(1, "no room")


@row
def ends() -> None:
    for count in (0, 1):
        world = World(count)
        assert later(world, 2, partial(world.checkpoints.end, "over")) == Outcome(count, "over")
        at_once(world, 2, Outcome(count, "over"))
    world = World()
    world.checkpoints.begin()  # and takes the attempt along
    assert later(world, 1, lambda: world.checkpoints.end("over")) == Outcome(0, "over")


@row
def ends_saved() -> None:
    world = World(3)
    world.checkpoints.begin()
    image = msgspec.msgpack.encode(world.state)
    of_next, beyond = world.wait(4), world.wait(5)
    world.checkpoints.succeed()
    assert of_next.outcome == Outcome(4) and beyond.outcome is None
    world.checkpoints.end("over")
    assert beyond.outcome == Outcome(4, "over") and world.woken == [of_next, beyond]
    # The image does not count itself; what is restored from it does, and has no last attempt of before.
    restored = World()
    restored.state = msgspec.msgpack.decode(image, type=KernelState)
    restored.checkpoints = Checkpoints(restored.state)
    assert restored.checkpoints.count == 3
    restored.succeed()
    at_once(restored, 4, Outcome(4))


@row
def next_succeeds() -> None:
    world = World(3)
    assert later(world, None, world.checkpoints.begin, world.checkpoints.succeed) == Outcome(4)


@row
def next_fails() -> None:
    world = World(3)
    assert later(world, None, world.checkpoints.begin, lambda: world.checkpoints.fail("x")) == Outcome(3, "x")


@row
def next_not_the_last() -> None:
    for end in ("succeed", "fail"):
        world = World()
        getattr(world, end)()
        assert later(world, None) is None


@row
def next_in_progress() -> None:
    world = World()
    world.checkpoints.begin()
    assert later(world, None, world.checkpoints.succeed) == Outcome(1)
    world.checkpoints.begin()
    assert later(world, None, lambda: world.checkpoints.fail("x")) == Outcome(1, "x")


@row
def next_of_two() -> None:
    world = World()
    waiter = world.wait(None)
    world.fail("first")
    world.succeed()
    assert waiter.outcome == Outcome(0, "first") and world.woken == [waiter]


@row
def next_restore() -> None:
    world = World(3)
    world.checkpoints.begin()  # what a restore does before anything can be asked
    assert later(world, None, world.checkpoints.succeed) == Outcome(4)


@row
def next_ends() -> None:
    world = World()
    assert later(world, None, lambda: world.checkpoints.end("over")) == Outcome(0, "over")
    at_once(world, None, Outcome(0, "over"))


def test_every_row_of_the_page_has_a_test() -> None:
    listed = re.findall(r"^\| ([a-z-]+) \|", PAGE.read_text(), re.M)
    rows = [name for name in listed if name != "row"]
    assert rows == list(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str) -> None:
    ROWS[name]()


def test_one_at_a_time() -> None:
    world = World()
    world.checkpoints.begin()
    with pytest.raises(Busy):
        world.checkpoints.begin()
    assert world.checkpoints.in_progress
    world.checkpoints.fail("")
    at_once(world, 1, Outcome(0, "for an unknown reason"))  # a failure without a reason is still none


def test_who_is_forgotten_is_not_woken() -> None:
    world = World()
    waiter = world.wait(1)
    world.checkpoints.forget(waiter)
    world.succeed()
    assert world.woken == [] and waiter.outcome is None
    world.checkpoints.forget(waiter)


def test_who_is_woken_may_begin_the_next_and_wait_again() -> None:
    world = World()
    second: list[Waiter] = []

    def wake() -> None:
        second.append(world.wait(None))
        world.checkpoints.begin()

    world.checkpoints.wait(1, wake)
    other = world.wait(1)
    world.succeed()
    assert other.outcome == Outcome(1)  # what was so when the attempt ended, whatever was begun since
    assert second[0].outcome is None and world.checkpoints.in_progress
    world.checkpoints.fail("x")
    assert second[0].outcome == Outcome(1, "x")


def test_a_restore() -> None:
    none = Restoring()
    assert none.wait(lambda: None).outcome == Outcome(0, "the sandbox was not made from a checkpoint")
    none.finish(1)
    assert none.wait(lambda: None).outcome == Outcome(0, "the sandbox was not made from a checkpoint")
    restoring, woken = Restoring(), []
    restoring.begin()
    first = restoring.wait(lambda: woken.append(1))
    second = restoring.wait(lambda: woken.append(2))
    assert restoring.in_progress and first.outcome is None
    restoring.forget(second)
    restoring.finish(4)
    assert first.outcome == Outcome(4) and woken == [1] and second.outcome is None
    restoring.finish(4, "too late")
    assert restoring.wait(lambda: None).outcome == Outcome(4) and not restoring.in_progress
    failing = Restoring()
    failing.begin()
    waiter = failing.wait(lambda: None)
    failing.finish(3, "a page is bad")
    assert waiter.outcome == Outcome(3, "a page is bad")


class AnyOrder(RuleBasedStateMachine):
    """Events in any order. The model keeps the history of what was so after each, and says of a waiter what the words
    of the page say: the first moment from its beginning on at which it can be told something."""

    @initialize(count=st.integers(0, 3))
    def begin_world(self, count: int) -> None:
        self.world = World(count)
        #: (count, in progress, failure of the last attempt, outcome of an attempt that just ended, why it has ended)
        self.history: list[tuple[int, bool, str, Outcome | None, str]] = [(count, False, "", None, "")]
        self.waiters: list[tuple[Waiter, int | None, int]] = []
        self.forgotten: list[Waiter] = []

    def note(self, count: int, busy: bool, failure: str, over: Outcome | None = None, end: str = "") -> None:
        self.history.append((count, busy, failure, over, end or self.history[-1][4]))

    @precondition(lambda self: not self.history[-1][1] and not self.history[-1][4])
    @rule()
    def begin(self) -> None:
        self.world.checkpoints.begin()
        self.note(self.history[-1][0], True, "")

    @precondition(lambda self: self.history[-1][1])
    @rule()
    def succeed(self) -> None:
        count = self.history[-1][0] + 1
        assert self.world.checkpoints.succeed() == count
        self.note(count, False, "", Outcome(count))

    @precondition(lambda self: self.history[-1][1])
    @rule(why=st.sampled_from(["disk", "time"]))
    def fail(self, why: str) -> None:
        self.world.checkpoints.fail(why)
        self.note(self.history[-1][0], False, why, Outcome(self.history[-1][0], why))

    @rule()
    def end(self) -> None:
        self.world.checkpoints.end("over")
        count, _, failure, _, _ = self.history[-1]
        self.note(count, False, failure, None, "over")

    @rule(number=st.one_of(st.none(), st.integers(0, 6)))
    def wait(self, number: int | None) -> None:
        self.waiters.append((self.world.wait(number), number, len(self.history) - 1))

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        waiter, number, since = data.draw(st.sampled_from(self.waiters))
        self.world.checkpoints.forget(waiter)
        if waiter.outcome is None:
            self.waiters.remove((waiter, number, since))
            self.forgotten.append(waiter)

    def expected(self, number: int | None, since: int) -> Outcome | None:
        for place, (count, busy, failure, over, end) in enumerate(self.history[since:]):
            if number is None:
                if place > 0 and over is not None:
                    return over
            elif number == 0 or count >= number:
                return Outcome(count)
            elif count == number - 1 and failure and not busy:
                return Outcome(count, failure)
            if end:
                return Outcome(count, end)
        return None

    @invariant()
    def told_what_the_page_says(self) -> None:
        if not hasattr(self, "world"):
            return
        assert self.world.checkpoints.count == self.history[-1][0]
        for waiter, number, since in self.waiters:
            assert waiter.outcome == self.expected(number, since), (number, self.history[since:])
            assert self.world.woken.count(waiter) <= (waiter.outcome is not None)
        assert not [w for w in self.forgotten if w in self.world.woken]


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
