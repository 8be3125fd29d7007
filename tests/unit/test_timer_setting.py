"""The arithmetic of timer settings."""

from hypothesis import given
from hypothesis import strategies as st

from trapline.sentry.kernel.state import TimerSetting
from trapline.sentry.time.timer_setting import TIME_MAX, after, at, remaining

TIMES = st.integers(0, 10**15)


def test_disarmed_never_expires():
    assert at(TimerSetting(), TIME_MAX) == (TimerSetting(), 0)


def test_not_yet():
    setting = TimerSetting(next=10, period=3)
    assert at(setting, 9) == (setting, 0)


def test_one_shot_is_disarmed_by_its_expiry():
    assert at(TimerSetting(next=10, clock_id=7), 10) == (TimerSetting(clock_id=7), 1)


def test_periods_that_passed_are_counted():
    assert at(TimerSetting(next=10, period=3), 10) == (TimerSetting(13, 3), 1)
    assert at(TimerSetting(next=10, period=3), 19) == (TimerSetting(22, 3), 4)


def test_end_of_time():
    assert at(TimerSetting(next=10, period=TIME_MAX), 10)[0].next == TIME_MAX
    assert after(TIME_MAX - 1, 5).next == TIME_MAX


@given(TIMES, st.integers(1, 10**9), TIMES)
def test_phase_stays_and_next_is_the_first_after_now(first, period, now):
    setting, expirations = at(TimerSetting(first, period), now)
    assert setting.next > now or expirations == 0
    assert setting.next - period <= now or expirations == 0
    assert setting.next == first + expirations * period


@given(TIMES, st.integers(0, 10**9), st.lists(TIMES, max_size=8))
def test_looking_more_often_changes_nothing(first, period, looks):
    looks.sort()
    setting, total = TimerSetting(first, period), 0
    for now in looks:
        setting, expirations = at(setting, now)
        total += expirations
    assert (setting, total) == (at(TimerSetting(first, period), looks[-1]) if looks else (setting, 0))


@given(TIMES, st.integers(1, 10**9), TIMES, TIMES)
def test_a_clock_set_back_is_tolerated(first, period, now, back):
    setting, _ = at(TimerSetting(first, period), now)
    again, expirations = at(setting, min(now, back))
    assert (again, expirations) == (setting, 0)


def test_after_and_remaining():
    assert after(100, 0, 5).next == -1
    assert after(100, 7, 5, 0) == TimerSetting(107, 5, 0)
    assert remaining(TimerSetting(107), 100) == 7
    assert remaining(TimerSetting(107), 200) == 0
    assert remaining(TimerSetting(), 0) == 0
