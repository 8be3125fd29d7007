"""The archive of a sandbox's own files: a tar file in the PAX format, as other tools read it too.

Times are in it to the nanosecond, extended attributes as `SCHILY.xattr.NAME` (GNU tar and star), sparse files as GNU's
format 1.0. What tar has no type for, a unix socket, is a fifo with a record of our own. Names are bytes. Written here
are headers; the content follows from whoever has it.

`members` checks an archive as a whole before any of it is used: each name lies in a directory that came before it,
depth first, no name comes twice, a hard link names a file that came before it. Sources: pax(1) of POSIX, "Sparse
Formats" of GNU tar's manual.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import lru_cache

from trapline.sentry.state.unusable import UnusableImage

BLOCK = 512
_MAGIC = b"ustar\x0000"
_TYPES = {
    stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}  # fmt: skip
_KINDS = {kind: number for number, kind in _TYPES.items()}
_SOCKET = b"TRAPLINE.socket"
_XATTR = b"SCHILY.xattr."
_LARGEST_ID = (1 << 32) - 2
_LONGEST_EXTENSION = 64 << 20  # bytes; a file's extended attributes take the most of it
_LONGEST_MAP = 64 << 20  # bytes, of a sparse file's extents
_END = bytes(2 * BLOCK)

Extents = list[tuple[int, int]]  # offset, length: where a sparse file has content


class Member:
    """One file. `kind` is one of S_IF*; times are ns; `offset` is where the content begins in the archive."""

    __slots__ = (
        "accessed", "device", "extents", "gid", "hard_link", "kind", "link", "mode", "modified", "name", "offset",
        "size", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, name: bytes, kind: int = stat.S_IFREG) -> None:
        self.name = name
        self.kind = kind
        self.mode = 0o644  # without the kind
        self.uid = 0
        self.gid = 0
        self.modified = 0
        self.accessed = 0
        self.size = 0  # of a regular file, holes included
        self.link = b""  # where a symbolic link leads, or the name that this is another one of
        self.hard_link = False
        self.device = 0
        self.xattrs: dict[bytes, bytes] = {}
        self.extents: Extents | None = None  # None: not sparse
        self.offset = 0


def header(member: Member) -> bytes:
    """What stands before a member's content, its map of extents included. The content is that of the extents, or of the
    file, and is padded by `padding`."""
    records: list[tuple[bytes, bytes]] = [
        (b"mtime", _time_text(member.modified)),
        (b"atime", _time_text(member.accessed)),
    ]
    name = member.name + b"/" if member.kind == stat.S_IFDIR and not member.hard_link else member.name
    stored, table = member.size if member.kind == stat.S_IFREG and not member.hard_link else 0, b""
    if member.extents is not None and stored:
        table = _map(member.extents)
        stored = len(table) + sum([length for _, length in member.extents])
        records += [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", name)]
        records.append((b"GNU.sparse.realsize", b"%d" % member.size))
    if len(name) > 100 or not name.isascii():
        records.append((b"path", name))
    if len(member.link) > 100 or not member.link.isascii():
        records.append((b"linkpath", member.link))
    for key, number, digits in ((b"uid", member.uid, 7), (b"gid", member.gid, 7), (b"size", stored, 11)):
        if number >> 3 * digits:
            records.append((key, b"%d" % number))
    if member.kind == stat.S_IFSOCK:
        records.append((_SOCKET, b"1"))
    for attribute, value in member.xattrs.items():
        records.append((_XATTR + attribute.replace(b"%", b"%25").replace(b"=", b"%3D"), value))
    kind = b"1" if member.hard_link else _TYPES.get(member.kind, b"6")
    extension = b"".join([_record(key, value) for key, value in records])
    try:
        (name + member.link).decode()
    except UnicodeDecodeError:
        extension = _record(b"hdrcharset", b"BINARY") + extension
    return b"".join(
        (
            _extension_block(len(extension)),
            extension,
            bytes(padding(len(extension))),
            _block(name, kind, stored, member),
            table,
        )
    )


def padding(size: int) -> int:
    """Bytes after a content of this size."""
    return -size % BLOCK


def content_size(member: Member) -> int:
    """Bytes of content that follow the header and the map."""
    if member.kind != stat.S_IFREG or member.hard_link:
        return 0
    return member.size if member.extents is None else sum([length for _, length in member.extents])


def end() -> bytes:
    """What stands at an archive's end."""
    return _END


