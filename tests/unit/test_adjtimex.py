"""adjtimex(2) of a sandbox, on the fake platform (Linux kernel/time/ntp.c)."""

import struct

import pytest
from test_sys_time import SECOND, A, B, Guest, guest  # noqa: F401  (the fixture)

REALTIME, TAI_CLOCK = 0, 11
OFFSET, FREQUENCY, MAXERROR, ESTERROR, STATUS, TIMECONST, TAI = 1, 2, 4, 8, 0x10, 0x20, 0x80
SETOFFSET, MICRO, NANO, TICK, SINGLESHOT, SS_READ = 0x100, 0x1000, 0x2000, 0x4000, 0x8001, 0xA001
PLL, INS, UNSYNC, CLOCKERR, STA_NANO = 1, 0x10, 0x40, 0x1000, 0x2000
NAMES = [
    "modes", "offset", "freq", "maxerror", "esterror", "status", "constant", "precision", "tolerance", "seconds",
    "fraction", "tick", "ppsfreq", "jitter", "shift", "stabil", "jitcnt", "calcnt", "errcnt", "stbcnt", "tai",
]  # fmt: skip
TIMEX = struct.Struct("<I4x4qi4x3q2q3qi4x5qi")


class Clock:
    """Calls adjtimex with fields by name; `result` and the fields as they came back."""

    def __init__(self, of: Guest) -> None:
        self.guest = of

    def __call__(self, **fields: int) -> object:
        memory = self.guest.platform.memory(2)
        memory.write(A, TIMEX.pack(*(fields.get(name, 0) for name in NAMES)).ljust(208, b"\0"))
        self.result = self.guest("adjtimex", A)
        self.fields = dict(zip(NAMES, TIMEX.unpack(memory.read(A, TIMEX.size)), strict=True))
        return self.result

    def __getattr__(self, name: str) -> int:
        return self.fields[name]


@pytest.fixture
def clock(guest):  # noqa: F811
    return Clock(guest)


def host(guest, state, **fields):  # noqa: F811
    values = dict.fromkeys(NAMES, 0) | {"tick": 10_000} | fields
    guest.platform.timex = state, TIMEX.pack(*values.values()).ljust(208, b"\0")


def test_reading_is_the_hosts_account(guest, clock):  # noqa: F811
    assert clock() == 5 and clock.status == UNSYNC and clock.maxerror == clock.esterror == 16_000_000
    assert clock.tick == 10_000 and clock.tai == 37
    assert clock.seconds * SECOND + clock.fraction * 1000 == guest.platform.realtime // 1000 * 1000
    host(guest, 0, status=STA_NANO | PLL, freq=77, maxerror=500, esterror=3, constant=7)
    assert clock() == 0 and (clock.freq, clock.maxerror, clock.esterror, clock.constant) == (77, 500, 3, 7)
    assert clock.seconds * SECOND + clock.fraction == guest.platform.realtime


