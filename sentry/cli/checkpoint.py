"""`trapline checkpoint`: save a running sandbox to a directory."""

from __future__ import annotations

import os
import sys

from trapline.sentry.cli.flags import Flag, UsageError, VerbError
from trapline.sentry.cli.verb import Verb, find, path, print_json

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from typing import Any

    from trapline.sentry.control.records import Record


def _image(text: str) -> str:
    """A directory to be made."""
    found = path(text)
    if not os.path.isdir(os.path.dirname(found)):
        raise ValueError("takes a directory to be made, in one that exists")
    return found


def _parent(text: str) -> str:
    found = path(text)
    if not os.path.isdir(found):
        raise ValueError("takes the directory of an earlier checkpoint of the same sandbox")
    return found


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value <= 86400:
        raise ValueError("takes seconds, more than 0 and at most 86400")
    return value


def _checkpoint(values: dict[str, Any], words: list[str]) -> int:
    if values["image_path"] is None:
        raise UsageError("there is no --image-path DIR, which says where the checkpoint is to go")
    record = find(values, words[0])
    result = _ask(record, {
        "image_path": values["image_path"],
        "leave_running": bool(values["leave_running"]),
        "compression": values["compression"],
        "direct": bool(values["direct"]),
        "parent_path": values["parent_path"] or "",
        "drop": bool(values["drop"]),
        "fsync": not values["no_fsync"],
        "timeout": values["timeout"] or 0.0,
    })  # fmt: skip
    if not values["leave_running"] and result["shares"]:
        from trapline.sentry.cli.lifecycle import await_end

        # Whoever restores it next may need a port, or a lock of a file, that processes have until they are gone. Of
        # others only memory is left to be freed.
        await_end(record, None)
    for text in result["dropped"]:
        print(f"trapline checkpoint: dropped: {text}", file=sys.stderr)
    for text in result["notes"]:
        print(f"trapline checkpoint: {text}", file=sys.stderr)
    if values["format"] == "json":
        print_json(result)
    else:
        from trapline.sentry.cli.columns import size
        from trapline.sentry.state.names import printable

        took = f"{size(result['size'])} in {result['seconds']:.2f} s, paused for {result['pause_ms']:.0f} ms"
        print(f"checkpoint {result['number']}: {took}: {printable(result['image_path'])}")
    return 0


def _ask(record: Record, spec: dict[str, Any]) -> dict[str, Any]:
    """Have it saved, and show how far that is. VerbError."""
    from trapline.platform.progress_bar import Bar
    from trapline.sentry.control.client import ControlError, Gone
    from trapline.sentry.control.records import RecordError

    try:
        with Bar() as bar, record.client() as client:
            number = client.begin("checkpoint", spec=spec)

            def tell(method: str, told: dict[str, Any]) -> None:
                if method == "progress" and told.get("id") == number:
                    bar.report(told["done"], told["total"], told["phase"])

            result: dict[str, Any] = client.finish(number, tell)
            return result
    except Gone:
        raise VerbError(f"sandbox {record.id} is not running") from None
    except (ControlError, RecordError) as error:
        raise VerbError(str(error)) from None


_FLAGS = (
    Flag("--image-path", "DIR", "Where the checkpoint goes: a directory that is made.", parse=_image),
    Flag("--leave-running", help="Let the sandbox go on."),
    Flag("--compression", help="Of memory: less room, more time.", choices=("none", "zstd"), default="none"),
    Flag("--direct", help="Write memory past the host's page cache."),
    Flag(
        "--parent-path",
        "DIR",
        "An earlier checkpoint of this sandbox, which is needed then, too: save only what was written since.",
        parse=_parent,
    ),
    Flag("--drop", help="Leave out what cannot be saved, a connection to the host for instance, and print it."),
    Flag("--no-fsync", help="Do not wait until it is on the disk: a power failure may cost it."),
    Flag("--timeout", "SECONDS", "Give up after this time, and let the sandbox go on as it was.", parse=_seconds),
    Flag("--format", help="A line to read, or all that is known as JSON.", choices=("text", "json"), default="text"),
)

VERBS = (
    Verb(
        "checkpoint",
        "[FLAGS] --image-path DIR ID",
        "Save a running sandbox to a directory, from which `trapline restore` makes it again, as often as wanted. It "
        "ends then, unless it is left running. Where it cannot be saved, one line says what is in the way, and it goes "
        "on as it was; so it does after ^C. A paused one stays paused; what is restored from it goes on. The directory "
        "is there once all is in it, and not before.",
        _FLAGS,
        _checkpoint,
        examples="  trapline checkpoint --image-path ./one box && trapline restore --image-path ./one --id again -d\n"
        "  trapline checkpoint --image-path ./two --leave-running --parent-path ./one box\n",
    ),
)
