"""`trapline statefile`: what an image holds, for a person or for a program."""

from __future__ import annotations

import sys

from trapline.sentry.cli.flags import Flag, UsageError, VerbError, help_text, parse_mixed

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from typing import Any

    from trapline.sentry.kernel.state import KernelState
    from trapline.sentry.state.image_reader import ImageReader
    from trapline.sentry.state.records import Image

USAGE = "trapline statefile [FLAGS] DIR"
SUMMARY = (
    "Print what the image of a checkpoint holds, once it was checked as for a restore: its files against their "
    "checksums, and that everything in it makes sense. Nothing is started. An image that cannot be restored is one "
    "line that says why, and exit status 128."
)
MORE = """
examples:
  trapline statefile /var/tmp/box.image
  trapline statefile --verify --format json box.image
  trapline statefile --list box.image
  trapline statefile --get kernel.clock box.image
"""
FLAGS = (
    Flag("--format", help="Text to read, or JSON.", choices=("text", "json"), default="text"),
    Flag("--verify", help="Check the pages, too, and those of the image's parents: all of it is read."),
    Flag("--list", help="Print the names of what there is instead: what --get takes."),
    Flag("--get", "NAME", "Print one part in full instead: JSON, bytes in hexadecimal: what --list names, or below."),
)
_HEAD = ("PID", "PPID", "THREADS", "SPACE", "PAGES", "FILES", "NAME")
_RIGHT = ("PID", "PPID", "THREADS", "SPACE", "PAGES", "FILES")


def run(words: list[str]) -> int:
    """Run the verb; the exit status. UsageError; VerbError."""
    values, rest = parse_mixed(FLAGS, words)
    if values["help"]:
        sys.stdout.write(help_text(USAGE, SUMMARY, FLAGS, MORE))
        return 0
    if len(rest) != 1:
        raise UsageError(f"there is no directory: {USAGE}" if not rest else f"'{rest[1]}' is too much: {USAGE}")
    if values["list"] and values["get"] is not None:
        raise UsageError("--list and --get exclude one another")
    from trapline.sentry.state.image_check import check
    from trapline.sentry.state.image_reader import ImageReader
    from trapline.sentry.state.unusable import UnusableImage

    try:
        with ImageReader(rest[0]) as reader:
            kernel, image = check(reader)
            if values["verify"]:
                reader.check_pages()
            parts = {"manifest": reader.manifest, "kernel": kernel, "guests": image, "runs": reader.runs()}
            if values["list"]:
                sys.stdout.write("".join([f"{name}\n" for name in _names(parts)]))
            elif values["get"] is not None:
                _print_json(_part(parts, values["get"]), values["get"].rpartition(".")[2])
            elif values["format"] == "json":
                _print_json(_summary(reader, kernel, image))
            else:
                sys.stdout.write(_text(reader, image, bool(values["verify"])))
    except UnusableImage as error:
        raise VerbError(str(error)) from None
    return 0


# -- parts
def _names(parts: dict[str, Any]) -> list[str]:
    """The parts and what is right below them."""
    names = []
    for name, record in parts.items():
        names.append(name)
        if hasattr(record, "__struct_fields__"):
            names += [f"{name}.{field}" for field in record.__struct_fields__]
    return names


def _part(parts: dict[str, Any], name: str) -> Any:
    """What stands under a name: fields, keys and indexes with dots between. VerbError."""
    from trapline.sentry.cli.flags import did_you_mean

    value: Any = parts
    for depth, word in enumerate(words := name.split(".")):
        if isinstance(value, dict):
            known = {str(key): entry for key, entry in value.items()}
        elif isinstance(value, list | tuple):
            known = {str(index): entry for index, entry in enumerate(value)}
        else:
            known = {field: getattr(value, field) for field in getattr(value, "__struct_fields__", ())}
        if word not in known:
            where = ".".join(words[:depth]) or "an image"
            raise VerbError(f"there is no {word} in {where}{did_you_mean(word, list(known)) or ': see --list'}")
        value = known[word]
    return value


#: Fields of bytes that are names: shown as text where they can be.
_NAMES_OF_FILES = ("path", "directory", "name", "comm")


def _print_json(value: Any, field: str = "") -> None:
    """Bytes as hexadecimal digits, but names. `field`: which this is."""
    import json

    import msgspec

    plain = _readable(msgspec.to_builtins(value, builtin_types=(bytes,), str_keys=True), field)
    # ASCII alone: a name of a file that is not UTF-8 could not be printed otherwise.
    sys.stdout.write(json.dumps(plain, indent=2) + "\n")


