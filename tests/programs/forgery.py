"""Images that lie: an image's records changed, with every size and checksum right, as somebody who means harm would."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from trapline.sentry.kernel.state import KernelState
from trapline.sentry.state import codec, manifest, names
from trapline.sentry.state.records import Image

#: A change of what stands in an image: the guests' records, the kernel's state, the manifest as dictionaries.
Change = Callable[[Image, KernelState, dict[str, Any]], object]
_SPECIAL = (0, 1, -1, 2, 3, 63, 64, 65, 4095, 4096, 1 << 16, (1 << 22) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
            1 << 47, (1 << 62) + 4096, (1 << 63) - 1, (1 << 64) - 1, -(1 << 31), -(1 << 63), 0o4755, 0o20666, 0xFFFFFFFF81000000)  # fmt: skip
_TEXTS = ("", "/", ".", "..", "../../../etc/passwd", "/etc/../../x", "a\0b", "/proc/1/mem", "/dev/mem", "x" * 5000, "\udcff", "\U0010ffff",
          "/proc/self/fd/0", "sysv:1", "s0", "anonymous", "file", "memfd", "\n\x1b[31m")  # fmt: skip


def copy(image: Path, target: Path) -> None:
    """Another image of the same pages."""
    for path in image.rglob("*"):
        new = target / path.relative_to(image)
        if path.is_dir():
            new.mkdir(parents=True)
        else:
            new.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, new)


def put(target: Path, facts: dict[str, Any], name: str, data: bytes) -> None:
    """Another content of one file, and what the manifest says of it."""
    path = target / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    facts["files"][name] = {"size": len(data), "checksum": manifest.checksum_text(xxhash.xxh3_64_intdigest(data))}


def finish(target: Path, facts: dict[str, Any]) -> None:
    """The manifest, and its own checksum."""
    facts["checksum"] = manifest.checksum_of(facts)
    path = target / manifest.NAME
    path.unlink()
    path.write_bytes(codec.json_text(facts))


def facts_of(target: Path) -> dict[str, Any]:
    found: dict[str, Any] = codec.from_json((target / manifest.NAME).read_bytes())
    return found


def forge(target: Path, change: Change) -> None:
    image = codec.unpack((target / manifest.GUESTS).read_bytes(), Image)
    kernel = codec.unpack((target / manifest.KERNEL).read_bytes(), KernelState)
    facts = facts_of(target)
    change(image, kernel, facts)
    put(target, facts, manifest.GUESTS, codec.pack(image))
    put(target, facts, manifest.KERNEL, codec.pack(kernel))
    finish(target, facts)


def forge_by_chance(target: Path, seed: int) -> str:
    """One field, or a few, of the records are something else of the same type; which."""
    chance = random.Random(seed)
    said = []
    facts = facts_of(target)
    name = chance.choice([manifest.GUESTS, manifest.GUESTS, manifest.KERNEL, "options"])
    value = facts["options"] if name == "options" else codec.loose((target / name).read_bytes())
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        said.append(_change_one(value, chance))
    if name == "options":
        # The manifest is JSON, and escapes stand in it as they are.
        facts["options"] = names.walk(value, lambda text: text.replace("\udcff", "\U0010ffff\ue07f"))
    else:
        put(target, facts, name, msgspec.msgpack.encode(codec.plain(value)))
    finish(target, facts)
    return f"{seed}: {name}: {', '.join(said)}"


def _change_one(value: Any, chance: random.Random) -> str:
    """Somewhere in it, each kind of thing as often as the others, however many there are of one."""
    where: list[str] = []
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = chance.choice(keys)
        where.append(str(key))
        inner = value[key]
        if isinstance(inner, dict | list) and inner and chance.random() < 0.93:
            value = inner
            continue
        new = _other(inner, chance)
        if isinstance(value, dict) and chance.random() < 0.05:
            del value[key]
            return f"{'.'.join(where)} removed"
        value[key] = new
        return f"{'.'.join(where)} = {repr(new)[:60]}"


def _other(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice([*_SPECIAL, value + 1, value - 1, value ^ 1 << chance.randrange(63), value + 4096])
    if isinstance(value, str):
        return chance.choice([*_TEXTS, value + "x", value[:-1]])
    if isinstance(value, bytes):
        flipped = bytearray(value or b"x")
        for _ in range(chance.choice([1, 8])):
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        return chance.choice([b"", value[:-1], value + b"\0", value * 2, b"\xff" * len(value), bytes(flipped), bytes(flipped)])
    if isinstance(value, list):
        return chance.choice([[], value[1:], value * 2, value[::-1]])
    if isinstance(value, dict):
        return {} if chance.random() < 0.5 else dict(list(value.items())[1:])
    return chance.choice([0, "", [], {}])
