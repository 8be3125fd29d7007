"""Ranges of memory: what a call has left that served less than it was given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trapline.platform.page_copy import after


def bytes_of(ranges: list[tuple[int, int]]) -> list[int]:
    return [byte for start, end in ranges for byte in range(start, end)]


@st.composite
def ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    found, at = [], 0
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=6)):
        found.append((at + gap, at + gap + size))
        at += gap + size
    return found


@given(ranges(), st.integers(-1, 60))
def test_what_is_left(pieces: list[tuple[int, int]], done: int) -> None:
    """Every byte that was not served, once and in order, with its place among all. Nothing was where the call failed."""
    left = list(after(pieces, done))
    whole = bytes_of(pieces)
    assert bytes_of([(start, end) for start, end, _ in left]) == whole[max(done, 0) :]
    for start, _, at in left:
        assert whole[at] == start
