"""What is wrong with an image that is read."""

from __future__ import annotations


class UnusableImage(Exception):
    """An image that cannot be restored. Its text is one line that names the file and what is wrong with it."""

    def __init__(self, text: str) -> None:
        # What an image holds may stand in the text: it must not act on a terminal, nor end the line.
        super().__init__("".join(c if c.isprintable() else "?" for c in text))
