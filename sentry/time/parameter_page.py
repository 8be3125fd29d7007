"""The vDSO's parameter page: how guests compute the sandbox's clocks without a call.

The layout is shared with `vdso/trapline_vdso.c`. Little-endian, in this order:

    u32 sequence           odd while the page is written
    u32 mode               0 not ready: real calls; 1 the host's answers hold as they are; 2 use the table
    u32 numerator, denominator of the rate
    i64 resolution, coarse resolution, ns (clock_getres)
    12 entries, one per clock id: u32 kind, u32 source clock, i64 first, i64 second

Kinds: 0 real call; 1 the host's answer; 2 the source clock plus `first` s and `second` ns; 3
`first + (source - second) * rate`, ns. The host's MONOTONIC and BOOTTIME are those of the sandbox's time
namespace. An all-zero page is valid and means "not ready".
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

MODE_NOT_READY, MODE_HOST, MODE_TABLE = 0, 1, 2
KIND_CALL, KIND_HOST, KIND_DELTA, KIND_SCALE = 0, 1, 2, 3

# clock_gettime(2); include/uapi/linux/time.h
REALTIME, MONOTONIC, PROCESS_CPU, THREAD_CPU, MONOTONIC_RAW, REALTIME_COARSE = 0, 1, 2, 3, 4, 5
MONOTONIC_COARSE, BOOTTIME, REALTIME_ALARM, BOOTTIME_ALARM, _SGI_CYCLE, TAI = 6, 7, 8, 9, 10, 11
CLOCKS = 12

HEADER = struct.Struct("<4I2q")
ENTRY = struct.Struct("<2I2q")
SEQUENCE = struct.Struct("<I")
SIZE = HEADER.size + CLOCKS * ENTRY.size

NSEC = 1_000_000_000
MAX_RATE = 1000  # the image divides 128 by 64 bits: rates near 1 keep the quotient in range for centuries

Entry = tuple[int, int, int, int]  # kind, source, first, second


class PageValues(msgspec.Struct, frozen=True):
    """What the clocks are, all in ns. The default: the host's clocks as they are.

    With rate 1, a clock is the host's plus (start - base), REALTIME the host's plus `realtime_delta`,
    and TAI the host's plus both deltas.
    With another rate, a clock is start + (host - base) * rate, and REALTIME is computed from the host's
    MONOTONIC, so that steps of the host's wall clock do not show: `realtime_start` is its value when the
    host's MONOTONIC was `monotonic_base`.
    """

    rate_num: int = 1
    rate_den: int = 1
    monotonic_start: int = 0
    monotonic_base: int = 0
    boottime_start: int = 0
    boottime_base: int = 0
    raw_start: int = 0
    raw_base: int = 0
    realtime_delta: int = 0
    tai_delta: int = 0
    realtime_start: int = 0
    resolution: int = 1
    coarse_resolution: int = 4_000_000


def table(values: PageValues) -> list[Entry]:
    """The entries of all clocks. ValueError when the rate is not one that the image can compute."""
    num, den = values.rate_num, values.rate_den
    if not (0 < num < 1 << 32 and 0 < den < 1 << 32 and num <= den * MAX_RATE):
        raise ValueError(f"clock rate {num}/{den}")
    monotonic = values.monotonic_start, values.monotonic_base
    pairs = {
        MONOTONIC: monotonic,
        MONOTONIC_COARSE: monotonic,
        BOOTTIME: (values.boottime_start, values.boottime_base),
        MONOTONIC_RAW: (values.raw_start, values.raw_base),
    }
    entries: list[Entry] = [(KIND_CALL, 0, 0, 0)] * CLOCKS
    if num == den:
        deltas = {clock: start - base for clock, (start, base) in pairs.items()}
        deltas |= dict.fromkeys((REALTIME, REALTIME_COARSE), values.realtime_delta)
        deltas[TAI] = values.realtime_delta + values.tai_delta
        for clock, delta in deltas.items():
            entries[clock] = (KIND_DELTA, clock, *divmod(delta, NSEC)) if delta else (KIND_HOST, clock, 0, 0)
        return entries
    for clock, (start, base) in pairs.items():
        entries[clock] = (KIND_SCALE, clock, start, base)
    # TAI's distance from REALTIME is the host's to know: it stays a call.
    entries[REALTIME] = (KIND_SCALE, MONOTONIC, values.realtime_start, values.monotonic_base)
    entries[REALTIME_COARSE] = (KIND_SCALE, MONOTONIC_COARSE, values.realtime_start, values.monotonic_base)
    return entries


def encode(values: PageValues | None, sequence: int) -> bytes:
    """The page's SIZE bytes; None is "not ready". ValueError for a rate out of range."""
    if values is None:
        return SEQUENCE.pack(sequence) + bytes(SIZE - SEQUENCE.size)
    entries = table(values)
    unchanged = all(kind == KIND_HOST for kind, *_ in entries if kind != KIND_CALL)
    header = HEADER.pack(
        sequence,
        MODE_HOST if unchanged and values.rate_num == values.rate_den else MODE_TABLE,
        values.rate_num,
        values.rate_den,
        values.resolution,
        values.coarse_resolution,
    )
    return header + b"".join(ENTRY.pack(*entry) for entry in entries)


def evaluate(page: bytes, clock_id: int, host: Callable[[int], int]) -> int | None:
    """What a guest reads from this page, ns; None when the image makes the real call instead.

    `host(id)` is the host's clock, in ns, as seen in the sandbox's time namespace. The sentry's own answers
    must equal this; tests compare the C code with it.
    """
    sequence, mode, num, den, _, _ = HEADER.unpack_from(page)
    if mode == MODE_HOST:
        return host(clock_id)
    if sequence & 1 or mode != MODE_TABLE or not 0 <= clock_id < CLOCKS:
        return None
    kind, source, first, second = ENTRY.unpack_from(page, HEADER.size + clock_id * ENTRY.size)
    if kind == KIND_HOST:
        return host(clock_id)
    if kind == KIND_DELTA:
        return host(source) + int(first) * NSEC + int(second)
    if kind == KIND_SCALE and den:
        return int(first) + (host(source) - int(second)) * int(num) // int(den)
    return None


class ParameterPage:
    """Publishes values through `write(offset, data)` in an order that no reader can mistake.

    The page is this kernel's; nothing else writes it. `write` must store in program order and a four-byte
    word at once, which copies into a shared mapping do on x86-64.
    """

    def __init__(self, write: Callable[[int, bytes], None]) -> None:
        self._write = write
        self._sequence = 0
        self._published: PageValues | None = None

    @property
    def values(self) -> PageValues | None:
        """What was published last; None when not ready."""
        return self._published

    @property
    def sequence(self) -> int:
        """Even, except while `publish` runs."""
        return self._sequence

    def publish(self, values: PageValues) -> None:
        """Guests read these values from now on. ValueError leaves the page as it was."""
        self._replace(values)

    def clear(self) -> None:
        """Not ready: guests make real calls, which the sentry then sees, until the next `publish`."""
        self._replace(None)

    def _replace(self, values: PageValues | None) -> None:
        sequence = (self._sequence + 2) & 0xFFFFFFFF
        page = encode(values, sequence)
        self._write(0, SEQUENCE.pack(sequence - 1 & 0xFFFFFFFF))
        self._write(SEQUENCE.size, page[SEQUENCE.size :])
        self._write(0, page[: SEQUENCE.size])
        self._sequence = sequence
        self._published = values
