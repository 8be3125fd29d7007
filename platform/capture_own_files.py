"""Saving a sandbox's own files, while its guests stand still, as an archive (archive.py).

The upper layers of its overlays are saved as they lie on their file system: what hides a file of the host's (a device
0:0), what marks a directory as not merged with the host's or as renamed (extended attributes) are files and attributes
like others there. So is all that lies in the file systems in memory that guests can write to, but for what else is
mounted in them. Sources: overlayfs.rst of the kernel's documentation, inode(7), lseek(2) (SEEK_DATA).

The first member is the list of layers; each layer is a directory named by its place in that list.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from trapline.platform import own_layers, setup_calls
from trapline.platform.capture_entry import Entry, Sink, work_inside
from trapline.sentry.state import archive
from trapline.sentry.state.archive import Member
from trapline.sentry.state.unsavable import Unsavable

if TYPE_CHECKING:
    from trapline.platform.namespaces import Sandbox

LIST = b"layers.json"
_PIECE = 1 << 20  # bytes read at a time
_SYS_OPENAT2, _RESOLVE_IN_ROOT = 437, 0x10
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME


def capture_own_files(sandbox: Sandbox, sink: Sink, strangers: set[int]) -> list[str]:
    """Write the archive by `sink`, which takes it in pieces and keeps none of them; notes on what is not in it, one
    line each.

    `strangers` is `Session.strangers`. Unsavable for a file that cannot be read; OSError, also the sink's.
    """
    stage, root = sandbox.stage, sandbox.root
    layers = own_layers.read(stage)
    notes = []
    if not any(layer.kind == "overlay" for layer in layers):
        notes.append("the root directory is not the sandbox's own, so what was written there is not in the checkpoint")

    def work(entry: Entry) -> bytes:
        _save(stage, root, layers, entry.sink)
        return b""

    work_inside(sandbox.init_pid, False, work, sink, strangers, [])
    return notes


def _save(stage: int, root: int, layers: list[own_layers.Layer], sink: Sink) -> None:
    opened = [(layer, _open(stage, root, layer)) for layer in layers]
    try:
        seen = [(layer, handle) for layer, handle in opened if handle >= 0]
        first = Member(LIST)
        listing = own_layers.encode([layer for layer, _ in seen])
        first.size = len(listing)
        sink(archive.header(first) + listing + bytes(archive.padding(len(listing))))
        for index, (layer, handle) in enumerate(seen):
            _Walk(b"%d" % index, layer.path, sink).save(handle)
        sink(archive.end())
    finally:
        for _, handle in opened:
            if handle >= 0:
                os.close(handle)


def _open(stage: int, root: int, layer: own_layers.Layer) -> int:
    """A layer's top directory; -1 where something else is mounted over it, so that nobody can see it."""
    try:
        if layer.kind == "overlay":
            return os.open(f"upper/{layer.number}", _OPEN_DIRECTORY, dir_fd=stage)
        how = setup_calls.open_how(os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, _RESOLVE_IN_ROOT)
        path = os.fsencode(layer.path) + b"\0"
        handle = setup_calls.syscall(layer.path, _SYS_OPENAT2, root, path, how, len(how))
    except OSError as error:
        raise Unsavable(f"the sandbox's files in {layer.path}: {error.strerror}") from None
    if os.fstat(handle).st_dev != layer.device:
        os.close(handle)
        return -1
    return handle


