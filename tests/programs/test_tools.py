"""Everyday programs: perl, gcc and make, git, archives, and every kind of executable that a linker makes."""

import subprocess

import pytest
from harness import do, native, program, same

PERL = {
    "processes": r"""
        $| = 1; use POSIX ":sys_wait_h";
        my $p = fork // die; if (!$p) { print "child\n"; exit 3 } waitpid $p, 0; print $? >> 8, "\n";
        print `echo quoted; exit 2`, $? >> 8, "\n"; print system("sh", "-c", 'kill -9 $$') & 127, "\n";
        pipe my $r, my $w; if (!fork) { close $r; print $w "line $_\n" for 1..3; exit }
        close $w; print <$r>; wait; print wait, "\n";
        open my $out, "|-", "tr a-z A-Z" or die; print $out "piped\n"; close $out; print "$?\n";
        open my $in, "-|", "seq", "3" or die; print <$in>; close $in;
        my @p = map { my $n = $_; fork || do { select undef, undef, undef, 0.01 * $n; exit $n } } 1..5;
        print join(",", map { waitpid $_, 0; $? >> 8 } @p), "\n"; print waitpid(-1, WNOHANG), "\n";
        exec "sh", "-c", "echo exec; exit 5";
    """,
    "signals": r"""
        $| = 1; use Time::HiRes qw(ualarm sleep time setitimer ITIMER_REAL);
        $SIG{ALRM} = sub { die "alarm\n" }; eval { ualarm 50_000; select undef, undef, undef, 10 }; print $@;
        my $n = 0; $SIG{ALRM} = sub { $n++ }; setitimer ITIMER_REAL, 0.01, 0.01; sleep 0.005 while $n < 3;
        setitimer ITIMER_REAL, 0; print "ticks\n"; alarm 10; print alarm(0) > 0, "\n";
        $SIG{$_} = sub { print "got $_[0]\n" } for qw(USR1 USR2 HUP); kill $_, $$ for qw(USR1 USR2 HUP);
        $SIG{CHLD} = sub { while ((my $p = waitpid -1, 1) > 0) { print "reaped ", $? >> 8, "\n" } };
        if (!fork) { exit 6 } my $t = time; sleep 0.3; $SIG{CHLD} = "DEFAULT";
        $SIG{PIPE} = sub { print STDOUT "broken pipe\n" }; open my $o, "|-", "true"; select undef, undef, undef, 0.1;
        syswrite $o, "x" x 100; close $o; local $SIG{TERM} = "IGNORE"; kill TERM => $$;
        my $p = fork; if (!$p) { $SIG{TERM} = "DEFAULT"; kill TERM => $$; sleep 10 } waitpid $p, 0; print $? & 127, "\n";
        kill KILL => $$;
    """,
}

MAKEFILE = """\
all: main
\t./main
main: main.o part.o libpart.a
\t$(CC) -o $@ main.o part.o -L. -lpart
libpart.a: other.o
\tar rcs $@ $<
%.o: %.c
\t$(CC) -O2 -g -Wall -c -o $@ $<
"""

