"""Where a sandbox keeps its own files: upper layers of its overlays, and file systems in memory that it has mounted.

Whoever builds the mounts (mounts.py, bundle_mounts.py) notes each one in the plan, and the list lies beside the upper
layers for as long as the sandbox lives: a checkpoint reads it there. Upper layers are hidden from guests, so the first
guest hands two descriptors out: of the directory that holds them and of the sandbox's root.
"""

from __future__ import annotations

import os

import msgspec

from trapline.sentry.state.names import quoted, unquoted

NAME = "layers"  # of the list, in the stage


class Layer(msgspec.Struct):
    """One of them."""

    kind: str  # "overlay", "tmpfs"
    path: str  # what it shows at or is mounted at, as the sandbox's root has it
    number: int  # of an overlay's: the name of its directory in `upper`; else -1
    device: int = 0  # st_dev of a tmpfs


def encode(layers: list[Layer]) -> bytes:
    """As JSON."""
    return msgspec.json.encode([msgspec.structs.replace(layer, path=quoted(layer.path)) for layer in layers])


def decode(raw: bytes) -> list[Layer]:
    """ValueError, msgspec.DecodeError."""
    layers = msgspec.json.decode(raw, type=list[Layer])
    return [msgspec.structs.replace(layer, path=unquoted(layer.path)) for layer in layers]


def write(stage: int, layers: list[Layer]) -> None:
    """By a descriptor of the stage. OSError."""
    handle = os.open(NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=stage)
    with open(handle, "wb", 0) as file:
        file.write(encode(layers))


def read(stage: int) -> list[Layer]:
    """By a descriptor of the stage. OSError."""
    handle = os.open(NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=stage)
    with open(handle, "rb") as file:
        return decode(file.read())
