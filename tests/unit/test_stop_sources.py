"""No stop is forgotten, though SIGCHLDs merge; and the host is not made to walk over all tracees for each."""

from __future__ import annotations

import random

import pytest

from trapline.platform import ptrace_calls as pt
from trapline.platform.stop_sources import AGAIN, FEW, OTHERS, WALK_AFTER, StopSources


class Host:
    """Tasks that have stopped, and SIGCHLDs of which only one is pending at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stopped: dict[int, int] = {}
        self.pending: int | None = None
        self.walks = 0
        monkeypatch.setattr(pt, "wait_any", self._walk)
        monkeypatch.setattr(pt, "wait_now", lambda host: self.stopped.pop(host, None))
        monkeypatch.setattr(pt, "stopped_now", self._stopped_now)
        monkeypatch.setattr(pt, "any_stopped", self._any_stopped)
        monkeypatch.setattr(pt, "any_dead", lambda: next((h for h, s in self.stopped.items() if s & 0xFF != 0x7F), 0))

    def _stopped_now(self, host: int) -> int | None:
        return self.stopped.pop(host) if self.stopped.get(host, 0) & 0xFF == 0x7F else None

    def _any_stopped(self) -> tuple[int, int]:
        self.walks += 1
        for host, status in self.stopped.items():
            if status & 0xFF == 0x7F:
                return host, self.stopped.pop(host)
        self.walks -= 1  # the walk that follows counts
        return 0, 0

    def _walk(self) -> tuple[int, int]:
        self.walks += 1
        return self.stopped.popitem() if self.stopped else (0, 0)

    def stop(self, host: int) -> None:
        self.stopped[host] = 0x57F
        if self.pending is None:
            self.pending = host

    def take_signal(self) -> tuple[int, ...]:
        named, self.pending = self.pending, None
        return () if named is None else (named,)


def serve(sources: StopSources, tracees: range, named: tuple[int, ...]) -> list[int]:
    asked, served = sources.begin(named), []
    while (found := sources.next(tracees, asked))[0]:
        served.append(found[0])
    return served


def test_few_tracees_are_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    host, sources = Host(monkeypatch), StopSources()
    host.stop(7)
    host.stop(8)
    assert sorted(serve(sources, range(1, FEW + 1), host.take_signal())) == [7, 8] and not sources.unsure


def test_the_one_that_stops_is_found_without_a_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    host, sources = Host(monkeypatch), StopSources()
    for _ in range(10 * WALK_AFTER):
        host.stop(7)
        assert serve(sources, range(1, 1001), host.take_signal()) == [7]
    assert host.walks <= 2 * 10


def test_of_two_that_stop_at_once_both_are_found_once_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    host, sources = Host(monkeypatch), StopSources()
    for known in (7, 8):
        host.stop(known)
        serve(sources, range(1, 1001), host.take_signal())
    host.stop(7)
    host.stop(8)
    assert sorted(serve(sources, range(1, 1001), host.take_signal())) == [7, 8] and host.walks == 0


def test_nobody_is_left_when_the_sentry_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loop does: while it is unsure it does not sleep, and before it sleeps it walks."""
    chance = random.Random(1)
    host, sources = Host(monkeypatch), StopSources()
    for _ in range(500):
        for _ in range(chance.randrange(4)):
            host.stop(1 + chance.randrange(100))
        serve(sources, range(1, 1001), host.take_signal())
        if sources.unsure and chance.random() < 0.2:
            sources.walk()
            serve(sources, range(1, 1001), ())
        if not sources.unsure and host.pending is None:
            assert not host.stopped


def test_a_task_that_stops_again_at_once_does_not_keep_the_others_standing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found first by every walk; each of the others is found all the same."""
    host, sources = Host(monkeypatch), StopSources()
    monkeypatch.setattr(pt, "wait_any", lambda: (1, 0x57F))
    tracees, waiting = range(1, 41), set(range(2, 41, 3))
    for other in waiting:
        host.stop(other)
    served = [sources.next(tracees, [])[0] for _ in range((max(AGAIN) + 2) * (2 * len(tracees) // OTHERS + len(waiting)))]
    assert waiting <= set(served) and served.count(1) > len(served) // 2


def test_nobody_is_left_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    host, sources = Host(monkeypatch), StopSources()
    for _ in range(max(AGAIN) + 2):
        host.stop(7)
        assert sources.next([7], [])[0] == 7
    host.stop(7)
    assert [sources.next([], [])[0] for _ in range(3)] == [7, 0, 0]


def test_a_death_among_tasks_that_stop_without_a_pause_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though no SIGCHLD told of it: another was pending."""
    host, sources = Host(monkeypatch), StopSources()
    host.stop(7)
    host.stopped[9] = 0x09
    served: list[int] = []
    for _ in range(WALK_AFTER * 10):
        served += serve(sources, range(1, 1001), host.take_signal())
        host.stop(7)
        if sources.unsure and 9 in served:
            break
    assert 9 in served


def test_two_tasks_that_stop_in_turn_do_not_keep_a_third_one_standing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One signals the other without a pause, and every walk finds one of them first."""
    host, sources = Host(monkeypatch), StopSources()
    turns = iter(range(10**6))
    monkeypatch.setattr(pt, "wait_any", lambda: (1 + next(turns) % 2, 0x57F))
    for _ in range(20):
        host.stop(3)
        served = [sources.next([1, 2, 3], [])[0] for _ in range(2 * max(AGAIN) + 2)]
        assert 3 in served and served.count(1) > len(served) // 3
