"""All address spaces of a save: what is done while the sandbox stands still, and what afterwards.

Small ones are copied at once. Of large ones a copy is made by a fork (snapshot.py), which is written afterwards; if
the sandbox is not to go on, they are read where they are, by threads. An incremental save (incremental.py)
copies what was written to large ones since its parent, as a rule at once.
"""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING, Protocol

from trapline.platform.capture_memory import Collector, capture_space
from trapline.platform.incremental import Incremental
from trapline.platform.page_copy import Writer, copy_pages, private_pages
from trapline.platform.page_scan import Range
from trapline.platform.snapshot import reap
from trapline.platform.space_snapshot import WORTH_A_COPY, SpaceSnapshot, own_memory, reap_running
from trapline.platform.task_attributes import Probed
from trapline.sentry.protocol import Gone
from trapline.sentry.state.records import AddressSpace

if TYPE_CHECKING:
    from trapline.platform.engine import Engine
    from trapline.platform.tracee import Tracee

#: Bytes of its own from which on a process that is to be killed afterwards is read by threads, while the sentry serves
#: clients. A fork that writes itself takes half as much CPU time again, sums included.
_WORTH_IT_AT_AN_END = 64 << 20
#: Bytes that have been written since the parent from which on they are not copied in the pause: a fork of 1 GiB takes
#: 15 ms.
_MUCH_WRITTEN = 64 << 20
#: Descriptors that a save needs besides: a copy takes three.
_SPARE = 128


class Inheriting(Writer, Protocol):
    """A writer of an image with a parent."""

    def add_inherited(self, owner: str, start: int, size: int, of: str = "", at: int = -1) -> None: ...


class MemorySave:
    """One save's. `close` it whatever happens."""

    def __init__(
        self,
        engine: Engine,
        init: int,
        collector: Collector,
        writer: Inheriting,
        leave_running: bool,
        tracking: Incremental | None = None,
        inherit: bool = False,
    ) -> None:
        """`init`: the host id of the stub that reaps everything in the sandbox, 0 where its first process is a guest.
        `tracking`: where there is to be an incremental save later; `inherit`: where this is one."""
        self._engine = engine
        self._init = init
        self._collector = collector
        self._writer = writer
        self._threshold = WORTH_A_COPY if leave_running else _WORTH_IT_AT_AN_END
        self._tracking = tracking
        self._inherit = inherit
        self._leave_running = leave_running
        self._at_rest: list[tuple[int, str, list[Range]]] = []
        self._copies: list[tuple[SpaceSnapshot, Tracee, int]] = []
        self._room = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE) // 8
        self._probed: Probed | None = None  # of the space that is added
        self.size = 0  # bytes of pages that were written

    def add(self, number: int, t: Tracee, at: int, tgid: int, probed: Probed | None) -> AddressSpace:
        """One address space, through a task of it that stands at an event stop; `at` is a `syscall` instruction in it,
        0 where there is none; for `probed` see `capture_space`. Its pages are copied now, or will be by `finish`, which
        also completes the record. In the sentry's tracing thread; everybody stands still. Unsavable; Gone; OSError."""
        owner, who = f"s{number}", f"process {tgid}"
        self._probed = probed
        threshold = self._threshold if self._tracking is None else WORTH_A_COPY
        if not at or own_memory(t.host) < threshold:
            return self._at_once(t, owner, who)
        if self._tracking is None:
            if not self._leave_running:
                return self._before_the_end(t, owner, who)
            return self._copied(t, at, owner, who, None) or self._at_once(t, owner, who)
        space = capture_space(t.host, self._collector, probed, who, complete=False)
        written, kept = self._tracking.collect(tgid, t.host, at, space)
        if self._inherit:
            of = self._tracking.owner_of(tgid)
            for start, end in kept:
                self._writer.add_inherited(owner, start, end - start, of)
        else:
            written = sorted(written + kept)
        self._tracking.saved_as(tgid, owner)
        limit = _MUCH_WRITTEN if self._inherit else self._threshold
        if sum(end - start for start, end in written) >= limit:
            copied = self._copied(t, at, owner, who, written)
            if copied is not None:
                return copied
        return self._at_once(t, owner, who, written)

    def _at_once(self, t: Tracee, owner: str, who: str, ranges: list[Range] | None = None) -> AddressSpace:
        space = capture_space(t.host, self._collector, self._probed, who)
        found = private_pages(t.host, space) if ranges is None else ranges
        self.size += copy_pages(t.host, owner, found, self._writer)
        return space

    def _before_the_end(self, t: Tracee, owner: str, who: str) -> AddressSpace:
        """Of one that does not go on: it stands still, and is read, until `finish` is done."""
        space = capture_space(t.host, self._collector, self._probed, who)
        self._at_rest.append((t.host, owner, private_pages(t.host, space)))
        return space

    def _copied(self, t: Tracee, at: int, owner: str, who: str, ranges: list[Range] | None) -> AddressSpace | None:
        """None where no copy can be made."""
        if len(self._copies) >= self._room:
            return None
        try:
            taken = SpaceSnapshot.take(
                t.host, at, self._init, self._collector, owner, who, self._writer, probed=self._probed, ranges=ranges
            )
        except OSError:
            return None
        self._copies.append((taken, t, at))
        return taken.space

    def finish(self) -> None:
        """Write all copies, in any thread, while the sandbox goes on. Unsavable; Gone; OSError."""
        for host, owner, ranges in self._at_rest:
            self.size += copy_pages(host, owner, ranges, self._writer)
        for copy, _, _ in self._copies:
            self.size += copy.write(self._writer)

    def close(self) -> None:
        """End the copies. In the sentry's tracing thread."""
        for copy, _, _ in self._copies:
            copy.close()

    def reap(self, at_rest: bool) -> None:
        """Have guests reap copies that were their children: `at_rest` says whether all still stand still; otherwise one
        thread of each does so for 0.1 ms. What is in a job-control stop by then keeps a zombie. In the sentry's tracing
        thread, after `close`."""
        for copy, t, at in self._copies:
            if copy.copy.by_guest:
                threads = [t, *[other for other in self._engine.tracees.values() if other.host_group == t.host_group]]
                for thread in threads:
                    with contextlib.suppress(Gone, OSError):
                        if at_rest:
                            reap(thread.host, at, copy.copy.pid)
                            break
                        if reap_running(self._engine, thread, at, copy.copy.pid):
                            break
        self._copies.clear()
