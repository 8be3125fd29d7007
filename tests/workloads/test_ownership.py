"""The sentry decides what it says it decides: a launcher that only executes programs fails all of this."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from guests import compiled, lines_of, python_file
from harness import do, is_root, native, stats, workload

from trapline.sentry.syscalls.table import TABLE

BAD = 1  # an address where nothing is
#: Arguments of the calls that the filter sends here for some only, or that would do something with none.
ARGUMENTS = {
    "prctl": (1, 0),  # PR_SET_PDEATHSIG
    "getrlimit": (0, BAD),
    "setrlimit": (0, BAD),
    "prlimit64": (0, 0),
    "clone": (1 << 23,),  # CLONE_UNTRACED: a child without a signal, see below
    "ppoll": (0, 0, 0, BAD, 8),
    "pselect6": (0, 0, 0, 0, 0, BAD),
    "epoll_pwait": (0, 0, 0, 0, BAD, 8),
    "epoll_pwait2": (0, 0, 0, 0, BAD, 8),
    "ioctl": (0, 0x540F),  # TIOCGPGRP
    "alarm": (1000,),
    "timer_create": (99,),
    "seccomp": (99,),
}
#: Made by the program by other means.
OTHERWISE = {"rt_sigreturn", "vfork", "pause"}
#: A fork by hand: the children would go on in the loop and make the calls as well.
LEFT_OUT = {"clone"}


def owned() -> list[str]:
    return [row.name for row in TABLE if row.owned()]


def test_every_owned_call_reaches_its_handler(platform: str, tmp_path: Path) -> None:
    """Each is made three times, and is counted three times more than in a run without."""
    numbers = {row.name: row.nr for row in TABLE}
    names = [name for name in owned() if name not in OTHERWISE | LEFT_OUT]
    calls = [":".join(map(str, (numbers[name], *ARGUMENTS.get(name, ())))) for name in names]
    program, log = compiled("ownership"), tmp_path / "log"
    without = stats(platform, [program, "make"], tmp_path)["calls"]
    found = stats(platform, [program, "make", *calls], tmp_path, f"--log={log}")["calls"]
    assert isinstance(without, dict) and isinstance(found, dict)
    more = {name: found.get(name, 0) - without.get(name, 0) for name in [*names, *OTHERWISE]}
    extra = {"setitimer": 3, "rt_sigaction": 1, "rt_sigprocmask": 1}  # of the other means
    assert more == {name: 3 + extra.get(name, 0) for name in more}
    assert "not implemented" not in log.read_text()


def test_clocks_start_with_the_sandbox(platform: str) -> None:
    """MONOTONIC, BOOTTIME and RAW are near 0, by the vDSO and by calls; REALTIME is the host's."""
    result = do(platform, [compiled("ownership"), "clocks"])
    values = {name: [int(v) for v in text.split()] for name, text in lines_of(result).items()}
    now = time.time() * 1000
    for name in ("monotonic", "boottime", "coarse"):
        assert all(0 <= value < 5000 for value in values[name]), (name, values)
    assert 0 <= values["raw"][0] < 5000, values
    assert all(abs(value - now) < 5000 for value in values["realtime"]), values
    assert all(abs(fast - slow) < 50 for fast, slow in values.values()), values


#: Waits of 0.1 s, or of 1 s, that the guest makes in this order.
WAITS = [
    "nanosleep", "clock_nanosleep(MONOTONIC)", "clock_nanosleep(BOOTTIME)", "until(REALTIME)", "until(MONOTONIC)",
    "until(BOOTTIME)", "until(TAI)", "setitimer", "timer(REALTIME)", "timer(MONOTONIC)", "timer(BOOTTIME)",
    "timer(TAI)", "timer_until(REALTIME)", "timer_until(TAI)", "timerfd(REALTIME)", "timerfd(MONOTONIC)",
    "timerfd(BOOTTIME)", "timerfd_until(REALTIME)", "timerfd_until(BOOTTIME)", "sigtimedwait", "periods(setitimer)",
    "periods(timer)", "periods(timerfd)", "alarm",
]  # fmt: skip


