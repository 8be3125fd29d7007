"""The sandbox's clocks: from the host's readings and `ClockState`, and back.

At rate 1 MONOTONIC is the host's less a base, which the sandbox's time namespace makes true for native calls
too (time_namespaces(7)), and REALTIME is the host's plus an offset, so that the host's slewing and steps show
as they do natively. At another rate (`--clock-rate`, for tests) both follow the host's MONOTONIC.

CPU clocks have the negative ids of clock_getcpuclockid(3), always with an explicit id:
`~id << 3 | 4 for a thread | 0 PROF, 1 VIRT, 2 SCHED` (Linux include/linux/posix-timers_types.h).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from trapline.sentry.kernel.state import ClockState
from trapline.sentry.time.timer_setting import TIME_MAX

if TYPE_CHECKING:
    from trapline.sentry.protocol import Platform
    from trapline.sentry.time.parameter_page import PageValues

REALTIME, MONOTONIC, PROCESS_CPU, THREAD_CPU, MONOTONIC_RAW, REALTIME_COARSE = 0, 1, 2, 3, 4, 5
MONOTONIC_COARSE, BOOTTIME, REALTIME_ALARM, BOOTTIME_ALARM, TAI = 6, 7, 8, 9, 11
CPU_PROF, CPU_VIRT, CPU_SCHED, CPU_THREAD = 0, 1, 2, 4
NSEC = 1_000_000_000


def cpu_clock_id(ident: int, kind: int = CPU_SCHED, thread: bool = False) -> int:
    """The id of a process's or thread's CPU clock."""
    return ~ident << 3 | (CPU_THREAD if thread else 0) | kind


class Timekeeper:
    """Reads and converts; the one place that knows how sandbox and host clocks are related."""

    def __init__(self, state: ClockState, platform: Platform) -> None:
        """The rate and the bases of `state` are set before; only `stood_still` changes them afterwards."""
        self.state = state
        self._platform = platform
        self._floor = state.monotonic_start
        #: Called after REALTIME was set or the host's clock stepped: deadlines and the page follow.
        self.listeners: list[Callable[[], None]] = []
        if not state.boot_realtime:
            passed = platform.host_monotonic() - state.monotonic_base
            state.realtime_start = platform.host_realtime() - passed
            state.boot_realtime = state.realtime_start - self._scaled(state.monotonic_start)

    @property
    def native_rate(self) -> bool:
        """The sandbox's second is the host's."""
        return self.state.rate_num == self.state.rate_den

    # -- reading
    def now(self, clock_id: int) -> int:
        """A sandbox clock, ns. OSError(EINVAL) for one that is none; Gone for a dead task's CPU clock."""
        if clock_id == MONOTONIC:
            state = self.state
            value = self._platform.host_monotonic() - state.monotonic_base
            if state.rate_num != state.rate_den:
                value = value * state.rate_num // state.rate_den
            value += state.monotonic_start
            # Whatever the host's clock does, this one never goes back.
            if value < self._floor:
                return self._floor
            self._floor = value
            return value
        if clock_id == REALTIME:
            if self.native_rate:
                return self._platform.host_realtime() + self.state.realtime_delta
            return self._from_monotonic(self._platform.host_monotonic(), self.state.realtime_start)
        if clock_id < 0:
            return self._cpu_now(clock_id)
        return self._other_now(clock_id)

    def _other_now(self, clock_id: int) -> int:
        state, host = self.state, self._platform.host_clock
        if clock_id == BOOTTIME:
            if state.boottime_base < 0:
                return self.now(MONOTONIC)
            return state.boottime_start + self._scaled(host(BOOTTIME) - state.boottime_base)
        if clock_id == MONOTONIC_RAW and state.raw_base >= 0:
            return state.monotonic_start + self._scaled(host(MONOTONIC_RAW) - state.raw_base)
        if clock_id in (MONOTONIC_RAW, MONOTONIC_COARSE):
            return self._from_monotonic(host(clock_id), state.monotonic_start)
        if clock_id == REALTIME_COARSE:
            if self.native_rate:
                return host(REALTIME_COARSE) + state.realtime_delta
            return self._from_monotonic(host(MONOTONIC_COARSE), state.realtime_start)
        if clock_id == TAI:
            return self.now(REALTIME) + self.tai_offset()
        raise OSError(errno.EINVAL, "clock")

    def _from_monotonic(self, host: int, start: int) -> int:
        return start + self._scaled(host - self.state.monotonic_base)

    def tai_offset(self) -> int:
        """TAI less REALTIME, ns: whole seconds, the host's unless ADJ_TAI changed it."""
        host = round((self._platform.host_clock(TAI) - self._platform.host_realtime()) / NSEC) * NSEC
        return host + self.state.tai_delta

    def host_now(self, clock_id: int) -> int:
        """The host's MONOTONIC or REALTIME."""
        return self._platform.host_realtime() if clock_id == REALTIME else self._platform.host_monotonic()

    # -- CPU clocks
    @staticmethod
    def cpu_clock(clock_id: int) -> tuple[bool, int, int]:
        """(of a thread, its id, CPU_PROF, CPU_VIRT or CPU_SCHED) of a CPU clock's id."""
        return bool(clock_id & CPU_THREAD), ~(clock_id >> 3), clock_id & 3

    def _cpu_now(self, clock_id: int) -> int:
        thread, ident, kind = self.cpu_clock(clock_id)
        platform = self._platform
        if kind == CPU_VIRT:
            return platform.thread_user_ns(ident) if thread else platform.group_user_ns(ident)
        return platform.thread_cpu_ns(ident) if thread else platform.group_cpu_ns(ident)

    # -- deadlines
    def _scaled(self, span: int) -> int:
        """Host ns to sandbox ns, rounded down."""
        state = self.state
        return span if state.rate_num == state.rate_den else span * state.rate_num // state.rate_den

    def span_to_host(self, span: int) -> int:
        """Sandbox ns to host ns, rounded up: never early."""
        state = self.state
        host = span if state.rate_num == state.rate_den else -(-span * state.rate_den // state.rate_num)
        return min(host, TIME_MAX)

    def span_from_host(self, span: int) -> int:
        """Host ns to sandbox ns, rounded down, but never something to nothing."""
        return max(self._scaled(span), 1) if span > 0 else 0

    def host_deadline(self, clock_id: int, deadline: int) -> tuple[int, int]:
        """When to look again at a deadline of a sandbox clock: (host clock 1 or 0, absolute host ns).

        The first host time at which the sandbox's clock has reached it. For clocks that jump against these
        two (BOOTTIME in a suspend, TAI) as things are now.
        """
        state = self.state
        if clock_id == BOOTTIME:
            deadline -= self.now(BOOTTIME) - self.now(MONOTONIC)
        elif clock_id == TAI:
            deadline -= self.tai_offset()
        if clock_id in (REALTIME, TAI):
            if self.native_rate:
                return REALTIME, _clamp(deadline - state.realtime_delta)
            start = state.realtime_start
        else:
            start = state.monotonic_start
        return MONOTONIC, _clamp(state.monotonic_base + self.span_to_host(deadline - start))

    def to_host_clock(self, clock_id: int, deadline: int) -> int:
        """An absolute time of a sandbox clock on the host's clock of the same id, for the guest's timerfds.

        REALTIME, MONOTONIC and BOOTTIME (and their alarm clocks). At least 1: 0 would disarm.
        """
        state = self.state
        if clock_id in (BOOTTIME, BOOTTIME_ALARM) and state.boottime_base >= 0:
            return max(_clamp(state.boottime_base + self.span_to_host(deadline - state.boottime_start)), 1)
        if clock_id in (BOOTTIME, BOOTTIME_ALARM):
            offset = self._platform.host_clock(BOOTTIME) - self._platform.host_monotonic()
            return max(_clamp(self.host_deadline(MONOTONIC, deadline)[1] + offset), 1)
        host, when = self.host_deadline(REALTIME if clock_id == REALTIME_ALARM else clock_id, deadline)
        if clock_id in (REALTIME, REALTIME_ALARM) and host == MONOTONIC:
            when += self._platform.host_realtime() - self._platform.host_monotonic()
        return max(_clamp(when), 1)

    # -- setting
    def set_realtime(self, value: int) -> None:
        """clock_settime(2) on REALTIME, of this sandbox only. OSError(EINVAL) for a time before its start
        (Linux do_settimeofday64: REALTIME is never less than MONOTONIC)."""
        self.move_realtime(value - self.now(REALTIME))

    def move_realtime(self, moved: int) -> None:
        """Step REALTIME of this sandbox by `moved` ns. When this returns, everything that hangs on it has
        followed: the page, the sentry's timers, and what guests have in the host. OSError(EINVAL)."""
        state = self.state
        if self.now(REALTIME) + moved < self.now(MONOTONIC):
            raise OSError(errno.EINVAL, "before the start of MONOTONIC")
        state.boot_realtime += moved
        if self.native_rate:
            state.realtime_delta += moved
        else:
            state.realtime_start += moved
        # Linux ntp_clear: a clock that was set is synchronised with nothing, and nobody knows how wrong it is.
        state.ntp["unsync"] = 1
        for name in ("maxerror", "maxerror_since", "esterror"):
            state.ntp.pop(name, None)
        self._changed()
        if moved:
            self._platform.wall_clock_moved(moved * state.rate_den // state.rate_num)

    def stood_still(self, monotonic: int, boottime: int, raw: int) -> None:
        """The sandbox was stopped, and its MONOTONIC, BOOTTIME and MONOTONIC_RAW with it, while the host's went on by
        so many ns. REALTIME went on. What waits for them in the sentry follows."""
        state = self.state
        state.monotonic_base += monotonic
        state.frozen += monotonic
        if state.boottime_base >= 0:
            state.boottime_base += boottime
            state.boottime_frozen += boottime
        if state.raw_base >= 0:
            state.raw_base += raw
        passed = self._scaled(monotonic)
        state.realtime_start += passed
        state.boot_realtime += passed
        self._changed()

    def set_tai_offset(self, seconds: int) -> None:
        """ADJ_TAI of adjtimex(2), of this sandbox only."""
        moved = seconds * NSEC - self.tai_offset()
        if moved:
            self.state.tai_delta += moved
            self._changed()

    def host_clock_stepped(self) -> None:
        """The host's REALTIME was set. At rate 1 the sandbox's moved with it."""
        self._changed()

    def _changed(self) -> None:
        for listener in list(self.listeners):
            listener()

    # -- the parameter page
    def page_values(self, own_time: bool = True) -> PageValues:
        """What the vDSO computes from. `own_time`: the guest is in a time namespace of its own, so its native
        MONOTONIC is the host's less what makes it begin at `monotonic_start`; else it is the host's."""
        from trapline.sentry.time.parameter_page import PageValues

        s = self.state
        base = s.monotonic_start + s.frozen if own_time else s.monotonic_base
        boot_start, boot_base = s.boottime_start, s.boottime_base
        if boot_base < 0:
            boot_start, boot_base = s.monotonic_start, base
        elif own_time:
            boot_base = boot_start + s.boottime_frozen
        # A time namespace moves MONOTONIC_RAW by MONOTONIC's offset, though the two have drifted apart since
        # the host's start: left so, it could begin below 0.
        raw_base = base if s.raw_base < 0 else base + s.raw_base - s.monotonic_base
        resolution = self._platform.host_clock_resolution
        return PageValues(
            rate_num=s.rate_num,
            rate_den=s.rate_den,
            monotonic_start=s.monotonic_start,
            monotonic_base=base,
            boottime_start=boot_start,
            boottime_base=boot_base,
            raw_start=s.monotonic_start,
            raw_base=raw_base,
            realtime_delta=s.realtime_delta,
            tai_delta=s.tai_delta,
            realtime_start=s.realtime_start,
            resolution=resolution(MONOTONIC),
            coarse_resolution=resolution(MONOTONIC_COARSE),
        )

    def publish_to(self, publish: Callable[[PageValues], None], own_time: bool = True) -> None:
        """Keep a parameter page up to date, from now on. The page is the kernel's, not the keeper's."""
        self.listeners.append(lambda: publish(self.page_values(own_time)))
        publish(self.page_values(own_time))


def _clamp(when: int) -> int:
    return min(max(when, 0), TIME_MAX)
