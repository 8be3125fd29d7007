"""Shells: a script must print and return under trapline what it does natively, whichever shell runs it."""

import subprocess

import pytest
from harness import do, native, program, same, trapline_command

#: POSIX scripts, for every shell. None prints a pid or depends on how fast something is.
POSIX = {
    "pipelines": r"""
        printf '%s\n' c a b | sort | tr a-z A-Z | paste -sd,
        seq 1000 | grep 7 | wc -l
        yes | head -n 3
        true | false; echo $?
        ! true; echo $?
        seq 200000 | tail -n 1
        echo one | { read x; echo "got $x"; }
    """,
    "subshells": r"""
        x=1; (x=2; echo $x; exit 3); echo $? $x
        (cd /; pwd); { echo group; } | cat
        ( ( ( exit 7 ) ) ); echo $?
        f() { return 5; }; f; echo $?
        echo "$(echo a; echo "$(echo b; exit 4)"; echo $?)"
        y=$(exit 9); echo $?
        z=`echo tick | tr k c`; echo $z
    """,
    "here documents": r"""
        v=value
        cat <<E
        expanded $v $(echo sub)
E
        cat <<'E'
        literal $v
E
        while read a b; do echo "$b:$a"; done <<E
1 2
3 4
E
        cat <<E | wc -c
$(seq 30000)
E
    """,
    "redirections": r"""
        exec 3>&1; echo to-three >&3; exec 3>&-
        { echo out; echo err >&2; } 2>&1 | sort
        echo x > file; echo y >> file; cat < file; rm file
        cat no-such-file 2>/dev/null; echo $?
        : > empty; [ -s empty ] || echo empty
        exec 4<>rw; echo data >&4; exec 4>&-; cat rw
    """,
    "set -e": r"""
        (set -e; false; echo never); echo $?
        (set -e; if false; then :; fi; false || echo or; echo here; false; echo never); echo $?
        (set -eu; echo ${undefined}) 2>/dev/null || echo unset
        set -e
        trap 'echo leaving $?' EXIT
        sh -c 'exit 6'
        echo never
    """,
    "trap EXIT": r"""
        trap 'echo bye' EXIT
        (trap 'echo inner' EXIT; echo sub)
        (trap 'exit 8' TERM; kill -TERM $(sh -c 'echo $PPID')); echo $?
        exit 4
    """,
    "traps": r"""
        trap 'echo usr1' USR1; trap 'echo int' INT; trap 'echo term' TERM; trap 'echo hup' HUP
        kill -USR1 $$; echo after; kill -INT $$; kill -TERM $$; kill -HUP $$
        trap '' TERM; kill -TERM $$; echo ignored
        sh -c 'kill -TERM $$; echo inherited'
        trap - TERM
        kill -TERM $$
        echo never
    """,
    "killed children": r"""
        sh -c 'kill -9 $$'; echo $?
        sh -c 'kill -TERM $$' ; echo $?
        (kill -SEGV $(sh -c 'echo $PPID')) 2>/dev/null; echo $?
        sleep 100 & p=$!; kill $p; wait $p; echo $?
        sleep 100 & p=$!; kill -STOP $p; kill -KILL $p; wait $p; echo $?
        sh -c 'trap "" PIPE; sleep 0; exit 3' | true; echo $?
        kill -0 $$; echo $?
    """,
    "background and wait": r"""
        (sleep 0.05; echo first; exit 2) & a=$!
        (sleep 0.2; echo second; exit 3) & b=$!
        wait $b; echo $?; wait $a; echo $?
        for i in 1 2 3 4 5 6 7 8; do (exit $i) & done; wait; echo all $?
        wait 999999; echo $?
        { sleep 0.1; echo late; } & echo early; wait
        sleep 0.05 & wait $!; echo slept $?
    """,
    "interrupted wait": r"""
        trap 'echo usr1' USR1
        (sleep 0.1; kill -USR1 $$) &
        sleep 0.3 & p=$!
        wait $p; s=$?; [ $s -gt 128 ] && echo interrupted
        wait $p; echo $?
    """,
    "many processes": r"""
        i=0; while [ $i -lt 40 ]; do /bin/true; i=$((i + 1)); done; echo $i
        i=0; while [ $i -lt 40 ]; do x=$(echo $i); i=$((x + 1)); done; echo $i
        (exec sh -c 'exec sh -c "exec echo execs"')
        ./missing 2>/dev/null; echo $?; ./ 2>/dev/null; echo $?
        printf '#!/bin/sh\necho script "$@"\n' > s; chmod +x s; ./s 1 '2 3'
        chmod -x s; ./s 2>/dev/null; echo $?
        nohup echo nohup 2>/dev/null
        env -i A=1 env
        ulimit -n 64; ulimit -n; umask 027; umask
    """,
}

