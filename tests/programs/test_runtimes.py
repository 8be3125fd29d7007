"""Language runtimes that bring their own threads, timers, collectors and signal handlers."""

from scripts import needs, same_script

NODE = r"""
cat > main.js <<'J'
const { Worker, isMainThread, parentPort, threadId } = require('worker_threads');
const { spawn, spawnSync, execSync, fork } = require('child_process');
const http = require('http'), fs = require('fs'), zlib = require('zlib'), crypto = require('crypto');
if (!isMainThread) {
    let sum = 0;
    for (let i = 0; i < 1e6; i++) sum += i;
    parentPort.postMessage(sum);
} else if (process.argv[2] === 'child') {
    process.on('message', m => { process.send(m * 2); process.disconnect(); });
} else (async () => {
    let n = 0;
    await new Promise(done => { const t = setInterval(() => { if (++n === 5) { clearInterval(t); done(); } }, 4); });
    const before = process.hrtime.bigint();
    await new Promise(done => setTimeout(done, 20));
    console.log('timers', n, process.hrtime.bigint() - before >= 19000000n);
    console.log('workers', await Promise.all([1, 2, 3].map(() => new Promise((done, failed) => {
        const worker = new Worker(__filename);
        worker.on('message', done); worker.on('error', failed);
    }))));
    console.log(execSync('echo out').toString(), spawnSync('sh', ['-c', 'exit 3']).status);
    console.log(await new Promise(done => {
        const child = spawn('sleep', ['100']);
        child.on('exit', (code, signal) => done([code, signal])); child.kill();
    }));
    console.log(spawnSync('sleep', ['100'], { timeout: 30 }).signal);
    console.log(await new Promise(done => {
        const child = fork(__filename, ['child']);
        child.on('message', done); child.send(21);
    }));
    console.log(await new Promise(done => {
        const server = http.createServer((request, answer) => answer.end('asked for ' + request.url));
        server.listen(0, '127.0.0.1', () => http.get({ port: server.address().port, path: '/x', agent: false }, answer => {
            let text = ''; answer.on('data', part => text += part);
            answer.on('end', () => server.close(() => done(text)));
        }));
    }));
    const packed = await new Promise((done, failed) => zlib.gzip(Buffer.alloc(1 << 20), (e, r) => e ? failed(e) : done(r)));
    console.log(zlib.gunzipSync(packed).length, crypto.pbkdf2Sync('a', 'b', 1000, 16, 'sha256').toString('hex'));
    await Promise.all([...Array(40).keys()].map(i => fs.promises.writeFile('f' + i, 'x'.repeat(i))));
    console.log(fs.readdirSync('.').length);
    process.on('exit', code => console.log('exit', code));
    let caught = 0;
    for (const name of ['SIGUSR2', 'SIGTERM'])
        process.on(name, () => { console.log(name); if (++caught === 2) process.kill(process.pid, 'SIGINT'); });
    process.on('SIGINT', () => { console.log('SIGINT'); process.exit(7); });
    setTimeout(() => {}, 100000);
    process.kill(process.pid, 'SIGUSR2');
    setTimeout(() => process.kill(process.pid, 'SIGTERM'), 20);
})();
J
node main.js; echo $?
node -e 'throw new Error("thrown")' 2>&1 | grep -c thrown
node -e 'process.kill(process.pid, "SIGKILL")'; echo $?
node -e 'setInterval(() => {}, 1000)' & sleep 0.3; kill -TERM $!; wait $!; echo $?
echo 'console.log(process.argv.length, 6 * 7)' | node - a b
"""