HELLO = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <time.h>
#include <unistd.h>
__thread int local = 5;
__attribute__((constructor)) static void before(void) { write(1, "constructor\n", 12); }
int main(int argc, char **argv) {
    struct timespec t;
    printf("%d %s %d %s\n", argc, argc > 1 ? argv[1] : "-", local, getenv("VARIABLE"));
    printf("%d %d\n", clock_gettime(CLOCK_REALTIME, &t), (int)(labs(t.tv_sec - time(0)) <= 1));
    printf("%d\n", strcmp((char *)getauxval(AT_EXECFN), argv[0]));
    return 23;
}
"""

KINDS = {
    "dynamic PIE": ["-pie", "-fPIE"],
    "dynamic": ["-no-pie"],
    "static": ["-static"],
    "static PIE": ["-static-pie", "-fPIE"],
    "hardened": ["-fstack-protector-all", "-O2", "-D_FORTIFY_SOURCE=2"],
}

GIT = r"""
set -e
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000'
rm -rf a b; git init -q -b main a; cd a
git config user.name n; git config user.email e@example.org
seq 1000 > file; git add file; git commit -q -m first
sed -i s/7/seven/ file; git diff --stat; git commit -q -a -m second
git checkout -q -b side HEAD~1; echo other > other; git add .; git commit -q -m side
git merge -q -m merged main; git log --graph --oneline --all; git rev-parse HEAD
git gc -q; git fsck --no-progress; cd ..; git clone -q a b; cd b; git log --format='%h %s' | cat
git grep -c seven; git stash list; git tag -a -m t v1; git describe; git archive HEAD | tar tf -
printf '#!/bin/sh\necho hook\n' > .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit
git config user.name n; git config user.email e@example.org; git commit -q --allow-empty -m hooked; git show -s --format=%s
git fetch -q; git status -sb; git bisect start -q HEAD HEAD~2 >/dev/null; git bisect run -q false 2>/dev/null | tail -1; git push -q origin HEAD:refs/heads/new; git ls-remote origin
git nonsense 2>/dev/null || echo $?
"""


@pytest.mark.parametrize("name", PERL)
def test_perl(platform, name):
    same(platform, [program("perl"), "-we", PERL[name]], timeout=20)


def test_gcc_and_make(platform, tmp_path):
    """Several files compiled at once, an archive, a link, and the result run."""
    for name in ("gcc", "make", "ar"):
        program(name)
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "main.c").write_text("#include <stdio.h>\nint part(void), other(void);\n"
                                     'int main(void) { return printf("%d\\n", part() + other()) != 3; }\n')  # fmt: skip
    (tmp_path / "part.c").write_text("int part(void) { return 40; }\n")
    (tmp_path / "other.c").write_text("int other(void) { return 2; }\n")
    clean = "rm -f *.o *.a main; make -s -j3; echo $?; make; cc -c missing.c 2>/dev/null; echo $?; sha256sum main *.o"
    same(platform, ["sh", "-c", clean], cwd=tmp_path, timeout=40)


@pytest.mark.parametrize("kind", KINDS)
def test_kind_of_executable(platform, kind, tmp_path):
    (tmp_path / "main.c").write_text(HELLO)
    subprocess.run([program("gcc"), *KINDS[kind], "-o", "main", "main.c"], cwd=tmp_path, check=True, timeout=60)
    same(platform, ["env", "VARIABLE=value", "./main", "argument"], cwd=tmp_path)


def test_shared_library_and_dlopen(platform, tmp_path):
    (tmp_path / "lib.c").write_text("int answer(void) { return 42; }\n")
    (tmp_path / "main.c").write_text(
        "#include <dlfcn.h>\n#include <stdio.h>\nint main(void) { int (*f)(void);"
        'void *h = dlopen("./lib.so", RTLD_NOW); *(void **)&f = dlsym(h, "answer"); printf("%d\\n", f()); return 0; }\n'
    )
    for words in (["-shared", "-fPIC", "-o", "lib.so", "lib.c"], ["-o", "main", "main.c"]):
        subprocess.run([program("gcc"), *words], cwd=tmp_path, check=True, timeout=60)
    same(platform, ["./main"], cwd=tmp_path)


def test_git(platform, tmp_path):
    program("git")
    same(platform, ["sh", "-c", GIT], cwd=tmp_path, timeout=40)


def test_archives_and_text(platform, tmp_path):
    script = r"""
        mkdir -p d/e; seq 5000 > d/e/f; ln -sf e/f d/link; mkfifo -m 600 d/p 2>/dev/null
        tar czf t.tgz --sort=name --mtime=@0 d; tar xzf t.tgz -C . --transform s,^d,x,; diff -r d/e x/e; readlink x/link
        find d -type f | xargs -n1 -P2 sha256sum; awk '{s += $1} END {print s}' d/e/f; sort -rn d/e/f | sed -n 3p
        seq 3 | xargs -I{} sh -c 'echo {}; exit 0'; dd if=/dev/zero bs=1k count=10 2>/dev/null | od -An -c | head -1
        cat d/p & echo fifo > d/p; wait; flock d/e/f echo locked; env -i sh -c 'echo ${HOME-none}'; rm -r d x t.tgz
        stdbuf -oL echo buf; nice -n 5 nice; chrt -b 0 true; taskset -c 0 nproc; ionice -c 3 true; setsid -w sh -c 'exit 8'; echo $?
        time -p true 2>/dev/null; seq 100000 | gzip | gunzip | md5sum; date -u -d @0 +%s; sleep 0.01; bc -l </dev/null 2>/dev/null; echo done
    """
    same(platform, ["bash", "-c", script], cwd=tmp_path, timeout=20)


def test_cannot_be_run(platform, tmp_path):
    """A missing or unusable program: the statuses of a shell, and one line."""
    (tmp_path / "plain").write_text("#!/no/such/interpreter\n")
    (tmp_path / "bad").write_bytes(b"\x7fELF" + bytes(200))
    (tmp_path / "nope").write_text("x")
    for name in ("plain", "bad"):
        (tmp_path / name).chmod(0o755)
    statuses = {"missing": 127, "./missing": 127, "./plain": 127, "./nope": 126, "./bad": 126, "/": 126}
    for name, status in statuses.items():
        result = do(platform, [name], cwd=tmp_path, timeout=20)
        assert result.status == status, f"{name}: {result}"
        assert result.stdout == b"" and result.stderr.count(b"\n") == 1, f"{name}: {result}"
        expected = native(["bash", "-c", name], cwd=tmp_path)
        if name not in ("./plain", "./bad"):
            assert expected.status == status, f"{name}: {expected}"
