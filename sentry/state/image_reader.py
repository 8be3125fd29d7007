"""Reading an image. It is input from outside: nothing in it is believed before it was checked.

When it is opened: the manifest, pages_meta.img, that every file is there and as long as the manifest says, and the same
of each parent. `kernel`, `image` and `open` check what they give against its checksum; blocks of pages are checked as
they are loaded, by `verify` or `read_block`. What the records say of each other: image_check.py.
"""

from __future__ import annotations

import errno
import io
import os
from types import TracebackType
from typing import Any, TypeVar

from trapline.sentry.kernel.state import KernelState
from trapline.sentry.state import codec, image_names, manifest, page_places, pages_meta, schema
from trapline.sentry.state.manifest import Manifest
from trapline.sentry.state.pages_meta import BLOCK, PAGE, PagesMeta
from trapline.sentry.state.records import Image, PageRun
from trapline.sentry.state.unusable import UnusableImage

T = TypeVar("T")

_READ = os.O_RDONLY
#: Images one after the other that are followed.
_DEEPEST = 65


class ImageReader:
    """An image that is open; a context manager. UnusableImage from everything."""

    def __init__(self, path: str) -> None:
        self._begin(path, [])

    def _begin(self, path: str, children: list[ImageReader]) -> None:
        self.path = path
        self.manifest = Manifest()
        #: This image, its parent, the parent's of that, ...: `PageRun.image` is an index of it.
        self.chain: list[ImageReader] = [self]
        #: Of its pages, uncompressed or not (page_places.py).
        self.pages_fds: list[int] = []
        self._directory = -1
        self._meta = PagesMeta(0, [], [], [], "none")
        self._local: Any = None
        #: Files that had their checksum: what they were then, so that a large one is not read twice.
        self._summed: dict[str, tuple[int, int, int, int]] = {}
        try:
            self._open(children)
        except OSError as error:
            self.close()
            raise UnusableImage(f"{path}: {error.strerror or error}") from None
        except BaseException:
            self.close()
            raise

    def _open(self, children: list[ImageReader]) -> None:
        if "\0" in self.path:
            raise UnusableImage(f"{self.path}: there is no such directory")
        try:
            self._directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UnusableImage(f"{self.path}: there is no such directory") from None
        except NotADirectoryError:
            raise UnusableImage(f"{self.path}: it is no directory, and so no image") from None
        self._check_cycle(children)
        self._read_manifest()
        self._check_files()
        self._open_parent(children)
        try:
            self._meta = pages_meta.decode(self._whole(manifest.META))
            self._check_pages()
        except codec.Malformed as error:
            raise self._wrong(manifest.META, str(error)) from None

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """This image and its parents. Twice is once."""
        for parent in self.chain[1:2]:
            parent.close()
        for fd in self.pages_fds:
            os.close(fd)
        if self._directory >= 0:
            os.close(self._directory)
        self.pages_fds, self._directory = [], -1

    def _wrong(self, name: str, what: str) -> UnusableImage:
        return UnusableImage(f"{os.path.join(self.path, name)}: {what}")

    # -- opening

    def _check_cycle(self, children: list[ImageReader]) -> None:
        status = os.fstat(self._directory)
        for child in children:
            other = os.fstat(child._directory)
            if (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino):
                raise UnusableImage(f"{self.path}: it is an ancestor of itself")
        if len(children) >= _DEEPEST:
            raise UnusableImage(f"{self.path}: it is the parent of more than {_DEEPEST - 1} images in a row")

    def _read_manifest(self) -> None:
        name = manifest.NAME
        fd = self._open_file(name)
        try:
            size = image_names.size_of(fd)
            if not 0 <= size <= manifest.LONGEST:
                raise self._wrong(name, "it is no manifest")
            data = _read_all(fd, size)
        finally:
            os.close(fd)
        try:
            loose = manifest.loose(data)
            schema.check(loose["schema"])
            self._schema: int = loose["schema"]
            self.manifest = codec.typed(schema.upgrade("manifest", loose, self._schema), Manifest)
        except codec.Malformed as error:
            raise self._wrong(name, str(error)) from None
        found = self.manifest
        if found.compression not in manifest.PAGES:
            raise self._wrong(name, f"there is no compression {found.compression}")
        if found.page_size != PAGE:
            raise self._wrong(name, f"it is of a machine with pages of {found.page_size} bytes")
        for field in manifest.NUMBERS:
            if not 0 <= getattr(found, field) < 1 << 63:
                raise self._wrong(name, f"{field} is out of range")
        for needed in (manifest.KERNEL, manifest.GUESTS, manifest.META, manifest.PAGES[found.compression][0]):
            if needed not in found.files:
                raise self._wrong(name, f"it does not name {needed}")
        for file, facts in found.files.items():
            if not image_names.is_good(file) or file == name:
                raise self._wrong(name, f"it names a file that cannot be part of an image: {file}")
            if not 0 <= facts.size < 1 << 63:
                raise self._wrong(name, f"{file} cannot have {facts.size} bytes")

    def _open_file(self, name: str) -> int:
        try:
            return image_names.open_in(self._directory, name, _READ)
        except FileNotFoundError:
            raise self._wrong(name, "it is missing") from None
        except OSError as error:
            if error.errno in _NO_FILE:
                raise self._wrong(name, "it is no regular file in the image's directory") from None
            raise self._wrong(name, error.strerror or str(error)) from None

    def _open_checked(self, name: str) -> int:
        """A file that the manifest names, as long as it says."""
        fd = self._open_file(name)
        size, expected = image_names.size_of(fd), self.manifest.files[name].size
        if size == expected:
            return fd
        os.close(fd)
        if size < 0:
            raise self._wrong(name, "it is no regular file in the image's directory")
        raise self._wrong(name, f"it has {size} bytes, and the manifest says {expected}")

    def _check_files(self) -> None:
        pages = manifest.PAGES[self.manifest.compression]
        for name in self.manifest.files:
            if name not in pages:
                os.close(self._open_checked(name))
        for name in pages:
            if name in self.manifest.files:
                self.pages_fds.append(self._open_checked(name))

    def _open_parent(self, children: list[ImageReader]) -> None:
        parent = self.manifest.parent
        if parent is None:
            return
        # The path goes by what this directory is, not by how it was named: links on the way to it may be others.
        where = os.path.join(os.path.realpath(self.path), parent.path)
        found = ImageReader.__new__(ImageReader)
        try:
            found._begin(os.path.normpath(where), [*children, self])
        except UnusableImage as error:
            raise UnusableImage(f"{self.path}: its parent cannot be used: {error}") from None
        self.chain += found.chain
        if found.manifest.checksum != parent.checksum:
            raise UnusableImage(f"{self.path}: its parent {found.path} is another image now than at the save")

    def _check_pages(self) -> None:
        """That runs and frames lie within the files. codec.Malformed."""
        meta, names = self._meta, manifest.PAGES[self.manifest.compression]
        sizes = [self.manifest.files[name].size for name in names if name in self.manifest.files]
        if meta.compression != self.manifest.compression:
            raise codec.Malformed(f"its compression is {meta.compression}, and the manifest's another")
        if meta.files != len(sizes):
            raise codec.Malformed(f"it is of {meta.files} files of pages, and the manifest of {len(sizes)}")
        if meta.compression == "none" and sizes != [
            page_places.size_of(meta.size, meta.files, file) for file in range(meta.files)
        ]:
            raise codec.Malformed(f"it is of {meta.size} bytes of pages, and there are {sum(sizes)}")
        frames = meta.frames
        if any(o + n > sizes[0] or n > _LONGEST_FRAME for o, n in zip(frames[::2], frames[1::2], strict=True)):
            raise codec.Malformed("a block is not within the file of pages")
        pages = [image._meta.size for image in self.chain]
        for run in meta.runs:
            if run.image >= len(pages) or run.offset + run.size > pages[run.image]:
                raise codec.Malformed(f"the pages at {run.start:#x} of {run.owner} are not within any file of pages")

    # -- records and files

    def _whole(self, name: str) -> bytes:
        """All of a file, against its checksum."""
        import xxhash

        fd = self._open_checked(name)
        try:
            data = _read_all(fd, self.manifest.files[name].size)
        except OSError as error:
            raise self._wrong(name, error.strerror or str(error)) from None
        finally:
            os.close(fd)
        if manifest.checksum_text(xxhash.xxh3_64_intdigest(data)) != self.manifest.files[name].checksum:
            raise self._wrong(name, "its checksum is not the manifest's: it was damaged or changed")
        return data

    def _record(self, name: str, part: str, kind: type[T]) -> T:
        data = self._whole(name)
        try:
            if self._schema == manifest.SCHEMA:
                return codec.unpack(data, kind)
            return codec.typed(schema.upgrade(part, codec.loose(data), self._schema), kind)
        except codec.Malformed as error:
            raise self._wrong(name, str(error)) from None

    def kernel(self) -> KernelState:
        """The kernel's state."""
        state = self._record(manifest.KERNEL, "kernel", KernelState)
        if state.schema != manifest.SCHEMA:
            raise self._wrong(manifest.KERNEL, f"it is of schema {state.schema}, and the manifest is not")
        return state

    def image(self) -> Image:
        """What was the host's inside guests. `image_check.check` says whether it makes sense."""
        return self._record(manifest.GUESTS, "guests", Image)

    def open(self, name: str) -> io.BufferedReader:
        """A further file, whose content was checked."""
        if name not in self.manifest.files:
            raise self._wrong(name, "it is missing")
        fd = self._open_checked(name)
        try:
            status = os.fstat(fd)
            seen = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if self._summed.get(name) != seen:
                if manifest.checksum_text(image_names.sum_of(fd)) != self.manifest.files[name].checksum:
                    raise self._wrong(name, "its checksum is not the manifest's: it was damaged or changed")
                self._summed[name] = seen
        except OSError as error:
            os.close(fd)
            raise self._wrong(name, error.strerror or str(error)) from None
        except BaseException:
            os.close(fd)
            raise
        return io.BufferedReader(io.FileIO(fd, "r"))

    def check_files(self) -> None:
        """That every file but pages has its checksum."""
        pages = manifest.PAGES[self.manifest.compression]
        for name in self.manifest.files:
            if name not in pages:
                self.open(name).close()

    # -- pages

    def runs(self) -> list[PageRun]:
        """All pages of the sandbox, its parents' among them (`PageRun.image`); in no order, and none twice."""
        return list(self._meta.runs)

    @property
    def blocks(self) -> int:
        """How many blocks of 256 KiB this image's own pages are."""
        return self._meta.blocks

    @property
    def pages_size(self) -> int:
        """Bytes of this image's own pages, uncompressed."""
        return self._meta.size

    @property
    def compression(self) -> str:
        return self.manifest.compression

    def verify(self, block: int, data: bytes | bytearray | memoryview) -> bool:
        """Whether these bytes are a block of this image's own pages, all of it."""
        import xxhash

        if not 0 <= block < self._meta.blocks or len(data) != self._meta.length(block):
            return False
        return xxhash.xxh3_64_intdigest(data) == self._meta.sums[block]

    def read_block(self, block: int) -> bytes:
        """A block of this image's own pages, uncompressed and checked. Several threads may do so at once."""
        try:
            size = self._meta.length(block)
            data = self._frame(block) if self._meta.frames else self._piece(*self._place(block), size)
        except OSError as error:
            raise self.bad_block(block, f"cannot be read: {error.strerror or error}") from None
        if not self.verify(block, data):
            raise self.bad_block(block, "is damaged")
        return data

    def _place(self, block: int) -> tuple[int, int]:
        """Its file, of `pages_fds`, and the offset in it; uncompressed."""
        return page_places.place(block * BLOCK, len(self.pages_fds))

    def bad_block(self, block: int, what: str) -> UnusableImage:
        """What to raise for a block of this image's own pages."""
        file, at = self._place(block)
        return self._wrong(manifest.PAGES[self.manifest.compression][file], f"block {block}, from {at:#x} on, {what}")

    def _piece(self, file: int, offset: int, size: int) -> bytes:
        parts = []
        while size and (part := os.pread(self.pages_fds[file], size, offset)):
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _frame(self, block: int) -> bytes:
        """A block, uncompressed; b"" where that cannot be done."""
        import zstandard

        data = self._piece(0, *self._meta.frames[2 * block : 2 * block + 2])
        try:
            # What a frame says of its content's size is believed, and so much memory allocated, before it is read.
            if zstandard.get_frame_parameters(data).content_size != self._meta.length(block):
                return b""
            return bytes(self._decompressor().decompress(data))
        except zstandard.ZstdError:
            return b""

    def _decompressor(self) -> Any:
        """This thread's: none may be used by two."""
        import threading

        import zstandard

        if self._local is None:
            self._local = threading.local()
        found = getattr(self._local, "decompressor", None)
        if found is None:
            found = self._local.decompressor = zstandard.ZstdDecompressor()
        return found

    def check_pages(self) -> None:
        """That every block is right, the parents' too."""
        for image in self.chain:
            for block in range(image.blocks):
                image.read_block(block)


#: Of a block that cannot be compressed, with room to spare.
_LONGEST_FRAME = BLOCK + (BLOCK >> 4)
_NO_FILE = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)


def _read_all(fd: int, size: int) -> bytes:
    """So many bytes from the beginning, fewer where the file became shorter."""
    parts = []
    while size > 0 and (part := os.read(fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
