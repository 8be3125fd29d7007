"""An address space saved with a pause as short as a fork: what has to be done while its processes stand still, and the
rest, which is done while they go on."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from trapline.platform import ptrace_calls as pt
from trapline.platform.capture_memory import Collector, capture_space, complete_space
from trapline.platform.page_copy import Writer, copy_pages, private_pages
from trapline.platform.page_scan import Range, without
from trapline.platform.snapshot import Snapshot, lost_ranges, reap
from trapline.platform.task_attributes import Probed
from trapline.sentry.state.records import AddressSpace

if TYPE_CHECKING:
    from trapline.platform.engine import Engine
    from trapline.platform.tracee import Tracee

#: Bytes of its own from which on a fork is quicker than copying in the pause: a fork and its set-up take 1 to 2 ms.
WORTH_A_COPY = 2 << 20


def own_memory(host: int) -> int:
    """About how many bytes a process holds that are no file's. OSError."""
    with open(f"/proc/{host}/statm", "rb") as file:
        _, resident, shared = file.read().split()[:3]
    return (int(resident) - int(shared)) * 4096


class SpaceSnapshot:
    """One address space's. `close` it whatever happens."""

    def __init__(self, guest: int, collector: Collector, owner: str, who: str) -> None:
        self._guest = guest
        self._collector = collector
        self._owner = owner
        self._who = who
        self._lost: list[Range] = []
        self._missing: list[Range] = []
        self._ranges: list[Range] | None = None
        self._complete = False
        self.space: AddressSpace
        self.copy: Snapshot

    @classmethod
    def take(
        cls,
        guest: int,
        at: int,
        init: int,
        collector: Collector,
        owner: str,
        who: str,
        writer: Writer,
        probed: Probed | None = None,
        ranges: list[Range] | None = None,
    ) -> SpaceSnapshot:
        """While everybody stands still; `guest`, `at`, `init` as for `Snapshot.take`, `owner` and `writer` as for
        `copy_pages`. `ranges`: what to save, where that is not all. Unsavable; Gone; OSError where no copy can be made:
        it is to be saved in the pause then."""
        found = cls(guest, collector, owner, who)
        found.space = capture_space(guest, collector, probed, who, complete=False)
        found.copy = Snapshot.take(guest, at, init)
        try:
            found._lost, found._missing = lost_ranges(guest, found.copy.host)
            if ranges is not None:
                found._ranges = without(ranges, sorted(found._lost))
                found._lost = without(ranges, found._ranges)
            if found._missing or _has_locked(guest):
                # A fork does not tell how they are: this takes 14 ms for 1 GiB.
                complete_space(found.space, guest, collector, who)
                found._complete = True
            copy_pages(guest, owner, found._lost, writer)
            found.copy.let_go(writer.pages_fds)
        except BaseException:
            found.copy.close()
            raise
        return found

    def write(self, writer: Writer) -> int:
        """The rest, in any thread, while the guest goes on; how many bytes. Unsavable; Gone; OSError."""
        if not self._complete:
            complete_space(self.space, self.copy.host, self._collector, self._who)
            self._complete = True
        ranges = self._ranges
        if ranges is None:
            # Where the copy lacks a mapping it may have one of ours.
            ranges = without(private_pages(self.copy.host, self.space), sorted([*self._lost, *self._missing]))
        return self.copy.write(self.space, self._owner, ranges, writer)

    def close(self) -> None:
        """End the copy. Its guest may have to reap it (`Snapshot.by_guest`)."""
        self.copy.close()


def _has_locked(host: int) -> bool:
    with open(f"/proc/{host}/status", "rb") as file:
        return int(file.read().partition(b"\nVmLck:")[2].split(None, 1)[0]) > 0


def reap_running(engine: Engine, t: Tracee, at: int, pid: int) -> bool:
    """Stop a running guest's thread for 0.1 ms to reap the guest's copy; False where it is in a job-control stop, and
    has to be asked again later. Gone; OSError."""
    while not t.listening:
        engine.interrupt(t)
        status = pt.wait_stop(t.host)
        here = status == pt.EVENT_STOP << 16 | signal.SIGTRAP << 8 | 0x7F
        if here:
            reap(t.host, at, pid)
        engine.serve_stop(t.host, status)
        if here:
            return True
    return False
