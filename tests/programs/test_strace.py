"""`trapline do --strace`: its log against that of strace itself, and against what programs see of their calls."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import strace_reader
from harness import BIN, do, native, program, trapline_command

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def guest():
    """The C program beside this file."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    source, target = HERE / "strace_guest.c", BIN / "test-strace-guest"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        BIN.mkdir(exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O1", "-w", "-o", fresh, source, "-pthread"], check=True)
        fresh.rename(target)
    return str(target)


def traced(platform, command, log, *flags, status=0):
    """The entries of a run's log."""
    result = do(platform, command, "--strace", "-o", str(log), *flags)
    assert result.status == status, result
    return strace_reader.read(log)


def real(command, log):
    """The entries of strace's own log."""
    native([program("strace"), "-f", "-ttt", "-T", "-o", str(log), *command])
    return strace_reader.read(log)


#: What differs from run to run: addresses, random bytes, times that were read, ids.
_VARIES = [
    (re.compile(r"0x[0-9a-f]{6,}"), "ADDRESS"),
    (re.compile(r'"(\\x[0-9a-f]{2})+"'), "RANDOM"),
    (re.compile(r"tv_sec=[1-9]\d*|tv_[nu]sec=\d+"), "TIME"),
    (re.compile(r"st_size=\d+"), "SIZE"),
]


def shapes(entries, ids):
    """Per task, in the order in which they appear: calls and events with what varies taken out."""
    order = list(dict.fromkeys(entry.pid for entry in entries))
    names = {str(pid): f"TASK{at}" for at, pid in enumerate(order)}
    found = []
    for pid in order:
        lines = []
        for entry in entries:
            if entry.pid != pid or entry.text.startswith("--- SIGCHLD"):
                continue  # natively too it comes before or after the call that waits for the child
            line = f"{entry.name}({entry.args}) = {entry.result}" if entry.name else entry.text
            for expression, word in _VARIES:
                line = expression.sub(word, line)
            if ids:
                line = re.sub(r"(?<![\w./])\d+(?![\w./*])", lambda m: names.get(m[0], m[0]), line)
            lines.append(line)
        found.append(lines)
    return found


def calls_of(entries):
    """Per task the names of its calls, and whether they failed, and with what. Without rt_sigreturn: natively too a
    child's signal comes before or after the call that waits for it."""
    return [
        [
            (call.name, call.result.split()[1] if call.result.startswith("-1 ") else "")
            for call in task
            if call.name != "rt_sigreturn"
        ]
        for task in strace_reader.calls(entries).values()
    ]


@pytest.mark.parametrize(
    "command",
    [
        ["/bin/echo", "hi"],
        ["/bin/cat", "/etc/passwd"],
        ["/bin/ls", "/usr"],
        ["/bin/sh", "-c", "read x </etc/passwd; cd /; umask 022; kill -0 1; exit 3"],
        ["/bin/sh", "-c", "(exit 4); /bin/true; /bin/false"],
    ],
    ids=lambda command: " ".join(command)[:20],
)
def test_the_same_calls_as_strace(platform, command, tmp_path):
    status = native(command).status
    ours = traced(platform, command, tmp_path / "ours", status=status)
    assert calls_of(ours) == calls_of(real(command, tmp_path / "theirs"))


def test_the_same_lines_as_strace(platform, guest, tmp_path):
    """Names, structures, flags, strings and results of a hundred calls of many kinds."""
    theirs = shapes(real([guest, "calls"], tmp_path / "theirs"), ids=False)
    ours = shapes(traced(platform, [guest, "calls"], tmp_path / "ours"), ids=False)
    assert len(ours) == len(theirs)
    id_of_task = re.compile("getpid|gettid|clone|vfork|set_tid_address|wait4|tgkill|kill|---|rt_sigtimedwait")
    for mine, strace in zip(ours, theirs, strict=True):
        mine, strace = ([re.sub(r" /\* [\d-]+T.*?\*/", "", line) for line in lines] for lines in (mine, strace))
        for one, other in zip(mine, strace, strict=True):
            if id_of_task.match(one):  # ids are the sandbox's: numbers aside it is the same line
                one, other = (re.sub(r"\d+", "N", line) for line in (one, other))
            if one.startswith("execve"):
                one, other = (re.sub(r"\d+ vars", "vars", line) for line in (one, other))
            assert one == other


