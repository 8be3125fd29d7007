"""Which stops and deaths are waiting: asked of the host in a time that does not grow with the number of tracees.

wait4(-1) walks over all tracees of this process, 30 ns each, and ends with a fruitless walk for every stop. With
many of them the host is asked by id instead (do_wait_pid of Linux kernel/exit.c): first for the child that the
SIGCHLD named, then for those that stopped lately. A SIGCHLD that comes while another is pending is dropped, so
neither tells of every stop: somebody who had not stopped for long may be missed. Such a one is found by a walk,
which comes at the latest after WALK_AFTER questions, or as soon as nothing else has come for a moment (`Pump`).
What goes wrong otherwise: a task that stands at a stop for ever.
"""

from __future__ import annotations

from trapline.platform import ptrace_calls as pt

#: Up to so many tracees a walk is cheaper than anything else.
FEW = 128
#: So many tasks that stopped lately are asked.
LATELY = 3
WALK_AFTER = 16


class StopSources:
    """Finds the next stop or death that is waiting."""

    def __init__(self) -> None:
        self._lately: list[int] = []
        self._since_walk = 0
        #: A walk is due before the sentry may sleep.
        self.unsure = False

    def next(self, tracees: int, asked: list[int]) -> tuple[int, int]:
        """(host tid, status) of one, or (0, 0); `tracees` is how many there are.

        `asked` are the ids to ask for, made by `begin`; each is asked for once, and taken from it.
        """
        if tracees <= FEW or self._since_walk >= WALK_AFTER:
            host, status = pt.wait_any()
            if host <= 0:
                self._since_walk, self.unsure = 0, False
            return host, status
        while asked:
            host = asked.pop()
            found = pt.wait_now(host)
            if found is not None:
                self._note(host)
                return host, found
        self._since_walk += 1
        self.unsure = True
        return 0, 0

    def begin(self, named: tuple[int, ...]) -> list[int]:
        """Whom to ask, the last one first: those that stopped lately, and those that are named."""
        return [*(host for host in self._lately if host not in named), *named]

    def walk(self) -> None:
        """Let the next search be a walk."""
        self._since_walk = WALK_AFTER

    def _note(self, host: int) -> None:
        lately = self._lately
        if not lately or lately[-1] != host:
            if host in lately:
                lately.remove(host)
            lately.append(host)
            if len(lately) > LATELY:
                del lately[0]
