"""The parameter page as data: layout, modes, and the order in which it is written."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.sentry.time import parameter_page as pp
from trapline.sentry.time.parameter_page import PageValues, ParameterPage, encode, evaluate

SOURCE = Path(__file__).parents[2] / "vdso" / "trapline_vdso.c"
TIMES = st.integers(0, 10**18)
HOST = {0: 1_700_000_000_123_456_789, 1: 5_000_000_001, 4: 5_000_100_000, 5: 1_700_000_000_120_000_000,
        6: 5_000_000_000, 7: 6_000_000_000, 11: 1_700_000_037_123_456_789}  # fmt: skip


def host(clock_id: int) -> int:
    return HOST[clock_id]


class Memory:
    """A page that remembers what it was after every write."""

    def __init__(self) -> None:
        self.data = bytearray(4096)
        self.steps: list[bytes] = []

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data
        self.steps.append(bytes(self.data[: pp.SIZE]))


def test_layout_fits_and_matches_the_image() -> None:
    assert pp.SIZE == 320
    text = SOURCE.read_text()
    assert re.search(r"enum \{ CLOCKS = 12 \}", text)
    names = re.findall(r"(MODE|KIND)_(\w+) = (\d+)", text)
    assert len(names) == 7
    for prefix, name, value in names:
        assert getattr(pp, f"{prefix}_{name}") == int(value)


def test_zero_page_is_not_ready() -> None:
    assert encode(None, 0) == bytes(pp.SIZE)
    assert all(evaluate(bytes(4096), clock, host) is None for clock in range(-1, 20))


def test_default_is_the_host() -> None:
    page = encode(PageValues(), 2)
    assert struct.unpack_from("<II", page) == (2, pp.MODE_HOST)
    assert evaluate(page, pp.MONOTONIC, host) == HOST[1]


def test_moved_wall_clock_leaves_monotonic_alone() -> None:
    page = encode(PageValues(realtime_delta=-1_500_000_000), 2)
    assert struct.unpack_from("<I", page, 4) == (pp.MODE_TABLE,)
    assert evaluate(page, pp.REALTIME, host) == HOST[0] - 1_500_000_000
    assert evaluate(page, pp.REALTIME_COARSE, host) == HOST[5] - 1_500_000_000
    assert evaluate(page, pp.TAI, host) == HOST[11] - 1_500_000_000
    assert evaluate(page, pp.MONOTONIC, host) == HOST[1]
    kind, source, seconds, ns = pp.ENTRY.unpack_from(page, pp.HEADER.size)
    assert (kind, source, seconds, ns) == (pp.KIND_DELTA, 0, -2, 500_000_000)  # ns never negative


def test_half_rate() -> None:
    values = PageValues(rate_num=1, rate_den=2, monotonic_start=100, monotonic_base=5_000_000_000,
                        boottime_start=7, boottime_base=6_000_000_000, realtime_start=10**18)  # fmt: skip
    page = encode(values, 2)
    assert evaluate(page, pp.MONOTONIC, host) == 100  # floor(1 / 2)
    assert evaluate(page, pp.MONOTONIC_COARSE, host) == 100
    assert evaluate(page, pp.BOOTTIME, host) == 7
    assert evaluate(page, pp.REALTIME, host) == 10**18
    assert evaluate(page, pp.TAI, host) is None
    assert evaluate(page, pp.PROCESS_CPU, host) is None


@given(st.integers(1, 50), st.integers(1, 50), TIMES, TIMES, st.lists(TIMES, min_size=2, max_size=6))
def test_clocks_never_go_back(num: int, den: int, start: int, base: int, raw: list[int]) -> None:
    page = encode(PageValues(rate_num=num, rate_den=den, monotonic_start=start, monotonic_base=base), 2)
    hosts = [dict.fromkeys(HOST, now).__getitem__ for now in sorted(raw)]
    seen = [evaluate(page, pp.MONOTONIC, at) for at in hosts]
    assert seen == sorted(value for value in seen if value is not None)


@given(TIMES, TIMES, st.integers(-(10**18), 10**18))
def test_offset_at_rate_one(start: int, base: int, delta: int) -> None:
    page = encode(PageValues(monotonic_start=start, monotonic_base=base, realtime_delta=delta), 2)
    assert evaluate(page, pp.MONOTONIC, host) == HOST[1] + start - base
    assert evaluate(page, pp.REALTIME, host) == HOST[0] + delta


def test_equal_rate_is_rate_one() -> None:
    assert evaluate(encode(PageValues(rate_num=7, rate_den=7), 2), pp.REALTIME, host) == HOST[0]


@pytest.mark.parametrize(("num", "den"), [(0, 1), (1, 0), (-1, 2), (1 << 32, 1), (1001, 1), (1, 1 << 32)])
def test_bad_rate_leaves_the_page(num: int, den: int) -> None:
    memory = Memory()
    page = ParameterPage(memory.write)
    with pytest.raises(ValueError, match="clock rate"):
        page.publish(PageValues(rate_num=num, rate_den=den))
    assert memory.steps == [] and page.sequence == 0


def test_sequence_protocol() -> None:
    memory = Memory()
    page = ParameterPage(memory.write)
    old = PageValues(realtime_delta=1)
    page.publish(old)
    before = bytes(memory.data[: pp.SIZE])
    assert (page.sequence, page.values) == (2, old)
    memory.steps.clear()
    page.publish(PageValues(realtime_delta=2))
    # Odd with the old body, odd with the new one, then even: at no step do both an even counter and a body
    # that is neither the old nor the new one show.
    sequences = [struct.unpack_from("<I", step)[0] for step in memory.steps]
    assert sequences == [3, 3, 4]
    assert memory.steps[0][4:] == before[4:]
    assert memory.steps[1][4:] == memory.steps[2][4:] == encode(PageValues(realtime_delta=2), 4)[4:]
    assert evaluate(memory.steps[1], pp.REALTIME, host) is None


def test_clear_and_wrap() -> None:
    memory = Memory()
    page = ParameterPage(memory.write)
    page._sequence = 0xFFFFFFFE
    page.publish(PageValues())
    assert [struct.unpack_from("<I", step)[0] for step in memory.steps] == [0xFFFFFFFF, 0xFFFFFFFF, 0]
    page.clear()
    assert page.values is None and page.sequence == 2
    assert memory.data[4:] == bytes(4092)