def test_terminals_as_strace(platform, guest, tmp_path):
    def requests(entries):
        found = [f"{e.args} = {e.result}" for e in entries if e.name == "ioctl"]
        return [re.sub(r"\[\d+\]|0x7f\w+", "N", line) for line in found]  # ids are the sandbox's

    ours = traced(platform, [guest, "terminal"], tmp_path / "ours")
    assert requests(ours) == requests(real([guest, "terminal"], tmp_path / "theirs"))
    owned = {e.args.split(", ")[1] for e in ours if e.name == "ioctl" and e.mark == "OWNED"}
    assert owned == {"TIOCGPGRP", "TIOCSPGRP", "TIOCGSID", "TIOCSCTTY", "TIOCNOTTY", "TIOCSTI"}


@pytest.mark.parametrize("how", ["interrupted", "restarted"])
@pytest.mark.parametrize("only", [(), ("-e", "trace=nanosleep")], ids=["stops", "dispatcher"])
def test_every_value_once(platform, guest, how, only, tmp_path):
    """The program counts the results of its sleeps and waits, of which a periodic signal interrupts many."""
    log = tmp_path / "log"
    result = do(platform, [guest, how], "--strace", "-o", str(log), *only)
    handled, slept, cut, full, broken = map(int, result.stdout.split())
    entries = strace_reader.read(log)
    assert sum(e.text.startswith("--- SIGALRM") for e in entries) == handled
    results = [e.result for e in entries if e.name == "nanosleep"]
    assert results.count("0") == slept
    assert sum("EINTR" in r for r in results) == cut
    assert slept + cut == 40
    assert all(e.mark == "OWNED" for e in entries if e.name == "nanosleep" and not e.result.startswith("?"))
    if not only:
        results = [e.result for e in entries if e.name == "epoll_wait"]
        assert (results.count("0"), sum("EINTR" in r for r in results)) == (full, broken)
        assert sum(e.name == "rt_sigreturn" for e in entries) == handled
        assert not [e for e in entries if e.name == "pause"]  # in which the ptrace platform parks


def test_threads_and_ends(platform, guest, tmp_path):
    entries = traced(platform, [guest, "ends"], tmp_path / "log")
    events = [e.text for e in entries if not e.name]
    assert events.count("+++ killed by SIGKILL +++") == 2  # both threads
    assert events.count("+++ killed by SIGTERM +++") == 1
    assert events.count("+++ exited with 5 +++") == 2
    assert events.count("+++ exited with 6 +++") == 1
    assert events.count("--- stopped by SIGSTOP ---") == 1
    assert sum(e.startswith("+++ superseded by execve in pid ") for e in events) == 1
    assert sum("si_code=CLD_KILLED" in e for e in events) == 2
    assert [e.result for e in entries if e.name == "execve"] == ["0", "0"]
    # Of the two long sleeps and the two reads of empty pipes none ever returns.
    assert [e.result for e in entries if e.name == "clock_nanosleep" and "tv_sec=100" in e.args] == ["?", "?"]
    assert [e.result for e in entries if e.name == "read" and not e.args.count('"')] == ["?", "?"]


