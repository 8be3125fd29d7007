"""Sandboxes in other states, and started in other ways, than the tests of checkpoints have elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from boxes import Boxes, root_of_busybox, until
from typist import Typist

#: It counts, and says what its clock shows; nobody of it waits in the sentry or in the host alone.
COUNT = """
import os, signal, sys, threading, time
def ticks():
    while True:
        signal.sigtimedwait([signal.SIGUSR1], 0.01)
threading.Thread(target=ticks, daemon=True).start()
if os.fork() == 0:
    while True: time.sleep(0.01)
number = 0
while True:
    number += 1
    with open("count.new", "w") as file: file.write(f"{number} {time.monotonic()}")
    os.rename("count.new", "count")
    time.sleep(0.005)
"""


def count() -> tuple[int, float]:
    number, clock = Path("count").read_text().split()
    return int(number), float(clock)


def goes_on(number: int) -> None:
    until(lambda: Path("count").exists() and count()[0] > number, "it counts")


@pytest.mark.parametrize("freeze", [False, True])
def test_a_paused_sandbox(boxes: Boxes, freeze: bool) -> None:
    """It is saved as it stands, and stands still afterwards; what is restored from it runs."""
    boxes.begin("run", "-d", "--id", "box", "--", "python3", "-c", COUNT)
    goes_on(0)
    boxes.good("pause", *(["--freeze-clocks"] if freeze else []), "box")
    before = count()
    for image in ("../one", "../two"):
        boxes.good("checkpoint", "--image-path", image, "--leave-running", "box")
        assert boxes.state_of("box")["status"] == "paused"
    assert count() == before
    boxes.good("resume", "box")
    goes_on(before[0] + 2)
    if freeze:
        assert count()[1] - before[1] < 0.3  # two saves and a restore would take longer
    boxes.good("pause", "box")
    before = count()
    boxes.good("checkpoint", "--image-path", "../three", "box")
    boxes.good("delete", "box")
    assert count() == before
    boxes.begin("restore", "-d", "--image-path", "../three", "--id", "again")
    assert boxes.state_of("again")["status"] == "running"
    goes_on(before[0])
    boxes.good("kill", "again", "KILL")


def test_signals_to_a_paused_sandbox(boxes: Boxes) -> None:
    """They come when it goes on, also in what is restored; SIGKILL ends one that was saved and paused."""
    script = "trap 'echo got; exit 3' TERM; echo up; while :; do sleep 0.01; done"
    boxes.begin("run", "-d", "--id", "box", "--", "sh", "-c", script)
    log = boxes.state / "box" / "output.log"
    until(lambda: b"up" in log.read_bytes(), "it runs")
    boxes.good("pause", "box")
    boxes.good("checkpoint", "--image-path", "../one", "--leave-running", "box")
    boxes.good("kill", "box", "TERM")
    boxes.good("checkpoint", "--image-path", "../two", "--leave-running", "box")
    assert log.read_bytes() == b"up\n"
    restored = boxes("restore", "--image-path", "../two")
    assert (restored.status, restored.stdout) == (3, b"got\n")
    boxes.good("resume", "box")
    until(lambda: log.read_bytes() == b"up\ngot\n", "its end")
    boxes.begin("restore", "-d", "--image-path", "../one", "--id", "again")
    boxes.good("pause", "again")
    boxes.good("checkpoint", "--image-path", "../three", "--leave-running", "again")
    boxes.good("kill", "again", "KILL")
    until(lambda: boxes.state_of("again")["status"] == "stopped", "its end")


#: Each of two processes opens it by its name, which it got by link(2): what is mapped was called otherwise.
SEMAPHORE = """
import os, time, _multiprocessing
first = _multiprocessing.SemLock(1, 0, 1, "/trapline-test", False)
if os.fork() == 0:
    second = _multiprocessing.SemLock._rebuild(0, 1, 1, "/trapline-test")
    print("waits", flush=True)
    second.acquire()
    print("has it", flush=True)
    os._exit(0)
