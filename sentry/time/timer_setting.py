"""The arithmetic of timer settings: pure functions of a setting and a time.

All times are ns on the timer's own clock. A clock may be set back, so `now` is any number.
"""

from __future__ import annotations

from trapline.sentry.kernel.state import TimerSetting

#: The latest time there is (Linux KTIME_MAX, include/linux/ktime.h).
TIME_MAX = (1 << 63) - 1


def at(setting: TimerSetting, now: int) -> tuple[TimerSetting, int]:
    """The setting as it is at `now`, and how many times it expired until then.

    A periodic setting goes on by whole periods, so its phase stays; a one-shot one is disarmed.
    """
    if setting.next < 0 or now < setting.next:
        return setting, 0
    if setting.period <= 0:
        return TimerSetting(clock_id=setting.clock_id), 1
    expirations = 1 + (now - setting.next) // setting.period
    following = min(setting.next + expirations * setting.period, TIME_MAX)
    return TimerSetting(following, setting.period, setting.clock_id), expirations


def after(now: int, value: int, period: int = 0, clock_id: int = 1) -> TimerSetting:
    """The setting that first expires `value` ns from now. 0 is disarmed."""
    if value <= 0:
        return TimerSetting(clock_id=clock_id)
    return TimerSetting(min(now + value, TIME_MAX), period, clock_id)


def remaining(setting: TimerSetting, now: int) -> int:
    """ns until the next expiry; 0 when it is due or disarmed."""
    return max(setting.next - now, 0) if setting.next >= 0 else 0
