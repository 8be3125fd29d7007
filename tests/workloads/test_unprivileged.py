"""As an ordinary user, and on hosts that offer less: the forms for kernel 6.1, and none at all."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest
from guests import compiled, lines_of
from harness import Result, do, is_root, native, oracle, same, workload

NOBODY = 65534
DRIVER = str(Path(__file__).with_name("unprivileged_driver.py"))


def unprivileged(tmp_path: Path, *arguments: str, first: str = "-") -> Result:
    """trapline's command line as an ordinary user, in a directory of its own."""
    place = tmp_path / "place"
    place.mkdir(mode=0o755)
    if is_root():
        os.chown(place, NOBODY, NOBODY)
        for parent in place.parents:  # pytest's directories are root's alone
            if str(parent).startswith("/tmp/pytest"):
                parent.chmod(0o755)
    words = list(arguments)
    if words[0] == "do":
        words.insert(1, f"--state-dir={place / 'state'}")
    user = str(NOBODY if is_root() else os.getuid())
    return native([sys.executable, DRIVER, user, first, *words], cwd=str(place))


@pytest.fixture
def ordinary_user(tmp_path: Path) -> None:
    """Where ordinary users may not make namespaces, there is only the message to be tested."""
    probe = tmp_path / "probe"
    probe.mkdir()
    result = unprivileged(probe, "do", "true")
    if result.status == 125 and b"user namespaces" in result.stderr:
        pytest.skip(result.stderr.decode().strip())


@pytest.mark.usefixtures("ordinary_user")
@pytest.mark.parametrize("name", ["processes", "signals", "terminals", "job_control", "line_discipline"])
def test_workloads(platform: str, tmp_path: Path, name: str) -> None:
    """They print what they print to root, whose privileges they do not use."""
    result = unprivileged(tmp_path, "do", f"--platform={platform}", "--", workload(name))
    assert result.stdout == oracle(workload(name)).stdout, result
    assert (result.status, result.stderr) == (0, b"")


@pytest.mark.usefixtures("ordinary_user")
@pytest.mark.parametrize(
    "sections", [["woken"], pytest.param(["spin", "which", "limit"], marks=pytest.mark.long)], ids="-".join
)
def test_cpu_time(platform: str, tmp_path: Path, sections: list[str]) -> None:
    """Ordinary users may only count events outside the kernel, where an alarm that is due inside it is lost: a timer
    of the host's stands by."""
    command = [workload("cputime"), *sections]
    result = unprivileged(tmp_path, "do", f"--platform={platform}", "--", *command)
    assert result.stdout == oracle(*command).stdout, result
    assert (result.status, result.stderr) == (0, b"")


@pytest.mark.usefixtures("ordinary_user")
def test_a_shell(platform: str, tmp_path: Path) -> None:
    """Ids, a pipeline, a file in the shared directory, one elsewhere that is gone afterwards."""
    script = "id -u; id -g; echo a b | wc -w; echo kept > kept; echo gone > /tmp/trapline-gone && cat /tmp/trapline-gone"
    result = unprivileged(tmp_path, "do", f"--platform={platform}", "sh", "-c", script)
    user = str(NOBODY if is_root() else os.getuid())
    assert result.stdout.decode().split() == [user, user, "2", "gone"], result
    assert (result.status, result.stderr) == (0, b"")
    assert (tmp_path / "place" / "kept").read_text() == "kept\n"
    assert not os.path.exists("/tmp/trapline-gone")


@pytest.mark.usefixtures("ordinary_user")
def test_clocks_and_their_setting(platform: str, tmp_path: Path) -> None:
    result = unprivileged(tmp_path, "do", f"--platform={platform}", "--", compiled("ownership"), "clocks", "set")
    lines = lines_of(result)
    assert int(lines["monotonic"].split()[0]) < 5000, result
    assert lines["clock_settime"] == "EPERM" and lines["not moved"] == "yes"


@pytest.mark.usefixtures("ordinary_user")
def test_a_core_file(platform: str, tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("core files are forbidden here (ulimit -H -c is 0)")
    program = compiled("crash")
    result = unprivileged(tmp_path, "do", f"--platform={platform}", "--core-dir=.", "--", program, "parent", "abort")
    assert result.stdout == b"waitpid: signal 6, core yes\nwaitid: code 3, status 6\n", result
    cores = [name for name in os.listdir(tmp_path / "place") if name.startswith("core.")]
    assert len(cores) == 2


def test_without_user_namespaces(platform: str, tmp_path: Path) -> None:
    """One line that says what is missing and what would bring it; nothing is left."""
    if not is_root():
        pytest.skip("only root can take them away for a test")
    result = unprivileged(tmp_path, "do", f"--platform={platform}", "true", first="no-user-namespaces")
    if result.status == 77:
        pytest.skip("this host has no user namespaces to be taken away")
    (line,) = result.stderr.decode().splitlines()
    assert result.status == 125, result
    assert "user namespaces" in line and "user.max_user_namespaces" in line
    assert os.listdir(tmp_path / "place" / "state") == []


def test_doctor_says_so(tmp_path: Path) -> None:
    if not is_root():
        pytest.skip("only root can take them away for a test")
    result = unprivileged(tmp_path, "doctor", first="no-user-namespaces")
    if result.status == 77:
        pytest.skip("this host has no user namespaces to be taken away")
    text = result.stdout.decode()
    (line,) = [line for line in text.splitlines() if " user_namespace " in line]
    assert line.split()[0] == "NO" and "user.max_user_namespaces" in line, text
    assert "sandboxes cannot run here" in text


#: What kernel 6.1, or a host that is locked up, does not have.
FORMS = [
    ("sync_wake_up",),
    ("wait_killable_recv",),
    ("perf_event",),
    ("pidfd_getfd",),
    ("addfd_send",),
    ("addfd",),
    ("time_namespace",),
    ("sync_wake_up", "wait_killable_recv", "pidns_ioctl", "perf_event", "pidfd_getfd", "addfd", "addfd_send", "pagemap_scan", "userfaultfd"),
]


@pytest.mark.parametrize("features", FORMS, ids="+".join)
def test_forms_for_less(platform: str, features: tuple[str, ...]) -> None:
    """Without a feature the other form is used, and programs see the same."""
    flags = [f"--without={name}" for name in features]
    name = "signals" if len(features) > 1 else "processes"
    assert same(platform, [workload(name)], *flags).stderr == b""
    result = do(platform, [compiled("ownership"), "clocks"], *flags)
    values = {name: [int(v) for v in text.split()] for name, text in lines_of(result).items()}
    assert all(0 <= value < 5000 for value in values["monotonic"] + values["boottime"]), result


def test_an_unknown_feature(platform: str) -> None:
    result = do(platform, ["true"], "--without=sync_wakeup")
    assert result.status == 2 and b"did you mean sync_wake_up?" in result.stderr
