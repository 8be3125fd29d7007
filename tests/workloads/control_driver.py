"""A sandbox that controls itself: `run_sandbox`, with an async scenario beside the guests in place of a server.

control_driver.py SCENARIO USER FLAGS... -- COMMAND...; USER: who to become, `-` for nobody else. A scenario prints to
standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable

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
    say("descriptors", await run(control, "sh", "-c", "ls /proc/$$/fd | tr '\\n' ' '; echo"))
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
