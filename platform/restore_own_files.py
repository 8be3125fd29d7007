"""Giving a new sandbox the own files of a saved one (capture_own_files.py), while its mounts are made.

An upper layer is filled before its overlay is mounted, so what hides files of the host's is a file there like any
other. File systems in memory are filled once all is mounted; what they hold by then and the archive does not (a device
that a guest had deleted) goes, what is mounted in them stays. The archive is read and checked before anything is
started, in the sentry; pid 1 of the new sandbox inherits it. All is created below directories that are held open, and
no link is followed.

Sources: overlayfs.rst of the kernel's documentation, mknod(2), utimensat(2), xattr(7).
"""

from __future__ import annotations

import errno
import os
import stat

import msgspec

from trapline.platform import own_layers
from trapline.platform.capture_own_files import LIST
from trapline.platform.own_layers import Layer
from trapline.sentry.state import archive
from trapline.sentry.state.archive import Member
from trapline.sentry.state.unusable import UnusableImage

_PIECE = 1 << 20  # bytes copied at a time
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_LIST = 16 << 20  # bytes


class CannotFill(Exception):
    """Files that cannot be put back. Its text is one line. It is no OSError: where an overlay cannot be had, the set-up
    does without, and the files would be lost."""


class SavedFiles:
    """The archive of a sandbox's own files. `handle` is a descriptor of it, which may be read at any offset and stays
    its owner's. UnusableImage where it is none, with `name` in the text."""

    def __init__(self, handle: int, name: str = "files/upper.tar") -> None:
        self.handle = handle
        self._name = name
        found = archive.members(lambda size, offset: os.pread(handle, size, offset), name)
        self._layers = self._read_list(found)
        self._members: list[list[Member]] = [[] for _ in self._layers]
        for member in found[1:]:
            top = member.name.partition(b"/")[0]
            number = int(top) if top.isdigit() and len(top) < 8 else len(self._layers)
            if number >= len(self._layers) or b"%d" % number != top:
                raise UnusableImage(f"{name}: a file of no layer: {os.fsdecode(member.name)}")
            if member.hard_link and not member.link.startswith(top + b"/"):
                raise UnusableImage(f"{name}: a hard link out of its layer: {os.fsdecode(member.name)}")
            self._members[number].append(member)
        for layer, members in zip(self._layers, self._members, strict=True):
            if not members or members[0].kind != stat.S_IFDIR or members[0].hard_link:
                raise UnusableImage(f"{name}: nothing is known of {layer.path}")
        self._placed: set[int] = set()

    def _read_list(self, found: list[Member]) -> list[Layer]:
        if not found or found[0].name != LIST or found[0].size > _LONGEST_LIST or found[0].extents is not None:
            raise UnusableImage(f"{self._name}: the list of layers is missing")
        try:
            layers = own_layers.decode(os.pread(self.handle, found[0].size, found[0].offset))
        except (msgspec.DecodeError, ValueError) as error:
            raise UnusableImage(f"{self._name}: the list of layers: {error}") from None
        for layer in layers:
            if layer.kind not in ("overlay", "tmpfs") or layer.path[:1] != "/":
                raise UnusableImage(f"{self._name}: a layer that cannot be: {layer.kind} {layer.path}")
        return layers

    def fill_upper(self, path: str, directory: str) -> None:
        """Fill the upper layer, a new directory, of the overlay that is to show at `path`. CannotFill."""
        for index, layer in enumerate(self._layers):
            if layer.kind == "overlay" and layer.path == path and index not in self._placed:
                self._placed.add(index)
                handle = os.open(directory, _DIRECTORY)
                self._fill(index, handle, False)
                return

    def not_mounted(self, path: str) -> None:
        """The overlay at `path` could not be mounted: what was put into its upper layer has found no place."""
        self._placed = {index for index in self._placed if self._layers[index].path != path}

    def fill_mounts(self, layers: list[Layer]) -> None:
        """In the new root: fill the file systems in memory. Then everything must have found its place.
        CannotFill, OSError, UnusableImage."""
        for index, layer in enumerate(self._layers):
            if layer.kind != "tmpfs":
                continue
            for made in layers:
                if made.kind == "tmpfs" and made.path == layer.path:
                    handle = os.open(layer.path, _DIRECTORY)
                    if os.fstat(handle).st_dev != made.device:
                        os.close(handle)  # something else is mounted over this one
                        continue
                    self._placed.add(index)
                    self._fill(index, handle, True)
                    break
        for index, layer in enumerate(self._layers):
            if index not in self._placed and len(self._members[index]) > 1:
                here = "an overlay of its own" if layer.kind == "overlay" else "a file system in memory"
                text = f"it has files in {layer.path}, which is not {here} in the new sandbox"
                raise UnusableImage(f"{self._name}: {text}")

    def has(self, path: str) -> bool:
        """Whether an upper layer that was filled holds something at this path of the sandbox's root, or hides it."""
        best = -1
        for index in self._placed:
            layer = self._layers[index]
            inside = layer.path == "/" or path == layer.path or path.startswith(layer.path + "/")
            if layer.kind == "overlay" and inside and (best < 0 or len(layer.path) > len(self._layers[best].path)):
                best = index
        if best < 0:
            return False
        inner = os.fsencode(path[len(self._layers[best].path.rstrip("/")) :])
        names = {member.name for member in self._members[best]}
        return b"%d%s" % (best, inner) in names

    def _fill(self, index: int, handle: int, replace: bool) -> None:
        """`handle` becomes ours."""
        try:
            _Filler(self.handle, self._members[index], replace).fill(handle)
        except OSError as error:
            what = f"the files in {self._layers[index].path} cannot be put back: "
            if error.errno in (errno.EINVAL, errno.EPERM):  # chown(2) in a user namespace; privileged attributes
                what += "they belong to somebody who this user is not: "
            raise CannotFill(what + (error.strerror or str(error))) from None