while not os.path.exists("go"): time.sleep(0.01)
first.release(); os.wait(); os.unlink("/dev/shm/sem.trapline-test")
"""


def test_a_semaphore_with_a_name(boxes: Boxes) -> None:
    boxes.begin("run", "-d", "--id", "box", "--", "python3", "-c", SEMAPHORE)
    log = boxes.state / "box" / "output.log"
    until(lambda: log.read_bytes() == b"waits\n", "it waits")
    boxes.good("checkpoint", "--image-path", "../one", "box")
    boxes.good("delete", "box")
    boxes.begin("restore", "-d", "--image-path", "../one", "--id", "box")
    Path("go").touch()
    until(lambda: log.read_bytes() == b"has it\n", "both have the same one")


#: The id of the first one is 0, and so is the inode that the host shows for it.
SEGMENT = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmdt.argtypes = [ctypes.c_void_p]
number = libc.shmget(0, 4096, 0o1600)
at = libc.shmat(number, None, 0)
ctypes.memmove(at, b"parent", 6)
if os.fork() == 0:
    print(number, "attached", flush=True)
    while not os.path.exists("go"): time.sleep(0.01)
    print(ctypes.string_at(at, 6), flush=True)
    ctypes.memmove(at, b"child!", 6)
    os._exit(libc.shmdt(at))
print(os.wait()[1], ctypes.string_at(at, 6), libc.shmdt(at), flush=True)
"""


def test_the_first_segment_of_shared_memory(boxes: Boxes) -> None:
    boxes.begin("run", "-d", "--id", "box", "--", "python3", "-c", SEGMENT)
    log = boxes.state / "box" / "output.log"
    until(lambda: log.read_bytes() == b"0 attached\n", "it is attached")
    boxes.good("checkpoint", "--image-path", "../one", "box")
    boxes.good("delete", "box")
    boxes.begin("restore", "-d", "--image-path", "../one", "--id", "box")
    Path("go").touch()
    until(lambda: log.read_bytes() == b"b'parent'\n0 b'child!' 0\n", "it is attached still")


# -- started in other ways
LISTENS = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    with open("port.new", "w") as file: file.write(str(server.getsockname()[1]))
    import os; os.rename("port.new", "port")
    while True:
        with server.accept()[0] as connection: connection.sendall(b"hello")
"""
ASKS = "import socket; print(socket.create_connection(('127.0.0.1', int(open('port').read()))).recv(9))"
SLEEPS = ("--", "sh", "-c", "touch ready; while :; do sleep 100; done")
FACTS = "hostname; id; grep -e processes -e files /proc/1/limits; grep -e Cap -e Groups /proc/1/status; mount | wc -l; ls -l /own /tmp"


def bundle(path: Path) -> list[str]:
    """With a user, limits, capabilities, a host name, a tmpfs and a mount that is shared."""
    place = path / "bundle"
    place.mkdir()
    root = root_of_busybox(place / "rootfs")
    (root / "own").mkdir(mode=0o777)
    work = path / "work"
    work.chmod(0o777)
    path.chmod(0o755)
    config = json.loads(Path(__file__).with_name("bundle.json").read_text())
    config["mounts"].append({"destination": "/shared", "type": "bind", "source": str(work), "options": ["rbind"]})
    (place / "config.json").write_text(json.dumps(config))
    return ["--bundle", str(place)]


def rootfs(path: Path) -> list[str]:
    root = root_of_busybox(path / "root")
    return [f"--rootfs={root}", f"--volume={path}/work:/shared", "--cwd=/shared"]


Way = tuple[Callable[[Path], list[str]], tuple[str, ...], str]
WAYS: dict[str, Way] = {
    "bundle": (bundle, (), FACTS),
    "rootfs": (rootfs, ("--", "sh", "-c", "echo new > /etc/own; rm /bin/tty; touch ready; sleep 100"), "cat /etc/own; ls /bin"),
    "volumes": (
        lambda path: [f"--volume={path}:/mnt", "--volume=/etc:/media:ro"],
        ("--", "sh", "-c", "cd /mnt/work; exec 3> kept; touch ready; while :; do sleep 100; done"),
        "readlink /proc/1/cwd /proc/1/fd/3; touch /media/x 2> /dev/null || echo closed; cat /mnt/work/ready",
    ),
    "network": (lambda path: ["--network=host"], ("--", "python3", "-c", LISTENS), f'exec python3 -c "{ASKS}"'),
    "cpus": (lambda path: ["--cpus=1"], SLEEPS, "nproc; grep Cpus_allowed_list /proc/1/status"),
}


@pytest.mark.parametrize("way", [way if way == "bundle" else pytest.param(way, marks=pytest.mark.long) for way in WAYS])
def test_started_in_another_way(boxes: Boxes, way: str) -> None:
    """It is there again as it was, twice at once, as far as the two do not want the same of the host's."""
    flags, words, asks = WAYS[way]
    boxes.begin("run", "-d", "--id", "box", *flags(boxes.path), *words)
    ready = Path("port" if way == "network" else "ready")
    until(ready.exists, "it is ready")
    before = boxes("exec", "box", "sh", "-c", asks)
    assert before.status == 0, before
    for image, more in (("../one", ["--leave-running"]), ("../two", [])):
        assert boxes("checkpoint", "--image-path", image, *more, "box").status == 0
    boxes.good("delete", "box")
    for name in ("first", "second"):
        done = boxes("restore", "-d", "--image-path", "../two", "--id", name)
        if name == "second" and way == "network":
            assert done.status == 128 and b"Address already in use" in done.stderr, done
            break
        assert (done.status, done.stderr) == (0, b""), done
        assert boxes.good("exec", name, "sh", "-c", asks) == before.stdout.decode()