BASH = {
    "timeout": r"""
        timeout 0.1 sleep 10; echo $?
        timeout 10 true; echo $?
        timeout -s KILL 0.1 sleep 10; echo $?
        timeout 5 sh -c 'exit 3'; echo $?
        timeout 0.2 sh -c 'trap "trap : TERM; echo term; exit 9" TERM; sleep 1 & wait'; echo $?
    """,
    "process substitution": r"""
        diff <(seq 3) <(seq 4); echo $?
        paste <(echo a; echo b) <(echo c; echo d)
        tee >(cat >copy) <<<here >/dev/null; wait $!; sleep 0.1; cat copy
        while read -r n; do ((s += n)); done < <(seq 100); echo $s
        mapfile -t lines < <(printf '%s\n' x y z); echo ${#lines[@]} ${lines[1]}
    """,
    "pipefail and coproc": r"""
        set -o pipefail
        false | true; echo $?; true | (exit 3) | (exit 4) | true; echo "${PIPESTATUS[@]}"
        yes | head -1 >/dev/null; echo $?
        coproc C { while read x; do echo "<$x>"; done; }
        echo one >&"${C[1]}"; read -u "${C[0]}" y; echo $y
        exec {w}>&"${C[1]}"; eval "exec ${C[1]}>&-"; exec {w}>&-; wait $C_PID; echo $?
    """,
    "trap CHLD ERR DEBUG": r"""
        n=0; trap 'n=$((n + 1))' CHLD
        /bin/true; /bin/true; /bin/true; echo $n
        trap - CHLD
        trap 'echo err $?' ERR; false; (exit 3); true
        set -E; f() { false; }; f
        trap 'echo in SIGUSR2; trap - USR2' USR2; kill -USR2 $BASHPID; kill -l USR2 15
    """,
    "wait -n and read -t": r"""
        (sleep 0.3; exit 1) & (sleep 0.05; exit 2) &
        wait -n; echo $?; wait -n; echo $?; wait -n; echo $?
        wait -fn -p which; echo $? ${which:-none}
        read -t 0.05 x < <(sleep 0.5); echo $(($? > 128))
        read -t 5 x < <(echo quick); echo $? $x
        (sleep 0.1; kill -INT $$) & trap 'echo sigint' INT; sleep 0.3; echo after
    """,
    "arrays and arithmetic": r"""
        declare -A m=([a]=1 [b]=2); for k in $(printf '%s\n' "${!m[@]}" | sort); do echo $k ${m[$k]}; done
        for ((i = 0; i < 3; i++)); do printf %d, $((i ** 2)); done; echo
        [[ abc123 =~ ([a-z]+)([0-9]+) ]] && echo ${BASH_REMATCH[2]}
        printf -v t '%(%Y)T' 0; echo $t; TZ=UTC printf '%(%F %T)T\n' 86399
        x=$(<<<abc cat); echo ${x^^} ${x:1:1} ${#x}
        exec -a other bash -c 'echo $0'
    """,
    "jobs": r"""
        set -m
        sleep 0.05 & wait %1; echo $?
        sleep 30 & jobs -r | sed 's/ \+/ /g'; kill -STOP %1; wait %1; echo $?
        jobs -s | sed 's/ \+/ /g'; bg %1 | sed 's/ \+/ /g'; jobs | sed 's/ \+/ /g'
        p=$!; kill -KILL %1; while kill -0 $p 2>/dev/null; do sleep 0.02; done; wait $p; echo $?
        (sleep 50; echo never) & kill -TERM -$!; wait $!; echo $?
        (sleep 0.05) & disown; jobs; fg 2>/dev/null; echo $?
    """,
}

SHELLS = {"bash": ["bash"], "dash": ["dash"], "busybox": ["busybox", "sh"]}


@pytest.mark.parametrize("name", POSIX)
def test_posix_script(platform, name, tmp_path):
    """One sandbox runs the script in each shell: the start of a sandbox is not what is tested here."""
    for words in SHELLS.values():
        program(words[0])
    script = tmp_path / "script"
    script.write_text(POSIX[name])
    run = "".join(
        f"mkdir -p {shell}; cd {shell}; {' '.join(words)} ../script; echo {shell}: $?; cd ..\n"
        for shell, words in SHELLS.items()
    )
    same(platform, ["sh", "-c", run], cwd=tmp_path, timeout=20)


@pytest.mark.parametrize("name", BASH)
def test_bash_script(platform, name, tmp_path):
    program("bash")
    same(platform, ["bash", "-c", BASH[name]], cwd=tmp_path, timeout=20)


def test_static_shell_without_a_file_system(platform):
    same(platform, [program("busybox"), "sh", "-c", "echo a | sed s/a/b/; (exit 3); echo $?; usleep 1000; expr 1 + 2"])


@pytest.mark.parametrize("shell", SHELLS)
def test_status_of_the_shell(platform, shell):
    words = [program(SHELLS[shell][0]), *SHELLS[shell][1:], "-c"]
    same(platform, [*words, "exit 42"])
    same(platform, [*words, "kill -USR1 $$"])


def test_script_on_standard_input(platform):
    script = b"read line\ndata for read\necho got $line; exec cat\nrest\nof it\n"
    expected = subprocess.run(["sh"], input=script, capture_output=True, timeout=30)
    actual = subprocess.run(
        trapline_command("do", f"--platform={platform}", "sh"), input=script, capture_output=True, timeout=30
    )
    assert (actual.returncode, actual.stdout, actual.stderr) == (
        expected.returncode,
        expected.stdout,
        expected.stderr,
    )


def test_messages_of_the_shell(platform):
    """What goes to standard error is the program's own, and nothing is added to it."""
    for command in ("no_such_command", "cd /nowhere", "kill -9 999999", "echo x > /proc/none"):
        line = ["bash", "-c", command]
        expected, actual = native(line), do(platform, line)
        assert (actual.stderr, actual.status) == (expected.stderr, expected.status), command
