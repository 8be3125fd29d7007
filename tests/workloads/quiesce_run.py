"""python quiesce_run.py SEED VERB ...: trapline, with its sandbox brought to rest again and again, at random times.

At the end it says on standard error how often.
"""

from __future__ import annotations

import random
import sys

import trio

from trapline.platform.quiesce import Quiescence
from trapline.platform.session import Session
from trapline.sentry.cli.main import main

LONGEST = 0.02  # s between two times
_run = Session.run


def run(session: Session) -> int:
    chosen = random.Random(int(sys.argv[1]))

    async def again_and_again() -> None:
        count = 0
        try:
            while not session.pump.done:
                await trio.sleep(chosen.random() * LONGEST)
                quiescence = Quiescence(session)
                await quiescence.begin(20)
                if not quiescence.active:
                    return
                standing = set(quiescence.at_rest)
                standing |= {host for host, t in session.engine.tracees.items() if t.listening or t.holding}
                assert standing <= set(session.engine.tracees)
                count += 1
                quiescence.go_on()
        finally:
            sys.stderr.write(f"at rest {count} times\n")

    session.pump.spawn(again_and_again)
    return _run(session)


Session.run = run  # type: ignore[method-assign]
sys.exit(main(sys.argv[2:]))