def test_what_it_shared_is_gone(boxes: Boxes) -> None:
    """One line says so."""
    shared = boxes.path / "shared"
    shared.mkdir()
    boxes.begin("run", "-d", "--id", "box", f"--volume={shared}:/mnt", *SLEEPS)
    until(Path("ready").exists, "it is ready")
    boxes.good("checkpoint", "--image-path", "../one", "box")
    shutil.rmtree(shared)
    said = boxes.bad("restore", "--image-path", "../one", "--id", "again")
    assert said == f"trapline restore: {shared}: No such file or directory"


# -- processes from outside
def test_processes_of_exec(boxes: Boxes) -> None:
    """They run on as children of the first process; `kill` reaches them, and there may be more."""
    boxes.begin("run", "-d", "--id", "box", *SLEEPS)
    until(Path("ready").exists, "it is ready")
    script = "trap 'echo ended > told; exit 3' TERM; echo up > up; while :; do sleep 0.01; done"
    boxes.begin("exec", "-d", "box", "sh", "-c", script)
    at = Typist(boxes.command("exec", "-t", "box", "env", "PS1=$? IN> ", "bash", "--norc", "--noediting"), size=(30, 100))
    at.expect("0 IN> ")
    at.send("x=5")
    at.expect("0 IN> ")
    until(Path("up").exists, "it runs")
    assert boxes("checkpoint", "--image-path", "../one", "--leave-running", "box").status == 0
    at.send("echo $((x + 1)); tty")
    at.expect("6\r\n/dev/pts/0")
    at.expect("0 IN> ")
    assert boxes("checkpoint", "--image-path", "../two", "box").status == 0
    assert at.end() in (128, 137)  # what it hears first: that the sandbox has ended, or its program
    boxes.good("delete", "box")
    boxes.begin("restore", "-d", "--image-path", "../two", "--id", "again")
    (pid,) = (process["pid"] for process in boxes.ps("again") if "told" in " ".join(process["command"]))
    assert boxes.good("exec", "again", "ps", "-o", "ppid=", "-p", str(pid)).split() == ["1"]
    boxes.good("kill", "--pid", str(pid), "again", "TERM")
    until(Path("told").exists, "its end")
    # Who sat at a terminal of the one that was saved is gone, which the shell there hears of.
    until(lambda: not [p for p in boxes.ps("again") if p["command"][:1] == ["bash"]], "the hangup")
    assert boxes.good("exec", "again", "echo", "new") == "new\n"


#: A child that has ended, one that is saved in the middle of its work, and one of later.
TIMES = """
import os, resource, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
def child(before, after):
    pid = os.fork()
    if pid == 0:
        burn(before)
        open(f"burnt-{before}", "w").close()
        while after and not os.path.exists("go"): time.sleep(0.005)
        burn(after)
        os._exit(0)
    while not os.path.exists(f"burnt-{before}"): time.sleep(0.005)
    return pid
total = lambda used: used.ru_utime + used.ru_stime
before = total(resource.getrusage(resource.RUSAGE_CHILDREN))  # of whatever executed this program
children = [child(0.3, 0), child(0.4, 0.1)]
print("ready", flush=True)
while not os.path.exists("go"): time.sleep(0.005)
children.append(child(0.2, 0))
used = [total(os.wait4(pid, 0)[2]) for pid in children]
together = total(resource.getrusage(resource.RUSAGE_CHILDREN)) - before
print([0 <= a - b < 0.25 for a, b in zip(used, (0.3, 0.5, 0.2))], abs(together - sum(used)) < 0.02, flush=True)
"""


