"""What is printed of what tasks do: one line a call, split where others come between, once whatever the host did."""

import struct

import pytest
from strace_world import Traced, text

from trapline.sentry.syscalls.table import by_name


def number(name):
    return by_name(name).nr


def told(t):
    return [text(line) for line in t.lines]


def test_the_form():
    t = Traced()
    t.enter(2, "getppid")
    t.tracer.exit(2, 1)
    # Clock readings: entry 1 (wall) and 2 (monotonic), exit 3 (monotonic) and 4 (wall), a millisecond each.
    assert t.lines == ["2     1000000000.001000 getppid()       = 1 <0.001000>\n"]


def test_others_come_between():
    t = Traced()
    data = t.memory.put(b"abc")
    t.enter(2, "read", 0, data, 3)
    t.enter(3, "getppid")
    t.tracer.exit(3, 1)
    t.tracer.exit(2, 3)
    assert [line[6:].split(" ", 1)[1] for line in t.lines] == [
        "read(0,  <unfinished ...>\n",
        "getppid()       = 1 <0.001000>\n",
        '<... read resumed>"abc", 3) = 3 <0.005000>\n',
    ]
    assert [line.split()[0] for line in t.lines] == ["2", "3", "2"]


def test_an_event_of_its_own_comes_between():
    t = Traced()
    t.enter(2, "pause")
    t.tracer.signal(2, struct.pack("<iiiiiI", 10, 0, 0, 0, 5, 0).ljust(128, b"\0"))
    t.tracer.exit(2, -4)
    assert told(t) == [
        "pause( <unfinished ...>",
        "--- SIGUSR1 {si_signo=SIGUSR1, si_code=SI_USER, si_pid=5, si_uid=0} ---",
        "<... pause resumed>) = -1 EINTR (Interrupted system call)",
    ]


def test_the_mark():
    t = Traced()
    t.enter(2, "getpgrp")
    t.tracer.owned(2, number("getpgrp"))
    t.tracer.exit(2, 7)
    t.enter(2, "kill", 1, 0)
    t.tracer.owned(2, number("kill"))
    t.enter(3, "unshare", 0)
    t.tracer.exit(3, -1)
    t.tracer.exit(2, 0)
    assert told(t) == [
        "getpgrp(/* OWNED */) = 7",
        "kill(1, 0 <unfinished ...>",
        "unshare(0 /* REFUSED */) = -1 EPERM (Operation not permitted)",
        "<... kill resumed> /* OWNED */) = 0",
    ]


def test_owned_is_of_this_call_only():
    t = Traced()
    t.tracer.owned(2, number("kill"))
    t.enter(2, "getppid")
    t.tracer.owned(2, number("kill"))
    t.tracer.exit(2, 1)
    assert told(t) == ["getppid() = 1"]


@pytest.mark.parametrize("value", [-512, -514, -516, -4])
def test_a_restart_that_the_guest_does_not_see_is_the_same_call(value):
    t = Traced()
    t.enter(2, "nanosleep", 8, 0)
    t.tracer.may_restart(2, value)
    t.enter(2, "nanosleep", 8, 0)
    t.tracer.exit(2, 0)
    assert told(t) == ["nanosleep(0x8, NULL) = 0"]


def test_a_restart_by_restart_syscall():
    t = Traced()
    t.enter(2, "poll", 0, 0, 5)
    t.tracer.may_restart(2, -516)
    t.enter(2, "restart_syscall")
    t.tracer.exit(2, 0)
    assert told(t) == ["poll(NULL, 0, 5) = 0 (Timeout)"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-512, "? ERESTARTSYS (To be restarted if SA_RESTART is set)"),
        (-513, "? ERESTARTNOINTR (To be restarted)"),
        (-514, "? ERESTARTNOHAND (To be restarted if no handler)"),
        (-516, "? ERESTART_RESTARTBLOCK (Interrupted by signal)"),
        (-4, "-1 EINTR (Interrupted system call)"),
    ],
)
def test_a_signal_makes_it_true(value, shown):
    t = Traced()
    t.enter(2, "pause")
    t.tracer.may_restart(2, value)
    t.tracer.signal(2, struct.pack("<iii", 14, 0, 0x80).ljust(128, b"\0"))
    t.enter(2, "pause")
    assert told(t) == [f"pause() = {shown}", "--- SIGALRM {si_signo=SIGALRM, si_code=SI_KERNEL} ---"]


def test_another_call_makes_it_true():
    t = Traced()
    t.enter(2, "pause")
    t.tracer.may_restart(2, -4)
    t.enter(2, "getppid")
    t.tracer.exit(2, 1)
    assert told(t) == ["pause() = -1 EINTR (Interrupted system call)", "getppid() = 1"]


def test_a_value_is_printed_once():
    t = Traced()
    t.enter(2, "getppid")
    t.tracer.exit(2, 1)
    t.tracer.exit(2, 1)
    assert told(t) == ["getppid() = 1"]


