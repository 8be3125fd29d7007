"""A program for pid 1: what it hears and inherits there. Prints the same in any pid namespace of its own."""

import ctypes
import os
import signal
import sys

seen = []


def child(function):
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    return pid


def reap(pid):
    return os.waitpid(pid, 0)[1]


def sends(*numbers):
    def function():
        for number in numbers:
            os.kill(1, number)
            seen.append(number)
        print("sent", [int(n) for n in numbers], flush=True)

    return function


print("ids", os.getpid(), os.getppid())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL, signal.SIGSTOP,
               signal.SIGTSTP, signal.SIGABRT, 40):  # fmt: skip
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(1, number)
print("own signals survived")
print("child", reap(child(sends(signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGQUIT))))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(1, signal.SIGTERM)
print("pending", signal.SIGTERM in signal.sigpending())
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
print("pending", signal.SIGTERM in signal.sigpending())
signal.signal(signal.SIGTERM, lambda number, frame: seen.append(int(number)))
print("child", reap(child(sends(signal.SIGTERM))))
print("handled", seen)
signal.signal(signal.SIGTERM, signal.SIG_DFL)

# Everybody but pid 1 and the sender.
reader, writer = os.pipe()
victim = child(lambda: signal.pause())
print("everybody", reap(child(lambda: os.kill(-1, signal.SIGKILL))), reap(victim))


# An orphan is a child of ours, and its end is told.
def orphan():
    def waits():
        os.read(reader, 1)
        print("orphan's parent", os.getppid(), flush=True)
        os._exit(5)

    child(waits)


print("parent", reap(child(orphan)))
os.write(writer, b"x")
pid, status = os.wait()
print("orphan", pid > 1, status)
try:
    os.wait()
except ChildProcessError:
    print("no more children")
try:
    os.setsid()
except OSError as error:
    print("setsid", error.strerror)
sys.stdout.flush()
if sys.argv[1:] == ["fault"]:
    ctypes.string_at(0)
os._exit(9)
