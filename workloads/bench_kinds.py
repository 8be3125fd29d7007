"""The kinds of run that the benchmark compares: natively, trapline, a C tracer, and what else is installed.

A peer that is not installed, or that does not start here, is left out with the reason. Nothing of a peer may
stay behind: each gets a directory of its own for its state, and one that hangs is killed with its children.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from trapline.sentry.cli.measured_run import Measured, NotMeasured, measure

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / "workloads" / "bin"
PLATFORMS = ("seccomp", "ptrace")
PEERS = ("strace", "proot", "runsc", "uml")
#: Seconds in which a peer must have run /bin/true, or it is left out (a platform of runsc may hang).
START_LIMIT = 8.0
#: Seconds that one operation may take in all of its rounds, and a whole run.
OPERATION_LIMIT = 30.0
RUN_LIMIT = 90.0
#: What the tracer's filter stops at: elsewhere it would only be another native run.
TRACED = frozenset(
    ("getitimer", "clock-raw", "clock-thread", "nanosleep", "timer", "timer-cpu", "signal", "interval")
)


@dataclass(frozen=True)
class Kind:
    """One way to run a command."""

    name: str
    title: str
    version: str
    wrap: Callable[[list[str]], list[str]]
    operations: frozenset[str] | None = None  # None: all
    peer: bool = False


def do(platform: str, *command: str) -> list[str]:
    """The command line of a command under trapline on a platform."""
    return [sys.executable, "-P", "-m", "trapline", "do", f"--platform={platform}", "--", *command]


def first_line(*command: str) -> str:
    """What a program prints first about itself; "" when it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    for line in (done.stdout + done.stderr).splitlines():
        if line.strip():
            return line.strip()
    return ""


def own_kinds() -> list[Kind]:
    """What needs nothing but this tree."""
    compiler = first_line("gcc", "--version")
    version = first_line(sys.executable, "-P", "-m", "trapline", "--version").removeprefix("trapline ")
    python = f"Python {sys.version.split()[0]}"
    return [
        Kind("native", "native", os.uname().release, list),
        Kind("seccomp", "trapline, seccomp", f"{version}, {python}", lambda c: do("seccomp", *c)),
        Kind("ptrace", "trapline, ptrace", f"{version}, {python}", lambda c: do("ptrace", *c)),
        Kind("tracer", "C tracer", compiler, lambda c: [str(BIN / "tracer"), *c], TRACED),
    ]


def runsc_platforms() -> list[str]:
    """The platforms that this runsc knows, by its own help."""
    text = subprocess.run(["runsc", "flags"], capture_output=True, text=True, check=False)
    found = re.search(r"platform to use: (.*)", text.stdout + text.stderr)
    known = re.findall(r"ptrace|systrap|kvm", found[1]) if found else ["ptrace", "systrap", "kvm"]
    return list(dict.fromkeys(known))


class Peers:
    """The peers' state directory, and which of them start. A context manager: it removes the directory."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="trapline-bench-"))
        self.absent: dict[str, str] = {}  # name -> why

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def find(self, wanted: list[str], say: Callable[[str], None]) -> list[Kind]:
        """Those of the wanted peers that run /bin/true here."""
        found = []
        for kind in self._candidates(wanted):
            say(f"trying {kind.title}")
            try:
                run = cost_of(kind.wrap(["/bin/true"]), limit=START_LIMIT)
                reason = "" if run.status == 0 else f"status {run.status}: {last_line(run.stderr)}"
            except NotMeasured as error:
                reason = f"no end after {START_LIMIT:g} s ({error})"
            if reason:
                self.absent[kind.name] = f"does not start here: {reason}"
            else:
                found.append(kind)
        return found

    def _candidates(self, wanted: list[str]) -> Iterator[Kind]:
        if "strace" in wanted and self._installed("strace", "strace"):
            version = first_line("strace", "--version").rpartition(" ")[2]
            wrap = ["strace", "-f", "-qq", "-o", "/dev/null"]
            yield Kind("strace", "strace -f", version, lambda c: [*wrap, *c], peer=True)
        if "proot" in wanted and self._installed("proot", "proot"):
            version = (re.findall(r"\d[\w.]*", first_line("dpkg-query", "-W", "proot")) or [""])[0]
            yield Kind("proot", "proot", version, lambda c: ["proot", *c], peer=True)
        if "runsc" in wanted and self._installed("runsc", "runsc"):
            version = first_line("runsc", "--version").rpartition(" ")[2]
            from bench_checkpoints import can_leave_compression

            if not can_leave_compression():
                version += " (whose checkpoints are always compressed)"
            for platform in runsc_platforms():
                yield self._runsc(platform, version)
        if "uml" in wanted and self._installed("uml", "linux.uml"):
            yield Kind("uml", "UML", first_line("linux.uml", "--version"), self._uml, peer=True)

    def _installed(self, name: str, program: str) -> bool:
        if shutil.which(program) is not None:
            return True
        self.absent[name] = "not installed"
        return False

    def _runsc(self, platform: str, version: str) -> Kind:
        options = [f"--root={self.directory / 'runsc'}", f"--platform={platform}", "--network=none"]
        if os.geteuid() != 0:
            options.append("--rootless")
        start = ["runsc", *options, "do"]
        name = f"runsc-{platform}"
        return Kind(name, f"runsc, {platform}", version, lambda c: [*start, *c], peer=True)

    def _uml(self, command: list[str]) -> list[str]:
        """User-mode Linux with the host's files, read-only, and the command as what its init runs."""
        script = self.directory / "init"
        script.write_text(
            "#!/bin/sh\n"
            "mount -t proc proc /proc\nmount -t sysfs sys /sys\n"
            "mount -t devtmpfs dev /dev\nmkdir -p /dev/pts\nmount -t devpts devpts /dev/pts\n"
            f"mount -t tmpfs tmp /tmp\ncd {shlex.quote(str(ROOT))}\n"
            f'{shlex.join(command)}\necho "exit $?"\nexec /sbin/halt -f\n'
        )
        script.chmod(0o755)
        # Its /tmp is its own, but this directory may lie in the host's: init is read before that.
        return [
            "linux.uml", "rootfstype=hostfs", "rootflags=/", "ro", "mem=256M", "quiet", f"init={script}",
            f"uml_dir={self.directory}", "con=null", "con0=fd:0,fd:1", "ssl=null",
        ]  # fmt: skip


