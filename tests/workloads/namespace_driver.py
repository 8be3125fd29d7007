"""Sets up a real sandbox without the kernel: what test_namespaces.py runs in a process of its own.

Takes one JSON argument: {"options": ..., "script": shell text for the first guest, "user": uid to become or
null, "hostname", "linger": do not end by itself, "report": file for what the sentry saw}. The guest's facts,
taken before its exec, are in the report too.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

import msgspec

# All imports come before the change of user: Python itself may lie in a directory that is root's.
from trapline.platform import caller_terminal, guardian, namespaces, state_dir
from trapline.sentry.options import DoOptions


def become(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable, as after an exec by that user


def main() -> int:
    job = json.loads(sys.argv[1])
    if job.get("user") is not None:
        become(job["user"])
    options = msgspec.convert({"command": ["sh"], **job.get("options", {})}, DoOptions)
    path = state_dir.prepare(options.state_dir)
    entry = state_dir.create(path, options.command)
    terminal = caller_terminal.find()
    watcher = guardian.start(terminal=terminal)
    watcher.watch(-1, entry.path)

    def guest_main(channel: socket.socket) -> NoReturn:
        facts = {
            "monotonic": time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            "boottime": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            "pid": os.getpid(),
            "ppid": os.getppid(),
            "uid": os.getuid(),
            "cwd": os.getcwd(),
            "host": socket.gethostname(),
            "mask": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        }
        channel.send(json.dumps(facts).encode())
        if channel.recv(1) == b"g":
            os.execv("/bin/sh", ["sh", "-c", job["script"]])
        os._exit(1)

    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    status = 0
    try:
        hostname = job.get("hostname", "")
        sandbox = namespaces.start(
            options, guest_main, entry.stage, terminal=terminal, hostname=hostname
        ).wait()
    except namespaces.SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        entry.remove()
        watcher.finish()
        try:
            os.waitpid(-1, os.WNOHANG)
            print("a child is left", file=sys.stderr)
        except ChildProcessError:
            pass
        return 125
    watcher.watch(sandbox.init_pidfd, entry.path)
    entry.record_init(sandbox.init_pid)
    if sandbox.own_group:
        terminal.give(sandbox.guest_pid)
    facts = json.loads(sandbox.channel.recv(65536))
    with open(f"/proc/{sandbox.guest_pid}/status") as file:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    facts["sentry"] = {
        "before": before,
        "now": time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        "base": sandbox.monotonic_base,
        "own_time": sandbox.own_time,
        "init": sandbox.init_pid,
        "guest": sandbox.guest_pid,
        "guardian": watcher.pid,
        "entry": entry.path,
        "nspid": [int(p) for p in lines["NSpid"].split()],
        "parent": int(lines["PPid"]),
        "notes": sandbox.notes,
        "ignored": sorted(sandbox.ignored),
        # The sentry's own children must not be in the sandbox.
        "own_namespaces": [
            os.readlink(f"/proc/self/ns/{name}") for name in ("pid_for_children", "time_for_children")
        ],
    }
    guest = os.pidfd_open(sandbox.guest_pid)
    sandbox.channel.send(b"g")
    time.sleep(job.get("settle", 0))
    with open(f"/proc/{sandbox.init_pid}/status") as file:
        facts["init_status"] = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    facts["init_descriptors"] = os.listdir(f"/proc/{sandbox.init_pid}/fd")
    with open(job["report"], "w") as file:
        json.dump(facts, file)
    os.rename(job["report"], job["report"] + ".done")
    select.select([guest], [], [])
    while job.get("linger"):
        time.sleep(1)
    sandbox.kill()
    os.waitpid(sandbox.init_pid, 0)
    sandbox.close()
    entry.remove()
    watcher.finish()
    try:
        os.waitpid(-1, os.WNOHANG)
        print("a child is left", file=sys.stderr)
    except ChildProcessError:
        pass
    return status


if __name__ == "__main__":
    sys.exit(main())
