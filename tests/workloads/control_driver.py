"""A sandbox that controls itself: `run_sandbox`, with an async scenario beside the guests in place of a server.

control_driver.py SCENARIO USER FLAGS... -- COMMAND...; USER: who to become, `-` for nobody else. A scenario prints to
standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable

import trio
from unprivileged_driver import become, load_all

from trapline.platform import session
from trapline.platform.control_target import ControlTarget
from trapline.sentry.control.interface import ExecSpec, NoSuchProcess, Refused

SCENARIOS: dict[str, Callable[[ControlTarget], Awaitable[None]]] = {}


def scenario(function: Callable[[ControlTarget], Awaitable[None]]) -> Callable[[ControlTarget], Awaitable[None]]:
    SCENARIOS[function.__name__] = function
    return function


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


async def run(control: ControlTarget, *args: str, **more: object) -> int:
    """The exit status of a command that uses our descriptors."""
    started = await control.execute(ExecSpec(args=list(args), **more), [0, 1, 2])  # type: ignore[arg-type]
    return await control.wait(started.pid)


async def refusal(control: ControlTarget, *args: str, **more: object) -> str:
    try:
        return str(await run(control, *args, **more))
    except Refused as error:
        return str(error)


@scenario
async def execute(control: ControlTarget) -> None:
    """Statuses, output, and what the new process is."""
    say("true", await run(control, "true"))
    say("status", await run(control, "sh", "-c", "exit 7"))
    say("signal", await run(control, "sh", "-c", "kill -TERM $$"))
    say("pipeline", await run(control, "sh", "-c", "echo out of exec | tr a-z A-Z; ps -o ppid= -p $$ | tr -d ' '"))
    say("no such program:", await refusal(control, "/no/such"))
    say("not found:", await refusal(control, "no-such-program"))
    say("no such directory:", await refusal(control, "true", cwd="/no/such"))
    say("no program:", await refusal(control, "/etc/passwd"))
    say("no limit:", await refusal(control, "true", rlimits={"RLIMIT_NONSENSE": (1, 1)}))
    # Without a pipeline, of which the shell itself has an end for a moment.
    say("descriptors", await run(control, "sh", "-c", "ls /proc/$$/fd; true"))
    say("limits", await run(control, "sh", "-c", "ulimit -n", rlimits={"RLIMIT_NOFILE": (77, 78)}))
    say("directory", await run(control, "pwd", cwd="/usr"))
    say("environment", await run(control, "/usr/bin/env", env=["ONLY=this"]))
    say("session", await run(control, "python3", "-c",
        "import os; print(os.getsid(0) == os.getpid() == os.getpgrp(), os.getppid())"))  # fmt: skip
    try:
        await control.wait(12345)
    except NoSuchProcess as error:
        say("wait:", error)
    control.kill(9)


@scenario
async def same(control: ControlTarget) -> None:
    """Marks of the sandbox that a process from outside has, too."""
    await run(control, "sh", "-c", "until [ -e /tmp/trapline-mine ]; do :; done; cat /tmp/trapline-mine; nproc")
    await run(control, "python3", "-c", "import time; print(time.clock_gettime(time.CLOCK_MONOTONIC) < 60)")
    await run(control, "sh", "-c", "trap : USR1; kill -USR1 $$; wait")
    control.kill(9)


@scenario
async def users(control: ControlTarget) -> None:
    await run(control, "sh", "-c", "echo $(id -u) $(id -g) $(id -G | cut -d' ' -f2)", uid=12, gid=34, groups=[56])
    show = "echo $(grep -E 'Cap(Eff|Prm)' /proc/self/status | cut -f2)"
    await run(control, "sh", "-c", show, uid=12, gid=34)
    await run(control, "sh", "-c", show, capabilities=["CAP_CHOWN"])
    say("no capability:", await refusal(control, "true", capabilities=["CAP_NONSENSE"]))
    control.kill(9)


@scenario
async def terminal(control: ControlTarget) -> None:
    script = "tty >/dev/null && [ -t 0 ] && echo ready > /dev/tty; stty size; read x; stty size; exit 3"
    started = await control.execute(ExecSpec(args=["sh", "-c", script], terminal=True, size=(50, 120)), [])
    os.set_blocking(started.master, False)
    seen = b""
    asked = False
    while seen.count(b"\n") < 4:
        await trio.lowlevel.wait_readable(started.master)
        seen += os.read(started.master, 4096)
        if b"120" in seen and not asked:
            asked = True
            control.resize(40, 100, started.pid)
            os.write(started.master, b"\n")
    lines = [line for line in seen.decode().split("\r\n") if line]
    say("ready" in lines)
    for line in lines:
        if line != "ready":
            say(line)
    say("status", await control.wait(started.pid))
    control.kill(9)


def main() -> None:
    from trapline.platform.run import run_sandbox
    from trapline.sentry.cli.do import options

    name, user, *words = sys.argv[1:]
    if user != "-":
        load_all()
        become(int(user))

    class Controlled(session.Session):
        def run(self) -> int:
            control = ControlTarget(self)

            async def go() -> None:
                try:
                    await SCENARIOS[name](control)
                except Refused as error:
                    say("refused:", error)

            self.pump.spawn(go)
            return super().run()

    session.Session = Controlled  # type: ignore[misc]
    wanted = options(words)
    assert wanted is not None
    os._exit(run_sandbox(wanted))


if __name__ == "__main__":
    main()
