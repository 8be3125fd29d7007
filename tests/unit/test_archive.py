"""The archive of own files: what is written is read back, tar tools agree, and what is damaged is told to be so."""

from __future__ import annotations

import io
import os
import stat
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.sentry.state import archive
from trapline.sentry.state.archive import Member
from trapline.sentry.state.names import quoted, unquoted
from trapline.sentry.state.unusable import UnusableImage

KINDS = [stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK]
names = st.binary(min_size=1, max_size=255).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))
times = st.integers(-(10**18), 10**19)
ids = st.integers(0, (1 << 32) - 2)


def fields(member: Member) -> dict[str, object]:
    return {name: getattr(member, name) for name in Member.__slots__ if name != "offset"}


def read(data: bytes) -> list[Member]:
    return archive.members(lambda size, offset: data[offset : offset + size], "files/upper.tar")


def written(members: list[Member], contents: dict[bytes, bytes]) -> bytes:
    out = b""
    for member in members:
        out += archive.header(member)
        content = contents.get(member.name, b"")
        for start, size in member.extents if member.extents is not None else [(0, len(content))]:
            out += content[start : start + size]
        out += bytes(archive.padding(archive.content_size(member)))
    return out + archive.end()


@st.composite
def any_member(draw: st.DrawFn) -> tuple[Member, bytes]:
    member = Member(draw(names), draw(st.sampled_from(KINDS)))
    member.mode = draw(st.integers(0, 0o7777))
    member.uid, member.gid = draw(ids), draw(ids)
    member.modified, member.accessed = draw(times), draw(times)
    content = b""
    if member.kind == stat.S_IFREG:
        content = draw(st.binary(max_size=2000))
        member.size = len(content)
        if content and draw(st.booleans()):
            cuts = sorted(draw(st.sets(st.integers(0, len(content)), max_size=6)))
            member.extents = [(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    elif member.kind == stat.S_IFLNK:
        member.link = draw(st.binary(min_size=1, max_size=300).filter(lambda t: b"\0" not in t))
    elif member.kind in (stat.S_IFCHR, stat.S_IFBLK):
        member.device = os.makedev(draw(st.integers(0, 4095)), draw(st.integers(0, (1 << 20) - 1)))
    keys = st.binary(min_size=1, max_size=40).filter(lambda k: b"\0" not in k)
    member.xattrs = draw(st.dictionaries(keys, st.binary(max_size=100), max_size=3))
    return member, content


@given(st.lists(any_member(), unique_by=lambda pair: pair[0].name, max_size=4))
def test_what_is_written_is_read(pairs: list[tuple[Member, bytes]]) -> None:
    contents = {member.name: content for member, content in pairs}
    data = written([member for member, _ in pairs], contents)
    found = read(data)
    assert [fields(member) for member in found] == [fields(member) for member, _ in pairs]
    for member in found:
        at = member.offset
        for start, size in member.extents or ():
            assert data[at : at + size] == contents[member.name][start : start + size]
            at += size
        if member.extents is None:
            assert data[at : at + member.size] == contents[member.name][: member.size]


def a_tree() -> bytes:
    top, inner = Member(b"0", stat.S_IFDIR), Member(b"0/" + b"d" * 120, stat.S_IFDIR)
    top.mode = 0o1777
    plain, sparse, link = Member(inner.name + b"/plain"), Member(b"0/sparse"), Member(b"0/link", stat.S_IFLNK)
    plain.size, plain.modified, plain.xattrs = 700, 1_500_000_000_123_456_789, {b"user.a": b"\n b"}
    sparse.size, sparse.extents = 100_000, [(4096, 10), (99_990, 10)]
    link.link = b"x" * 200
    other = Member(b"0/other")
    other.hard_link, other.link = True, plain.name
    content = bytes(4096) + b"0123456789" + bytes(95_884) + b"abcdefghij"
    return written([top, inner, plain, sparse, link, other], {plain.name: b"p" * 700, sparse.name: content})


def test_other_tools_read_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(a_tree())) as tar:
        found = {member.name: member for member in tar.getmembers()}
        plain, sparse = found["0/" + "d" * 120 + "/plain"], found["0/sparse"]
        assert (plain.size, plain.pax_headers["mtime"]) == (700, "1500000000.123456789")
        assert sparse.size == 100_000
        file = tar.extractfile(sparse)
        assert file is not None
        content = file.read()
        assert len(content) == 100_000 and content[4096:4106] == b"0123456789" and content.endswith(b"\0abcdefghij")
        assert found["0/link"].linkname == "x" * 200
        assert found["0/other"].islnk() and found["0/other"].linkname == plain.name
        assert found["0"].isdir() and found["0"].mode == 0o1777


@given(st.integers(0, len(a_tree()) - 1), st.integers(0, 7))
def test_a_flipped_bit(at: int, bit: int) -> None:
    """It is told, or what is read is still a tree that harms nobody: checksums of the image find the rest."""
    data = bytearray(a_tree())
    data[at] ^= 1 << bit
    try:
        found = read(bytes(data))
    except UnusableImage as error:
        assert str(error).startswith("files/upper.tar: ") and "\n" not in str(error)
        return
    for member in found:
        assert b".." not in member.name.split(b"/")


def test_what_is_cut_short() -> None:
    data = a_tree()
    for size in range(0, len(data) - 2 * archive.BLOCK, 97):
        with pytest.raises(UnusableImage):
            read(data[:size])


def test_names_that_would_lead_out() -> None:
    top, inside = Member(b"0", stat.S_IFDIR), Member(b"0/link", stat.S_IFLNK)
    inside.link = b"/etc"
    hard = Member(b"0/hard")
    hard.hard_link, hard.link = True, b"../etc/passwd"
    directory = Member(b"0/hard")
    directory.hard_link, directory.link = True, b"0"
    for wrong in (
        [Member(b"..")],
        [Member(b"/etc/passwd")],
        [Member(b"0/a")],
        [top, Member(b"0/../a")],
        [top, Member(b"0//a")],
        [top, Member(b"0/" + b"a" * 256)],
        [top, inside, Member(b"0/link/passwd")],
        [top, inside, Member(b"0/link", stat.S_IFDIR)],
        [top, Member(b"1", stat.S_IFDIR), Member(b"0/late")],
        [top, hard],
        [top, directory],
    ):
        with pytest.raises(UnusableImage):
            read(written(wrong, {}))


@given(st.binary(max_size=30).filter(lambda name: b"\0" not in name))
def test_names_as_text(raw: bytes) -> None:
    name = os.fsdecode(raw)
    text = quoted(name)
    text.encode()
    assert unquoted(text) == name