class _Walk:
    """One layer. Only one directory is open at a time, so that depth is no matter."""

    def __init__(self, top: bytes, shown: str, sink: Sink) -> None:
        self._top = top
        self._shown = shown
        self._write = sink
        self._waiting = bytearray()  # what is written: many files are small
        self._sink_error: OSError | None = None
        self._device = 0
        self._links: dict[int, bytes] = {}  # inode: the name that came first
        self._buffer = bytearray()

    def save(self, handle: int) -> None:
        """All below a directory, which stays open."""
        found = os.fstat(handle)
        self._device = found.st_dev
        names = [self._top]
        at = os.dup(handle)
        try:
            self._sink(archive.header(self._member(self._top, found, f"/proc/self/fd/{handle}", follow=True)))
            pending = [self._entries(handle, self._top)]
            while pending:
                if not pending[-1]:
                    pending.pop()
                    names.pop()
                    if pending:
                        at = _step(at, "..")
                    continue
                name = pending[-1].pop()
                at = _step(at, name)
                names.append(os.fsencode(name))
                path = b"/".join(names)
                self._sink(archive.header(self._member(path, os.fstat(at), f"/proc/self/fd/{at}", follow=True)))
                pending.append(self._entries(at, path))
            self._flush()
        except OSError as error:
            if error is self._sink_error:
                raise
            raise Unsavable(f"{self._where(b'/'.join(names))}: {error.strerror}") from None
        finally:
            os.close(at)

    def _sink(self, data: bytes | memoryview) -> None:
        self._waiting += data
        if len(self._waiting) >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, bytearray()
        if waiting:
            self._put(waiting)

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._write(data)
        except OSError as error:
            self._sink_error = error
            raise

    def _where(self, name: bytes) -> str:
        return os.path.join(self._shown, os.fsdecode(name[len(self._top) + 1 :]))

    def _entries(self, handle: int, path: bytes) -> list[str]:
        """Save what lies in a directory and is none itself; the names of the directories."""
        directories = []
        with os.scandir(handle) as entries:
            listed = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        for name, found in listed:
            if found.st_dev != self._device:
                continue  # mounted here: not this layer's
            if stat.S_ISDIR(found.st_mode):
                directories.append(name)
            else:
                self._file(handle, name, path + b"/" + os.fsencode(name), found)
        return directories

    def _file(self, directory: int, name: str, path: bytes, found: os.stat_result) -> None:
        if found.st_nlink > 1 and not _is_whiteout(found):
            first = self._links.setdefault(found.st_ino, path)
            if first != path:
                member = Member(path)
                member.hard_link, member.link = True, first
                self._sink(archive.header(member))
                return
        member = self._member(path, found, f"/proc/self/fd/{directory}/{name}", follow=False)
        if member.kind == stat.S_IFLNK:
            member.link = os.fsencode(os.readlink(name, dir_fd=directory))
        elif member.kind in (stat.S_IFCHR, stat.S_IFBLK):
            member.device = found.st_rdev
        elif member.kind == stat.S_IFREG and found.st_size:
            self._content(directory, name, member, found)
            return
        self._sink(archive.header(member))

    def _member(self, path: bytes, found: os.stat_result, place: str, follow: bool) -> Member:
        member = Member(path, stat.S_IFMT(found.st_mode))
        member.mode = stat.S_IMODE(found.st_mode)
        member.uid, member.gid = found.st_uid, found.st_gid
        member.modified, member.accessed = found.st_mtime_ns, found.st_atime_ns
        for attribute in os.listxattr(place, follow_symlinks=follow):
            if attribute != "security.selinux":  # it is the file system's, which is another one then
                member.xattrs[os.fsencode(attribute)] = os.getxattr(place, attribute, follow_symlinks=follow)
        return member

    def _content(self, directory: int, name: str, member: Member, found: os.stat_result) -> None:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME, dir_fd=directory)
        try:
            member.size = found.st_size
            parts = [(0, found.st_size)]
            if found.st_blocks * 512 < found.st_size:
                member.extents = parts = _extents(handle, found.st_size)
            self._sink(archive.header(member))
            for start, size in parts:
                self._copy(handle, start, size)
            self._sink(bytes(archive.padding(archive.content_size(member))))
        finally:
            os.close(handle)

    def _copy(self, handle: int, start: int, size: int) -> None:
        if not self._buffer:
            self._buffer = bytearray(_PIECE)
        with memoryview(self._buffer) as view:
            while size:
                got = os.preadv(handle, [view[: min(size, _PIECE)]], start)
                if not got:
                    raise OSError(errno.EIO, "it became shorter while it was read")
                if got < _PIECE:
                    self._sink(view[:got])
                else:
                    self._flush()
                    self._put(view)
                start += got
                size -= got


def _step(at: int, name: str) -> int:
    """Go on to another directory."""
    there = os.open(name, _OPEN_DIRECTORY, dir_fd=at)
    os.close(at)
    return there


def _is_whiteout(found: os.stat_result) -> bool:
    """The kernel gives what hides files one inode with many names; they have nothing to do with each other."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _extents(handle: int, size: int) -> archive.Extents:
    """Where a file has content (lseek(2), SEEK_DATA)."""
    found = []
    at = 0
    while at < size:
        try:
            start = os.lseek(handle, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        at = min(os.lseek(handle, start, os.SEEK_HOLE), size)
        found.append((start, at - start))
    return found
