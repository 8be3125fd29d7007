"""Programs that trace or rearrange others: they start, work without that, and say why where they cannot."""

import pytest
from harness import do
from scripts import needs, same_script

WHY = b"trapline: ptrace: a traced program inside a sandbox is not supported (docs/limits.md)\n"

GDB = r"""
gdb --version | head -1; gdb -nx -batch -ex 'print 1+1' -ex 'show version' | head -1
printf 'int global = 42;\nint main(void) { return global; }\n' > m.c; gcc -g -o m m.c
gdb -nx -batch -ex 'print global' -ex 'info line main' -ex 'disassemble main' m | grep -v warning | sha256sum
strace --version | head -1; strace -h | wc -l
"""

VALGRIND = r"""
printf '#include <stdlib.h>\nint main(void) { char *p = malloc(10); p[10] = 1; return 3; }\n' > v.c; gcc -g -o v v.c
valgrind -q --error-exitcode=9 ./v 2> said; echo $?; grep -c 'Invalid write' said
valgrind -q --tool=helgrind --error-exitcode=9 sort v.c > /dev/null; echo $?
"""

SANITIZERS = r"""
printf '#include <stdlib.h>\nint main(int n, char **w) { char *p = malloc(10); if (n > 1) p[10] = 1; free(p); return 3; }\n' > v.c
export ASAN_OPTIONS=detect_leaks=0
gcc -g -fsanitize=address,undefined -o a v.c; ./a; echo $?; ./a x 2> said; echo $?; grep -c heap-buffer-overflow said
gcc -g -fsanitize=thread -pthread -o t v.c; ./t; echo $?
"""


def test_gdb_and_strace_start(platform, tmp_path):
    """What needs no other process works."""
    needs("gdb", "strace", "gcc")
    result = same_script(platform, GDB, tmp_path)
    assert b"$1 = 2" in result.stdout and WHY not in result.stderr, result


@pytest.mark.parametrize("command", [["gdb", "-nx", "-batch", "-ex", "run", "/bin/true"], ["strace", "true"]])
def test_tracing_is_refused_with_a_reason(platform, command, tmp_path):
    """The program's own error and status, and one line that tells why."""
    needs(command[0])
    result = do(platform, command, cwd=tmp_path, timeout=30)
    assert result.stderr.count(WHY) == 1 and b"Operation not permitted" in result.stderr, result
    assert result.status == 1, result
    assert result.stdout == b"", result


def test_the_reason_is_told_once(platform, tmp_path):
    """Once a sandbox, on standard error in any case, and in the log."""
    needs("strace")
    log = tmp_path / "log"
    command = ["bash", "-c", "strace true; strace true; echo end"]
    result = do(platform, command, f"--log={log}", cwd=tmp_path, timeout=30)
    assert result.stderr.count(WHY) == 1 and result.stdout == b"end\n", result
    assert log.read_text().count("ptrace: a traced program") == 1


@pytest.mark.parametrize("flags", ["-m", "-Ur", "-pf", "-n"])
def test_nested_namespaces_are_refused(platform, flags, tmp_path):
    needs("unshare")
    result = do(platform, ["unshare", flags, "true"], cwd=tmp_path, timeout=30)
    assert result.status == 1 and b"Operation not permitted" in result.stderr, result


def test_valgrind(platform, tmp_path):
    needs("valgrind", "gcc")
    result = same_script(platform, VALGRIND, tmp_path)
    assert result.stdout == b"9\n1\n0\n", result


def test_sanitizers(platform, tmp_path):
    """All but the search for leaks, which traces the program from a helper."""
    needs("gcc")
    result = same_script(platform, SANITIZERS, tmp_path)
    assert result.stdout == b"3\n1\n2\n3\n", result