@lru_cache(1024)
def _extension_block(size: int) -> bytes:
    return _block(b"pax", b"x", size, Member(b""))


def _map(extents: Extents) -> bytes:
    text = b"".join([b"%d\n" % len(extents), *[b"%d\n%d\n" % extent for extent in extents]])
    return text + bytes(padding(len(text)))


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3  # a space, "=" and the line's end
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _time_text(value: int) -> bytes:
    seconds, part = divmod(abs(value), 1_000_000_000)
    return b"%s%d.%09d" % (b"-" if value < 0 else b"", seconds, part)


def _block(name: bytes, kind: bytes, size: int, member: Member) -> bytes:
    if kind in b"34":
        numbers = b"%07o\0%07o\0" % (os.major(member.device), os.minor(member.device))
    else:
        numbers = b"0000000\x000000000\0"
    first = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name[:100].ljust(100, b"\0"),
        member.mode & 0o7777,
        member.uid & 0o7777777,
        member.gid & 0o7777777,
        size & 0o77777777777,
        max(member.modified // 1_000_000_000, 0) & 0o77777777777,
    )
    rest = b"%s%s%s%s%s" % (kind, member.link[:100].ljust(100, b"\0"), _MAGIC, bytes(64), numbers)
    total = sum(first) + 8 * 32 + sum(rest)
    return (first + b"%06o\0 " % total + rest).ljust(BLOCK, b"\0")


Read = Callable[[int, int], bytes]  # size, offset


def members(read: Read, name: str) -> list[Member]:
    """All of an archive, by a function that reads from it, checked. `name` is what the archive is called in messages.
    UnusableImage."""
    found: list[Member] = []
    offset = 0
    try:
        while True:
            block = _exactly(read, BLOCK, offset)
            if block == bytes(BLOCK):
                break
            records: dict[bytes, bytes] = {}
            kind, size = _kind_and_size(block)
            if kind == b"x":
                if size > _LONGEST_EXTENSION:
                    raise ValueError("an extended header that is too long")
                records = _records(_exactly(read, size, offset + BLOCK))
                offset += BLOCK + size + padding(size)
                block = _exactly(read, BLOCK, offset)
                kind, size = _kind_and_size(block)
            offset += BLOCK
            member, size = _member(block, kind, size, records)
            start = offset
            if member.extents is not None:
                member.extents, offset = _read_map(read, offset, member.size)
                if offset - start + content_size(member) != size:
                    raise ValueError("a sparse file of another size than its map")
            member.offset = offset
            offset = start + size + padding(size)
            found.append(member)
        _check(found)
    except (ValueError, OverflowError) as error:
        raise UnusableImage(f"{name}: not an archive of a sandbox's files: {error} (near byte {offset})") from None
    return found


def _exactly(read: Read, size: int, offset: int) -> bytes:
    data = read(size, offset)
    if len(data) != size:
        raise ValueError("it ends too soon")
    return data


def _number(text: bytes) -> int:
    text = text.rstrip(b"\0 ")
    if not text or text.strip(b"01234567"):
        raise ValueError("a number that is none")
    return int(text, 8)


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise ValueError("a number that is none")
    return int(text)


def _time(text: bytes) -> int:
    sign = -1 if text[:1] == b"-" else 1
    seconds, _, part = text.lstrip(b"-").partition(b".")
    if len(seconds) > 12:
        raise ValueError("a time that is none")
    return sign * (_decimal(seconds) * 1_000_000_000 + _decimal(part[:9].ljust(9, b"0")))


def _kind_and_size(block: bytes) -> tuple[bytes, int]:
    if block[257:265] != _MAGIC:
        raise ValueError("a header that is none")
    if sum(block[:148]) + 8 * 32 + sum(block[156:]) != _number(block[148:156]):
        raise ValueError("a header with a wrong checksum")
    return block[156:157], _number(block[124:136])


def _records(data: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + 20)
        length = _decimal(data[start:space]) if space > 0 else 0
        line = data[space + 1 : start + length]
        if length < 5 or start + length > len(data) or line[-1:] != b"\n" or b"=" not in line:
            raise ValueError("an extended header that is none")
        key, _, value = line[:-1].partition(b"=")
        found[key] = value
        start += length
    return found


