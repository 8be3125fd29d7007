"""Directories and descriptors of restored processes, some of which share them (CLONE_FS, CLONE_FILES of clone(2)).

What is shared is set by the first of those who share it, and the pool is closed by the last: they have one table. A
process that had it in common with others than its parent gets its own copy.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from trapline.platform import restore_files, restore_tasks
from trapline.platform.restored_image import CLONE_FILES, CLONE_FS

if TYPE_CHECKING:
    from trapline.platform.injection import Injection
    from trapline.platform.restored_image import RestoredImage
    from trapline.platform.seed import Ready
    from trapline.sentry.state.records import ProcessRecord

_CLOSE_RANGE = 436


class Sharing:
    """Of one restore."""

    def __init__(
        self, loaded: RestoredImage, ready: Ready, flags: dict[int, int], living: list[ProcessRecord]
    ) -> None:
        self._image = loaded.image
        self._ready = ready
        parents = {record.tgid: record.parent for record in living}

        def owner(tgid: int, flag: int) -> int:
            while flags.get(tgid, 0) & flag:
                tgid = parents[tgid]
            return tgid

        self._table = {tgid: owner(tgid, CLONE_FILES) for tgid in parents}
        self._directories = {tgid: owner(tgid, CLONE_FS) for tgid in parents}
        self._users = Counter(self._table.values())
        self._begun: set[int] = set()
        self._set: set[int] = set()

    def own_directories_and_descriptors(self, leader: Injection, record: ProcessRecord) -> None:
        """Once for each process. OSError; Gone."""
        image, ready = self._image, self._ready
        table, directories = self._table[record.tgid], self._directories[record.tgid]
        if table not in self._begun:
            self._begun.add(table)
            leader.run([(_CLOSE_RANGE, 0, ready.first - 1, 0)])
        if directories not in self._set:
            self._set.add(directories)
            leader.run(restore_tasks.directory_calls(image.directories[record.directory]))
        self._users[table] -= 1
        if not self._users[table]:
            leader.run(restore_files.place(image, record.table, ready.pool))
            leader.run([(_CLOSE_RANGE, ready.first, 0xFFFFFFFF, 0)])
