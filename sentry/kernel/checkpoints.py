"""Checkpoints: how many there were, how the last attempt went, and who waits for one.

An attempt is a save or a restore. The counter is saved with the kernel; all else here belongs to one run of the sandbox
and is gone with it. A save writes the count of before itself into the image and counts afterwards, and a restore counts
what it made of it: so checkpoint N is the same one in the sandbox that went on and in one that came back.

Everything happens in the sentry's one thread, and each function is one step: who registers does so before an attempt
ends or after it, never in between. What is told to a waiter is decided by the whole of a step, and waiters are woken
last (rule 2 of kernel.py). Every case: docs/checkpoint-waiting.md.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from trapline.sentry.kernel.state import KernelState


class Busy(Exception):
    """An attempt is in progress, and there is one at a time."""


class Outcome(msgspec.Struct, frozen=True):
    """What a waiter is told: how many checkpoints there are, and why not the one that it waits for; "": it is there."""

    count: int
    error: str = ""


class Waiter:
    """Somebody who waits. `outcome` is there at once, or when `wake` is called; that is once at most."""

    __slots__ = ("number", "outcome", "wake")

    def __init__(self, number: int | None, wake: Callable[[], None]) -> None:
        self.number = number  # None: the next attempt that ends
        self.wake = wake
        self.outcome: Outcome | None = None


class Checkpoints:
    """The attempts of one run of a sandbox."""

    def __init__(self, state: KernelState) -> None:
        self._state = state
        self._waiters: list[Waiter] = []
        self._failure = ""  # of the last attempt; "": it succeeded, is in progress, or there was none
        self._end = ""  # why there will be none any more
        self.in_progress = False

    @property
    def count(self) -> int:
        """How many there were, those before a restore included."""
        return self._state.checkpoint_count

    def begin(self) -> None:
        """An attempt begins; what became of the one before is forgotten. Busy."""
        if self.in_progress:
            raise Busy
        self.in_progress, self._failure = True, ""

    def succeed(self) -> int:
        """It succeeded: an image is written, or restored; its number. In the image itself it is not counted."""
        self._state.checkpoint_count += 1
        self._over("")
        return self.count

    def fail(self, error: str) -> None:
        """It failed, for this reason: one line. The counter stays."""
        self._over(error or "for an unknown reason")

    def end(self, why: str) -> None:
        """The sandbox ends: nobody waits any longer, nor will."""
        self.in_progress, self._end = False, why
        self._settle(None)

    def wait(self, number: int | None, wake: Callable[[], None]) -> Waiter:
        """Wait for checkpoint `number`, or for the end of the next attempt: of that in progress, if one is."""
        waiter = Waiter(number, wake)
        waiter.outcome = self._known(waiter, None)
        if waiter.outcome is None:
            self._waiters.append(waiter)
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """It does not wait any longer. Not an error if it has been told."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _over(self, failure: str) -> None:
        self.in_progress, self._failure = False, failure
        self._settle(Outcome(self.count, failure))

    def _settle(self, attempt: Outcome | None) -> None:
        """Tell those who can be told; `attempt`: how the one that is just over went."""
        told = []
        for waiter in self._waiters:
            waiter.outcome = self._known(waiter, attempt)
            if waiter.outcome is not None:
                told.append(waiter)
        self._waiters = [waiter for waiter in self._waiters if waiter.outcome is None]
        for waiter in told:
            waiter.wake()

    def _known(self, waiter: Waiter, attempt: Outcome | None) -> Outcome | None:
        if waiter.number is None:
            if attempt is not None:
                return attempt
        elif waiter.number <= self.count:
            return Outcome(self.count)
        elif waiter.number == self.count + 1 and self._failure:
            return Outcome(self.count, self._failure)
        return Outcome(self.count, self._end) if self._end else None


class Restoring:
    """How far the restore is that this run of a sandbox began with, if it did."""

    def __init__(self) -> None:
        self._waiters: list[Waiter] = []
        self._outcome: Outcome | None = Outcome(0, "the sandbox was not made from a checkpoint")

    def begin(self) -> None:
        """It is being made from an image. Before anybody can wait."""
        self._outcome = None

    @property
    def in_progress(self) -> bool:
        """Whether something of the image is still to come."""
        return self._outcome is None

    def finish(self, count: int, error: str = "") -> None:
        """All of the image is there, its last page included; or it will never be. What comes after the first is
        nothing new."""
        if self._outcome is not None:
            return
        self._outcome = Outcome(count, error)
        told, self._waiters = self._waiters, []
        for waiter in told:
            waiter.outcome = self._outcome
            waiter.wake()

    def wait(self, wake: Callable[[], None]) -> Waiter:
        """Wait for that."""
        waiter = Waiter(None, wake)
        waiter.outcome = self._outcome
        if waiter.outcome is None:
            self._waiters.append(waiter)
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """It does not wait any longer. Not an error if it has been told."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
