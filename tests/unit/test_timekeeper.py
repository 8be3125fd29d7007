"""The sandbox's clocks against the host's."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from time_platform import TAI_OFFSET, TimePlatform

from trapline.sentry.kernel.state import ClockState
from trapline.sentry.time import parameter_page
from trapline.sentry.time.timekeeper import Timekeeper, cpu_clock_id

REALTIME, MONOTONIC, RAW, REALTIME_COARSE, MONOTONIC_COARSE, BOOTTIME, TAI = 0, 1, 4, 5, 6, 7, 11


def make(**clock):
    platform = TimePlatform()
    return platform, Timekeeper(ClockState(monotonic_base=platform.monotonic, **clock), platform)


def test_monotonic_begins_at_its_start():
    assert make()[1].now(MONOTONIC) == 0
    assert make(monotonic_start=77)[1].now(MONOTONIC) == 77
    assert make()[1].now(BOOTTIME) == 0


def test_monotonic_never_goes_back():
    platform, keeper = make()
    platform.monotonic += 100
    assert keeper.now(MONOTONIC) == 100
    platform.monotonic -= 60
    assert keeper.now(MONOTONIC) == 100
    platform.monotonic += 61
    assert keeper.now(MONOTONIC) == 101


def test_realtime_is_the_hosts_until_it_is_set():
    platform, keeper = make()
    assert keeper.now(REALTIME) == platform.realtime
    platform.realtime += 10**12  # the host's clock is stepped
    assert keeper.now(REALTIME) == platform.realtime


def test_setting_moves_only_this_sandbox():
    platform, keeper = make()
    other = Timekeeper(ClockState(monotonic_base=platform.monotonic), platform)
    seen = []
    keeper.listeners.append(lambda: seen.append(keeper.now(REALTIME)))
    keeper.set_realtime(10**18)
    assert seen == [10**18]
    assert keeper.now(TAI) == 10**18 + TAI_OFFSET
    assert keeper.now(MONOTONIC) == 0
    assert other.now(REALTIME) == platform.realtime
    platform.monotonic += 5
    platform.realtime += 5
    assert keeper.now(REALTIME) == 10**18 + 5


def test_not_before_the_start_of_monotonic():
    platform, keeper = make()
    platform.monotonic += 100
    with pytest.raises(OSError) as caught:
        keeper.set_realtime(99)
    assert caught.value.errno == errno.EINVAL
    keeper.set_realtime(100)


def test_unknown_clock():
    for clock in (8, 9, 10, 12, 99):
        with pytest.raises(OSError):
            make()[1].now(clock)


def test_rate():
    platform, keeper = make(rate_num=1, rate_den=2)
    start = platform.realtime
    platform.monotonic += 1001
    platform.realtime += 50_000  # not followed at another rate
    assert keeper.now(MONOTONIC) == 500
    assert keeper.now(REALTIME) == start + 500
    assert keeper.now(RAW) == 500
    keeper.set_realtime(start + 10_000)
    assert keeper.now(REALTIME) == start + 10_000
    assert keeper.span_to_host(5) == 10
    assert keeper.span_from_host(1) == 1
    assert keeper.span_from_host(0) == 0


def test_cpu_clocks():
    platform, keeper = make()
    platform.cpu[9], platform.cpu_user[9] = 70, 30
    assert keeper.now(cpu_clock_id(9)) == 70
    assert keeper.now(cpu_clock_id(9, kind=1)) == 30
    assert keeper.now(cpu_clock_id(9, thread=True)) == 70
    assert keeper.cpu_clock(cpu_clock_id(9, kind=1, thread=True)) == (True, 9, 1)


def test_guests_timerfds():
    platform, keeper = make(boottime_base=5_000_000_500)
    platform.boot = 500
    assert keeper.to_host_clock(MONOTONIC, 10) == platform.monotonic + 10
    assert keeper.to_host_clock(BOOTTIME, 10) == platform.host_clock(BOOTTIME) + 10
    keeper.set_realtime(10**18)
    assert keeper.to_host_clock(REALTIME, 10**18 + 3) == platform.realtime + 3
    keeper.set_realtime(3 * 10**18)
    assert keeper.to_host_clock(REALTIME, 1) == 1  # 0 would disarm


RATES = st.sampled_from([(1, 1), (1, 2), (3, 1), (999, 1000)])


@given(RATES, st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12), st.booleans())
def test_page_agrees_with_the_calls(rate, start, passed, wall, own_time):
    """What the vDSO computes is what clock_gettime answers; the guest's host clocks are its namespace's."""
    platform = TimePlatform()
    boot_base = platform.host_clock(BOOTTIME)
    base = platform.monotonic
    state = ClockState(*rate, monotonic_base=base, monotonic_start=start, boottime_base=boot_base,
                       boottime_start=start)  # fmt: skip
    keeper = Timekeeper(state, platform)
    published = []
    keeper.publish_to(published.append, own_time)
    platform.monotonic += passed
    platform.realtime += passed
    keeper.set_realtime(10**18 + wall)
    page = parameter_page.encode(published[-1], 2)
    shift = base - start if own_time else 0

    def host(clock):
        moved = clock in (MONOTONIC, RAW, MONOTONIC_COARSE, BOOTTIME)
        return platform.host_clock(clock) - (shift if moved else 0)

    for clock in (REALTIME, MONOTONIC, RAW, REALTIME_COARSE, MONOTONIC_COARSE, BOOTTIME, TAI):
        value = parameter_page.evaluate(page, clock, host)
        assert value is None or value == keeper.now(clock)
    assert len(published) == 2
