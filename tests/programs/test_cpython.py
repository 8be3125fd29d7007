"""CPython's own tests of signals, waits, processes, threads and terminals: each case ends as it does natively.

They were written by others, for the kernel that is imitated here, and know corners that no workload of ours does. What
is compared is the outcome of each case, not the total: a case that is skipped for want of something natively must be
skipped here for the same reason.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as Xml
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import native, trapline_command

#: Not the environment that the tests run in, which has no `test` package of its own to find things beside.
PYTHON = getattr(sys, "_base_executable", sys.executable)
#: They look at the terminal that they run on, if there is one: they get one of their own.
ON_TERMINAL = ("test_pty", "test_tty", "test_openpty", "test_ioctl", "test_termios")
SPAWN = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
#: Modules, and the cases left to `make test-all`: test_itimer_virtual asks for the time in a loop until a second of
#: user time has passed, nearly all of which is the sentry's here; and of asyncio's four ways to wait for a child, those
#: two that Python has deprecated.
QUICK = {
    "test_signal": ("test_itimer_virtual",),
    "test_asyncio.test_subprocess": ("SubprocessSafeWatcherTests", "SubprocessFastWatcherTests"),
    "test_threadsignals": (),
    "test_wait3": (),
    "test_wait4": (),
    "test_posix": (),
    "test_asyncio.test_unix_events": (),
    **dict.fromkeys(ON_TERMINAL, ()),
}
#: Those of them that `make test` runs on the ptrace platform.
ON_PTRACE = ("test_signal", "test_threadsignals", "test_wait3", "test_wait4", "test_pty")
LONG = ("test_signal", "test_asyncio.test_subprocess", "test_subprocess", "test_os", "test_faulthandler", "test_threading")
#: They sleep more than they compute, so several at once take the time of the longest.
AT_ONCE = 4

Outcomes = dict[str, str]


@functools.cache
def _missing() -> str:
    done = subprocess.run([PYTHON, "-c", "import test.test_signal, test.test_asyncio"], capture_output=True, text=True)
    return done.stderr.strip().rpartition("\n")[2]


@pytest.fixture(autouse=True)
def has_the_tests():
    if _missing():
        pytest.skip(f"{PYTHON} has no test package ({_missing()}): apt-get install libpython3-testsuite")


def _outcomes(prefix: tuple[str, ...], module: str, ignored: tuple[str, ...]) -> Outcomes:
    """Run a module; every case's outcome, with its reason if it was skipped."""
    spawn = (PYTHON, "-c", SPAWN) if module in ON_TERMINAL else ()
    words = [*prefix, *spawn, PYTHON, "-m", "test", "-v", "--junit-xml", "outcomes.xml", "--timeout", "300"]
    for pattern in ignored:
        words += ["--ignore", pattern]
    # The working directory is what a guest shares with us.
    with tempfile.TemporaryDirectory() as place:
        result = native([*words, module], timeout=400, cwd=place)
        try:
            root = Xml.parse(f"{place}/outcomes.xml").getroot()
        except (OSError, Xml.ParseError):
            pytest.fail(f"{module} left no outcomes: {result}")
    found = {}
    for case in root.iter("testcase"):
        ends = [f"{end.tag}: {end.text}" if end.tag == "skipped" else end.tag for end in case]
        found[case.get("name", "")] = ", ".join(sorted(ends)) or "ok"
        for end in case:
            if end.tag != "skipped":
                found_details[prefix, module, case.get("name", "")] = end.text or ""
    assert "ok" in found.values(), result
    return found


#: What failing cases said, for the report of a difference.
found_details: dict[tuple[tuple[str, ...], str, str], str] = {}
_native = functools.cache(functools.partial(_outcomes, ()))


def _differences(platform: str, module: str, ignored: tuple[str, ...]) -> list[str]:
    prefix = tuple(trapline_command("do", f"--platform={platform}", "--"))
    expected, actual = _native(module, ignored), _outcomes(prefix, module, ignored)
    lines = []
    for case in sorted(expected.keys() | actual.keys()):
        wanted, got = expected.get(case, "not run"), actual.get(case, "not run")
        if wanted != got:
            said = found_details.get((prefix, module, case)) or found_details.get(((), module, case), "")
            lines.append(f"{case}: natively {wanted}, here {got}\n{said}")
    return lines


def _compare(platform: str, modules: Iterable[str]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for lines in pool.map(lambda module: _differences(platform, module, QUICK[module]), modules):
            assert not lines, "\n".join(lines)


def test_cases_end_as_natively(platform):
    _compare(platform, QUICK if platform == "seccomp" else ON_PTRACE)


@pytest.mark.long
def test_the_other_cases_end_as_natively_on_the_ptrace_platform():
    _compare("ptrace", [module for module in QUICK if module not in ON_PTRACE])


@pytest.mark.long
@pytest.mark.parametrize("module", LONG)
def test_cases_of_a_long_module_end_as_natively(platform, module):
    lines = _differences(platform, module, ())
    assert not lines, "\n".join(lines)
