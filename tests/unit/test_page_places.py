"""Pages in two files, even blocks in the one and odd ones in the other: nothing is lost or in two places."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trapline.sentry.state import page_places
from trapline.sentry.state.pages_meta import BLOCK

PAGE = 4096
sizes = st.integers(0, 5 * BLOCK // PAGE).map(lambda pages: pages * PAGE)


@given(sizes, sizes, st.integers(1, 2))
def test_pieces_are_all_of_it_and_each_in_one_file(offset: int, size: int, files: int) -> None:
    at = offset
    for file, place, length in page_places.pieces(offset, size, files):
        assert page_places.place(at, files) == (file, place)
        assert page_places.place(at + length - 1, files) == (file, place + length - 1)
        at += length
    assert at == offset + size


@given(sizes, st.integers(1, 2))
def test_files_are_as_long_as_what_is_in_them(size: int, files: int) -> None:
    ends = [0] * files
    for file, place, length in page_places.pieces(0, size, files):
        ends[file] = max(ends[file], place + length)
    assert ends == [page_places.size_of(size, files, file) for file in range(files)]
    assert sum(ends) == size


def test_what_is_read_is_what_was_written_there(tmp_path: Path) -> None:
    data = os.urandom(5 * BLOCK + 3 * PAGE)
    fds = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in "ab"]
    for at in range(0, len(data), PAGE):
        file, place = page_places.place(at, 2)
        os.pwrite(fds[file], data[at : at + PAGE], place)
    into = memoryview(bytearray(2 * BLOCK + PAGE))
    assert page_places.read(fds, BLOCK - PAGE, into) == len(into)
    assert into == data[BLOCK - PAGE : 3 * BLOCK]
    os.ftruncate(fds[1], BLOCK)
    assert page_places.read(fds, BLOCK - PAGE, into) == 2 * BLOCK + PAGE  # to the end of block 2
    assert page_places.read(fds, 3 * BLOCK, into) == 0
    for fd in fds:
        os.close(fd)
