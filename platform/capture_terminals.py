"""Terminals."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapline.platform.capture_files import Capture, Held


def describe(work: Capture, held: Held) -> None:
    """Make the record of one description."""
    work.drop(held, "a terminal of the host")