def _readable(value: Any, field: str) -> Any:
    if isinstance(value, dict):
        return {key: _readable(entry, key) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(entry, field) for entry in value]
    if isinstance(value, bytes):
        text = value.decode(errors="surrogateescape")
        return text if field in _NAMES_OF_FILES and "\0" not in text else value.hex()
    return value


# -- the whole
def _page_bytes(reader: ImageReader) -> dict[str, int]:
    """Bytes of pages by owner."""
    found: dict[str, int] = {}
    for run in reader.runs():
        found[run.owner] = found.get(run.owner, 0) + run.size
    return found


def _summary(reader: ImageReader, kernel: KernelState, image: Image) -> dict[str, Any]:
    pages = _page_bytes(reader)
    return {
        "path": reader.path,
        "manifest": reader.manifest,
        "parents": [parent.path for parent in reader.chain[1:]],
        "pages": {
            "bytes": sum(pages.values()),
            "own_bytes": sum(run.size for run in reader.runs() if not run.image),
            "runs": len(reader.runs()),
            "blocks": reader.blocks,
            "by_owner": pages,
        },
        "processes": [
            {
                "pid": process.tgid,
                "ppid": process.parent,
                "zombie": process.zombie >= 0,
                "threads": [thread.tid for thread in process.threads],
                "space": process.space,
                "pages": pages.get(f"s{process.space}", 0),
                "descriptors": len(image.tables.get(process.table, ())),
                "name": process.comm.decode(errors="replace"),
            }
            for process in image.processes
        ],
        "shared": {
            key: {"kind": shared.kind, "size": shared.size, "pages": pages.get(key, 0)}
            for key, shared in image.shared.items()
        },
        "timers": len(kernel.timers),
    }


def _text(reader: ImageReader, image: Image, verified: bool) -> str:
    from time import gmtime, strftime

    from trapline.sentry.cli.columns import duration, printable, size, table, terminal_width

    facts = reader.manifest
    pages = _page_bytes(reader)
    own = sum(run.size for run in reader.runs() if not run.image)
    stored = sum(file.size for file in facts.files.values())

    def when(ns: int) -> str:
        return strftime("%Y-%m-%d %H:%M:%S UTC", gmtime(ns // 1_000_000_000)) if 0 <= ns < 1 << 62 else "?"

    rows = [
        ("Image", f"{reader.path}, of schema {facts.schema}, {size(stored)}, compression {facts.compression}"),
        ("Made", f"{when(facts.created)} by trapline {facts.trapline}"),
        ("Host", f"Linux {facts.kernel_release}, platform {facts.platform or '?'}, "
                 f"extended state of {facts.xsave_size} bytes, {len(facts.cpu_flags)} CPU features"),
        ("Command", " ".join(facts.command)),
        ("Checkpoints", str(facts.checkpoint_count)),
        ("Clocks", f"{duration(max(0, facts.monotonic) / 1e9)} since the start, {when(facts.realtime)}"),
        ("Pages", f"{size(sum(pages.values()))} in {len(reader.runs())} runs, {size(own)} of them in this image; "
                  + ("every block is right" if verified else "not checked: --verify")),
    ]  # fmt: skip
    rows += [("Parent", parent.path) for parent in reader.chain[1:]]
    rows += [("Left out", text) for text in facts.dropped]
    width = max(len(name) for name, _ in rows) + 3
    text = "".join([f"{name + ':':<{width}}{printable([value])}\n" for name, value in rows])
    lines = [(name, size(file.size), file.checksum or "of each block") for name, file in sorted(facts.files.items())]
    text += "\n" + table(("FILE", "SIZE", "CHECKSUM"), [(printable([a]), b, c) for a, b, c in lines], ("SIZE",))
    processes = [
        (
            str(process.tgid), str(process.parent), str(len(process.threads)),
            str(process.space) if process.zombie < 0 else "-", size(pages.get(f"s{process.space}", 0)),
            str(len(image.tables.get(process.table, ()))), printable([process.comm.decode(errors="replace")])
            + (" (ended)" if process.zombie >= 0 else ""),
        )
        for process in image.processes
    ]  # fmt: skip
    if processes:
        text += "\n" + table(_HEAD, processes, _RIGHT, terminal_width())
    shared = [
        (printable([key]), shared.kind, size(shared.size), size(pages.get(key, 0)), printable([shared.name]))
        for key, shared in sorted(image.shared.items())
    ]
    if shared:
        text += "\n" + table(("SHARED", "KIND", "SIZE", "PAGES", "NAME"), shared, ("SIZE", "PAGES"), terminal_width())
    return text