def cost_of(command: list[str], cpus: set[int] | None = None, limit: float = RUN_LIMIT) -> Measured:
    """What a whole run cost. NotMeasured when it does not start, or has not ended within `limit` seconds."""
    expired = False

    def stop(*_: object) -> None:
        nonlocal expired
        expired = True
        kill_all(psutil.Process().children(recursive=True))

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        run = measure(command, cpus=cpus)
    except NotMeasured:
        if not expired:
            raise
        raise NotMeasured("killed") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if expired:
        raise NotMeasured("killed")
    return run


def kill_all(processes: list[psutil.Process]) -> None:
    """SIGKILL to each that is still there."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


@dataclass
class OperationsRun:
    """What one run of `ops` gave."""

    ns: dict[str, float] = field(default_factory=dict)  # by operation
    skews: list[float] = field(default_factory=list)  # time outside to time inside, of what took long enough
    failure: tuple[str, str] | None = None  # the operation that ended it, and why
    cpu: float = 0.0  # s, of the whole run
    elapsed: float = 0.0
    words: str = ""  # the last line that is no figure: a kernel's console has errors there too


def run_operations(kind: Kind, operations: list[str], rounds: int, cpus: set[int]) -> OperationsRun:
    """Run some operations in one process, and watch the clock from outside meanwhile."""
    command = kind.wrap([str(BIN / "ops"), ",".join(operations), "0", str(rounds)])
    found = OperationsRun()
    allowed = os.sched_getaffinity(0)
    with tempfile.TemporaryFile() as errors:
        os.sched_setaffinity(0, cpus)
        try:
            start = time.monotonic()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT
            )
        except OSError as error:
            found.failure = ("", str(error))
            return found
        finally:
            os.sched_setaffinity(0, allowed)
        current, timed_out = _read_figures(process, found)
        if timed_out:
            _end(process)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        found.elapsed = time.monotonic() - start
        found.cpu = usage.ru_utime + usage.ru_stime
        assert process.stdout is not None
        process.stdout.close()
        missing = [name for name in operations if name not in found.ns and name != "interval"]
        if timed_out:
            found.failure = (current, f"no end after {OPERATION_LIMIT:g} s")
        elif process.returncode != 0 or missing:
            errors.seek(0)
            found.failure = (current, found.words or f"status {process.returncode}: {last_line(errors.read())}")
    return found


def _read_figures(process: subprocess.Popen[bytes], found: OperationsRun) -> tuple[str, bool]:
    """Take figures as they come. The operation that runs at the end, and whether it took too long."""
    assert process.stdout is not None
    current, begun, rest = "", 0.0, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        deadline = time.monotonic() + OPERATION_LIMIT
        while selector.select(max(0.0, deadline - time.monotonic())):
            now = time.monotonic()
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                return current, False
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                words = line.decode(errors="replace").split()
                if len(words) == 2 and words[0] == "begin":
                    current, begun, deadline = words[1], now, now + OPERATION_LIMIT
                elif len(words) == 7 and words[1] == "median":
                    found.ns[words[0]] = float(words[2])
                    inside = float(words[6]) / 1e9
                    if inside > 0.05:
                        found.skews.append((now - begun) / inside)
                elif words and words[0] == "ops:":
                    found.words = " ".join(words)[:200]
    return current, True


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what hangs: politely first, since trapline and the peers clear up after themselves then."""
    tree = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            break
        time.sleep(0.05)
    else:
        os.kill(process.pid, signal.SIGKILL)
    kill_all(tree)


def last_line(text: str | bytes) -> str:
    """The last line that says something."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else ""
