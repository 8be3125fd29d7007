"""What a sandbox's processes have written since its last image: for a save that holds only that, and its parent the
rest.

Tracking begins with a save that leaves the sandbox running, and each later one goes on from the last that was
committed; one that failed has taken the host's marks away, so the next is a full one.
"""

from __future__ import annotations

import os

from trapline.platform.page_copy import private_pages
from trapline.platform.page_scan import Range, available
from trapline.platform.write_tracking import DEVICE, WriteTracking
from trapline.sentry.protocol import Gone
from trapline.sentry.state.records import AddressSpace


class Incremental:
    """One sandbox's."""

    def __init__(self) -> None:
        self._spaces: dict[int, WriteTracking] = {}  # by the process through which it was saved
        self._owners: dict[int, str] = {}  # in the last image
        self._new: dict[int, str] = {}  # in the one that is being written
        self._parent = ""  # the checksum of the last image's manifest; "": nothing is known
        #: Why nothing can be tracked here; "" where it can.
        self.reason = ""
        if not available():
            self.reason = "this host's kernel has no PAGEMAP_SCAN (Linux 6.7)"
        elif not os.access(DEVICE, os.R_OK | os.W_OK):
            self.reason = f"{DEVICE} cannot be opened"

    def why_not(self, parent: str) -> str:
        """Why a save cannot be incremental to this image, told by the checksum of its manifest; "" where it can."""
        if self.reason:
            return self.reason
        if not self._parent:
            return "the last save was no complete one that left the sandbox running"
        if parent != self._parent:
            return "the parent is not the last image of this sandbox"
        return ""

    def collect(self, tgid: int, guest: int, at: int, space: AddressSpace) -> tuple[list[Range], list[Range]]:
        """As `WriteTracking.collect`, of a process's address space; what is not tracked by now is from now on, if that
        can be. All of it counts as written then. Gone; OSError."""
        tracking = self._spaces.get(tgid)
        try:
            if tracking is None:
                tracking = self._spaces[tgid] = WriteTracking.begin(guest, at)
            return tracking.collect(guest, space)
        except Gone:
            raise
        except OSError:
            # The process has executed another program; or it has no descriptors left.
            again = tracking is not None
            self._forget(tgid)
            if again:
                return self.collect(tgid, guest, at, space)
        return private_pages(guest, space), []

    def owner_of(self, tgid: int) -> str:
        """The owner of its pages in the last image."""
        return self._owners.get(tgid, "")

    def saved_as(self, tgid: int, owner: str) -> None:
        """Its pages are now another's in the image that is being written."""
        self._new[tgid] = owner

    def commit(self, checksum: str) -> None:
        """The image was written; its manifest's checksum. Processes that were not in it are tracked no more."""
        for tgid in [tgid for tgid in self._spaces if tgid not in self._new]:
            self._forget(tgid)
        self._owners, self._new, self._parent = self._new, {}, checksum

    def fail(self) -> None:
        """It was not: what had been written since the last one is not known any more."""
        self._new, self._parent = {}, ""

    def close(self) -> None:
        """Track nothing any more."""
        for tgid in list(self._spaces):
            self._forget(tgid)
        self.fail()

    def _forget(self, tgid: int) -> None:
        tracking = self._spaces.pop(tgid, None)
        if tracking is not None:
            tracking.close()
