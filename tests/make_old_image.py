"""Made tests/data/image-schema-0, an image of a schema that today's trapline converts: python tests/make_old_image.py DIR

It writes an image of schema 1 and turns it into one of schema 0 (sentry/state/schema.py says how they differ). Not to be
run again for images that are in the tree: they are there to stay as they were written.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import xxhash

from trapline.sentry.kernel.state import KernelState, Task, ThreadGroup
from trapline.sentry.state import codec, manifest
from trapline.sentry.state.image_writer import ImageWriter
from trapline.sentry.state.manifest import Manifest
from trapline.sentry.state.records import (
    AddressSpace,
    Directories,
    Image,
    Mapping,
    PageRun,
    ProcessRecord,
    ThreadRecord,
)


def make(target: Path) -> None:
    """One process with one page."""
    thread = ThreadRecord(7, bytes(216), bytes(832), 0, b"sh", bytes(24))
    image = Image(
        spaces={1: AddressSpace([Mapping(0x10000, 0x11000, 3, "anonymous")], [0] * 11, b"")},
        processes=[ProcessRecord(7, 1, 1, 1, [thread], 1, comm=b"sh")],
        tables={1: {}},
        directories={1: Directories("/", "/", 0o27)},
    )
    kernel = KernelState(schema=0, groups={7: ThreadGroup(7, ppid=1, pgid=7, sid=7, threads={7: Task(7, 7)})})
    with ImageWriter(str(target)) as writer:
        offset = writer.allocate(4096)
        writer.write(offset, b"\x07" * 4096)
        writer.add_run(PageRun("s1", 0x10000, 4096, offset))
        facts = Manifest("seccomp", ["sh"], kernel_release="6.1.0", cpu_flags=["fpu"], created=1_700_000_000 * 10**9)
        written = writer.commit(kernel, image, facts)
    guests = msgspec.msgpack.decode((target / manifest.GUESTS).read_bytes())
    for directories in guests["directories"].values():
        directories["mask"] = directories.pop("umask")
    data = msgspec.msgpack.encode(guests)
    (target / manifest.GUESTS).write_bytes(data)
    value = codec.plain(written, json=True)
    value["files"][manifest.GUESTS] = {
        "size": len(data),
        "checksum": manifest.checksum_text(xxhash.xxh3_64_intdigest(data)),
    }
    value["schema"] = 0
    value["date"] = value.pop("created") // 10**9
    value["checksum"] = manifest.checksum_of(value)
    (target / manifest.NAME).write_bytes(codec.json_text(value))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
