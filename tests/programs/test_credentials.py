"""Processes that become another user: what their parents and others are told and may do."""

import pytest
from harness import is_root, same

CHILDREN = r"""
import os, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
def child(stay):
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65533, 65532)
        os.close(go) if not stay else os.write(go, b"x")
        if stay:
            signal.pause()
        os._exit(0)
    os.close(go)
    os.read(ready, 1)
    return pid
pid = child(False)
info = signal.sigwaitinfo([signal.SIGCHLD])
print("signal", info.si_uid, info.si_pid == pid, os.waitid(os.P_PID, pid, os.WEXITED).si_uid)
pid = child(True)
os.kill(pid, signal.SIGSTOP)
info = os.waitid(os.P_PID, pid, os.WSTOPPED)
print("stopped", info.si_uid, signal.sigwaitinfo([signal.SIGCHLD]).si_uid)
os.kill(pid, signal.SIGKILL)
print("killed", os.waitid(os.P_PID, pid, os.WEXITED).si_uid)
"""

USERS = r"""
first() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
first sh -c 'id -u; id -G; sleep 100 & kill $!; wait $!; echo $?'
sleep 100 & other=$!
first sh -c "kill $other" 2>/dev/null; echo $?
first sh -c "kill -0 1" 2>/dev/null; echo $?
kill $other; wait $other; echo $?
first /usr/bin/python3 -c '
import os, signal
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print("zombie", os.kill(pid, 0), os.kill(pid, signal.SIGTERM), os.waitpid(pid, 0)[1])'
touch private; chmod 600 private; first cat private 2>/dev/null; echo $?
"""


SENDERS = r"""
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def tell():
    os.kill(os.getpid(), signal.SIGUSR1)
    print(signal.sigwaitinfo([signal.SIGUSR1]).si_uid)
tell()
os.setresuid(65534, 0, 0)
tell()
os.setreuid(65533, 0)
tell()
if os.fork() == 0:
    os.setuid(65532)
    tell()
    os._exit(0)
os.wait()
tell()
"""


@pytest.mark.skipif(not is_root(), reason="only root can become another user")
def test_uid_of_a_sender(platform):
    """kill's siginfo names the real user that the sender is now, though it was another before."""
    same(platform, ["/usr/bin/python3", "-u", "-c", SENDERS])


@pytest.mark.skipif(not is_root(), reason="only root can become another user")
def test_uid_of_a_child(platform):
    """SIGCHLD's siginfo and waitid name the real user that the child was at last."""
    same(platform, ["/usr/bin/python3", "-c", CHILDREN])


@pytest.mark.skipif(not is_root(), reason="only root can become another user")
def test_what_another_user_may_signal(platform, tmp_path):
    tmp_path.chmod(0o755)
    same(platform, ["bash", "-c", USERS], cwd=tmp_path)
