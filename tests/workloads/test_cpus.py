"""`do --cpus N`: a cap like a cpuset's, and what programs see of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from guests import lines_of, mounts
from harness import do, native, program, workload
from test_unprivileged import ordinary_user, unprivileged

__all__ = ["ordinary_user"]
CPUS = sorted(os.sched_getaffinity(0))
more_than_one = pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU")
CPUSET = Path("/sys/fs/cgroup/cpuset")

SEEN = """
import json, os, re
def text(path): return open("/sys/devices/system/cpu/" + path).read().strip()
print(json.dumps({
    "cpu_count": os.cpu_count(), "configured": os.sysconf("SC_NPROCESSORS_CONF"), "online": text("online"),
    "possible": text("possible"), "present": text("present"),
    "directories": sorted(n for n in os.listdir("/sys/devices/system/cpu") if re.fullmatch("cpu[0-9]+", n)),
    "cpuinfo": [int(l.split(":")[1]) for l in open("/proc/cpuinfo") if l.startswith("processor")],
    "affinity": sorted(os.sched_getaffinity(0)), "init": sorted(os.sched_getaffinity(1)),
}))
"""


def expected(cpus: list[int]) -> dict[str, object]:
    """Of one CPU, or of all."""
    shown = str(cpus[0]) if len(cpus) == 1 else Path("/sys/devices/system/cpu/online").read_text().strip()
    return {
        "cpu_count": len(cpus), "configured": len(cpus), "online": shown, "possible": shown, "present": shown,
        "directories": [f"cpu{n}" for n in cpus], "cpuinfo": cpus, "affinity": cpus, "init": cpus,
    }  # fmt: skip


def python(script: str) -> list[str]:
    return ["/usr/bin/python3", "-c", script]


@more_than_one
@pytest.mark.parametrize("network", ["none", "host"])
def test_what_programs_see(platform: str, network: str) -> None:
    before = mounts()
    result = do(platform, python(SEEN), "--cpus=1", f"--network={network}")
    assert result.stderr == b"" and json.loads(result.stdout) == expected(CPUS[:1]), result
    assert mounts() == before


@more_than_one
@pytest.mark.usefixtures("ordinary_user")
@pytest.mark.parametrize("network", ["none", "host"])
def test_as_an_ordinary_user(platform: str, network: str, tmp_path: Path) -> None:
    flags = [f"--platform={platform}", "--cpus=1", f"--network={network}"]
    result = unprivileged(tmp_path, "do", *flags, "--", *python(SEEN))
    assert result.stderr == b"" and json.loads(result.stdout) == expected(CPUS[:1]), result


@more_than_one
@pytest.mark.usefixtures("ordinary_user")
def test_an_ordinary_user_gains_nothing(platform: str, tmp_path: Path) -> None:
    """The sentry sets affinities with rights of its own, and must not lend them."""
    result = unprivileged(tmp_path, "do", f"--platform={platform}", "--cpus=1", "--", workload("affinity"))
    lines = result.stdout.decode().splitlines()
    assert result.status == 0 and lines[0] == f"start: {CPUS[0]}", result
    assert not [line for line in lines if str(CPUS[1]) in line.partition(":")[2].split()], result


@more_than_one
def test_the_sandboxs_init(platform: str) -> None:
    """Who may set it is what the host's kernel says without the flag, of a user and of root."""
    change = f"import os\nos.setuid(65534)\nos.sched_setaffinity(1, [{CPUS[0]}])"
    for script in (change, change.replace("65534", "0")):
        lent, owned = do(platform, python(script)), do(platform, python(script), "--cpus=1")
        assert (owned.status, owned.stderr) == (lent.status, lent.stderr), (owned, lent)


@pytest.mark.skipif(list(range(os.cpu_count() or 1)) != CPUS, reason="not all CPUs may be used")
def test_all_of_them_is_no_cap(platform: str) -> None:
    result = do(platform, python(SEEN), f"--cpus={len(CPUS)}")
    natively = native(python(SEEN.replace("os.sched_getaffinity(1)", "os.sched_getaffinity(0)")))
    assert json.loads(result.stdout) == json.loads(natively.stdout), result


