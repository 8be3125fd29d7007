"""Real programs, saved in the middle of their work: what they make of it is what they make natively."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from boxes import Boxes
from harness import is_root, program, workload
from saved_program import FORMS, same_when_saved

long = pytest.mark.long


@pytest.fixture
def boxes(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxes]:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    found = Boxes(platform, tmp_path)
    yield found
    found.close()


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
if sys.argv[1:] == ["net"]: asyncio.run(main())

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
for _ in range(4): n = n * n
say(n % (10 ** 50 + 151), hash(tuple(table)) == hash(tuple(range(100000))), len("".join(table.values())))
"""


def test_python(boxes: Boxes, form: str) -> None:
    """Threads, children with pipes, a large computation."""
    at = (b"threads", b"children", b"big")
    same_when_saved(boxes, [sys.executable, "-c", PYTHON], form, at=at, seed=1, saves=1)