def test_a_step_by_offset(guest, clock):  # noqa: F811
    host(guest, 0, status=0, maxerror=500, esterror=3)
    before = guest.clock(REALTIME)
    assert clock(modes=SETOFFSET, seconds=-3, fraction=5) == 5
    assert guest.clock(REALTIME) == before - 3 * SECOND + 5000
    # Linux ntp_clear: nobody knows any more how wrong it is.
    assert clock.status & UNSYNC and clock.maxerror == clock.esterror == 16_000_000
    assert clock(modes=SETOFFSET | NANO, seconds=0, fraction=999_999_999) == 5
    assert guest.clock(REALTIME) == before - 2 * SECOND + 4999
    assert clock.fraction == guest.clock(REALTIME) % SECOND
    assert guest.platform.wall_moves == [-3 * SECOND + 5000, 999_999_999]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"modes": SETOFFSET, "fraction": -1}, "EINVAL"),
        ({"modes": SETOFFSET, "fraction": 10**6}, "EINVAL"),
        ({"modes": SETOFFSET | NANO, "fraction": 10**9}, "EINVAL"),
        ({"modes": SETOFFSET, "seconds": 1 << 40}, "EINVAL"),
        ({"modes": SETOFFSET, "seconds": -(1 << 40)}, "EINVAL"),
        ({"modes": TICK, "tick": 8_999}, "EINVAL"),
        ({"modes": TICK, "tick": 11_001}, "EINVAL"),
        ({"modes": TICK, "tick": 10_001}, "EPERM"),
        ({"modes": TICK, "tick": 10_000}, 5),
        ({"modes": FREQUENCY, "freq": 1 << 62}, "EINVAL"),
        ({"modes": FREQUENCY, "freq": -(1 << 62)}, "EINVAL"),
        ({"modes": FREQUENCY, "freq": 1}, "EPERM"),
        ({"modes": FREQUENCY, "freq": 0}, 5),
        ({"modes": OFFSET, "offset": 5}, 5),  # nothing happens without STA_PLL
        ({"modes": OFFSET | STATUS, "offset": 5, "status": PLL}, "EPERM"),
        ({"modes": STATUS, "status": INS}, "EPERM"),
        ({"modes": 0x8000}, "EINVAL"),
        ({"modes": SINGLESHOT, "offset": 5}, "EPERM"),
        ({"modes": SINGLESHOT}, 5),
        ({"modes": SS_READ, "offset": 5}, 5),
    ],
)
def test_order_of_errors(clock, fields, wanted):
    assert clock(**fields) == wanted


def test_a_refusal_changes_nothing(guest, clock):  # noqa: F811
    before = guest.clock(REALTIME)
    assert clock(modes=SETOFFSET | FREQUENCY, seconds=60, freq=9) == "EPERM"
    assert clock(modes=STATUS | TICK, status=0, tick=9_500) == "EPERM"
    assert guest.clock(REALTIME) == before and clock() == 5 and clock.status == UNSYNC


def test_what_others_may(guest, clock):  # noqa: F811
    guest.platform.uids[2], guest.platform.capabilities = (7, 7, 7), 0
    assert clock() == 5 and clock(modes=SS_READ) == 5
    assert clock(modes=STATUS) == clock(modes=SINGLESHOT) == clock(modes=TICK, tick=1) == "EPERM"
    assert clock(modes=0x8000) == "EINVAL"


def test_a_guest_that_disciplines(guest, clock):  # noqa: F811
    assert clock(modes=STATUS | NANO, status=PLL | CLOCKERR) == 0  # CLOCKERR is not for writing
    assert clock.status == PLL | STA_NANO
    assert clock(modes=TIMECONST | MAXERROR | ESTERROR, constant=99, maxerror=15_999_000, esterror=-5) == 0
    assert (clock.constant, clock.maxerror, clock.esterror) == (10, 15_999_000, 0)
    guest.advance(SECOND)
    assert clock() == 0 and clock.maxerror == 15_999_500
    guest.advance(2 * SECOND)
    assert clock() == 5 and clock.maxerror == 16_000_000 and clock.status & UNSYNC
    assert clock(modes=MICRO | TIMECONST, constant=3) == 5 and clock.constant == 7 and not clock.status & STA_NANO


def test_tai(guest, clock):  # noqa: F811
    assert clock(modes=TAI, constant=40) == 5 and clock.tai == 40
    assert guest.clock(TAI_CLOCK) - guest.clock(REALTIME) == 40 * SECOND
    clock(modes=TAI, constant=-1)
    clock(modes=TAI, constant=100_001)
    assert clock.tai == 40
    until = divmod(guest.clock(TAI_CLOCK) + 5 * SECOND, SECOND)
    guest.platform.memory(3).write(B, struct.pack("<qq", *until))
    guest.world.call(guest.thread, "clock_nanosleep", TAI_CLOCK, 1, B, 0)
    guest.advance(0)
    assert guest.platform.completed == []
    clock(modes=TAI, constant=46)  # its time has come
    guest.advance(0)
    assert guest.platform.completed == [(3, 0)]
