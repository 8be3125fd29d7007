"""What a checkpoint cannot hold."""


class Unsavable(Exception):
    """One thing that cannot be saved. Its text names it, and whose it is: one line without a full stop."""