@pytest.mark.long  # it computes
def test_what_children_used(boxes: Boxes) -> None:
    boxes.begin("run", "-d", "--id", "box", "--", "python3", "-c", TIMES)
    log = boxes.state / "box" / "output.log"
    until(lambda: log.read_bytes() == b"ready\n", "it is ready")
    boxes.good("checkpoint", "--image-path", "../one", "box")
    boxes.good("delete", "box")
    boxes.begin("restore", "-d", "--image-path", "../one", "--id", "box")
    Path("go").touch()
    until(log.read_bytes, "it counted")
    assert log.read_bytes() == b"[True, True, True] True\n"


#: A timer of the wall clock that wants to be told when that is set.
CANCELLED = """
import ctypes, errno, os, select, struct, time
libc = ctypes.CDLL(None, use_errno=True)
timer = libc.timerfd_create(0, os.O_NONBLOCK)
assert libc.timerfd_settime(timer, 3, struct.pack("4q", 0, 0, int(time.time()) + 1000, 0), None) == 0
other = os.dup(timer)
print("ready", flush=True)
while not os.path.exists("go"): time.sleep(0.005)
def read():
    try: return os.read(other, 8)
    except OSError as error: return errno.errorcode[error.errno]
left = ctypes.create_string_buffer(32)
print(select.select([timer], [], [], 0)[0] == [timer], read(), read(), end=" ")
libc.timerfd_gettime(timer, left)
print(900 < struct.unpack("4q", left)[2] < 1001, flush=True)
"""


def test_a_timer_that_hears_of_the_wall_clock(boxes: Boxes) -> None:
    """With --clock-continue the wall clock is ahead of the others, as after somebody has set it."""
    boxes.begin("run", "-d", "--id", "box", "--", "python3", "-c", CANCELLED)
    log = boxes.state / "box" / "output.log"
    until(lambda: log.read_bytes() == b"ready\n", "it is ready")
    boxes.good("checkpoint", "--image-path", "../one", "box")
    Path("go").touch()
    assert boxes.good("restore", "--image-path", "../one") == "False EAGAIN EAGAIN True\n"
    cancelled = "True ECANCELED EAGAIN True\n"
    assert boxes.good("restore", "--image-path", "../one", "--clock-continue") == cancelled
    Path("go").unlink()
    boxes.begin("restore", "-d", "--image-path", "../one", "--clock-continue", "--id", "two")
    boxes.good("checkpoint", "--image-path", "../two", "two")
    Path("go").touch()
    assert boxes.good("restore", "--image-path", "../two") == cancelled  # nobody was told yet


#: A server of both kinds of addresses, and a client of the older one.
MIXED = """
import os, socket, time
server = socket.create_server(("", 7070), family=socket.AF_INET6, dualstack_ipv6=True)
client = socket.create_connection(("127.0.0.1", 7070))
its = server.accept()[0]
client.sendall(b"before ")
print("ready", flush=True)
while not os.path.exists("go"): time.sleep(0.005)
its.sendall(b"answer"); client.sendall(b"after")
again = socket.create_connection(("127.0.0.1", 7070)); server.accept()[0].sendall(b"new")
print(its.recv(7) + its.recv(9), its.getpeername()[0], client.recv(9), again.recv(9), flush=True)
"""


def test_connections_between_both_kinds_of_addresses(boxes: Boxes) -> None:
    boxes.begin("run", "-d", "--id", "box", "--", "python3", "-c", MIXED)
    log = boxes.state / "box" / "output.log"
    until(lambda: log.read_bytes() == b"ready\n", "it is ready")
    boxes.good("checkpoint", "--image-path", "../one", "box")
    Path("go").touch()
    said = boxes.good("restore", "--image-path", "../one")
    assert said == "b'before after' ::ffff:127.0.0.1 b'answer' b'new'\n"