JAVA = r"""
cat > Main.java <<'J'
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.locks.LockSupport;
public class Main {
    static int deep(int n) { return deep(n + 1) + 1; }
    public static void main(String[] words) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        List<Future<Long>> sums = new ArrayList<>();
        for (int i = 0; i < 8; i++) {
            final int k = i;
            sums.add(pool.submit(() -> { long s = 0; for (int j = 0; j < 1000000; j++) s += j * (long) k; return s; }));
        }
        long total = 0;
        for (Future<Long> f : sums) total += f.get();
        pool.shutdown();
        System.out.println(total);
        ScheduledExecutorService timer = Executors.newScheduledThreadPool(1);
        CountDownLatch ticks = new CountDownLatch(5);
        timer.scheduleAtFixedRate(ticks::countDown, 4, 4, TimeUnit.MILLISECONDS);
        System.out.println(ticks.await(30, TimeUnit.SECONDS));
        timer.shutdownNow();
        long start = System.nanoTime();
        Thread.sleep(20);
        LockSupport.parkNanos(1000000);
        System.out.println(System.nanoTime() - start >= 20000000);
        for (int i = 0; i < 300; i++) { byte[] block = new byte[1 << 20]; block[i] = 1; }
        System.gc();
        Process cat = new ProcessBuilder("sh", "-c", "cat; exit 3").start();
        cat.getOutputStream().write("through\n".getBytes());
        cat.getOutputStream().close();
        System.out.print(new String(cat.getInputStream().readAllBytes()));
        System.out.println(cat.waitFor());
        Process sleep = new ProcessBuilder("sleep", "100").start();
        System.out.println(sleep.waitFor(20, TimeUnit.MILLISECONDS));
        sleep.destroy();
        System.out.println(sleep.waitFor() + " " + new ProcessBuilder("sh", "-c", "kill -9 $$").start().waitFor());
        try { Object none = words.length > 5 ? "" : null; none.hashCode(); } catch (NullPointerException e) { System.out.println("null"); }
        try { deep(0); } catch (StackOverflowError e) { System.out.println("deep"); }
        try { System.out.println(1 / words.length); } catch (ArithmeticException e) { System.out.println("zero"); }
        Thread waiting = new Thread(() -> {
            try { Thread.sleep(100000); } catch (InterruptedException e) { System.out.println("interrupted"); }
        });
        waiting.start();
        Thread.sleep(20);
        waiting.interrupt();
        waiting.join();
        Object lock = new Object();
        int[] turn = {0};
        Thread other = new Thread(() -> { for (int i = 0; i < 200; i++) synchronized (lock) {
            while (turn[0] % 2 == 0) { try { lock.wait(); } catch (InterruptedException e) { return; } }
            turn[0]++; lock.notifyAll(); } });
        other.start();
        for (int i = 0; i < 200; i++) synchronized (lock) { while (turn[0] % 2 == 1) lock.wait(); turn[0]++; lock.notifyAll(); }
        other.join();
        System.out.println(turn[0]);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook")));
        System.out.flush();
        if (words.length > 0) { System.out.println("waiting"); Thread.sleep(100000); }
        System.exit(5);
    }
}
J
java -version 2>&1 | head -1; javac -version 2>&1
javac Main.java; echo $?; java -XX:+UseSerialGC -cp . Main; echo $?
mkfifo out; java -Xshare:auto -XX:+UseG1GC -cp . Main wait > out & p=$!
while read line; do [ "$line" = waiting ] && kill -TERM $p; echo "$line"; done < out | tail -2; wait $p; echo $?
echo 'class Bad { int x = ; }' > Bad.java; javac Bad.java 2>/dev/null; echo $?
java None 2>/dev/null; echo $?
"""

TCL = r"""
tclsh <<'T'
after 20 {puts timer; set done 1}
vwait done
puts [exec sh -c "echo out"]
set f [open "|cat" r+]
puts $f line; flush $f; gets $f line; puts $line; close $f
if {[catch {exec sh -c "exit 3"} message options]} {puts [lindex [dict get $options -errorcode] 2]}
T
"""

PYTHON = r"""
export PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1
/usr/bin/python3 -m venv --without-pip v
v/bin/python -c 'import sys; print(sys.prefix != sys.base_prefix)'
cat > several.py <<'P'
import asyncio, multiprocessing as mp, os, signal
from multiprocessing import shared_memory
def square(x):
    return x * x
def add(queue, lock, number):
    for _ in range(50):
        with lock:
            number.value += 1
    queue.put(1)
async def main():
    cat = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    print(await cat.communicate(b"through"), cat.returncode)
    try:
        await asyncio.wait_for(asyncio.sleep(100), 0.01)
    except asyncio.TimeoutError:
        print("timed out")
    heard = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await heard.wait()
    sleep = await asyncio.create_subprocess_exec("sleep", "100")
    sleep.terminate()
    print(await sleep.wait())
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = mp.get_context(method)
        with context.Pool(2) as pool:
            print(method, pool.map(square, range(5)))
        queue, lock, number = context.Queue(), context.Lock(), context.Value("i", 0)
        several = [context.Process(target=add, args=(queue, lock, number)) for _ in range(3)]
        for p in several:
            p.start()
        print(sum(queue.get() for _ in several))
        for p in several:
            p.join()
        print(number.value, [p.exitcode for p in several])
    block = shared_memory.SharedMemory(create=True, size=10)
    block.buf[0] = 5
    block.close()
    block.unlink()
    asyncio.run(main())
P
v/bin/python several.py
"""


def test_node(platform, tmp_path):
    """Timers, worker threads, children, a server and its client, and handlers of signals."""
    needs("node")
    result = same_script(platform, NODE, tmp_path)
    assert b"SIGUSR2\nSIGTERM\nSIGINT\nexit 7\n7\n" in result.stdout, result


def test_java(platform, tmp_path):
    """The compiler, threads and timers, two collectors, processes, faults that become exceptions, and a
    shutdown hook that a signal runs."""
    needs("java", "javac")
    result = same_script(platform, JAVA, tmp_path)
    assert b"interrupted\n400\nhook\n5\n" in result.stdout and b"hook\n143\n" in result.stdout, result


def test_tcl(platform, tmp_path):
    needs("tclsh")
    same_script(platform, TCL, tmp_path)


def test_python_processes(platform, tmp_path):
    """A virtual environment; pools by each start method, shared memory, and asyncio's children and signals."""
    same_script(platform, PYTHON, tmp_path)
