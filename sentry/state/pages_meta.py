"""pages_meta.img: which memory lies where in pages.img and pages.1.img, and a checksum for each 256 KiB of it.

All numbers are little-endian. A header (`_HEAD`), then tables one after the other, each a multiple of 8 bytes:

- owners: for each, its length in 8 bytes, its UTF-8, NULs up to the next multiple of 8
- runs: owner (index in the table before), image, start, size, offset: 8 bytes each
- sums: XXH3_64 of each block, 8 bytes each; the last block may be shorter
- with compression, frames: offset in pages.img.zst, length; 8 bytes each
- XXH3_64 of all that stands before, 8 bytes
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

from trapline.sentry.state.codec import Malformed
from trapline.sentry.state.records import PageRun

BLOCK = 256 << 10
PAGE = 4096
MAGIC = b"TRAPPAGE"
VERSION = 2
_BEGIN = struct.Struct("<8sI")
#: By version: magic, version, page size, block size, compression, bytes of pages, owners, runs, blocks; from 2 on files
#: that the pages are in, of which there was one before.
_HEADS = {1: struct.Struct("<8sIIIIQQQQ"), 2: struct.Struct("<8sIIIIQQQQQ")}
_HEAD = _HEADS[VERSION]
_MOST_FILES = 2
_RUN = struct.Struct("<5Q")
_COMPRESSIONS = ("none", "zstd")
#: No address and no offset is beyond: what is added to one such number stays in 64 bits.
_BEYOND = 1 << 62


class PagesMeta:
    """What stands in it. `frames`: offset and length of each block's frame by turns; empty without compression."""

    __slots__ = ("compression", "files", "frames", "runs", "size", "sums")

    def __init__(
        self,
        size: int,
        runs: Sequence[PageRun],
        sums: Sequence[int],
        frames: Sequence[int],
        compression: str,
        files: int = 1,
    ) -> None:
        self.size = size  # of all pages, uncompressed
        self.runs = runs
        self.sums = sums
        self.frames = frames
        self.compression = compression
        self.files = files  # that the pages are in (page_places.py)

    @property
    def blocks(self) -> int:
        return len(self.sums)

    def length(self, block: int) -> int:
        """Bytes of a block: less than BLOCK of the last one alone."""
        return min(BLOCK, self.size - block * BLOCK)


def blocks_of(size: int) -> int:
    """How many blocks so many bytes of pages are."""
    return (size + BLOCK - 1) // BLOCK


def encode(meta: PagesMeta) -> bytes:
    """The file's content."""
    import xxhash

    owners = {run.owner: 0 for run in meta.runs}
    for index, owner in enumerate(owners):
        owners[owner] = index
    head = _HEAD.pack(
        MAGIC, VERSION, PAGE, BLOCK, _COMPRESSIONS.index(meta.compression), meta.size, len(owners), len(meta.runs),
        meta.blocks, meta.files,
    )  # fmt: skip
    parts = [head]
    for owner in owners:
        name = owner.encode()
        parts.append(struct.pack("<Q", len(name)) + name + bytes(-len(name) % 8))
    pack = _RUN.pack
    parts += [pack(owners[r.owner], r.image, r.start, r.size, r.offset) for r in meta.runs]
    parts += [array("Q", meta.sums).tobytes(), array("Q", meta.frames).tobytes()]
    data = b"".join(parts)
    return data + struct.pack("<Q", xxhash.xxh3_64_intdigest(data))


def decode(data: bytes) -> PagesMeta:
    """What stands in the file, each number within its bounds as far as they are known here. Malformed."""
    import xxhash

    if len(data) < _HEADS[1].size + 8 or data[:8] != MAGIC:
        raise Malformed("it does not begin as such a file")
    _, version = _BEGIN.unpack_from(data)
    head = _HEADS.get(version)
    if head is None:
        raise Malformed(f"it is of version {version}, and this trapline reads up to version {VERSION}")
    if len(data) < head.size + 8:
        raise Malformed("it does not begin as such a file")
    _, _, page, block, compression, size, owner_count, run_count, block_count, *rest = head.unpack_from(data)
    files = rest[0] if rest else 1
    if struct.unpack_from("<Q", data, len(data) - 8)[0] != xxhash.xxh3_64_intdigest(memoryview(data)[:-8]):
        raise Malformed("its checksum is wrong: it was damaged")
    if page != PAGE or block != BLOCK or compression >= len(_COMPRESSIONS):
        raise Malformed(f"pages of {page} in blocks of {block}, compression {compression}: there is no such thing")
    if size % PAGE or size >= _BEYOND or block_count != blocks_of(size):
        raise Malformed(f"{block_count} blocks do not make {size} bytes of pages")
    if not 1 <= files <= (1 if compression else _MOST_FILES):
        raise Malformed(f"its pages cannot be in {files} files")
    owners, at = _owners(data, owner_count, head.size)
    end = len(data) - 8
    frame_count = block_count if compression else 0
    if at + run_count * _RUN.size + block_count * 8 + frame_count * 16 != end:
        raise Malformed("its tables are not as long as its header says")
    runs_end = at + run_count * _RUN.size
    sums_end = runs_end + block_count * 8
    return PagesMeta(
        size,
        _runs(memoryview(data)[at:runs_end], owners),
        array("Q", data[runs_end:sums_end]),
        array("Q", data[sums_end:end]),
        _COMPRESSIONS[compression],
        files,
    )


def _owners(data: bytes, count: int, at: int) -> tuple[list[str], int]:
    """The table of owners, which begins at `at`, and where the next one begins. Malformed."""
    owners = []
    for _ in range(min(count, len(data) // 8 + 1)):
        (length,) = struct.unpack_from("<Q", data, at) if at + 8 <= len(data) else (len(data),)
        at += 8
        if length > len(data) - at:
            raise Malformed("the name of an owner is longer than the file")
        try:
            owners.append(data[at : at + length].decode())
        except UnicodeDecodeError:
            raise Malformed("the name of an owner is not UTF-8") from None
        at += length + -length % 8
    if len(owners) != count or len(set(owners)) != count:
        raise Malformed("its table of owners is not as its header says")
    return owners, at


def _runs(table: memoryview, owners: list[str]) -> list[PageRun]:
    runs = []
    for owner, image, start, size, offset in _RUN.iter_unpack(table):
        if owner >= len(owners) or not size or (start | size | offset) % PAGE or max(start, size, offset) >= _BEYOND:
            raise Malformed(f"a run of pages makes no sense: {size} bytes at {start:#x} from {offset}")
        runs.append(PageRun(owners[owner], start, size, offset, image))
    _check_overlaps(runs)
    return runs


def _check_overlaps(runs: list[PageRun]) -> None:
    """Malformed where the same memory comes from two places."""
    last, end = "", 0
    for owner, start, size in sorted([(run.owner, run.start, run.size) for run in runs]):
        if owner == last and start < end:
            raise Malformed(f"two runs of pages are at {start:#x} of {owner}")
        last, end = owner, start + size
