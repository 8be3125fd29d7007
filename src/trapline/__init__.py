"""trapline: a Linux kernel in Python that real programs run under."""

__version__ = "0.1.0"
