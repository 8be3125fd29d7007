"""Programs that live on a terminal: multiplexer, pager, editor, manual, and shells that control jobs."""

from scripts import needs, same_script

TMUX = r"""
export TMUX_TMPDIR=$PWD SHELL=/bin/sh; unset TMUX; run="tmux -f /dev/null"
shown() { for i in $(seq 500); do $run capture-pane -p | grep -qx "$1" && echo "shown $1" && return; sleep 0.02; done; echo "not shown $1"; $run capture-pane -p; }
$run new-session -d -x 80 -y 24 'PS1= exec sh'; echo $?
$run send-keys 'echo $((40 + 2))' Enter; shown 42
$run send-keys 'stty size' Enter; shown '24 80'
$run send-keys 'cat' Enter 'typed' Enter; until [ $($run capture-pane -p | grep -cx typed) = 2 ]; do sleep 0.02; done
$run send-keys C-c; while [ "$($run display-message -p '#{pane_current_command}')" = cat ]; do sleep 0.02; done
$run send-keys 'echo after' Enter; shown after
$run send-keys 'sh -c "echo u$((1))p; exec sleep 100"' Enter; shown u1p; $run send-keys C-z; $run send-keys 'kill %1; wait; echo job' Enter; shown job
$run split-window 'exec cat'; $run list-panes | wc -l; $run resize-pane -y 5; $run send-keys x Enter
$run new-window -n second 'exec sleep 100'; $run list-windows -F '#{window_name}' | tail -1
$run set-buffer data; $run show-buffer; echo; $run kill-server; echo $?
until ! $run ls > /dev/null 2>&1; do sleep 0.02; done; echo ended
"""

MAN = r"""
mkdir -p pages/man1
printf '.TH PAGE 1\n.SH NAME\npage \\- a page\n.SH DESCRIPTION\nHello, \\fBworld\\fR.\n' > pages/man1/page.1
export MANWIDTH=70 LC_ALL=C MANPAGER=cat
man -l pages/man1/page.1; echo $?
man -M "$PWD/pages" page | col -b | head -4
man -M "$PWD/pages" -P cat page | wc -l
gzip pages/man1/page.1; man -M "$PWD/pages" page | grep -c Hello
man -M "$PWD/pages" none 2>/dev/null; echo $?
"""

VIM = r"""
printf 'a\nb\n' > f
vim -Nu NONE -i NONE -es -c '%s/a/xx/' -c 'put =system(\"echo sub\")' -c 'r !seq 2' -c wq f; echo $?; cat f
vim -Nu NONE -i NONE -es -c 'call timer_start(10, {-> execute("qa!")})' -c 'sleep 10' f; echo $?
vim -Nu NONE -i NONE -es -c 'let j = job_start(["sh", "-c", "exit 3"], {"exit_cb": {j, s -> execute("cq " . s)}})' -c 'sleep 10' f; echo $?
"""

ZSH = r"""
zsh -f -c '
for i in {1..5}; do (exit $i) & done; wait; print ${(j:,:)$(seq 5)}
TRAPUSR1() { print usr1 }; kill -USR1 $$; print =(echo a) | wc -l; cat <(echo b) =(echo c)
zmodload zsh/zpty; zpty x cat; zpty -w x hello; zpty -r x y; print $y; zpty -d x
coproc cat; print -p hi; read -p z; print $z
sleep 100 & kill -TERM $!; wait $!; print $?
zmodload zsh/zselect; zselect -t 5; print $?; (exit 4) | cat; print $pipestatus'
echo $?
"""

SCRIPT = r"""
script -qec 'tty > /dev/null && stty size > /dev/null; echo hi; exit 4' /dev/null; echo $?
script -qec 'sh -ic "sleep 0.01 & wait; echo job"' /dev/null 2>&1 | tail -1
seq 100 > f; less -FX f | tail -1
"""


def test_tmux(platform, tmp_path):
    """A server that makes itself a daemon, terminals of its own, keys that become signals, windows."""
    needs("tmux")
    result = same_script(platform, TMUX, tmp_path)
    assert b"not shown" not in result.stdout and result.stdout.endswith(b"0\nended\n"), result


def test_man(platform, tmp_path):
    """It runs its helpers under a seccomp filter of its own."""
    needs("man", "col")
    result = same_script(platform, MAN, tmp_path)
    assert b"Hello, world." in result.stdout, result


def test_vim(platform, tmp_path):
    needs("vim")
    result = same_script(platform, VIM, tmp_path)
    assert result.stdout == b"0\nxx\nsub\n1\n2\nb\n0\n3\n", result


def test_zsh(platform, tmp_path):
    needs("zsh")
    same_script(platform, ZSH, tmp_path)


def test_script_and_less(platform, tmp_path):
    needs("script", "less")
    same_script(platform, SCRIPT, tmp_path)
