"""Which ranges of an address space have still to come from an image, and from where in its pages.

A page that is in none of them is as it is: there already, or zeros. Nothing of the host's is in here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

#: From an address to another, out of this image (`PageRun.image`) from this offset on.
Piece = tuple[int, int, int, int]


class MissingPages:
    """Disjoint pieces, in the order of their addresses."""

    __slots__ = ("_pieces", "_starts")

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self._pieces = sorted(pieces)
        self._starts = [piece[0] for piece in self._pieces]

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    @property
    def size(self) -> int:
        """Bytes in sum."""
        return sum(end - start for start, end, _, _ in self._pieces)

    def copy(self) -> MissingPages:
        """The same, for a child of fork(2)."""
        other = MissingPages()
        other._pieces, other._starts = list(self._pieces), list(self._starts)
        return other

    def at(self, address: int) -> Piece | None:
        """The piece that an address lies in."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and self._pieces[index][1] > address:
            return self._pieces[index]
        return None

    def after(self, address: int) -> Piece | None:
        """The first piece that ends behind an address."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or self._pieces[index][1] <= address:
            index += 1
        return self._pieces[index] if index < len(self._pieces) else None

    def around(self, address: int, image: int, low: int, high: int) -> list[Piece]:
        """What comes from offsets `low` to `high` of an image: the piece that the address lies in and its neighbours,
        as far as they do too. The address's own page comes first, and what precedes it last."""
        index = bisect_right(self._starts, address) - 1
        found: list[Piece] = []
        behind: list[Piece] = []
        own = self._cut(index, image, low, high)
        if own is not None and own[0] <= address < own[1]:
            start, end, _, offset = own
            found.append((address, end, image, offset + address - start))
            if start < address:
                behind.append((start, address, image, offset))
            index -= 1
            following = index + 2
        else:
            following = index + 1
        while (piece := self._cut(following, image, low, high)) is not None:
            found.append(piece)
            following += 1
        while (piece := self._cut(index, image, low, high)) is not None:
            found.append(piece)
            index -= 1
        return found + behind

    def _cut(self, index: int, image: int, low: int, high: int) -> Piece | None:
        if not 0 <= index < len(self._pieces):
            return None
        start, end, other, offset = self._pieces[index]
        first, last = max(offset, low), min(offset + end - start, high)
        if other != image or first >= last:
            return None
        return start + first - offset, start + last - offset, image, first

    def take(self, low: int, high: int) -> list[Piece]:
        """Nothing between two addresses is missing any more; what was."""
        first = bisect_right(self._starts, low) - 1
        if first < 0 or self._pieces[first][1] <= low:
            first += 1
        last = first
        taken: list[Piece] = []
        rest: list[Piece] = []
        while last < len(self._pieces) and self._starts[last] < high:
            start, end, image, offset = self._pieces[last]
            if start < low:
                rest.append((start, low, image, offset))
            if end > high:
                rest.append((high, end, image, offset + high - start))
            begin = max(start, low)
            taken.append((begin, min(end, high), image, offset + begin - start))
            last += 1
        self._pieces[first:last] = rest
        self._starts[first:last] = [piece[0] for piece in rest]
        return taken

    def move(self, old: int, new: int, size: int) -> None:
        """What was missing in `size` bytes from an address is missing from another now, and nothing else there: as
        mremap(2) does it."""
        moved = self.take(old, old + size)
        self.take(new, new + size)
        if not moved:
            return
        index = bisect_right(self._starts, new)
        pieces = [(start - old + new, end - old + new, image, offset) for start, end, image, offset in moved]
        self._pieces[index:index] = pieces
        self._starts[index:index] = [piece[0] for piece in pieces]