def _member(block: bytes, kind: bytes, size: int, records: dict[bytes, bytes]) -> tuple[Member, int]:
    """The member of a header, and the size of what follows it."""
    name = records.get(b"path", block[:100].rstrip(b"\0"))
    if b"GNU.sparse.name" in records:
        name = records[b"GNU.sparse.name"]
    member = Member(name.rstrip(b"/"))
    if kind == b"1":
        member.hard_link = True
    elif kind in _KINDS:
        member.kind = _KINDS[kind]
        if _SOCKET in records and kind == b"6":
            member.kind = stat.S_IFSOCK
    else:
        raise ValueError("a file of an unknown type")
    if kind in b"12":
        member.link = records.get(b"linkpath", block[157:257].rstrip(b"\0"))
    if kind in b"34":
        member.device = os.makedev(_number(block[329:337]), _number(block[337:345]))
    member.mode = _number(block[100:108]) & 0o7777
    member.uid = _decimal(records[b"uid"]) if b"uid" in records else _number(block[108:116])
    member.gid = _decimal(records[b"gid"]) if b"gid" in records else _number(block[116:124])
    if member.uid > _LARGEST_ID or member.gid > _LARGEST_ID:
        raise ValueError("an owner that cannot be")
    member.modified = _time(records[b"mtime"]) if b"mtime" in records else _number(block[136:148]) * 1_000_000_000
    member.accessed = _time(records[b"atime"]) if b"atime" in records else member.modified
    size = _decimal(records[b"size"]) if b"size" in records else size
    if size and kind != b"0":
        raise ValueError("content of what has none")
    member.size = size
    if b"GNU.sparse.realsize" in records:
        if kind != b"0" or records.get(b"GNU.sparse.major") != b"1":
            raise ValueError("a sparse file of an unknown form")
        member.size = _decimal(records[b"GNU.sparse.realsize"])
        member.extents = []
    if member.size >= 1 << 63:
        raise ValueError("a file that is too large")
    for key, value in records.items():
        if key.startswith(_XATTR):
            member.xattrs[key[len(_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")] = value
    return member, size


def _read_map(read: Read, offset: int, size: int) -> tuple[Extents, int]:
    """The extents of a sparse file of this size, and where its content begins."""
    text = b""
    start = offset
    count = -1
    missing = 1  # lines, each of two bytes or more
    while missing > 0:
        if missing * 2 + len(text) > _LONGEST_MAP:
            raise ValueError("a map of extents that is too long")
        wanted = missing * 2 + padding(missing * 2)
        text += _exactly(read, wanted, offset)
        offset += wanted
        if count < 0 and b"\n" in text:
            count = _decimal(text.partition(b"\n")[0])
        missing = 1 if count < 0 else 1 + 2 * count - text.count(b"\n")
    numbers = [_decimal(word) for word in text.split(b"\n")[1 : 1 + 2 * count]]
    extents = list(zip(numbers[::2], numbers[1::2], strict=True))
    last = 0
    for begin, length in extents:
        if begin < last or begin + length > size:
            raise ValueError("extents that cannot be")
        last = begin + length
    # Read in larger pieces than blocks, so that the end of the text says where the content begins.
    used = sum([len(line) + 1 for line in text.split(b"\n")[: 1 + 2 * count]])
    return extents, start + used + padding(used)


def _check(found: list[Member]) -> None:
    """ValueError."""
    names: dict[bytes, bool] = {}  # whether more names may be given to it
    chain: list[bytes] = []  # the directories that we are in
    for member in found:
        parent, slash, last = member.name.rpartition(b"/")
        if last in (b"", b".", b"..") or b"\0" in member.name or len(last) > 255:
            raise ValueError("a name that cannot be")
        if member.name in names:
            raise ValueError("a name that comes twice")
        while chain and chain[-1] != parent:
            chain.pop()
        if slash and not chain:
            raise ValueError("a file that lies in no directory")
        if member.hard_link and not names.get(member.link):
            raise ValueError("a hard link to nothing")
        if member.kind == stat.S_IFLNK and not (0 < len(member.link) < 4096 and b"\0" not in member.link):
            raise ValueError("a symbolic link that leads nowhere")
        is_directory = member.kind == stat.S_IFDIR and not member.hard_link
        names[member.name] = not is_directory
        if is_directory:
            chain.append(member.name)
