"""Real programs, saved in the middle of their work: what they make of it is what they make natively."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from boxes import Boxes
from harness import program
from saved_program import FORMS, same_when_saved


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


PYTHON = r"""
import asyncio, hashlib, os, signal, socket, subprocess, sys, threading, time
say = lambda *words: print(*words, flush=True)

# Threads that hand work to one another.
import queue
todo, done = queue.Queue(4), queue.Queue()
def work():
    while (job := todo.get()) is not None:
        done.put((job, hashlib.sha256(b"%d" % job * 20000).hexdigest()[:8]))
threads = [threading.Thread(target=work) for _ in range(8)]
for t in threads: t.start()
for job in range(300):
    todo.put(job)
    if job == 150: say("threads")
    time.sleep(0.001)
for t in threads: todo.put(None)
for t in threads: t.join()
say(hashlib.sha256(repr(sorted(done.queue)).encode()).hexdigest())

# An event loop with timers, a server and its clients.
async def echo(reader, writer):
    while line := await reader.readline():
        await asyncio.sleep(0.002)
        writer.write(line.upper()); await writer.drain()
    writer.close()
async def client(n, port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = []
    for i in range(40):
        writer.write(b"line %d of %d\n" % (i, n)); await writer.drain()
        got.append(await reader.readline())
        if n == 3 and i == 20: say("asyncio")
    writer.close()
    return b"".join(got)
async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    got = await asyncio.gather(*(client(n, port) for n in range(8)))
    say(hashlib.sha256(b"".join(got)).hexdigest(), len(got))
    server.close()
asyncio.run(main())

# Children, with pipes to them.
cat = subprocess.Popen(["sh", "-c", "while read x; do echo got $x; done; exit 3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
for i in range(100):
    cat.stdin.write(b"%d\n" % i); cat.stdin.flush()
    assert cat.stdout.readline() == b"got %d\n" % i
    if i == 50: say("children")
    time.sleep(0.001)
cat.stdin.close()
say(cat.wait())

# A large number, and memory.
n = 3 ** 60000
table = {i: str(i) * 3 for i in range(100000)}
say("big")
for _ in range(3): n = n * n
for _ in range(40): n % (10 ** 20000 + 151)
say(n % (10 ** 50 + 151), hash(tuple(table)) == hash(tuple(range(100000))), len("".join(table.values())))
"""


def test_python(boxes: Boxes, form: str) -> None:
    """Threads, an event loop with connections, children with pipes, a large computation."""
    at = (b"threads", b"asyncio", b"children", b"big")
    same_when_saved(boxes, [sys.executable, "-c", PYTHON], form, "--network", "none", at=at, seed=1, saves=1)


BASH = r"""
trap 'echo usr1' USR1
declare -A seen
work() { for ((i = 0; i < 400; i++)); do echo "$1 $i"; done; }
for part in a b c d; do
    while read -r name number; do
        seen[$name]=$((${seen[$name]:-0} + number))
        if [ "$number" = 200 ]; then echo "at $name"; kill -USR1 $$; fi
    done < <(work $part; work $part$part)
    (sleep 0.05; exit 7) & wait $!; echo $?
done
for k in $(printf '%s\n' "${!seen[@]}" | sort); do echo "$k ${seen[$k]}"; done
exec 5<<< "a here document"; sleep 0.1; cat <&5
seq 30000 | sort -R | sort -n | sha256sum
coproc while read x; do echo "<$x>"; done
for i in 1 2 3; do echo $i >&"${COPROC[1]}"; read -u "${COPROC[0]}" y; echo $y; sleep 0.05; done
"""


def test_bash(boxes: Boxes, form: str) -> None:
    """Traps, process substitutions, children, here documents, coprocesses."""
    same_when_saved(boxes, [program("bash"), "-c", BASH], form, at=(b"at b\n", b"at dd\n"), seed=2)


REDIS = r"""
redis-server --port 7777 --bind 127.0.0.1 --save '' --appendonly yes --dir . --daemonize no > log &
until redis-cli -p 7777 ping > /dev/null 2>&1; do sleep 0.01; done
echo up
redis-benchmark -p 7777 -c 8 -n 20000 -r 100 -q incr key:__rand_int__ > /dev/null & load=$!
for i in $(seq 150); do
    printf 'set n:%d %d\nlpush list %d\n' $i $((i * i)) $i
done | redis-cli -p 7777 > /dev/null
wait $load
redis-cli -p 7777 eval 'local sum = 0 for _, k in ipairs(redis.call("keys", "key:*")) do sum = sum + redis.call("get", k) end return sum' 0
redis-cli -p 7777 get n:100
redis-cli -p 7777 lrange list 0 -1 | sha256sum
redis-cli -p 7777 bgrewriteaof > /dev/null
redis-cli -p 7777 shutdown nosave
wait; rm -r appendonlydir log; echo done
"""


def test_redis_under_load(boxes: Boxes, form: str) -> None:
    """A server, its clients and the connections between them: no write is lost, and none is done twice."""
    program("redis-server")
    words = [program("bash"), "-c", REDIS]
    same_when_saved(boxes, words, form, "--network", "none", at=(b"up",), seed=3, saves=3)


SQLITE = r"""
import os, sqlite3, sys
base = sqlite3.connect("base", isolation_level=None)
base.executescript("pragma journal_mode=%s; create table t(a integer primary key, b text);" % sys.argv[1])
base.execute("begin immediate")
for i in range(200000):
    base.execute("insert into t values(?, ?)", (i, "x" * (i % 50)))
    if i == 40000: print("half", flush=True)
other = sqlite3.connect("base", timeout=0)
try: other.execute("insert into t values(-1, '')")
except sqlite3.OperationalError as error: print(error, flush=True)
print(other.execute("select count(*) from t").fetchall(), flush=True) if sys.argv[1] == "wal" else None
base.execute("commit")
base.execute("begin"); base.execute("delete from t where a % 2")
print("deleted", flush=True)
for i in range(12): base.execute("update t set b = b || ?", (str(i),))
print(base.execute("select count(*), sum(a), sum(length(b)) from t").fetchall())
base.execute("rollback")
print(base.execute("select count(*), sum(a), sum(length(b)) from t").fetchall(), base.execute("pragma integrity_check").fetchall())
base.close(); other.close(); os.unlink("base")
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_in_a_transaction(boxes: Boxes, form: str, journal: str) -> None:
    """Locks, a journal, and a write-ahead log's shared memory, in a transaction that is committed or rolled back."""
    words = [sys.executable, "-c", SQLITE, journal]
    same_when_saved(boxes, words, form, at=(b"half", b"deleted"), seed=4, saves=1)


GCC = r"""
for i in $(seq 12); do
    { echo '#include <stdio.h>'; echo '#include <math.h>'; for j in $(seq 60); do
        echo "double f${i}_$j(double x) { double s = 0; for (int k = 0; k < 10; k++) s += sin(x * $j + k) / (k + $i); return s; }"
    done; } > f$i.c
done
{ for i in $(seq 12); do echo "double f${i}_7(double);"; done
  echo 'int printf(const char *, ...); int main(void) { double s = 0;'
  for i in $(seq 12); do echo "s += f${i}_7(0.5);"; done; echo 'printf("%.9f\n", s); return 0; }'; } > main.c
printf 'all: prog\n%%.o: %%.c\n\t@gcc -O2 -pipe -c $< -o $@\n\t@echo some\nprog: main.o $(patsubst %%,f%%.o,1 2 3 4 5 6 7 8 9 10 11 12)\n\t@gcc -o $@ $^ -lm\n' > Makefile
make -s -j2 | sort
./prog; rm -f prog *.o *.c Makefile
"""


def test_gcc_and_make(boxes: Boxes, form: str) -> None:
    """A compiler's processes, the pipes between them (-pipe), temporary files, make's jobserver."""
    program("gcc")
    words = [program("bash"), "-c", GCC.replace("-j2 | sort", "-j2")]
    same_when_saved(boxes, words, form, at=(b"some\n", b"some\n" * 6), seed=5, saves=1)


MANY = r"""
import os, sys, time
# A ring of processes: each passes on what comes, a little changed.
count = 200
pipes = [os.pipe() for _ in range(count + 1)]
for n in range(count):
    if os.fork() == 0:
        into, out = os.fdopen(pipes[n][0], "rb", 0), os.fdopen(pipes[n + 1][1], "wb", 0)
        for k, (a, b) in enumerate(pipes):
            if k != n: os.close(a)
            if k != n + 1: os.close(b)
        while data := into.readline():
            out.write(b"%d\n" % (int(data) * 31 % 1000003 + n))
        os._exit(n % 100)
for k, (a, b) in enumerate(pipes):
    if k != count: os.close(a)
    if k: os.close(b)
out, into = os.fdopen(pipes[0][1], "wb", 0), os.fdopen(pipes[count][0], "rb")
for i in range(80):
    out.write(b"%d\n" % i * 3)
    print([into.readline() for _ in range(3)], flush=True)
    if i in (5, 15): print("at", i, flush=True)
    time.sleep(0.02)  # there is something to be saved when whoever saves has come
out.close()
print(into.read(), sum(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(count)))
"""


def test_200_processes(boxes: Boxes, form: str) -> None:
    """With a pipe from each to the next."""
    same_when_saved(boxes, [sys.executable, "-c", MANY], form, at=(b"at 5\n",), seed=6, saves=0)


THREADS = r"""
import threading, time
count, rounds = 200, 60
barrier = threading.Barrier(count + 1)
cells, lock = [0] * count, threading.Lock()
names = set()
def work(n):
    for r in range(rounds):
        barrier.wait()
        with lock:
            cells[n] = cells[n - 1] * 3 % 1009 + n if r % 2 else cells[n] + 1
            names.add(threading.get_native_id())
        barrier.wait()
threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
for t in threads: t.start()
for r in range(rounds):
    barrier.wait()
    print("round", r, flush=True)
    time.sleep(0.02)
    barrier.wait()
for t in threads: t.join()
print(len(names), len(cells), flush=True)
"""


def test_200_threads(boxes: Boxes, form: str) -> None:
    """All of them meet at barriers; each has the id after the save that it had before."""
    same_when_saved(boxes, [sys.executable, "-c", THREADS], form, at=(b"round 1\n", b"round 4\n"), seed=7, saves=0)


GO = r"""package main

import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGUSR1)
	jobs, sums := make(chan int), make(chan int)
	var group sync.WaitGroup
	for w := 0; w < 64; w++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for n := range jobs {
				s := 0
				for i := 0; i < 20000; i++ {
					s = (s*31 + n + i) % 1000003
				}
				time.Sleep(time.Millisecond)
				sums <- s
			}
		}()
	}
	go func() {
		for n := 0; n < 20000; n++ {
			if n%5000 == 2500 {
				fmt.Println("at", n)
				syscall.Kill(os.Getpid(), syscall.SIGUSR1)
				<-signals
			}
			jobs <- n
		}
		close(jobs)
		group.Wait()
		close(sums)
	}()
	total := 0
	for s := range sums {
		total += s
	}
	fmt.Println(total)
}
"""


@pytest.fixture(scope="session")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("go")
    (place / "work.go").write_text(GO)
    home = {**os.environ, "HOME": str(place), "GO111MODULE": "off", "GOFLAGS": ""}
    subprocess.run([program("go"), "build", "-o", "work", "work.go"], cwd=place, env=home, check=True, timeout=200)
    return str(place / "work")


def test_go(boxes: Boxes, form: str, go_program: str) -> None:
    """A runtime of many threads, which preempts them by signals and sleeps in futexes."""
    same_when_saved(boxes, [go_program], form, at=(b"at 2500\n", b"at 12500\n"), seed=8, saves=1)


NODE = r"""
const { spawn } = require('child_process');
const crypto = require('crypto');
let ticks = 0, hashed = 0;
const say = (...words) => console.log(...words);
const timer = setInterval(() => { if (++ticks === 20) say('ticking'); if (ticks === 120) { clearInterval(timer); end(); } }, 5);
const cat = spawn('cat');
let echoed = '';
cat.stdout.on('data', data => { echoed += data; if (echoed.length >= 20000) cat.stdin.end(); });
for (let i = 0; i < 2000; i++) cat.stdin.write(String(i % 10).repeat(9) + '\\n');
cat.on('close', code => { say('cat', code, crypto.createHash('sha256').update(echoed).digest('hex')); end(); });
let left = 60;
for (let i = 0; i < 60; i++) crypto.pbkdf2('x' + i, 'salt', 20000, 32, 'sha512', (e, key) => { hashed ^= key[0]; if (!--left) end(); });
let ends = 0;
function end() { if (++ends === 3) say(ticks, hashed); }
"""


def test_node(boxes: Boxes, form: str) -> None:
    """An event loop, the pool of threads below it, a compiler's memory, a child."""
    same_when_saved(boxes, [program("node"), "-e", NODE], form, at=(b"ticking",), seed=9, saves=1)


JAVA = r"""
import java.util.concurrent.*;
public class Work {
    public static void main(String[] words) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(16);
        long sum = 0;
        for (int round = 0; round < 6; round++) {
            java.util.List<Future<Long>> found = new java.util.ArrayList<>();
            for (int n = 0; n < 64; n++) {
                final int seed = round * 64 + n;
                found.add(pool.submit(() -> {
                    long s = seed; StringBuilder text = new StringBuilder();
                    for (int i = 0; i < 150000; i++) { s = (s * 31 + i) % 1000003; text.append(s % 10); }
                    Thread.sleep(2);
                    return s + text.toString().hashCode();
                }));
            }
            for (Future<Long> f : found) sum += f.get();
            System.out.println("round " + round); System.gc();
        }
        pool.shutdown();
        System.out.println(sum);
    }
}
"""


@pytest.mark.long
def test_java(boxes: Boxes, form: str) -> None:
    """A virtual machine that catches SIGSEGV for its own purposes, and moves its memory about."""
    Path("Work.java").write_text(JAVA)
    same_when_saved(boxes, [program("java"), "Work.java"], form, at=(b"round 0\n",), seed=10, saves=1)
