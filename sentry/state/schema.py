"""Images of older schemas: each step makes the plain data of one schema into that of the next.

To change a record so that older images no longer fit: raise `manifest.SCHEMA`, add a step here, and keep an image of
the schema before in tests/data (tests/make_old_image.py made the first). A new field with a default needs none.

0: manifest `date`, in seconds, for `created`, in ns; directories' `mask` for `umask`. It was never released: it is
   there so that the way from one schema to the next is used at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from trapline.sentry.state.codec import Malformed
from trapline.sentry.state.manifest import SCHEMA

Plain = dict[str, Any]


class Step(NamedTuple):
    """What changes from one schema to the next, in place. KeyError, TypeError, AttributeError for what is malformed."""

    manifest: Callable[[Plain], None]
    kernel: Callable[[Plain], None]
    guests: Callable[[Plain], None]


def _manifest_0(manifest: Plain) -> None:
    manifest["created"] = manifest.pop("date") * 1_000_000_000


def _kernel_0(kernel: Plain) -> None:
    kernel["schema"] = 1


def _guests_0(guests: Plain) -> None:
    for directories in guests["directories"].values():
        directories["umask"] = directories.pop("mask")


STEPS = {0: Step(_manifest_0, _kernel_0, _guests_0)}


def check(schema: int) -> None:
    """Malformed for one that is not known."""
    if schema > SCHEMA:
        raise Malformed(f"it is of schema {schema}, by a newer trapline: this one reads up to schema {SCHEMA}")
    if schema not in (*STEPS, SCHEMA):
        raise Malformed(f"there is no schema {schema}")


def upgrade(part: str, value: Any, schema: int) -> Any:
    """Plain data of a part ("manifest", "kernel", "guests") as of today's schema. Malformed."""
    check(schema)
    for number in range(schema, SCHEMA):
        try:
            getattr(STEPS[number], part)(value)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Malformed(f"it is not as schema {number} has it: {type(error).__name__} {error}") from None
    return value