def test_without_the_flag_nothing_is_covered(platform: str) -> None:
    """Two covers and two dozen mounts are made for nobody else."""
    result = do(platform, ["cat", "/proc/self/mountinfo"])
    places = [line.split()[4] for line in result.stdout.decode().splitlines()]
    assert not [p for p in places if p.startswith(("/sys/devices", "/proc/cpuinfo"))], result


@more_than_one
def test_others_than_the_first_cpu(platform: str) -> None:
    """Numbers stay the host's; the CPUs are those that trapline's caller may use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CPUS[1:2])
    try:
        result = do(platform, python(SEEN), "--cpus=1")
        too_many = do(platform, ["true"], "--cpus=2")
    finally:
        os.sched_setaffinity(0, before)
    assert json.loads(result.stdout) == expected(CPUS[1:2]), result
    assert too_many.status == 2 and b"1, the only one" in too_many.stderr, too_many


@more_than_one
def test_as_taskset_shows_it(platform: str) -> None:
    taskset, nproc = program("taskset"), program("nproc")
    natively = native([taskset, "-c", str(CPUS[0]), nproc])
    assert do(platform, [nproc], "--cpus=1").stdout == natively.stdout
    assert do(platform, [nproc, "--all"], "--cpus=1").stdout == b"1\n"
    widened = do(platform, [taskset, "-c", f"{CPUS[0]},{CPUS[1]}", nproc], "--cpus=1")
    assert (widened.status, widened.stdout) == (0, b"1\n"), widened
    outside = do(platform, [taskset, "-c", str(CPUS[1]), nproc], "--cpus=1")
    assert outside.status == 1 and b"Invalid argument" in outside.stderr, outside


@more_than_one
def test_java_sees_it(platform: str, tmp_path: Path) -> None:
    java = program("java")
    source = "class Cpus { public static void main(String[] a) { System.out.println(\"cpus: \" + Runtime.getRuntime().availableProcessors()); } }"
    (tmp_path / "Cpus.java").write_text(source)
    result = do(platform, [java, str(tmp_path / "Cpus.java")], "--cpus=1", cwd=str(tmp_path))
    assert lines_of(result)["cpus"] == "1", result


@pytest.fixture
def cpuset() -> Iterator[list[str]]:
    """The start of a command line that runs natively in a cpuset of the first CPU: the oracle of a cap."""
    place = CPUSET / f"trapline-test-{os.getpid()}"
    try:
        place.mkdir()
        (place / "cpuset.cpus").write_text(str(CPUS[0]))
        (place / "cpuset.mems").write_text((CPUSET / "cpuset.mems").read_text())
    except OSError as error:
        pytest.skip(f"no cpuset can be made: {error}")
    yield ["sh", "-c", f'echo $$ > {place}/tasks && exec "$@"', "sh"]
    place.rmdir()


@more_than_one
def test_as_in_a_cpuset(platform: str, cpuset: list[str]) -> None:
    """Every mask, length, error and permission is as where the kernel itself holds a program to one CPU."""
    natively = native([*cpuset, workload("affinity")])
    assert natively.status == 0 and natively.stdout.startswith(b"start: %d\n" % CPUS[0]), natively
    result = do(platform, [workload("affinity")], "--cpus=1")
    assert result.stdout == natively.stdout, (result, natively)
    assert (result.status, result.stderr) == (0, b"")


def test_more_than_there_are() -> None:
    result = do("seccomp", ["true"], "--cpus=100000")
    assert result.status == 2 and result.stderr.count(b"\n") == 1, result
    assert b"takes a number of CPUs" in result.stderr and b"not '100000'" in result.stderr


SPINS = """
import os, time
start = time.monotonic()
for _ in range(2):
    if os.fork() == 0:
        os.sched_setaffinity(0, range(1024))
        end = time.monotonic() + 1
        while time.monotonic() < end:
            pass
        os._exit(0)
os.wait(), os.wait()
used = os.times()
print(used.children_user + used.children_system, time.monotonic() - start)
"""


@more_than_one
def test_two_processes_share_one_cpu(platform: str) -> None:
    """Both ask for every CPU, and together use at most a second of CPU a second (in the host's ticks)."""
    result = do(platform, python(SPINS), "--cpus=1")
    used, passed = map(float, result.stdout.split())
    assert 0 < used <= passed + 0.04, result
