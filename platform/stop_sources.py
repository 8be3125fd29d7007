"""Which stops and deaths are waiting: asked of the host in a time that does not grow with the number of tracees.

wait4(-1) walks over all tracees of this process, 30 ns each, and ends with a fruitless walk for every stop. With
many of them the host is asked by id instead (do_wait_pid of Linux kernel/exit.c): first for the child that the
SIGCHLD named, then for those that stopped lately. A SIGCHLD that comes while another is pending is dropped, so
neither tells of every stop: somebody who had not stopped for long may be missed. Such a one is found by a walk,
which comes at the latest after WALK_AFTER questions, or as soon as nothing else has come for a moment (`Pump`).
What goes wrong otherwise: a task that stands at a stop for ever.

A walk ends at the first that has stopped, always the same ones when busy tasks are back at a stop before the next
walk: so after some stops of each of them, some of the others are asked by id, in turn. What goes wrong otherwise: a
thread that calls without a pause, or two that signal each other, keep all others standing.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import cycle

from trapline.platform import ptrace_calls as pt

#: Up to so many tracees a walk is cheaper than anything else.
FEW = 128
#: So many tasks that stopped lately are asked.
LATELY = 3
WALK_AFTER = 16
#: One walk in so many looks for deaths first.
DEATHS = 4
#: After so many stops, for each task that has stopped meanwhile, so many others are asked. Not the same number each
#: time: of a task that does two things in turn, the others would see only one of them, for ever (a handler that is set
#: and taken away).
AGAIN, OTHERS = (5, 8, 7), 8


class StopSources:
    """Finds the next stop or death that is waiting."""

    def __init__(self) -> None:
        self._lately: list[int] = []
        self._since_walk = 0
        #: Who has stopped since others were asked, and how often altogether.
        self._busy: set[int] = set()
        self._again = 0
        self._limits = cycle(AGAIN)
        self._limit = next(self._limits)
        self._turn: list[int] = []  # those that are still to be asked in this turn
        self._named: tuple[int, ...] = ()
        self._asked: list[int] = []
        self._walks = 0
        #: A walk is due before the sentry may sleep.
        self.unsure = False

    def next(self, tracees: Collection[int], asked: list[int]) -> tuple[int, int]:
        """(host tid, status) of one of the tracees, or (0, 0).

        `asked` are the ids to ask for, made by `begin`; each is taken from it once it has nothing to tell.
        """
        if self._again >= self._limit * len(self._busy) and self._again:
            self._limit = next(self._limits)
            other = self._one_of_the_others(tracees) if len(self._busy) < len(tracees) else None
            self._begin_again()
            if other is not None:
                return other
        if len(tracees) <= FEW or self._since_walk >= WALK_AFTER:
            host, status = self._walk(tracees)
            # Also where it found one: of a task that stops without a pause each walk would find nobody else.
            self._since_walk = 0
            if host > 0:
                self._count(host)
            else:
                self.unsure = False
                self._begin_again()
            return host, status
        while asked:
            host = asked.pop()
            found = pt.stopped_now(host)
            if found is None and host in self._named:
                found = pt.wait_now(host)
            if found is not None:
                self._count(host)
                self._note(host)
                asked.append(host)  # where there is one CPU it has often run to its next stop when it was served
                return host, found
        self._since_walk += 1
        self.unsure = True
        return 0, 0

    def _walk(self, tracees: Collection[int]) -> tuple[int, int]:
        if len(tracees) > FEW:
            # Stops and deaths in turn: each must be found among any number of the other.
            self._walks += 1
            if self._walks % DEATHS:
                found = pt.any_stopped()
                if found[0]:
                    return found
            dead = pt.any_dead()
            status = pt.wait_now(dead) if dead else None
            if status is not None:
                return dead, status
        return pt.wait_any()

    def _one_of_the_others(self, tracees: Collection[int]) -> tuple[int, int] | None:
        for _ in range(OTHERS):
            self._turn = self._turn or list(tracees)
            if not self._turn:
                return None  # what stopped last has ended, and there is nobody else
            host = self._turn.pop()
            if host not in self._busy and host in tracees:
                found = pt.stopped_now(host)
                if found is not None:
                    return host, found
        return None

    def expect(self, host: int) -> None:
        """A task was made: its first stop may have come already, with a SIGCHLD that was dropped."""
        self._asked.append(host)

    def begin(self, named: tuple[int, ...]) -> list[int]:
        """Whom to ask, the last one first: those that stopped lately, and those that are named."""
        # Also of those that stopped lately an end may be waiting of which nobody was told.
        self._named = (*self._lately, *named)
        self._asked = [*(host for host in self._lately if host not in named), *named]
        return self._asked

    def walk(self) -> None:
        """Let the next search be a walk."""
        self._since_walk = WALK_AFTER

    def _count(self, host: int) -> None:
        self._busy.add(host)
        self._again += 1

    def _begin_again(self) -> None:
        self._busy.clear()
        self._again = 0

    def _note(self, host: int) -> None:
        lately = self._lately
        if not lately or lately[-1] != host:
            if host in lately:
                lately.remove(host)
            lately.append(host)
            if len(lately) > LATELY:
                del lately[0]
