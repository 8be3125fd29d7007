"""manifest.json: what an image is, where it was made, and which files it consists of."""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from trapline.sentry.state import codec

#: Of all records of an image. What changed from one to the next, and how older images are read: schema.py.
SCHEMA = 1
NAME = "manifest.json"
KERNEL = "kernel.msgpack"
GUESTS = "guests.msgpack"
META = "pages_meta.img"
#: Compression: the names of the files with pages (page_places.py). Images made before 2026-11-28 have the first alone.
PAGES = {"none": ("pages.img", "pages.1.img"), "zstd": ("pages.img.zst",)}
#: Fields that are numbers of 63 bits.
NUMBERS = (
    "checkpoint_count", "processes", "threads", "realtime", "monotonic", "boottime", "xsave_size", "created",
)  # fmt: skip
#: Bytes of a manifest that is read at all.
LONGEST = 64 << 20


class File(msgspec.Struct):
    """Another file of the image."""

    size: int
    checksum: str = ""  # of its content; "" of pages, whose blocks have theirs in pages_meta.img


class Parent(msgspec.Struct):
    """The image that this one is the difference to."""

    path: str  # from this image's directory
    checksum: str  # of its manifest


class Manifest(msgspec.Struct):
    """What stands in it. Whoever saves gives what only they know; `complete` and the writer fill in the rest."""

    platform: str = ""
    command: list[str] = []
    options: dict[str, Any] = {}  # with which the sandbox is started again
    checkpoint_count: int = 0
    processes: int = 0
    threads: int = 0
    realtime: int = 0  # the sandbox's clocks at the save, ns
    monotonic: int = 0
    boottime: int = 0
    xsave_size: int = 0  # bytes of the host's extended state: NT_X86_XSTATE
    dropped: list[str] = []  # what --drop left out
    schema: int = SCHEMA
    trapline: str = ""  # version
    created: int = 0  # the host's REALTIME, ns
    kernel_release: str = ""  # of the host: uname(2)
    cpu_flags: list[str] = []  # of the host: flags of /proc/cpuinfo
    page_size: int = 0
    compression: str = "none"
    parent: Parent | None = None
    files: dict[str, File] = {}
    checksum: str = ""  # of this manifest without this field, in `codec.canonical`


def complete(manifest: Manifest) -> None:
    """Fill in what is the same for every sandbox of this host, where it is not filled in yet."""
    from trapline import __version__

    manifest.trapline = manifest.trapline or __version__
    manifest.created = manifest.created or time.time_ns()
    manifest.kernel_release = manifest.kernel_release or os.uname().release
    manifest.page_size = manifest.page_size or os.sysconf("SC_PAGESIZE")
    manifest.cpu_flags = manifest.cpu_flags or cpu_flags()


def cpu_flags() -> list[str]:
    """The features of the host's first CPU, as Linux names them."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("flags"):
                return line.partition(":")[2].split()
    return []


def checksum_text(number: int) -> str:
    """XXH3_64 as it is written: 16 hexadecimal digits."""
    return f"{number:016x}"


def checksum_of(value: dict[str, Any]) -> str:
    """The checksum that a manifest, as `codec.plain` gives it, has to have."""
    import xxhash

    rest = {key: entry for key, entry in value.items() if key != "checksum"}
    return checksum_text(xxhash.xxh3_64_intdigest(codec.canonical(rest)))


def text(manifest: Manifest) -> bytes:
    """manifest.json, with its checksum, which is set."""
    value = codec.plain(manifest, json=True)
    manifest.checksum = value["checksum"] = checksum_of(value)
    return codec.json_text(value)


def loose(data: bytes) -> dict[str, Any]:
    """What stands in a manifest.json whose form and checksum are right, of whatever schema. codec.Malformed."""
    value = codec.from_json(data)
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
        raise codec.Malformed("it is no manifest: it has no schema")
    if value.get("checksum") != checksum_of(value):
        raise codec.Malformed("its checksum is wrong: it was damaged or edited")
    try:
        found = codec.unescaped(value)
    except ValueError as error:
        raise codec.Malformed(str(error)) from None
    assert isinstance(found, dict)
    return found
