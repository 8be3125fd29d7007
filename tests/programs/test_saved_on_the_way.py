"""The tests of real programs once more, each program saved again and again while it runs: what they look for holds when
it goes on, and when it is ended by each save and restored.

None of them is copied: the functions are those of the modules below, for which `do` is a save loop meanwhile. What is
saved, and when, a seed decides, which a failure says and TRAPLINE_SAVE_SEED repeats.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import harness
import pytest
from save_loop import SaveLoop, seed_of_tests

pytestmark = pytest.mark.long
MODULES = (
    "build", "credentials", "cryptography", "databases", "go_musl", "large_files", "many_threads", "process_tools",
    "python", "runtimes", "servers", "shells", "terminal_programs", "tools", "version_control",
)  # fmt: skip
#: Cases that say what comes first of two that are a few hundredths of a second apart, or catch a moment's state of a
#: process: a save and a restore take longer than that.
TIMED = ("background and wait", "interrupted wait", "show", "futures")
MOST = 6  # saves of one program
SPAN = 0.4  # s, at most from one to the next


class Saved(harness.Result):
    """One that a failure says more of."""

    def __init__(self, result: harness.Result, story: str) -> None:
        super().__init__(result.status, result.stdout, result.stderr)
        self._story = story

    def __repr__(self) -> str:
        return f"{self._story}, {super().__repr__()}"


@pytest.fixture(autouse=True, params=["resumed", "restored"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """What becomes of a program at each save."""
    name = request.node.name
    if any(name.endswith(f"-{case}]") for case in TIMED):
        pytest.skip("what it sees depends on time")
    seed = seed_of_tests()

    def saved(platform: str, command: list[str], *flags: str, timeout: float = 90, **more: object) -> harness.Result:
        loop = SaveLoop(platform, command, seed, kill=request.param == "restored", flags=flags, **more)
        result = loop.at_random(MOST, SPAN, timeout + 60)
        return Saved(result, f"TRAPLINE_SAVE_SEED={seed}, {loop.saves} saves")

    harness.in_place_of_do.append(saved)
    yield request.param
    harness.in_place_of_do.remove(saved)


for _name in MODULES:
    for _key, _value in vars(importlib.import_module(f"test_{_name}")).items():
        if _key.startswith("test_"):
            globals()[f"test_{_name}_{_key[5:]}"] = _value
        elif type(_value).__name__ == "FixtureFunctionDefinition":
            globals()[_key] = _value
