"""Databases: file locks, shared memory between writers, write-ahead logs, and a server with its own processes."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from harness import is_root, same
from scripts import needs, same_script

SQLITE = r"""
sqlite3 db 'pragma journal_mode=wal; create table t(a integer, b text);'
for i in 1 2 3 4; do
    (for j in $(seq 10); do sqlite3 -cmd '.timeout 30000' db "insert into t values($i, '$j')" || echo failed; done) &
done
(for j in $(seq 10); do sqlite3 -cmd '.timeout 30000' db 'select count(*) from t' > /dev/null || echo failed; done) &
wait
sqlite3 db 'select count(*), sum(a) from t; pragma integrity_check; pragma wal_checkpoint(truncate);'
sqlite3 db 'with recursive c(x) as (select 1 union all select x + 1 from c where x < 100000) select count(*), sum(x) from c'
sqlite3 db 'begin immediate; select 1;' '.shell sqlite3 db "insert into t values(0, 0)" 2>&1 | grep -o "database is locked"' 'commit;'
sqlite3 db '.dump' | sort | sha256sum; sqlite3 db 'pragma journal_mode=delete' 'vacuum'; ls
sqlite3 db 'select nonsense' 2>/dev/null; echo $?
"""

KILLED = r"""
sqlite3 db 'pragma journal_mode=wal; create table t(a integer primary key);' > /dev/null
mkfifo in out; sqlite3 -cmd '.timeout 30000' db < in > out & p=$!
exec 3> in 4< out
echo 'insert into t values(1); begin; insert into t values(2); select count(*) from t;' >&3
read -u 4 count; echo $count; kill -KILL $p; wait $p 2>/dev/null; echo $?
sqlite3 db 'select * from t; pragma integrity_check'
"""

POSTGRES = r"""
set -e
initdb -D data -U u --no-sync > /dev/null
pg_ctl -D data -w -s -l log -o "-c listen_addresses='' -c unix_socket_directories=$PWD -c fsync=off" start
query() { psql -h "$PWD" -U u -d postgres -qAt "$@"; }
query -c 'create table t(a int primary key, b text)'
for i in 1 2 3; do
    (for j in 1 2 3 4; do query -c "insert into t values($i * 100 + $j, 'x')"; done) & jobs="$jobs $!"
done
for j in $jobs; do wait $j; done
query -c 'select count(*), sum(a) from t'
query -c "set statement_timeout = 50; select pg_sleep(100)" 2>&1 || echo cancelled
query -c "select 1 from pg_sleep(0.02)"
query -c 'create table big as select generate_series(1, 100000) g; set parallel_setup_cost = 0;
          set min_parallel_table_scan_size = 0; select count(*), sum(g) from big'
query -c 'vacuum big'
pg_ctl -D data -s reload; pg_ctl -D data -s -m fast stop; echo $?
tail -1 log | grep -o 'database system is shut down'
"""


def test_sqlite_writers(platform, tmp_path):
    """Four writers and a reader of one database at once, by the shared memory of its write-ahead log."""
    needs("sqlite3")
    result = same_script(platform, SQLITE, tmp_path)
    assert b"40|100\nok\n0|0|0\n" in result.stdout and b"database is locked" in result.stdout, result


def test_sqlite_killed_in_a_transaction(platform, tmp_path):
    """What was not committed is gone for the next one, which recovers the log."""
    needs("sqlite3")
    result = same_script(platform, KILLED, tmp_path)
    assert result.stdout == b"2\n137\n1\nok\n", result


def test_postgres(platform, monkeypatch):
    """A server of many processes: latches by signals, shared memory, timeouts by interval timers, parallel
    workers, and an orderly shutdown. It refuses to be root's."""
    for place in sorted(Path("/usr/lib/postgresql").glob("*/bin")):
        monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    needs("initdb", "postgres", "pg_ctl", "psql")
    place = Path(tempfile.mkdtemp(prefix="trapline-pg-"))
    try:
        words = ["bash", "-c", f"mkdir run; cd run; {POSTGRES}"]
        if is_root():
            place.chmod(0o755)
            os.chown(place, 65534, 65534)
            words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *words]
        script = place / "script"
        script.write_text('rm -rf run; exec "$@"\n')
        result = same(platform, ["sh", str(script), *words], cwd=place, timeout=60)
        assert b"12|2430" in result.stdout and b"100000|5000050000" in result.stdout, result
    except OSError as error:
        pytest.fail(str(error))
    finally:
        shutil.rmtree(place, ignore_errors=True)