def test_the_mark_tells_who_answered(platform, guest, tmp_path):
    entries = traced(platform, [guest, "calls"], tmp_path / "log")
    marks = {}
    for e in entries:
        marks.setdefault(e.name, set()).add(e.mark)
    for name in ("nanosleep", "kill", "rt_sigaction", "wait4", "timer_create", "ppoll", "vfork"):
        assert marks[name] == {"OWNED"}, name
    for name in ("read", "mmap", "poll", "fstat", "newfstatat", "socket", "exit_group"):
        assert marks.get(name, {""}) == {""}, name
    owned = traced(platform, [guest, "calls"], tmp_path / "owned", "--owned-only")
    assert {e.mark for e in owned if e.name} == {"OWNED"}
    assert [e.name for e in owned if e.name and e.pid == 2] == [
        e.name for e in entries if e.mark == "OWNED" and e.pid == 2
    ]
    refused = traced(platform, ["unshare", "-n", "true"], tmp_path / "refused", status=1)
    assert [(e.mark, e.result[:8]) for e in refused if e.name == "unshare"] == [("REFUSED", "-1 EPERM")]


def test_filters(platform, tmp_path):
    command = ["/bin/sh", "-c", "cat /etc/passwd >/dev/null; exit 3"]
    everything = traced(platform, command, tmp_path / "all", status=3)
    for expression, keep in (
        ("trace=%memory", lambda e: e.name in ("brk", "mmap", "munmap", "mprotect")),
        ("trace=!/^m|^brk$", lambda e: not e.name.startswith("m") and e.name != "brk"),
        ("trace=close,read", lambda e: e.name in ("close", "read")),
        ("status=failed", lambda e: e.result.startswith("-1 ")),
        ("status=!failed", lambda e: not e.result.startswith("-1 ")),
    ):
        found = traced(platform, command, tmp_path / "some", "-e", expression, status=3)
        wanted = sorted(e.name for e in everything if e.name and keep(e))
        assert sorted(e.name for e in found if e.name) == wanted, expression


def test_summary(platform, guest, tmp_path):
    counted = traced(platform, [guest, "calls"], tmp_path / "lines")
    log = tmp_path / "table"
    assert do(platform, [guest, "calls"], "--strace", "-c", "-S", "name", "-o", str(log)).status == 0
    rows = [line.split() for line in log.read_text().splitlines()[2:-3]]
    wanted = {}
    for e in counted:
        if e.name and e.name not in ("exit_group", "exit"):
            wanted[e.name] = wanted.get(e.name, 0) + 1
    assert {row[-1]: int(row[3]) for row in rows} == wanted
    assert [row[-1] for row in rows] == sorted(wanted)
    do(platform, [guest, "calls"], "--strace", "-c", "--format", "json", "-o", str(log))
    table = {row["name"]: row for row in json.loads(log.read_text())}
    assert {name: row["calls"] for name, row in table.items()} == wanted
    assert table["nanosleep"]["owned"] == table["nanosleep"]["calls"]
    assert table["mmap"]["owned"] == 0


def test_paths_of_descriptors(platform, tmp_path):
    command = ["/bin/sh", "-c", "exec 5</etc/passwd; read x <&5; echo | cat"]
    entries = traced(platform, command, tmp_path / "log", "-y", "-e", "trace=%desc")
    opened = next(e for e in entries if e.name == "openat" and '"/etc/passwd"' in e.args)
    assert re.fullmatch(r"\d+</etc/passwd>", opened.result)
    assert opened.args.startswith(f"AT_FDCWD<{os.getcwd()}>")
    assert any(re.match(r"0<pipe:\[\d+\]>", e.args) for e in entries if e.name == "read")


def test_lines_stay_whole_on_standard_error(platform, tmp_path):
    """The guest writes there too, and nothing of either is torn."""
    script = "i=0; while [ $i -lt 50 ]; do echo guest line $i >&2; i=$((i+1)); done"
    result = do(platform, ["/bin/sh", "-c", f"({script}) & {script}; wait"], "--strace")
    lines = result.stderr.decode().splitlines(keepends=True)
    own = [line for line in lines if line.startswith("guest line ")]
    assert len(own) == 100
    strace_reader.parse("".join([line for line in lines if not line.startswith("guest line ")]))


