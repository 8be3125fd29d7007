"""An image that cannot be restored."""


class UnusableImage(Exception):
    """Its text says which file of it, and what is wrong: one line without a full stop."""
