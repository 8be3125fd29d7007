"""More threads stop or die in one moment than the sentry serves at once; no signal tells it of the rest."""

from harness import same

SCRIPT = r"""
import os, signal, threading, time
ready, go = os.pipe()
pid = os.fork()
if pid == 0:
    threading.stack_size(64 * 1024)
    for _ in range(900):
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
    os.write(go, b"x")
    signal.pause()
os.read(ready, 1)
os.kill(pid, signal.SIGSTOP)
print(os.WSTOPSIG(os.waitpid(pid, os.WUNTRACED)[1]), flush=True)
os.kill(pid, signal.SIGCONT)
print(os.WIFCONTINUED(os.waitpid(pid, os.WCONTINUED)[1]), flush=True)
os.kill(pid, signal.SIGKILL)
print(os.waitpid(pid, 0)[1])
"""


def test_stop_continue_and_kill_of_many_threads(platform):
    same(platform, ["/usr/bin/python3", "-c", SCRIPT], timeout=30)
