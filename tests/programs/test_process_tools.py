"""ps, pstree, top, kill, pkill, pgrep and killall: what they see of processes, groups and sessions, and whom they end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from harness import do, program, same

#: Starts one process of each kind under names of its own (the host's other processes are not to be touched), and
#: waits until each is what it is to be. `show` prints of each how its ids relate, and not what they are.
START = r"""
set -eu
wait_for() { until case "$(ps -o stat=,comm= -p $1)" in $2) ;; *) false ;; esac; do :; done; }
$DIR/$NAME 1000 & plain=$!
setsid $DIR/$NAME 1000 & session=$!
sh -c "$DIR/$NAME 0 & exec $DIR/$NAME 1000" & parent=$!
set -m
$DIR/$NAME 1000 & group=$!
$DIR/$NAME 1000 & stopped=$!
set +m
for pid in $plain $parent $group; do wait_for $pid "S*$NAME"; done
wait_for $session "Ss*$NAME"
until zombie=$(pgrep -P $parent); do :; done
wait_for $zombie "Z*"
wait_for $stopped "S*$NAME"; kill -STOP $stopped; wait_for $stopped "[Tt]*"
own=$(ps -o pgid=,sid= -p $$)
names() { sed "s/\b$$\b/shell/; s/\b$plain\b/plain/; s/\b$session\b/session/; s/\b$parent\b/parent/; s/\b$group\b/group/;
    s/\b$stopped\b/stopped/; s/\b$zombie\b/zombie/; s/$NAME/nap/g"; }
"""

SHOW = r"""
ps -o pid=,ppid=,pgid=,sid=,stat=,comm= -p $plain,$session,$parent,$group,$stopped,$zombie |
while read -r pid ppid pgid sid stat comm; do
    set -- $own; in=other; of=other; by=other
    [ $pgid = $1 ] && in=shell; [ $pgid = $pid ] && in=own; [ $sid = $2 ] && of=shell; [ $sid = $pid ] && of=own
    [ $ppid = $$ ] && by=shell; [ $ppid = $parent ] && by=parent
    echo "$pid: by $by, in $in, of $of, ${stat/#t/T}, $comm"
done | names | sort
pgrep -P $$ | grep -v -e "^$BASHPID$" | names | grep -v "^[0-9]" | sort | xargs echo
pgrep -g $group | names; pgrep -s $session | names; pgrep -P $$ -r Z,S -x $NAME | names | sort | xargs echo
top -b -n1 -p $plain,$session,$parent,$group,$stopped,$zombie | awk -v n=7 'seen { print $1, $8 } $1 == "PID" { seen = 1 }' |
    sed 's/ t$/ T/' | names | sort
"""

KILL = r"""
pstree -A -p $parent | sed 's/([0-9]*)//g' | names
pkill -USR1 -P $$ -x $NAME -g $group; wait $group && echo 0 || echo $?
/bin/kill -TERM $plain; wait $plain && echo 0 || echo $?
pkill -HUP -s $session; wait $session && echo 0 || echo $?
pkill -CONT -P $$ -x $NAME; wait_for $stopped "S*"; echo goes on
killall $NAME; wait $stopped && echo 0 || echo $?; wait $parent && echo 0 || echo $?
pgrep -x $NAME -r R,S,D,T,t || echo none # a zombie may stay, where init does not reap
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A sleep under a name that nobody else has."""
    for name in ("ps", "pgrep", "pkill", "top", "killall", "pstree", "setsid"):
        program(name)
    name = f"nap{tmp_path.stat().st_ino % 1_000_000_000}"  # of at most 15 bytes, and another one in each test
    shutil.copy(program("sleep"), tmp_path / name)
    return {**os.environ, "DIR": str(tmp_path), "NAME": name, "LC_ALL": "C", "TERM": "dumb"}


@pytest.mark.parametrize("script", [SHOW, KILL], ids=["show", "kill"])
def test_they_see_and_do_what_they_do_natively(platform: str, environment: dict[str, str], script: str) -> None:
    ends = "\nkill -KILL $plain $session $parent $group $stopped 2>/dev/null; wait 2>/dev/null; exit 0\n"
    command = [program("bash"), "-c", START + "set +e\n" + script + ends]
    found = same(platform, command, f"--volume={environment['DIR']}", env=environment).stdout.decode()
    wanted = (
        ("group: by shell, in own, of shell, S, nap", "zombie: by parent, in shell, of shell, Z, nap", "stopped T")
        if script is SHOW
        else ("138", "143", "129", "goes on", "none")
    )
    assert all(line in found for line in wanted), found


def test_they_see_the_sandbox_and_nothing_else(platform: str) -> None:
    """All processes there are, by ps and by pstree: the sandbox's init and its guests."""
    for name in ("ps", "pstree"):
        program(name)
    found = do(platform, ["sh", "-c", "ps -eo pid=,ppid=,pgid=,sid=,comm=; pstree -A -p"]).stdout.decode()
    lines = [line.split() for line in found.splitlines()]
    assert lines[:3] == [
        ["1", "0", "0", "0", "trapline-init"], ["2", "1", "0", "0", "sh"], ["3", "2", "0", "0", "ps"]
    ], found  # fmt: skip
    assert found.splitlines()[3:] == ["trapline-init(1)---sh(2)---pstree(4)"], found
