"""`restore --background`, in the sentry: which memory comes later, and what there is to tell of it.

Later comes private anonymous memory of any size, which is what programs have much of. All else is loaded before tasks
go on: what a userfaultfd cannot stand for (files' private pages, huge pages), what is shared, what the host reads
without waiting for pages (arguments, environment), and what the restore or a fork treats in some way of its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trapline.platform import userfaultfd as uf
from trapline.platform.descriptor_calls import duplicate
from trapline.platform.image_blocks import ImageSource
from trapline.platform.injection import Injection, Try
from trapline.platform.page_loader import Loader
from trapline.platform.userfaultfd import Userfaultfd
from trapline.sentry.log import say
from trapline.sentry.state.records import AddressSpace, Mapping, PageRun

if TYPE_CHECKING:
    from trapline.platform.restored_image import RestoredImage
    from trapline.platform.session import Session

_IOCTL, _CLOSE = 16, 3
#: Fewer bytes of pages in a mapping are not worth a fault.
_LEAST = 256 << 10
#: VmFlags of what is loaded first: it grows down, is locked, sealed, or is another memory in a child.
_EARLY = frozenset(("gd", "lo", "lf", "sl", "wf", "dc", "dp"))
#: Of `AddressSpace.layout`: the first and last words that tell where arguments and environment are.
_ARGUMENTS = slice(7, 11)


class BackgroundLoad:
    """One restore's. Its methods are for the sentry's thread."""

    def __init__(self, session: Session, loaded: RestoredImage) -> None:
        self._session = session
        self._refused = False
        self.loader = Loader(ImageSource(loaded.reader.chain), self._broken)

    def _broken(self) -> None:
        try:
            signal.pidfd_send_signal(self._session.sandbox.init_pidfd, signal.SIGKILL)
        except OSError:
            pass  # it has ended

    # -- under construction
    def open(self, leader: Injection, device: int) -> Userfaultfd | None:
        """A userfaultfd for the address space of a process that is being made. `device`: its descriptor of
        /dev/userfaultfd, -1 for none. None where the host does not let us have one; that is said once. OSError; Gone.
        """
        if "userfaultfd" in self._session.options.without:
            self._no(0)
        if self._refused:
            return None
        made, *other = leader.run(
            [
                Try((uf.SYS_USERFAULTFD, uf.FLAGS)),
                *([Try((_IOCTL, device, uf.USERFAULTFD_IOC_NEW, uf.FLAGS))] if device >= 0 else []),
            ]
        )
        numbers = [number for number in (made, *other) if number >= 0]
        if not numbers:
            self._no(-made)
            return None
        pidfd = os.pidfd_open(leader.host)
        try:
            uffd = Userfaultfd(duplicate(pidfd, numbers[0]))
        finally:
            os.close(pidfd)
            leader.run([(_CLOSE, number) for number in numbers])
        try:
            uffd.begin()
        except OSError as error:
            uffd.close()
            self._no(error.errno or 0)
            return None
        return uffd

    def _no(self, number: int) -> None:
        if not self._refused:
            reason = os.strerror(number) if number else "switched off"
            say(f"trapline: --background: memory is loaded first, there is no userfaultfd for it ({reason})")
        self._refused = True

    def begin(self, uffd: Userfaultfd, space: AddressSpace, runs: Sequence[PageRun]) -> None:
        """The space is mapped now; these runs of `split` are to come. OSError."""
        for mapping in later_mappings(space, runs):
            uffd.register(mapping.start, mapping.end - mapping.start)
        self.loader.add(uffd, [(run.start, run.start + run.size, run.image, run.offset) for run in runs])

    # -- while tasks run
    def go(self) -> None:
        """Tasks go on."""
        session = self._session
        session.pump.add(self.loader.news, self._hear)
        self.loader.prefetch()

    def _hear(self) -> None:
        loader, session = self.loader, self._session
        if loader.news < 0:
            return
        os.eventfd_read(loader.news)
        while loader.errors:
            text = loader.errors.popleft()
            session.log.warning(text)
            session.attempts.restore_failed(text)
        if loader.done:
            session.log.info(f"memory is loaded: {loader.loaded} bytes, {loader.faults} of its pages were waited for")
            self.close()
            session.loading = None
            session.attempts.loaded()

    def close(self) -> None:
        """It is over, or the sandbox is."""
        loader = self.loader
        if loader.news >= 0:
            self._session.pump.remove(loader.news)
            loader.close()


def split(space: AddressSpace, runs: Sequence[PageRun]) -> tuple[list[PageRun], list[PageRun]]:
    """Runs that are loaded first, and those that come later."""
    candidates = [mapping for mapping in space.mappings if _may_wait(space, mapping)]
    first: list[PageRun] = []
    groups: dict[int, list[PageRun]] = {}
    ordered = sorted(candidates, key=lambda mapping: mapping.start)
    at = 0
    for run in sorted(runs, key=lambda run: run.start):
        start, end = run.start, run.start + run.size
        while at < len(ordered) and ordered[at].end <= start:
            at += 1
        index = at
        while start < end:
            mapping = ordered[index] if index < len(ordered) else None
            if mapping is None or mapping.start >= end:
                first.append(_part(run, start, end))
                break
            if mapping.start > start:
                first.append(_part(run, start, mapping.start))
                start = mapping.start
            stop = min(end, mapping.end)
            groups.setdefault(index, []).append(_part(run, start, stop))
            start = stop
            index += 1
    later: list[PageRun] = []
    for group in groups.values():
        (later if sum(run.size for run in group) >= _LEAST else first).extend(group)
    return first, later


def _part(run: PageRun, start: int, end: int) -> PageRun:
    if start == run.start and end == run.start + run.size:
        return run
    return PageRun(run.owner, start, end - start, run.offset + start - run.start, run.image)


def _may_wait(space: AddressSpace, mapping: Mapping) -> bool:
    if mapping.kind != "anonymous" or mapping.shared or mapping.guards or _EARLY.intersection(mapping.flags):
        return False
    words = space.layout[_ARGUMENTS]
    return not any(mapping.start <= word < mapping.end for word in words if word)


def later_mappings(space: AddressSpace, runs: Sequence[PageRun]) -> list[Mapping]:
    """The mappings that runs of `split` lie in."""
    found: dict[int, Mapping] = {}
    ordered = sorted(space.mappings, key=lambda mapping: mapping.start)
    at = 0
    for run in sorted(runs, key=lambda run: run.start):
        while ordered[at].end <= run.start:
            at += 1
        found[ordered[at].start] = ordered[at]
    return list(found.values())
