"""What cannot be saved."""

from __future__ import annotations


class Unsavable(Exception):
    """Something in the sandbox that no image can hold: raised before anything is harmed. Its text names the thing, such
    as `process 7, descriptor 3: a socket that is connected to outside of the sandbox`."""
