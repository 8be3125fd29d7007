"""`-e trace=`, `-e status=`, the table of `-c`, and the flags that ask for them."""

import json

import pytest

from trapline.sentry.cli import do
from trapline.sentry.cli.flags import UsageError
from trapline.sentry.strace import call_sets
from trapline.sentry.strace.call_filter import STATUSES, status_set, trace_set
from trapline.sentry.strace.summary import SORTS, Summary
from trapline.sentry.syscalls.table import TABLE

NAMES = {row.name for row in TABLE}


def names(expression):
    found = trace_set(expression)
    return NAMES if found is None else {row.name for row in TABLE if row.nr in found}


def test_names():
    assert names("open,close") == {"open", "close"}
    assert names("!open,close") == NAMES - {"open", "close"}
    assert trace_set("all") is None
    assert trace_set("!none") is None
    assert trace_set("none") == frozenset()
    assert names("?nonsense,close") == {"close"}
    assert names("close@64") == {"close"}


def test_expressions():
    assert names("/^clock_") == {n for n in NAMES if n.startswith("clock_")}
    assert names("!/e") == {n for n in NAMES if "e" not in n}
    assert names("close,/^fch(own|dir)$") == {"close", "fchown", "fchdir"}
    assert names("/^(dup|dup{1,1}2)$") == {"dup", "dup2"}  # a comma belongs to the expression


def test_sets():
    """Members that strace's own table has, and some that it has not."""
    assert {"open", "openat", "stat", "execve", "getcwd", "mount", "inotify_add_watch"} <= names("%file")
    assert not {"fstat", "read", "memfd_create", "fsopen", "mq_open"} & names("%file")
    assert {"read", "open", "openat", "mmap", "poll", "dup2", "fcntl", "pipe", "epoll_wait"} <= names("%desc")
    assert not {"socket", "stat", "brk", "kill"} & names("%desc")
    assert names("%process") == set(
        ["clone", "fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "clone3", "kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"]
    )
    assert {"socket", "sendfile", "recvmmsg"} <= names("%network") == names("%net")
    assert {"rt_sigaction", "kill", "signalfd4"} <= names("%signal")
    assert {"brk", "mmap", "munmap", "shmat", "madvise"} <= names("%memory")
    assert names("%clock") == set(
        ["gettimeofday", "settimeofday", "time", "adjtimex", "clock_gettime", "clock_settime", "clock_getres", "clock_adjtime"]
    )
    assert names("!%file,%desc") == NAMES - names("%file") - names("%desc")


def test_every_set_names_calls_that_exist():
    for name in call_sets.NAMES:
        assert call_sets.members(name)
        assert call_sets.members(name) <= NAMES | {"fsconfig"}


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("opne", "did you mean open?"),
        ("%fil", "did you mean %file?"),
        ("/(", "no regular expression"),
        ("", "empty"),
        ("open,,close", "empty"),
        ("/nothing_like_it", "no system call"),
    ],
)
def test_mistakes(expression, said):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        trace_set(expression)


def test_statuses():
    assert status_set("all") is None
    assert status_set("failed,unfinished") == {"failed", "unfinished"}
    assert status_set("!failed") == set(STATUSES) - {"failed"}
    assert status_set("none") == frozenset()
    with pytest.raises(ValueError, match="did you mean failed"):
        status_set("faild")


def test_orders():
    table = Summary()
    for name, spent, failed in (("a", 5, True), ("b", 1, False), ("b", 3, False), ("c", 100, False)):
        table.add(name, spent, failed, name == "c")
    order = {by: [row.name for row in table.sorted(by)] for by in SORTS}
    assert order["time"] == order["time-total"] == ["c", "a", "b"]
    assert order["calls"] == ["b", "a", "c"]
    assert order["errors"] == ["a", "b", "c"]
    assert order["name"] == order["nothing"] == ["a", "b", "c"]
    assert order["max-time"] == ["c", "a", "b"]
    assert order["min-time"] == ["c", "a", "b"]
    assert order["avg-time"] == ["c", "a", "b"]
    assert json.loads(table.json("calls"))[0] == {
        "name": "b", "calls": 2, "errors": 0, "owned": 0, "total": 4, "least": 1, "most": 3
    }  # fmt: skip
    assert "1 of 4 calls were answered by trapline itself" in table.text("time")
    assert "total" in Summary().text("time")


def test_flags(tmp_path):
    found = do.options(
        ["--strace", "-o", f"{tmp_path}/x", "-e", "trace=open", "-e", "status=failed", "-y", "-C", "-S", "calls",
         "--owned-only", "ls", "-c"]
    )
    assert found.command == ["ls", "-c"]
    strace = found.strace
    assert (strace.output, strace.trace, strace.status) == (f"{tmp_path}/x", "open", "failed")
    assert (strace.summary, strace.sort, strace.paths, strace.owned_only) == ("both", "calls", True, True)
    assert do.options(["ls", "-e", "x"]).strace is None
    assert do.options(["--strace", "-e", "%file", "ls"]).strace.trace == "%file"
    assert do.options(["--strace", "-e", "!open", "ls"]).strace.trace == "!open"
    assert do.options(["--strace", "-e", "/^x?stat$", "ls"]).strace.trace == "/^x?stat$"
    assert do.options(["--strace", "-c", "--format", "json", "ls"]).strace.summary_format == "json"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-c"], "-c belongs to --strace"),
        (["-o", "calls.txt"], "-o belongs to --strace"),
        (["-e", "open"], "-e belongs to --strace"),
        (["--owned-only"], "--owned-only belongs to --strace"),
        (["--strace", "-S", "calls"], "-S belongs to -c or -C"),
        (["--strace", "--format", "json"], "--format belongs to -c or -C"),
        (["--strace", "-c", "-C"], "choose one"),
        (["--strace", "-c", "-S", "cals"], "did you mean calls"),
        (["--strace", "-e", "signal=all"], "knows trace= and status="),
        (["--strace", "-e", "trace=opne"], "did you mean open"),
        (["--strace", "-e", "status=faild"], "did you mean failed"),
        (["--strace", "-o", "/nowhere/x"], "directory that exists"),
        (["--strace", "-e"], "needs a value"),
    ],
)
def test_wrong_flags(words, said):
    with pytest.raises(UsageError) as caught:
        do.options([*words, "--", "true"] if words[-1] != "-e" else words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
