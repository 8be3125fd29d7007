"""An address space as it was saved, made again in a process that holds a workspace and the host's vDSO, and nothing
else that is to stay.

The process does it itself, by calls that are injected (injection.py): `map`, then `load` or who else brings the pages
in, then `finish`. What is mapped comes from descriptors that the process has inherited (restore_shared.py), so no path
is looked up here.

Pages are loaded while a mapping is writable; its own protection comes afterwards. Sources: mmap(2), mremap(2),
madvise(2), shmat(2), PR_SET_MM_MAP(2const), PR_SET_VMA(2const).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Mapping

from trapline.platform import memory_areas as ma
from trapline.platform.injection import Call, Data, Try
from trapline.platform.task_attributes import space_calls
from trapline.sentry.state import records
from trapline.sentry.state.records import AddressSpace, PageRun
from trapline.sentry.state.unusable import UnusableImage

PAGE = 4096
#: The end of what a process can map, without 5-level page tables.
TASK_SIZE = 0x7FFFFFFFF000
_MMAP, _MPROTECT, _MUNMAP, _MREMAP, _MADVISE, _SHMAT = 9, 10, 11, 25, 28, 30
_PRCTL, _PREADV, _MLOCK2, _MSEAL = 157, 295, 325, 462
_MAP_SHARED, _MAP_PRIVATE, _MAP_DROPPABLE = 1, 2, 8
_MAP_ANONYMOUS, _MAP_GROWSDOWN, _MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 0x20, 0x100, 0x4000, 0x100000
_MREMAP_MOVE_TO = 3  # MAYMOVE | FIXED
_SHM_RDONLY, _SHM_EXEC = 0o10000, 0o100000
_MLOCK_ONFAULT = 1
_PR_SET_MM, _PR_SET_MM_MAP, _PR_SET_THP_DISABLE = 35, 14, 41
_PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 0x53564D41, 0
_MADV_GUARD_INSTALL = 102
#: VmFlags and the advice that sets them; those of huge pages have to be there before the pages are.
_EARLY = {"hg": 14, "nh": 15}
_LATE = {"rr": 1, "sr": 2, "dc": 10, "mg": 12, "dd": 16, "wf": 18}
#: struct prctl_mm_map: its words, then auxv, auxv_size, exe_fd.
_MM_MAP = struct.Struct("<12QII")
_VECTOR = struct.Struct("<QQ")
#: Of one preadv(2).
_MOST_RANGES, _MOST_BYTES = 256, 1 << 30

Calls = list[Call | Try]


class SpaceRestore:
    """The calls for one address space."""

    def __init__(
        self,
        space: AddressSpace,
        runs: Iterable[PageRun],
        pool: Mapping[str, int],
        vdso: Mapping[str, tuple[int, int]],
        workspace: tuple[int, int],
        scratch: int,
    ) -> None:
        """`runs`: the pages that this space owns. `pool`: descriptors by key (restore_shared.py), and "vdso", our
        image's. `vdso`: where the process has the host's [vdso], [vvar] ... now: address, length. `workspace`: address,
        length. `scratch`: an address with 16 MiB behind it that neither the space nor the process uses now.

        UnusableImage where the space cannot be made here.
        """
        self.space = space
        self.runs = sorted(runs, key=lambda run: run.start)
        self._pool = pool
        self._vdso = vdso
        self._workspace = workspace
        self._scratch = scratch
        self._starts = [run.start for run in self.runs]

    # -- mapping
    def map(self) -> Calls:
        """Move the host's vDSO, unmap everything else, and map all of the space, writable where pages belong."""
        calls: Calls = []
        kept = [self._workspace, *self._move_vdso(calls)]
        at = 0
        for start, size in sorted(kept):
            if start > at:
                calls.append((_MUNMAP, at, start - at))
            at = start + size
        calls.append((_MUNMAP, at, TASK_SIZE - at))
        for mapping in self.space.mappings:
            if mapping.kind != "host_vdso":
                self._map(mapping, calls)
        return calls

    def _move_vdso(self, calls: Calls) -> list[tuple[int, int]]:
        """Where it is then."""
        moves: list[tuple[int, int, int]] = []
        for mapping in self.space.mappings:
            if mapping.kind == "host_vdso":
                size = mapping.end - mapping.start
                now = self._vdso.get(mapping.name)
                if now is None or now[1] != size:
                    raise UnusableImage(f"the image is of a host with another vDSO than this one ({mapping.name})")
                moves.append((now[0], size, mapping.start))
        targets = [(to, size) for _, size, to in moves]
        if all(to == at for at, _, to in moves):
            return targets
        if any(a < to + size and to < a + n for a, n in self._vdso.values() for to, size in targets):
            # What is moved unmaps what was there, and may be in its own way.
            place = self._scratch
            for index, (at, size, to) in enumerate(moves):
                calls.append((_MREMAP, at, size, size, _MREMAP_MOVE_TO, place))
                moves[index] = (place, size, to)
                place += size
        calls += [(_MREMAP, at, size, size, _MREMAP_MOVE_TO, to) for at, size, to in moves]
        return targets

    def _map(self, mapping: records.Mapping, calls: Calls) -> None:
        size = mapping.end - mapping.start
        if mapping.kind == "shared" and mapping.shared and mapping.key.startswith("sysv:"):
            self._attach(mapping, calls)
            return
        flags = _MAP_FIXED_NOREPLACE | (_MAP_SHARED if mapping.shared else _MAP_PRIVATE)
        descriptor = -1
        if mapping.kind == "anonymous":
            flags |= _MAP_ANONYMOUS
            if "gd" in mapping.flags:
                flags |= _MAP_GROWSDOWN
            if "dp" in mapping.flags:
                flags = flags & ~_MAP_PRIVATE | _MAP_DROPPABLE
        else:
            descriptor = self._descriptor(mapping)
        if "nr" in mapping.flags:
            flags |= _MAP_NORESERVE
        prot = mapping.prot
        if self._has_runs(mapping):
            prot |= ma.PROT_READ | ma.PROT_WRITE
        calls.append((_MMAP, mapping.start, size, prot, flags, descriptor, mapping.offset))
        calls += [(_MADVISE, mapping.start, size, _EARLY[flag]) for flag in mapping.flags if flag in _EARLY]

    def _attach(self, mapping: records.Mapping, calls: Calls) -> None:
        """A System V segment, or the part of it that is still attached."""
        flags = (0 if mapping.writable_file else _SHM_RDONLY) | (_SHM_EXEC if mapping.prot & ma.PROT_EXEC else 0)
        identity = int(mapping.key.partition(":")[2])
        size = mapping.end - mapping.start
        whole = self._sizes.get(mapping.key, 0)
        if not mapping.offset and whole <= size:
            calls.append((_SHMAT, identity, mapping.start, flags))
        else:
            calls.append((_SHMAT, identity, self._scratch, flags))
            calls.append((_MREMAP, self._scratch + mapping.offset, size, size, _MREMAP_MOVE_TO, mapping.start))
            if mapping.offset:
                calls.append((_MUNMAP, self._scratch, mapping.offset))
            rest = whole - mapping.offset - size
            if rest > 0:
                calls.append((_MUNMAP, self._scratch + mapping.offset + size, rest))

    #: Bytes of the System V segments, whole pages, by key; set by `with_objects`.
    _sizes: Mapping[str, int] = {}

    def with_objects(self, shared: Mapping[str, records.SharedObject]) -> SpaceRestore:
        """Tell of the image's shared objects; itself."""
        self._sizes = {key: found.size + -found.size % PAGE for key, found in shared.items()}
        return self

    def _descriptor(self, mapping: records.Mapping) -> int:
        found = self._pool.get(pool_key(mapping))
        if found is None:
            what = mapping.path or mapping.key
            raise UnusableImage(f"what is mapped at {mapping.start:#x} is not in the image: {what}")
        return found

    def _has_runs(self, mapping: records.Mapping) -> bool:
        if mapping.shared:
            return False
        after = bisect_right(self._starts, mapping.start)
        if after and self.runs[after - 1].start + self.runs[after - 1].size > mapping.start:
            return True
        return after < len(self.runs) and self.runs[after].start < mapping.end

    # -- afterwards
    def finish(self) -> Calls:
        """Protections, advice, names, locks, and the layout that /proc shows and brk(2) goes by."""
        calls: Calls = []
        for mapping in self.space.mappings:
            if mapping.kind not in ("host_vdso", "vdso"):
                self._finish(mapping, calls)
        # Guard pages mark all of what the host holds as one mapping: so when it is cut as it is to be.
        for mapping in self.space.mappings:
            if "lo" not in mapping.flags:
                calls += _guards(mapping)
        calls += self._layout()
        return calls

    def _finish(self, mapping: records.Mapping, calls: Calls) -> None:
        start, size = mapping.start, mapping.end - mapping.start
        attached = mapping.kind == "shared" and mapping.key.startswith("sysv:")
        if attached or (self._has_runs(mapping) and mapping.prot & 3 != 3):
            calls.append((_MPROTECT, start, size, mapping.prot))
        if "lo" in mapping.flags:
            calls += _guards(mapping)  # refused in memory that is locked
        calls += [(_MADVISE, start, size, _LATE[flag]) for flag in mapping.flags if flag in _LATE]
        if mapping.name:
            # Not all kernels keep names (CONFIG_ANON_VMA_NAME).
            name = Data(mapping.name.encode("utf-8", "surrogateescape") + b"\0")
            calls.append(Try((_PRCTL, _PR_SET_VMA, _PR_SET_VMA_ANON_NAME, start, size, name)))
        if "lo" in mapping.flags:
            calls.append((_MLOCK2, start, size, _MLOCK_ONFAULT if "lf" in mapping.flags else 0))
        if "sl" in mapping.flags:
            calls.append((_MSEAL, start, size, 0))

    def _layout(self) -> Calls:
        space = self.space
        auxv = Data(space.auxv)
        exe = self._pool.get(exe_key(space))
        if exe is None:
            raise UnusableImage(f"the program {space.exe} is not there")
        words = Data(_MM_MAP.pack(*space.layout, 0, len(space.auxv), exe), links={88: auxv})
        calls: Calls = [(_PRCTL, _PR_SET_MM, _PR_SET_MM_MAP, words, _MM_MAP.size, 0)]
        if space.thp_disabled:
            calls.append((_PRCTL, _PR_SET_THP_DISABLE, 1, 0, 0, 0))
        return calls + space_calls(space)