#: A slow clock's test takes four times as long as a fast one's.
HALF = pytest.mark.long


@pytest.mark.parametrize("rate, slower", [pytest.param("1/2", 2.0, marks=HALF), ("2", 0.5)])
def test_the_clocks_rate(platform: str, rate: str, slower: float) -> None:
    """0.1 s of the guest's are 0.2 s of the host's, or 0.05, by every owned wait, while the guest sees 0.1."""
    result = do(platform, [compiled("ownership"), "waits"], f"--clock-rate={rate}")
    assert result.status == 0 and result.stderr == b"", result
    lines = [line.split() for line in result.stdout.decode().splitlines()[1:]]
    assert [line[0] for line in lines] == WAITS
    for name, *values in lines:
        least, most, host = (int(value) / 1_000_000 for value in values)
        # The host's wall clock is what these measure by, too, and its keeper may push it while they wait.
        pushed = 0.0001 if "REALTIME" in name or "TAI" in name else 0.0
        assert least >= (1.0 if name == "alarm" else 0.1) - pushed, (name, values)
        # Times of files have the granularity of the host's tick, or of several where its CPU was away, at either end.
        assert least * slower - 0.03 < host < most * slower + 0.03, (name, values)


@pytest.mark.parametrize("rate", [pytest.param("1/2", marks=HALF), "2"])
def test_all_clocks_run_at_the_rate(platform: str, rate: str) -> None:
    """By the vDSO, by calls, and by the other calls that tell the time."""
    lines = lines_of(do(platform, [compiled("ownership"), "together"], f"--clock-rate={rate}"))
    assert len(lines) == 20 and set(lines.values()) == {"yes"}, lines


def test_setting_the_clock_is_for_root_of_the_sandbox(platform: str) -> None:
    """It moves the sandbox's own wall clock, for all of its processes, and nobody else's."""
    before = time.time() - time.monotonic()
    lines = lines_of(do(platform, [compiled("ownership"), "set"]))
    assert abs(time.time() - time.monotonic() - before) < 60
    if is_root():
        assert lines["clock_settime"] == lines["settimeofday"] == "ok"
        assert lines["moved a day"] == "yes"
    else:
        assert lines["clock_settime"] == lines["settimeofday"] == "EPERM"
        assert lines["not moved"] == "yes"
    assert lines["gettimeofday agrees"] == "yes"
    other = lines_of(do(platform, [compiled("ownership"), "clocks"]))
    assert abs(int(other["realtime"].split()[0]) - time.time() * 1000) < 5000


DRIVER = """
import sys
from trapline.sentry.cli.main import main
from trapline.sentry.syscalls import registry, sys_itimer, sys_signal, sys_time, structs
{before}
sys.exit(main(["do", "--platform={platform}", *{flags!r}, "--", *{command!r}]))
"""


def drive(tmp_path: Path, platform: str, before: str, command: list[str], *flags: str):  # type: ignore
    text = DRIVER.format(before=before, platform=platform, flags=list(flags), command=command)
    return native(python_file(tmp_path, text))


OVERRIDES = """
import struct
def getitimer(kernel, task, which, address):
    kernel.memory(task).write(address, struct.pack("<4q", 0, 0, 4321, 0))
    return 0
def clock_gettime(kernel, task, clock_id, address):
    kernel.memory(task).write(address, struct.pack("<2q", 777, 0))
    return 0
registry.override("getitimer", getitimer)
registry.override("kill", lambda kernel, task, pid, signo: -18)
registry.override("clock_gettime", clock_gettime)
registry.override("getppid", lambda kernel, task: 4242)
"""