class _Filler:
    """One layer. Only one directory is open at a time."""

    def __init__(self, source: int, members: list[Member], replace: bool) -> None:
        self._source = source
        self._members = members
        self._replace = replace
        self._at = -1
        self._device = 0
        self._top = -1
        self._children: dict[bytes, set[bytes]] = {}
        if replace:
            for member in members[1:]:
                parent, _, name = member.name.rpartition(b"/")
                self._children.setdefault(parent, set()).add(name)

    def fill(self, handle: int) -> None:
        """`handle`: the directory of the first member; becomes ours."""
        self._at = handle
        self._top = os.dup(handle)
        self._device = os.fstat(handle).st_dev
        chain = [self._members[0]]  # the directories that we are in
        skipped = b""  # a directory where something else is mounted
        try:
            self._begin(chain[0])
            for member in self._members[1:]:
                if skipped and member.name.startswith(skipped):
                    continue
                parent, _, name = member.name.rpartition(b"/")
                while chain[-1].name != parent:
                    self._leave(chain.pop())
                if not self._make_way(member, name):
                    skipped = member.name + b"/"
                elif member.kind == stat.S_IFDIR and not member.hard_link:
                    self._enter(name)
                    chain.append(member)
                    self._begin(member)
                else:
                    self._create(member, name)
            while len(chain) > 1:
                self._leave(chain.pop())
            os.utime(self._at, ns=(chain[0].accessed, chain[0].modified))
        finally:
            os.close(self._at)
            os.close(self._top)

    def _enter(self, name: bytes) -> None:
        there = os.open(name, _DIRECTORY, dir_fd=self._at)
        os.close(self._at)
        self._at = there

    def _leave(self, member: Member) -> None:
        # The last thing that is done to it: each file that is made in a directory changes its times.
        os.utime(self._at, ns=(member.accessed, member.modified))
        self._enter(b"..")

    def _begin(self, member: Member) -> None:
        """A directory that we have just entered: its attributes, and nothing in it but what is the archive's."""
        own = f"/proc/self/fd/{self._at}"
        if self._replace:
            wanted = self._children.get(member.name, set())
            for name in os.listdir(self._at):
                if os.fsencode(name) not in wanted:
                    self._remove(self._at, name)
            for attribute in os.listxattr(self._at):
                if attribute != "security.selinux" and os.fsencode(attribute) not in member.xattrs:
                    os.removexattr(self._at, attribute)
        os.chown(self._at, member.uid, member.gid)
        os.chmod(self._at, member.mode)
        _set_attributes(own, member, follow=True)

    def _remove(self, directory: int, name: str) -> None:
        """All of it, but for what is mounted there."""
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if found.st_dev != self._device:
            return
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=directory)
            return
        inner = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            for each in os.listdir(inner):
                self._remove(inner, each)
        finally:
            os.close(inner)
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                raise

    def _make_way(self, member: Member, name: bytes) -> bool:
        """Whether this member may be made; a directory then exists."""
        is_directory = member.kind == stat.S_IFDIR and not member.hard_link
        if self._replace:
            try:
                found = os.stat(name, dir_fd=self._at, follow_symlinks=False)
            except FileNotFoundError:
                found = None
            if found is not None:
                if found.st_dev != self._device:
                    return False
                if is_directory and stat.S_ISDIR(found.st_mode):
                    return True
                self._remove(self._at, os.fsdecode(name))
        if is_directory:
            os.mkdir(name, 0o700, dir_fd=self._at)
        return True

    def _create(self, member: Member, name: bytes) -> None:
        if member.hard_link:
            old = os.path.relpath(member.link, self._members[0].name)
            os.link(old, name, src_dir_fd=self._top, dst_dir_fd=self._at, follow_symlinks=False)
            return
        if member.kind == stat.S_IFREG:
            self._regular(member, name)
            return
        if member.kind == stat.S_IFLNK:
            os.symlink(member.link, name, dir_fd=self._at)
        else:
            os.mknod(name, member.kind | 0o600, member.device, dir_fd=self._at)
        os.chown(name, member.uid, member.gid, dir_fd=self._at, follow_symlinks=False)
        place = b"/proc/self/fd/%d/%s" % (self._at, name)
        if member.kind != stat.S_IFLNK:
            os.chmod(place, member.mode)
        _set_attributes(place, member, follow=False)
        os.utime(name, ns=(member.accessed, member.modified), dir_fd=self._at, follow_symlinks=False)

    def _regular(self, member: Member, name: bytes) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(name, flags, 0o600, dir_fd=self._at)
        try:
            offset = member.offset
            if member.extents is None:
                self._copy(handle, 0, offset, member.size)
            else:
                os.ftruncate(handle, member.size)
                for start, size in member.extents:
                    self._copy(handle, start, offset, size)
                    offset += size
            os.chown(handle, member.uid, member.gid)
            os.chmod(handle, member.mode)
            _set_attributes(handle, member, follow=True)
            os.utime(handle, ns=(member.accessed, member.modified))
        finally:
            os.close(handle)

    def _copy(self, handle: int, start: int, offset: int, size: int) -> None:
        while size:
            data = os.pread(self._source, min(size, _PIECE), offset)
            if not data:
                raise OSError(errno.EIO, "the archive became shorter while it was read")
            done = 0
            while done < len(data):
                done += os.pwrite(handle, data[done:] if done else data, start + done)
            start += done
            offset += done
            size -= done


def _set_attributes(place: int | str | bytes, member: Member, follow: bool) -> None:
    for attribute, value in member.xattrs.items():
        os.setxattr(place, attribute, value, follow_symlinks=follow)