def test_exits():
    t = Traced()
    t.enter(2, "exit_group", 3)
    t.tracer.died(2, 0x300)
    t.enter(3, "read", 0, 8, 1)
    t.tracer.died(3, 9)
    t.enter(4, "pause")
    t.enter(5, "read", 0, 8, 1)
    t.tracer.died(4, 0x8B)
    t.tracer.died(5, 15)
    assert told(t) == [
        "exit_group(3) = ?",
        "+++ exited with 3 +++",
        "read(0,  <unfinished ...>) = ?",
        "+++ killed by SIGKILL +++",
        "pause( <unfinished ...>",
        "read(0,  <unfinished ...>",
        "<... pause resumed>) = ?",
        "+++ killed by SIGSEGV (core dumped) +++",
        "<... read resumed> <unfinished ...>) = ?",
        "+++ killed by SIGTERM +++",
    ]


def test_stops_and_detaching():
    t = Traced()
    t.enter(2, "pause")
    t.tracer.group_stopped(2, 19)
    t.tracer.detach(2)
    t.tracer.detach(2)
    assert told(t) == [
        "pause( <unfinished ...>",
        "--- stopped by SIGSTOP ---",
        "<... pause resumed> <detached ...>",
    ]


def test_a_thread_executes_a_program():
    t = Traced()
    path = t.memory.put(b"/bin/true\0")
    t.enter(2, "pause")
    t.enter(7, "execve", path, 0, 0)
    t.tracer.moved(7, 2)
    t.tracer.exit(2, 0)
    assert told(t) == [
        "pause( <unfinished ...>",
        'execve("/bin/true", NULL, NULL <unfinished ...>',
        "<... pause resumed>) = ?",
        "+++ superseded by execve in pid 7 +++",
        "<... execve resumed>) = 0",
    ]


def test_nothing_before_the_program():
    t = Traced()
    path = t.memory.put(b"/bin/true\0")
    t.tracer.quiet.add(2)
    t.enter(2, "getppid")
    t.tracer.exit(2, 1)
    t.tracer.signal(2, struct.pack("<i", 10).ljust(128, b"\0"))
    t.enter(2, "execve", path, 0, 0)
    t.tracer.exit(2, -2)
    t.enter(2, "execve", path, 0, 0)
    t.tracer.exit(2, 0)
    t.enter(2, "getppid")
    t.tracer.exit(2, 1)
    assert told(t) == ['execve("/bin/true", NULL, NULL) = 0', "getppid() = 1"]


def test_a_program_that_does_not_start_leaves_nothing():
    t = Traced()
    t.tracer.quiet.add(2)
    t.enter(2, "execve", 8, 0, 0)
    t.tracer.died(2, 0x7F00)
    assert t.lines == []
    assert not t.tracer.quiet


def test_statuses():
    def run(status):
        t = Traced(status=status)
        t.enter(2, "getppid")
        t.enter(3, "close", 9)
        t.tracer.exit(3, -9)
        t.tracer.exit(2, 1)
        t.enter(2, "pause")
        t.enter(3, "kill", 1, 0)
        t.tracer.exit(3, None)
        t.enter(3, "pause")
        t.tracer.detach(3)
        t.tracer.died(2, 9)
        return [line for line in told(t) if not line.startswith("+++")]

    assert run("successful") == ["getppid() = 1"]
    assert run("failed") == ["close(9) = -1 EBADF (Bad file descriptor)"]
    assert run("unfinished") == ["pause() = ?"]
    assert run("unavailable") == ["kill(1, 0) = ?"]
    assert run("detached") == ["pause( <detached ...>"]
    assert run("!successful,failed,unavailable,detached") == run("unfinished")
    assert run("none") == []


def test_the_filter():
    t = Traced(trace="%memory,close")
    t.enter(2, "getppid")
    t.tracer.exit(2, 1)
    t.enter(2, "close", 1)
    t.tracer.exit(2, 0)
    t.enter(2, "brk", 0)
    t.tracer.exit(2, 4096)
    assert told(t) == ["close(1) = 0", "brk(NULL) = 0x1000"]


def test_owned_only():
    t = Traced(owned_only=True)
    for name, owned in (("getppid", False), ("getpgrp", True), ("exit_group", False)):
        t.enter(2, name, 0)
        if owned:
            t.tracer.owned(2, number(name))
        t.tracer.exit(2, 1)
    t.tracer.died(2, 0)
    assert told(t) == ["getpgrp(/* OWNED */) = 1", "+++ exited with 0 +++"]


def test_the_summary():
    t = Traced(summary="only")
    for result in (0, -2, 0):
        t.enter(2, "close", 1)
        t.tracer.exit(2, result)
    t.tracer.died(2, 0)
    assert t.lines == []
    t.tracer.finish()
    rows = t.lines[0].splitlines()
    assert rows[0].split() == ["%", "time", "seconds", "usecs/call", "calls", "errors", "syscall"]
    assert rows[2].split() == ["100.00", "0.003000", "1000", "3", "1", "close"]
    assert rows[4].split() == ["100.00", "0.003000", "1000", "3", "1", "total"]
    both = Traced(summary="both")
    both.enter(2, "close", 1)
    both.tracer.exit(2, 0)
    both.tracer.finish()
    assert text(both.lines[0]) == "close(1) = 0"
    assert "total" in both.lines[1]
