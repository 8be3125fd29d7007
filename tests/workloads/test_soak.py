"""Short forms of `make soak`: some seconds of load, kills and fuzzing. The long ones find what is rare."""

from __future__ import annotations

import sys

import pytest
from harness import ROOT, do, is_root, native, stats, workload

sys.path.insert(0, str(ROOT / "workloads"))
import fuzz
import leftovers
import soak_kills
import soak_load

SEED = 20


@pytest.fixture
def left():
    found = leftovers.Leftovers()
    yield found
    found.close()


def test_load(platform: str) -> None:
    workload("mixed_load")
    assert soak_load.run([platform], 5, SEED, show=False) == []


def test_load_judges() -> None:
    """What would be growth is found, and a quiet kernel is not."""
    quiet = {"tasks": 1, "groups": 1, "tracees": 1, "tracees by tid": 1, "early": 0}
    samples = [
        {"time": t, "pss": 20000, "rss": 30000, "descriptors": 20, "objects": 100, "calls": t, "kernel": dict(quiet)}
        for t in range(40)
    ]
    assert soak_load.judge(samples) == []
    assert soak_load.slope(samples, "pss") == 0
    for name, step in (("pss", 50), ("rss", 50), ("descriptors", 1), ("objects", 5)):
        grown = [{**sample, name: sample[name] + i * step} for i, sample in enumerate(samples)]
        assert len(soak_load.judge(grown)) == 1 and name in soak_load.judge(grown)[0]
    samples[30]["kernel"]["early"] = 1
    assert soak_load.judge(samples) == ["quiet, but 1 early"]
    assert soak_load.judge(samples[:3]) != []


def test_kills(platform: str) -> None:
    workload("mixed_load")
    assert soak_kills.run(platform, 25, SEED, show=False) == []


def test_calls_answer_as_natively(platform: str, left: leftovers.Leftovers) -> None:
    workload("fuzz_calls")
    assert fuzz.single(platform, SEED, left) == []


def test_a_difference_is_found(platform: str, left: leftovers.Leftovers, monkeypatch: pytest.MonkeyPatch) -> None:
    workload("fuzz_calls")
    real = fuzz.guest

    def other(*args: object) -> tuple[str, list[str]]:
        output, problems = real(*args)  # type: ignore[arg-type]
        return output.replace("= EINVAL", "= EPERM", 1), problems

    monkeypatch.setattr(fuzz, "guest", other)
    found = fuzz.single(platform, SEED, left, count=20)
    assert any(line.endswith("= EPERM") for line in found) and "repeat it" in found[-1]


def test_chaos(platform: str, left: leftovers.Leftovers) -> None:
    workload("fuzz_calls")
    if not is_root():
        pytest.skip("guests are kept off the first process by its user id")
    assert fuzz.chaos(platform, SEED, left, 3000) == []


def test_chaos_spares_the_host() -> None:
    result = native([workload("fuzz_calls"), "chaos", "1", "10"])
    assert (result.status, result.stdout) == (2, b"only inside of a sandbox\n")


def test_one_scenario_can_be_repeated(platform: str) -> None:
    result = do(platform, [workload("mixed_load"), "once", "stops", "55555"])
    assert (result.status, result.stdout, result.stderr) == (0, b"", b"")


def test_stats_count(platform: str, tmp_path) -> None:
    """What is counted only when it is asked for, against what the program does."""
    found = stats(platform, ["sh", "-c", "kill -USR1 $$; exit 0"], tmp_path)
    assert found["signals"] == {"10": 1} and found["tasks_created"] == 1, found
    found = stats(platform, ["sh", "-c", "trap : USR1; kill -USR1 $$; sleep 0.01; /bin/true; exit 3"], tmp_path)
    assert found["signals"]["10"] == 1 and found["tasks_created"] == 3 and found["execs"] == 3, found
    assert found["timers"] == {"sleep": 1}
    assert set(found["handler_ns"]) == set(found["calls"]) and found["handler_ns"]["kill"] > 0
    assert found["stop_kinds"]["exec"] == 3
    assert found["stop_kinds"].get("fork", 0) + found["stop_kinds"].get("clone", 0) == 2
    assert 0 < sum(found["stop_kinds"].values()) <= found["stops"]
    assert found["guest_cpu_ns"] > 0 and found["guest_rss_kb"] > 0 and found["elapsed_ns"] > 10_000_000