def test_an_overridden_handler_changes_the_guest(platform: str, tmp_path: Path) -> None:
    """Of owned calls, and of a lent one, which the filter then sends to the sentry."""
    command = [compiled("ownership"), "answers"]
    plain = lines_of(do(platform, command))
    assert plain["getitimer"] == "0" and plain["kill"] == "ok"
    assert int(plain["clock_gettime"]) < 10 and int(plain["getppid"]) != 4242
    changed = drive(tmp_path, platform, OVERRIDES, command)
    assert lines_of(changed) == {
        "getitimer": "4321", "kill": "errno 18", "clock_gettime": "777", "getppid": "4242",
    }, changed  # fmt: skip


#: Sends the kernel's whole state through msgspec and back: in the middle of the run, after batches and
#: between stops, and at its end. What is equal may still be one object in two places, which would be two after a restore.
ROUND_TRIP = """
import json
import msgspec
from trapline.platform import engine, pump, session
from trapline.sentry.kernel.state import KernelState

found = {{"trips": 0, "tasks": 0, "calls": 0, "timers": 0, "different": 0, "shared": []}}
kernel = None

def walk(value, path, seen):
    if isinstance(value, msgspec.Struct) and not value.__struct_config__.frozen:
        parts = [(name, getattr(value, name)) for name in value.__struct_fields__]
    elif isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value))
    else:
        return
    if id(value) in seen:
        found["shared"].append(seen[id(value)] + " = " + path)
    seen[id(value)] = path
    for name, part in parts:
        walk(part, path + "." + str(name), seen)

def trip(state):
    found["trips"] += 1
    found["tasks"] = max(found["tasks"], len(state.tasks))
    found["calls"] = max(found["calls"], sum(t.call is not None for t in state.tasks.values()))
    found["timers"] = max(found["timers"], len(state.timers))
    for module in (msgspec.msgpack, msgspec.json):
        if module.decode(module.encode(state), type=KernelState) != state:
            found["different"] += 1
    walk(state, "", {{}})

report, batch, serve_stop = session.Session._report, pump.Pump.batch, engine.Engine.serve_stop

def new_report(self):
    trip(self.kernel.state)
    with open({file!r}, "w") as f:
        json.dump(found, f)
    report(self)

def new_batch(self, timeout):
    batch(self, timeout)
    if self.batches % 4 == 1 and found["trips"] < 120:
        trip(self.engine.kernel.state)

def new_serve_stop(self, host, status):
    serve_stop(self, host, status)
    if self.stops % 8 == 1 and found["trips"] < 120:
        trip(self.kernel.state)

session.Session._report, pump.Pump.batch, engine.Engine.serve_stop = new_report, new_batch, new_serve_stop
"""


@pytest.mark.parametrize(
    "name, calls, timers",
    [("processes", 1, 0), ("exec", 0, 0), ("signals", 1, 1), ("threads_exit", 1, 0), ("killall", 1, 0),
     ("jobs", 1, 0)],
)  # fmt: skip
def test_the_kernels_state_is_plain_data(
    platform: str, tmp_path: Path, name: str, calls: int, timers: int
) -> None:
    file = tmp_path / "found"
    result = drive(tmp_path, platform, ROUND_TRIP.format(file=str(file)), [workload(name)])
    assert result.status == 0 and result.stderr == b"", result
    found = json.loads(file.read_text())
    assert found["different"] == 0 and found["shared"] == [], found
    assert found["trips"] > 9 and found["tasks"] > 1, found
    assert found["calls"] >= calls and found["timers"] >= timers, found


def test_overriding_what_is_not_loaded_yet(platform: str, tmp_path: Path) -> None:
    """A library user names a call, and need not know the module of its handler."""
    script = f"""
import sys
from trapline.sentry.cli.main import main
from trapline.sentry.syscalls import registry
registry.override("kill", lambda kernel, task, pid, signo: -18)
sys.exit(main(["do", "--platform={platform}", "--", {compiled("ownership")!r}, "answers"]))
"""
    result = native(python_file(tmp_path, script))
    assert (result.status, result.stderr, lines_of(result)["kill"]) == (0, b"", "errno 18"), result
