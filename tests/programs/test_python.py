"""Python programs: threads, processes, asyncio, signals. Output and status are those of a native run."""

import sys

import pytest
from harness import program, same

PROGRAMS = {
    "threads": """
import queue, threading, time
q, out, lock = queue.Queue(), [], threading.Lock()
def work():
    while (n := q.get()) is not None:
        with lock: out.append(n * n)
ts = [threading.Thread(target=work) for _ in range(6)]
for t in ts: t.start()
for n in range(500): q.put(n)
for t in ts: q.put(None)
for t in ts: t.join()
print(sum(out), threading.active_count())
e = threading.Event(); print(e.wait(0.05))
threading.Timer(0.05, e.set).start(); print(e.wait(10))
c, box = threading.Condition(), []
def consumer():
    with c:
        while not box: c.wait(5)
        print("consumed", box.pop())
t = threading.Thread(target=consumer); t.start(); time.sleep(0.05)
with c: box.append(7); c.notify()
t.join()
b = threading.Barrier(4); order = []
for i in range(3): threading.Thread(target=lambda: (b.wait(), order.append(1))).start()
b.wait()
try: threading.Lock().acquire(timeout=-2)
except ValueError as e: print(e)
l = threading.Lock(); l.acquire(); a = time.monotonic(); print(l.acquire(timeout=0.1), 0.09 < time.monotonic() - a < 5)
print(threading.get_native_id() == __import__("os").getpid())
""",
    "subprocess": """
import os, signal, subprocess, sys
print(subprocess.run(["echo", "hi"], capture_output=True))
print(subprocess.run("exit 3", shell=True).returncode, subprocess.run("kill -9 $$", shell=True).returncode)
p = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(len(p.communicate(b"x" * 300000)[0]), p.returncode)
p = subprocess.Popen(["sleep", "100"])
try: p.wait(0.1)
except subprocess.TimeoutExpired: print("expired")
p.send_signal(signal.SIGSTOP); p.send_signal(signal.SIGCONT); p.terminate(); print(p.wait())
try: subprocess.run(["sleep", "9"], timeout=0.1)
except subprocess.TimeoutExpired: print("timeout")
try: subprocess.run(["/no/such"])
except FileNotFoundError as e: print(e.errno, e.filename)
print(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpgrp() == os.getpid())"], start_new_session=True))
print(subprocess.check_output("pwd", cwd="/", env={"PATH": os.environ["PATH"]}))
print(subprocess.run(["sh", "-c", "echo e >&2; echo o"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=lambda: os.umask(0)).stdout)
ps = [subprocess.Popen(["sh", "-c", f"exit {i}"]) for i in range(20)]
print([p.wait() for p in ps])
a, b = os.pipe(); p = subprocess.Popen(["sh", "-c", f"echo passed >&{b}"], pass_fds=[b]); os.close(b); print(os.read(a, 99), p.wait())
print(os.popen("echo popen").read(), os.system("exit 5") >> 8, os.spawnlp(os.P_WAIT, "sh", "sh", "-c", "exit 6"))
print(os.waitstatus_to_exitcode(os.waitpid(os.posix_spawnp("sh", ["sh", "-c", "exit 7"], os.environ), 0)[1]))
""",
    "fork": """
import os, signal, sys, time, resource
r, w = os.pipe()
pid = os.fork()
if not pid:
    os.write(w, b"child"); os._exit(11)
print(os.read(r, 9), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
pids = []
for i in range(10):
    p = os.fork()
    if not p: time.sleep(0.005 * i); os._exit(i)
    pids.append(p)
print(sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in pids))
try: os.wait()
except ChildProcessError as e: print(e)
p = os.fork()
if not p: signal.pause()
print(os.waitpid(p, os.WNOHANG)); os.kill(p, signal.SIGTERM)
print(os.waitid(os.P_PID, p, os.WEXITED | os.WNOWAIT).si_status, os.wait4(p, 0)[1])
fd = os.pidfd_open(p := os.fork() or os._exit(4)); print(os.waitid(os.P_PIDFD, fd, os.WEXITED).si_status)
p = os.fork()
if not p:
    os.setsid(); q = os.fork()
    if not q: time.sleep(0.05); os.write(w, b"orphan of %d" % (os.getppid() == 1)); os._exit(0)
    os._exit(0)
os.waitpid(p, 0); print(os.read(r, 99)[:6])
pid, fd = os.forkpty()
if not pid: print("tty", os.isatty(0)); os._exit(0) if not sys.stdout.flush() else 0
said = b""
while not said.endswith(b"\\n"): said += os.read(fd, 99)
print(said, os.waitpid(pid, 0)[1])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0)
""",
    "multiprocessing": """
import multiprocessing as mp, os, sys, time
def square(n): return n * n
def put(q, n): q.put(n)
def count(v, lock):
    for _ in range(100):
        with lock: v.value += 1
def main(kind):
    c = mp.get_context(kind)
    with c.Pool(3) as pool:
        print(kind, pool.map(square, range(10)), pool.apply_async(square, (12,)).get(20))
    q = c.Queue(); ps = [c.Process(target=put, args=(q, i)) for i in range(3)]
    for p in ps: p.start()
    print(sorted(q.get(timeout=20) for _ in ps)); [p.join() for p in ps]
    v, lock = c.Value("i", 0), c.Lock(); ps = [c.Process(target=count, args=(v, lock)) for _ in range(2)]
    for p in ps: p.start()
    for p in ps: p.join()
    print(v.value, [p.exitcode for p in ps])
    p = c.Process(target=time.sleep, args=(100,)); p.start(); p.join(0.05); print(p.is_alive()); p.terminate(); p.join(); print(p.exitcode)
    p = c.Process(target=sys.exit, args=(9,)); p.start(); p.join(); print(p.exitcode)
    a, b = c.Pipe(); a.send({"k": [1]}); print(b.recv(), b.poll(0.05))
if __name__ == "__main__":
    main("fork"); main("spawn")
    from multiprocessing import shared_memory
    m = shared_memory.SharedMemory(create=True, size=100); m.buf[0] = 9
    n = shared_memory.SharedMemory(m.name); print(n.buf[0]); n.close(); m.close(); m.unlink()
""",
    "asyncio": """
import asyncio, os, signal, sys, time
async def main():
    loop = asyncio.get_running_loop(); order = []
    await asyncio.gather(*(asyncio.sleep(0.02 * n, order.append(n)) for n in (3, 1, 2)))
    for n in (3, 1, 2): loop.call_later(0.04 * n, order.append, n * 10)
    await asyncio.sleep(0.2); print(order)
    try: await asyncio.wait_for(asyncio.sleep(9), 0.05)
    except asyncio.TimeoutError: print("timeout")
    p = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1); print(await p.communicate(b"through"), p.returncode)
    ps = await asyncio.gather(*(asyncio.create_subprocess_shell(f"sleep 0.0{i}; exit {i}") for i in range(8)))
    print(await asyncio.gather(*(p.wait() for p in ps)))
    p = await asyncio.create_subprocess_exec("sleep", "100"); p.kill(); print(await p.wait())
    got = asyncio.Queue()
    for s in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT): loop.add_signal_handler(s, got.put_nowait, s.name)
    os.kill(os.getpid(), signal.SIGUSR1); print(await got.get())
    await asyncio.create_subprocess_shell(f"sleep 0.05; kill -TERM {os.getpid()}"); print(await got.get())
    signal.setitimer(signal.ITIMER_REAL, 0); signal.raise_signal(signal.SIGINT); print(await got.get())
    print(await asyncio.to_thread(sum, range(100)))
    async def serve(r, w): w.write((await r.readline()).upper()); await w.drain(); w.close()
    server = await asyncio.start_unix_server(serve, "socket")
    r, w = await asyncio.open_unix_connection("socket"); w.write(b"line\\n"); print(await r.read()); w.close(); server.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0); port = server.sockets[0].getsockname()[1]
    r, w = await asyncio.open_connection("127.0.0.1", port); w.write(b"tcp\\n"); print(await r.read()); w.close(); server.close()
    os.unlink("socket")
asyncio.run(main())
""",
    "signals": """
import os, select, signal, threading, time
log = []
signal.signal(signal.SIGALRM, lambda s, f: log.append("alrm"))
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
while len(log) < 4: signal.pause()
print(signal.setitimer(signal.ITIMER_REAL, 0)[1], log[:4]); log.clear()
signal.alarm(100); print(signal.alarm(0) in (99, 100))
for which, s in ((signal.ITIMER_VIRTUAL, signal.SIGVTALRM), (signal.ITIMER_PROF, signal.SIGPROF)):
    signal.signal(s, lambda s, f: log.append(signal.Signals(s).name)); signal.setitimer(which, 0.02)
    while not log: pass
    print(log); log.clear()
mask = {signal.SIGUSR1, signal.SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, mask)
os.kill(os.getpid(), signal.SIGUSR2); os.kill(os.getpid(), signal.SIGUSR1)
print(sorted(signal.sigpending())); print(signal.sigwait(mask), signal.sigwait(mask))
print(signal.sigtimedwait(mask, 0.05)); threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
i = signal.sigwaitinfo(mask); print(i.si_signo, i.si_code, i.si_pid == os.getpid(), i.si_uid)
signal.pthread_sigmask(signal.SIG_UNBLOCK, mask)
signal.signal(signal.SIGUSR1, lambda s, f: log.append(threading.current_thread() is threading.main_thread()))
t = threading.Thread(target=time.sleep, args=(0.2,)); t.start(); signal.pthread_kill(t.ident, signal.SIGUSR1); t.join(); print(log)
threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)).start()
a = time.monotonic(); time.sleep(0.15); print(time.monotonic() - a >= 0.15, len(log))
r, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w); signal.raise_signal(signal.SIGUSR1); print(list(os.read(r, 9)) == [signal.SIGUSR1])
signal.siginterrupt(signal.SIGUSR1, False); threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
print(select.select([], [], [], 0.1), select.poll().poll(10), select.epoll().poll(0.01))
class Stop(Exception): pass
def stop(s, f): raise Stop
signal.set_wakeup_fd(-1); os.read(r, 99)
signal.signal(signal.SIGTERM, stop); threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
try: os.read(r, 1)
except Stop: print("stopped a read")
try: threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start(); time.sleep(10)
except KeyboardInterrupt: print("interrupt")
signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGTERM)
""",
    "futures": """
import concurrent.futures as cf, time
def cube(n): return n ** 3
if __name__ == "__main__":
    for kind in (cf.ThreadPoolExecutor, cf.ProcessPoolExecutor):
        with kind(3) as ex:
            print(list(ex.map(cube, range(8), timeout=30)))
            f = ex.submit(divmod, 1, 0); print(repr(f.exception(30)))
            done, rest = cf.wait([ex.submit(time.sleep, 0.01), ex.submit(time.sleep, 0.3)], return_when=cf.FIRST_COMPLETED)
            print(len(done), len(rest))
""",
    "faulthandler": """
import faulthandler, signal, os, subprocess, sys
crash = "import faulthandler; faulthandler.enable(); faulthandler._sigsegv()"
p = subprocess.run([sys.executable, "-c", crash], capture_output=True); print(p.returncode, p.stderr.splitlines()[0])
p = subprocess.run([sys.executable, "-c", "import ctypes; ctypes.string_at(0)"]); print(p.returncode)
p = subprocess.run([sys.executable, "-c", "import os; os.abort()"]); print(p.returncode)
faulthandler.register(signal.SIGUSR1, file=sys.stdout, all_threads=False); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGUSR1)
r, w = os.pipe()  # its lines name addresses of threads
if not os.fork(): faulthandler.dump_traceback_later(0.05, exit=True, file=w); import time; time.sleep(10)
os.close(w); print(open(r).readlines()[::2], os.wait()[1])
""",
    "time": """
import os, resource, time
a = time.monotonic_ns(); time.sleep(0.05); b = time.monotonic_ns(); print(50e6 <= b - a < 3e9)
print(abs(time.time() - time.clock_gettime(time.CLOCK_REALTIME)) < 1, abs(time.time_ns() - time.clock_gettime_ns(time.CLOCK_TAI)) < 60e9)
x = time.process_time(); y = time.thread_time(); sum(range(300000)); print(time.process_time() > x, time.thread_time() > y)
for c in ("REALTIME", "MONOTONIC", "MONOTONIC_COARSE", "MONOTONIC_RAW", "BOOTTIME", "PROCESS_CPUTIME_ID", "THREAD_CPUTIME_ID", "TAI"):
    print(c, time.clock_getres(getattr(time, "CLOCK_" + c, 6)), time.clock_gettime(getattr(time, "CLOCK_" + c, 6)) > 0)
print(time.strftime("%F", time.gmtime(0)), os.times().user >= 0)
p = os.fork()
if not p: time.sleep(0.02); os._exit(0)
_, _, ru = os.wait4(p, 0); print(ru.ru_utime < 1, ru.ru_nvcsw > 0)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); print(resource.getrlimit(resource.RLIMIT_NOFILE))
print(time.clock_gettime(time.pthread_getcpuclockid(__import__("threading").get_ident())) > 0)
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(platform, name, tmp_path):
    """From a file, since spawned processes import the main module again."""
    (tmp_path / "main.py").write_text(PROGRAMS[name])
    same(platform, [sys.executable, "-u", "main.py"], cwd=tmp_path, timeout=40)


def test_system_python(platform, tmp_path):
    """The distribution's own Python, isolated from the environment of the tests."""
    same(platform, [program("python3"), "-I", "-c", "import sys, json, ssl, sqlite3; print(sys.version); sys.exit(3)"])


def test_uncaught_exception(platform):
    same(platform, [sys.executable, "-c", "raise SystemExit(300)"])
    same(platform, [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGINT); input()"])
