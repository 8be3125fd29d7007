"""MissingPages against a model that knows each page by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trapline.platform.missing_pages import MissingPages, Piece

PAGE = 4096
WHOLE = 64  # pages of the address space that is played with
BLOCK = 8

#: Where a page comes from: an image and the offset in it.
Model = dict[int, tuple[int, int]]
places = st.integers(0, WHOLE)
pieces = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 1), st.integers(0, 40), st.integers(0, 3)), max_size=8)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), places, places, st.just(0)),
        st.tuples(st.just("move"), places, places, st.integers(1, 16)),
    ),
    max_size=12,
)


def laid_out(sizes: list[tuple[int, int, int, int]]) -> list[Piece]:
    found: list[Piece] = []
    at = 0
    for size, image, offset, gap in sizes:
        at += gap
        found.append((at * PAGE, (at + size) * PAGE, image, offset * PAGE))
        at += size
    return found


def pages_of(found: list[Piece]) -> Model:
    model: Model = {}
    for start, end, image, offset in found:
        for at in range(start, end, PAGE):
            assert at // PAGE not in model
            model[at // PAGE] = image, offset + at - start
    return model


def played(sizes: list[tuple[int, int, int, int]], taken: list[tuple[str, int, int, int]]) -> tuple[MissingPages, Model]:
    start = laid_out(sizes)
    missing, model = MissingPages(reversed(start)), pages_of(start)
    for kind, first, second, size in taken:
        if kind == "take":
            low, high = min(first, second), max(first, second)
            gone = pages_of(missing.take(low * PAGE, high * PAGE))
            assert gone == {page: model.pop(page) for page in range(low, high) if page in model}
        elif abs(first - second) >= size:
            missing.move(first * PAGE, second * PAGE, size * PAGE)
            moved = {page - first + second: model.pop(page) for page in range(first, first + size) if page in model}
            for page in range(second, second + size):
                model.pop(page, None)
            model |= moved
    return missing, model


@given(pieces, steps)
def test_it_knows_of_each_page_what_a_list_of_pages_knows(
    sizes: list[tuple[int, int, int, int]], taken: list[tuple[str, int, int, int]]
) -> None:
    missing, model = played(sizes, taken)
    assert pages_of(list(missing)) == model
    assert list(missing) == sorted(missing)
    assert missing.size == len(model) * PAGE and bool(missing) == bool(model)
    for page in range(100):
        found = missing.at(page * PAGE + 5)
        assert (found is not None) == (page in model)
        if found is not None:
            assert model[page] == (found[2], found[3] + page * PAGE - found[0])
        after = missing.after(page * PAGE)
        later = [other for other in model if other >= page]
        assert (after is None) == (not later)
        if after is not None:
            assert max(after[0] // PAGE, page) == min(later)
    other = missing.copy()
    other.take(0, WHOLE * 2 * PAGE)
    assert pages_of(list(missing)) == model and not other


@given(pieces, steps, places)
def test_around_gives_what_one_block_has_for_a_place_and_its_own_page_first(
    sizes: list[tuple[int, int, int, int]], taken: list[tuple[str, int, int, int]], page: int
) -> None:
    missing, model = played(sizes, taken)
    if page not in model:
        return
    image, offset = model[page]
    low = offset // (BLOCK * PAGE) * BLOCK * PAGE
    found = missing.around(page * PAGE, image, low, low + BLOCK * PAGE)
    assert found[0][0] == page * PAGE
    there = pages_of(found)
    assert there.items() <= model.items() and page in there
    assert all(where[0] == image and low <= where[1] < low + BLOCK * PAGE for where in there.values())
    for step in (1, -1):
        neighbour = page
        while neighbour in there:
            neighbour += step
        # It stops at the block's end, or where nothing is missing.
        if neighbour in model:
            own = model[neighbour]
            assert own[0] != image or not low <= own[1] < low + BLOCK * PAGE
