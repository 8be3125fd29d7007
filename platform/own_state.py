"""A sandbox's own files and IPC objects as parts of an image: which files of it they are in, and how a sandbox that is
made from it gets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trapline.platform.capture_ipc import capture_ipc
from trapline.platform.capture_own_files import capture_own_files
from trapline.platform.restore_ipc import IpcRestorer
from trapline.platform.restore_own_files import SavedFiles

if TYPE_CHECKING:
    import io

    from trapline.platform.session import Session
    from trapline.sentry.state.image_reader import ImageReader
    from trapline.sentry.state.image_writer import ImageWriter
    from trapline.sentry.state.ipc import IpcRecord

FILES, SEGMENTS = "files/upper.tar", "ipc/segments.tar"


def save_files(session: Session, writer: ImageWriter) -> list[str]:
    """While guests stand still; notes on what is not in it. Unsavable, OSError, CannotWrite."""
    with writer.open(FILES) as file:
        return capture_own_files(session.sandbox, file.write, session.strangers)


def save_ipc(session: Session, writer: ImageWriter, refuse: Callable[[str], None]) -> IpcRecord:
    """While guests stand still. `refuse` is told what cannot be saved. Unsavable, OSError, CannotWrite."""
    opened: list[io.BufferedRandom] = []

    def sink(data: bytes | bytearray | memoryview) -> None:
        if not opened:
            opened.append(writer.open(SEGMENTS))
        opened[0].write(data)

    try:
        return capture_ipc(session.sandbox, sink, session.strangers, refuse)
    finally:
        for file in opened:
            file.close()


class SavedOwn:
    """What an image holds of them, checked. UnusableImage. `close` it once the sandbox is there."""

    def __init__(self, reader: ImageReader, ipc: IpcRecord) -> None:
        self._opened: list[io.BufferedReader] = []
        try:
            #: For namespaces.start, as the next two are.
            self.files: SavedFiles | None = None
            if FILES in reader.manifest.files:
                self.files = SavedFiles(self._open(reader, FILES), f"{reader.path}/{FILES}")
            segments = self._open(reader, SEGMENTS) if SEGMENTS in reader.manifest.files else -1
            self.prepare: Callable[[], None] = IpcRestorer(ipc, segments, f"{reader.path}/{SEGMENTS}").restore
            self.keep = [segments] if segments >= 0 else []
        except BaseException:
            self.close()
            raise

    def _open(self, reader: ImageReader, name: str) -> int:
        self._opened.append(reader.open(name))
        return self._opened[-1].fileno()

    def close(self) -> None:
        """Give the image's files back."""
        for file in self._opened:
            file.close()
        self._opened = []