def _guards(mapping: records.Mapping) -> Calls:
    return [(_MADVISE, low, high - low, _MADV_GUARD_INSTALL) for low, high in mapping.guards]


def pool_key(mapping: records.Mapping) -> str:
    """Under which the pool has the descriptor that a mapping is made from."""
    if mapping.kind == "vdso":
        return "vdso"
    access = "w" if mapping.shared and mapping.writable_file else "r"
    if mapping.kind == "shared":
        return f"{mapping.key}/{access}"
    return f"ghost:{mapping.key}/{access}" if mapping.deleted else f"file:{mapping.path}/{access}"


def exe_key(space: AddressSpace) -> str:
    """Likewise for the file that /proc/PID/exe shows."""
    return f"ghost:{space.exe_ghost}/r" if space.exe_ghost else f"file:{space.exe}/r"


def find_gap(spaces: Iterable[AddressSpace], size: int, also: Iterable[tuple[int, int]] = ()) -> int:
    """An address with `size` bytes behind it that no space uses, nor any of the ranges `also` (address, length);
    page aligned. UnusableImage where there is none."""
    used = sorted([(m.start, m.end) for space in spaces for m in space.mappings] + [(at, at + n) for at, n in also])
    end = TASK_SIZE - (1 << 30)
    for start, stop in sorted(used, key=lambda pair: -pair[1]):
        if stop <= end - size:
            # Nothing that begins below reaches into it: those that end higher were looked at before.
            return end - size
        end = min(end, start)
    if end - size >= 1 << 20:
        return end - size
    raise UnusableImage("the address spaces leave no room for the restore")