def test_a_full_disk(platform):
    result = do(platform, ["/bin/sh", "-c", "echo a; /bin/echo b; exit 4"], "--strace", "-o", "/dev/full")
    assert (result.status, result.stdout) == (4, b"a\nb\n")
    assert result.stderr == b"trapline: the trace ends here: /dev/full: No space left on device\n"


def test_nobody_reads(platform, tmp_path):
    """A closed pipe as standard error: the guest goes on, and only its own writes there hurt it."""
    reader, writer = os.pipe()
    os.close(reader)
    command = trapline_command("do", f"--platform={platform}", "--strace", "--", "/bin/sh", "-c", "echo a; exit 4")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stdout) == (4, b"a\n")


def test_a_file_that_cannot_be_made(platform, tmp_path):
    (tmp_path / "there").mkdir()
    result = do(platform, ["true"], "--strace", "-o", str(tmp_path / "there"))
    assert (result.status, result.stderr.count(b"\n")) == (2, 1)
    result = do(platform, ["true"], "--strace", "-e", "trace=opne")
    assert (result.status, result.stderr) == (
        2, b"trapline do: -e trace=opne: there is no system call opne: did you mean open?\n"
    )  # fmt: skip


def test_a_program_that_does_not_start(platform, tmp_path):
    log = tmp_path / "log"
    result = do(platform, ["/nowhere"], "--strace", "-o", str(log))
    assert (result.status, log.read_text()) == (127, "")


def test_python_threads_and_pipelines(platform, tmp_path):
    code = (
        "import threading, time, subprocess\n"
        "ts = [threading.Thread(target=lambda: [time.sleep(0.001) for _ in range(20)]) for _ in range(5)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\n"
        "print(subprocess.check_output(['sh', '-c', 'echo a | tr a b | cat']))\n"
    )
    entries = traced(platform, [sys.executable, "-I", "-S", "-c", code], tmp_path / "log")
    naps = [e for e in entries if e.name == "clock_nanosleep"]
    assert len(naps) == 100
    assert {(e.result, e.mark) for e in naps} == {("0", "OWNED")}
    ended = [e.pid for e in entries if e.text.startswith("+++ exited")]
    assert sorted(ended) == sorted({e.pid for e in entries})


def test_switched_on_and_off(platform, guest, tmp_path):
    """Tasks that run are traced from one moment to another; the guest notices nothing."""
    log = tmp_path / "log"
    command = [sys.executable, str(HERE / "strace_live.py"), str(log), f"--platform={platform}", "--"]
    run = subprocess.Popen([*command, guest, "forever"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert run.stdout is not None and run.stdout.readline() == b"ready\n"
        run.send_signal(signal.SIGHUP)
        _until(lambda: log.read_text().count("getppid()") > 5)
        run.send_signal(signal.SIGQUIT)
        quiet = _settled(log)
        run.send_signal(signal.SIGHUP)
        _until(lambda: log.read_text().count("getppid()") > quiet.count("getppid()") + 5)
        assert run.stdin is not None
        run.stdin.close()
        assert run.stdout.read() == b"over\n"
        assert run.wait(timeout=20) == 7
    finally:
        run.kill()
        run.wait()
    text = log.read_text()
    assert text.endswith("+++ exited with 7 +++\n")
    whole = "".join([line for line in text.splitlines(keepends=True) if "<detached ...>" not in line])
    names = [e.name for e in strace_reader.parse(whole) if e.name]
    assert {"poll", "clock_nanosleep", "getppid"} <= set(names)


def _until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def _settled(log):
    """The log once nothing has been added for a while: what is switched off stays so."""
    end = time.monotonic() + 20
    before, since = "", time.monotonic()
    while time.monotonic() < since + 0.3:
        assert time.monotonic() < end
        text = log.read_text()
        if text != before:
            before, since = text, time.monotonic()
        time.sleep(0.01)
    return before
